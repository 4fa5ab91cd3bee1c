//! Over real sockets, to a participant that answers whatever a test wants.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Notify,
};
use unanimous_protocol::{
    message::{Refusal, RefusalCode},
    trace::TraceContext,
    wire::BranchState,
};

use super::*;
use crate::courier::Http;
use RequestKind::{Abort, Commit, Prepare as Ask};

/// What the stub does once it has read a request.
#[derive(Clone)]
pub(super) enum Does {
    /// Writes this and waits for the next request.
    Write(Vec<u8>),
    /// Writes this and closes.
    WriteAndClose(Vec<u8>),
    /// Writes the first, and the second when it is told to.
    WriteThen(Vec<u8>, Arc<Notify>, Vec<u8>),
    /// Writes this, and then a line's end again and again, until the other end has gone.
    Drip(Vec<u8>),
    /// Nothing.
    Hang,
}

/// The smallest HTTP server that does.
pub(super) struct Stub {
    pub(super) endpoint: Endpoint,
    requests: Arc<Mutex<Vec<String>>>,
    pub(super) connections: Arc<AtomicUsize>,
    /// Connections whose other end has gone.
    pub(super) left: Arc<AtomicUsize>,
}

impl Stub {
    pub(super) async fn new(does: impl Fn(&str) -> Does + Send + Sync + 'static) -> Self {
        Self::at("127.0.0.1:0", does).await
    }

