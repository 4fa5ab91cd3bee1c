//! The low-water mark: what has ended may be dropped, and what comes late begins nothing all the same.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep};
use unanimous_protocol::id::TransactionId;
use unanimous_protocol::message::RequestKind;
use unanimous_protocol::wire::{BranchState, VoteAnswer, parse_object};

use super::case::{Case, Checked, Heard, Said, failed, text};
use super::{Check, Source, views};

/// Ids that are kept back to be tried below a mark.
pub(super) const TRIES: usize = 400;
const PAUSE: Duration = Duration::from_millis(50);
/// As long as late duplicates meet the pruning.
const PRUNING: Duration = Duration::from_secs(3);

const BELOW: &str =
    "| none, below the mark | *no*, `below-low-water` | 409 `vote-lost` | aborted |";

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "below-the-mark",
        source: Source::Api(BELOW),
        without_it: "a duplicate that comes after its row was dropped does its work again; and a coordinator whose log \
                     was restored from a backup does not learn from anybody that it lost commits",
        run: |case| Box::pin(below_the_mark(case)),
    },
    Check {
        id: "mark-of-its-own-prefix",
        source: Source::Rule(
            15,
            "**The low-water mark** L speaks only of ids with its own prefix",
        ),
        without_it: "one coordinator's mark makes the participant refuse all that another one asks",
        run: |case| Box::pin(own_prefix(case)),
    },
    Check {
        id: "mark-keeps-what-is-in-doubt",
        source: Source::Rule(15, "drops only rows that have an outcome"),
        without_it: "a promise is thrown away while the commit for it is still on its way",
        run: |case| Box::pin(keeps_what_is_in_doubt(case)),
    },
    Check {
        id: "late-duplicate-while-pruning",
        source: Source::Rule(
            15,
            "A message inserts its row first and reads the mark *afterwards*, in a later statement of the same READ \
             COMMITTED transaction",
        ),
        without_it: "once in a million calls a late duplicate slips between the row and the mark, and moves the money \
                     again",
        run: |case| Box::pin(while_pruning(case)),
    },
];

/// Tells the participant the mark until it acts on it: a new id below is refused. `low` are ids below it, not used yet.
pub(super) async fn acts_on(
    case: &Case<'_>,
    low: &[TransactionId],
    mark: TransactionId,
    carriers: impl Fn() -> TransactionId,
) -> Checked<TransactionId> {
    let until = Instant::now() + case.kit.options.patience;
    for id in low {
        case.tell_mark(carriers(), mark).await?;
        let heard = case.prepare(*id).await;
        if heard.is_no(&["below-low-water"]).is_ok() {
            return Ok(*id);
        }
        // Not yet: it may look at its mark every now and then.
        heard.is_yes()?;
        case.abort(*id).await.is_aborted()?;
        if Instant::now() >= until {
            break;
        }
        sleep(PAUSE).await;
    }
    failed(format!(
        "it was told the mark {mark} again and again, and after {:?} a prepare of a new id below it is still *yes*",
        case.kit.options.patience
    ))
}

async fn below_the_mark(case: &Case<'_>) -> Checked {
    let (committed, aborted) = (case.id(), case.id());
    case.prepare(committed).await.is_yes()?;
    case.commit(committed).await.is_committed()?;
    case.abort(aborted).await.is_aborted()?;
    let low = case.ids(TRIES);
    let mark = case.id();
    let refused = acts_on(case, &low, mark, || case.id()).await?;
    let heard = case.prepare(refused).await;
    heard.is_no(&["below-low-water"])?;
    let body = heard.answer.as_ref().map(|answer| answer.body.as_slice());
    let vote: Option<VoteAnswer> = parse_object(body.unwrap_or_default()).ok();
    let told = vote.and_then(|vote| vote.low_water);
    if told != Some(mark) {
        return heard.not(&format!("*no* with `low_water`, which is {mark}"));
    }
    case.commit(refused).await.is_vote_lost()?;
    case.abort(refused).await.is_aborted()?;
    // Rows that were there may have gone, or not; nothing begins again either way.
    late_begins_nothing(case, committed).await?;
    case.prepare(aborted)
        .await
        .is_no(&["below-low-water", "aborted"])?;
    // At the mark and above it nothing has changed.
    let above = case.id();
    case.prepare(above).await.is_yes()?;
    case.commit(above).await.is_committed()
}

