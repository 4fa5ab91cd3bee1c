//! A client that costs little beside the server that it asks: one kept-alive connection, one request at a time, no pool,
//! no task of its own, no redirects, no retries. A load that is to show what the coordinator can do must not be spent in
//! the client.

use std::io::Write as _;
use std::net::SocketAddr;

use anyhow::{Context, anyhow, ensure};
use bytes::{Bytes, BytesMut};
use http::Response;
use http::header::CONTENT_LENGTH;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// An answer has fewer headers.
const HEADERS_MAX: usize = 32;

/// One connection.
pub struct Lean {
    address: SocketAddr,
    stream: TcpStream,
    request: Vec<u8>,
    received: BytesMut,
}

impl Lean {
    /// # Errors
    /// When nobody accepts at `address`.
    pub async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let refused = || format!("nobody accepts at {address}");
        let stream = TcpStream::connect(address).await.with_context(refused)?;
        stream.set_nodelay(true).with_context(refused)?;
        Ok(Self {
            address,
            stream,
            request: Vec::new(),
            received: BytesMut::new(),
        })
    }

    /// `POST path` with this JSON and these headers; the answer with its whole body.
    ///
    /// # Errors
    /// When the connection breaks before the answer is complete. It is of no use then.
    pub async fn post(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
        json: &[u8],
    ) -> anyhow::Result<Response<Bytes>> {
        self.ask("POST", path, headers, json).await
    }

    /// `GET path`; the answer with its whole body.
    ///
    /// # Errors
    /// As for [`post`](Self::post).
    pub async fn get(&mut self, path: &str) -> anyhow::Result<Response<Bytes>> {
        self.ask("GET", path, &[], &[]).await
    }

    async fn ask(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        json: &[u8],
    ) -> anyhow::Result<Response<Bytes>> {
        let (address, length) = (self.address, json.len());
        let broken = || anyhow!("the connection to {address} broke during {path}");
        self.request.clear();
        write!(
            self.request,
            "{method} {path} HTTP/1.1\r\nhost: {address}\r\ncontent-length: {length}\r\n"
        )?;
        for (name, value) in headers {
            write!(self.request, "{name}: {value}\r\n")?;
        }
        if length > 0 {
            self.request
                .extend_from_slice(b"content-type: application/json\r\n");
        }
        self.request.extend_from_slice(b"\r\n");
        self.request.extend_from_slice(json);
        let sent = self.stream.write_all(&self.request).await;
        sent.with_context(broken)?;
        // One request at a time: what has come before this answer belongs to none.
        self.received.clear();
        let (answer, length) = loop {
            let read = self.stream.read_buf(&mut self.received).await;
            ensure!(read.with_context(broken)? > 0, broken());
            if let Some(head) = read_head(&mut self.received)? {
                break head;
            }
        };
        while self.received.len() < length {
            let read = self.stream.read_buf(&mut self.received).await;
            ensure!(read.with_context(broken)? > 0, broken());
        }
        let body = self.received.split_to(length).freeze();
        Ok(answer.map(|()| body))
    }
}

/// Takes the head off what was received, once it is all there; with the length of the body.
fn read_head(received: &mut BytesMut) -> anyhow::Result<Option<(Response<()>, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(end) = head.parse(received).context("no HTTP answer")? else {
        return Ok(None);
    };
    let mut answer = Response::builder().status(head.code.unwrap_or_default());
    for header in head.headers.iter() {
        answer = answer.header(header.name, header.value);
    }
    let answer = answer.body(())?;
    let length = answer.headers().get(CONTENT_LENGTH);
    // Our servers say how long an answer is; guessing would mistake the next one for its end.
    let length = length.context("an answer without content-length")?;
    let length = length.to_str()?.parse()?;
    drop(received.split_to(end));
    Ok(Some((answer, length)))
}
