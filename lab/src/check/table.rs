//! The table of `docs/API.md` section 2, row by row, and the echo that makes an answer one.

use unanimous_protocol::message::{RefusalCode, RequestKind};
use unanimous_protocol::operations::Operations;
use unanimous_protocol::wire::{BranchState, parse_object};

use super::case::{Case, Checked, Said, failed, not_applicable, text};
use super::{Check, Source};

const ECHO: &str = "An answer counts when it is a **200** whose \
    body echoes `transaction` and `participant` exactly as sent.";
const NONE: &str = "| none | does the work and votes | 409 `vote-lost` | a tombstone, aborted |";
const PREPARED: &str = "| prepared | *yes* | committed | aborted |";
const COMMITTED: &str = "| committed | *yes* | committed | 409 `outcome-differs` |";
const REFUSED: &str = "| aborted after its own *no* | that *no* again, code and reason | 409 `outcome-differs` | aborted |";
const ABORTED: &str =
    "| aborted after a *yes*; tombstone | *no*, `aborted` | 409 `outcome-differs` | aborted |";

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "echo",
        source: Source::Api(ECHO),
        without_it: "an answer that could be another branch's is no answer: every vote is asked for until the deadline, \
                     and nothing ever commits",
        run: |case| Box::pin(echo(case)),
    },
    Check {
        id: "commit",
        source: Source::Api(PREPARED),
        without_it: "a transaction commits at the others and not here",
        run: |case| Box::pin(commit(case)),
    },
    Check {
        id: "abort",
        source: Source::Api(ABORTED),
        without_it: "what an aborted transaction had reserved stays reserved, or a late prepare reserves it again and \
                     nobody ever comes to end it",
        run: |case| Box::pin(abort(case)),
    },
    Check {
        id: "commit-of-the-unknown",
        source: Source::Rule(
            6,
            "A commit for a branch without a row (`vote-lost`), or one that differs (`outcome-differs`), is an alarm, \
             never an acknowledgement",
        ),
        without_it: "after a restore from a backup the lost half of a transfer is acknowledged as done: the money is \
                     gone, and no alarm says so",
        run: |case| Box::pin(commit_of_the_unknown(case)),
    },
    Check {
        id: "abort-of-the-unknown",
        source: Source::Api(NONE),
        without_it: "the coordinator can not end a transaction whose prepare never arrived, and repeats its abort",
        run: |case| Box::pin(abort_of_the_unknown(case)),
    },
    Check {
        id: "prepare-after-abort",
        source: Source::Rule(
            7,
            "Abort of an unknown branch stores a tombstone and succeeds; a prepare is an insert that loses to it.",
        ),
        without_it: "a prepare that was delayed in the network reserves for a transaction that has ended, and holds it \
                     until an inquiry finds out",
        run: |case| Box::pin(prepare_after_abort(case)),
    },
    Check {
        id: "reordered",
        source: Source::Api(NONE),
        without_it: "calls that overtake each other leave a branch that nobody knows of",
        run: |case| Box::pin(reordered(case)),
    },
    Check {
        id: "commit-of-the-aborted",
        source: Source::Api(ABORTED),
        without_it: "one side of a transfer acknowledges a commit that it has undone, and nobody looks for the money",
        run: |case| Box::pin(commit_of_the_aborted(case)),
    },
    Check {
        id: "abort-of-the-committed",
        source: Source::Api(COMMITTED),
        without_it: "what was committed is undone, or said to be, while the other services keep it",
        run: |case| Box::pin(abort_of_the_committed(case)),
    },
    Check {
        id: "refusal",
        source: Source::Api(REFUSED),
        without_it: "a client is told another reason than the one for which its transaction failed, or a branch that \
                     said no says yes when it is asked again",
        run: |case| Box::pin(refusal(case)),
    },
    Check {
        id: "read-only",
        source: Source::Api(
            "| read-only, where it is stored | *read_only* | 409 `vote-lost` | aborted |",
        ),
        without_it: "a commit for a branch that promised nothing is acknowledged: what it should have changed is lost",
        run: |case| Box::pin(read_only(case)),
    },
    Check {
        id: "deadline",
        source: Source::Api(
            "`remaining_ms` is what is left until the deadline; a participant that can not make it votes *no*.",
        ),
        without_it: "a slow participant reserves for transactions that have already ended, and the client is not told \
                     that time was the reason",
        run: |case| Box::pin(deadline(case)),
    },
    Check {
        id: "session-lost",
        source: Source::Rule(
            22,
            "Where there is no stored row, a prepare whose session the participant no longer holds is voted no, \
             `work-lost`.",
        ),
        without_it: "interactive work that a restart has lost is voted for all the same, and the rest of it commits",
        run: |case| Box::pin(session_lost(case)),
    },
];

async fn echo(case: &Case<'_>) -> Checked {
    let (one, other) = (case.id(), case.id());
    for id in [one, other] {
        case.prepare(id).await.is_yes()?;
    }
    for (kind, id) in [
        (RequestKind::Prepare, one),
        (RequestKind::Prepare, other),
        (RequestKind::Commit, other),
        (RequestKind::Abort, one),
    ] {
        let heard = match kind {
            RequestKind::Prepare => case.prepare(id).await,
            RequestKind::Commit => case.commit(id).await,
            RequestKind::Abort => case.abort(id).await,
        };
        let Some(answer) = heard.answer.as_ref().filter(|answer| answer.status == 200) else {
            return heard.not("a 200");
        };
        let media_type = answer.media_type().unwrap_or("none");
        if media_type != "application/json" {
            return failed(format!(
                "its content-type is {media_type}, and has to be application/json"
            ));
        }
        let body: serde_json::Value = parse_object(&answer.body).unwrap_or_default();
        let echoes =
            body["transaction"] == id.to_string() && body["participant"] == case.kit.name.as_str();
        if !echoes {
            return heard.not("an echo of the transaction and the participant, to the letter");
        }
    }
    Ok(())
}

