//! A client that costs little beside the server that it asks: one kept-alive connection, one request at a time, no pool,
//! no redirects, no retries. A load that is to show what the coordinator can do must not be spent in the client.

use std::net::SocketAddr;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// One connection.
pub struct Lean {
    address: SocketAddr,
    sender: SendRequest<Full<Bytes>>,
    /// Moves the bytes; ends with the connection, and with this client.
    moving: JoinHandle<hyper::Result<()>>,
}

impl Lean {
    /// # Errors
    /// When nobody accepts at `address`.
    pub async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let refused = || format!("nobody accepts at {address}");
        let stream = TcpStream::connect(address).await.with_context(refused)?;
        stream.set_nodelay(true).with_context(refused)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        Ok(Self {
            address,
            sender,
            moving: tokio::spawn(connection),
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
        json: Bytes,
    ) -> anyhow::Result<Response<Bytes>> {
        let mut request = Request::post(path)
            .header("host", self.address.to_string())
            .header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(json))?;
        let broken = || anyhow!("the connection to {} broke during {path}", self.address);
        self.sender.ready().await.with_context(broken)?;
        let answer = self.sender.send_request(request).await;
        let answer = answer.with_context(broken)?;
        let (head, body) = answer.into_parts();
        let body = body.collect().await.with_context(broken)?;
        Ok(Response::from_parts(head, body.to_bytes()))
    }
}

impl Drop for Lean {
    fn drop(&mut self) {
        self.moving.abort();
    }
}
