//! `/admin/v1/participants`: who is registered where.

use actix_web::{
    HttpRequest, HttpResponse,
    http::header,
    web::{Data, Payload},
};
use unanimous_protocol::{
    id::ParticipantName,
    wire::{ParticipantList, ParticipantRequest, ParticipantView},
};

use super::{body, problem::ApiProblem};
use crate::{
    actors::{
        Address,
        registry::{
            Registry,
            participants::{Participants, Put, PutOutcome, Remove, RemoveOutcome},
        },
    },
    courier::Endpoint,
};

type Answer = Result<HttpResponse, ApiProblem>;

fn path_name(request: &HttpRequest) -> Result<ParticipantName, ApiProblem> {
    let text = request.match_info().get("name").unwrap_or_default();
    text.parse()
        .map_err(|error| ApiProblem::InvalidRequest(format!("in the path: {error}")))
}

fn view(name: ParticipantName, endpoint: &Endpoint) -> ParticipantView {
    ParticipantView {
        name,
        url: endpoint.to_string(),
    }
}

async fn all(registry: &Address<Registry>) -> Result<Vec<ParticipantView>, ApiProblem> {
    let all = registry.send(Participants).await;
    // The registry lives as long as the process.
    let all = all.map_err(|_| ApiProblem::LogUnavailable)?.into_iter();
    Ok(all.map(|(name, endpoint)| view(name, &endpoint)).collect())
}

/// `GET /admin/v1/participants`
pub async fn list(request: HttpRequest, registry: Data<Address<Registry>>) -> Answer {
    body::no_query(&request)?;
    let participants = all(&registry).await?;
    Ok(HttpResponse::Ok().json(ParticipantList { participants }))
}

/// `GET /admin/v1/participants/{name}`
pub async fn show(request: HttpRequest, registry: Data<Address<Registry>>) -> Answer {
    let name = path_name(&request)?;
    body::no_query(&request)?;
    let mut all = all(&registry).await?.into_iter();
    match all.find(|participant| participant.name == name) {
        Some(participant) => Ok(HttpResponse::Ok().json(participant)),
        None => Err(ApiProblem::NoSuchParticipant(name)),
    }
}

/// `PUT /admin/v1/participants/{name}`
pub async fn put(
    request: HttpRequest,
    payload: Payload,
    registry: Data<Address<Registry>>,
) -> Answer {
    let name = path_name(&request)?;
    body::no_query(&request)?;
    let ParticipantRequest { url } = body::read(&request, payload).await?;
    let endpoint: Endpoint = url
        .parse()
        .map_err(|error| ApiProblem::InvalidRequest(format!("url: {error}")))?;
    let put = Put {
        name: name.clone(),
        endpoint: endpoint.clone(),
    };
    let mut response = match registry.send(put).await {
        Ok(PutOutcome::Created) => {
            let mut created = HttpResponse::Created();
            let place = format!("/admin/v1/participants/{name}");
            created.insert_header((header::LOCATION, place));
            created
        }
        Ok(PutOutcome::Replaced) => HttpResponse::Ok(),
        Ok(PutOutcome::Configured) => return Err(ApiProblem::ParticipantConfigured(name)),
        Ok(PutOutcome::LogUnavailable) | Err(_) => return Err(ApiProblem::LogUnavailable),
    };
    Ok(response.json(view(name, &endpoint)))
}

/// `DELETE /admin/v1/participants/{name}`
pub async fn delete(request: HttpRequest, registry: Data<Address<Registry>>) -> Answer {
    let name = path_name(&request)?;
    body::no_query(&request)?;
    match registry.send(Remove(name.clone())).await {
        Ok(RemoveOutcome::Removed) => Ok(HttpResponse::NoContent().finish()),
        Ok(RemoveOutcome::Unknown) => Err(ApiProblem::NoSuchParticipant(name)),
        Ok(RemoveOutcome::InUse) => Err(ApiProblem::ParticipantInUse(name)),
        Ok(RemoveOutcome::Configured) => Err(ApiProblem::ParticipantConfigured(name)),
        Ok(RemoveOutcome::LogUnavailable) | Err(_) => Err(ApiProblem::LogUnavailable),
    }
}