async fn commit(case: &Case<'_>) -> Checked {
    let id = case.id();
    case.prepare(id).await.is_yes()?;
    case.stands(id, BranchState::Prepared).await?;
    case.commit(id).await.is_committed()?;
    case.stands(id, BranchState::Committed).await
}

async fn abort(case: &Case<'_>) -> Checked {
    let id = case.id();
    case.prepare(id).await.is_yes()?;
    case.abort(id).await.is_aborted()?;
    case.stands(id, BranchState::Aborted).await?;
    case.prepare(id).await.is_no(&["aborted"])?;
    case.abort(id).await.is_aborted()
}

async fn commit_of_the_unknown(case: &Case<'_>) -> Checked {
    let id = case.id();
    case.commit(id).await.is_vote_lost()?;
    case.commit(id).await.is_vote_lost()?;
    match case.state(id).await? {
        None => Ok(()),
        Some(_) => failed(format!("the commit of {id} made a branch of what is none")),
    }
}

async fn abort_of_the_unknown(case: &Case<'_>) -> Checked {
    let id = case.id();
    case.abort(id).await.is_aborted()?;
    case.abort(id).await.is_aborted()
}

async fn prepare_after_abort(case: &Case<'_>) -> Checked {
    let id = case.id();
    case.abort(id).await.is_aborted()?;
    case.prepare(id).await.is_no(&["aborted"])?;
    case.prepare(id).await.is_no(&["aborted"])?;
    case.commit(id).await.is_outcome_differs()
}

async fn reordered(case: &Case<'_>) -> Checked {
    // The commit first, the prepare behind it: then all is as if the commit had never come.
    let id = case.id();
    case.commit(id).await.is_vote_lost()?;
    case.prepare(id).await.is_yes()?;
    case.commit(id).await.is_committed()?;
    // And with the abort between them.
    let id = case.id();
    case.commit(id).await.is_vote_lost()?;
    case.abort(id).await.is_aborted()?;
    case.prepare(id).await.is_no(&["aborted"])?;
    case.commit(id).await.is_outcome_differs()
}

async fn commit_of_the_aborted(case: &Case<'_>) -> Checked {
    let id = case.id();
    case.prepare(id).await.is_yes()?;
    case.abort(id).await.is_aborted()?;
    case.commit(id).await.is_outcome_differs()?;
    case.stands(id, BranchState::Aborted).await?;
    case.prepare(id).await.is_no(&["aborted"]).map(drop)
}

async fn abort_of_the_committed(case: &Case<'_>) -> Checked {
    let id = case.id();
    case.prepare(id).await.is_yes()?;
    case.commit(id).await.is_committed()?;
    case.abort(id).await.is_outcome_differs()?;
    case.stands(id, BranchState::Committed).await?;
    case.commit(id).await.is_committed()
}

async fn refusal(case: &Case<'_>) -> Checked {
    let Some(refused) = &case.kit.options.refused else {
        return not_applicable("no --refused FILE was given");
    };
    let id = case.id();
    let first = case.prepare_operations(id, refused).await;
    let Said::No(refusal) = &first.said else {
        return first.not("*no*: these are operations that it refuses");
    };
    let ours = [
        RefusalCode::Refused,
        RefusalCode::Conflict,
        RefusalCode::WorkLost,
    ];
    if !ours.contains(&refusal.code) {
        return first.not("*no* with the code of a refusal, such as `refused`");
    }
    let body = first.answer.as_ref().map(|answer| answer.body.as_slice());
    let body: serde_json::Value = parse_object(body.unwrap_or_default()).unwrap_or_default();
    if !body["reason"].is_string() {
        return first.not("*no* with a `reason` in words");
    }
    // The same *no* again, code and reason.
    case.prepare_operations(id, refused).await.is(&first.said)?;
    case.stands(id, BranchState::Aborted).await?;
    case.commit(id).await.is_outcome_differs()?;
    case.abort(id).await.is_aborted()
}

async fn read_only(case: &Case<'_>) -> Checked {
    let operations = case.read_only()?;
    let id = case.id();
    case.prepare_operations(id, operations)
        .await
        .is(&Said::ReadOnly)?;
    // Stored or not, it says so again.
    case.prepare_operations(id, operations)
        .await
        .is(&Said::ReadOnly)?;
    case.commit(id).await.is_vote_lost()?;
    case.abort(id).await.is_aborted()
}

async fn deadline(case: &Case<'_>) -> Checked {
    let id = case.id();
    let late = case
        .prepare_with(id, |request| request.remaining_ms = 0)
        .await;
    late.is_no(&["deadline"])?;
    // The coordinator has ended it by then, and that is what the abort says.
    case.abort(id).await.is_aborted()?;
    case.commit(id).await.is_outcome_differs()
}

async fn session_lost(case: &Case<'_>) -> Checked {
    let id = case.id();
    let mut body = super::case::value(&case.prepare_request(id));
    body["session"] = "a session of a life that has ended".into();
    let heard = case.call(RequestKind::Prepare, id, &body.to_string()).await;
    heard.is_no(&["work-lost"])?;
    let id = case.id();
    let mut request = case.prepare_request(id);
    request.operations = Operations::none();
    let mut body = super::case::value(&request);
    body["session"] = "another one".into();
    let heard = case.call(RequestKind::Prepare, id, &text(&body)).await;
    heard.is_no(&["work-lost"]).map(drop)
}
