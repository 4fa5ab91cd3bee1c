//! `GET /openapi.json`: the contract of both listeners as OpenAPI 3.1, for programs. `docs/API.md` is the same for people.
//!
//! The bodies' schemas are derived from the wire's types (`unanimous_protocol::wire::openapi`), so that no member is
//! missing. What types can not say is here, once: which route answers which status with which problem codes, headers and
//! bounds. That this is what the server does is checked on every answer that the API tests get.
//!
//! A golden copy is `docs/openapi.json`; `make fix` rewrites it.

use std::sync::LazyLock;

use actix_web::{HttpRequest, HttpResponse};
use serde_json::{Map, Value, json};
use unanimous_protocol::wire::{PROBLEM_JSON, openapi::schemas, problem_type};

use super::{body, problem::ApiProblem};
use crate::metrics;

static TEXT: LazyLock<String> = LazyLock::new(|| {
    // A value of serde_json's always prints.
    serde_json::to_string_pretty(&document()).unwrap_or_default() + "\n"
});

/// `GET /openapi.json`
pub async fn show(request: HttpRequest) -> Result<HttpResponse, ApiProblem> {
    body::no_query(&request)?;
    Ok(HttpResponse::Ok()
        .content_type("application/json")
        .body(TEXT.as_str()))
}

/// The transaction of the examples.
const EXAMPLE_ID: &str = "5eed0001-0001-8000-8000-100000000001";

/// What a code means, and the members that its problem has beside RFC 9457's and `code`.
const CODES: &[(&str, &[&str], &str)] = &[
    (
        "invalid-request",
        &[],
        "A member, query member, header or path is not as described; `detail` names it.",
    ),
    (
        "unknown-participant",
        &[],
        "Nobody registered a participant of that name.",
    ),
    ("not-found", &[], "The path is no route."),
    (
        "unknown-transaction",
        &[],
        "An id of this coordinator's life that it has not issued.",
    ),
    (
        "other-node",
        &["node"],
        "The transaction lives at another coordinator of this log.",
    ),
    ("foreign-transaction", &[], "An id of another decision log."),
    (
        "method-not-allowed",
        &[],
        "The route has no such method; `Allow` says which it has.",
    ),
    (
        "request-timeout",
        &[],
        "The body was not there within 10 s.",
    ),
    (
        "transaction-aborted",
        &["transaction", "reason"],
        "The transaction is aborted: an answer, not a failure.",
    ),
    (
        "transaction-committed",
        &["transaction"],
        "The transaction is committed, and can not be aborted any more.",
    ),
    (
        "transaction-not-active",
        &[],
        "Commit or abort of the transaction has begun.",
    ),
    (
        "already-enlisted",
        &[],
        "The participant is enlisted with other operations.",
    ),
    (
        "too-many-branches",
        &[],
        "The transaction has 32 branches, the most there may be.",
    ),
    (
        "work-lost",
        &[],
        "The participant enlisted with another session before; the transaction aborts.",
    ),
    (
        "participant-configured",
        &[],
        "The participant was given at start, and is not changed here.",
    ),
    (
        "participant-in-use",
        &[],
        "An unfinished transaction names the participant.",
    ),
    (
        "forgotten",
        &[],
        "The transaction ended longer ago than the retention.",
    ),
    ("payload-too-large", &[], "The body is larger than 256 KiB."),
    (
        "unsupported-media-type",
        &[],
        "There is a body, and it is not application/json by its content type.",
    ),
    (
        "idempotency-key-reused",
        &[],
        "The key was sent before with another body.",
    ),
    ("internal-error", &[], "A mistake in the coordinator."),
    (
        "overloaded",
        &[],
        "Too much is under way. Nothing was begun.",
    ),
    (
        "log-unavailable",
        &[],
        "The decision log does not answer, or went back. Nothing is lost.",
    ),
    (
        "outcome-unknown",
        &[],
        "The transaction may have committed, and nobody here can know; `detail` says what an operator can do.",
    ),
];

