//! A branch in doubt asks, for ever, and only an answer that echoes both names ends its doubt.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use serde_json::{Value, json};

use crate::service::{NOWHERE, Service, id, note, pool, post, prepare_body};

/// A coordinator that answers as the test says, and remembers what it was asked.
#[derive(Clone)]
pub(crate) struct Coordinator {
    pub(crate) url: String,
    asked: Arc<Mutex<Vec<String>>>,
    traced: Arc<Mutex<Vec<[String; 2]>>>,
}

/// The path with its query, and the body.
type Answering = dyn Fn(&str, &Value) -> (u16, String) + Send + Sync;

impl Coordinator {
    pub(crate) async fn answering(
        answer: impl Fn(&str, &Value) -> (u16, String) + Send + Sync + 'static,
    ) -> Self {
        let answer: Arc<Answering> = Arc::new(answer);
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let remember = Arc::clone(&asked);
        let traced = Arc::<Mutex<Vec<[String; 2]>>>::default();
        let seen_traced = Arc::clone(&traced);
        let server = HttpServer::new(move || {
            let answer = Arc::clone(&answer);
            let remember = Arc::clone(&remember);
            let traced = Arc::clone(&seen_traced);
            let serve = move |request: HttpRequest, body: web::Bytes| {
                let asked = request.uri().to_string();
                let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
                let (status, text) = answer(&asked, &body);
                remember.lock().unwrap().push(asked);
                let headers = ["traceparent", "tracestate"].map(|name| {
                    let value = request.headers().get(name);
                    let text = value.and_then(|value| value.to_str().ok());
                    text.unwrap_or_default().to_owned()
                });
                traced.lock().unwrap().push(headers);
                let status = actix_web::http::StatusCode::from_u16(status).unwrap();
                async move {
                    HttpResponse::build(status)
                        .insert_header(("location", "http://127.0.0.1:9/"))
                        .content_type("application/json")
                        .body(text)
                }
            };
            App::new().default_service(web::to(serve))
        })
        .workers(1)
        .disable_signals()
        .bind("127.0.0.1:0")
        .unwrap();
        let url = format!("http://{}", server.addrs()[0]);
        tokio::spawn(server.run());
        Self { url, asked, traced }
    }

    /// `traceparent` and `tracestate` of each request.
    pub(crate) fn traced(&self) -> Vec<[String; 2]> {
        self.traced.lock().unwrap().clone()
    }

