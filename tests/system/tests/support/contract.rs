//! The coordinator's OpenAPI description, held against every answer that a test gets: its route, method, status, content
//! type, headers and body have to be described, and nothing may be in them that is not. A request that was accepted has
//! to be one that the description allows.
//!
//! Answers are *closed* here: a member that the description does not name is an error, though clients ignore it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex};

use jsonschema::Validator;
use reqwest::Request;
use reqwest::header::HeaderMap;
use serde_json::{Map, Value, json};

/// The golden copy; a test says that it is what is served.
pub(crate) fn document() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    std::fs::read_to_string(path).expect("the golden copy is there")
}

/// Headers that mean something: none may be sent that is not described.
const MEANINGFUL: [&str; 4] = ["allow", "cache-control", "location", "retry-after"];

static CONTRACT: LazyLock<Contract> = LazyLock::new(Contract::read);
/// Where the coordinators of this test listen, and whether as admin. Whatever else it calls has another contract.
static LISTENERS: Mutex<BTreeMap<String, bool>> = Mutex::new(BTreeMap::new());

/// From now on answers of these addresses are a coordinator's.
pub(crate) fn listens(api: &str, admin: &str) {
    let mut listeners = LISTENERS.lock().expect("nobody panics with it");
    listeners.insert(api.to_owned(), false);
    listeners.insert(admin.to_owned(), true);
}

/// What of a request the contract speaks of.
pub(crate) struct Asked {
    method: String,
    path: String,
    of_admin: bool,
    body: Option<Vec<u8>>,
}

impl Asked {
    /// `None` where the request is not for a coordinator.
    pub(crate) fn of(request: &Request) -> Option<Self> {
        let url = request.url();
        let address = format!("{}:{}", url.host_str()?, url.port()?);
        let listeners = LISTENERS.lock().expect("nobody panics with it");
        let body = request.body().and_then(|body| body.as_bytes());
        Some(Self {
            method: request.method().as_str().to_lowercase(),
            path: url.path().to_owned(),
            of_admin: *listeners.get(&address)?,
            body: body.map(<[u8]>::to_vec),
        })
    }

    /// `POST /v1/transactions` with this body, at a coordinator.
    pub(crate) fn to_begin(body: &[u8]) -> Self {
        Self {
            method: "post".to_owned(),
            path: "/v1/transactions".to_owned(),
            of_admin: false,
            body: Some(body.to_vec()),
        }
    }

    /// Panics where the answer is not what is described.
    #[track_caller]
    pub(crate) fn check(&self, status: u16, headers: &HeaderMap, text: &str) {
        if let Err(wrong) = CONTRACT.check(self, status, headers, text) {
            let Self { method, path, .. } = self;
            panic!("{wrong}\nin the answer to {method} {path}: {status} {headers:?}\n{text}");
        }
    }
}

struct Contract {
    document: Value,
    /// With every object closed, for answers.
    closed: Value,
    compiled: Mutex<HashMap<String, Arc<Validator>>>,
}

type Checked = Result<(), String>;

impl Contract {
    fn read() -> Self {
        let document: Value = serde_json::from_str(&document()).expect("the golden copy is JSON");
        let mut closed = document["components"].clone();
        close(&mut closed);
        Self {
            document,
            closed,
            compiled: Mutex::default(),
        }
    }

    fn check(&self, asked: &Asked, status: u16, headers: &HeaderMap, text: &str) -> Checked {
        let Some((template, item)) = self.route(asked) else {
            return self.check_general(404, "NotFoundProblem", status, headers, text);
        };
        let Some(operation) = item.get(&asked.method) else {
            let methods = ["get", "put", "post", "delete"];
            let has = methods.iter().filter(|method| item.get(**method).is_some());
            let has: BTreeSet<_> = has.map(|method| method.to_uppercase()).collect();
            let allow = header(headers, "allow").unwrap_or_default();
            let allow: BTreeSet<_> = allow.split(", ").map(str::to_owned).collect();
            if allow != has {
                return Err(format!("Allow says {allow:?}, and there are {has:?}"));
            }
            return self.check_general(405, "MethodNotAllowedProblem", status, headers, text);
        };
        let response = operation["responses"].get(status.to_string());
        let response = response.ok_or("the status is not described")?;
        let place = format!("{} {template} {status}", asked.method);
        self.check_headers(&place, response, headers)?;
        self.check_body(&place, response, headers, text)?;
        if (200..300).contains(&status) {
            self.check_request(&place, operation, asked)?;
        }
        Ok(())
    }

