//! What a branch in doubt asks, and what it takes for an answer.

use std::time::Duration;

use serde_json::json;
use unanimous_protocol::id::TransactionId;
use unanimous_protocol::message::Inform;
use unanimous_protocol::wire::BranchState;

use super::case::{Case, Checked, failed, word};
use super::coordinator::Tell;
use super::{Check, Source};

/// Four inquiries about one branch in less than this are a flood.
const FLOOD: Duration = Duration::from_millis(250);

const ASKS: &str = "It asks, with capped backoff and jitter, for ever; \
    only a 200 that echoes transaction and participant is an answer.";
const ONLY_A_200: &str = "Only a 200 that echoes both exactly is an answer; `pending` and all else: \
    ask again, with backoff (404 is an alarm as well).";

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "inquiry-committed",
        source: Source::Rule(4, ASKS),
        without_it: "a commit whose call was lost is never applied here while the coordinator is busy with others, and \
                     what the branch holds stays held",
        run: |case| Box::pin(told(case, Inform::Committed, BranchState::Committed)),
    },
    Check {
        id: "inquiry-aborted",
        source: Source::Rule(4, ASKS),
        without_it: "a coordinator that died before its decision leaves reservations behind that nobody ever gives back",
        run: |case| Box::pin(told(case, Inform::Aborted, BranchState::Aborted)),
    },
    Check {
        id: "inquiry-pending",
        source: Source::Api(ONLY_A_200),
        without_it: "a branch gives up while its transaction is about to commit",
        run: |case| Box::pin(pending(case)),
    },
    Check {
        id: "inquiry-silence",
        source: Source::Rule(4, "**After a yes, a participant never decides alone.**"),
        without_it: "a coordinator that hangs is asked once and never again, or is taken for one that said no",
        run: |case| Box::pin(silence(case)),
    },
    Check {
        id: "inquiry-wrong-echo",
        source: Source::Api(ONLY_A_200),
        without_it: "an answer about another branch, from a cache or a proxy that mixed two of them up, ends this one",
        run: |case| Box::pin(wrong_echo(case)),
    },
    Check {
        id: "inquiry-error-pages",
        source: Source::Api(ONLY_A_200),
        without_it: "a load balancer's page for a coordinator that restarts aborts what the coordinator has committed",
        run: |case| Box::pin(error_pages(case)),
    },
    Check {
        id: "inquiry-other-log",
        source: Source::Rule(
            3,
            "Another log's identity: 404 `foreign-transaction`, which tells a participant nothing.",
        ),
        without_it: "a participant that asks the wrong coordinator undoes what the right one has committed",
        run: |case| Box::pin(other_log(case)),
    },
    Check {
        id: "inquiry-redirect",
        source: Source::Rule(19, "No redirects are followed."),
        without_it: "whoever can answer once in the coordinator's place chooses who decides about the money",
        run: |case| Box::pin(redirect(case)),
    },
    Check {
        id: "inquiry-pace",
        source: Source::Rule(4, ASKS),
        without_it: "ten thousand branches in doubt keep the coordinator that comes back from coming back",
        run: |case| Box::pin(pace(case)),
    },
];

/// A branch in doubt, about which inquiries are answered so.
async fn in_doubt(case: &Case<'_>, tell: Tell) -> Checked<TransactionId> {
    case.needs_inquiries()?;
    let id = case.id();
    case.coordinator().tell(id, tell);
    case.prepare(id).await.is_yes()?;
    Ok(id)
}

/// Waits for so many inquiries about the branch.
pub(super) async fn asks(case: &Case<'_>, id: TransactionId, count: usize) -> Checked {
    let patience = case.kit.options.patience;
    if case.coordinator().was_asked(id, count, patience).await {
        return Ok(());
    }
    let asked = case.coordinator().inquiries(id).len();
    let state = word(case.state(id).await?);
    let address = case.coordinator().url();
    failed(format!(
        "it asked {address} about {id} {asked} times within {patience:?}, where at least {count} were waited for; the \
         branch is {state}"
    ))
}

async fn told(case: &Case<'_>, inform: Inform, state: BranchState) -> Checked {
    let id = in_doubt(case, Tell::Outcome(inform)).await?;
    asks(case, id, 1).await?;
    asked_by_name(case, id)?;
    case.becomes(id, state).await?;
    // What the coordinator then says itself is nothing new.
    match inform {
        Inform::Committed => case.commit(id).await.is_committed(),
        Inform::Aborted | Inform::Pending => case.abort(id).await.is_aborted(),
    }
}

