//! `/v1/transactions`: begin, enlist, commit, abort, show, and the outcome for participants.

use std::time::Duration;

use actix_web::{
    HttpRequest, HttpResponse,
    http::header,
    web::{Data, Payload},
};
use tokio::{sync::oneshot, time::Instant};
use unanimous_protocol::{
    coordinator::{BRANCHES_MAX, EnlistRefused, Enlisted, Event, TransactionState},
    id::{ParticipantName, TransactionId},
    life::Judgement,
    message::REASON_MAX,
    operations::Operations,
    record::{AbortCode, KeyClaim, Outcome},
    wire::{
        AbortRequest, BeginRequest, CommitRequest, EnlistRequest, OutcomeAnswer, TransactionView,
        Wait,
    },
};

use super::{
    body::{self, Query, path_id},
    location,
    problem::ApiProblem,
};
use crate::{
    actors::{
        Address,
        registry::{Begin, BeginOutcome, Find, Found, Inquire, Inquired, Registry},
        transaction::{Deliver, Enlist, EnlistOutcome, Show, TransactionActor, Until, Watch},
    },
    crash,
};

/// The deadline of a transaction whose client names none, in milliseconds.
const TIMEOUT_MS: u64 = 30_000;
const TIMEOUT_MS_MAX: u64 = 300_000;
const WAIT_MS_MAX: u64 = 60_000;
/// How long past the deadline an answer is held where the client does not say: the decision may be on its way.
const PAST_DEADLINE: Duration = Duration::from_secs(5);
/// How often a record that another coordinator drives is read again for a client that waits.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

type Answer = Result<HttpResponse, ApiProblem>;

/// Where a transaction is, once there is something to say of it.
enum Place {
    Live(Address<TransactionActor>),
    Ended(Box<TransactionView>),
}

/// `POST /v1/transactions`
pub async fn begin(
    request: HttpRequest,
    payload: Payload,
    registry: Data<Address<Registry>>,
) -> Answer {
    body::no_query(&request)?;
    let key = body::idempotency_key(&request)?;
    let body: BeginRequest = body::read(&request, payload).await?;
    check_begin(&body)?;
    let claim = match key {
        Some(key) => {
            let digest = body.digest();
            let request = digest.map_err(|error| ApiProblem::InvalidRequest(error.to_string()))?;
            Some(KeyClaim { key, request })
        }
        None => None,
    };
    let timeout = Duration::from_millis(body.timeout_ms.unwrap_or(TIMEOUT_MS));
    let commit = body.commit == Some(true);
    let branches = body.branches.unwrap_or_default().into_iter();
    let begin = Begin {
        timeout,
        branches: branches
            .map(|branch| {
                (
                    branch.participant,
                    branch.operations.unwrap_or_else(Operations::none),
                )
            })
            .collect(),
        commit,
        labels: body.labels.unwrap_or_default().0,
        key: claim,
        trace: body::trace(&request),
    };
    let wait = body.wait.unwrap_or_default();
    let until = Instant::now() + waiting_time(body.wait_ms, Some(timeout));
    let keyed = begin.key.is_some();
    let again = keyed.then(|| begin.clone());
    let view = begun(&registry, begin, commit.then_some(wait), until).await?;
    // Another coordinator's transaction won the key: whoever asks by the key is answered with that one (rule 21).
    let lost = view
        .reason
        .as_ref()
        .is_some_and(|reason| reason.code == AbortCode::Duplicate);
    let view = match again {
        Some(again) if lost => begun(&registry, again, commit.then_some(wait), until).await?,
        Some(_) | None => view,
    };
    if commit {
        commit_answer(view, wait)
    } else {
        Ok(HttpResponse::Created()
            .insert_header((header::LOCATION, location(view.id)))
            .json(view))
    }
}