/// A late prepare of a branch that has ended: its row answers, or the mark does, and it is not in doubt again.
pub(super) async fn late_begins_nothing(case: &Case<'_>, id: TransactionId) -> Checked {
    let late = case.prepare(id).await;
    is_over(&late)?;
    if case.state(id).await? == Some(BranchState::Prepared) {
        return begun_again(id);
    }
    Ok(())
}

/// The answer to a late prepare of a branch that was committed.
fn is_over(late: &Heard) -> Checked {
    if late.said == Said::Yes {
        return Ok(());
    }
    late.is_no(&["below-low-water"]).map(drop)
}

fn begun_again(id: TransactionId) -> Checked {
    failed(format!(
        "{id} was committed and finished, and a late duplicate of its prepare has begun it again"
    ))
}

async fn own_prefix(case: &Case<'_>) -> Checked {
    let low: Vec<TransactionId> = (0..TRIES).map(|_| case.id_of_the_next_node()).collect();
    let mark = case.id_of_the_next_node();
    acts_on(case, &low, mark, || case.id_of_the_next_node()).await?;
    // Its bytes are below that mark, for its node is.
    let id = case.id();
    case.prepare(id).await.is_yes()?;
    case.commit(id).await.is_committed()?;
    // Nor does a mark that comes with a message of another prefix speak of that one.
    let (one, carrier) = (case.id(), case.id());
    case.tell_mark(carrier, case.id_of_the_next_node()).await?;
    case.prepare(one).await.is_yes()?;
    case.abort(one).await.is_aborted()
}

async fn keeps_what_is_in_doubt(case: &Case<'_>) -> Checked {
    let (to_commit, to_abort) = (case.id(), case.id());
    for id in [to_commit, to_abort] {
        case.prepare(id).await.is_yes()?;
    }
    let low = case.ids(TRIES);
    let mark = case.id();
    acts_on(case, &low, mark, || case.id()).await?;
    for id in [to_commit, to_abort] {
        case.stands(id, BranchState::Prepared).await?;
        case.prepare(id).await.is_yes()?;
    }
    case.commit(to_commit).await.is_committed()?;
    case.abort(to_abort).await.is_aborted()
}

async fn while_pruning(case: &Case<'_>) -> Checked {
    let begun = Instant::now();
    let mut finished: Vec<TransactionId> = Vec::new();
    while begun.elapsed() < PRUNING {
        // All before these are finished, and the mark says so.
        let round = case.ids(4);
        let mark = round[0];
        for id in &round {
            let prepared = case
                .prepare_with(*id, |request| request.low_water = Some(mark))
                .await;
            prepared.is_yes()?;
        }
        let commits = round.iter().map(|id| {
            let mut request = case.branch_request(*id);
            request.low_water = Some(mark);
            async move { case.call(RequestKind::Commit, *id, &text(&request)).await }
        });
        let late: Vec<TransactionId> = finished.iter().rev().take(12).copied().collect();
        let duplicates = late.iter().map(|id| case.prepare(*id));
        let (committed, duplicates) = tokio::join!(join_all(commits), join_all(duplicates));
        committed.iter().try_for_each(Heard::is_committed)?;
        duplicates.iter().try_for_each(is_over)?;
        finished.extend(round);
    }
    let prepared = views::list(case, "prepared", 1_000).await?;
    let counts = views::counted(&prepared, &finished);
    match counts.into_iter().find(|(_, count)| *count > 0) {
        None => Ok(()),
        Some((id, _)) => begun_again(id),
    }
}