    /// The route's template and its path item.
    fn route(&self, asked: &Asked) -> Option<(&String, &Map<String, Value>)> {
        let paths = self.document["paths"].as_object()?;
        let fits = |template: &str| {
            let (mut ours, mut theirs) = (template.split('/'), asked.path.split('/'));
            loop {
                match (ours.next(), theirs.next()) {
                    (None, None) => return true,
                    (Some(name), Some(segment)) if name.starts_with('{') => {
                        if segment.is_empty() {
                            return false;
                        }
                    }
                    (Some(ours), Some(theirs)) if ours == theirs => {}
                    _ => return false,
                }
            }
        };
        let (template, item) = paths.iter().find(|(template, _)| fits(template))?;
        let item = item.as_object()?;
        (item.contains_key("servers") == asked.of_admin).then_some((template, item))
    }

    /// What every path or method that is not described is answered with.
    fn check_general(
        &self,
        expected: u16,
        problem: &str,
        status: u16,
        headers: &HeaderMap,
        text: &str,
    ) -> Checked {
        if status != expected {
            return Err(format!("route or method is not described, so {expected}"));
        }
        let schema = json!({"$ref": format!("#/components/schemas/{problem}")});
        let content = json!({"application/problem+json": {"schema": schema}});
        self.check_body(problem, &json!({"content": content}), headers, text)
    }

    fn check_headers(&self, place: &str, response: &Value, headers: &HeaderMap) -> Checked {
        let mut described = BTreeMap::new();
        if let Some(all) = response["headers"].as_object() {
            for (name, header) in all {
                described.insert(name.to_lowercase(), header);
            }
        }
        for (name, description) in &described {
            let text = header(headers, name).ok_or(format!("no header {name}"))?;
            let number = text.parse::<i64>().map(Value::from);
            let value = number.unwrap_or(Value::from(text));
            let place = format!("{place} {name}");
            self.valid(&place, &description["schema"], &self.closed, &value)?;
        }
        for name in MEANINGFUL {
            if headers.contains_key(name) && !described.contains_key(name) {
                return Err(format!("the header {name} is not described"));
            }
        }
        Ok(())
    }

    fn check_body(
        &self,
        place: &str,
        response: &Value,
        headers: &HeaderMap,
        text: &str,
    ) -> Checked {
        let Some(content) = response["content"].as_object() else {
            return if text.is_empty() && !headers.contains_key("content-type") {
                Ok(())
            } else {
                Err("no body is described".to_owned())
            };
        };
        let media_type = header(headers, "content-type").unwrap_or_default();
        let described = content.get(media_type);
        let described = described.ok_or(format!("{media_type} is not described"))?;
        let body = if media_type.ends_with("json") {
            serde_json::from_str(text).map_err(|error| format!("it is no JSON: {error}"))?
        } else {
            Value::from(text)
        };
        self.valid(place, &described["schema"], &self.closed, &body)
    }

    fn check_request(&self, place: &str, operation: &Value, asked: &Asked) -> Checked {
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        let body = asked.body.as_deref().unwrap_or_default();
        if schema.is_null() {
            return Ok(());
        }
        let body = if body.is_empty() { b"{}" } else { body };
        // A body may hold numbers that a `Value` does not, and is as good as any.
        let Ok(body) = serde_json::from_slice(body) else {
            return Ok(());
        };
        let place = format!("{place} request");
        self.valid(&place, schema, &self.document["components"], &body)
            .map_err(|wrong| format!("it was accepted, and should not have been: {wrong}"))
    }

    fn valid(&self, place: &str, schema: &Value, components: &Value, value: &Value) -> Checked {
        let compiled = {
            let mut compiled = self.compiled.lock().expect("nobody panics with it");
            let known = compiled.entry(place.to_owned()).or_insert_with(|| {
                let whole = json!({"allOf": [schema], "components": components});
                let validator = jsonschema::draft202012::new(&whole);
                Arc::new(validator.unwrap_or_else(|error| panic!("{place}: {error}")))
            });
            Arc::clone(known)
        };
        let errors = compiled.iter_errors(value);
        let wrong: Vec<_> = errors
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        if wrong.is_empty() {
            Ok(())
        } else {
            Err(wrong.join("\n"))
        }
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// No object has members that are not described.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            object.values_mut().for_each(close);
            if object.get("type") == Some(&json!("object")) && object.contains_key("properties") {
                let closed = object.entry("additionalProperties");
                closed.or_insert(Value::Bool(false));
            }
        }
        Value::Array(several) => several.iter_mut().for_each(close),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// What `Contract::check` says of an answer to this request.
fn judged(asked: &Asked, status: u16, pairs: &[(&str, &str)], body: &Value) -> Checked {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        let name: reqwest::header::HeaderName = name.parse().expect("a name");
        headers.insert(name, value.parse().expect("a value"));
    }
    CONTRACT.check(asked, status, &headers, &body.to_string())
}

const ID: &str = "5eed0001-0001-8000-8000-100000000001";

