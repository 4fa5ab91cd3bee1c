//! Is it alive, and can it work?

use actix_web::{HttpResponse, http::header, web::Data};
use serde_json::json;
use tokio::sync::watch;
use unanimous_protocol::wire::{PROBLEM_JSON, Problem};

use crate::actors::registry::Condition;

/// `GET /healthz`: the process is alive.
pub async fn healthz() -> HttpResponse {
    HttpResponse::Ok().json(json!({"status": "alive"}))
}

/// `GET /readyz`: the log answers and recovery has begun; 503 otherwise, with the reason.
pub async fn readyz(condition: Data<watch::Receiver<Condition>>) -> HttpResponse {
    let why = match &*condition.borrow() {
        Condition::Ready => return HttpResponse::Ok().json(json!({"status": "ready"})),
        Condition::LogUnavailable => "the decision log does not answer".to_owned(),
        Condition::WentBack(why) => format!(
            "the decision log went back ({why}): nothing is decided until an operator runs `unanimous log new-identity`"
        ),
        Condition::Fenced(why) => {
            format!("this life of the coordinator is fenced ({why}): it ends")
        }
    };
    not_ready(why)
}

/// The answer of a coordinator that can not work, and why.
pub(super) fn not_ready(why: String) -> HttpResponse {
    let problem = Problem::new(503, "log-unavailable", why);
    HttpResponse::ServiceUnavailable()
        .content_type(PROBLEM_JSON)
        .insert_header((header::RETRY_AFTER, "1"))
        .json(problem)
}
