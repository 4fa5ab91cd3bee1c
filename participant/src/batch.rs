//! Many messages in one request (`docs/API.md` section 2, `POST /v1/batch`).
//!
//! A batch is many, not one (design rule 23): each message is read by itself, runs exactly as if it had come alone at the
//! same moment, and is answered by a line of its own as soon as it can be. What is answered at the same moment goes out
//! in one piece, and a message that waits holds back nobody's line.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::{
    FutureExt as _, Stream, StreamExt as _, future::BoxFuture, stream::FuturesUnordered,
};
use http::{Response, StatusCode};
use serde_json::value::RawValue;
use tracing::Instrument as _;
use unanimous_protocol::{
    branch::Event,
    wire::{
        BATCH_MESSAGES_MAX, BatchMessage, BatchRequest, NDJSON, Problem, SingleRequest,
        parse_object, write_batch_line,
    },
};

use crate::{
    crash,
    http::{invalid, response},
    participant::Participant,
    traces,
};

/// The body of an answer.
#[derive(Debug)]
pub enum Body {
    /// It is all there.
    Whole(Vec<u8>),
    /// It comes in pieces: lines of a batch that are answered later than others.
    Lines(Lines),
}

impl Body {
    /// The body to its end. For whoever can not pass pieces on: then nobody hears of a quick answer before the slow ones.
    pub async fn whole(self) -> Vec<u8> {
        match self {
            Self::Whole(whole) => whole,
            Self::Lines(lines) => lines.concat().await,
        }
    }
}

/// The lines of a batch's answer, as they are ready. A piece is one line or several, each with its end.
pub struct Lines {
    /// What was ready before the answer began.
    ahead: Option<Vec<u8>>,
    running: FuturesUnordered<BoxFuture<'static, Vec<u8>>>,
    /// Lines that are ready, while others of the same moment are looked for.
    piece: Vec<u8>,
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lines({} to come)", self.running.len())
    }
}

impl Stream for Lines {
    type Item = Vec<u8>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Vec<u8>>> {
        if let Some(ahead) = self.ahead.take() {
            return Poll::Ready(Some(ahead));
        }
        let had_some = !self.piece.is_empty();
        let is_last = loop {
            match self.running.poll_next_unpin(context) {
                Poll::Ready(Some(line)) => self.piece.extend_from_slice(&line),
                Poll::Ready(None) => break true,
                Poll::Pending => break false,
            }
        };
        if self.piece.is_empty() {
            return if is_last {
                Poll::Ready(None)
            } else {
                Poll::Pending
            };
        }
        // Messages that share a local transaction are answered one right after the other, by other threads: once around
        // for those, and a piece is a write less at this end and a read less at the other.
        if !is_last && !had_some {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Some(std::mem::take(&mut self.piece)))
    }
}

/// A message as far as it could be read.
enum Read {
    Message(Box<BatchMessage>),
    /// What it names is echoed, as it was sent.
    Malformed {
        transaction: String,
        participant: String,
        problem: Problem,
    },
}

impl Read {
    fn of(message: &RawValue) -> Self {
        let text = message.get();
        match parse_object(text.as_bytes()) {
            Ok(message) => Self::Message(Box::new(message)),
            Err(error) => {
                let sent: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
                let echo = |member: &str| sent[member].as_str().unwrap_or_default().to_owned();
                Self::Malformed {
                    transaction: echo("transaction"),
                    participant: echo("participant"),
                    problem: invalid(&format!("the message: {error}")),
                }
            }
        }
    }
}

impl Participant {
    pub(crate) async fn batch(&self, batch: BatchRequest<'_>) -> Result<Response<Body>, Problem> {
        let messages = batch.messages;
        if messages.is_empty() {
            return Err(invalid("messages: a batch has at least one"));
        }
        if messages.len() > BATCH_MESSAGES_MAX {
            let detail = format!(
                "{} messages, a batch has at most {BATCH_MESSAGES_MAX}; none of them was looked at",
                messages.len()
            );
            return Err(Problem::new(413, "payload-too-large", detail));
        }
        let running = messages.into_iter().map(|message| {
            let line = self.clone().message(Read::of(message));
            line.boxed()
        });
        let mut lines = Lines {
            ahead: None,
            running: running.collect(),
            piece: Vec::new(),
        };
        // Where all are answered at the same moment, which is the rule, this is the whole body: one write, no chunks.
        lines.ahead = lines.next().await;
        crash::point("batch-answer");
        let body = if lines.running.is_empty() {
            Body::Whole(lines.ahead.unwrap_or_default())
        } else {
            Body::Lines(lines)
        };
        Ok(response(StatusCode::OK, NDJSON, body))
    }

    /// The line that answers a message.
    async fn message(self, read: Read) -> Vec<u8> {
        let (transaction, participant, answered) = match read {
            Read::Malformed {
                transaction,
                participant,
                problem,
            } => (transaction, participant, Err(problem)),
            Read::Message(message) => {
                let (transaction, participant) = (
                    message.transaction.to_string(),
                    message.participant.to_string(),
                );
                (transaction, participant, self.run(*message).await)
            }
        };
        let (status, body) = match answered {
            Ok(body) => (200, body),
            Err(problem) => match serde_json::to_vec(&problem) {
                Ok(body) => (problem.status, body),
                Err(_) => (problem.status, b"{}".to_vec()),
            },
        };
        let mut line = Vec::with_capacity(body.len() + 160);
        // Nothing stops a write into memory.
        match write_batch_line(&mut line, &transaction, &participant, status, &body) {
            Ok(()) => line,
            Err(_) => Vec::new(),
        }
    }

    /// As the route of its kind does.
    async fn run(&self, message: BatchMessage) -> Result<Vec<u8>, Problem> {
        let trace = traces::named(
            message.traceparent.as_deref(),
            message.tracestate.as_deref(),
        );
        let span = tracing::error_span!("call", trace_id = %trace);
        let single = message
            .into_single()
            .map_err(|error| invalid(&format!("the message: {error}")))?;
        let answered = async {
            match single {
                SingleRequest::Prepare(prepare) => self.prepare(prepare, &trace).await,
                SingleRequest::Commit(commit) => self.outcome(commit, Event::CommitReceived).await,
                SingleRequest::Abort(abort) => self.outcome(abort, Event::AbortReceived).await,
            }
        };
        answered.instrument(span).await
    }
}
