use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, future::BoxFuture};
use shuttle::{
    sync::{Condvar, Mutex},
    thread,
};
use unanimous_protocol::{
    coordinator::Pace,
    id::{BranchId, Epoch, LogIdentity, Node, ParticipantName, Prefix, Sequence, TransactionId},
    message::{Delivery, Prepare, Reply, Request, RequestKind, Vote},
    operations::Operations,
    trace::TraceContext,
};

use super::{
    Backoff, Call, Couriers, Ended, Endpoint, Limits, Outgoing, Transport,
    threads::{self, Handle},
};
use crate::{explore, metrics::calls::Calls};

const IN_FLIGHT_MAX: usize = 2;

fn transaction(number: u64) -> TransactionId {
    let prefix = Prefix {
        identity: LogIdentity(7),
        node: Node(1),
    };
    TransactionId::new(
        prefix,
        Epoch::new(1).unwrap(),
        Sequence::new(number).unwrap(),
    )
}

fn east() -> ParticipantName {
    "east".parse().unwrap()
}

fn at_east() -> Endpoint {
    "http://east".parse().unwrap()
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Reported,
    Withdrawn,
}

/// Who watches, and waits until every call has met its fate.
#[derive(Default)]
struct Book {
    entries: Mutex<Entries>,
    changed: Condvar,
}