/// Every inquiry has to name the participant as its prepare did.
pub(super) fn asked_by_name(case: &Case<'_>, id: TransactionId) -> Checked {
    let inquiries = case.coordinator().inquiries(id);
    let other = inquiries
        .iter()
        .find(|inquiry| inquiry.participant != case.kit.name.as_str());
    match other {
        None => Ok(()),
        Some(inquiry) => failed(format!(
            "it asks with participant={:?}, and the prepare named {}",
            inquiry.participant, case.kit.name
        )),
    }
}

/// Each of these is no answer: the branch stays in doubt, asks again, and then takes the answer that is one.
async fn none_is_an_answer(case: &Case<'_>, tells: Vec<(&str, Tell)>) -> Checked {
    let mut branches = Vec::new();
    for (what, tell) in tells {
        branches.push((what, in_doubt(case, tell).await?));
    }
    for (what, id) in &branches {
        let asked = asks(case, *id, 2).await;
        let state = case.state(*id).await?;
        if state != Some(BranchState::Prepared) {
            return failed(format!(
                "it was told {what}, which is no answer, and the branch of {id} is {}",
                word(state)
            ));
        }
        asked?;
    }
    for (_, id) in &branches {
        case.coordinator()
            .tell(*id, Tell::Outcome(Inform::Committed));
    }
    for (_, id) in branches {
        case.becomes(id, BranchState::Committed).await?;
    }
    Ok(())
}

async fn pending(case: &Case<'_>) -> Checked {
    none_is_an_answer(case, vec![("*pending*", Tell::Outcome(Inform::Pending))]).await
}

async fn silence(case: &Case<'_>) -> Checked {
    none_is_an_answer(case, vec![("nothing", Tell::Silence)]).await
}

async fn wrong_echo(case: &Case<'_>) -> Checked {
    let other = case.id().to_string();
    let aborted = |transaction: &str, participant: &str| {
        Tell::json(
            &json!({"transaction": transaction, "participant": participant, "outcome": "aborted"}),
        )
    };
    none_is_an_answer(
        case,
        vec![
            ("another transaction's outcome", aborted(&other, "$participant")),
            ("another participant's outcome", aborted("$transaction", "somebody-else")),
            ("an outcome without an echo", Tell::json(&json!({"outcome": "aborted"}))),
            (
                "a transaction, as GET shows it",
                Tell::json(&json!({"id": "$transaction", "state": "aborted", "outcome": "aborted"})),
            ),
            (
                "the outcome in an array",
                Tell::json(&json!(["$transaction", "$participant", "aborted"])),
            ),
            (
                "an outcome that there is not",
                Tell::json(&json!({"transaction": "$transaction", "participant": "$participant", "outcome": "rolled back"})),
            ),
        ],
    )
    .await
}

async fn error_pages(case: &Case<'_>) -> Checked {
    // The body says "aborted" to the letter, and the status says that it is no answer.
    let echo =
        json!({"transaction": "$transaction", "participant": "$participant", "outcome": "aborted"});
    let page = |status| Tell::Page {
        status,
        content_type: "application/json",
        body: echo.to_string(),
    };
    let html = |status| Tell::Page {
        status,
        content_type: "text/html",
        body: "<h1>not found</h1>".to_owned(),
    };
    none_is_an_answer(
        case,
        vec![
            ("200 and a page of HTML", html(200)),
            ("404 and a page of HTML", html(404)),
            (
                "404 `unknown-transaction`",
                Tell::problem(404, "unknown-transaction"),
            ),
            ("410 `forgotten`", Tell::problem(410, "forgotten")),
            ("500 with an outcome in its body", page(500)),
            ("503 with an outcome in its body", page(503)),
            ("404 with an outcome in its body", page(404)),
        ],
    )
    .await
}

async fn other_log(case: &Case<'_>) -> Checked {
    let foreign = Tell::problem(404, "foreign-transaction");
    none_is_an_answer(case, vec![("404 `foreign-transaction`", foreign)]).await
}

async fn redirect(case: &Case<'_>) -> Checked {
    let elsewhere = "307 to a page that says \"aborted\"";
    none_is_an_answer(case, vec![(elsewhere, Tell::Redirect)]).await
}

async fn pace(case: &Case<'_>) -> Checked {
    let id = in_doubt(case, Tell::Outcome(Inform::Pending)).await?;
    asks(case, id, 4).await?;
    let inquiries = case.coordinator().inquiries(id);
    let (Some(first), Some(fourth)) = (inquiries.first(), inquiries.get(3)) else {
        return failed("fewer than four inquiries");
    };
    let took = fourth.at.duration_since(first.at);
    if took < FLOOD {
        return failed(format!(
            "four inquiries about one branch within {took:?}: there is no pause between them"
        ));
    }
    case.commit(id).await.is_committed()
}
