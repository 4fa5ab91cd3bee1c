//! What a participant shows of itself: to a coordinator at its start, to an operator, to whoever counts what is in
//! doubt.

use std::collections::BTreeMap;

use unanimous_protocol::id::TransactionId;
use unanimous_protocol::wire::{
    BranchList, BranchState, BranchStateAnswer, Describe, parse_object,
};

use super::case::{Case, Checked, failed};
use super::{Check, Source};

/// A list that has not ended by then does not end.
const PAGES_MAX: usize = 20_000;

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "describe",
        source: Source::Api(
            r#"| `GET /v1/describe` | | `{"participant": "east", "protocol": 1, "features": []}` |"#,
        ),
        without_it: "a coordinator can not warn that a name leads to another service: one bank's debits are asked of \
                     the other",
        run: |case| Box::pin(describe(case)),
    },
    Check {
        id: "branch-view",
        source: Source::Api(
            r#"| `GET /v1/branches/{transaction}` | | `{"transaction", "participant", "state", "since"}`; 404 `unknown-branch` |"#,
        ),
        without_it: "an operator who is called at night can not see where a transaction stands",
        run: |case| Box::pin(branch_view(case)),
    },
    Check {
        id: "branch-list",
        source: Source::Api(
            r#"| `GET /v1/branches?state=prepared&limit=&after=` | | `{"branches": [as above], "next"}` |"#,
        ),
        without_it: "what is in doubt, and holds something, is counted wrong",
        run: |case| Box::pin(branch_list(case)),
    },
];

async fn describe(case: &Case<'_>) -> Checked {
    let answer = case.look_up("/v1/describe").await?;
    let described: Describe = match parse_object(&answer.body) {
        Ok(described) if answer.status == 200 => described,
        Ok(_) => return failed(format!("GET /v1/describe: {}", answer.text())),
        Err(error) => return failed(format!("GET /v1/describe: {error}: {}", answer.text())),
    };
    if described.participant != case.kit.name {
        return failed(format!(
            "it calls itself {}, and is to be {}",
            described.participant, case.kit.name
        ));
    }
    if described.protocol != 1 {
        return failed(format!(
            "it speaks protocol {}, and is to speak 1",
            described.protocol
        ));
    }
    Ok(())
}

async fn branch_view(case: &Case<'_>) -> Checked {
    let unknown = case.id();
    if case.state(unknown).await?.is_some() {
        return failed(format!(
            "it shows a branch of {unknown}, which it has never heard of"
        ));
    }
    let id = case.id();
    case.prepare(id).await.is_yes()?;
    let path = format!("/v1/branches/{id}");
    let answer = case.look_up(&path).await?;
    let view: BranchStateAnswer = match parse_object(&answer.body) {
        Ok(view) => view,
        Err(error) => return failed(format!("GET {path}: {error}: {}", answer.text())),
    };
    if view.since.is_none() {
        return failed(format!(
            "GET {path} does not say since when: {}",
            answer.text()
        ));
    }
    case.stands(id, BranchState::Prepared).await?;
    case.commit(id).await.is_committed()?;
    case.stands(id, BranchState::Committed).await
}

/// All branches of a state, page by page.
pub(super) async fn list(
    case: &Case<'_>,
    state: &str,
    limit: usize,
) -> Checked<Vec<BranchStateAnswer>> {
    let mut branches = Vec::new();
    let mut after = String::new();
    for _ in 0..PAGES_MAX {
        let path = format!("/v1/branches?state={state}&limit={limit}{after}");
        let answer = case.look_up(&path).await?;
        let page: BranchList = match parse_object(&answer.body) {
            Ok(page) if answer.status == 200 => page,
            Ok(_) => return failed(format!("GET {path}: {}", answer.text())),
            Err(error) => return failed(format!("GET {path}: {error}: {}", answer.text())),
        };
        if page.branches.len() > limit {
            return failed(format!("GET {path}: a page of {}", page.branches.len()));
        }
        branches.extend(page.branches);
        match page.next {
            Some(next) => after = format!("&after={}", escaped(&next)),
            None => return Ok(branches),
        }
    }
    failed(format!(
        "the list of branches has more than {PAGES_MAX} pages: does it ever end?"
    ))
}

/// For a query. A cursor may hold anything.
fn escaped(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// How often the list has each of these branches.
pub(super) fn counted<'i>(
    branches: &[BranchStateAnswer],
    ids: impl IntoIterator<Item = &'i TransactionId>,
) -> BTreeMap<TransactionId, usize> {
    let mut counts: BTreeMap<TransactionId, usize> = ids.into_iter().map(|id| (*id, 0)).collect();
    for branch in branches {
        let id = branch.transaction.parse().ok();
        if let Some(count) = id.and_then(|id: TransactionId| counts.get_mut(&id)) {
            *count += 1;
        }
    }
    counts
}

async fn branch_list(case: &Case<'_>) -> Checked {
    let prepared = case.ids(5);
    let (committed, aborted) = (case.id(), case.id());
    for id in prepared.iter().chain([&committed, &aborted]) {
        case.prepare(*id).await.is_yes()?;
    }
    case.commit(committed).await.is_committed()?;
    case.abort(aborted).await.is_aborted()?;
    let branches = list(case, "prepared", 2).await?;
    if let Some(other) = branches
        .iter()
        .find(|branch| branch.state != BranchState::Prepared)
    {
        return failed(format!(
            "the list of what is prepared has a branch that is {}",
            super::case::word(Some(other.state))
        ));
    }
    if let Some(bare) = branches.iter().find(|branch| branch.since.is_none()) {
        return failed(format!("{} is listed without `since`", bare.transaction));
    }
    let expected = prepared.iter().map(|id| (id, 1));
    for (id, count) in expected.chain([(&committed, 0), (&aborted, 0)]) {
        let listed = counted(&branches, [id])[id];
        if listed != count {
            return failed(format!(
                "{id} is in the list of what is prepared {listed} times, and has to be {count} times"
            ));
        }
    }
    for id in prepared {
        case.abort(id).await.is_aborted()?;
    }
    Ok(())
}
