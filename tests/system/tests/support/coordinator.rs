//! The coordinator as a process of its own, and what it answers.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use reqwest::header::{HeaderMap, HeaderName};
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use unanimous_lab::wait::until;
use unanimous_lab::{Process, Program, scratch};

use super::{SOON, Stub};

/// The coordinator's binary.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_system-unanimous");

/// A client without a proxy, redirects or a timeout shorter than what a test waits for.
pub(crate) fn client() -> Client {
    // An error says that there is a provider already.
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(2 * SOON)
        .build()
        .expect("a client can be made")
}

/// Any free port.
const ANYWHERE: &str = "127.0.0.1:0";

/// `serve` on free ports; the log is in `log`.
pub(crate) fn serve(log: &Path) -> Program {
    serve_at(ANYWHERE, log)
}

fn serve_at(listen: &str, log: &Path) -> Program {
    Program::new("coordinator", BINARY)
        .args(["serve", "--listen", listen])
        .args(["--admin-listen", "127.0.0.1:0"])
        .arg("--log")
        .arg(format!("sqlite:{}", log.display()))
}

/// A running coordinator with a log of its own.
pub(crate) struct Coordinator {
    pub(crate) process: Process,
    url: String,
    admin_url: String,
    client: Client,
    log: PathBuf,
    _directory: TempDir,
}

impl Coordinator {
    /// Starts one that knows these participants.
    pub(crate) async fn start(participants: &[&Stub]) -> Self {
        let named: Vec<(&str, String)> = participants
            .iter()
            .map(|stub| (stub.name.as_str(), stub.url()))
            .collect();
        Self::start_with(&named, |program| program).await
    }

    /// Starts one that knows participants at these URLs, with further arguments.
    pub(crate) async fn start_with(
        participants: &[(&str, String)],
        further: impl FnOnce(Program) -> Program,
    ) -> Self {
        Self::launch(ANYWHERE, participants, further).await
    }

    /// Starts one at a chosen address, where its later lives are found too.
    pub(crate) async fn start_at(listen: &str, participants: &[(&str, String)]) -> Self {
        Self::launch(listen, participants, |program| program).await
    }

    async fn launch(
        listen: &str,
        participants: &[(&str, String)],
        further: impl FnOnce(Program) -> Program,
    ) -> Self {
        let directory = scratch::directory("coordinator").expect("a directory can be made");
        let log = directory.path().join("log.sqlite");
        let mut program = serve_at(listen, &log);
        for (name, url) in participants {
            program = program.args(["--participant", &format!("{name}={url}")]);
        }
        let process = further(program).start().expect("the coordinator starts");
        let mut coordinator = Self {
            process,
            url: String::new(),
            admin_url: String::new(),
            client: client(),
            log,
            _directory: directory,
        };
        coordinator.wait_until_ready().await;
        coordinator
    }

    async fn wait_until_ready(&mut self) {
        let ready = self.process.wait_for_line("ready ", SOON).await;
        let ready = ready.expect("the coordinator becomes ready");
        self.url = format!(
            "http://{}",
            ready.field("listen").expect("the API's address")
        );
        self.admin_url = format!(
            "http://{}",
            ready.field("admin").expect("the admin address")
        );
    }

    /// SIGKILL, and another life on the same log.
    pub(crate) async fn kill_and_restart(&mut self) {
        self.process
            .restart()
            .expect("the coordinator starts again");
        self.wait_until_ready().await;
    }

    /// Starts it again after it was killed.
    pub(crate) async fn restart_as(&mut self, program: Program) {
        self.process
            .restart_as(program)
            .expect("the coordinator starts again");
        self.wait_until_ready().await;
    }

    /// Its log's file.
    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// The API's base URL.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The API's address.
    pub(crate) fn address(&self) -> SocketAddr {
        let address = self.url.strip_prefix("http://").expect("it is an address");
        address.parse().expect("it is an address")
    }

