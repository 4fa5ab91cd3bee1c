//! A place on the road where requests can be held: an HTTP proxy between two of our programs, for
//! moments that last a millisecond by nature and are wanted for as long as one needs to look.
//!
//! It understands as much of HTTP/1.1 as our programs speak to each other: requests one after the
//! other on a connection, with a `Content-Length` or without a body. Answers pass as they come. When
//! nobody listens behind it, the connection is closed: *refused* is seen as *broken* through a gate.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::wait::until;

/// A head or a body beyond this is not from one of our programs.
const BYTES_MAX: usize = 1024 * 1024;

/// An open or half-closed gate in front of one address. Dropped, it is gone with all connections
/// through it.
#[derive(Debug)]
pub struct Gate {
    address: SocketAddr,
    shared: Arc<Shared>,
    listening: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    behind: SocketAddr,
    /// Requests whose path ends with this are held.
    closed_for: watch::Sender<Option<String>>,
    held: watch::Sender<Vec<String>>,
}

impl Gate {
    /// An open gate on a port of its own in front of `behind`, where nobody has to listen yet.
    pub async fn in_front_of(behind: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.context("no port for a gate")?;
        let address = listener.local_addr().context("a gate without address")?;
        let shared = Arc::new(Shared {
            behind,
            closed_for: watch::Sender::new(None),
            held: watch::Sender::new(Vec::new()),
        });
        let listening = tokio::spawn(listen(listener, Arc::clone(&shared)));
        Ok(Self {
            address,
            shared,
            listening,
        })
    }

    /// Where to send what is for the address behind.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Holds the requests that arrive from now on and whose path, without its query, ends with
    /// `path_end`; for `/v1/commit` and its like also the batches of such messages. All others pass; a
    /// batch passes without the messages that are for `path_end`, as if these had been lost.
    pub fn close_for(&self, path_end: &str) {
        self.shared
            .closed_for
            .send_replace(Some(path_end.to_owned()));
    }

    /// Lets all requests pass that arrive from now on. What is held is lost with its connection, as
    /// in a network that broke: who sent it and still lives has to send it again.
    pub fn open(&self) {
        self.shared.closed_for.send_replace(None);
    }

    /// The paths of the requests that are held now: not those whose sender has gone.
    pub fn held(&self) -> Vec<String> {
        self.shared.held.borrow().clone()
    }

    /// Waits until a request is held.
    pub async fn wait_until_held(&self, timeout: Duration) -> anyhow::Result<()> {
        let what = format!("a request for {} is held", self.shared.behind);
        until(&what, timeout, async || !self.held().is_empty()).await
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // The connections go with the task that has them.
        self.listening.abort();
    }
}

async fn listen(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // One that failed is the client's to notice.
                if let Ok((client, _)) = accepted {
                    connections.spawn(pass(client, Arc::clone(&shared)));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection; however it ends, both sides see it closed, and that is all there is to tell.
async fn pass(client: TcpStream, shared: Arc<Shared>) -> anyhow::Result<()> {
    let server = TcpStream::connect(shared.behind).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let mut from_client = BufReader::new(from_client);
    let requests = async {
        while let Some(request) = read_request(&mut from_client).await? {
            match shared.passes(&request)? {
                Passes::All => to_server.write_all(&request.bytes).await?,
                Passes::Some(rest) => to_server.write_all(&rest).await?,
                Passes::Nothing => return shared.hold(request, &mut from_client).await,
            }
        }
        Ok(())
    };
    let answers = async {
        tokio::io::copy(&mut from_server, &mut to_client).await?;
        Ok(())
    };
    tokio::select! {
        ended = requests => ended,
        ended = answers => ended,
    }
}

impl Shared {
    fn passes(&self, request: &Request) -> anyhow::Result<Passes> {
        match &*self.closed_for.borrow() {
            Some(end) => request.passes(end),
            None => Ok(Passes::All),
        }
    }

    /// Returns when the gate opens or the sender is gone; the request goes nowhere in both cases.
    async fn hold(
        &self,
        request: Request,
        client: &mut (impl AsyncRead + Unpin),
    ) -> anyhow::Result<()> {
        let mut closed_for = self.closed_for.subscribe();
        self.held
            .send_modify(|held| held.push(request.path.clone()));
        let _held = Held {
            shared: self,
            path: request.path.clone(),
        };
        tokio::select! {
            // Whatever else it sends, it does not wait for the answer to what it sent.
            _ = client.read_u8() => {}
            _ = closed_for.wait_for(|end| match end {
                Some(end) => !matches!(request.passes(end), Ok(Passes::Nothing)),
                None => true,
            }) => {}
        }
        Ok(())
    }
}

struct Held<'a> {
    shared: &'a Shared,
    path: String,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.shared.held.send_modify(|held| {
            if let Some(place) = held.iter().position(|path| *path == self.path) {
                held.swap_remove(place);
            }
        });
    }
}

