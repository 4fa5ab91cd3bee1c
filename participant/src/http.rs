//! The participant's routes (`docs/API.md` section 2): one async function over the `http` crate's types, and the only file
//! here that knows status codes. It parses, has the branch's message run, and renders.

#![allow(
    clippy::result_large_err,
    reason = "a problem is made once, for a request that is refused, and is rendered right away"
)]

use std::time::Duration;

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use serde::{Deserialize, Serialize};
use tracing::Instrument as _;
use unanimous_protocol::{
    branch::{Answer, Event},
    id::{BranchId, ParticipantName, TransactionId},
    message::{Reply, bounded_reason},
    trace::TraceContext,
    wire::{
        BATCH_FEATURE, BranchList, BranchRequest, BranchState, BranchStateAnswer, Describe,
        PROBLEM_JSON, PrepareRequest, Problem, below_low_water_answer, parse_object, vote_answer,
    },
};

use crate::{
    batch::Body,
    calls::Unanswered,
    crash,
    intent_log::{self, After, LogError, Seen},
    participant::Participant,
    traces,
};

/// Longest body that is read.
pub const BODY_MAX: usize = 256 * 1024;

const LIST_LIMIT_MAX: i64 = 1_000;
const LIST_LIMIT: i64 = 100;

/// A look at branches, at most.
const LOOK_MAX: Duration = Duration::from_secs(6);

/// The body of a 200.
type Answered = Result<Vec<u8>, Problem>;

impl Participant {
    /// Answers one request. The path is what follows the participant's base URL (`/v1/prepare`), the body is whole; a
    /// server that does not read more than [`BODY_MAX`] bytes of a body passes on one byte more than that. The answer's
    /// body may come in pieces ([`Body::Lines`]), which are to be passed on as they come.
    pub async fn answer(&self, request: Request<Vec<u8>>) -> Response<Body> {
        let answered = if request.uri().path() == "/v1/batch" {
            // Each message is in a trace of its own.
            match allow(&request, &Method::POST).and_then(|()| body(&request)) {
                Ok(batch) => self.batch(batch).await,
                Err(problem) => Err(problem),
            }
        } else {
            let trace = traces::received(request.headers());
            let span = tracing::error_span!("call", trace_id = %trace);
            let answered = self.route(&request, &trace).instrument(span).await;
            answered.map(|body| response(StatusCode::OK, "application/json", Body::Whole(body)))
        };
        answered.unwrap_or_else(|problem| render_problem(&problem).map(Body::Whole))
    }

    async fn route(&self, request: &Request<Vec<u8>>, trace: &TraceContext) -> Answered {
        let path = request.uri().path();
        let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        match segments.as_slice() {
            ["v1", "prepare"] => {
                allow(request, &Method::POST)?;
                self.prepare(body(request)?, trace).await
            }
            ["v1", "commit"] => {
                allow(request, &Method::POST)?;
                self.outcome(body(request)?, Event::CommitReceived).await
            }
            ["v1", "abort"] => {
                allow(request, &Method::POST)?;
                self.outcome(body(request)?, Event::AbortReceived).await
            }
            ["v1", "branches"] => {
                allow(request, &Method::GET)?;
                self.branches(request.uri().query().unwrap_or_default())
                    .await
            }
            ["v1", "branches", id] => {
                allow(request, &Method::GET)?;
                self.branch(id).await
            }
            ["v1", "describe"] => {
                allow(request, &Method::GET)?;
                render(&Describe {
                    participant: self.shared.name.clone(),
                    protocol: 1,
                    features: vec![BATCH_FEATURE.to_owned()],
                })
            }
            _ => Err(Problem::new(
                404,
                "not-found",
                format!("participant {} has no route {path}", self.shared.name),
            )),
        }
    }

    pub(crate) async fn prepare(&self, request: PrepareRequest, trace: &TraceContext) -> Answered {
        let branch = BranchId {
            transaction: request.transaction,
            participant: request.participant.clone(),
        };
        self.check_name(&branch)?;
        self.shared
            .marks
            .hear(branch.transaction, request.low_water);
        self.shared.traces.remember(&branch, trace);
        let answered = self.shared.run_prepare(request).await;
        let answer = answered.map_err(|why| self.problem(&branch, &why))?;
        crash::point("prepare-answer");
        render_answer(&branch, Some(answer))
    }

