//! A thousand transactions at once, and none of them is taken for another.

use futures_util::StreamExt as _;
use futures_util::stream;
use unanimous_protocol::message::RequestKind;
use unanimous_protocol::wire::BranchState;

use super::case::{Case, Checked, failed, text};
use super::{Check, Source, views};

const THOUSAND: usize = 1_000;
/// Calls under way at the same time.
const AT_ONCE: usize = 64;
/// Looks at single branches afterwards.
const SAMPLED: usize = 40;

pub(super) const CHECKS: &[Check] = &[Check {
    id: "thousand-interleaved",
    source: Source::Api("| prepared | *yes* | committed | aborted |"),
    without_it: "under load one transaction is told another's outcome, or a bound that nobody knew of loses what was \
                 accepted",
    run: |case| Box::pin(thousand_interleaved(case)),
}];

async fn thousand_interleaved(case: &Case<'_>) -> Checked {
    let ids = case.ids(THOUSAND);
    let mut prepares = stream::iter(&ids)
        .map(|id| case.prepare(*id))
        .buffer_unordered(AT_ONCE);
    while let Some(heard) = prepares.next().await {
        heard.is_yes()?;
    }
    drop(prepares);
    // All of them are in doubt, and all are shown, each once.
    let branches = views::list(case, "prepared", 100).await?;
    let counts = views::counted(&branches, &ids);
    if let Some((id, count)) = counts.iter().find(|(_, count)| **count != 1) {
        return failed(format!(
            "with {THOUSAND} branches prepared, {id} is in the list of them {count} times"
        ));
    }
    // Every second one commits, and each is told twice, out of order.
    let outcome = |at: usize| {
        if at.is_multiple_of(2) {
            RequestKind::Commit
        } else {
            RequestKind::Abort
        }
    };
    let told = (0..THOUSAND).rev().chain((0..THOUSAND).step_by(3));
    let mut outcomes = stream::iter(told)
        .map(|at| {
            let (kind, id) = (outcome(at), ids[at]);
            async move { case.call(kind, id, &text(&case.branch_request(id))).await }
        })
        .buffer_unordered(AT_ONCE);
    while let Some(heard) = outcomes.next().await {
        match heard.kind {
            RequestKind::Commit => heard.is_committed()?,
            RequestKind::Prepare | RequestKind::Abort => heard.is_aborted()?,
        }
    }
    drop(outcomes);
    for at in (0..THOUSAND).step_by(THOUSAND / SAMPLED) {
        let expected = match outcome(at) {
            RequestKind::Commit => BranchState::Committed,
            RequestKind::Prepare | RequestKind::Abort => BranchState::Aborted,
        };
        case.stands(ids[at], expected).await?;
    }
    let branches = views::list(case, "prepared", 1_000).await?;
    let left = views::counted(&branches, &ids).into_values().sum::<usize>();
    if left > 0 {
        return failed(format!(
            "{left} branches that have been told their outcome are listed as prepared"
        ));
    }
    Ok(())
}
