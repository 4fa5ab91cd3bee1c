//! W3C Trace Context: one transaction is one trace, in every call that follows from it and in the log.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};
use unanimous_lab::wait::until;

use crate::support::{Answer, Coordinator, Does, SOON, Seen, Stub, branch};

const TRACE_ID: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT_ID: &str = "b7ad6b7169203331";
const STATE: &str = "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7";

/// The fields of a call's `traceparent`: trace, parent, flags.
fn fields(seen: &Seen) -> (String, String, String) {
    let text = &seen.headers["traceparent"];
    let fields: Vec<&str> = text.split('-').collect();
    let ["00", trace, parent, flags] = fields[..] else {
        panic!("{text:?}")
    };
    let hex = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    assert!(
        trace.len() == 32 && parent.len() == 16 && flags.len() == 2,
        "{text:?}"
    );
    assert!(hex(trace) && hex(parent) && hex(flags), "{text:?}");
    (trace.to_owned(), parent.to_owned(), flags.to_owned())
}

/// Begins and runs a transaction with these headers.
async fn runs(coordinator: &Coordinator, headers: &[(&str, &str)], body: &Value) -> Answer {
    let mut request = coordinator
        .request(Method::POST, "/v1/transactions")
        .json(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Answer::of(request).await
}

#[tokio::test]
async fn every_call_belongs_to_the_clients_trace_and_is_a_parent_of_its_own() {
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let coordinator = Coordinator::start(&[&east, &west]).await;
    let sent = format!("00-{TRACE_ID}-{PARENT_ID}-01");
    let headers = [("traceparent", sent.as_str()), ("tracestate", STATE)];
    // A prepare and a commit that are asked again are calls of their own.
    east.once("prepare", Does::page(503, "busy"));
    east.once("commit", Does::Cut);
    let both = json!({"branches": [branch("east"), branch("west")], "commit": true});
    runs(&coordinator, &headers, &both).await.is(200);
    let refusal = Does::Refuse {
        code: None,
        reason: "no",
    };
    west.always("prepare", refusal);
    runs(&coordinator, &headers, &both).await.aborted("refused");
    east.arrived("abort", 1).await;
    east.arrived("commit", 2).await;
    let calls: Vec<Seen> = east.seen().into_iter().chain(west.seen()).collect();
    for kind in ["prepare", "commit", "abort"] {
        assert!(calls.iter().any(|call| call.kind() == kind), "no {kind}");
    }
    let mut parents = BTreeSet::from([PARENT_ID.to_owned()]);
    for call in calls {
        let (trace, parent, flags) = fields(&call);
        assert_eq!((trace.as_str(), flags.as_str()), (TRACE_ID, "01"));
        assert!(parents.insert(parent), "a parent of its own: {call:?}");
        assert_eq!(call.headers["tracestate"], STATE);
    }
}

#[tokio::test]
async fn where_a_client_names_no_trace_or_one_that_is_none_each_transaction_begins_one() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    let body = json!({"branches": [branch("east")], "commit": true});
    let upper = format!("00-{}-{PARENT_ID}-01", TRACE_ID.to_uppercase());
    let zeros = format!("00-{}-{PARENT_ID}-01", "0".repeat(32));
    let sent = format!("00-{TRACE_ID}-{PARENT_ID}-01");
    let state = ("tracestate", STATE);
    let requests: [&[(&str, &str)]; 6] = [
        &[],
        &[state],
        &[("traceparent", "4711"), state],
        &[("traceparent", &upper), state],
        &[("traceparent", &zeros), state],
        &[("traceparent", &sent), ("traceparent", &sent), state],
    ];
    let mut traces = BTreeSet::from([TRACE_ID.to_owned(), "0".repeat(32)]);
    for (at, headers) in requests.iter().enumerate() {
        runs(&coordinator, headers, &body).await.is(200);
        let prepare = east.arrived("prepare", at + 1).await;
        let commit = east.arrived("commit", at + 1).await;
        let ((trace, ..), (of_commit, ..)) = (fields(&prepare), fields(&commit));
        assert_eq!(trace, of_commit);
        assert!(traces.insert(trace), "a trace of its own: {prepare:?}");
        for call in [prepare, commit] {
            assert_eq!(call.headers.get("tracestate"), None, "without its parent");
        }
    }
}

#[tokio::test]
async fn a_trace_reaches_the_log_and_ends_with_the_life_that_knew_it() {
    let east = Stub::start("east").await;
    let mut coordinator = Coordinator::start(&[&east]).await;
    let sent = format!("00-{TRACE_ID}-{PARENT_ID}-01");
    east.hold("commit");
    let body = json!({"branches": [branch("east")], "commit": true});
    let done = runs(&coordinator, &[("traceparent", &sent)], &body).await;
    let id = done.is(200).id();
    let first = east.arrived("commit", 1).await;
    assert_eq!(fields(&first).0, TRACE_ID);
    until("the decision is in the log", SOON, async || {
        let output = coordinator.process.output()?;
        let decided = output.lines().any(|line| {
            let has = |field: &str| line.contains(field);
            has(&format!("transaction={id}")) && has(&format!("trace_id={TRACE_ID}"))
        });
        anyhow::ensure!(decided, "{output}");
        anyhow::Ok(())
    })
    .await
    .unwrap();
    // The record does not hold it.
    coordinator.kill_and_restart().await;
    let again = east.arrived("commit", 2).await;
    assert_eq!(again.transaction(), id);
    assert_ne!(fields(&again).0, TRACE_ID);
    east.release("commit");
    coordinator.reaches(&id, "committed").await;
}