    pub(crate) async fn outcome(&self, request: BranchRequest, event: Event) -> Answered {
        let branch = BranchId {
            transaction: request.transaction,
            participant: request.participant,
        };
        self.check_name(&branch)?;
        self.shared
            .marks
            .hear(branch.transaction, request.low_water);
        let is_commit = event == Event::CommitReceived;
        let answered = self.shared.run_event(branch.clone(), event).await;
        let answer = answered.map_err(|why| self.problem(&branch, &why))?;
        if is_commit {
            crash::point("commit-answer");
        } else {
            crash::point("abort-answer");
        }
        render_answer(&branch, answer)
    }

    /// A branch of another name may be another service's that shares this database: this service's code must not touch
    /// it.
    fn check_name(&self, branch: &BranchId) -> Result<(), Problem> {
        if self.shared.is_ours(&branch.participant) {
            Ok(())
        } else {
            Err(self.problem(branch, &Unanswered::OtherParticipant))
        }
    }

    async fn branch(&self, id: &str) -> Answered {
        let transaction = transaction_id("the path", id)?;
        let seen = self.look(transaction).await?;
        let Some(seen) = seen else {
            let detail = format!(
                "participant {} knows no branch of transaction {transaction}",
                self.shared.name
            );
            return Err(Problem::new(404, "unknown-branch", detail));
        };
        render(&render_seen(&seen))
    }

    async fn look(&self, transaction: TransactionId) -> Result<Option<Seen>, Problem> {
        let looked = async {
            let connection = self.shared.connections.get().await?;
            intent_log::look(&connection, transaction, &self.shared.names).await
        };
        let seen = self.in_time(looked).await?;
        // A row answers first; work in memory has none.
        Ok(seen.or_else(|| self.shared.sessions.look(transaction, &self.shared.name)))
    }

    async fn branches(&self, query: &str) -> Answered {
        let query = ListQuery::parse(query)?;
        let listed = async {
            let connection = self.shared.connections.get().await?;
            let names = &self.shared.names;
            // One more than asked for tells whether there is a next page.
            intent_log::list(
                &connection,
                names,
                query.state,
                &query.after,
                query.limit + 1,
            )
            .await
        };
        let mut seen = self.in_time(listed).await?;
        if query.state == Some(BranchState::Active) {
            seen = self.shared.sessions.list(&self.shared.name, &query.after);
        }
        let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
        let more = seen.len() > limit;
        seen.truncate(limit);
        let last = seen.last().filter(|_| more);
        render(&BranchList {
            next: last.map(|last| cursor(&last.branch)),
            branches: seen.iter().map(render_seen).collect(),
        })
    }

    async fn in_time<T>(
        &self,
        looking: impl Future<Output = Result<T, LogError>>,
    ) -> Result<T, Problem> {
        let looked = tokio::time::timeout(LOOK_MAX, looking).await;
        let looked = looked.unwrap_or(Err(LogError::NoAnswer));
        looked.map_err(|error| self.no_database(&error))
    }

    fn no_database(&self, error: &LogError) -> Problem {
        tracing::warn!(participant = %self.shared.name, %error, "a look at branches failed");
        let detail = format!(
            "the database of participant {} did not answer; ask again",
            self.shared.name
        );
        Problem::new(503, "database-unavailable", detail)
    }