fn check_begin(body: &BeginRequest) -> Result<(), ApiProblem> {
    let invalid = |text: String| Err(ApiProblem::InvalidRequest(text));
    if body
        .timeout_ms
        .is_some_and(|ms| !(1..=TIMEOUT_MS_MAX).contains(&ms))
    {
        return invalid(format!("timeout_ms: must be 1 to {TIMEOUT_MS_MAX}"));
    }
    if body.commit != Some(true) && (body.wait.is_some() || body.wait_ms.is_some()) {
        return invalid("wait, wait_ms: only with \"commit\": true".to_owned());
    }
    check_wait_ms(body.wait_ms)?;
    let branches = body.branches.as_deref().unwrap_or_default();
    if branches.len() > BRANCHES_MAX {
        return invalid(format!(
            "branches: {} of them, at most {BRANCHES_MAX}",
            branches.len()
        ));
    }
    for (at, branch) in branches.iter().enumerate() {
        if branches[..at]
            .iter()
            .any(|earlier| earlier.participant == branch.participant)
        {
            let name = &branch.participant;
            return invalid(format!(
                "branches[{at}].participant: {name} is named twice; one branch holds all its operations"
            ));
        }
    }
    Ok(())
}

fn check_wait_ms(wait_ms: Option<u64>) -> Result<(), ApiProblem> {
    match wait_ms {
        Some(ms) if ms > WAIT_MS_MAX => Err(ApiProblem::InvalidRequest(format!(
            "wait_ms: must be 0 to {WAIT_MS_MAX}"
        ))),
        Some(_) | None => Ok(()),
    }
}

/// How long an answer is held: as asked, else until a while past the deadline.
fn waiting_time(wait_ms: Option<u64>, until_deadline: Option<Duration>) -> Duration {
    let longest = Duration::from_millis(WAIT_MS_MAX);
    match (wait_ms, until_deadline) {
        (Some(ms), _) => Duration::from_millis(ms),
        (None, Some(left)) => longest.min(left + PAST_DEADLINE),
        (None, None) => longest,
    }
}

/// Begins, or finds by the key, and waits as asked.
async fn begun(
    registry: &Address<Registry>,
    begin: Begin,
    wait: Option<Wait>,
    until: Instant,
) -> Result<TransactionView, ApiProblem> {
    match registry.send(begin).await {
        Ok(BeginOutcome::Live {
            id, transaction, ..
        }) => {
            let place = Place::Live(transaction);
            awaited(registry, id, place, wait.unwrap_or(Wait::None), until).await
        }
        Ok(BeginOutcome::Recorded(record)) => {
            let place = Place::Ended(Box::new(TransactionView::of_record(&record)));
            awaited(
                registry,
                record.header.id,
                place,
                wait.unwrap_or(Wait::None),
                until,
            )
            .await
        }
        Ok(BeginOutcome::KeyReused) => Err(ApiProblem::KeyReused),
        Ok(BeginOutcome::UnknownParticipant(at, participant)) => {
            let member = format!("branches[{at}].participant");
            Err(ApiProblem::UnknownParticipant {
                member,
                participant,
            })
        }
        Ok(BeginOutcome::Overloaded) => Err(ApiProblem::Overloaded(
            "as many transactions are undecided as there may be",
        )),
        Ok(BeginOutcome::ShuttingDown) => {
            Err(ApiProblem::Overloaded("the coordinator is stopping"))
        }
        Ok(BeginOutcome::LogWentBack) => Err(ApiProblem::LogWentBack),
        Ok(BeginOutcome::LogUnavailable) | Err(_) => Err(ApiProblem::LogUnavailable),
    }
}

/// The transaction as it stands once `wait` is satisfied, or when the time is up.
async fn awaited(
    registry: &Address<Registry>,
    id: TransactionId,
    mut place: Place,
    wait: Wait,
    until: Instant,
) -> Result<TransactionView, ApiProblem> {
    loop {
        let live = match place {
            Place::Live(live) => live,
            Place::Ended(view) if is_satisfied(&view, wait) || Instant::now() >= until => {
                return Ok(*view);
            }
            Place::Ended(_) => {
                // Another coordinator drives it; the log knows how far it is.
                tokio::time::sleep_until(until.min(Instant::now() + LOOK_AGAIN)).await;
                place = find(registry, id).await?;
                continue;
            }
        };
        let watched = match wait {
            Wait::None => live.send(Show).await.ok(),
            Wait::Decided => watch(&live, Until::Decided, until).await,
            Wait::Applied => watch(&live, Until::Applied, until).await,
        };
        match watched {
            Some(view) => return Ok(view),
            // It ended and left memory in between: its record answers.
            None => place = find(registry, id).await?,
        }
    }
}

fn is_satisfied(view: &TransactionView, wait: Wait) -> bool {
    match wait {
        Wait::None => true,
        Wait::Decided => view.outcome.is_some(),
        Wait::Applied => match view.outcome {
            Some(Outcome::Committed) => view.state == TransactionState::Committed,
            Some(Outcome::Aborted) => true,
            None => false,
        },
    }
}

