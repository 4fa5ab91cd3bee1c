//! A participant that answers whatever a test wants, and remembers every request. With an
//! [upstream](Stub::in_front_of) it is a proxy that holds requests or answers back.
//!
//! Requests are known by their *kind*: the last segment of the path, such as `prepare`, `commit`,
//! `abort` or `outcome`.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use unanimous_lab::wait::until;
use unanimous_protocol::wire::BranchRequest;

use super::SOON;

/// What the stub does with a request.
#[derive(Clone, Debug)]
pub(crate) enum Does {
    /// Answers as a participant does that agrees, or hands the request to the upstream.
    Agree,
    /// 200, the echo, and this vote.
    Vote(&'static str),
    /// 200, the echo, *no*, with this code and reason.
    Refuse {
        code: Option<&'static str>,
        reason: &'static str,
    },
    /// This status, content type and body.
    Answer {
        status: u16,
        content_type: &'static str,
        body: String,
    },
    /// 200 with this JSON; `$transaction` and `$participant` in texts stand for the request's own.
    Json(Value),
    /// 307 to this address.
    Redirect(String),
    /// Nothing, and the connection stays.
    Hang,
    /// Nothing, and the connection goes.
    Cut,
}

impl Does {
    /// A participant's problem.
    pub(crate) fn problem(status: u16, code: &str) -> Self {
        let problem = json!({
            "type": format!("urn:unanimous:problem:{code}"), "title": code, "status": status,
            "detail": format!("the stub says {code}"), "code": code,
        });
        Self::Answer {
            status,
            content_type: "application/problem+json",
            body: problem.to_string(),
        }
    }

    /// An answer of that status and body, as a page.
    pub(crate) fn page(status: u16, body: &str) -> Self {
        Self::Answer {
            status,
            content_type: "text/html",
            body: body.to_owned(),
        }
    }
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) at: Instant,
    pub(crate) method: String,
    /// With the query.
    pub(crate) target: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

impl Seen {
    pub(crate) fn kind(&self) -> &str {
        let path = self.target.split('?').next().unwrap_or_default();
        path.rsplit('/').next().unwrap_or_default()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }

    /// Transaction and participant, to the letter. Operations may hold numbers that no [`Value`] holds.
    fn names(&self) -> (String, String) {
        let read: Result<BranchRequest, _> = serde_json::from_str(&self.body);
        let names = read.map(|r| (r.transaction.to_string(), r.participant.to_string()));
        names.unwrap_or_default()
    }

    pub(crate) fn transaction(&self) -> String {
        self.names().0
    }
}

/// Where a held request waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Held {
    #[default]
    No,
    /// It has arrived, and nothing was done with it.
    Request,
    /// All was done, and the answer waits.
    Answer,
}

#[derive(Default)]
struct Kind {
    once: VecDeque<Does>,
    always: Option<Does>,
    held: watch::Sender<Held>,
}

struct Shared {
    name: String,
    seen: Mutex<Vec<Seen>>,
    kinds: Mutex<BTreeMap<String, Kind>>,
    upstream: Option<String>,
    client: reqwest::Client,
}

impl Shared {
    fn new(name: &str, upstream: Option<String>) -> Self {
        Self {
            name: name.to_owned(),
            seen: Mutex::default(),
            kinds: Mutex::default(),
            upstream,
            client: super::coordinator::client(),
        }
    }
}

/// See the module's head. It ends with the test.
pub(crate) struct Stub {
    pub(crate) name: String,
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Stub {
    /// A participant that agrees to everything until it is told otherwise.
    pub(crate) async fn start(name: &str) -> Self {
        Self::serve(name, "127.0.0.1:0", Shared::new(name, None)).await
    }

    /// A proxy in front of `upstream`, such as `http://127.0.0.1:8081`: paths stay as they are.
    pub(crate) async fn in_front_of(name: &str, upstream: &str) -> Self {
        let upstream = upstream.trim_end_matches('/').to_owned();
        Self::serve(name, "127.0.0.1:0", Shared::new(name, Some(upstream))).await
    }

    /// Another life of a stub that was stopped, at the same address.
    pub(crate) async fn restarted(stopped: Stopped) -> Self {
        let address = stopped.address.to_string();
        Self::serve(&stopped.name, &address, Shared::new(&stopped.name, None)).await
    }

    async fn serve(name: &str, address: &str, shared: Shared) -> Self {
        let listener = TcpListener::bind(address)
            .await
            .expect("the stub needs a port");
        let address = listener.local_addr().expect("a bound port has an address");
        let shared = Arc::new(shared);
        let serving = Arc::clone(&shared);
        let accepting = tokio::spawn(async move {
            // Dropped with the task, and its connections with it.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(connection(stream, Arc::clone(&serving)));
            }
        });
        Self {
            name: name.to_owned(),
            address,
            shared,
            accepting,
        }
    }