    /// What the coordinator may know of a request without an answer. All but `invalid-request` read as unknown there.
    fn problem(&self, branch: &BranchId, why: &Unanswered) -> Problem {
        let (status, code, what_to_do) = match why {
            Unanswered::Invalid(_) => (
                400,
                "invalid-request",
                "nothing was stored; send operations that the service knows",
            ),
            Unanswered::OtherParticipant => {
                let detail = format!(
                    "branch {branch}: this is participant {ours}; check the address that the coordinator has \
                     registered for {theirs}. Where {ours} was called {theirs} before, start it with that former name",
                    ours = self.shared.name,
                    theirs = branch.participant,
                );
                return Problem::new(409, "other-participant", detail)
                    .with("participant", &self.shared.name);
            }
            Unanswered::KeyBusy { .. } => (503, "key-busy", "ask again"),
            Unanswered::Overloaded => (
                503,
                "overloaded",
                "ask again, or give its pool more connections",
            ),
            Unanswered::Busy | Unanswered::Cancelled => (503, "branch-busy", "ask again"),
            Unanswered::Failed { .. } | Unanswered::Broken => (503, "service-failed", "ask again"),
            Unanswered::Outdated(_) => (
                503,
                "service-outdated",
                "start a version of the service that reads it",
            ),
            Unanswered::Late => (503, "service-late", "ask again"),
            Unanswered::Database => (503, "database-unavailable", "ask again"),
            Unanswered::Unclear => (
                503,
                "commit-unclear",
                "ask again: the branch's row will tell",
            ),
            Unanswered::Unreadable => (
                503,
                "branch-unreadable",
                "the service's operator has to look",
            ),
        };
        Problem::new(
            status,
            code,
            format!("branch {branch}: {why}; {what_to_do}"),
        )
    }
}

fn allow(request: &Request<Vec<u8>>, method: &Method) -> Result<(), Problem> {
    if request.method() == method {
        return Ok(());
    }
    let detail = format!(
        "{} is not for {}, use {method}",
        request.method(),
        request.uri().path()
    );
    Err(Problem::new(405, "method-not-allowed", detail).with("allow", method.as_str()))
}

