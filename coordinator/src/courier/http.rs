//! Calls over HTTP (`docs/API.md` section 2).
//!
//! What came back is judged by [`read_reply`] and by nothing here. A call is one attempt: no redirect is followed, no
//! proxy asked, nothing repeated. At a participant that takes batches it is a message of one ([`super::batches`]).

use std::{error::Error as _, io, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, future::BoxFuture};
use reqwest::{
    Client, ClientBuilder, Method, RequestBuilder, Response, header, header::HeaderValue, redirect,
};
use unanimous_protocol::{
    id::BranchId,
    message::{Delivery, Request, bounded_reason},
    wire::{
        BranchRequest, BranchStateAnswer, Describe, HttpAnswer, PROBLEM_JSON, PrepareRequest,
        Problem, problem_type, read_reply,
    },
};

use tokio::time::Instant;

use super::{Ended, Endpoint, Limits, Outgoing, Transport, batches::Batches};

/// Answers are some hundred bytes; a longer one is none, and is not read to its end.
pub(super) const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Servers keep connections for at least 75 s; whoever closes first should be us, or a call leaves on a connection that
/// the server is just closing and ends as unknown.
const POOL_IDLE_MAX: Duration = Duration::from_secs(30);

/// Calls participants over HTTP, on connections that are kept.
#[derive(Clone, Debug)]
pub struct Http {
    pub(super) client: Client,
    batches: Arc<Batches>,
    /// For the calls that no courier times.
    look_timeout: Duration,
}

impl Http {
    /// Prepares connections; none is made yet.
    ///
    /// # Errors
    /// When the TLS library can not be set up.
    pub fn new(limits: &Limits) -> Result<Self, reqwest::Error> {
        // An error says that there is a provider already, and that is all that is wanted.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = || builder(limits);
        let client = builder().build().or_else(|error| {
            // A slim image without CA certificates must still be able to call http:// participants.
            let client = builder().tls_certs_only([]).build()?;
            tracing::warn!(
                error = %chain(&error),
                "no CA certificates could be loaded, so https:// participants can not be called"
            );
            Ok(client)
        })?;
        Ok(Self {
            client,
            batches: Arc::default(),
            look_timeout: limits.outcome_timeout,
        })
    }

    /// Who says he is there, and what he can do. What he announces is made use of from then on.
    ///
    /// # Errors
    /// When nobody answers, or something that is no description.
    pub async fn describe(&self, endpoint: &Endpoint) -> Result<Describe, String> {
        let described = self.ask_what_it_can(endpoint).await;
        match &described {
            Ok(described) => endpoint.announced().described(described, Instant::now()),
            Err(_) => endpoint.announced().is_silent(),
        }
        described
    }

    async fn ask_what_it_can(&self, endpoint: &Endpoint) -> Result<Describe, String> {
        let answer = self.look(endpoint, "/v1/describe").await?;
        if answer.status != 200 {
            return Err(format!("status {}, not a description", answer.status));
        }
        serde_json::from_slice(&answer.body)
            .map_err(|error| format!("status 200 with a body that is no description: {error}"))
    }

    /// Where a branch stands at its participant; `None` when the participant says that it does not know it.
    ///
    /// # Errors
    /// When nobody answers, or something that is no answer about this branch.
    pub async fn branch_state(
        &self,
        endpoint: &Endpoint,
        branch: &BranchId,
    ) -> Result<Option<BranchStateAnswer>, String> {
        let path = format!("/v1/branches/{}", branch.transaction);
        let answer = self.look(endpoint, &path).await?;
        match answer.status {
            200 => {
                let state: BranchStateAnswer =
                    serde_json::from_slice(&answer.body).map_err(|error| {
                        format!("status 200 with a body that is no answer: {error}")
                    })?;
                let echoes = state.transaction == branch.transaction.to_string()
                    && state.participant == branch.participant.as_str();
                if echoes {
                    Ok(Some(state))
                } else {
                    Err(bounded_reason(&format!(
                        "the answer is for transaction {:?} at {:?}, not for this branch",
                        state.transaction, state.participant
                    )))
                }
            }
            404 if answer.is_problem("unknown-branch") => Ok(None),
            status => Err(format!("status {status}, no answer about this branch")),
        }
    }

    async fn look(&self, endpoint: &Endpoint, path: &str) -> Result<Answer, String> {
        let request = self
            .client
            .request(Method::GET, endpoint.route(path))
            .timeout(self.look_timeout);
        match ask(request).await {
            Ok(answer) => Ok(answer),
            Err(Failure::Refused(reason) | Failure::Silent(reason) | Failure::TooLong(reason)) => {
                Err(reason)
            }
        }
    }

    /// A call as a request of its own.
    pub(super) async fn single(&self, to: &Endpoint, call: Outgoing) -> Ended {
        let kind = call.request.kind();
        let body = match &call.request {
            Request::Prepare(prepare) => serde_json::to_vec(&PrepareRequest {
                transaction: call.branch.transaction,
                participant: call.branch.participant.clone(),
                operations: prepare.operations.clone(),
                remaining_ms: call.remaining_ms,
                begun_at_ms: call.begun_at_ms,
                session: prepare.session.clone(),
                low_water: call.low_water,
            }),
            Request::Commit | Request::Abort => serde_json::to_vec(&BranchRequest {
                transaction: call.branch.transaction,
                participant: call.branch.participant.clone(),
                low_water: call.low_water,
            }),
        };
        let body = match body {
            Ok(body) => body,
            Err(error) => {
                let reason = format!("the call can not be written as JSON: {error}");
                return Ended::Heard(Delivery::Unknown(reason));
            }
        };
        let mut request = self
            .client
            .request(Method::POST, to.route(&format!("/v1/{}", kind.as_str())))
            .header(header::CONTENT_TYPE, "application/json")
            .header("traceparent", call.trace.traceparent(rand::random()));
        let state = call.trace.tracestate();
        // Tracing never is the reason that a call fails: what is no header is left out.
        if let Some(state) = state.and_then(|text| HeaderValue::from_str(text).ok()) {
            request = request.header("tracestate", state);
        }
        match ask(request.body(body)).await {
            Ok(answer) => Ended::Heard(read_reply(kind, &call.branch, &answer.as_http())),
            Err(why) => why.into_ended(),
        }
    }

