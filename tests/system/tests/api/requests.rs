//! What every route refuses, and how it says so.

use reqwest::Method;
use serde_json::json;

use crate::support::{Answer, Coordinator, Stub, contract};

const BODY_MAX: usize = 256 * 1024;

/// Each route below an id, with its method.
const ROUTES: [(&str, Method); 5] = [
    ("", Method::GET),
    ("/branches", Method::POST),
    ("/commit", Method::POST),
    ("/abort", Method::POST),
    ("/outcome?participant=east", Method::GET),
];

#[tokio::test]
async fn anything_but_an_id_in_its_place_is_400_on_every_route() {
    let coordinator = Coordinator::start(&[]).await;
    let good = coordinator.open().await;
    let wrong = [
        "x".to_owned(),
        "0".to_owned(),
        good.to_uppercase(),
        good.replace('-', ""),
        format!("%7B{good}%7D"),
        format!("urn:uuid:{good}"),
        format!("{good}%20"),
        format!("{good}%00"),
        format!("{good}0"),
        good[..35].to_owned(),
        "%FF%FE".to_owned(),
        "6ba7b810-9dad-11d1-80b4-00c04fd430c8".to_owned(),
        "017f22e2-79b0-7cc3-98c4-dc0c0c07398f".to_owned(),
        // Version 8, and a variant that is not RFC 9562's.
        "00000001-0001-8000-c000-100000000001".to_owned(),
        "a".repeat(5000),
    ];
    for id in wrong {
        for (route, method) in ROUTES {
            let path = format!("/v1/transactions/{id}{route}");
            let mut request = coordinator.request(method, &path);
            if route == "/branches" {
                request = request.json(&json!({"participant": "east"}));
            }
            Answer::of(request).await.problem(400, "invalid-request");
        }
    }
}

#[tokio::test]
async fn unknown_query_members_are_refused_by_name_on_every_route() {
    let coordinator = Coordinator::start(&[]).await;
    let id = coordinator.open().await;
    let mut routes = vec![("/v1/transactions".to_owned(), Method::POST)];
    for (route, method) in ROUTES {
        routes.push((format!("/v1/transactions/{id}{route}"), method));
    }
    for (route, method) in routes {
        let separator = if route.contains('?') { '&' } else { '?' };
        let path = format!("{route}{separator}colour=red");
        let mut request = coordinator.request(method, &path);
        if route.ends_with("/branches") {
            request = request.json(&json!({"participant": "east"}));
        }
        let refused = Answer::of(request).await;
        let refused = refused.problem(400, "invalid-request");
        refused.names(&["colour"]);
    }
    assert_eq!(coordinator.show(&id).await.body["state"], "active");
}

#[tokio::test]
async fn a_query_member_is_given_once_and_holds_what_it_should() {
    let coordinator = Coordinator::start(&[]).await;
    let id = coordinator.open().await;
    for (query, names) in [
        ("?wait=none", "wait"),
        ("?wait=", "wait"),
        ("?wait=decided&wait=applied", "wait"),
        ("?wait_ms=60001", "wait_ms"),
        ("?wait_ms=-1", "wait_ms"),
        ("?wait_ms=x", "wait_ms"),
        ("/outcome", "participant"),
        ("/outcome?participant=", "participant"),
        ("/outcome?participant=East", "participant"),
        ("/outcome?participant=east&participant=west", "participant"),
    ] {
        let refused = coordinator.show(&format!("{id}{query}")).await;
        refused.problem(400, "invalid-request").names(&[names]);
    }
}

#[tokio::test]
async fn unknown_members_are_refused_by_name_on_every_route() {
    let coordinator = Coordinator::start(&[]).await;
    let id = coordinator.open().await;
    for route in ["", "/branches", "/commit", "/abort"] {
        let path = if route.is_empty() {
            "/v1/transactions".to_owned()
        } else {
            format!("/v1/transactions/{id}{route}")
        };
        let body = json!({"colour": "red"});
        let refused = coordinator.post(&path, &body).await;
        let refused = refused.problem(400, "invalid-request");
        refused.names(&["colour"]);
    }
    assert_eq!(coordinator.show(&id).await.body["state"], "active");
}