/// The document.
#[must_use]
pub fn document() -> Value {
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Unanimous, the coordinator",
            "version": "1",
            "description": "Commits a change in several services together, or in none of them. Bodies are JSON in UTF-8; \
                an empty body is `{}`. Unknown members and unknown query members are refused (400), and so is a member \
                given twice; a `null` member is an absent one. Errors are RFC 9457 problems whose `code` stays stable. A \
                path that is no route is 404 `not-found`, a method that the route does not have 405 \
                `method-not-allowed` with `Allow`. Clients ignore members that they do not know.",
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        },
        "servers": [{"url": "http://127.0.0.1:7070", "description": "the API"}],
        "tags": [
            {"name": "transactions", "description": "For clients."},
            {"name": "inquiry", "description": "For participants."},
            {"name": "description", "description": "This document."},
            {"name": "admin", "description": "For operators, on the admin listener."},
        ],
        "paths": paths(),
        "components": {"schemas": components()},
    })
}

fn components() -> Value {
    let mut all = Map::new();
    for (name, schema) in schemas() {
        let schema = serde_json::to_value(schema).unwrap_or_default();
        all.insert(name, schema);
    }
    // What no derive can say: `wait` and `wait_ms` only with a commit.
    if let Some(Value::Object(begin)) = all.get_mut("BeginRequest") {
        let given = |member: &str, kind: &str| json!({"required": [member], "properties": {member: {"type": kind}}});
        begin.insert(
            "if".to_owned(),
            json!({"anyOf": [given("wait", "string"), given("wait_ms", "integer")]}),
        );
        begin.insert(
            "then".to_owned(),
            json!({"required": ["commit"], "properties": {"commit": {"const": true}}}),
        );
        // And that a label which is null is absent, whatever its name.
        if let Some(properties) = begin.get_mut("properties") {
            properties["labels"] = json!({
                "type": ["object", "null"],
                "description": "At most 16 labels. Keys match [a-z0-9._-]{1,63}; values have up to 256 characters, \
                    none of them U+0000. One that is null is absent.",
                "patternProperties": {
                    "^[a-z0-9._-]{1,63}$": {
                        "type": ["string", "null"], "maxLength": 256, "pattern": "^[^\\u0000]*$",
                    },
                },
                "additionalProperties": {"type": "null"},
            });
        }
    }
    for (code, members, description) in CODES {
        all.insert(
            problem_name(code),
            problem_schema(code, members, description),
        );
    }
    Value::Object(all)
}

fn problem_name(code: &str) -> String {
    let words = code.split('-').map(|word| {
        let (first, rest) = word.split_at(1);
        first.to_uppercase() + rest
    });
    words.chain(["Problem".to_owned()]).collect()
}

fn problem_schema(code: &str, members: &[&str], description: &str) -> Value {
    let mut properties = json!({
        "type": {"const": problem_type(code)},
        "title": {"type": "string", "minLength": 1, "description": "The code in words."},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string", "minLength": 1, "description": "For people."},
        "code": {"const": code, "description": "For programs."},
    });
    let mut required = vec!["type", "title", "status", "detail", "code"];
    for member in members {
        properties[*member] = match *member {
            "transaction" => schema("TransactionView"),
            "reason" => schema("AbortReason"),
            _ => json!({"type": "integer", "minimum": 0, "maximum": 65535}),
        };
        required.push(member);
    }
    json!({
        "type": "object",
        "description": description,
        "properties": properties,
        "required": required,
    })
}

