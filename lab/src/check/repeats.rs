//! Everything is repeated: what is said once and what is said fifty times come to the same.

use futures_util::future::join_all;
use unanimous_protocol::message::RequestKind;
use unanimous_protocol::operations::Operations;
use unanimous_protocol::wire::BranchState;

use super::case::{Case, Checked, Heard, Said, failed, not_applicable, text};
use super::{Check, Source};

/// How many at once.
const FIFTY: usize = 50;
/// Races that are run: each may end one way or the other.
const RACES: usize = 20;

const IDEMPOTENT: &str = "A stored row always answers first; \
    a *yes* or *committed* only once the row is known to be durable.";
const ONE_TRANSACTION: &str = "The effect and the state change are one local transaction.";
const THE_SAME: &str = "two bodies are the same when they are equal apart from white space and \
    member order, numbers by their text";

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "prepare-repeated",
        source: Source::Rule(8, IDEMPOTENT),
        without_it: "a yes whose answer was lost becomes a no, or an error, and a transaction that could commit aborts",
        run: |case| Box::pin(prepare_repeated(case)),
    },
    Check {
        id: "prepare-fifty-at-once",
        source: Source::Rule(8, IDEMPOTENT),
        without_it: "two copies of one prepare work at the same time: both reserve, and only one is ever given back",
        run: |case| Box::pin(prepare_fifty_at_once(case)),
    },
    Check {
        id: "commit-repeated",
        source: Source::Rule(8, IDEMPOTENT),
        without_it: "a commit whose answer was lost is never acknowledged, and the transaction never finishes",
        run: |case| Box::pin(commit_repeated(case)),
    },
    Check {
        id: "commit-fifty-at-once",
        source: Source::Rule(8, ONE_TRANSACTION),
        without_it: "copies of one commit that arrive together are applied together: the money moves twice",
        run: |case| Box::pin(commit_fifty_at_once(case)),
    },
    Check {
        id: "applied-once",
        source: Source::Rule(8, ONE_TRANSACTION),
        without_it: "a repeated commit, or a late prepare behind it, moves the money a second time",
        run: |case| Box::pin(applied_once(case)),
    },
    Check {
        id: "aborted-leaves-nothing",
        source: Source::Rule(8, ONE_TRANSACTION),
        without_it: "a transaction that was aborted everywhere has changed something here",
        run: |case| Box::pin(aborted_leaves_nothing(case)),
    },
    Check {
        id: "prepare-after-commit",
        source: Source::Api("| committed | *yes* | committed | 409 `outcome-differs` |"),
        without_it: "a late duplicate of a prepare begins a second branch behind the commit of the first",
        run: |case| Box::pin(prepare_after_commit(case)),
    },
    Check {
        id: "changed-prepare",
        source: Source::Api("422 `prepare-changed` (other operations than the first time)"),
        without_it: "the coordinator commits what it asked for last, and the participant what it was asked first",
        run: |case| Box::pin(changed_prepare(case)),
    },
    Check {
        id: "same-body-in-another-spelling",
        source: Source::Rule(24, THE_SAME),
        without_it: "a proxy that writes JSON in its own way turns every repeated prepare into a changed one",
        run: |case| Box::pin(another_spelling(case)),
    },
    Check {
        id: "numbers-by-their-text",
        source: Source::Rule(24, THE_SAME),
        without_it: "amounts that differ beyond what a floating-point number holds are taken for the same",
        run: |case| Box::pin(numbers_by_their_text(case)),
    },
    Check {
        id: "abort-races-prepare",
        source: Source::Rule(7, "Never lock a row that may not exist."),
        without_it: "an abort that meets its own prepare is acknowledged before the prepare stores its yes, which then \
                     holds what it reserved",
        run: |case| Box::pin(abort_races_prepare(case)),
    },
];

async fn prepare_repeated(case: &Case<'_>) -> Checked {
    let id = case.id();
    for _ in 0..5 {
        case.prepare(id).await.is_yes()?;
    }
    case.stands(id, BranchState::Prepared).await?;
    case.commit(id).await.is_committed()
}

/// The same call so many times at once. An answer may be *unknown*; another than `expected` it may not be.
async fn at_once(
    case: &Case<'_>,
    kind: RequestKind,
    body: &str,
    id: unanimous_protocol::id::TransactionId,
    expected: &Said,
) -> Checked {
    let calls = (0..FIFTY).map(|_| case.call_once(kind, id, body));
    let heard: Vec<Heard> = join_all(calls).await;
    let mut others = heard.iter().filter(|heard| !heard.is_unknown());
    others.try_for_each(|heard| heard.is(expected))
}

