//! What no client library would send: written to the socket byte by byte. The answer is a clear problem or a closed
//! connection; nobody else notices, and no transaction changes.

use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::support::{Answer, Coordinator, SOON, Stub, branch};

/// A connection to the API or, by `admin`, to the admin listener.
struct Raw(TcpStream);

impl Raw {
    async fn connect(url: &str) -> Self {
        let address = url.trim_start_matches("http://");
        Self(TcpStream::connect(address).await.expect("it listens"))
    }

    /// Writes, though the other side may have stopped to read.
    async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.ok();
    }

    /// All that comes until the other side closes.
    async fn rest(&mut self) -> String {
        let mut bytes = Vec::new();
        // An answer followed by a reset is one too.
        let read = timeout(SOON, self.0.read_to_end(&mut bytes)).await;
        drop(read.expect("the connection is closed"));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// One answer: its status, and its body where it is JSON.
    async fn answer(&mut self) -> (u16, Value) {
        let mut bytes = Vec::new();
        loop {
            if let Some(answer) = whole(&bytes) {
                return answer;
            }
            let read = timeout(SOON, self.0.read_buf(&mut bytes)).await;
            let read = read
                .expect("an answer comes")
                .expect("the connection holds");
            let text = String::from_utf8_lossy(&bytes);
            assert!(read > 0, "closed before the answer was whole: {text}");
        }
    }
}

fn whole(bytes: &[u8]) -> Option<(u16, Value)> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let length = head
        .lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length: usize = length.map_or(0, |(_, value)| value.parse().unwrap());
    let body = body.get(..length)?;
    Some((
        status(text)?,
        serde_json::from_str(body).unwrap_or_default(),
    ))
}

fn status(answer: &str) -> Option<u16> {
    answer.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
}

const HEAD: &str = "host: x\r\ncontent-type: application/json\r\n";

fn begin(rest: &str) -> String {
    format!("POST /v1/transactions HTTP/1.1\r\n{HEAD}{rest}")
}

/// It lives, and the open transaction is as it was.
async fn is_unchanged(coordinator: &Coordinator, id: &str) {
    let shown = coordinator.show(id).await.is(200);
    assert_eq!(shown.body["state"], "active");
    assert_eq!(shown.body["branches"].as_array().map(Vec::len), Some(1));
}

/// An open transaction with a branch.
async fn open(coordinator: &Coordinator) -> String {
    let id = coordinator.open().await;
    coordinator.enlist(&id, &branch("east")).await.is(201);
    id
}

