//! `GET /metrics`, and the count of every request.

use std::sync::Arc;

use actix_web::{
    Error, HttpRequest, HttpResponse,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    middleware::Next,
    web::Data,
};
use futures_util::future::join_all;
use tokio::sync::watch;

use super::{body, problem::ApiProblem};
use crate::{
    actors::{
        Address,
        registry::{
            Condition, Registry,
            measuring::{Measure, Measured},
        },
        transaction::Sight,
        wall_clock,
    },
    metrics::{CONTENT_TYPE, Metrics, present::Present},
};

/// Live transactions that are asked at once: decisions come in between.
const ASKED_AT_ONCE: usize = 256;

/// `GET /metrics`
pub async fn scrape(
    request: HttpRequest,
    registry: Data<Address<Registry>>,
    condition: Data<watch::Receiver<Condition>>,
    metrics: Data<Metrics>,
) -> Result<HttpResponse, ApiProblem> {
    body::no_query(&request)?;
    // The registry lives as long as the process.
    let Measured {
        held,
        couriers,
        transactions,
    } = registry
        .send(Measure)
        .await
        .map_err(|_| ApiProblem::LogUnavailable)?;
    let condition = condition.borrow().clone();
    let mut present = Present::new(wall_clock(), held, condition, couriers);
    for some in transactions.chunks(ASKED_AT_ONCE) {
        let sightings = join_all(some.iter().map(|actor| actor.send(Sight))).await;
        // Whoever has ended in between is in memory no more.
        for sighting in sightings.into_iter().flatten() {
            present.saw(sighting);
        }
    }
    let page = metrics
        .page(&present)
        .map_err(|error| ApiProblem::Internal(error.to_string()))?;
    Ok(HttpResponse::Ok().content_type(CONTENT_TYPE).body(page))
}

/// Counts every request that is answered.
pub async fn count(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let metrics = request.app_data::<Data<Metrics>>().cloned();
    let answered = next.call(request).await;
    if let (Some(metrics), Ok(response)) = (metrics.map(Data::into_inner), &answered) {
        counted(&metrics, response);
    }
    answered
}

fn counted(metrics: &Arc<Metrics>, response: &ServiceResponse<impl MessageBody>) {
    let request = response.request();
    metrics.request_answered(
        request.method().as_str(),
        request.match_name(),
        response.status().as_u16(),
    );
}