async fn prepare_fifty_at_once(case: &Case<'_>) -> Checked {
    let id = case.id();
    let body = text(&case.prepare_request(id));
    at_once(case, RequestKind::Prepare, &body, id, &Said::Yes).await?;
    case.prepare(id).await.is_yes()?;
    case.stands(id, BranchState::Prepared).await?;
    case.abort(id).await.is_aborted()
}

async fn commit_repeated(case: &Case<'_>) -> Checked {
    let id = case.id();
    case.prepare(id).await.is_yes()?;
    for _ in 0..5 {
        case.commit(id).await.is_committed()?;
    }
    case.stands(id, BranchState::Committed).await
}

async fn commit_fifty_at_once(case: &Case<'_>) -> Checked {
    let id = case.id();
    case.prepare(id).await.is_yes()?;
    let body = text(&case.branch_request(id));
    at_once(case, RequestKind::Commit, &body, id, &Said::Committed).await?;
    case.commit(id).await.is_committed()?;
    case.stands(id, BranchState::Committed).await
}

async fn applied_once(case: &Case<'_>) -> Checked {
    // What one commit changes, found out first.
    let before = case.look().await?;
    let id = case.id();
    case.prepare(id).await.is_yes()?;
    case.commit(id).await.is_committed()?;
    let after = case.look().await?;
    if after == before {
        return failed(format!(
            "a branch was committed, and --look shows what it showed before: {after}. Either it does not show what the \
             operations change, or the commit changed nothing"
        ));
    }
    let unchanged = async |what: &str| {
        let now = case.look().await?;
        if now == after {
            return Ok(());
        }
        failed(format!(
            "{what} changed something: --look showed {after}, and then {now}"
        ))
    };
    case.commit(id).await.is_committed()?;
    unchanged("the repeated commit").await?;
    let body = text(&case.branch_request(id));
    at_once(case, RequestKind::Commit, &body, id, &Said::Committed).await?;
    unchanged("one of fifty commits at once").await?;
    case.prepare(id).await.is_yes()?;
    case.commit(id).await.is_committed()?;
    unchanged("the late prepare, or the commit behind it").await?;
    case.abort(id).await.is_outcome_differs()?;
    unchanged("an abort of the committed branch").await
}

async fn aborted_leaves_nothing(case: &Case<'_>) -> Checked {
    let before = case.look().await?;
    let id = case.id();
    case.prepare(id).await.is_yes()?;
    case.prepare(id).await.is_yes()?;
    for _ in 0..2 {
        case.abort(id).await.is_aborted()?;
        let after = case.look().await?;
        if after != before {
            return failed(format!(
                "--look showed {before}, and behind the abort {after}"
            ));
        }
    }
    Ok(())
}

async fn prepare_after_commit(case: &Case<'_>) -> Checked {
    let id = case.id();
    case.prepare(id).await.is_yes()?;
    case.commit(id).await.is_committed()?;
    case.prepare(id).await.is_yes()?;
    case.stands(id, BranchState::Committed).await
}

async fn changed_prepare(case: &Case<'_>) -> Checked {
    let first = &case.kit.options.operations;
    let Some(other) = twice(first).or_else(|| case.kit.options.refused.clone()) else {
        return not_applicable(
            "the operations are `[]`, which can not be changed, and there are no others",
        );
    };
    let id = case.id();
    case.prepare(id).await.is_yes()?;
    for _ in 0..2 {
        let changed = case.prepare_operations(id, &other).await;
        changed.is(&Said::Refused(422, "prepare-changed".to_owned()))?;
    }
    // The first ones stand.
    case.prepare(id).await.is_yes()?;
    case.stands(id, BranchState::Prepared).await?;
    case.commit(id).await.is_committed()?;
    let changed = case.prepare_operations(id, &other).await;
    changed.is(&Said::Refused(422, "prepare-changed".to_owned()))
}

/// The same operations, each a second time; `None` where there are none.
fn twice(operations: &Operations) -> Option<Operations> {
    let inner = operations.text().strip_prefix('[')?.strip_suffix(']')?;
    if inner.trim().is_empty() {
        return None;
    }
    Operations::parse(&format!("[{inner},{inner}]")).ok()
}