#[tokio::test]
async fn a_member_that_is_given_twice_is_refused_by_name() {
    let coordinator = Coordinator::start(&[]).await;
    let id = coordinator.open().await;
    for (route, body, names) in [
        (
            "",
            r#"{"timeout_ms": 1000, "timeout_ms": 2000}"#,
            "timeout_ms",
        ),
        (
            "",
            r#"{"branches": [{"participant":"east","participant":"west"}]}"#,
            "participant",
        ),
        (
            "/branches",
            r#"{"participant":"east","participant":"east"}"#,
            "participant",
        ),
        ("/commit", r#"{"wait":"none","wait":"none"}"#, "wait"),
        ("/abort", r#"{"reason":"a","reason":"b"}"#, "reason"),
    ] {
        let path = if route.is_empty() {
            "/v1/transactions".to_owned()
        } else {
            format!("/v1/transactions/{id}{route}")
        };
        let refused = coordinator.post_text(&path, body).await;
        refused.problem(400, "invalid-request").names(&[names]);
    }
    assert_eq!(coordinator.show(&id).await.body["state"], "active");
}

#[tokio::test]
async fn a_body_that_is_no_json_object_is_refused() {
    let coordinator = Coordinator::start(&[]).await;
    let id = coordinator.open().await;
    let bodies: [&[u8]; 14] = [
        b"{",
        b"{\"commit\": true",
        b"{\"commit\": tru",
        b"{\"labels\": {\"a\": \"b",
        b"{}{}",
        b"{} x",
        b"null",
        b"[]",
        b"[1000]",
        b"true",
        b"\"{}\"",
        b" ",
        b"{\"labels\": {\"a\": \"\xff\"}}",
        b"\xef\xbb\xbf{}",
    ];
    for body in bodies {
        for route in ["", "/branches", "/commit", "/abort"] {
            let path = if route.is_empty() {
                "/v1/transactions".to_owned()
            } else {
                format!("/v1/transactions/{id}{route}")
            };
            let refused = coordinator.post_text(&path, body.to_vec()).await;
            assert_eq!(
                refused.status,
                400,
                "{route} {:?}: {}",
                body.escape_ascii(),
                refused.text
            );
            refused.problem(400, "invalid-request");
        }
    }
    assert_eq!(coordinator.show(&id).await.body["state"], "active");
}

#[tokio::test]
async fn operations_may_be_64_levels_deep_and_no_deeper() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    let body = |operations: String| {
        format!(
            r#"{{"branches":[{{"participant":"east","operations":{operations}}}],"commit":true}}"#
        )
    };
    let deepest = body(nested(64));
    coordinator
        .post_text("/v1/transactions", deepest.clone())
        .await
        .is(200);
    let keyed = coordinator.request(Method::POST, "/v1/transactions");
    let keyed = keyed.header("idempotency-key", "deep");
    let keyed = keyed.header("content-type", "application/json");
    Answer::of(keyed.body(deepest)).await.is(200);
    for depth in [65, 100_000] {
        let refused = coordinator
            .post_text("/v1/transactions", body(nested(depth)))
            .await;
        let refused = refused.problem(400, "invalid-request");
        refused.names(&["branches[0].operations", "64"]);
    }
    // Elsewhere there is nothing to nest.
    for body in [
        nested(100_000),
        format!(r#"{{"labels":{}}}"#, nested(100_000)),
    ] {
        let refused = coordinator.post_text("/v1/transactions", body).await;
        refused.problem(400, "invalid-request");
    }
}

#[tokio::test]
async fn a_body_must_be_json_by_its_content_type() {
    let coordinator = Coordinator::start(&[]).await;
    let send = async |content_type: Option<&str>, body: &'static str| {
        let mut request = coordinator.request(Method::POST, "/v1/transactions");
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        Answer::of(request.body(body)).await
    };
    for content_type in [
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON",
    ] {
        send(Some(content_type), "{}").await.is(201);
    }
    for content_type in [
        None,
        Some("text/plain"),
        Some("application/x-www-form-urlencoded"),
        Some("application/jsonp"),
        Some(""),
    ] {
        let refused = send(content_type, "{}").await;
        refused.problem(415, "unsupported-media-type");
    }
}

#[tokio::test]
async fn a_body_may_have_256_kib_and_no_byte_more_chunked_or_not() {
    let coordinator = Coordinator::start(&[]).await;
    let body = |length: usize| {
        let text = r#"{"timeout_ms": 30000}"#;
        text.to_owned() + &" ".repeat(length - text.len())
    };
    let largest = body(BODY_MAX);
    coordinator
        .post_text("/v1/transactions", largest)
        .await
        .is(201);
    for length in [BODY_MAX + 1, 8 * BODY_MAX] {
        let refused = coordinator
            .post_text("/v1/transactions", body(length))
            .await;
        let refused = refused.problem(413, "payload-too-large");
        refused.names(&["262144"]);
    }
    let id = coordinator.open().await;
    for route in ["/branches", "/commit", "/abort"] {
        let path = format!("/v1/transactions/{id}{route}");
        let refused = coordinator.post_text(&path, body(BODY_MAX + 1)).await;
        refused.problem(413, "payload-too-large");
    }
    let refused = chunked(&coordinator, &body(BODY_MAX + 1)).await;
    assert!(refused.starts_with("HTTP/1.1 413 "), "{refused}");
}

/// The head of the answer to a body that does not announce its length.
async fn chunked(coordinator: &Coordinator, body: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let address = coordinator.url().trim_start_matches("http://");
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = "POST /v1/transactions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                transfer-encoding: chunked\r\n\r\n";
    let text = format!("{head}{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    // It may stop reading before the end.
    stream.write_all(text.as_bytes()).await.ok();
    let mut answer = vec![0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned() + " "
}

#[tokio::test]
async fn another_method_is_405_with_the_one_there_is() {
    let coordinator = Coordinator::start(&[]).await;
    let id = coordinator.open().await;
    let mut routes = vec![("/v1/transactions".to_owned(), Method::POST)];
    for (route, method) in ROUTES {
        routes.push((format!("/v1/transactions/{id}{route}"), method));
    }
    for (path, method) in routes {
        for other in [Method::PUT, Method::DELETE, Method::PATCH] {
            let refused = Answer::of(coordinator.request(other, &path)).await;
            let refused = refused.problem(405, "method-not-allowed");
            let allow = refused.header("allow");
            assert!(allow.split(", ").any(|m| m == method.as_str()), "{allow:?}");
        }
        if method == Method::POST && path.contains(&id) {
            let refused = Answer::of(coordinator.request(Method::GET, &path)).await;
            refused.problem(405, "method-not-allowed");
        }
    }
    for path in ["/healthz", "/readyz"] {
        let refused = Answer::of(coordinator.admin(Method::POST, path)).await;
        let refused = refused.problem(405, "method-not-allowed");
        assert_eq!(refused.header("allow"), "GET");
    }
}

#[tokio::test]
async fn a_path_that_names_nothing_is_404() {
    let coordinator = Coordinator::start(&[]).await;
    let id = coordinator.open().await;
    for path in [
        "/".to_owned(),
        "/v1".to_owned(),
        "/v2/transactions".to_owned(),
        format!("/v1/transactions/{id}/colour"),
        format!("/v1/transactions/{id}/commit/now"),
    ] {
        let missing = Answer::of(coordinator.request(Method::GET, &path)).await;
        missing.problem(404, "not-found");
    }
    let missing = Answer::of(coordinator.admin(Method::GET, "/v1/transactions")).await;
    missing.problem(404, "not-found");
}

#[tokio::test]
async fn the_contract_that_is_served_is_the_one_that_answers_are_held_against() {
    let coordinator = Coordinator::start(&[]).await;
    let served = coordinator.get("/openapi.json").await.is(200);
    assert!(
        served.text == contract::document(),
        "docs/openapi.json is another one"
    );
    assert_eq!(served.header("content-type"), "application/json");
    coordinator
        .get("/openapi.json?colour=red")
        .await
        .problem(400, "invalid-request")
        .names(&["colour"]);
    // One document for both listeners, on the one that is open to clients.
    Answer::of(coordinator.admin(Method::GET, "/openapi.json"))
        .await
        .problem(404, "not-found");
}
