//! What a participant still knows after it was killed.

use unanimous_protocol::message::Inform;
use unanimous_protocol::wire::BranchState;

use super::case::{Case, Checked, Said, not_applicable};
use super::coordinator::Tell;
use super::marks::{TRIES, acts_on, late_begins_nothing};
use super::{Check, Life, Source, inquiries};

const DURABLE: &str = "*yes* and *committed* are answered once they are durable; \
    *no*, *aborted* and a tombstone need no forced write.";

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "killed-after-its-yes",
        source: Source::Api(DURABLE),
        without_it: "the yes on which all others relied is forgotten: they commit, and this one has nothing to commit",
        run: |case| Box::pin(after_its_yes(case)),
    },
    Check {
        id: "killed-after-its-commit",
        source: Source::Api(DURABLE),
        without_it: "a commit that was acknowledged is lost, and nobody will ever ask for it again",
        run: |case| Box::pin(after_its_commit(case)),
    },
    Check {
        id: "killed-after-an-abort",
        source: Source::Rule(
            7,
            "The tombstone need not be forced: a late prepare that slips in asks, and is told \"aborted\".",
        ),
        without_it: "a prepare that comes late, behind an abort and a crash, reserves for ever",
        run: |case| Box::pin(after_an_abort(case)),
    },
    Check {
        id: "asks-after-a-restart",
        source: Source::Api(
            "`GET {coordinator}/v1/transactions/{id}/outcome?participant=<the name in the \
             branch's row>` for each branch in doubt, of each coordinator address it was given.",
        ),
        without_it: "branches that were in doubt when the service died stay so, with all they hold, until somebody \
                     looks",
        run: |case| Box::pin(asks_after_a_restart(case)),
    },
    Check {
        id: "asks-by-its-former-name",
        source: Source::Rule(
            16,
            "An inquiry names the participant as its prepare did (the name in the branch's row, never the configured \
             one).",
        ),
        without_it: "a service that is renamed while it is in doubt asks about branches that the coordinator has never \
                     heard of",
        run: |case| Box::pin(asks_by_its_former_name(case)),
    },
    Check {
        id: "below-the-mark-after-a-restart",
        source: Source::Rule(15, "stores it in the transaction that prunes"),
        without_it: "the rows are gone and the mark with them: a late duplicate finds neither, and moves the money again",
        run: |case| Box::pin(below_the_mark_after_a_restart(case)),
    },
];

async fn after_its_yes(case: &Case<'_>) -> Checked {
    case.needs_restart()?;
    let (to_commit, to_abort) = (case.id(), case.id());
    for id in [to_commit, to_abort] {
        case.prepare(id).await.is_yes()?;
    }
    case.restart().await?;
    for id in [to_commit, to_abort] {
        case.stands(id, BranchState::Prepared).await?;
        case.prepare(id).await.is_yes()?;
    }
    case.commit(to_commit).await.is_committed()?;
    case.abort(to_abort).await.is_aborted()
}

async fn after_its_commit(case: &Case<'_>) -> Checked {
    case.needs_restart()?;
    let id = case.id();
    case.prepare(id).await.is_yes()?;
    case.commit(id).await.is_committed()?;
    let looks = case.kit.options.look.is_some();
    let before = if looks {
        Some(case.look().await?)
    } else {
        None
    };
    case.restart().await?;
    case.stands(id, BranchState::Committed).await?;
    case.prepare(id).await.is_yes()?;
    case.commit(id).await.is_committed()?;
    case.abort(id).await.is_outcome_differs()?;
    if let Some(before) = before {
        let after = case.look().await?;
        if after != before {
            return super::case::failed(format!(
                "--look showed {before}, and behind the restart {after}"
            ));
        }
    }
    Ok(())
}

async fn after_an_abort(case: &Case<'_>) -> Checked {
    case.needs_restart()?;
    let (unknown, voted) = (case.id(), case.id());
    case.prepare(voted).await.is_yes()?;
    for id in [unknown, voted] {
        case.coordinator().tell(id, Tell::Outcome(Inform::Aborted));
        case.abort(id).await.is_aborted()?;
    }
    case.restart().await?;
    for id in [unknown, voted] {
        let late = case.prepare(id).await;
        if late.said == Said::Yes {
            // The abort was lost with the crash, as it may be. It is told again to whoever asks.
            case.needs_inquiries()?;
            case.becomes(id, BranchState::Aborted).await?;
        } else {
            late.is_no(&["aborted"])?;
        }
        case.commit(id).await.is_outcome_differs()?;
    }
    Ok(())
}

async fn asks_after_a_restart(case: &Case<'_>) -> Checked {
    case.needs_restart()?;
    let branches = [
        (case.id(), Inform::Committed, BranchState::Committed),
        (case.id(), Inform::Aborted, BranchState::Aborted),
    ];
    for (id, ..) in branches {
        case.prepare(id).await.is_yes()?;
    }
    case.restart().await?;
    for (id, inform, _) in branches {
        let before = case.coordinator().inquiries(id).len();
        case.coordinator().tell(id, Tell::Outcome(inform));
        inquiries::asks(case, id, before + 1).await?;
        inquiries::asked_by_name(case, id)?;
    }
    for (id, _, state) in branches {
        case.becomes(id, state).await?;
    }
    Ok(())
}

async fn asks_by_its_former_name(case: &Case<'_>) -> Checked {
    case.needs_restart()?;
    let Some(renamed) = &case.kit.options.renamed else {
        return not_applicable(
            "no --renamed NAME was given, which the restart command can start it under",
        );
    };
    let id = case.id();
    case.prepare(id).await.is_yes()?;
    let asked = async {
        case.restart_as(Life {
            name: Some(renamed.clone()),
            former: Some(case.kit.name.clone()),
            ..case.kit.life()
        })
        .await?;
        let before = case.coordinator().inquiries(id).len();
        inquiries::asks(case, id, before + 1).await?;
        inquiries::asked_by_name(case, id)?;
        case.coordinator()
            .tell(id, Tell::Outcome(Inform::Committed));
        case.becomes(id, BranchState::Committed).await
    };
    let asked = asked.await;
    // Whatever came of it, the others check the service under its own name.
    case.restart().await?;
    asked
}

async fn below_the_mark_after_a_restart(case: &Case<'_>) -> Checked {
    case.needs_restart()?;
    let finished = case.ids(5);
    for id in &finished {
        case.prepare(*id).await.is_yes()?;
        case.commit(*id).await.is_committed()?;
    }
    let low = case.ids(TRIES);
    let mark = case.id();
    acts_on(case, &low, mark, || case.id()).await?;
    case.restart().await?;
    for id in finished {
        late_begins_nothing(case, id).await?;
    }
    Ok(())
}
