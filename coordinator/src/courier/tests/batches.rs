//! Batches over real sockets, to a participant that answers whatever a test wants.

use std::sync::atomic::Ordering;

use futures_util::future::join_all;
use serde_json::Value;
use tokio::sync::Notify;
use unanimous_protocol::wire::Problem;

use super::{
    http::{Does, Stub, answer, echo, http, json, outgoing, problem},
    *,
};
use crate::courier::{Http, rides::RIDE_MAX};
use RequestKind::{Abort, Commit, Prepare as Ask};

const SOON: Duration = Duration::from_secs(10);

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let waited = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let waited = tokio::time::timeout(SOON, waited).await;
    assert!(waited.is_ok(), "not within {SOON:?}: {what}");
}

/// What is in a request for a batch, if it is one.
fn messages(request: &str) -> Option<Vec<Value>> {
    let (head, body) = request.split_once("\r\n\r\n")?;
    if !head.starts_with("POST /unanimous/v1/batch ") {
        return None;
    }
    let body: Value = serde_json::from_str(body).unwrap();
    Some(body["messages"].as_array().unwrap().clone())
}

fn described(features: &str) -> Does {
    json(&format!(
        r#"{{"participant":"east","protocol":1,"features":[{features}]}}"#
    ))
}

/// The status and body that a participant that agrees gives to a message, alone or not.
fn agrees(kind: &str, transaction: &str) -> (u16, String) {
    let rest = match kind {
        "prepare" => r#""vote":"yes""#,
        "commit" => r#""state":"committed""#,
        _ => r#""state":"aborted""#,
    };
    let body = format!(r#"{{"transaction":"{transaction}","participant":"east",{rest}}}"#);
    (200, body)
}

fn line_of(transaction: &str, (status, body): (u16, String)) -> String {
    format!(
        "{{\"transaction\":\"{transaction}\",\"participant\":\"east\",\"status\":{status},\"body\":{body}}}\n"
    )
}

fn text<'a>(message: &'a Value, member: &str) -> &'a str {
    message[member].as_str().unwrap()
}

fn agreeing_line(message: &Value) -> String {
    let transaction = text(message, "transaction");
    line_of(transaction, agrees(text(message, "kind"), transaction))
}

fn lines(text: &str) -> Does {
    answer("200 OK", "application/x-ndjson", text)
}