    /// Nobody listens at its address any more, and its connections are cut.
    pub(crate) async fn stop(mut self) -> Stopped {
        self.accepting.abort();
        (&mut self.accepting).await.ok();
        Stopped {
            name: self.name.clone(),
            address: self.address,
        }
    }

    /// The base URL to register.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/unanimous", self.address)
    }

    fn kinds(&self) -> MutexGuard<'_, BTreeMap<String, Kind>> {
        self.shared.kinds.lock().expect("no test panics with it")
    }

    /// What it does with requests of this kind from now on.
    pub(crate) fn always(&self, kind: &str, does: Does) {
        self.kinds().entry(kind.to_owned()).or_default().always = Some(does);
    }

    /// What it does with the next request of this kind; several queue up.
    pub(crate) fn once(&self, kind: &str, does: Does) {
        let mut kinds = self.kinds();
        kinds
            .entry(kind.to_owned())
            .or_default()
            .once
            .push_back(does);
    }

    /// From now on requests of this kind are noted and wait, undone, until they are [released](Self::release).
    pub(crate) fn hold(&self, kind: &str) {
        self.set_held(kind, Held::Request);
    }

    /// From now on requests of this kind are done, and their answers wait.
    pub(crate) fn hold_answers(&self, kind: &str) {
        self.set_held(kind, Held::Answer);
    }

    /// Lets go what is held of this kind, and holds nothing more.
    pub(crate) fn release(&self, kind: &str) {
        self.set_held(kind, Held::No);
    }

    fn set_held(&self, kind: &str, held: Held) {
        let mut kinds = self.kinds();
        let kind = kinds.entry(kind.to_owned()).or_default();
        kind.held.send_replace(held);
    }

    /// Every request, in the order in which they arrived, but for those that only ask who is there.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        let mut seen = self.all_seen();
        seen.retain(|seen| seen.kind() != "describe");
        seen
    }

    fn all_seen(&self) -> Vec<Seen> {
        self.shared
            .seen
            .lock()
            .expect("no test panics with it")
            .clone()
    }

    /// Every request of this kind.
    pub(crate) fn seen_of(&self, kind: &str) -> Vec<Seen> {
        let mut seen = self.all_seen();
        seen.retain(|seen| seen.kind() == kind);
        seen
    }

    /// Waits until `count` requests of this kind have arrived; the last of them.
    pub(crate) async fn arrived(&self, kind: &str, count: usize) -> Seen {
        let what = format!("{} gets {count} requests of kind {kind}", self.name);
        until(&what, SOON, async || {
            let mut seen = self.seen_of(kind);
            if seen.len() < count {
                return Err(format!("{:#?}", self.seen()));
            }
            Ok(seen.swap_remove(count - 1))
        })
        .await
        .expect("the request arrives")
    }
}

/// What [`Stub::restarted`] needs.
pub(crate) struct Stopped {
    pub(crate) name: String,
    address: SocketAddr,
}

