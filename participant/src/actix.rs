//! The routes as an actix-web scope: its types in and out of [`Participant::answer`], and nothing else.

use std::convert::Infallible;

use actix_web::{
    FromRequest as _, HttpRequest, HttpResponse, HttpResponseBuilder, Scope,
    dev::{ServiceRequest, ServiceResponse, fn_factory, fn_service},
    http::StatusCode,
    web,
};
use bytes::Bytes;
use futures_util::StreamExt as _;

use crate::{
    batch::Body,
    http::{BODY_MAX, payload_too_large, render_problem},
    participant::Participant,
};

impl Participant {
    /// The participant's routes below `path`: `App::new().service(east.scope("/unanimous"))`. The base URL to register
    /// at a coordinator is then `http://host:port/unanimous`.
    pub fn scope(&self, path: &str) -> Scope {
        let participant = self.clone();
        web::scope(path).default_service(web::to(move |request, payload| {
            let participant = participant.clone();
            async move { answer(&participant, &request, payload).await }
        }))
    }
}

/// As [`Participant::scope`], of a participant that is started by the server's worker, on the thread on which it serves: what
/// a request needs of the participant is then not handed from thread to thread, which is a good part of the work where
/// cores are few.
///
/// For a server with one worker and one address: each pair of them starts a participant of its own, which is allowed, as
/// several processes are, but each of them wants a pool of its own. The server serves nothing before `start` has returned,
/// and ends where it fails; `start` tells why, for the server does not know.
pub fn scope_started_by<F, E>(path: &str, start: impl Fn() -> F + 'static) -> Scope
where
    F: Future<Output = Result<Participant, E>> + 'static,
{
    web::scope(path).default_service(fn_factory(move || {
        let starting = start();
        async move {
            let participant = starting.await.map_err(drop)?;
            Ok::<_, ()>(fn_service(move |request: ServiceRequest| {
                let participant = participant.clone();
                async move {
                    let (request, mut payload) = request.into_parts();
                    let payload = web::Payload::from_request(&request, &mut payload).await?;
                    let response = answer(&participant, &request, payload).await;
                    Ok::<_, actix_web::Error>(ServiceResponse::new(request, response))
                }
            }))
        }
    }))
}

async fn answer(
    participant: &Participant,
    request: &HttpRequest,
    mut payload: web::Payload,
) -> HttpResponse {
    let mut body = Vec::new();
    while let Some(chunk) = payload.next().await {
        // A body that broke off has no reader any more.
        let Ok(chunk) = chunk else {
            return HttpResponse::BadRequest().finish();
        };
        if body.len() + chunk.len() > BODY_MAX {
            return convert(render_problem(&payload_too_large()).map(Body::Whole));
        }
        body.extend_from_slice(&chunk);
    }
    // What the scope has not taken of the path.
    let path = request.match_info().unprocessed();
    let uri = match request.query_string() {
        "" => path.to_owned(),
        query => format!("{path}?{query}"),
    };
    let mut builder = http::Request::builder()
        .method(request.method().as_str())
        .uri(if uri.starts_with('/') {
            uri
        } else {
            format!("/{uri}")
        });
    // Those that are read.
    for name in ["content-type", "traceparent", "tracestate"] {
        for value in request.headers().get_all(name) {
            builder = builder.header(name, value.as_bytes());
        }
    }
    match builder.body(body) {
        Ok(request) => convert(participant.answer(request).await),
        Err(_) => HttpResponse::BadRequest().finish(),
    }
}

fn convert(response: http::Response<Body>) -> HttpResponse {
    let (parts, body) = response.into_parts();
    let status =
        StatusCode::from_u16(parts.status.as_u16()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut builder = HttpResponseBuilder::new(status);
    for (name, value) in &parts.headers {
        builder.insert_header((name.as_str(), value.as_bytes()));
    }
    match body {
        Body::Whole(whole) => builder.body(whole),
        Body::Lines(lines) => {
            builder.streaming(lines.map(|piece| Ok::<_, Infallible>(Bytes::from(piece))))
        }
    }
}
