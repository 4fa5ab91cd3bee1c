//! The routes as an actix-web scope: its types in and out of [`Participant::answer`], and nothing else.

use std::convert::Infallible;

use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, Scope, http::StatusCode, web};
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