#[tokio::test]
async fn a_head_that_is_none_is_refused_or_cut_off() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    let id = open(&coordinator).await;
    let begun = coordinator.get("/v1/transactions?limit=1000").await.body;
    let commit = format!("POST /v1/transactions/{id}/commit");
    let huge = "x".repeat(1 << 20);
    let many = "a: b\r\n".repeat(200);
    let heads: Vec<Vec<u8>> = vec![
        b"\r\n\r\n\r\n".to_vec(),
        b"\0\0\0\0\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        format!("{commit}\r\n\r\n").into(),
        format!("{commit} HTTP/9.9\r\n{HEAD}\r\n").into(),
        format!("{commit} HTTP/1.1 \u{e9}\r\n{HEAD}\r\n").into(),
        format!("{commit} HTTP/1.1\r\n{HEAD}no colon\r\n\r\n").into(),
        format!("{commit} HTTP/1.1\r\n{HEAD}a b: c\r\n\r\n").into(),
        format!("{commit} HTTP/1.1\r\n{HEAD}idempotency-key: a\0b\r\n\r\n").into(),
        format!("{commit} HTTP/1.1\r\n{HEAD}content-length: -1\r\n\r\n").into(),
        format!("{commit} HTTP/1.1\r\n{HEAD}content-length: 2, 2\r\n\r\n{{}}").into(),
        format!("{commit} HTTP/1.1\r\n{HEAD}content-length: 18446744073709551616\r\n\r\n").into(),
        // Two lengths: whoever stands in front may believe the other one.
        format!("{commit} HTTP/1.1\r\n{HEAD}content-length: 2\r\ncontent-length: 3\r\n\r\n{{}}")
            .into(),
        format!(
            "{commit} HTTP/1.1\r\n{HEAD}content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{{}}"
        )
        .into(),
        format!("{commit} HTTP/1.1\r\n{HEAD}transfer-encoding: gzip, identity\r\n\r\n").into(),
        format!("{commit} HTTP/1.1\r\n{HEAD}{many}\r\n").into(),
        format!("{commit} HTTP/1.1\r\n{HEAD}a: {huge}\r\n\r\n").into(),
        format!("{commit}?{huge} HTTP/1.1\r\n{HEAD}\r\n").into(),
    ];
    for head in heads {
        let shown = String::from_utf8_lossy(&head[..head.len().min(200)]).into_owned();
        let mut raw = Raw::connect(coordinator.url()).await;
        raw.send(&head).await;
        raw.0.shutdown().await.ok();
        let answer = raw.rest().await;
        let refused = status(&answer).is_some_and(|status| (400..500).contains(&status));
        assert!(answer.is_empty() || refused, "{shown:?} gives {answer:?}");
    }
    is_unchanged(&coordinator, &id).await;
    let now = coordinator.get("/v1/transactions?limit=1000").await.body;
    assert_eq!(now, begun, "nothing was begun");
}

#[tokio::test]
async fn a_body_that_breaks_off_changes_nothing() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    let id = open(&coordinator).await;
    let begun = coordinator.get("/v1/transactions?limit=1000").await.body;
    let chunked = "transfer-encoding: chunked\r\n\r\n";
    for rest in [
        // All of it is JSON already, and still not all of it.
        "content-length: 3\r\n\r\n{}".to_owned(),
        "content-length: 100\r\n\r\n{\"commit\": true".to_owned(),
        format!("{chunked}2\r\n{{}}\r\n"),
        format!("{chunked}f\r\n{{}}"),
        format!("{chunked}x\r\n{{}}\r\n0\r\n\r\n"),
        format!("{chunked}-2\r\n{{}}\r\n0\r\n\r\n"),
        format!("{chunked}fffffffffffffffff\r\n{{}}\r\n0\r\n\r\n"),
        format!("{chunked}2\r\n{{}}x\r\n0\r\n\r\n"),
    ] {
        for target in ["/v1/transactions", &format!("/v1/transactions/{id}/commit")] {
            let mut raw = Raw::connect(coordinator.url()).await;
            raw.send(format!("POST {target} HTTP/1.1\r\n{HEAD}{rest}").as_bytes())
                .await;
            raw.0.shutdown().await.ok();
            let answer = raw.rest().await;
            let refused = status(&answer).is_some_and(|status| (400..500).contains(&status));
            assert!(answer.is_empty() || refused, "{rest:?} gives {answer:?}");
        }
    }
    is_unchanged(&coordinator, &id).await;
    let now = coordinator.get("/v1/transactions?limit=1000").await.body;
    assert_eq!(now, begun, "nothing was begun");
}