#[derive(Default)]
struct Entries {
    in_flight: BTreeMap<&'static str, usize>,
    fates: BTreeMap<(u64, &'static str, u32), Vec<Fate>>,
}

impl Book {
    fn note(&self, call: (u64, &'static str, u32), fate: Fate) {
        let mut entries = self.entries.lock().unwrap();
        entries.fates.entry(call).or_default().push(fate);
        self.changed.notify_all();
    }

    fn until_settled(&self, calls: usize) -> BTreeMap<(u64, &'static str, u32), Vec<Fate>> {
        let mut entries = self.entries.lock().unwrap();
        while entries.fates.len() < calls {
            entries = self.changed.wait(entries).unwrap();
        }
        entries.fates.clone()
    }
}

/// Notes a withdrawal when it is dropped before it has reported.
struct Ticket {
    book: Arc<Book>,
    call: (u64, &'static str, u32),
    reported: bool,
}

impl Ticket {
    fn report(mut self) {
        self.reported = true;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let fate = if self.reported {
            Fate::Reported
        } else {
            Fate::Withdrawn
        };
        self.book.note(self.call, fate);
    }
}

/// Answers some calls, refuses some, leaves some without an answer; counts those in flight.
struct Line {
    book: Arc<Book>,
}

impl Transport for Line {
    fn call(&self, _: &Endpoint, outgoing: Outgoing) -> BoxFuture<'static, Ended> {
        let (book, kind) = (Arc::clone(&self.book), outgoing.request.kind());
        async move {
            let _away = Away::leave(book, kind.as_str());
            shuttle::future::yield_now().await;
            match shuttle::rand::Rng::gen_range(&mut shuttle::rand::thread_rng(), 0..4) {
                0 => Ended::Refused("refused".to_owned()),
                1 => Ended::Silent("silent".to_owned()),
                2 => std::future::pending().await,
                _ => Ended::Heard(Delivery::Answered(match kind {
                    RequestKind::Prepare => Reply::Vote(Vote::Yes),
                    RequestKind::Commit => Reply::Committed,
                    RequestKind::Abort => Reply::Aborted,
                })),
            }
        }
        .boxed()
    }
}

/// A call in flight, also one that is cut.
struct Away(Arc<Book>, &'static str);

impl Away {
    fn leave(book: Arc<Book>, kind: &'static str) -> Self {
        {
            let mut entries = book.entries.lock().unwrap();
            let count = entries.in_flight.entry(kind).or_default();
            *count += 1;
            assert!(
                *count <= IN_FLIGHT_MAX,
                "{count} {kind}s are in flight at once"
            );
        }
        Self(book, kind)
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        let mut entries = self.0.entries.lock().unwrap();
        *entries.in_flight.entry(self.1).or_default() -= 1;
    }
}

fn couriers(book: &Arc<Book>, tasks: &Handle) -> Couriers {
    let soon = Backoff {
        first: Duration::from_millis(1),
        longest: Duration::from_millis(8),
    };
    let limits = Limits {
        prepares_in_flight_max: IN_FLIGHT_MAX,
        commits_in_flight_max: IN_FLIGHT_MAX,
        aborts_in_flight_max: IN_FLIGHT_MAX,
        prepare_backoff: soon,
        outcome_backoff: soon,
        breaker_opens_after: 2,
        ..Limits::default()
    };
    let line = Arc::new(Line {
        book: Arc::clone(book),
    });
    Couriers::new(limits, line, tasks.clone(), 7, Calls)
}

fn call(book: &Arc<Book>, number: u64, kind: RequestKind, attempt: u32) -> Call {
    let ticket = Ticket {
        book: Arc::clone(book),
        call: (number, kind.as_str(), attempt),
        reported: false,
    };
    Call {
        branch: BranchId {
            transaction: transaction(number),
            participant: east(),
        },
        request: match kind {
            RequestKind::Prepare => Request::Prepare(Prepare {
                operations: Operations::none(),
                session: None,
            }),
            RequestKind::Commit => Request::Commit,
            RequestKind::Abort => Request::Abort,
        },
        attempt,
        pace: Pace::Backoff,
        deadline: (kind == RequestKind::Prepare)
            .then(|| threads::now() + Duration::from_millis(50)),
        begun_at_ms: 0,
        low_water: None,
        is_awaited: false,
        trace: TraceContext::begun(1),
        on_done: Box::new(move |_| ticket.report()),
    }
}

/// Prepares, commits and aborts from two threads, while a third one registers the participant, takes its address away,
/// and forgets an aborted transaction.
#[test]
fn every_call_is_reported_once_or_withdrawn_and_a_commit_never_is() {
    explore(|| {
        let book = Arc::new(Book::default());
        let tasks = Handle::default();
        let couriers = couriers(&book, &tasks);
        let send = |numbers: std::ops::Range<u64>| {
            let (couriers, book) = (couriers.clone(), Arc::clone(&book));
            thread::spawn(move || {
                for number in numbers.clone() {
                    couriers.send(call(&book, number, RequestKind::Prepare, 1));
                }
                for number in numbers {
                    let outcome = if number % 2 == 0 {
                        RequestKind::Commit
                    } else {
                        RequestKind::Abort
                    };
                    couriers.send(call(&book, number, outcome, 1));
                    couriers.send(call(&book, number, outcome, 2));
                }
            })
        };
        let senders = [send(0..3), send(10..13)];
        let registrar = {
            let couriers = couriers.clone();
            thread::spawn(move || {
                couriers.register(&east(), at_east());
                couriers.unregister(&east());
                couriers.forget(transaction(11));
                couriers.register(&east(), at_east());
            })
        };
        for thread in senders.into_iter().chain([registrar]) {
            thread.join().unwrap();
        }
        let fates = book.until_settled(6 * 3);
        for ((number, kind, attempt), fates) in fates {
            assert_eq!(
                fates.len(),
                1,
                "{kind} {number}, attempt {attempt}: {fates:?}"
            );
            if kind == "commit" {
                assert_eq!(
                    fates,
                    [Fate::Reported],
                    "commit {number}, attempt {attempt}"
                );
            }
            // Only what somebody withdrew: a prepare by its outcome, the calls of 11 by being forgotten.
            if kind == "abort" && number != 11 {
                assert_eq!(fates, [Fate::Reported], "abort {number}, attempt {attempt}");
            }
        }
        let stats = &couriers.stats()[&east()];
        for waiting in [stats.prepares, stats.commits, stats.aborts] {
            assert_eq!(waiting.ready + waiting.backing_off, 0, "{stats:?}");
        }
        // The last clone closes them.
        drop(couriers);
        tasks.until_all_have_ended();
    });
}

/// Closing while others send: nothing hangs, every call is reported or dropped, and no task is left.
#[test]
fn couriers_that_close_leave_nobody_waiting() {
    explore(|| {
        let book = Arc::new(Book::default());
        let tasks = Handle::default();
        let couriers = couriers(&book, &tasks);
        couriers.register(&east(), at_east());
        let sender = {
            let (couriers, book) = (couriers.clone(), Arc::clone(&book));
            thread::spawn(move || {
                for number in 0..3 {
                    couriers.send(call(&book, number, RequestKind::Commit, 1));
                    couriers.send(call(&book, number, RequestKind::Commit, 2));
                }
                // Of somebody whom nobody has heard of: his courier begins with this call.
                let mut first = call(&book, 3, RequestKind::Commit, 1);
                first.branch.participant = "west".parse().unwrap();
                couriers.send(first);
            })
        };
        couriers.close();
        sender.join().unwrap();
        for (call, fates) in book.until_settled(7) {
            assert_eq!(fates.len(), 1, "{call:?}: {fates:?}");
        }
        tasks.until_all_have_ended();
        drop(couriers);
    });
}