/// `None` when the actor has ended.
async fn watch(
    live: &Address<TransactionActor>,
    how_far: Until,
    until: Instant,
) -> Option<TransactionView> {
    let (reply, view) = oneshot::channel();
    live.do_send(Watch {
        until: how_far,
        reply,
    });
    match tokio::time::timeout_at(until, view).await {
        Ok(view) => view.ok(),
        Err(_) => live.send(Show).await.ok(),
    }
}

async fn find(registry: &Address<Registry>, id: TransactionId) -> Result<Place, ApiProblem> {
    match registry.send(Find(id)).await {
        Ok(Found::Live(live)) => Ok(Place::Live(live)),
        Ok(Found::Recorded(record)) => {
            Ok(Place::Ended(Box::new(TransactionView::of_record(&record))))
        }
        Ok(Found::Judged(judgement)) => {
            judged(id, judgement).map(|view| Place::Ended(Box::new(view)))
        }
        Ok(Found::Frozen) => Err(ApiProblem::LogWentBack),
        Ok(Found::LogUnavailable) | Err(_) => Err(ApiProblem::LogUnavailable),
    }
}

fn judged(id: TransactionId, judgement: Judgement) -> Result<TransactionView, ApiProblem> {
    match judgement {
        Judgement::Aborted(code) => Ok(TransactionView::of_presumed_abort(id, code)),
        Judgement::Forgotten => Err(ApiProblem::Forgotten(id)),
        Judgement::NeverIssued => Err(ApiProblem::UnknownTransaction(id)),
        Judgement::OtherNode(node) => Err(ApiProblem::OtherNode { id, node }),
        Judgement::Foreign => Err(ApiProblem::Foreign(id)),
        Judgement::Unknown(why) => Err(ApiProblem::OutcomeUnknown { id, why }),
        // A record is answered from before it gets here.
        Judgement::Recorded | Judgement::Silent => Err(ApiProblem::LogUnavailable),
        Judgement::LogWentBack => Err(ApiProblem::LogWentBack),
    }
}

fn commit_answer(view: TransactionView, wait: Wait) -> Answer {
    crash::point("client-answer");
    let applied = view.state == TransactionState::Committed;
    let mut response = match view.outcome {
        Some(Outcome::Aborted) => return Err(ApiProblem::Aborted(Box::new(view))),
        Some(Outcome::Committed) if wait != Wait::Applied || applied => HttpResponse::Ok(),
        Some(Outcome::Committed) | None => HttpResponse::Accepted(),
    };
    Ok(response
        .insert_header((header::LOCATION, location(view.id)))
        .json(view))
}

/// `POST /v1/transactions/{id}/commit`
pub async fn commit(
    request: HttpRequest,
    payload: Payload,
    registry: Data<Address<Registry>>,
) -> Answer {
    let id = path_id(&request)?;
    body::no_query(&request)?;
    let body: CommitRequest = body::read(&request, payload).await?;
    check_wait_ms(body.wait_ms)?;
    let wait = body.wait.unwrap_or_default();
    let place = find(&registry, id).await?;
    if let Place::Live(live) = &place {
        live.do_send(Deliver(Event::CommitRequested));
    }
    let until = holding_until(&place, body.wait_ms).await;
    commit_answer(awaited(&registry, id, place, wait, until).await?, wait)
}

/// `POST /v1/transactions/{id}/abort`
pub async fn abort(
    request: HttpRequest,
    payload: Payload,
    registry: Data<Address<Registry>>,
) -> Answer {
    let id = path_id(&request)?;
    body::no_query(&request)?;
    let body: AbortRequest = body::read(&request, payload).await?;
    check_wait_ms(body.wait_ms)?;
    if body
        .reason
        .as_ref()
        .is_some_and(|reason| reason.contains('\0'))
    {
        return Err(ApiProblem::InvalidRequest(
            "reason: holds U+0000, which is refused".to_owned(),
        ));
    }
    let detail = body
        .reason
        .map(|reason| reason.chars().take(REASON_MAX).collect());
    let place = find(&registry, id).await?;
    if let Place::Live(live) = &place {
        live.do_send(Deliver(Event::AbortRequested { detail }));
    }
    let until = holding_until(&place, body.wait_ms).await;
    let view = awaited(&registry, id, place, Wait::Decided, until).await?;
    crash::point("client-abort-answer");
    match view.outcome {
        Some(Outcome::Aborted) => Ok(HttpResponse::Ok().json(view)),
        Some(Outcome::Committed) => Err(ApiProblem::Committed(Box::new(view))),
        None => Ok(HttpResponse::Accepted().json(view)),
    }
}