    pub(super) async fn at(
        address: &str,
        does: impl Fn(&str) -> Does + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stub = Self {
            endpoint: endpoint(&format!("http://{address}/unanimous/")),
            requests: Arc::default(),
            connections: Arc::default(),
            left: Arc::default(),
        };
        let (requests, connections) = (stub.requests.clone(), stub.connections.clone());
        let (left, does) = (stub.left.clone(), Arc::new(does));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                let (requests, left, does) = (requests.clone(), left.clone(), does.clone());
                tokio::spawn(async move {
                    serve(stream, &requests, &*does).await;
                    left.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        stub
    }

    pub(super) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

async fn serve(mut stream: TcpStream, requests: &Mutex<Vec<String>>, does: &impl Fn(&str) -> Does) {
    while let Some(request) = read_request(&mut stream).await {
        let what = does(&request);
        requests.lock().unwrap().push(request);
        match what {
            Does::Write(bytes) => {
                if stream.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            Does::WriteAndClose(bytes) => {
                let _ = stream.write_all(&bytes).await;
                let _ = stream.shutdown().await;
                return;
            }
            Does::WriteThen(first, told, second) => {
                stream.write_all(&first).await.unwrap();
                told.notified().await;
                if stream.write_all(&second).await.is_err() {
                    return;
                }
            }
            Does::Drip(first) => {
                stream.write_all(&first).await.unwrap();
                while stream.write_all(b"\n").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                return;
            }
            Does::Hang => {}
        }
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut text = Vec::new();
    loop {
        let mut bytes = [0; 4096];
        let read = stream
            .read(&mut bytes)
            .await
            .ok()
            .filter(|read| *read > 0)?;
        text.extend_from_slice(&bytes[..read]);
        let so_far = String::from_utf8_lossy(&text);
        if let Some((head, body)) = so_far.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .filter_map(|line| {
                    line.to_ascii_lowercase()
                        .strip_prefix("content-length: ")?
                        .parse()
                        .ok()
                })
                .next();
            if body.len() >= length.unwrap_or(0) {
                return Some(so_far.into_owned());
            }
        }
    }
}

pub(super) fn answer(status: &str, content_type: &str, body: &str) -> Does {
    let length = body.len();
    Does::Write(
        format!("HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n{body}")
            .into_bytes(),
    )
}

pub(super) fn json(body: &str) -> Does {
    answer("200 OK", "application/json", body)
}

pub(super) fn problem(status: u16, code: &str) -> Does {
    let body = format!(
        r#"{{"type":"urn:unanimous:problem:{code}","title":"t","status":{status},"detail":"d","code":"{code}"}}"#
    );
    answer(
        &format!("{status} Problem"),
        "application/problem+json",
        &body,
    )
}

pub(super) fn echo(number: u64, participant: &str, rest: &str) -> String {
    let transaction = transaction(number);
    format!(r#"{{"transaction":"{transaction}","participant":"{participant}",{rest}}}"#)
}

pub(super) fn outgoing(kind: RequestKind) -> Outgoing {
    Outgoing {
        branch: branch(1, "east"),
        request: request(kind),
        remaining_ms: 1234,
        begun_at_ms: 99,
        low_water: None,
        is_awaited: false,
        trace: TraceContext::begun(1),
    }
}

pub(super) fn http() -> Http {
    Http::new(&Limits::default()).unwrap()
}

async fn ended(kind: RequestKind, does: Does) -> Ended {
    let stub = Stub::new(move |_| does.clone()).await;
    http().call(&stub.endpoint, outgoing(kind)).await
}

fn is_heard_unknown(ended: &Ended) -> bool {
    matches!(ended, Ended::Heard(Delivery::Unknown(_)))
}

#[tokio::test]
async fn the_three_calls_are_as_the_contract_says_and_operations_go_to_the_letter() {
    let stub = Stub::new(|request| {
        let rest = match request {
            _ if request.contains("/prepare ") => r#""vote":"yes""#,
            _ if request.contains("/commit ") => r#""state":"committed""#,
            _ => r#""state":"aborted""#,
        };
        json(&echo(1, "east", rest))
    })
    .await;
    let http = http();
    let operations = r#"[ {"amount": 100000000000000000000.10, "b":"\u00e9", "b":1e2} ]"#;
    let prepare = Outgoing {
        request: Request::Prepare(Prepare {
            operations: Operations::parse(operations).unwrap(),
            session: Some("s-1".parse().unwrap()),
        }),
        low_water: Some(transaction(0)),
        trace: TraceContext::received(
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            Some("rojo=00f067aa0ba902b7"),
        )
        .unwrap(),
        ..outgoing(Ask)
    };
    let call = http.call(&stub.endpoint, prepare).await;
    assert_eq!(call, heard(Ask));
    assert_eq!(
        http.call(&stub.endpoint, outgoing(Commit)).await,
        heard(Commit)
    );
    assert_eq!(
        http.call(&stub.endpoint, outgoing(Abort)).await,
        heard(Abort)
    );

    let [prepare, commit, abort] = &stub.requests()[..] else {
        panic!("{:?}", stub.requests());
    };
    let (one, low) = (transaction(1), transaction(0));
    assert!(
        prepare.starts_with("POST /unanimous/v1/prepare HTTP/1.1\r\n"),
        "{prepare}"
    );
    assert!(
        prepare.contains("content-type: application/json\r\n"),
        "{prepare}"
    );
    assert!(
        prepare.contains("traceparent: 00-0af7651916cd43dd8448eb211c80319c-")
            && prepare.contains("tracestate: rojo=00f067aa0ba902b7\r\n"),
        "{prepare}"
    );
    assert!(
        prepare.ends_with(&format!(
            r#"{{"transaction":"{one}","participant":"east","operations":{operations},"remaining_ms":1234,"begun_at_ms":99,"session":"s-1","low_water":"{low}"}}"#
        )),
        "{prepare}"
    );
    assert!(
        commit.starts_with("POST /unanimous/v1/commit HTTP/1.1\r\n"),
        "{commit}"
    );
    assert!(!commit.contains("tracestate"), "{commit}");
    for body in [commit, abort] {
        assert!(body.ends_with(&format!(
            r#"{{"transaction":"{one}","participant":"east"}}"#
        )));
    }
    assert!(
        abort.starts_with("POST /unanimous/v1/abort HTTP/1.1\r\n"),
        "{abort}"
    );
    assert_eq!(
        stub.connections.load(Ordering::SeqCst),
        1,
        "the connection is kept"
    );
}

#[tokio::test]
async fn only_an_exact_echo_is_an_answer() {
    let vote = |number, participant: &str| json(&echo(number, participant, r#""vote":"yes""#));
    assert_eq!(ended(Ask, vote(1, "east")).await, heard(Ask));
    for (what, does) in [
        ("an empty 200", json("")),
        ("an empty object", json("{}")),
        (
            "a page",
            answer("200 OK", "text/html", "<html>Welcome</html>"),
        ),
        ("another transaction", vote(2, "east")),
        ("another participant", vote(1, "west")),
        (
            "a 201",
            answer(
                "201 Created",
                "application/json",
                &echo(1, "east", r#""vote":"yes""#),
            ),
        ),
        (
            "an empty 204",
            Does::Write(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()),
        ),
        ("a 500", answer("500 Oops", "text/plain", "oops")),
        (
            "a proxy's 404",
            answer("404 Not Found", "text/html", "<html/>"),
        ),
        ("a 503 of ours", problem(503, "key-busy")),
    ] {
        for kind in [Ask, Commit, Abort] {
            let ended = ended(kind, does.clone()).await;
            assert!(is_heard_unknown(&ended), "{what} to {kind:?}: {ended:?}");
        }
    }
}

#[tokio::test]
async fn the_problems_that_are_answers_are_read_as_such() {
    for (kind, does, reply) in [
        (Commit, problem(409, "vote-lost"), Reply::VoteLost),
        (
            Commit,
            problem(409, "outcome-differs"),
            Reply::OutcomeDiffers,
        ),
        (
            Abort,
            problem(409, "outcome-differs"),
            Reply::OutcomeDiffers,
        ),
        (
            Ask,
            problem(422, "prepare-changed"),
            Reply::Vote(Vote::No(Refusal {
                code: RefusalCode::Refused,
                reason: "prepare-changed: d".into(),
            })),
        ),
    ] {
        assert_eq!(
            ended(kind, does).await,
            Ended::Heard(Delivery::Answered(reply))
        );
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let target = Stub::new(|_| json(&echo(1, "east", r#""vote":"yes","state":"committed""#))).await;
    for status in [
        "301 Moved",
        "302 Found",
        "303 See Other",
        "307 Temporary",
        "308 Permanent",
    ] {
        let location = format!("{}/v1/commit", target.endpoint);
        let redirect =
            format!("HTTP/1.1 {status}\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
        for kind in [Ask, Commit] {
            let ended = ended(kind, Does::Write(redirect.clone().into_bytes())).await;
            assert!(is_heard_unknown(&ended), "{status}: {ended:?}");
        }
    }
    assert_eq!(target.connections.load(Ordering::SeqCst), 0);
    assert!(target.requests().is_empty());
}

#[tokio::test]
async fn refused_means_that_the_connection_was_refused_and_nothing_else() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = endpoint(&format!("http://{}", listener.local_addr().unwrap()));
    drop(listener);
    let http = http();
    for kind in [Ask, Commit, Abort] {
        let ended = http.call(&nobody, outgoing(kind)).await;
        let Ended::Refused(reason) = &ended else {
            panic!("{ended:?}");
        };
        assert!(reason.contains("refused"), "{reason}");
        assert!(
            !reason.contains("127.0.0.1:"),
            "the URL is left out: {reason}"
        );
    }
    let no_such_host = endpoint("http://participant.invalid:1");
    let ended = http.call(&no_such_host, outgoing(Ask)).await;
    assert!(matches!(ended, Ended::Silent(_)), "{ended:?}");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_silence() {
    let whole = echo(1, "east", r#""state":"committed""#);
    for (what, bytes) in [
        ("nothing", String::new()),
        ("half a status line", "HTTP/1.1 20".into()),
        (
            "no body",
            "HTTP/1.1 200 OK\r\ncontent-length: 200\r\n\r\n".into(),
        ),
        (
            "all but a byte, though the JSON is whole",
            format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{whole}",
                whole.len() + 1
            ),
        ),
        (
            "a chunked body without its end",
            format!(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{whole}\r\n",
                whole.len()
            ),
        ),
        ("another language", "SSH-2.0-OpenSSH_9.2\r\n".into()),
    ] {
        let ended = ended(Commit, Does::WriteAndClose(bytes.into_bytes())).await;
        assert!(matches!(ended, Ended::Silent(_)), "{what}: {ended:?}");
    }
}

#[tokio::test]
async fn an_answer_of_a_megabyte_is_not_read_to_its_end() {
    let padding = " ".repeat(1024 * 1024);
    let long = format!("{padding}{}", echo(1, "east", r#""state":"committed""#));
    let body = match json(&long) {
        Does::Write(bytes) => bytes,
        Does::WriteAndClose(_) | Does::WriteThen(..) | Does::Drip(_) | Does::Hang => unreachable!(),
    };
    let stub = Stub::new(move |_| Does::Write(body.clone())).await;
    let http = http();
    let ended = http.call(&stub.endpoint, outgoing(Commit)).await;
    assert!(is_heard_unknown(&ended), "{ended:?}");
    // The connection is dropped, so the next call needs another one.
    http.call(&stub.endpoint, outgoing(Commit)).await;
    assert_eq!(stub.connections.load(Ordering::SeqCst), 2);

    let fits = format!(
        "{}{}",
        " ".repeat(60 * 1024),
        echo(1, "east", r#""state":"committed""#)
    );
    assert_eq!(super::http::ended(Commit, json(&fits)).await, heard(Commit));
}

#[tokio::test]
async fn a_cut_call_is_unknown_and_its_connection_is_dropped() {
    let stub = Stub::new(|_| Does::Hang).await;
    let limits = Limits {
        outcome_timeout: Duration::from_millis(100),
        ..Limits::default()
    };
    let http = Http::new(&limits).unwrap();
    let couriers = Couriers::new(
        limits,
        Arc::new(http),
        Handle::current(),
        1,
        Calls::new().unwrap(),
    );
    couriers.register(&name("east"), stub.endpoint.clone());
    let (report, reported) = tokio::sync::oneshot::channel();
    couriers.send(Call {
        branch: branch(1, "east"),
        request: Request::Commit,
        attempt: 1,
        pace: Pace::Backoff,
        deadline: None,
        begun_at_ms: 0,
        low_water: None,
        is_awaited: false,
        trace: TraceContext::begun(1),
        on_done: Box::new(move |delivery| report.send(delivery).unwrap()),
    });
    let delivery = reported.await.unwrap();
    assert_eq!(
        delivery,
        Delivery::Unknown("no answer within 100 ms".into())
    );
    let left = async {
        while stub.left.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), left)
        .await
        .expect("the connection of the call that was given up is closed");
    assert_eq!(
        stub.requests().len(),
        1,
        "and it was not repeated behind our back"
    );
}

#[tokio::test]
async fn connections_are_kept_and_calls_that_meet_have_one_each() {
    let stub = Stub::new(|_| json(&echo(1, "east", r#""state":"aborted""#))).await;
    let http = http();
    for _ in 0..20 {
        assert_eq!(
            http.call(&stub.endpoint, outgoing(Abort)).await,
            heard(Abort)
        );
    }
    assert_eq!(stub.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_participant_describes_itself_or_something_else_is_there() {
    let stub = Stub::new(|_| json(r#"{"participant":"east","protocol":1,"more":[]}"#)).await;
    let described = http().describe(&stub.endpoint).await.unwrap();
    assert_eq!(
        (described.participant, described.protocol),
        (name("east"), 1)
    );
    assert!(stub.requests()[0].starts_with("GET /unanimous/v1/describe HTTP/1.1\r\n"));
    for does in [
        json("{}"),
        answer("404 Not Found", "text/plain", "?"),
        json(r#"{"participant":"E"}"#),
    ] {
        let stub = Stub::new(move |_| does.clone()).await;
        assert!(http().describe(&stub.endpoint).await.is_err());
    }
}

#[tokio::test]
async fn a_branch_is_unknown_only_when_its_participant_says_so() {
    let of = branch(1, "east");
    let ask = async |does: Does| {
        let stub = Stub::new(move |_| does.clone()).await;
        let state = http().branch_state(&stub.endpoint, &of).await;
        let path = format!("GET /unanimous/v1/branches/{} HTTP/1.1\r\n", of.transaction);
        assert!(stub.requests()[0].starts_with(&path));
        state.map(|state| state.map(|state| state.state))
    };
    let prepared = r#""state":"prepared","since":"2026-01-02T03:04:05.678Z""#;
    assert_eq!(
        ask(json(&echo(1, "east", prepared))).await,
        Ok(Some(BranchState::Prepared))
    );
    assert_eq!(ask(problem(404, "unknown-branch")).await, Ok(None));
    for does in [
        json(&echo(2, "east", prepared)),
        json(&echo(1, "west", prepared)),
        problem(404, "unknown-participant"),
        answer("404 Not Found", "text/html", "<html/>"),
        answer(
            "404 Not Found",
            "application/json",
            r#"{"code":"unknown-branch"}"#,
        ),
        json(""),
    ] {
        assert!(ask(does).await.is_err());
    }
}
