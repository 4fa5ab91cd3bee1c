//! Reading requests: bodies, query members, headers. Whatever is wrong is said with the member it stands in.

use std::{collections::BTreeMap, fmt::Display, str::FromStr};

use std::time::Duration;

use actix_web::{
    HttpRequest,
    http::header,
    web::{self, Payload},
};
use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;
use unanimous_protocol::{
    id::TransactionId, record::IdempotencyKey, trace::TraceContext, wire::Object,
};

use super::problem::ApiProblem;

/// Largest body, in bytes.
pub const BODY_MAX: usize = 256 * 1024;
/// How long a body may take: a client that sends a byte now and then must not keep a connection for ever.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The transaction that the path names.
pub fn path_id(request: &HttpRequest) -> Result<TransactionId, ApiProblem> {
    let text = request.match_info().get("id").unwrap_or_default();
    text.parse().map_err(|cause| ApiProblem::InvalidId {
        text: shortened(text),
        cause,
    })
}

/// The body as `T`. An empty one is `{}`; a content type is asked for only where there is a body.
pub async fn read<T: DeserializeOwned>(
    request: &HttpRequest,
    mut payload: Payload,
) -> Result<T, ApiProblem> {
    let announced = request.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > BODY_MAX as u64) {
        return Err(ApiProblem::PayloadTooLarge { limit: BODY_MAX });
    }
    let gathered = tokio::time::timeout(BODY_TIMEOUT, gather(&mut payload)).await;
    let body = gathered.unwrap_or(Err(ApiProblem::BodyTooSlow {
        seconds: BODY_TIMEOUT.as_secs(),
    }))?;
    if body.is_empty() {
        return parse("{}");
    }
    check_content_type(request)?;
    let text = std::str::from_utf8(&body)
        .map_err(|error| ApiProblem::InvalidRequest(format!("the body is not UTF-8: {error}")))?;
    parse(text)
}

async fn gather(payload: &mut Payload) -> Result<Vec<u8>, ApiProblem> {
    let mut body = Vec::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk
            .map_err(|error| ApiProblem::InvalidRequest(format!("the body broke off: {error}")))?;
        if body.len() + chunk.len() > BODY_MAX {
            return Err(ApiProblem::PayloadTooLarge { limit: BODY_MAX });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T, ApiProblem> {
    let invalid = |text: String| ApiProblem::InvalidRequest(text);
    // Few are wrong, and those are read a second time: following the path takes as long as reading.
    if let Ok(Object(value)) = serde_json::from_str(text) {
        return Ok(value);
    }
    // Deriving serde's messages name the member where they can; the path says which one of many.
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let Object(value) = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        invalid(if path == "." {
            inner.to_string()
        } else {
            format!("{path}: {inner}")
        })
    })?;
    deserializer
        .end()
        .map_err(|error| invalid(format!("after the body: {error}")))?;
    Ok(value)
}

fn check_content_type(request: &HttpRequest) -> Result<(), ApiProblem> {
    let value = request.headers().get(header::CONTENT_TYPE);
    let text = value.and_then(|value| value.to_str().ok());
    let media_type = text.and_then(|text| text.split(';').next()).map(str::trim);
    match media_type {
        Some(media_type) if media_type.eq_ignore_ascii_case("application/json") => Ok(()),
        Some(media_type) => Err(ApiProblem::UnsupportedMediaType(shortened(media_type))),
        None => Err(ApiProblem::UnsupportedMediaType("missing".to_owned())),
    }
}

/// The query's members by name. Each is given once, and only those that the route has.
pub struct Query {
    members: BTreeMap<String, String>,
    /// Of the one member that may be given several times.
    repeated: Vec<String>,
}

impl Query {
    /// The query of a route that has these members.
    pub fn of(request: &HttpRequest, has: &[&str]) -> Result<Self, ApiProblem> {
        Self::read(request, has, None)
    }

    /// The query of a route that has these members, and one that may be given several times.
    pub fn with_repeated(
        request: &HttpRequest,
        has: &[&str],
        repeats: &str,
    ) -> Result<Self, ApiProblem> {
        Self::read(request, has, Some(repeats))
    }

    fn read(
        request: &HttpRequest,
        has: &[&str],
        repeats: Option<&str>,
    ) -> Result<Self, ApiProblem> {
        let invalid = |text: String| ApiProblem::InvalidRequest(format!("in the query: {text}"));
        let given = web::Query::<Vec<(String, String)>>::from_query(request.query_string());
        let given = given.map_err(|error| invalid(error.to_string()))?;
        let (mut members, mut repeated) = (BTreeMap::new(), Vec::new());
        for (name, value) in given.into_inner() {
            if repeats == Some(name.as_str()) {
                repeated.push(value);
                continue;
            }
            if !has.contains(&name.as_str()) {
                let name = shortened(&name);
                return Err(invalid(format!(
                    "there is no member {name:?} on this route"
                )));
            }
            if members.insert(name.clone(), value).is_some() {
                return Err(invalid(format!("{name} is given twice")));
            }
        }
        Ok(Self { members, repeated })
    }

    /// A member, where it is given.
    pub fn member<T: FromStr<Err: Display>>(&self, name: &str) -> Result<Option<T>, ApiProblem> {
        let value = self.members.get(name).map(|text| text.parse());
        value
            .transpose()
            .map_err(|error| ApiProblem::InvalidRequest(format!("in the query: {name}: {error}")))
    }
}

impl Query {
    /// The values of the member that may be given several times, in their order.
    pub fn repeated(&self) -> &[String] {
        &self.repeated
    }
}

/// Refuses the members of a query on a route that has none.
pub fn no_query(request: &HttpRequest) -> Result<(), ApiProblem> {
    Query::of(request, &[]).map(drop)
}

/// The `Idempotency-Key`, where there is one.
pub fn idempotency_key(request: &HttpRequest) -> Result<Option<IdempotencyKey>, ApiProblem> {
    let mut values = request.headers().get_all("idempotency-key");
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        let twice = "the header Idempotency-Key is given twice".to_owned();
        return Err(ApiProblem::InvalidRequest(twice));
    }
    // A value that is not ASCII fails as what it is: no key.
    let key = value.to_str().unwrap_or_default().parse();
    key.map(Some)
        .map_err(|error| ApiProblem::InvalidRequest(format!("Idempotency-Key: {error}")))
}

/// The trace that the request belongs to; a new one where it names none, or names it in a form that is none.
pub fn trace(request: &HttpRequest) -> TraceContext {
    let text = |name| {
        let values = request.headers().get_all(name);
        let texts: Option<Vec<&str>> = values.map(|value| value.to_str().ok()).collect();
        texts.filter(|texts| !texts.is_empty())
    };
    let received = || {
        let parents = text("traceparent")?;
        let [parent] = parents[..] else { return None };
        let state = text("tracestate").map(|states| states.join(","));
        TraceContext::received(parent, state.as_deref())
    };
    received().unwrap_or_else(|| TraceContext::begun(rand::random()))
}

/// Text of the client's for an error message.
fn shortened(text: &str) -> String {
    const LONGEST: usize = 80;
    let mut short: String = text.chars().take(LONGEST).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