    /// Whoever answers after a silence may be another version than the one before.
    fn notice(&self, to: &Endpoint, ended: &Ended) {
        match ended {
            Ended::Refused(_) | Ended::Silent(_) => to.announced().is_silent(),
            Ended::Heard(_) if to.announced().is_to_be_asked(Instant::now()) => {
                let (http, to) = (self.clone(), to.clone());
                tokio::spawn(async move {
                    if let Err(error) = http.describe(&to).await {
                        tracing::debug!(url = %to, error, "asked what it can, it does not say");
                    }
                });
            }
            Ended::Heard(_) => {}
        }
    }
}

fn builder(limits: &Limits) -> ClientBuilder {
    let silence = limits.peer_silence_max;
    let client = Client::builder()
        .user_agent(concat!("unanimous/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .no_proxy()
        .retry(reqwest::retry::never())
        .referer(false)
        .connect_timeout(limits.connect_timeout)
        .pool_idle_timeout(POOL_IDLE_MAX)
        .tcp_nodelay(true)
        // A prepare may take long, so only TCP can tell a slow participant from a dead connection.
        .tcp_keepalive(silence / 2)
        .tcp_keepalive_interval(silence / 4)
        .tcp_keepalive_retries(2);
    #[cfg(target_os = "linux")]
    let client = client.tcp_user_timeout(silence);
    client
}

impl Transport for Http {
    fn call(&self, to: &Endpoint, call: Outgoing) -> BoxFuture<'static, Ended> {
        let (http, to) = (self.clone(), to.clone());
        async move {
            let ended = if to.announced().takes_batches() {
                let lane = http.batches.lane(&to, call.request.kind());
                lane.call(http.clone(), to.clone(), call).await
            } else {
                http.single(&to, call).await
            };
            http.notice(&to, &ended);
            ended
        }
        .boxed()
    }
}

/// An answer, whole.
pub(super) struct Answer {
    status: u16,
    content_type: Option<String>,
    body: Vec<u8>,
}

impl Answer {
    pub(super) fn as_http(&self) -> HttpAnswer<'_> {
        HttpAnswer {
            status: self.status,
            content_type: self.content_type.as_deref(),
            body: &self.body,
        }
    }

    /// Whether the participant itself said so: a proxy's own 404 says nothing about a branch.
    fn is_problem(&self, code: &str) -> bool {
        let media_type = self
            .content_type
            .as_deref()
            .and_then(|text| text.split(';').next());
        media_type.is_some_and(|text| text.trim().eq_ignore_ascii_case(PROBLEM_JSON))
            && serde_json::from_slice::<Problem>(&self.body)
                .is_ok_and(|problem| problem.problem_type == problem_type(code))
    }
}

/// Why there is no answer.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    /// The connection was refused, and nothing else.
    Refused(String),
    /// Nothing came back, or not all of it.
    Silent(String),
    /// More came than anybody wants to read.
    TooLong(String),
}

impl Failure {
    pub(super) fn into_ended(self) -> Ended {
        match self {
            Self::Refused(reason) => Ended::Refused(reason),
            Self::Silent(reason) => Ended::Silent(reason),
            Self::TooLong(reason) => Ended::Heard(Delivery::Unknown(reason)),
        }
    }
}

async fn ask(request: RequestBuilder) -> Result<Answer, Failure> {
    let response = request.send().await.map_err(failure)?;
    read(response).await
}

/// Only a connection that was refused while it was made proves that the branch did not act: nothing was written yet. On
/// one that stands the same error may come late, from an ICMP message about a peer that was there before.
pub(super) fn failure(error: reqwest::Error) -> Failure {
    let refused = error.is_connect()
        && causes(&error).any(|cause| {
            cause
                .downcast_ref::<io::Error>()
                .is_some_and(|cause| cause.kind() == io::ErrorKind::ConnectionRefused)
        });
    let reason = chain(&error.without_url());
    if refused {
        Failure::Refused(reason)
    } else {
        Failure::Silent(reason)
    }
}

fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(error.source(), |&cause| cause.source())
}

/// An error with its causes, in one line. The URL is left out: whoever reads it knows the participant.
fn chain(error: &reqwest::Error) -> String {
    let texts = std::iter::once(error.to_string()).chain(causes(error).map(ToString::to_string));
    bounded_reason(&texts.collect::<Vec<_>>().join(": "))
}

pub(super) fn broke_off(error: reqwest::Error) -> Failure {
    let cause = chain(&error.without_url());
    Failure::Silent(format!("the answer broke off: {cause}"))
}

/// Dropping the response before its end closes its connection.
pub(super) async fn read(mut response: Response) -> Result<Answer, Failure> {
    let status = response.status().as_u16();
    let content_type = response
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    let too_long = || {
        Failure::TooLong(format!(
            "status {status} with more than {ANSWER_BYTES_MAX} bytes, which is no answer"
        ))
    };
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(broke_off)? {
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(too_long());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Answer {
        status,
        content_type,
        body,
    })
}
