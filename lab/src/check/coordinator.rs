//! The coordinator that the kit plays, as far as a participant asks it: `GET /v1/transactions/{id}/outcome`.
//!
//! What it tells of a transaction is a check's choice, wrong answers included; every inquiry is remembered.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use unanimous_protocol::id::{LogIdentity, Node, TransactionId};
use unanimous_protocol::message::Inform;
use unanimous_protocol::wire::{PROBLEM_JSON, Problem};

use super::exchange::{Exchange, Exchanges};
use super::server::{Reply, Request, Serving, serve};

/// An inquiry's answer that a check wants.
#[derive(Clone, Debug)]
pub(super) enum Tell {
    /// To the letter of the contract.
    Outcome(Inform),
    /// Anything else. `$transaction` and `$participant` in it stand for the inquiry's own.
    Page {
        status: u16,
        content_type: &'static str,
        body: String,
    },
    /// 307 to a page that says "aborted", properly echoed.
    Redirect,
    /// Nothing, while the participant waits.
    Silence,
}

impl Tell {
    /// 200 with this JSON.
    pub(super) fn json(body: &Value) -> Self {
        Self::Page {
            status: 200,
            content_type: "application/json",
            body: body.to_string(),
        }
    }

    /// One of the coordinator's problems.
    pub(super) fn problem(status: u16, code: &str) -> Self {
        Self::Page {
            status,
            content_type: PROBLEM_JSON,
            body: problem(status, code),
        }
    }
}

/// An inquiry as it arrived.
#[derive(Clone, Debug)]
pub(super) struct Inquiry {
    pub(super) at: Instant,
    /// The query's `participant`.
    pub(super) participant: String,
}

struct State {
    tells: HashMap<TransactionId, Tell>,
    inquiries: HashMap<TransactionId, Vec<Inquiry>>,
    /// Of the checks that have begun, by the nodes of their ids.
    exchanges: HashMap<Node, Arc<Exchanges>>,
}

struct Shared {
    identity: LogIdentity,
    url: String,
    state: Mutex<State>,
    news: Notify,
}

/// The listening coordinator. Dropped, it is gone.
pub(super) struct Coordinator {
    shared: Arc<Shared>,
    serving: JoinHandle<()>,
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Coordinator {
    /// Listens, for inquiries about transactions of a log with this identity.
    pub(super) async fn listen(listen: SocketAddr, identity: LogIdentity) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(listen).await;
        let listener = listener.with_context(|| format!("cannot listen on {listen}"))?;
        let shared = Arc::new(Shared {
            identity,
            url: format!("http://{}", listener.local_addr()?),
            state: Mutex::new(State {
                tells: HashMap::new(),
                inquiries: HashMap::new(),
                exchanges: HashMap::new(),
            }),
            news: Notify::new(),
        });
        let serving = Serving {
            body_max: 64 * 1024,
            one_by_one: false,
        };
        let answering = Arc::clone(&shared);
        let serving = tokio::spawn(serve(listener, serving, move |request| {
            let reply = answering.answer(&request);
            async move { reply }
        }));
        Ok(Self { shared, serving })
    }

    /// Its address, as a participant is configured with it.
    pub(super) fn url(&self) -> &str {
        &self.shared.url
    }

    /// A check begins: inquiries about ids of this node are written there.
    pub(super) fn record_into(&self, node: Node, exchanges: Arc<Exchanges>) {
        self.shared.state().exchanges.insert(node, exchanges);
    }

    /// From now on inquiries about this transaction are answered so. Without it: *pending*.
    pub(super) fn tell(&self, id: TransactionId, tell: Tell) {
        self.shared.state().tells.insert(id, tell);
    }

    /// The inquiries about this transaction until now.
    pub(super) fn inquiries(&self, id: TransactionId) -> Vec<Inquiry> {
        let state = self.shared.state();
        state.inquiries.get(&id).cloned().unwrap_or_default()
    }

    /// Waits until there were `count` inquiries about this transaction. `false` when there were not by then.
    pub(super) async fn was_asked(
        &self,
        id: TransactionId,
        count: usize,
        within: Duration,
    ) -> bool {
        let until = Instant::now() + within;
        loop {
            let news = self.shared.news.notified();
            if self.inquiries(id).len() >= count {
                return true;
            }
            if timeout_at(until, news).await.is_err() {
                return self.inquiries(id).len() >= count;
            }
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, request: &Request) -> Reply {
        let unknown = |code: &str| page(404, PROBLEM_JSON, problem(404, code));
        let segments: Vec<&str> = request.path.trim_matches('/').split('/').collect();
        let (id, redirected) = match segments.as_slice() {
            ["v1", "transactions", id, "outcome"] => (*id, false),
            ["elsewhere", id] => (*id, true),
            _ => return unknown("not-found"),
        };
        if request.method != "GET" {
            return unknown("not-found");
        }
        let participant = request
            .query
            .split('&')
            .find_map(|pair| pair.strip_prefix("participant="))
            .unwrap_or_default()
            .to_owned();
        let Ok(transaction) = id.parse::<TransactionId>() else {
            return unknown("invalid-request");
        };
        if transaction.identity() != self.identity {
            return unknown("foreign-transaction");
        }
        let mut state = self.state();
        let exchanges = state.exchanges.get(&transaction.node()).cloned();
        let tell = if redirected {
            Tell::Outcome(Inform::Aborted)
        } else {
            let inquiry = Inquiry {
                at: Instant::now(),
                participant: participant.clone(),
            };
            state
                .inquiries
                .entry(transaction)
                .or_default()
                .push(inquiry);
            let tell = state.tells.get(&transaction).cloned();
            tell.unwrap_or(Tell::Outcome(Inform::Pending))
        };
        drop(state);
        self.news.notify_waiters();
        let reply = self.reply(transaction, &participant, tell);
        let answer = match &reply {
            Reply::Answer { status, body, .. } => format!("{status} {body}"),
            Reply::Silence => "nothing; the connection stays open".to_owned(),
        };
        if let Some(exchanges) = exchanges {
            exchanges.push(Exchange::asked_by_participant(
                &self.url,
                &request.path,
                &request.query,
                answer,
            ));
        }
        reply
    }

    fn reply(&self, transaction: TransactionId, participant: &str, tell: Tell) -> Reply {
        match tell {
            Tell::Outcome(outcome) => Reply::json(
                200,
                json!({"transaction": transaction, "participant": participant, "outcome": outcome}),
            ),
            Tell::Page {
                status,
                content_type,
                body,
            } => {
                let body = body.replace("$transaction", &transaction.to_string());
                page(
                    status,
                    content_type,
                    body.replace("$participant", participant),
                )
            }
            Tell::Redirect => Reply::Answer {
                status: 307,
                content_type: "text/plain",
                location: Some(format!(
                    "{}/elsewhere/{transaction}?participant={participant}",
                    self.url
                )),
                body: String::new(),
            },
            Tell::Silence => Reply::Silence,
        }
    }
}

fn problem(status: u16, code: &str) -> String {
    // It writes to JSON whatever the code is.
    serde_json::to_string(&Problem::new(
        status,
        code,
        "as the conformance kit wants it",
    ))
    .unwrap_or_default()
}

fn page(status: u16, content_type: &'static str, body: String) -> Reply {
    Reply::Answer {
        status,
        content_type,
        location: None,
        body,
    }
}