/// The body as one of ours. An empty one is `{}`.
fn body<'a, T: Deserialize<'a>>(request: &'a Request<Vec<u8>>) -> Result<T, Problem> {
    let body = request.body();
    if body.len() > BODY_MAX {
        return Err(payload_too_large());
    }
    if body.is_empty() {
        return parse(b"{}");
    }
    let content_type = request.headers().get(header::CONTENT_TYPE);
    let media_type = content_type.and_then(|value| value.to_str().ok());
    let media_type = media_type
        .and_then(|value| value.split(';').next())
        .map(str::trim);
    if !media_type.is_some_and(|value| value.eq_ignore_ascii_case("application/json")) {
        let detail = format!(
            "the body's content-type is {}, it must be application/json",
            media_type.unwrap_or("missing")
        );
        return Err(Problem::new(415, "unsupported-media-type", detail));
    }
    parse(body)
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Problem> {
    // The reader's text names the member.
    parse_object(body).map_err(|error| invalid(&format!("the body: {error}")))
}

pub(crate) fn invalid(what: &str) -> Problem {
    // What is wrong may repeat all that was sent.
    Problem::new(400, "invalid-request", bounded_reason(what))
}

/// The body is longer than [`BODY_MAX`].
pub(crate) fn payload_too_large() -> Problem {
    let detail = format!("the body is longer than {BODY_MAX} bytes; nothing of it was read");
    Problem::new(413, "payload-too-large", detail)
}

fn transaction_id(what: &str, text: &str) -> Result<TransactionId, Problem> {
    text.parse()
        .map_err(|error| invalid(&format!("{what}: transaction {text:?}: {error}")))
}

fn cursor(branch: &BranchId) -> String {
    format!("{}@{}", branch.transaction, branch.participant)
}

struct ListQuery {
    state: Option<BranchState>,
    limit: i64,
    after: After,
}

impl ListQuery {
    /// Members that we do not know are ignored. None of ours needs an escape.
    fn parse(query: &str) -> Result<Self, Problem> {
        let mut parsed = Self {
            state: None,
            limit: LIST_LIMIT,
            after: After::start(),
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match name {
                "state" => parsed.state = Some(branch_state(value)?),
                "limit" => {
                    let limit = value.parse().ok();
                    let limit = limit.filter(|limit| (1..=LIST_LIMIT_MAX).contains(limit));
                    parsed.limit = limit.ok_or_else(|| {
                        invalid(&format!("limit: {value:?} is not 1 to {LIST_LIMIT_MAX}"))
                    })?;
                }
                "after" => {
                    let value = value.replace("%40", "@");
                    let (id, name) = value.split_once('@').unwrap_or((&value, ""));
                    let transaction = transaction_id("after", id)?;
                    parsed.after = match name.parse::<ParticipantName>() {
                        Ok(participant) => After::branch(&BranchId {
                            transaction,
                            participant,
                        }),
                        // A bare id: everything behind that transaction.
                        Err(_) => After::transaction(transaction),
                    };
                }
                _ => {}
            }
        }
        Ok(parsed)
    }
}

fn branch_state(text: &str) -> Result<BranchState, Problem> {
    serde_json::from_value(text.into()).map_err(|_| {
        invalid(&format!(
            "state: {text:?} is none of active, prepared, committed, aborted, read_only"
        ))
    })
}

fn render_seen(seen: &Seen) -> BranchStateAnswer {
    BranchStateAnswer {
        transaction: seen.branch.transaction.to_string(),
        participant: seen.branch.participant.to_string(),
        state: seen.state,
        since: Some(seen.since),
    }
}

/// `None` is what a branch says to an event that means nothing to it; a request always means something.
fn render_answer(branch: &BranchId, answer: Option<Answer>) -> Answered {
    let state = |state| {
        render(&BranchStateAnswer {
            transaction: branch.transaction.to_string(),
            participant: branch.participant.to_string(),
            state,
            since: None,
        })
    };
    match answer {
        Some(Answer::Reply(Reply::Vote(vote))) => render(&vote_answer(branch, &vote)),
        Some(Answer::Reply(Reply::Committed)) => state(BranchState::Committed),
        Some(Answer::Reply(Reply::Aborted)) => state(BranchState::Aborted),
        Some(Answer::Reply(Reply::VoteLost)) => {
            tracing::error!(transaction = %branch.transaction, participant = %branch.participant,
                "told to commit a branch that holds no vote");
            let detail = format!(
                "branch {branch}: there is no vote here to commit. Never an acknowledgement: was this database restored \
                 from a backup, or is this another participant's address?"
            );
            Err(Problem::new(409, "vote-lost", detail))
        }
        Some(Answer::Reply(Reply::OutcomeDiffers)) => {
            tracing::error!(transaction = %branch.transaction, participant = %branch.participant,
                "told an outcome that differs from the one this branch has");
            let detail = format!(
                "branch {branch}: it ended the other way before. Never an acknowledgement: somebody has to look"
            );
            Err(Problem::new(409, "outcome-differs", detail))
        }
        Some(Answer::BelowLowWater { low_water }) => {
            tracing::warn!(transaction = %branch.transaction, participant = %branch.participant, %low_water,
                "told to prepare a branch of a transaction that has ended: a late duplicate, or its coordinator's log \
                 went back");
            render(&below_low_water_answer(branch, low_water))
        }
        Some(Answer::PrepareChanged) => {
            let detail = format!(
                "branch {branch}: it was prepared before with other operations; the first ones stand"
            );
            Err(Problem::new(422, "prepare-changed", detail))
        }
        None => Err(Problem::new(
            503,
            "branch-busy",
            format!("branch {branch}: no answer; ask again"),
        )),
    }
}

fn render(body: &impl Serialize) -> Answered {
    serde_json::to_vec(body)
        .map_err(|error| Problem::new(500, "internal", format!("no JSON: {error}")))
}

/// A problem as a response, with the headers that go with its status.
pub(crate) fn render_problem(problem: &Problem) -> Response<Vec<u8>> {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = serde_json::to_vec(problem).unwrap_or_default();
    let mut response = response(status, PROBLEM_JSON, body);
    let headers = response.headers_mut();
    if let Some(allow) = problem
        .members
        .get("allow")
        .and_then(|allow| allow.as_str())
        && let Ok(allow) = HeaderValue::from_str(allow)
    {
        headers.insert(header::ALLOW, allow);
    }
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

pub(crate) fn response<B>(status: StatusCode, content_type: &'static str, body: B) -> Response<B> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
