//! Couriers with a transport that does as it is told, on the paused clock: time passes only when everybody waits.

mod batches;
mod breaker;
mod http;
mod slots;
mod waiting;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::{runtime::Handle, time::Instant};
use unanimous_protocol::{
    coordinator::Pace,
    id::{BranchId, Epoch, LogIdentity, Node, ParticipantName, Prefix, Sequence, TransactionId},
    message::{Delivery, Prepare, Reply, Request, RequestKind, Vote},
    operations::Operations,
    trace::TraceContext,
};

use super::{Call, Couriers, Ended, Endpoint, Limits, Outgoing, Transport};
use crate::metrics::calls::Calls;

fn name(text: &str) -> ParticipantName {
    text.parse().unwrap()
}

fn transaction(number: u64) -> TransactionId {
    let prefix = Prefix {
        identity: LogIdentity(0xfeed),
        node: Node(1),
    };
    let sequence = Sequence::new(number).unwrap();
    TransactionId::new(prefix, Epoch::new(1).unwrap(), sequence)
}

fn branch(number: u64, participant: &str) -> BranchId {
    BranchId {
        transaction: transaction(number),
        participant: name(participant),
    }
}

fn endpoint(text: &str) -> Endpoint {
    text.parse().unwrap()
}

fn request(kind: RequestKind) -> Request {
    match kind {
        RequestKind::Prepare => Request::Prepare(Prepare {
            operations: Operations::none(),
            session: None,
        }),
        RequestKind::Commit => Request::Commit,
        RequestKind::Abort => Request::Abort,
    }
}

/// The good answer to each kind.
fn answered(kind: RequestKind) -> Delivery<Reply> {
    Delivery::Answered(match kind {
        RequestKind::Prepare => Reply::Vote(Vote::Yes),
        RequestKind::Commit => Reply::Committed,
        RequestKind::Abort => Reply::Aborted,
    })
}

fn heard(kind: RequestKind) -> Ended {
    Ended::Heard(answered(kind))
}

fn refused() -> Ended {
    Ended::Refused("connection refused".into())
}

/// How the double ends a call: after this long, so; or never.
type Plan = Option<(Duration, Ended)>;

fn at_once(ended: Ended) -> Plan {
    Some((Duration::from_millis(1), ended))
}

/// A call that left.
#[derive(Clone, Debug)]
struct Seen {
    at: Duration,
    to: Endpoint,
    outgoing: Outgoing,
}

impl Seen {
    fn kind(&self) -> RequestKind {
        self.outgoing.request.kind()
    }
}

/// A call that was reported.
#[derive(Clone, Debug, PartialEq)]
struct Reported {
    at: Duration,
    branch: BranchId,
    kind: RequestKind,
    delivery: Delivery<Reply>,
}

type Script = Box<dyn Fn(&Seen) -> Plan + Send + Sync>;

struct Double {
    began: Instant,
    script: Mutex<Script>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Transport for Double {
    fn call(&self, to: &Endpoint, outgoing: Outgoing) -> BoxFuture<'static, Ended> {
        let seen = Seen {
            at: self.began.elapsed(),
            to: to.clone(),
            outgoing,
        };
        let plan = (self.script.lock().unwrap())(&seen);
        self.seen.lock().unwrap().push(seen);
        async move {
            match plan {
                Some((after, ended)) => {
                    tokio::time::sleep(after).await;
                    ended
                }
                None => std::future::pending().await,
            }
        }
        .boxed()
    }
}

/// Couriers under test; `east` and `west` are registered.
struct Office {
    couriers: Couriers,
    transport: Arc<Double>,
    reported: Arc<Mutex<Vec<Reported>>>,
}

impl Office {
    fn new(script: impl Fn(&Seen) -> Plan + Send + Sync + 'static) -> Self {
        Self::with_limits(Limits::default(), script)
    }

    fn with_limits(limits: Limits, script: impl Fn(&Seen) -> Plan + Send + Sync + 'static) -> Self {
        let transport = Arc::new(Double {
            began: Instant::now(),
            script: Mutex::new(Box::new(script)),
            seen: Arc::default(),
        });
        let couriers = Couriers::new(
            limits,
            transport.clone(),
            Handle::current(),
            7,
            Calls::new().unwrap(),
        );
        for participant in ["east", "west"] {
            let at = endpoint(&format!("http://{participant}"));
            couriers.register(&name(participant), at);
        }
        Self {
            couriers,
            transport,
            reported: Arc::default(),
        }
    }

    fn now_does(&self, script: impl Fn(&Seen) -> Plan + Send + Sync + 'static) {
        *self.transport.script.lock().unwrap() = Box::new(script);
    }

    fn call(&self, number: u64, participant: &str, kind: RequestKind) -> Call {
        let (began, reported) = (self.transport.began, self.reported.clone());
        let of = branch(number, participant);
        Call {
            branch: of.clone(),
            request: request(kind),
            attempt: 1,
            pace: Pace::Backoff,
            deadline: None,
            begun_at_ms: 0,
            low_water: None,
            is_awaited: false,
            trace: TraceContext::begun(1),
            on_done: Box::new(move |delivery| {
                reported.lock().unwrap().push(Reported {
                    at: began.elapsed(),
                    branch: of,
                    kind,
                    delivery,
                });
            }),
        }
    }

    /// A first call to east.
    fn send(&self, number: u64, kind: RequestKind) {
        self.couriers.send(self.call(number, "east", kind));
    }

    fn send_again(&self, number: u64, kind: RequestKind, attempt: u32) {
        let call = self.call(number, "east", kind);
        self.couriers.send(Call { attempt, ..call });
    }

    /// A first prepare to east that has this long.
    fn send_within(&self, number: u64, left: Duration) {
        let call = self.call(number, "east", RequestKind::Prepare);
        let deadline = Some(Instant::now() + left);
        self.couriers.send(Call { deadline, ..call });
    }

    fn seen(&self) -> Vec<Seen> {
        self.transport.seen.lock().unwrap().clone()
    }

    fn seen_of(&self, kind: RequestKind) -> Vec<Seen> {
        let seen = self.seen().into_iter();
        seen.filter(|seen| seen.kind() == kind).collect()
    }

    fn reported(&self) -> Vec<Reported> {
        self.reported.lock().unwrap().clone()
    }

    fn reported_of(&self, number: u64, kind: RequestKind) -> Vec<Delivery<Reply>> {
        let reported = self.reported().into_iter();
        reported
            .filter(|report| {
                report.branch.transaction == transaction(number) && report.kind == kind
            })
            .map(|report| report.delivery)
            .collect()
    }

    fn stats(&self, participant: &str) -> super::Stats {
        self.couriers.stats()[&name(participant)].clone()
    }

    /// Opens east's breaker, by commits to nobody, and leaves nothing behind.
    async fn open_breaker(&self) {
        self.now_does(|_| at_once(refused()));
        for number in 0..5 {
            self.send(1_000_000 + number, RequestKind::Commit);
        }
        pass(5).await;
        assert!(self.stats("east").breaker_open);
        self.transport.seen.lock().unwrap().clear();
        self.reported.lock().unwrap().clear();
    }
}

/// Lets so many milliseconds go by.
async fn pass(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}
