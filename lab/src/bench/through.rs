//! Through Unanimous: one request for each transfer, over one kept-alive connection for each client.

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use http::StatusCode;
use unanimous_protocol::record::Outcome;
use unanimous_protocol::wire::Wait;

use super::Work;
use super::drive::Client;
use crate::audit::{Asked, Told};
use crate::lean::Lean;
use crate::transfer::{Transfer, read_answer};

/// One client: one connection to the coordinator.
pub(super) struct Through {
    connection: Lean,
    wait: Wait,
    /// Number, status and body: read when the load is over, for reading is nothing that is to be measured.
    answers: Vec<(usize, u16, Vec<u8>)>,
}

impl Through {
    pub(super) async fn connect(coordinator: SocketAddr, wait: Wait) -> anyhow::Result<Self> {
        Ok(Self {
            connection: Lean::connect(coordinator).await?,
            wait,
            answers: Vec::new(),
        })
    }

    /// What it asked and was told.
    pub(super) fn asked(&self) -> anyhow::Result<Vec<Asked>> {
        let answers = self.answers.iter();
        let read = answers.map(|(number, status, body)| {
            let view = read_answer(*status, str::from_utf8(body)?)?.transaction;
            let key = Work::key(*number);
            let outcome = view.outcome;
            let outcome = outcome.with_context(|| format!("{key}: told without an outcome"))?;
            ensure!(
                outcome == said_by(*status)?,
                "{key}: answered {status}, and {outcome:?}"
            );
            let told = Told {
                transaction: view.id,
                outcome,
                reason: view.reason,
            };
            Ok(Asked {
                key,
                told: Some(told),
            })
        });
        read.collect()
    }
}

fn said_by(status: u16) -> anyhow::Result<Outcome> {
    let said = match StatusCode::from_u16(status)? {
        StatusCode::OK => Some(Outcome::Committed),
        StatusCode::CONFLICT => Some(Outcome::Aborted),
        _ => None,
    };
    said.with_context(|| format!("the coordinator answered {status}"))
}

impl Client for Through {
    async fn transfer(&mut self, number: usize, transfer: &Transfer) -> anyhow::Result<Outcome> {
        let request = serde_json::to_vec(&transfer.request(self.wait)?)?;
        let key = Work::key(number);
        let headers = [("idempotency-key", key.as_str())];
        let sent = self.connection.post("/v1/transactions", &headers, &request);
        let answer = sent.await?;
        let status = answer.status().as_u16();
        let said = said_by(status);
        let body = answer.into_body();
        let said = said.with_context(|| String::from_utf8_lossy(&body).into_owned())?;
        self.answers.push((number, status, body.to_vec()));
        Ok(said)
    }
}