/// Until when the answer is held where only the transaction knows its deadline.
async fn holding_until(place: &Place, wait_ms: Option<u64>) -> Instant {
    let left = match (place, wait_ms) {
        (Place::Live(live), None) => live.send(crate::actors::transaction::Remaining).await.ok(),
        (Place::Live(_) | Place::Ended(_), _) => None,
    };
    Instant::now() + waiting_time(wait_ms, left)
}

/// `POST /v1/transactions/{id}/branches`
pub async fn enlist(
    request: HttpRequest,
    payload: Payload,
    registry: Data<Address<Registry>>,
) -> Answer {
    let transaction = path_id(&request)?;
    body::no_query(&request)?;
    let EnlistRequest {
        participant,
        operations,
        session,
    } = body::read(&request, payload).await?;
    let refuse = |refused| {
        Err(ApiProblem::Enlist {
            transaction,
            participant: participant.clone(),
            refused,
        })
    };
    let live = match find(&registry, transaction).await? {
        Place::Live(live) => live,
        Place::Ended(_) => return refuse(EnlistRefused::NotActive),
    };
    let enlist = Enlist {
        participant: participant.clone(),
        operations: operations.unwrap_or_else(Operations::none),
        session,
    };
    match live.send(enlist).await {
        Ok(EnlistOutcome::Enlisted { how, answer }) => {
            let mut response = match how {
                Enlisted::New => HttpResponse::Created(),
                Enlisted::Repeated => HttpResponse::Ok(),
            };
            Ok(response.json(answer))
        }
        Ok(EnlistOutcome::Refused(refused)) => refuse(refused),
        Ok(EnlistOutcome::UnknownParticipant) => Err(ApiProblem::UnknownParticipant {
            member: "participant".to_owned(),
            participant,
        }),
        // It ended in between.
        Err(_) => refuse(EnlistRefused::NotActive),
    }
}

/// `GET /v1/transactions/{id}`
pub async fn show(request: HttpRequest, registry: Data<Address<Registry>>) -> Answer {
    let id = path_id(&request)?;
    let query = Query::of(&request, &["wait", "wait_ms"])?;
    let wait_ms = query.member("wait_ms")?;
    check_wait_ms(wait_ms)?;
    let wait = match (query.member("wait")?, wait_ms) {
        (Some(Wait::None), _) => {
            let text = "in the query: wait: must be decided or applied";
            return Err(ApiProblem::InvalidRequest(text.to_owned()));
        }
        (Some(wait), _) => wait,
        (None, Some(_)) => Wait::Decided,
        (None, None) => Wait::None,
    };
    let place = find(&registry, id).await?;
    let until = holding_until(&place, wait_ms).await;
    Ok(HttpResponse::Ok().json(awaited(&registry, id, place, wait, until).await?))
}

/// `GET /v1/transactions/{id}/outcome`
pub async fn outcome(request: HttpRequest, registry: Data<Address<Registry>>) -> Answer {
    let transaction = path_id(&request)?;
    let query = Query::of(&request, &["participant"])?;
    let participant: ParticipantName = query.member("participant")?.ok_or_else(|| {
        ApiProblem::InvalidRequest("in the query: participant is missing".to_owned())
    })?;
    match registry
        .send(Inquire {
            transaction,
            participant: participant.clone(),
        })
        .await
    {
        Ok(Inquired::Inform(outcome)) => {
            crash::point("inquiry-answer");
            Ok(HttpResponse::Ok()
                .insert_header((header::CACHE_CONTROL, "no-store"))
                .json(OutcomeAnswer {
                    transaction: transaction.to_string(),
                    participant: participant.to_string(),
                    outcome,
                }))
        }
        Ok(Inquired::Foreign) => Err(ApiProblem::Foreign(transaction)),
        Ok(Inquired::LogUnavailable) | Err(_) => Err(ApiProblem::LogUnavailable),
    }
}