struct Request {
    path: String,
    bytes: Vec<u8>,
    head_bytes: usize,
}

/// What of a request passes a gate.
enum Passes {
    All,
    /// A batch without some of its messages.
    Some(Vec<u8>),
    Nothing,
}

#[derive(Deserialize, Serialize)]
struct Batch<'a> {
    #[serde(borrow)]
    messages: Vec<&'a RawValue>,
}

impl Request {
    /// Past a gate that is closed for paths with this end, and for messages of that kind.
    fn passes(&self, path_end: &str) -> anyhow::Result<Passes> {
        if self.path.ends_with(path_end) {
            return Ok(Passes::Nothing);
        }
        let Some(kind) = path_end.strip_prefix("/v1/") else {
            return Ok(Passes::All);
        };
        if !self.path.ends_with("/v1/batch") {
            return Ok(Passes::All);
        }
        let kind = format!("\"kind\":\"{kind}\"");
        let mut batch: Batch<'_> = serde_json::from_slice(&self.bytes[self.head_bytes..])?;
        let all = batch.messages.len();
        batch
            .messages
            .retain(|message| !message.get().contains(&kind));
        Ok(if batch.messages.len() == all {
            Passes::All
        } else if batch.messages.is_empty() {
            Passes::Nothing
        } else {
            Passes::Some(self.with_body(&serde_json::to_vec(&batch)?)?)
        })
    }

    fn with_body(&self, body: &[u8]) -> anyhow::Result<Vec<u8>> {
        let head = std::str::from_utf8(&self.bytes[..self.head_bytes])?;
        let is_length = |line: &&str| {
            let name = line.split(':').next().unwrap_or_default();
            name.eq_ignore_ascii_case("content-length")
        };
        let lines = head.trim_end().lines().filter(|line| !is_length(line));
        let mut bytes: Vec<u8> = Vec::with_capacity(head.len() + body.len());
        for line in lines {
            bytes.extend_from_slice(line.as_bytes());
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
        bytes.extend_from_slice(body);
        Ok(bytes)
    }
}

/// The next request, whole; `None` when the client has closed the connection.
async fn read_request(
    client: &mut BufReader<impl AsyncRead + Unpin>,
) -> anyhow::Result<Option<Request>> {
    let mut bytes = Vec::new();
    let mut path = None;
    let mut body_bytes = 0;
    loop {
        let begin = bytes.len();
        if client.read_until(b'\n', &mut bytes).await? == 0 {
            return Ok(None);
        }
        ensure!(bytes.len() <= BYTES_MAX, "a request without end");
        let line = std::str::from_utf8(&bytes[begin..])?.trim_end();
        if let Some((name, value)) = line.split_once(':').filter(|_| path.is_some()) {
            if name.eq_ignore_ascii_case("content-length") {
                body_bytes = value.trim().parse()?;
            }
            if name.eq_ignore_ascii_case("transfer-encoding") {
                bail!("a gate does not read chunks");
            }
        } else if path.is_none() {
            let target = line.split(' ').nth(1).context("no request line")?;
            path = target.split('?').next().map(str::to_owned);
        } else if line.is_empty() {
            break;
        }
    }
    ensure!(body_bytes <= BYTES_MAX, "a body without end");
    let head_bytes = bytes.len();
    bytes.resize(head_bytes + body_bytes, 0);
    client.read_exact(&mut bytes[head_bytes..]).await?;
    let path = path.context("no request line")?;
    Ok(Some(Request {
        path,
        bytes,
        head_bytes,
    }))
}
