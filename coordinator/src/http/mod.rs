//! The route tables. A handler parses, asks an actor, renders; it never writes the log and never calls a participant.

pub mod body;
pub mod health;
pub mod list;
pub mod metrics;
pub mod openapi;
pub mod participants;
pub mod problem;
pub mod starting;
pub mod transactions;

use actix_web::{
    HttpRequest, Resource,
    web::{self, ServiceConfig},
};
use unanimous_protocol::id::TransactionId;

use problem::ApiProblem;

/// Every method of every route of both listeners.
pub const OPERATIONS: &[(&str, &str)] = &[
    ("POST", "/v1/transactions"),
    ("GET", "/v1/transactions"),
    ("GET", "/v1/transactions/{id}"),
    ("POST", "/v1/transactions/{id}/branches"),
    ("POST", "/v1/transactions/{id}/commit"),
    ("POST", "/v1/transactions/{id}/abort"),
    ("GET", "/v1/transactions/{id}/outcome"),
    ("GET", "/openapi.json"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/admin/v1/participants"),
    ("GET", "/admin/v1/participants/{name}"),
    ("PUT", "/admin/v1/participants/{name}"),
    ("DELETE", "/admin/v1/participants/{name}"),
];

/// A route that is counted by its own spelling, never by the path that a request names.
fn resource(route: &str) -> Resource {
    web::resource(route).name(route)
}

/// The coordinator's API (`docs/API.md` section 1).
pub fn api(config: &mut ServiceConfig) {
    let only = |allow: &'static str| web::to(move |request| method_not_allowed(request, allow));
    config
        .service(
            resource("/v1/transactions")
                .route(web::post().to(transactions::begin))
                .route(web::get().to(list::list))
                .default_service(only("GET, POST")),
        )
        .service(
            resource("/v1/transactions/{id}")
                .route(web::get().to(transactions::show))
                .default_service(only("GET")),
        )
        .service(
            resource("/v1/transactions/{id}/branches")
                .route(web::post().to(transactions::enlist))
                .default_service(only("POST")),
        )
        .service(
            resource("/v1/transactions/{id}/commit")
                .route(web::post().to(transactions::commit))
                .default_service(only("POST")),
        )
        .service(
            resource("/v1/transactions/{id}/abort")
                .route(web::post().to(transactions::abort))
                .default_service(only("POST")),
        )
        .service(
            resource("/v1/transactions/{id}/outcome")
                .route(web::get().to(transactions::outcome))
                .default_service(only("GET")),
        )
        .service(
            resource("/openapi.json")
                .route(web::get().to(openapi::show))
                .default_service(only("GET")),
        )
        .default_service(web::to(not_found));
}

/// The admin listener.
pub fn admin(config: &mut ServiceConfig) {
    let only = |allow: &'static str| web::to(move |request| method_not_allowed(request, allow));
    config
        .service(
            resource("/healthz")
                .route(web::get().to(health::healthz))
                .default_service(only("GET")),
        )
        .service(
            resource("/readyz")
                .route(web::get().to(health::readyz))
                .default_service(only("GET")),
        )
        .service(
            resource("/metrics")
                .route(web::get().to(metrics::scrape))
                .default_service(only("GET")),
        )
        .service(
            resource("/admin/v1/participants")
                .route(web::get().to(participants::list))
                .default_service(only("GET")),
        )
        .service(
            resource("/admin/v1/participants/{name}")
                .route(web::get().to(participants::show))
                .route(web::put().to(participants::put))
                .route(web::delete().to(participants::delete))
                .default_service(only("GET, PUT, DELETE")),
        )
        .default_service(web::to(not_found));
}

/// Where a transaction is found: a path, for the client knows the host.
fn location(id: TransactionId) -> String {
    format!("/v1/transactions/{id}")
}

async fn not_found(request: HttpRequest) -> Result<String, ApiProblem> {
    Err(ApiProblem::NotFound(request.path().to_owned()))
}

async fn method_not_allowed(
    request: HttpRequest,
    allow: &'static str,
) -> Result<String, ApiProblem> {
    Err(ApiProblem::MethodNotAllowed {
        path: request.path().to_owned(),
        method: request.method().to_string(),
        allow,
    })
}