async fn another_spelling(case: &Case<'_>) -> Checked {
    let operations = case.kit.options.operations.text();
    let respelled = respelled(operations);
    let id = case.id();
    case.prepare(id).await.is_yes()?;
    // Spelled here, for our own types would keep it.
    let body = format!(
        "{{\n  \"operations\": {respelled},\n  \"begun_at_ms\": 1, \"remaining_ms\": 30000,\n\
         \"participant\": \"{}\", \"transaction\": \"{id}\" }}\n",
        case.kit.name
    );
    case.call(RequestKind::Prepare, id, &body).await.is_yes()?;
    case.commit(id).await.is_committed()
}

/// With white space between all tokens and the members of each object in the opposite order; numbers as they are.
fn respelled(json: &str) -> String {
    let Ok(raw) = serde_json::from_str::<&serde_json::value::RawValue>(json) else {
        return json.to_owned();
    };
    let text = raw.get();
    if let Ok(list) = serde_json::from_str::<Vec<&serde_json::value::RawValue>>(text) {
        let list: Vec<String> = list.iter().map(|item| respelled(item.get())).collect();
        return format!("[\n {} ]", list.join(" ,\t"));
    }
    if let Ok(members) = serde_json::from_str::<
        std::collections::BTreeMap<String, &serde_json::value::RawValue>,
    >(text)
    {
        let members: Vec<String> = members
            .iter()
            .rev()
            .map(|(name, value)| {
                let name = serde_json::to_string(name).unwrap_or_default();
                format!("{name} : {}", respelled(value.get()))
            })
            .collect();
        return format!("{{ {} }}", members.join(" , "));
    }
    text.to_owned()
}

async fn numbers_by_their_text(case: &Case<'_>) -> Checked {
    let Some(other) = with_another_number(case.kit.options.operations.text()) else {
        return not_applicable("the operations hold no integer");
    };
    let id = case.id();
    case.prepare(id).await.is_yes()?;
    let mut request = case.prepare_request(id);
    request.operations = other;
    let heard = case.call(RequestKind::Prepare, id, &text(&request)).await;
    // Whatever it calls it, a yes to other operations it is not.
    if !matches!(heard.said, Said::Refused(..)) {
        return heard.not("a refusal of the request, for `1` and `1.0` are two texts");
    }
    case.stands(id, BranchState::Prepared).await
}

/// The first integer that is a value written as `n.0`.
fn with_another_number(json: &str) -> Option<Operations> {
    let bytes = json.as_bytes();
    let mut in_text = false;
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'\\' if in_text => at += 1,
            b'"' => in_text = !in_text,
            b'0'..=b'9' if !in_text => {
                let digits = bytes[at..]
                    .iter()
                    .take_while(|byte| byte.is_ascii_digit())
                    .count();
                let end = at + digits;
                if !matches!(bytes.get(end), Some(b'.' | b'e' | b'E')) {
                    let changed = format!("{}.0{}", &json[..end], &json[end..]);
                    return Operations::parse(&changed).ok();
                }
                return None;
            }
            _ => {}
        }
        at += 1;
    }
    None
}

async fn abort_races_prepare(case: &Case<'_>) -> Checked {
    for _ in 0..RACES {
        let id = case.id();
        let (prepared, aborted) = tokio::join!(case.prepare(id), case.abort(id));
        let either = prepared.said == Said::Yes || prepared.is_no(&["aborted"]).is_ok();
        if !either {
            return prepared.not("*yes* or *no*, aborted, whichever of the two was first");
        }
        aborted.is_aborted()?;
        // Whichever was first, the abort has the last word.
        case.prepare(id).await.is_no(&["aborted"])?;
        case.commit(id).await.is_outcome_differs()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_spelling_is_the_same_body_and_another_number_is_not() {
        let operations = Operations::parse(
            r#"[{"kind":"debit","account":7,"amounts":[1,"2"],"x":{"b":1,"a":"\"3"}}]"#,
        )
        .unwrap();
        let other = respelled(operations.text());
        assert_ne!(other, operations.text());
        assert_eq!(
            Operations::parse(&other).unwrap().digest(),
            operations.digest()
        );
        let changed = with_another_number(operations.text()).unwrap();
        assert!(changed.text().contains(r#""account":7.0,"#), "{changed:?}");
        assert_ne!(changed.digest(), operations.digest());
        assert_eq!(with_another_number(r#"[{"text": "1 \" 2"}]"#), None);
        assert_eq!(twice(&Operations::none()), None);
        assert_eq!(
            twice(&Operations::parse("[1]").unwrap()).unwrap().text(),
            "[1,1]"
        );
    }
}