#[test]
fn an_answer_that_is_not_described_is_seen() {
    let asked = |method: &str, path: &str| Asked {
        method: method.to_owned(),
        path: path.to_owned(),
        of_admin: false,
        body: None,
    };
    let json = ("content-type", "application/json");
    let fresh = ("cache-control", "no-store");
    let inquiry = asked("get", &format!("/v1/transactions/{ID}/outcome"));
    let told = json!({"transaction": ID, "participant": "east", "outcome": "pending"});
    assert_eq!(judged(&inquiry, 200, &[json, fresh], &told), Ok(()));
    let with = |member: &str, value: Value| {
        let mut told = told.clone();
        told[member] = value;
        told
    };
    let problem = |code: &str, status: u16| {
        json!({"type": format!("urn:unanimous:problem:{code}"), "title": code, "status": status,
               "detail": "it is so", "code": code})
    };
    let problem_json = ("content-type", "application/problem+json");
    let foreign = problem("foreign-transaction", 404);
    assert_eq!(judged(&inquiry, 404, &[problem_json], &foreign), Ok(()));
    for (what, status, headers, body) in [
        ("a status", 201, vec![json, fresh], told.clone()),
        (
            "a member",
            200,
            vec![json, fresh],
            with("colour", "red".into()),
        ),
        (
            "a value",
            200,
            vec![json, fresh],
            with("outcome", "perhaps".into()),
        ),
        (
            "a missing member",
            200,
            vec![json, fresh],
            json!({"transaction": ID}),
        ),
        ("a missing header", 200, vec![json], told.clone()),
        (
            "a header",
            200,
            vec![json, fresh, ("location", "/")],
            told.clone(),
        ),
        (
            "a header's value",
            200,
            vec![json, ("cache-control", "public")],
            told.clone(),
        ),
        (
            "a content type",
            200,
            vec![("content-type", "text/html"), fresh],
            told.clone(),
        ),
        ("a code", 404, vec![problem_json], problem("forgotten", 404)),
        (
            "another status inside",
            404,
            vec![problem_json],
            problem("foreign-transaction", 410),
        ),
    ] {
        let judged = judged(&inquiry, status, &headers, &body);
        assert!(judged.is_err(), "{what} is not seen");
    }
    let nowhere = asked("get", "/v1/colours");
    assert_eq!(
        judged(&nowhere, 404, &[problem_json], &problem("not-found", 404)),
        Ok(())
    );
    assert!(judged(&nowhere, 200, &[json], &json!({})).is_err());
    let no_method = problem("method-not-allowed", 405);
    let commit = asked("get", &format!("/v1/transactions/{ID}/commit"));
    let allow = |methods: &'static str| [problem_json, ("allow", methods)];
    assert_eq!(judged(&commit, 405, &allow("POST"), &no_method), Ok(()));
    assert!(judged(&commit, 405, &allow("GET, POST"), &no_method).is_err());
    // Members of a problem's own are asked for, and of its code alone.
    let show = asked("get", &format!("/v1/transactions/{ID}"));
    let mut elsewhere = problem("other-node", 404);
    assert!(judged(&show, 404, &[problem_json], &elsewhere).is_err());
    elsewhere["node"] = 7.into();
    assert_eq!(judged(&show, 404, &[problem_json], &elsewhere), Ok(()));
    let mut unknown = problem("unknown-transaction", 404);
    unknown["node"] = 7.into();
    assert!(judged(&show, 404, &[problem_json], &unknown).is_err());
}

#[test]
fn a_request_that_should_not_have_been_accepted_is_seen() {
    let open = json!({
        "id": ID, "state": "active", "outcome": null, "reason": null, "idempotency_key": null,
        "labels": {}, "created_at": null, "deadline": null, "decided_at": null, "finished_at": null,
        "branches": [],
    });
    let place = format!("/v1/transactions/{ID}");
    let headers = [
        ("content-type", "application/json"),
        ("location", place.as_str()),
    ];
    let accepted = |body: Value| {
        let asked = Asked {
            method: "post".to_owned(),
            path: "/v1/transactions".to_owned(),
            of_admin: false,
            body: Some(body.to_string().into_bytes()),
        };
        judged(&asked, 201, &headers, &open)
    };
    for good in [
        json!({}),
        json!({"wait": null, "timeout_ms": null}),
        json!({"timeout_ms": 300_000, "commit": true, "wait_ms": 0}),
        json!({"branches": [{"participant": "east", "operations": [1, "a", null]}]}),
    ] {
        assert_eq!(accepted(good.clone()), Ok(()), "{good}");
    }
    let many: Vec<_> = (0..33)
        .map(|n| json!({"participant": format!("p{n}")}))
        .collect();
    for bad in [
        json!({"colour": "red"}),
        json!({"timeout_ms": 0}),
        json!({"timeout_ms": 300_001}),
        json!({"wait": "applied"}),
        json!({"wait_ms": 1, "commit": false}),
        json!({"commit": true, "wait_ms": 60_001}),
        json!({"branches": [{"participant": "East"}]}),
        json!({"branches": many}),
        json!({"labels": {"Order": "1"}}),
        json!({"labels": {"order": "x".repeat(257)}}),
    ] {
        assert!(accepted(bad.clone()).is_err(), "{bad} is not seen");
    }
}