    /// Any request, `path` below the API's address.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url))
    }

    /// Any request at the admin listener.
    pub(crate) fn admin(&self, method: Method, path: &str) -> RequestBuilder {
        self.client
            .request(method, format!("{}{path}", self.admin_url))
    }

    /// POST with a JSON body.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        Answer::of(self.request(Method::POST, path).json(body)).await
    }

    /// POST of this text as JSON.
    pub(crate) async fn post_text(&self, path: &str, body: impl Into<reqwest::Body>) -> Answer {
        let request = self.request(Method::POST, path);
        let request = request.header("content-type", "application/json");
        Answer::of(request.body(body)).await
    }

    /// GET.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        Answer::of(self.request(Method::GET, path)).await
    }

    /// `POST /v1/transactions`
    pub(crate) async fn begin(&self, body: &Value) -> Answer {
        self.post("/v1/transactions", body).await
    }

    /// `POST /v1/transactions` with an idempotency key.
    pub(crate) async fn begin_keyed(&self, key: &str, body: &Value) -> Answer {
        let request = self.request(Method::POST, "/v1/transactions");
        Answer::of(request.header("idempotency-key", key).json(body)).await
    }

    /// An open transaction; its id.
    pub(crate) async fn open(&self) -> String {
        self.begin(&json!({})).await.is(201).id()
    }

    /// `POST …/branches`
    pub(crate) async fn enlist(&self, id: &str, body: &Value) -> Answer {
        self.post(&format!("/v1/transactions/{id}/branches"), body)
            .await
    }

    /// `POST …/commit`
    pub(crate) async fn commit(&self, id: &str) -> Answer {
        self.post(&format!("/v1/transactions/{id}/commit"), &json!({}))
            .await
    }

    /// `POST …/abort`
    pub(crate) async fn abort(&self, id: &str) -> Answer {
        self.post(&format!("/v1/transactions/{id}/abort"), &json!({}))
            .await
    }

    /// `GET …/{id}`
    pub(crate) async fn show(&self, id: &str) -> Answer {
        self.get(&format!("/v1/transactions/{id}")).await
    }

    /// `GET …/outcome`
    pub(crate) async fn outcome(&self, id: &str, participant: &str) -> Answer {
        let path = format!("/v1/transactions/{id}/outcome?participant={participant}");
        self.get(&path).await
    }

    /// Waits until GET shows the transaction in this state; what it shows.
    pub(crate) async fn reaches(&self, id: &str, state: &str) -> Value {
        until(&format!("{id} is {state}"), SOON, async || {
            let shown = self.show(id).await;
            if shown.body["state"] == state {
                Ok(shown.body)
            } else {
                Err(shown.text)
            }
        })
        .await
        .expect("it gets there")
    }
}

/// An answer, read whole.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
    /// `Null` where the text is no JSON.
    pub(crate) body: Value,
}

impl Answer {
    /// Sends the request and reads all of the answer.
    pub(crate) async fn of(request: RequestBuilder) -> Self {
        Self::try_of(request).await.expect("there is an answer")
    }

    /// As [`Self::of`], for a coordinator that may die meanwhile.
    pub(crate) async fn try_of(request: RequestBuilder) -> reqwest::Result<Self> {
        let response = request.send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let text = response.text().await?;
        let body = serde_json::from_str(&text).unwrap_or_default();
        Ok(Self {
            status,
            headers,
            text,
            body,
        })
    }

    /// Itself, if it has this status.
    #[track_caller]
    pub(crate) fn is(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text);
        self
    }

    /// Itself, if it is this problem, in every member that RFC 9457 and our contract name.
    #[track_caller]
    pub(crate) fn problem(self, status: u16, code: &str) -> Self {
        assert_eq!(self.status, status, "{}", self.text);
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(self.body["code"], code, "{}", self.text);
        assert_eq!(self.body["status"], status, "{}", self.text);
        let urn = format!("urn:unanimous:problem:{code}");
        assert_eq!(self.body["type"], urn.as_str(), "{}", self.text);
        for member in ["title", "detail"] {
            let text = self.body[member].as_str().unwrap_or_default();
            assert!(!text.is_empty(), "no {member}: {}", self.text);
        }
        self
    }

    /// Itself, if it is 409 `transaction-aborted` with this reason's code, there and in the object.
    #[track_caller]
    pub(crate) fn aborted(self, reason: &str) -> Self {
        let answer = self.problem(409, "transaction-aborted");
        assert_eq!(answer.body["reason"]["code"], reason, "{}", answer.text);
        let transaction = &answer.body["transaction"];
        assert_eq!(transaction["outcome"], "aborted", "{}", answer.text);
        assert_eq!(
            transaction["reason"], answer.body["reason"],
            "{}",
            answer.text
        );
        answer
    }

    /// Itself, if its detail names all of these.
    #[track_caller]
    pub(crate) fn names(self, words: &[&str]) -> Self {
        let detail = self.body["detail"].as_str().unwrap_or_default();
        for word in words {
            assert!(detail.contains(word), "{word:?} is not in: {}", self.text);
        }
        self
    }

    /// A header's text; empty where there is none.
    pub(crate) fn header(&self, name: &'static str) -> &str {
        let value = self.headers.get(HeaderName::from_static(name));
        value
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// The transaction that it shows, of a success or a problem.
    #[track_caller]
    pub(crate) fn transaction(&self) -> &Value {
        let of_problem = &self.body["transaction"];
        let shown = if of_problem.is_object() {
            of_problem
        } else {
            &self.body
        };
        assert!(shown["id"].is_string(), "no transaction: {}", self.text);
        shown
    }

    /// The id of that transaction.
    #[track_caller]
    pub(crate) fn id(&self) -> String {
        let id = self.transaction()["id"].as_str();
        id.expect("an id is text").to_owned()
    }
}