fn schema(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// A response with a JSON body of this schema.
fn answer(description: &str, name: &str, example: Option<Value>) -> Value {
    let mut content = json!({"schema": schema(name)});
    if let Some(example) = example {
        content["example"] = example;
    }
    json!({"description": description, "content": {"application/json": content}})
}

/// A response with one of these problems.
fn problem(status: u16, codes: &[&str]) -> Value {
    let known = |code: &&str| CODES.iter().find(|(known, ..)| known == code);
    let descriptions: Vec<String> = codes
        .iter()
        .filter_map(known)
        .map(|(code, _, description)| format!("`{code}`: {description}"))
        .collect();
    let one_of: Vec<Value> = codes
        .iter()
        .map(|code| schema(&problem_name(code)))
        .collect();
    let any = match <[Value; 1]>::try_from(one_of) {
        Ok([only]) => only,
        Err(several) => json!({"oneOf": several}),
    };
    // Every problem of a response has its status.
    let schema = json!({"allOf": [any], "properties": {"status": {"const": status}}});
    let mut response = json!({
        "description": descriptions.join(" "),
        "content": {PROBLEM_JSON: {"schema": schema}},
    });
    if status == 503 {
        response["headers"] = header(
            "Retry-After",
            "In seconds: 1; 60 for `outcome-unknown`.",
            json!({"type": "integer", "enum": [1, 60]}),
        );
    }
    response
}

fn header(name: &str, description: &str, schema: Value) -> Value {
    json!({name: {"description": description, "required": true, "schema": schema}})
}

fn location(mut response: Value, of: &str) -> Value {
    let place = header(
        "Location",
        "A path, for the client knows the host.",
        json!({"type": "string", "pattern": of}),
    );
    response["headers"] = place;
    response
}

fn with_transaction(response: Value) -> Value {
    location(response, "^/v1/transactions/[0-9a-f-]{36}$")
}

/// The responses of a route, by status.
fn responses(own: &[(u16, Value)], problems: &[(u16, &[&str])]) -> Value {
    let mut all = Map::new();
    for (status, response) in own {
        all.insert(status.to_string(), response.clone());
    }
    for (status, codes) in problems {
        all.insert(status.to_string(), problem(*status, codes));
    }
    Value::Object(all)
}

const BAD: (u16, &[&str]) = (400, &["invalid-request"]);
const NOT_HERE: (u16, &[&str]) = (
    404,
    &["unknown-transaction", "other-node", "foreign-transaction"],
);
const TOO_SLOW: (u16, &[&str]) = (408, &["request-timeout"]);
const FORGOTTEN: (u16, &[&str]) = (410, &["forgotten"]);
const TOO_LARGE: (u16, &[&str]) = (413, &["payload-too-large"]);
const NO_JSON: (u16, &[&str]) = (415, &["unsupported-media-type"]);
const NO_LOG: (u16, &[&str]) = (503, &["log-unavailable"]);
const UNSAID: (u16, &[&str]) = (503, &["log-unavailable", "outcome-unknown"]);

fn parameter(place: &str, name: &str, description: &str, schema: Value) -> Value {
    json!({
        "in": place,
        "name": name,
        "description": description,
        "required": place == "path",
        "schema": schema,
    })
}

fn query(name: &str, description: &str, schema: Value) -> Value {
    parameter("query", name, description, schema)
}

fn body(name: &str, required: bool, example: Value) -> Value {
    json!({
        "required": required,
        "description": "At most 256 KiB.",
        "content": {"application/json": {"schema": schema(name), "example": example}},
    })
}

fn wait_ms() -> Value {
    query(
        "wait_ms",
        "How long the answer is held at most; alone it waits for `decided`.",
        json!({"type": "integer", "minimum": 0, "maximum": 60_000}),
    )
}

fn traceparent() -> Value {
    parameter(
        "header",
        "traceparent",
        "W3C Trace Context, passed on to participants. What is none is ignored.",
        json!({"type": "string"}),
    )
}

/// An example of a transaction.
fn transaction(state: &str, outcome: Option<&str>) -> Value {
    let branch = |name: &str| {
        let state = if state == "active" { "enlisted" } else { state };
        json!({"participant": name, "state": state, "attempts": u8::from(outcome.is_some()), "last_error": null})
    };
    let decided_at = outcome.map(|_| "2026-11-21T13:30:20.140Z");
    json!({
        "id": EXAMPLE_ID, "state": state, "outcome": outcome, "reason": null, "idempotency_key": null,
        "labels": {"order": "4711"},
        "created_at": "2026-11-21T13:30:20.123Z", "deadline": "2026-11-21T13:30:50.123Z",
        "decided_at": decided_at, "finished_at": null,
        "branches": [branch("east"), branch("west")],
    })
}

fn paths() -> Value {
    let mut paths = json!({});
    paths["/v1/transactions"] = json!({"post": begin(), "get": list()});
    let id = json!([parameter(
        "path",
        "id",
        "The transaction.",
        schema("TransactionId")
    )]);
    for (segment, method, operation) in [
        ("", "get", show_transaction()),
        ("/branches", "post", enlist()),
        ("/commit", "post", commit()),
        ("/abort", "post", abort()),
        ("/outcome", "get", outcome()),
    ] {
        let path = format!("/v1/transactions/{{id}}{segment}");
        paths[path] = json!({"parameters": id, method: operation});
    }
    paths["/openapi.json"] = json!({"get": {
        "tags": ["description"], "operationId": "describe", "summary": "This document.",
        "responses": responses(&[(200, json!({
            "description": "OpenAPI 3.1.",
            "content": {"application/json": {"schema": {"type": "object", "required": ["openapi", "paths"]}}},
        }))], &[BAD]),
    }});
    let servers = json!([{"url": "http://127.0.0.1:7071", "description": "the admin listener"}]);
    for (path, item) in admin() {
        paths[path] = item;
        paths[path]["servers"] = servers.clone();
    }
    paths
}

fn begin() -> Value {
    let committed = transaction("committing", Some("committed"));
    json!({
        "tags": ["transactions"], "operationId": "begin",
        "summary": "Begin a transaction; with `commit`, run it at once.",
        "parameters": [
            parameter("header", "Idempotency-Key",
                "A repeat with the same body gets the same transaction, as it stands now.", schema("IdempotencyKey")),
            traceparent(),
        ],
        "requestBody": body("BeginRequest", false, json!({
            "timeout_ms": 30_000,
            "branches": [
                {"participant": "east", "operations": [{"kind": "debit", "account": 7, "amount": 100}]},
                {"participant": "west", "operations": [{"kind": "credit", "account": 9, "amount": 100}]},
            ],
            "commit": true, "wait": "decided", "wait_ms": 35_000, "labels": {"order": "4711"},
        })),
        "responses": responses(
            &[
                (200, with_transaction(answer("Committed; with `wait` applied: everywhere.", "TransactionView", Some(committed)))),
                (201, with_transaction(answer("Begun, and open.", "TransactionView", Some(transaction("active", None))))),
                (202, with_transaction(answer("Not known, or not everywhere, by the end of the wait. Ask again.", "TransactionView", None))),
                (409, with_transaction(problem(409, &["transaction-aborted"]))),
            ],
            &[
                (400, &["invalid-request", "unknown-participant"]),
                TOO_SLOW, FORGOTTEN, TOO_LARGE, NO_JSON,
                (422, &["idempotency-key-reused"]),
                (503, &["overloaded", "log-unavailable"]),
            ],
        ),
    })
}

fn list() -> Value {
    let page =
        json!({"transactions": [transaction("committing", Some("committed"))], "next": null});
    json!({
        "tags": ["transactions"], "operationId": "list",
        "summary": "Transactions, newest first: records, and what is under way at this coordinator.",
        "parameters": [
            query("state", "In this state.", schema("TransactionState")),
            query("outcome", "With this outcome.", schema("Outcome")),
            query("participant", "With a branch of this participant.", schema("ParticipantName")),
            query("idempotency_key", "Begun with this key.", schema("IdempotencyKey")),
            query("label", "With this label, `key:value`, split at the first colon. All of several.",
                json!({"type": "array", "maxItems": 16, "items": {"type": "string", "pattern": "^[^:]*:"}})),
            query("in_doubt", "Whether some branch voted yes and has not acknowledged the outcome.", json!({"type": "boolean"})),
            query("limit", "How many, at most.", json!({"type": "integer", "minimum": 1, "maximum": 1000, "default": 100})),
            query("after", "`next` of the page before.",
                json!({"type": "string", "pattern": "^[0-9a-f]{28}8[0-9a-f]{3}[89ab][0-9a-f]{15}$"})),
        ],
        "responses": responses(&[(200, answer("A page.", "TransactionList", Some(page)))], &[BAD, NO_LOG]),
    })
}

fn show_transaction() -> Value {
    let shown = transaction("committing", Some("committed"));
    json!({
        "tags": ["transactions"], "operationId": "show", "summary": "Show a transaction, at once or after a wait.",
        "parameters": [
            query("wait", "Until when the answer is held.", json!({"type": "string", "enum": ["decided", "applied"]})),
            wait_ms(),
        ],
        "responses": responses(
            &[(200, answer("The transaction.", "TransactionView", Some(shown)))],
            &[BAD, NOT_HERE, FORGOTTEN, UNSAID],
        ),
    })
}

fn enlist() -> Value {
    let branch = json!({"participant": "east", "state": "enlisted", "attempts": 0, "last_error": null, "remaining_ms": 29_000});
    json!({
        "tags": ["transactions"], "operationId": "enlist", "summary": "Add a branch to an open transaction.",
        "parameters": [traceparent()],
        "requestBody": body("EnlistRequest", true, json!({
            "participant": "east", "operations": [{"kind": "debit", "account": 7, "amount": 100}],
        })),
        "responses": responses(
            &[
                (200, answer("The branch was there.", "EnlistAnswer", None)),
                (201, answer("The branch is enlisted.", "EnlistAnswer", Some(branch))),
            ],
            &[
                (400, &["invalid-request", "unknown-participant"]),
                NOT_HERE, TOO_SLOW,
                (409, &["transaction-not-active", "already-enlisted", "too-many-branches", "work-lost"]),
                FORGOTTEN, TOO_LARGE, NO_JSON, UNSAID,
            ],
        ),
    })
}

fn commit() -> Value {
    let committed = transaction("committing", Some("committed"));
    json!({
        "tags": ["transactions"], "operationId": "commit",
        "summary": "Commit. Repeating it returns the answer as it stands now.",
        "parameters": [traceparent()],
        "requestBody": body("CommitRequest", false, json!({"wait": "decided", "wait_ms": 35_000})),
        "responses": responses(
            &[
                (200, with_transaction(answer("Committed; with `wait` applied: everywhere.", "TransactionView", Some(committed)))),
                (202, with_transaction(answer("Not known, or not everywhere, by the end of the wait. Ask again.", "TransactionView", None))),
                (409, with_transaction(problem(409, &["transaction-aborted"]))),
            ],
            &[BAD, NOT_HERE, TOO_SLOW, FORGOTTEN, TOO_LARGE, NO_JSON, UNSAID],
        ),
    })
}

fn abort() -> Value {
    json!({
        "tags": ["transactions"], "operationId": "abort", "summary": "Abort. Repeating it is fine.",
        "parameters": [traceparent()],
        "requestBody": body("AbortRequest", false, json!({"reason": "the customer went away", "wait_ms": 35_000})),
        "responses": responses(
            &[
                (200, answer("Aborted.", "TransactionView", None)),
                (202, answer("Not known by the end of the wait. Ask again.", "TransactionView", None)),
                (409, with_transaction(problem(409, &["transaction-committed"]))),
            ],
            &[BAD, NOT_HERE, TOO_SLOW, FORGOTTEN, TOO_LARGE, NO_JSON, UNSAID],
        ),
    })
}

fn outcome() -> Value {
    let told = json!({"transaction": EXAMPLE_ID, "participant": "east", "outcome": "committed"});
    let mut answered = answer("What the branch may be told.", "OutcomeAnswer", Some(told));
    answered["headers"] = header(
        "Cache-Control",
        "It may be another answer the next time.",
        json!({"const": "no-store"}),
    );
    let mut participant = query(
        "participant",
        "The branch's name, as its prepare named it.",
        schema("ParticipantName"),
    );
    participant["required"] = true.into();
    json!({
        "tags": ["inquiry"], "operationId": "inquire", "summary": "What became of a participant's branch.",
        "parameters": [participant],
        "responses": responses(&[(200, answered)], &[BAD, (404, &["foreign-transaction"]), NO_LOG]),
    })
}

fn admin() -> Vec<(&'static str, Value)> {
    let status = |word: &str| {
        json!({
            "description": format!("It is {word}."),
            "content": {"application/json": {"schema": {
                "type": "object", "required": ["status"], "properties": {"status": {"const": word}},
            }}},
        })
    };
    let get = |id: &str, summary: &str, responses: Value| json!({"get": {"tags": ["admin"], "operationId": id, "summary": summary, "responses": responses}});
    let page = json!({
        "description": "Text format 0.0.4. `docs/METRICS.md` has the table.",
        "content": {metrics::CONTENT_TYPE: {"schema": {"type": "string"}}},
    });
    let participants =
        json!({"participants": [{"name": "east", "url": "http://127.0.0.1:8081/unanimous"}]});
    vec![
        (
            "/healthz",
            get(
                "health",
                "Is the process alive?",
                responses(&[(200, status("alive"))], &[]),
            ),
        ),
        (
            "/readyz",
            get(
                "readiness",
                "Does the log answer, and has recovery begun?",
                responses(&[(200, status("ready"))], &[NO_LOG]),
            ),
        ),
        (
            "/metrics",
            get(
                "scrape",
                "Metrics for Prometheus.",
                responses(&[(200, page)], &[BAD, (500, &["internal-error"]), NO_LOG]),
            ),
        ),
        (
            "/admin/v1/participants",
            get(
                "listParticipants",
                "Who is registered, by name.",
                responses(
                    &[(200, answer("All.", "ParticipantList", Some(participants)))],
                    &[BAD, NO_LOG],
                ),
            ),
        ),
        ("/admin/v1/participants/{name}", participant()),
    ]
}

fn participant() -> Value {
    let east = || json!({"name": "east", "url": "http://127.0.0.1:8081/unanimous"});
    let view = |description: &str| answer(description, "ParticipantView", Some(east()));
    let unknown: (u16, &[&str]) = (404, &["unknown-participant"]);
    json!({
        "parameters": [parameter("path", "name", "The participant.", schema("ParticipantName"))],
        "get": {
            "tags": ["admin"], "operationId": "showParticipant", "summary": "Where a participant is called.",
            "responses": responses(&[(200, view("It is registered."))], &[BAD, unknown, NO_LOG]),
        },
        "put": {
            "tags": ["admin"], "operationId": "putParticipant",
            "summary": "Register a participant, or give it another address. Kept in the log.",
            "requestBody": body("ParticipantRequest", true, json!({"url": "http://127.0.0.1:8081/unanimous"})),
            "responses": responses(
                &[
                    (200, view("It was registered, and has this address now.")),
                    (201, location(view("It is registered."), "^/admin/v1/participants/[a-z][a-z0-9-]{0,62}$")),
                ],
                &[BAD, TOO_SLOW, (409, &["participant-configured"]), TOO_LARGE, NO_JSON, NO_LOG],
            ),
        },
        "delete": {
            "tags": ["admin"], "operationId": "deleteParticipant", "summary": "Remove a participant.",
            "responses": responses(
                &[(204, json!({"description": "It is gone."}))],
                &[BAD, unknown, (409, &["participant-in-use", "participant-configured"]), NO_LOG],
            ),
        },
    })
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;
    use crate::http::OPERATIONS;

    const METHODS: [&str; 4] = ["get", "post", "put", "delete"];

    /// With `UPDATE_GOLDEN=1` the copy is rewritten instead.
    #[test]
    fn the_golden_copy_is_what_is_served() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(path, TEXT.as_str()).unwrap();
        } else {
            let golden = fs::read_to_string(path).unwrap();
            assert!(
                golden == *TEXT,
                "docs/openapi.json is not what is served: run make fix"
            );
        }
    }

    #[test]
    fn it_describes_every_method_of_every_route_and_nothing_else() {
        let document = document();
        let mut described = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for method in METHODS {
                if item.get(method).is_some() {
                    described.insert((method.to_uppercase(), path.clone()));
                }
            }
        }
        let routes: BTreeSet<_> = OPERATIONS
            .iter()
            .map(|(method, path)| ((*method).to_owned(), (*path).to_owned()))
            .collect();
        assert_eq!(described, routes);
    }

    #[test]
    fn it_is_openapi_3_1_and_every_reference_leads_somewhere() {
        let document = document();
        let version = document["openapi"].as_str().unwrap();
        assert!(version.starts_with("3.1."), "{version}");
        let text = document.to_string();
        for rest in text.split("\"$ref\":\"#").skip(1) {
            let pointer = rest.split('"').next().unwrap();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
        // And every schema is needed.
        for name in document["components"]["schemas"]
            .as_object()
            .unwrap()
            .keys()
        {
            let reference = format!("\"#/components/schemas/{name}\"");
            let is_general =
                ["NotFoundProblem", "MethodNotAllowedProblem"].contains(&name.as_str());
            assert!(is_general || text.contains(&reference), "{name}");
        }
    }
}
