//! A start on a log that does not answer, or never will.

use reqwest::Method;
use unanimous_lab::wait::until;
use unanimous_lab::{Cluster, Options, Process, Program, ports, testing};

use crate::process::runs;
use crate::support::coordinator::{BINARY, client, serve};
use crate::support::{Answer, Log, SOON};

/// A start whose addresses are known before it is ready.
struct Start {
    process: Process,
    url: String,
    admin_url: String,
}

impl Start {
    fn on(log: &str) -> Self {
        let address = || format!("127.0.0.1:{}", ports::free().expect("a free port"));
        let (listen, admin_listen) = (address(), address());
        let process = Program::new("coordinator", BINARY)
            .args([
                "serve",
                "--listen",
                &listen,
                "--admin-listen",
                &admin_listen,
            ])
            .args(["--log", log])
            .start()
            .expect("the coordinator starts");
        Self {
            process,
            url: format!("http://{listen}"),
            admin_url: format!("http://{admin_listen}"),
        }
    }

    async fn admin(&self, path: &str) -> reqwest::Result<Answer> {
        Answer::try_of(client().get(format!("{}{path}", self.admin_url))).await
    }

    /// Until it is alive, and says why it is not ready.
    async fn waits(&self) {
        until("the start is seen to wait", SOON, async || {
            let alive = self.admin("/healthz").await.map_err(|e| e.to_string())?;
            let ready = self.admin("/readyz").await.map_err(|e| e.to_string())?;
            let why = ready.body["detail"].as_str().unwrap_or_default();
            // The reason comes with the first attempt that has failed.
            if alive.status == 200 && ready.status == 503 && why.contains("server") {
                Ok(())
            } else {
                Err(ready.text)
            }
        })
        .await
        .expect("it answers");
    }
}

#[tokio::test]
async fn a_start_that_waits_for_its_log_is_alive_and_not_ready_and_refuses_all_until_it_answers() {
    let mut server = Cluster::start(&Options::default().name("log"))
        .await
        .expect("a server starts");
    let log = server.create_database("log").await;
    let log = log.expect("a database can be made");
    server.kill();
    let mut start = Start::on(&log);
    start.waits().await;
    let id = "00000001-0001-8000-8000-100000000001";
    for (method, path) in [
        (Method::POST, "/v1/transactions".to_owned()),
        (Method::GET, "/v1/transactions".to_owned()),
        (Method::GET, format!("/v1/transactions/{id}")),
        (Method::POST, format!("/v1/transactions/{id}/branches")),
        (Method::POST, format!("/v1/transactions/{id}/commit")),
        (Method::POST, format!("/v1/transactions/{id}/abort")),
        (
            Method::GET,
            format!("/v1/transactions/{id}/outcome?participant=east"),
        ),
    ] {
        let request = client().request(method, format!("{}{path}", start.url));
        let refused = Answer::of(request).await.problem(503, "log-unavailable");
        let again = refused.header("retry-after").parse::<u64>();
        assert!(again.is_ok(), "{path}: {:?}", refused.headers);
    }
    let participants = start.admin("/admin/v1/participants").await;
    participants
        .expect("an answer")
        .problem(503, "log-unavailable");
    let output = start.process.output().expect("its output");
    assert!(!output.contains("ready listen="), "{output}");

    server.restart().await.expect("the server starts again");
    let ready = start.process.wait_for_line("ready ", SOON).await;
    let ready = ready.expect("it becomes ready");
    let listen = ready.field("listen").expect("the API's address");
    assert!(start.url.ends_with(listen), "{listen}");
    let begun = client().post(format!("{}/v1/transactions", start.url));
    Answer::of(begun).await.is(201);
    start.admin("/readyz").await.expect("an answer").is(200);
}

#[tokio::test]
async fn sigterm_ends_a_start_that_waits_for_its_log() {
    let nobody = format!(
        "postgres://postgres@127.0.0.1:{}/log",
        ports::free().expect("a free port")
    );
    let mut start = Start::on(&nobody);
    start.waits().await;
    let status = start.process.terminate().await.expect("it ends");
    assert!(status.success(), "{status}");
    let output = start.process.output().expect("its output");
    assert!(!output.contains("ready listen="), "{output}");
}

#[tokio::test]
async fn a_start_that_no_waiting_would_mend_ends_and_says_what_to_change() {
    let careless = Options::default().name("careless").setting("fsync", "off");
    let careless = Cluster::start(&careless).await.expect("a server starts");
    let there = testing::fresh_database(1).await;
    let there = there.expect("a database can be made");
    let (server, _) = there.rsplit_once('/').expect("a URL names a database");
    let cases = [
        (
            format!("{server}/not_there"),
            &["not_there", "database"][..],
        ),
        (
            there.replacen("postgres@", "stranger:secret@", 1),
            &["stranger", "user"],
        ),
        (careless.admin_url(), &["fsync = off", "set it to on"]),
    ];
    for (url, names) in cases {
        let (succeeded, output) = runs(serve(&Log::Postgres(url))).await;
        assert!(!succeeded, "{output}");
        for name in names {
            assert!(output.contains(name), "without {name:?}: {output}");
        }
        for secret in ["secret", "ready listen="] {
            assert!(!output.contains(secret), "{output}");
        }
    }
}
