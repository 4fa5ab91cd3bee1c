//! Participants in this process: they answer as one answers that keeps everything, and keep nothing.

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::check::server::{Reply, Request, Serving, serve};

/// Those who answer at once.
pub(super) const PROMPT: [&str; 2] = ["prompt-1", "prompt-2"];
/// Those who do not answer a prepare until they are let.
pub(super) const LATE: [&str; 2] = ["late-1", "late-2"];

/// All of them, on one address. Dropped, they are gone.
pub(super) struct Participants {
    address: SocketAddr,
    let_answer: watch::Sender<bool>,
    serving: JoinHandle<()>,
}

impl Participants {
    pub(super) async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let let_answer = watch::Sender::new(false);
        let may_answer = let_answer.subscribe();
        let handle = move |request: Request| answer(request, may_answer.clone());
        let serving = Serving {
            body_max: 1024 * 1024,
            one_by_one: false,
        };
        Ok(Self {
            address,
            let_answer,
            serving: tokio::spawn(serve(listener, serving, handle)),
        })
    }

    /// As the coordinator has them registered.
    pub(super) fn registered(&self) -> Vec<(&'static str, String)> {
        let all = PROMPT.into_iter().chain(LATE);
        all.map(|name| (name, format!("http://{}/{name}", self.address)))
            .collect()
    }

    /// From now on nobody is late.
    pub(super) fn let_all_answer(&self) {
        self.let_answer.send_replace(true);
    }
}

impl Drop for Participants {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn answer(request: Request, mut may_answer: watch::Receiver<bool>) -> Reply {
    let mut path = request.path.trim_start_matches('/').splitn(2, '/');
    let (name, route) = (
        path.next().unwrap_or_default(),
        path.next().unwrap_or_default(),
    );
    let echo = |member: &str, says: &str| {
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        Reply::json(
            200,
            json!({"transaction": body["transaction"], "participant": name, member: says}),
        )
    };
    match route {
        "v1/prepare" => {
            // It fails when the sender is gone, and so are then all who could hear an answer.
            if LATE.contains(&name) && may_answer.wait_for(|may| *may).await.is_err() {
                return Reply::Silence;
            }
            echo("vote", "yes")
        }
        "v1/commit" => echo("state", "committed"),
        "v1/abort" => echo("state", "aborted"),
        "v1/describe" => Reply::json(
            200,
            json!({"participant": name, "protocol": 1, "features": []}),
        ),
        "v1/branches" => Reply::json(200, json!({"branches": [], "next": null})),
        _ => Reply::json(404, json!({"status": 404, "title": "no such route"})),
    }
}
