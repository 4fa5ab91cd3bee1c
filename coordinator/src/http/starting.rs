//! What is answered while a start waits for the decision log: alive, not ready, and nothing else.

use actix_web::{
    HttpResponse,
    web::{self, Data, ServiceConfig},
};
use tokio::sync::watch;

use super::{
    health::{healthz, not_ready},
    problem::ApiProblem,
};

/// The coordinator's API: every route, whatever was sent.
pub fn api(config: &mut ServiceConfig) {
    config.default_service(web::to(refuse));
}

/// The admin listener.
pub fn admin(config: &mut ServiceConfig) {
    config
        .route("/healthz", web::get().to(healthz))
        .route("/readyz", web::get().to(readyz))
        .default_service(web::to(refuse));
}

async fn refuse() -> Result<String, ApiProblem> {
    Err(ApiProblem::LogUnavailable)
}

async fn readyz(why: Data<watch::Receiver<String>>) -> HttpResponse {
    let why = why.borrow().clone();
    let colon = if why.is_empty() { "" } else { ": " };
    not_ready(format!("the start waits for the decision log{colon}{why}"))
}