    /// Always the same outcome, with a correct echo.
    async fn told(outcome: &'static str) -> Self {
        Self::answering(move |asked, _| (200, echo(asked, outcome))).await
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// Waits until it was asked so many times more.
    async fn asked_again(&self, times: usize) {
        let before = self.asked().len();
        let begun = Instant::now();
        while self.asked().len() < before + times {
            assert!(begun.elapsed() < Duration::from_secs(10), "nobody asked");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn echo(asked: &str, outcome: &str) -> String {
    let path = asked.strip_prefix("/v1/transactions/").unwrap();
    let (transaction, participant) = path.split_once("/outcome?participant=").unwrap();
    json!({"transaction": transaction, "participant": participant, "outcome": outcome}).to_string()
}

async fn in_doubt_with(coordinators: &[&str]) -> Service {
    let coordinators: Vec<String> = coordinators.iter().map(ToString::to_string).collect();
    let east = Service::start().await;
    for number in 1..=3 {
        east.prepare(&id(number), note("a")).await.is_vote("yes");
    }
    east.restart(|mut builder| {
        for coordinator in coordinators {
            builder = builder.coordinator(coordinator);
        }
        builder
            .inquire_after(Duration::from_millis(50))
            .inquire_every_max(Duration::from_millis(200))
    })
    .await
}

const NONE_IN_DOUBT: &str = "SELECT count(*) = 0 FROM unanimous.branches WHERE state = 'prepared'";

#[tokio::test]
async fn a_branch_in_doubt_is_told_its_outcome_at_start_and_while_running() {
    for (outcome, then) in [("committed", "committed"), ("aborted", "aborted")] {
        let coordinator = Coordinator::told(outcome).await;
        let east = in_doubt_with(&[NOWHERE, &coordinator.url]).await;
        east.until(NONE_IN_DOUBT).await;
        east.prepare(&id(4), note("a")).await.is_vote("yes");
        east.until(NONE_IN_DOUBT).await;
        for number in 1..=4 {
            let journal = east.journal(&id(number)).await;
            assert_eq!(journal, ["prepared a".to_owned(), format!("{then} a")]);
        }
        let asked = coordinator.asked();
        let first = format!("/v1/transactions/{}/outcome?participant=east", id(1));
        assert!(asked.contains(&first), "{asked:?}");
    }
}

#[tokio::test]
async fn a_branch_is_left_alone_before_it_has_been_in_doubt_for_a_while() {
    let coordinator = Coordinator::told("pending").await;
    let url = coordinator.url.clone();
    let east = Service::start().await;
    east.prepare(&id(1), note("a")).await.is_vote("yes");
    let an_hour_ago = "UPDATE unanimous.branches SET since = since - interval '1 hour'";
    east.sql.batch_execute(an_hour_ago).await.unwrap();
    let east = east
        .restart(|builder| {
            builder
                .coordinator(url)
                .inquire_after(Duration::from_secs(60))
                .inquire_every_max(Duration::from_millis(200))
        })
        .await;
    // The look at start asks about whatever is there. It is over now.
    coordinator.asked_again(1).await;
    east.prepare(&id(2), note("b")).await.is_vote("yes");
    // The loop that asks about the old one again and again looks for others in between.
    coordinator.asked_again(10).await;
    let young = coordinator
        .asked()
        .into_iter()
        .find(|asked| asked.contains(&id(2)));
    assert_eq!(young, None);
    assert_eq!(east.row(&id(2)).await.as_deref(), Some("prepared"));
}

#[tokio::test]
async fn a_look_that_waited_for_a_connection_is_followed_by_another_one_soon() {
    let coordinator = Coordinator::told("committed").await;
    let east = Service::start_with(|builder| builder.coordinator(NOWHERE)).await;
    let narrow = pool(&east.database, 3);
    let busy = crate::service::east(&east.database).pool(narrow.clone());
    let busy = busy.coordinator(&coordinator.url).start().await.unwrap();
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(narrow.get().await.unwrap());
    }
    let begun = Instant::now();
    while narrow.status().waiting == 0 {
        assert!(begun.elapsed() < Duration::from_secs(10), "no look waits");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // How long the pool is busy; it is not what is waited for.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    drop(held);
    let body = prepare_body(&id(1), note("a"));
    post(&busy, "/v1/prepare", &body).await.is_vote("yes");
    let freed = Instant::now();
    coordinator.asked_again(1).await;
    assert!(
        freed.elapsed() < Duration::from_secs(8),
        "ten times as long as it waited"
    );
}

#[tokio::test]
async fn a_database_clock_that_steps_back_stops_no_inquiry() {
    let told = Arc::<Mutex<&'static str>>::new(Mutex::new("pending"));
    let tells = Arc::clone(&told);
    let coordinator =
        Coordinator::answering(move |asked, _| (200, echo(asked, &tells.lock().unwrap()))).await;
    let east = Service::start().await;
    // As if the rows had been written an hour from now.
    let step_back = "UPDATE unanimous.branches SET since = since + interval '1 hour'";
    east.prepare(&id(1), note("a")).await.is_vote("yes");
    east.sql.batch_execute(step_back).await.unwrap();
    let url = coordinator.url.clone();
    let east = east
        .restart(|builder| {
            builder
                .coordinator(url)
                .inquire_after(Duration::from_secs(60))
                .inquire_every_max(Duration::from_millis(200))
        })
        .await;
    coordinator.asked_again(1).await;
    *told.lock().unwrap() = "committed";
    east.until(NONE_IN_DOUBT).await;
    // The look at start is over.
    east.prepare(&id(2), note("a")).await.is_vote("yes");
    east.sql.batch_execute(step_back).await.unwrap();
    east.until(NONE_IN_DOUBT).await;
}

#[tokio::test]
async fn nothing_but_an_exact_echo_ends_the_doubt() {
    let other = id(99);
    let wrong: Vec<(&str, u16, String)> = vec![
        ("pending", 200, String::new()),
        ("empty", 200, String::new()),
        ("a page", 200, "<html>committed</html>".to_owned()),
        (
            "another transaction",
            200,
            json!({"transaction": other, "participant": "east", "outcome": "committed"})
                .to_string(),
        ),
        ("another participant", 200, String::new()),
        ("not found", 404, json!({"outcome": "aborted"}).to_string()),
        ("redirect", 302, String::new()),
        ("log unavailable", 503, String::new()),
    ];
    for (name, status, body) in wrong {
        let coordinator = Coordinator::answering(move |asked, _| {
            let body = match name {
                "pending" => echo(asked, "pending"),
                "another participant" => echo(asked, "committed").replace("east", "West"),
                // The echo is right, the status is not.
                "not found" | "redirect" | "log unavailable" => echo(asked, "aborted"),
                _ => body.clone(),
            };
            (status, body)
        })
        .await;
        let east = in_doubt_with(&[&coordinator.url]).await;
        coordinator.asked_again(9).await;
        let prepared = "SELECT count(*) FROM unanimous.branches WHERE state = 'prepared'";
        assert_eq!(east.count(prepared).await, 3, "{name}");
        assert_eq!(
            east.count("SELECT count(*) FROM journal").await,
            3,
            "{name}"
        );
    }
}

#[tokio::test]
async fn the_name_asked_for_is_the_one_in_the_row() {
    let coordinator = Coordinator::told("committed").await;
    let first = Service::start().await;
    first.prepare(&id(1), note("a")).await.is_vote("yes");
    let database = first.database.clone();
    drop(first.participant);
    let renamed = unanimous_participant::Participant::builder("orient", crate::service::Journal)
        .pool(crate::service::pool(&database, 3))
        .coordinator(&coordinator.url);
    // Branches of another name are another service's, until it is said that they are not.
    let _stranger = renamed.start().await.unwrap();
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert!(coordinator.asked().is_empty());
    let renamed = unanimous_participant::Participant::builder("orient", crate::service::Journal)
        .pool(crate::service::pool(&database, 3))
        .coordinator(&coordinator.url)
        .formerly("east");
    let _heir = renamed.start().await.unwrap();
    coordinator.asked_again(1).await;
    assert!(coordinator.asked()[0].ends_with("?participant=east"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_in_doubt_settle_side_by_side_and_do_not_wait_for_a_coordinator_that_never_answers() {
    // One after the other, each behind the silent one's 3 s, they would take an hour.
    settle_beside_a_silent_coordinator(1_500).await;
}

async fn settle_beside_a_silent_coordinator(branches: i64) {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_url = format!("http://{}", silent.local_addr().unwrap());
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((connection, _)) = silent.accept().await {
            kept.push(connection);
        }
    });
    let coordinator = Coordinator::told("committed").await;
    let east = Service::start().await;
    east.prepare(&id(1), note("a")).await.is_vote("yes");
    east.sql
        .execute(
            "INSERT INTO unanimous.branches (participant, transaction, state, operations, digest, voted_yes)
             SELECT participant, ('00000001-0001-8000-8000-2000' || lpad(to_hex(n), 8, '0'))::uuid, state, operations, digest, voted_yes
             FROM unanimous.branches, generate_series(1, $1::bigint) AS n",
            &[&branches],
        )
        .await
        .unwrap();
    let database = east.database.clone();
    let begun = Instant::now();
    let east = east
        .restart(|builder| {
            let builder = builder.pool(crate::service::pool(&database, 16));
            builder
                .coordinator(silent_url)
                .coordinator(&coordinator.url)
        })
        .await;
    while east
        .count("SELECT count(*) FROM unanimous.branches WHERE state = 'prepared'")
        .await
        > 0
    {
        assert!(begun.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("{branches} settled in {:?}", begun.elapsed());
    assert_eq!(
        east.count("SELECT count(*) FROM journal WHERE what = 'committed'")
            .await,
        branches + 1
    );
}

#[tokio::test]
async fn an_inquiry_belongs_to_the_trace_of_the_prepare_that_it_is_about() {
    for in_a_batch in [false, true] {
        asks_in_the_trace_of_the_prepare(in_a_batch).await;
    }
}

async fn asks_in_the_trace_of_the_prepare(in_a_batch: bool) {
    let coordinator = Coordinator::told("pending").await;
    let url = coordinator.url.clone();
    let east = Service::start_with(|builder| {
        let builder = builder.coordinator(url);
        builder.inquire_after(Duration::from_millis(1))
    })
    .await;
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let (parent, state) = (
        format!("00-{trace}-b7ad6b7169203331-01"),
        "congo=t61rcWkgMzE",
    );
    let mut body = prepare_body(&id(1), note("a"));
    let request = if in_a_batch {
        body["kind"] = json!("prepare");
        body["traceparent"] = json!(parent);
        body["tracestate"] = json!(state);
        body = json!({"messages": [body]});
        http::Request::post("/v1/batch")
    } else {
        let request = http::Request::post("/v1/prepare");
        request
            .header("traceparent", parent)
            .header("tracestate", state)
    };
    let prepare = request
        .header("content-type", "application/json")
        .body(body.to_string().into_bytes())
        .unwrap();
    let voted = east.participant.answer(prepare).await;
    assert_eq!(voted.status(), 200);
    coordinator.asked_again(2).await;
    let traced = coordinator.traced();
    for [parent, state] in &traced {
        assert!(parent.starts_with(&format!("00-{trace}-")), "{parent}");
        assert!(parent.ends_with("-01"), "{parent}");
        assert!(!parent.contains("b7ad6b7169203331"), "a parent of its own");
        assert_eq!(state, "congo=t61rcWkgMzE");
    }
    assert_ne!(traced[0][0], traced[1][0]);
    // Nothing but memory knows it: another life asks in a trace of its own.
    let before = traced.len();
    let url = coordinator.url.clone();
    let _east = east.restart(|builder| builder.coordinator(url)).await;
    coordinator.asked_again(1).await;
    let [parent, state] = coordinator.traced()[before.max(1)..]
        .last()
        .unwrap()
        .clone();
    assert!(!parent.contains(trace) && !parent.is_empty(), "{parent}");
    assert_eq!(state, "");
}
