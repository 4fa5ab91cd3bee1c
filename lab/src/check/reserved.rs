//! What a branch holds: nobody else gets it, and an abort gives it back, once. Seen with operations that one transaction
//! at a time can have prepared: a debit of all that is in an account, a seat.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, timeout};
use unanimous_protocol::message::RequestKind;
use unanimous_protocol::operations::Operations;

use super::case::{Case, Checked, Heard, Said, failed, not_applicable, text};
use super::{Check, Source};

/// Prepares that wait for what another branch holds.
const WAITING: usize = 60;
/// An outcome that takes longer waited behind them.
const PROMPT: Duration = Duration::from_secs(5);
/// Requests have arrived by then.
const ARRIVING: Duration = Duration::from_millis(200);

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "conflict",
        source: Source::Api("`conflict` (a key is held)"),
        without_it: "two transactions are promised the same money, and both commit",
        run: |case| Box::pin(conflict(case)),
    },
    Check {
        id: "given-back-once",
        source: Source::Rule(
            8,
            "The effect and the state change are one local transaction.",
        ),
        without_it: "a repeated prepare reserves again and again, and one abort gives only one of them back",
        run: |case| Box::pin(given_back_once(case)),
    },
    Check {
        id: "refusal-leaves-nothing",
        source: Source::Api(
            "| aborted after its own *no* | that *no* again, code and reason | 409 `outcome-differs` | aborted |",
        ),
        without_it: "what the first operations of a refused branch had reserved is held for ever",
        run: |case| Box::pin(refusal_leaves_nothing(case)),
    },
    Check {
        id: "outcomes-pass-waiting-prepares",
        source: Source::Rule(17, "phase two never waits behind phase one"),
        without_it: "the commit that would release what all are waiting for waits behind those that wait for it",
        run: |case| Box::pin(outcomes_pass_waiting_prepares(case)),
    },
];

async fn conflict(case: &Case<'_>) -> Checked {
    let exclusive = case.exclusive()?;
    let holder = case.id();
    case.prepare_operations(holder, exclusive).await.is_yes()?;
    let other = case.id();
    let body = request(case, other, exclusive);
    let heard = case.call_once(RequestKind::Prepare, other, &body).await;
    // 503 `key-busy`, or anything else that is no answer, is asked again.
    if !heard.is_unknown() {
        heard.is_no(&["conflict", "refused"])?;
    }
    case.abort(other).await.is_aborted()?;
    case.abort(holder).await.is_aborted()?;
    // Free again, for a transaction that comes later.
    let later = case.id();
    case.prepare_operations(later, exclusive).await.is_yes()?;
    case.abort(later).await.is_aborted()
}

async fn given_back_once(case: &Case<'_>) -> Checked {
    let exclusive = case.exclusive()?;
    let id = case.id();
    case.prepare_operations(id, exclusive).await.is_yes()?;
    let body = request(case, id, exclusive);
    let repeats = (0..20).map(|_| case.call_once(RequestKind::Prepare, id, &body));
    let heard: Vec<Heard> = join_all(repeats).await;
    let mut others = heard.iter().filter(|heard| !heard.is_unknown());
    others.try_for_each(Heard::is_yes)?;
    case.abort(id).await.is_aborted()?;
    case.abort(id).await.is_aborted()?;
    // Had a repeat reserved again, this one would be refused; had the second abort given back again, both would not be.
    let (one, other) = (case.id(), case.id());
    case.prepare_operations(one, exclusive).await.is_yes()?;
    let body = request(case, other, exclusive);
    let heard = case.call_once(RequestKind::Prepare, other, &body).await;
    if !heard.is_unknown() {
        heard.is_no(&["conflict", "refused"])?;
    }
    case.abort(other).await.is_aborted()?;
    case.abort(one).await.is_aborted()
}

async fn refusal_leaves_nothing(case: &Case<'_>) -> Checked {
    let exclusive = case.exclusive()?;
    let Some(refused) = &case.kit.options.refused else {
        return not_applicable("no --refused FILE was given");
    };
    let Some(both) = joined(exclusive, refused) else {
        return not_applicable("the operations of --exclusive or --refused are `[]`");
    };
    let id = case.id();
    let heard = case.prepare_operations(id, &both).await;
    if !matches!(heard.said, Said::No(_)) {
        return heard.not("*no*, for the last of the operations is refused");
    }
    let later = case.id();
    case.prepare_operations(later, exclusive).await.is_yes()?;
    case.abort(later).await.is_aborted()?;
    case.abort(id).await.is_aborted()
}

async fn outcomes_pass_waiting_prepares(case: &Case<'_>) -> Checked {
    let exclusive = case.exclusive()?;
    let holder = case.id();
    case.prepare_operations(holder, exclusive).await.is_yes()?;
    let others = case.ids(WAITING);
    let bodies: Vec<String> = others
        .iter()
        .map(|id| request(case, *id, exclusive))
        .collect();
    let waiting = join_all(
        others
            .iter()
            .zip(&bodies)
            .map(|(id, body)| case.call_once(RequestKind::Prepare, *id, body)),
    );
    let ending = async {
        // Nobody can see from outside that they have arrived. Where they have not, the check shows less, and fails nobody.
        tokio::time::sleep(ARRIVING).await;
        let begun = Instant::now();
        let ended = timeout(PROMPT, case.abort(holder)).await;
        match ended {
            Ok(heard) => heard.is_aborted(),
            Err(_elapsed) => failed(format!(
                "{WAITING} prepares want what {holder} holds, and its abort was not answered within {:?}",
                begun.elapsed()
            )),
        }
    };
    let (heard, ended) = tokio::join!(waiting, ending);
    ended?;
    let yes = heard.iter().filter(|heard| heard.said == Said::Yes).count();
    if yes > 1 {
        return failed(format!(
            "{yes} of {WAITING} prepares said *yes* to what one alone can have"
        ));
    }
    let aborts = others.iter().map(|id| case.abort(*id));
    join_all(aborts)
        .await
        .iter()
        .try_for_each(Heard::is_aborted)
}

fn request(
    case: &Case<'_>,
    id: unanimous_protocol::id::TransactionId,
    operations: &Operations,
) -> String {
    let mut request = case.prepare_request(id);
    request.operations = operations.clone();
    text(&request)
}

/// The operations of both, in this order.
fn joined(first: &Operations, second: &Operations) -> Option<Operations> {
    let inner = |operations: &Operations| -> Option<String> {
        let inner = operations
            .text()
            .strip_prefix('[')?
            .strip_suffix(']')?
            .trim();
        (!inner.is_empty()).then(|| inner.to_owned())
    };
    Operations::parse(&format!("[{},{}]", inner(first)?, inner(second)?)).ok()
}
