//! The machines, ids, and the JSON that every transaction is read from and written to.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use serde::Serialize;
use serde::de::DeserializeOwned;
use unanimous_microbench::{commit, prepare_and_commit};
use unanimous_protocol::id::{ParticipantName, TransactionId};
use unanimous_protocol::operations::Operations;
use unanimous_protocol::wire::{BeginRequest, Object, PrepareRequest, TransactionView, VoteAnswer};

const ID: &str = "08f66b21-0001-8000-8000-104eae94fab2";
const OPERATIONS: &str = r#"[{"kind": "debit", "account": 4711, "amount": 42}]"#;
// The examples of docs/API.md.
const BEGIN: &str = include_str!("../../../protocol/tests/golden/begin_request.commit.json");
const TRANSACTION: &str = include_str!("../../../protocol/tests/golden/transaction.committed.json");
const PREPARE: &str = include_str!("../../../protocol/tests/golden/prepare_request.plain.json");
const VOTE: &str = include_str!("../../../protocol/tests/golden/vote.yes.json");

fn names() -> [ParticipantName; 2] {
    ["east", "west"].map(|name| name.parse().expect("a participant's name"))
}

fn machines(criterion: &mut Criterion) {
    let id: TransactionId = ID.parse().expect("an id");
    let operations = Operations::parse(OPERATIONS).expect("operations");
    let participants = names();
    criterion.bench_function("coordinator: a commit of two branches", |bencher| {
        bencher.iter(|| commit(black_box(id), &participants, &operations));
    });
    criterion.bench_function("branch: a prepare and a commit", |bencher| {
        bencher.iter(|| prepare_and_commit(black_box(operations.digest())));
    });
}

fn ids(criterion: &mut Criterion) {
    let id: TransactionId = ID.parse().expect("an id");
    criterion.bench_function("id: parse", |bencher| {
        bencher.iter(|| black_box(ID).parse::<TransactionId>());
    });
    criterion.bench_function("id: print", |bencher| {
        bencher.iter(|| black_box(id).to_string());
    });
}

fn json(criterion: &mut Criterion) {
    both_ways::<BeginRequest>(criterion, "one-shot request", BEGIN);
    both_ways::<TransactionView>(criterion, "transaction", TRANSACTION);
    both_ways::<PrepareRequest>(criterion, "prepare", PREPARE);
    both_ways::<VoteAnswer>(criterion, "vote", VOTE);
    let Object(request) = serde_json::from_str::<Object<BeginRequest>>(BEGIN).expect("a request");
    criterion.bench_function("one-shot request: digest", |bencher| {
        bencher.iter(|| black_box(&request).digest());
    });
}

fn both_ways<T: DeserializeOwned + Serialize>(criterion: &mut Criterion, name: &str, text: &str) {
    criterion.bench_function(&format!("{name}: parse"), |bencher| {
        bencher.iter(|| serde_json::from_str::<Object<T>>(black_box(text)));
    });
    let Object(parsed) = serde_json::from_str::<Object<T>>(text).expect("an example");
    criterion.bench_function(&format!("{name}: print"), |bencher| {
        bencher.iter(|| serde_json::to_string(black_box(&parsed)));
    });
}

criterion_group!(benches, machines, ids, json);
criterion_main!(benches);