impl Stopped {
    /// Where nobody listens now.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/unanimous", self.address)
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// One connection: request after request, until one side closes.
async fn connection(mut stream: TcpStream, shared: Arc<Shared>) {
    let mut buffer = Vec::new();
    while let Some(seen) = read(&mut stream, &mut buffer).await {
        let Some(answer) = serve_one(seen, &shared).await else {
            return;
        };
        if stream.write_all(&answer).await.is_err() {
            return;
        }
    }
}

/// The whole answer; `None` cuts the connection.
async fn serve_one(seen: Seen, shared: &Shared) -> Option<Vec<u8>> {
    let mut held = {
        let mut kinds = shared.kinds.lock().expect("no test panics with it");
        let kind = kinds.entry(seen.kind().to_owned()).or_default();
        kind.held.subscribe()
    };
    let all = |shared: &Shared, seen: Seen| {
        let mut all = shared.seen.lock().expect("no test panics with it");
        all.push(seen);
    };
    all(shared, seen.clone());
    held.wait_for(|held| *held != Held::Request).await.ok()?;
    let does = {
        let mut kinds = shared.kinds.lock().expect("no test panics with it");
        let kind = kinds.entry(seen.kind().to_owned()).or_default();
        let once = kind.once.pop_front();
        once.or_else(|| kind.always.clone()).unwrap_or(Does::Agree)
    };
    let answer = match (does, &shared.upstream) {
        (Does::Agree, Some(upstream)) => forward(&seen, &shared.client, upstream).await?,
        (Does::Agree, None) if seen.kind() == "describe" => {
            json_answer(&json!({"participant": shared.name, "protocol": 1}).to_string())
        }
        (Does::Agree, None) => agree(&seen),
        (Does::Vote(vote), _) => reply(&seen, json!({"vote": vote})),
        (Does::Refuse { code, reason }, _) => {
            let mut members = json!({"vote": "no", "reason": reason});
            if let Some(code) = code {
                members["code"] = code.into();
            }
            reply(&seen, members)
        }
        (
            Does::Answer {
                status,
                content_type,
                body,
            },
            _,
        ) => answer(
            status,
            &format!("content-type: {content_type}\r\n"),
            body.as_bytes(),
        ),
        (Does::Json(value), _) => {
            let (transaction, participant) = seen.names();
            let text = value.to_string().replace("$transaction", &transaction);
            json_answer(&text.replace("$participant", &participant))
        }
        (Does::Redirect(to), _) => answer(307, &format!("location: {to}\r\n"), b""),
        (Does::Hang, _) => std::future::pending().await,
        (Does::Cut, _) => return None,
    };
    held.wait_for(|held| *held == Held::No).await.ok()?;
    Some(answer)
}

fn agree(seen: &Seen) -> Vec<u8> {
    match seen.kind() {
        "prepare" => reply(seen, json!({"vote": "yes"})),
        "commit" => reply(seen, json!({"state": "committed"})),
        "abort" => reply(seen, json!({"state": "aborted"})),
        _ => answer(404, "", b""),
    }
}

/// 200 with the echo and these members.
fn reply(seen: &Seen, mut members: Value) -> Vec<u8> {
    let (transaction, participant) = seen.names();
    members["transaction"] = transaction.into();
    members["participant"] = participant.into();
    json_answer(&members.to_string())
}

fn json_answer(body: &str) -> Vec<u8> {
    answer(200, "content-type: application/json\r\n", body.as_bytes())
}

fn answer(status: u16, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status} Stub\r\n{headers}content-length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// The upstream's answer; `None`, a cut connection, when it gave none.
async fn forward(seen: &Seen, client: &reqwest::Client, upstream: &str) -> Option<Vec<u8>> {
    let method = seen.method.parse().ok()?;
    let mut request = client.request(method, format!("{upstream}{}", seen.target));
    for (name, value) in &seen.headers {
        // Of this connection, not of the request.
        if !["host", "connection", "content-length"].contains(&name.as_str()) {
            request = request.header(name, value);
        }
    }
    let response = request.body(seen.body.clone()).send().await.ok()?;
    let status = response.status().as_u16();
    let mut headers = String::new();
    for (name, value) in response.headers() {
        if !["connection", "content-length", "transfer-encoding"].contains(&name.as_str()) {
            headers.push_str(&format!("{name}: {}\r\n", value.to_str().ok()?));
        }
    }
    let body = response.bytes().await.ok()?;
    Some(answer(status, &headers, &body))
}

/// The next request; what came after it stays in `buffer`.
async fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Seen> {
    loop {
        if let Some((seen, length)) = parse(buffer) {
            buffer.drain(..length);
            return Some(seen);
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}

/// A whole request and its length; `None` when more is needed.
fn parse(bytes: &[u8]) -> Option<(Seen, usize)> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = head.lines();
    let mut words = lines.next()?.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.get("content-length");
    let length: usize = length.and_then(|text| text.parse().ok()).unwrap_or(0);
    let body = bytes.get(end + 4..end + 4 + length)?;
    let seen = Seen {
        at: Instant::now(),
        method,
        target,
        headers,
        body: String::from_utf8_lossy(body).into_owned(),
    };
    Some((seen, end + 4 + length))
}
