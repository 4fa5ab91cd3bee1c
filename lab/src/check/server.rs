//! A small HTTP/1.1 server: the kit answers inquiries with it, and the participants of its own tests and of [`growth`]
//! stand on it.
//!
//! [`growth`]: crate::growth
//!
//! It reads what participants send: requests one after the other on a connection, with a `Content-Length` or without a
//! body. A body that broke off is handed on as what it is, for a test wants to see what becomes of it.

use std::future::Future;
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// A head beyond this is no participant's.
const HEAD_MAX: usize = 64 * 1024;

/// A request as it arrived.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Without the query.
    pub(crate) path: String,
    pub(crate) query: String,
    /// In lower case; inquiries are told apart by their path alone.
    #[cfg(test)]
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    /// What the head says; the body is at most [`Serving::body_max`] of it.
    pub(crate) content_length: usize,
}

impl Request {
    /// Whether all of the body came.
    pub(crate) fn is_whole(&self) -> bool {
        self.body.len() == self.content_length
    }
}

/// What to send back.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// An answer.
    Answer {
        status: u16,
        content_type: &'static str,
        /// A `Location`.
        location: Option<String>,
        body: String,
    },
    /// Nothing, until the client gives up.
    Silence,
}

impl Reply {
    pub(crate) fn json(status: u16, body: impl ToString) -> Self {
        Self::Answer {
            status,
            content_type: "application/json",
            location: None,
            body: body.to_string(),
        }
    }
}

/// How connections are served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Serving {
    /// More of a body is not read.
    pub(crate) body_max: usize,
    /// One connection at a time: what a careful server does not do.
    pub(crate) one_by_one: bool,
}

/// Serves until it is dropped, and all connections with it.
pub(crate) async fn serve<H, F>(listener: TcpListener, serving: Serving, handle: H)
where
    H: Fn(Request) -> F + Send + Sync + 'static,
    F: Future<Output = Reply> + Send,
{
    let handle = Arc::new(handle);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // One that failed is the client's to notice.
                let Ok((stream, _)) = accepted else { continue };
                let handle = Arc::clone(&handle);
                let serving_one = async move {
                    // However a connection ends, the client sees it closed, and that is all there is to tell.
                    connection(stream, serving, &*handle).await.ok();
                };
                if serving.one_by_one {
                    serving_one.await;
                } else {
                    connections.spawn(serving_one);
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection<H, F>(stream: TcpStream, serving: Serving, handle: &H) -> anyhow::Result<()>
where
    H: Fn(Request) -> F,
    F: Future<Output = Reply>,
{
    stream.set_nodelay(true)?;
    let (from_client, mut to_client) = stream.into_split();
    let mut from_client = BufReader::new(from_client);
    while let Some(request) = read(&mut from_client, serving.body_max).await? {
        let last = !request.is_whole() || serving.one_by_one;
        match handle(request).await {
            Reply::Answer {
                status,
                content_type,
                location,
                body,
            } => {
                let location = location.map(|to| format!("location: {to}\r\n"));
                let answer = format!(
                    "HTTP/1.1 {status} -\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n{}{}\r\n{body}",
                    body.len(),
                    location.unwrap_or_default(),
                    if last { "connection: close\r\n" } else { "" },
                );
                to_client.write_all(answer.as_bytes()).await?;
            }
            Reply::Silence => {
                tokio::io::copy(&mut from_client, &mut tokio::io::sink()).await?;
                return Ok(());
            }
        }
        if last {
            // What is still on its way is read, or closing would take the answer away from the client.
            to_client.shutdown().await?;
            tokio::io::copy(&mut from_client, &mut tokio::io::sink()).await?;
            return Ok(());
        }
    }
    Ok(())
}

/// The next request; `None` when the client has closed the connection.
async fn read(
    client: &mut BufReader<tokio::net::tcp::OwnedReadHalf>,
    body_max: usize,
) -> anyhow::Result<Option<Request>> {
    let mut head = Vec::new();
    loop {
        let begin = head.len();
        if client.read_until(b'\n', &mut head).await? == 0 || head.len() > HEAD_MAX {
            return Ok(None);
        }
        if head[begin..].iter().all(u8::is_ascii_whitespace) {
            break;
        }
    }
    let head = String::from_utf8_lossy(&head);
    let mut lines = head.lines();
    let mut first = lines.next().unwrap_or_default().split(' ');
    let method = first.next().unwrap_or_default().to_owned();
    let target = first.next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let content_length = match length {
        Some((_, value)) => value.trim().parse()?,
        None => 0,
    };
    let mut body = Vec::new();
    let readable = content_length.min(body_max) as u64;
    client.take(readable).read_to_end(&mut body).await?;
    Ok(Some(Request {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        #[cfg(test)]
        head: head.to_ascii_lowercase(),
        body,
        content_length,
    }))
}