#[tokio::test]
async fn a_head_or_body_that_dribbles_is_given_up_and_nobody_waits_for_it() {
    let coordinator = Coordinator::start(&[]).await;
    let begun = Instant::now();
    let dribbles = async |first: String| {
        let mut raw = Raw::connect(coordinator.url()).await;
        raw.send(first.as_bytes()).await;
        let mut answer = Vec::new();
        // A byte now and then, until it is answered or cut off. After an answer the HTTP library may go on reading a chunked
        // body for as long as it comes; nothing of ours waits for it.
        loop {
            assert!(begun.elapsed() < SOON, "nobody gives it up");
            match timeout(Duration::from_millis(200), raw.0.read_buf(&mut answer)).await {
                Err(_) => raw.send(b"x").await,
                Ok(Ok(0) | Err(_)) => break,
                Ok(Ok(_)) if answer.ends_with(b"}") => break,
                Ok(Ok(_)) => {}
            }
        }
        String::from_utf8_lossy(&answer).into_owned()
    };
    let others = async {
        for _ in 0..20 {
            coordinator.open().await;
        }
    };
    let (head, body, chunk, ()) = tokio::join!(
        dribbles(begin("slow: ")),
        dribbles(begin("content-length: 1000\r\n\r\n")),
        dribbles(begin("transfer-encoding: chunked\r\n\r\n3e8\r\n")),
        others
    );
    assert!(head.is_empty() || status(&head) == Some(408), "{head}");
    for answer in [body, chunk] {
        assert_eq!(status(&answer), Some(408), "{answer}");
        assert!(answer.contains("\"code\":\"request-timeout\""), "{answer}");
    }
    assert!(begun.elapsed() < SOON, "given up in time");
}

#[tokio::test]
async fn requests_that_arrive_together_are_answered_in_their_order() {
    let coordinator = Coordinator::start(&[]).await;
    let id = coordinator.open().await;
    let mut raw = Raw::connect(coordinator.url()).await;
    let get = format!("GET /v1/transactions/{id} HTTP/1.1\r\nhost: x\r\n\r\n");
    let wrong = "GET /v1/transactions/4711 HTTP/1.1\r\nhost: x\r\n\r\n";
    let commit = format!(
        "POST /v1/transactions/{id}/commit HTTP/1.1\r\n{HEAD}content-length: 2\r\n\r\n{{}}"
    );
    let last = "GET /v1/nothing HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    raw.send(format!("{get}{wrong}{commit}{get}{last}").as_bytes())
        .await;
    let answers = raw.rest().await;
    let statuses: Vec<u16> = answers
        .match_indices("HTTP/1.1 ")
        .filter_map(|(at, _)| status(&answers[at..]))
        .collect();
    assert_eq!(statuses, [200, 400, 200, 200, 404], "{answers}");
}

#[tokio::test]
async fn a_client_that_asks_whether_to_continue_is_told_to() {
    let coordinator = Coordinator::start(&[]).await;
    let mut raw = Raw::connect(coordinator.url()).await;
    raw.send(begin("expect: 100-continue\r\ncontent-length: 21\r\n\r\n").as_bytes())
        .await;
    assert_eq!(raw.answer().await, (100, Value::Null));
    raw.send(br#"{"timeout_ms": 30000}"#).await;
    let (status, begun) = raw.answer().await;
    assert_eq!((status, &begun["state"]), (201, &json!("active")));
}

/// How many connections, and what the test's own process needs beside them.
const IDLE: u64 = 5_000;
const OWN: u64 = 200;

#[tokio::test]
async fn with_5000_idle_connections_api_and_admin_listener_answer() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(IDLE + OWN), hard).unwrap();
    let (allowed, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    assert!(
        allowed >= IDLE + OWN,
        "this needs {} open files, and `ulimit -Hn` allows {hard}",
        IDLE + OWN
    );
    let coordinator = Coordinator::start(&[]).await;
    let id = coordinator.open().await;
    let mut idle = Vec::new();
    for at in 0..IDLE {
        // Half of them have said nothing, the others have had an answer and stay.
        let mut raw = Raw::connect(coordinator.url()).await;
        if at % 2 == 0 {
            raw.send(format!("GET /v1/transactions/{id} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes())
                .await;
        }
        idle.push(raw);
    }
    for raw in idle.iter_mut().step_by(2) {
        assert_eq!(raw.answer().await.0, 200);
    }
    coordinator.commit(&id).await.is(200);
    for path in ["/healthz", "/readyz"] {
        Answer::of(coordinator.admin(Method::GET, path))
            .await
            .is(200);
    }
    drop(idle);
    coordinator.begin(&json!({"commit": true})).await.is(200);
}