/// A request that is no batch, of a participant that agrees and announces batches.
fn agrees_singly(request: &str) -> Does {
    if request.starts_with("GET ") {
        return described(r#""batch""#);
    }
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    let path = head.split(' ').nth(1).unwrap();
    let body: Value = serde_json::from_str(body).unwrap();
    let kind = path.rsplit('/').next().unwrap();
    json(&agrees(kind, text(&body, "transaction")).1)
}

/// A participant that answers batches like this, and agrees to all else.
async fn answers(batch: impl Fn(&[Value]) -> Does + Send + Sync + 'static) -> (Stub, Http) {
    let stub = Stub::new(move |request| match messages(request) {
        Some(messages) => batch(&messages),
        None => agrees_singly(request),
    })
    .await;
    let http = http();
    http.describe(&stub.endpoint).await.unwrap();
    (stub, http)
}

async fn agrees_to_batches() -> (Stub, Http) {
    answers(|messages| lines(&messages.iter().map(agreeing_line).collect::<String>())).await
}

fn call_of(number: u64, kind: RequestKind) -> Outgoing {
    Outgoing {
        branch: branch(number, "east"),
        ..outgoing(kind)
    }
}

/// Calls of one moment.
async fn together(stub: &Stub, http: &Http, calls: Vec<Outgoing>) -> Vec<Ended> {
    let calls = calls
        .into_iter()
        .map(|call| http.call(&stub.endpoint, call));
    let ended = tokio::time::timeout(SOON, join_all(calls)).await;
    ended.expect("calls that wait for nobody end")
}

fn prepares(numbers: std::ops::Range<u64>) -> Vec<Outgoing> {
    numbers.map(|number| call_of(number, Ask)).collect()
}

/// How many messages each batch had, and how many calls came alone.
fn seen(stub: &Stub) -> (Vec<usize>, usize) {
    let requests = stub.requests();
    let batches: Vec<usize> = requests
        .iter()
        .filter_map(|request| Some(messages(request)?.len()))
        .collect();
    let posts = requests
        .iter()
        .filter(|request| request.starts_with("POST"));
    let singles = posts.count() - batches.len();
    (batches, singles)
}

fn is_unknown(ended: &Ended) -> bool {
    matches!(ended, Ended::Heard(Delivery::Unknown(_)))
}

#[tokio::test]
async fn calls_of_one_moment_leave_as_one_batch_and_a_call_alone_leaves_alone() {
    let (stub, http) = agrees_to_batches().await;
    assert_eq!(together(&stub, &http, prepares(0..1)).await, [heard(Ask)]);
    assert_eq!(seen(&stub), (vec![], 1));
    let ended = together(&stub, &http, prepares(0..20)).await;
    assert_eq!(ended, vec![heard(Ask); 20]);
    assert_eq!(seen(&stub), (vec![20], 1));
    assert!(stub.connections.load(Ordering::SeqCst) <= 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_batch_takes_along_what_other_tasks_are_about_to_send() {
    let (stub, http) = agrees_to_batches().await;
    let endpoint = stub.endpoint.clone();
    // From a worker, so that what it starts is ready before any of it runs.
    let calls = tokio::spawn(async move {
        let calls = prepares(0..10).into_iter();
        let calls = calls.map(|call| tokio::spawn(http.call(&endpoint, call)));
        calls.collect::<Vec<_>>()
    });
    for call in calls.await.unwrap() {
        assert_eq!(call.await.unwrap(), heard(Ask));
    }
    assert_eq!(seen(&stub), (vec![10], 0));
}

#[tokio::test]
async fn a_message_is_the_single_request_with_its_kind_and_its_trace_and_operations_to_the_letter()
{
    let (stub, http) = agrees_to_batches().await;
    let operations = r#"[ {"amount": 100000000000000000000.10, "b":"\u00e9", "b":1e2} ]"#;
    let given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let prepare = Outgoing {
        request: Request::Prepare(Prepare {
            operations: Operations::parse(operations).unwrap(),
            session: Some("s\"1".parse().unwrap()),
        }),
        low_water: Some(transaction(0)),
        trace: TraceContext::received(given, Some("rojo=00f067aa0ba902b7")).unwrap(),
        ..call_of(1, Ask)
    };
    together(&stub, &http, vec![prepare, call_of(2, Ask)]).await;
    together(&stub, &http, vec![call_of(3, Commit), call_of(4, Abort)]).await;
    let requests = stub.requests();
    let [_, prepares, outcomes] = &requests[..] else {
        panic!("{requests:?}");
    };
    assert!(prepares.contains("content-type: application/json\r\n"));
    assert!(prepares.contains(&format!(r#""operations":{operations},"#)));
    let batch = messages(prepares).unwrap();
    let (one, low) = (transaction(1).to_string(), transaction(0).to_string());
    let members = [
        ("kind", "prepare"),
        ("transaction", &one),
        ("participant", "east"),
        ("session", "s\"1"),
        ("low_water", &low),
        ("tracestate", "rojo=00f067aa0ba902b7"),
    ];
    for (member, value) in members {
        assert_eq!(batch[0][member], value);
    }
    assert_eq!(batch[0]["begun_at_ms"], 99);
    let remaining = batch[0]["remaining_ms"].as_u64().unwrap();
    assert!((1000..=1234).contains(&remaining), "{remaining}");
    let parent = text(&batch[0], "traceparent");
    assert!(
        parent.starts_with(&given[..36]) && parent != given,
        "{parent}"
    );
    assert_ne!(batch[1]["traceparent"], batch[0]["traceparent"]);
    let kinds: Vec<_> = messages(outcomes)
        .unwrap()
        .iter()
        .map(|message| text(message, "kind").to_owned())
        .collect();
    assert_eq!(kinds, ["commit", "abort"]);
}

#[tokio::test]
async fn each_line_is_judged_as_the_answer_to_its_call_alone() {
    let problem_of = |status: u16, code: &str| {
        serde_json::to_string(&Problem::new(status, code, "why")).unwrap()
    };
    let no = r#""vote":"no","code":"conflict","reason":"held""#;
    let said = vec![
        (200, echo(0, "east", r#""vote":"yes""#)),
        (200, echo(1, "east", no)),
        (200, echo(2, "east", r#""vote":"read_only""#)),
        // Of another branch inside.
        (200, echo(9, "east", r#""vote":"yes""#)),
        (200, echo(4, "west", r#""vote":"yes""#)),
        (200, echo(5, "east", r#""state":"committed""#)),
        (200, "{}".to_owned()),
        (200, "null".to_owned()),
        (503, problem_of(503, "key-busy")),
        (400, problem_of(400, "invalid-request")),
        (422, problem_of(422, "prepare-changed")),
        (409, problem_of(409, "vote-lost")),
        // With another status than its own.
        (422, problem_of(400, "invalid-request")),
        (302, "{}".to_owned()),
    ];
    let count = said.len() as u64;
    let in_batch = said.clone();
    let (stub, http) = answers(move |messages| {
        // Not in the order of the messages.
        let line = |message: &Value| {
            let of = text(message, "transaction");
            let at = (0..count).find(|number| transaction(*number).to_string() == of);
            line_of(of, in_batch[at.unwrap() as usize].clone())
        };
        lines(&messages.iter().rev().map(line).collect::<String>())
    })
    .await;
    let ended = together(&stub, &http, prepares(0..count)).await;
    assert_eq!(seen(&stub).0, [said.len()]);
    for ((number, (status, body)), ended) in (0..).zip(said).zip(ended) {
        let content_type = match status {
            200 => "application/json",
            _ => "application/problem+json",
        };
        let alone = answer(&format!("{status} Said"), content_type, &body);
        let alone = Stub::new(move |_| alone.clone()).await;
        let alone = http.call(&alone.endpoint, call_of(number, Ask)).await;
        assert_eq!(ended, alone, "{status} {body}");
    }
}

#[tokio::test]
async fn outcomes_in_a_batch_are_acknowledged_or_alarm_as_alone() {
    let (stub, http) = answers(|messages| {
        let line = |message: &Value| match text(message, "kind") {
            "commit" => agreeing_line(message),
            _ => line_of(
                text(message, "transaction"),
                (
                    409,
                    serde_json::to_string(&Problem::new(409, "outcome-differs", "")).unwrap(),
                ),
            ),
        };
        lines(&messages.iter().map(line).collect::<String>())
    })
    .await;
    let ended = together(&stub, &http, vec![call_of(1, Commit), call_of(2, Abort)]).await;
    let differs = Ended::Heard(Delivery::Answered(Reply::OutcomeDiffers));
    assert_eq!(ended, [heard(Commit), differs]);
}

#[tokio::test]
async fn only_the_first_line_that_echoes_a_branch_of_the_batch_counts() {
    let (stub, http) = answers(|messages| {
        let id = |at: usize| text(&messages[at], "transaction").to_owned();
        let no = |of: &str| {
            let body = format!(
                r#"{{"transaction":"{of}","participant":"east","vote":"no","reason":"late"}}"#
            );
            line_of(of, (200, body))
        };
        let strange = [
            "\n".to_owned(),
            "<html>\n".to_owned(),
            "{}\n".to_owned(),
            // Nobody's.
            no(&transaction(77).to_string()),
            no(&id(0).to_uppercase()),
            no(&id(0)).replace("east", "west"),
            agreeing_line(&messages[0]),
            // Twice.
            no(&id(0)),
            // Without its end.
            agreeing_line(&messages[2]).trim_end().to_owned(),
        ];
        lines(&strange.concat())
    })
    .await;
    let ended = together(&stub, &http, prepares(0..3)).await;
    assert_eq!((&ended[0], &ended[2]), (&heard(Ask), &heard(Ask)));
    assert!(is_unknown(&ended[1]), "it has no line: {ended:?}");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_silence_for_those_that_are_missing() {
    let (stub, http) = answers(|messages| {
        let whole = agreeing_line(&messages[0]);
        let half = agreeing_line(&messages[1]);
        // All of the second line but its end, and the connection goes.
        let sent = format!("{whole}{}", half.trim_end());
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n",
            sent.len() + 1
        );
        Does::WriteAndClose(format!("{head}{sent}").into_bytes())
    })
    .await;
    let ended = together(&stub, &http, prepares(0..3)).await;
    assert_eq!(ended[0], heard(Ask));
    // One request was lost: the breaker is to hear of one silence.
    let silent = |ended: &&Ended| matches!(ended, Ended::Silent(_));
    assert_eq!(ended.iter().filter(silent).count(), 1, "{ended:?}");
    assert_eq!(ended.iter().filter(|it| is_unknown(it)).count(), 1);
}

#[tokio::test]
async fn a_line_that_is_too_long_costs_only_its_own_call() {
    let (stub, http) = answers(|messages| {
        let [first, last] = [0, 2].map(|at| agreeing_line(&messages[at]));
        let mut long = agreeing_line(&messages[1]);
        long.insert_str(1, &format!("\"padding\":\"{}\",", "x".repeat(140_000)));
        lines(&format!("{first}{long}{last}"))
    })
    .await;
    let ended = together(&stub, &http, prepares(0..3)).await;
    assert_eq!((&ended[0], &ended[2]), (&heard(Ask), &heard(Ask)));
    assert!(is_unknown(&ended[1]), "{ended:?}");
}

#[tokio::test]
async fn an_answer_that_drips_on_keeps_no_connection_once_all_are_told() {
    let (stub, http) = answers(|messages| {
        let all = messages.iter().map(agreeing_line).collect::<String>();
        Does::Drip(format!("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n{all}").into_bytes())
    })
    .await;
    let ended = together(&stub, &http, prepares(0..3)).await;
    assert_eq!(ended, vec![heard(Ask); 3]);
    let left = || stub.left.load(Ordering::SeqCst) >= 1;
    until("the connection is given up", left).await;
}

#[tokio::test]
async fn an_answer_that_drips_holds_up_nobody() {
    let first =
        |message: &Value| text(message, "transaction") < transaction(100).to_string().as_str();
    let (stub, http) = answers(move |messages| {
        if messages.iter().any(first) {
            Does::Drip(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n".to_vec())
        } else {
            lines(&messages.iter().map(agreeing_line).collect::<String>())
        }
    })
    .await;
    let mut unanswered = Vec::new();
    for number in 0..6 {
        unanswered.push(tokio::spawn(
            http.call(&stub.endpoint, call_of(number, Ask)),
        ));
        let sent = unanswered.len();
        if number % 2 == 1 {
            let have_left = || seen(&stub).0.iter().sum::<usize>() + seen(&stub).1 == sent;
            until("they have left", have_left).await;
        }
    }
    let ended = together(&stub, &http, prepares(100..103)).await;
    assert_eq!(ended, vec![heard(Ask); 3]);
    assert!(unanswered.iter().all(|call| !call.is_finished()));
    unanswered.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn an_answer_without_end_is_unknown_for_those_that_are_missing() {
    for padding in ["x".repeat(1024 * 1024), "{}\n".repeat(1024 * 1024)] {
        let (stub, http) = answers(move |messages| {
            let [first, last] = [0, 1].map(|at| agreeing_line(&messages[at]));
            lines(&format!("{first}{padding}{last}"))
        })
        .await;
        let ended = together(&stub, &http, prepares(0..2)).await;
        assert_eq!(ended[0], heard(Ask));
        assert!(is_unknown(&ended[1]), "{ended:?}");
    }
}

#[tokio::test]
async fn a_batch_that_is_answered_as_a_whole_by_anything_but_200_answers_nobody() {
    let strange = [
        problem(500, "internal"),
        problem(503, "overloaded"),
        problem(409, "vote-lost"),
        answer("401 Unauthorized", "text/html", "<html>"),
        answer("302 Found", "text/html", ""),
        answer("202 Accepted", "application/x-ndjson", ""),
    ];
    for does in strange {
        let (stub, http) = answers(move |_| does.clone()).await;
        let ended = together(&stub, &http, prepares(0..3)).await;
        assert!(ended.iter().all(is_unknown), "{ended:?}");
        assert_eq!(seen(&stub), (vec![3], 0));
        assert!(stub.endpoint.announced().takes_batches());
    }
}

#[tokio::test]
async fn a_batch_that_is_clearly_refused_is_sent_again_one_by_one_at_once() {
    for status in [400, 422] {
        let (stub, http) = answers(move |_| problem(status, "invalid-request")).await;
        let ended = together(&stub, &http, prepares(0..3)).await;
        assert_eq!(ended, vec![heard(Ask); 3], "{status}");
        assert_eq!(seen(&stub), (vec![3], 3), "{status}");
        assert!(stub.endpoint.announced().takes_batches());
    }
}

#[tokio::test]
async fn where_nobody_takes_batches_any_more_calls_are_single_until_it_says_that_it_does() {
    for status in [404, 405, 413, 415] {
        let (stub, http) = answers(move |_| problem(status, "not-found")).await;
        let ended = together(&stub, &http, prepares(0..5)).await;
        assert_eq!(ended, vec![heard(Ask); 5], "{status}");
        assert_eq!(seen(&stub), (vec![5], 5), "{status}");
        let ended = together(&stub, &http, prepares(5..10)).await;
        assert_eq!(ended, vec![heard(Ask); 5], "{status}");
        assert_eq!(seen(&stub), (vec![5], 10), "{status}");
        http.describe(&stub.endpoint).await.unwrap();
        together(&stub, &http, prepares(0..5)).await;
        assert_eq!(seen(&stub), (vec![5, 5], 15), "{status}");
    }
}

#[tokio::test]
async fn who_announces_nothing_is_never_sent_a_batch() {
    for features in ["", r#""batches","sql""#] {
        let stub = Stub::new(move |request| match messages(request) {
            Some(_) => unreachable!("nobody announced it"),
            None if request.starts_with("GET ") => described(features),
            None => agrees_singly(request),
        })
        .await;
        let http = http();
        // Nor before it was asked.
        for _ in 0..2 {
            let ended = together(&stub, &http, prepares(0..5)).await;
            assert_eq!(ended, vec![heard(Ask); 5]);
            http.describe(&stub.endpoint).await.unwrap();
        }
    }
}

#[tokio::test]
async fn whoever_answers_after_a_silence_is_asked_what_he_can() {
    let (first, http) = agrees_to_batches().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let nobody = endpoint(&format!("http://{address}/unanimous"));
    let ended = http.call(&nobody, call_of(1, Ask)).await;
    assert!(matches!(ended, Ended::Refused(_)), "{ended:?}");
    let second = Stub::at(&address, agrees_singly).await;
    assert_eq!(http.call(&nobody, call_of(1, Ask)).await, heard(Ask));
    until("it was asked", || nobody.announced().takes_batches()).await;
    // Who was heard all the time is not asked.
    let asked = |stub: &Stub| {
        let requests = stub.requests();
        requests.iter().filter(|it| it.starts_with("GET ")).count()
    };
    together(&first, &http, prepares(0..1)).await;
    assert_eq!((asked(&first), asked(&second)), (1, 1));
}

/// Agrees to all, to the call of this number only when told.
async fn agrees_slowly_to(number: u64) -> (Stub, Http, Arc<Notify>) {
    let told = Arc::new(Notify::new());
    let notified = Arc::clone(&told);
    let slow = transaction(number).to_string();
    let (stub, http) = answers(move |messages| {
        let is_slow = |message: &&Value| text(message, "transaction") == slow;
        let quick = messages.iter().filter(|it| !is_slow(it)).map(agreeing_line);
        let quick = quick.collect::<String>();
        let Some(slowest) = messages.iter().find(is_slow).map(agreeing_line) else {
            return lines(&quick);
        };
        let length = quick.len() + slowest.len();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{quick}");
        Does::WriteThen(
            head.into_bytes(),
            Arc::clone(&notified),
            slowest.into_bytes(),
        )
    })
    .await;
    (stub, http, told)
}

#[tokio::test]
async fn a_line_does_not_wait_for_the_slowest_nor_do_calls_that_come_later() {
    let (stub, http, told) = agrees_slowly_to(1).await;
    let slowest = tokio::spawn(http.call(&stub.endpoint, call_of(1, Ask)));
    let ended = together(&stub, &http, prepares(2..6)).await;
    assert_eq!(ended, vec![heard(Ask); 4]);
    assert_eq!(seen(&stub).0, [5], "it was with them");
    for _ in 0..5 {
        let ended = together(&stub, &http, prepares(10..13)).await;
        assert_eq!(ended, vec![heard(Ask); 3]);
    }
    assert!(!slowest.is_finished());
    told.notify_one();
    assert_eq!(slowest.await.unwrap(), heard(Ask));
}

#[tokio::test]
async fn calls_that_are_not_answered_hold_up_nobody() {
    // Alone and in batches, prepares and commits.
    let never =
        |message: &Value| text(message, "transaction") < transaction(100).to_string().as_str();
    let stub = Stub::new(move |request| match messages(request) {
        Some(messages) if messages.iter().any(never) => Does::Hang,
        Some(messages) => lines(&messages.iter().map(agreeing_line).collect::<String>()),
        None if request.starts_with("GET ") => agrees_singly(request),
        None => {
            let (_, body) = request.split_once("\r\n\r\n").unwrap();
            let body: Value = serde_json::from_str(body).unwrap();
            if never(&body) {
                Does::Hang
            } else {
                agrees_singly(request)
            }
        }
    })
    .await;
    let http = http();
    http.describe(&stub.endpoint).await.unwrap();
    let have_left = || {
        let (batches, singles) = seen(&stub);
        batches.iter().sum::<usize>() + singles
    };
    for kind in [Ask, Commit] {
        let mut unanswered = Vec::new();
        let before = have_left();
        for number in 0..12 {
            let call = http.call(&stub.endpoint, call_of(number, kind));
            unanswered.push(tokio::spawn(call));
            if number % 3 == 2 {
                let sent = before + unanswered.len();
                until("they have left", || have_left() == sent).await;
            }
        }
        for first in [100, 200, 300] {
            let calls = (first..first + 3).map(|number| call_of(number, kind));
            let ended = together(&stub, &http, calls.collect()).await;
            assert_eq!(ended, vec![heard(kind); 3]);
        }
        assert!(unanswered.iter().all(|call| !call.is_finished()));
        unanswered.iter().for_each(tokio::task::JoinHandle::abort);
    }
    // And whoever gives up closes his connections.
    let left = || stub.left.load(Ordering::SeqCst);
    until("what nobody listens to is given up", || left() >= 8).await;
}

/// Of each batch: its prepares, and all its messages; and how many left alone.
fn kinds_seen(stub: &Stub) -> (Vec<(usize, usize)>, usize) {
    let of_batch = |messages: Vec<Value>| {
        let prepares = messages.iter().filter(|it| text(it, "kind") == "prepare");
        (prepares.count(), messages.len())
    };
    let requests = stub.requests();
    let batches = requests
        .iter()
        .filter_map(|request| messages(request).map(of_batch));
    (batches.collect(), seen(stub).1)
}

#[tokio::test]
async fn outcomes_leave_with_prepares_that_leave_or_with_one_that_somebody_waits_for() {
    let (stub, http) = agrees_to_batches().await;
    let kinds = [Commit, Ask, Abort, Ask, Commit, Abort];
    let calls = (0..).zip(kinds).map(|(number, kind)| call_of(number, kind));
    let ended = together(&stub, &http, calls.collect()).await;
    assert_eq!(ended, kinds.map(heard));
    assert_eq!(kinds_seen(&stub), (vec![(2, 6)], 0));

    // One that somebody waits for leaves with whatever outcomes there are.
    let (stub, http) = agrees_to_batches().await;
    let awaited = Outgoing {
        is_awaited: true,
        ..call_of(0, Commit)
    };
    let ended = together(&stub, &http, vec![call_of(1, Abort), awaited]).await;
    assert_eq!(ended, [heard(Abort), heard(Commit)]);
    assert_eq!(kinds_seen(&stub), (vec![(0, 2)], 0));
}

#[tokio::test]
async fn outcomes_without_a_ride_leave_together_when_their_time_has_come() {
    let (stub, http) = agrees_to_batches().await;
    let began = std::time::Instant::now();
    let calls = vec![call_of(0, Commit), call_of(1, Abort), call_of(2, Commit)];
    let ended = together(&stub, &http, calls).await;
    assert_eq!(ended, [heard(Commit), heard(Abort), heard(Commit)]);
    assert_eq!(kinds_seen(&stub), (vec![(0, 3)], 0));
    assert!(began.elapsed() >= RIDE_MAX);
    // Then one leaves at once: no timer, so no time passes where it does not run.
    let ended = together(&stub, &http, vec![call_of(3, Commit)]).await;
    assert_eq!(ended, [heard(Commit)]);
    assert_eq!(kinds_seen(&stub), (vec![(0, 3)], 1));
}

#[tokio::test]
async fn a_batch_is_bounded_by_its_messages_and_by_its_bytes_and_a_large_call_leaves_alone() {
    let (stub, http) = agrees_to_batches().await;
    let ended = together(&stub, &http, prepares(0..200)).await;
    assert_eq!(ended, vec![heard(Ask); 200]);
    let (batches, singles) = seen(&stub);
    assert_eq!(batches.iter().sum::<usize>() + singles, 200);
    assert!(batches.iter().all(|count| *count <= 64), "{batches:?}");
    assert!(batches.len() <= 5, "{batches:?}");

    let (stub, http) = agrees_to_batches().await;
    let large = |number: u64, bytes: usize| Outgoing {
        request: Request::Prepare(Prepare {
            operations: Operations::parse(&format!("[\"{}\"]", "x".repeat(bytes))).unwrap(),
            session: None,
        }),
        ..call_of(number, Ask)
    };
    let sizes = [100_000, 100_000, 100_000, 300_000, 10];
    let calls = (0..).zip(sizes).map(|(number, bytes)| large(number, bytes));
    let ended = together(&stub, &http, calls.collect()).await;
    assert_eq!(ended, vec![heard(Ask); 5]);
    for request in stub.requests() {
        let (_, body) = request.split_once("\r\n\r\n").unwrap();
        let is_batch = messages(&request).is_some();
        assert!(!is_batch || body.len() <= 256 * 1024, "{}", body.len());
    }
    assert_eq!(seen(&stub), (vec![2], 3));
}

#[tokio::test]
async fn a_branch_is_in_a_batch_once() {
    let (stub, http) = agrees_to_batches().await;
    let mut calls = prepares(0..3);
    calls.push(call_of(1, Ask));
    let ended = together(&stub, &http, calls).await;
    assert_eq!(ended, vec![heard(Ask); 4]);
    assert_eq!(seen(&stub), (vec![3], 1));
}

#[tokio::test]
async fn a_call_that_is_cut_leaves_with_no_batch() {
    let (stub, http) = agrees_to_batches().await;
    let mut cut = http.call(&stub.endpoint, call_of(7, Ask));
    assert!(futures_util::poll!(&mut cut).is_pending());
    drop(cut);
    let ended = together(&stub, &http, prepares(0..3)).await;
    assert_eq!(ended, vec![heard(Ask); 3]);
    assert_eq!(seen(&stub), (vec![3], 0));
}

#[tokio::test]
async fn a_batch_to_nobody_is_refused_for_each_of_its_calls() {
    let (stub, http) = agrees_to_batches().await;
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        endpoint(&format!(
            "http://{}/unanimous",
            listener.local_addr().unwrap()
        ))
    };
    let described = http.describe(&stub.endpoint).await.unwrap();
    nobody.announced().described(&described, Instant::now());
    let calls = prepares(0..3)
        .into_iter()
        .map(|call| http.call(&nobody, call));
    for ended in join_all(calls).await {
        assert!(matches!(ended, Ended::Refused(_)), "{ended:?}");
    }
}
