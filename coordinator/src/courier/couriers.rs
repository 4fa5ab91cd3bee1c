//! The couriers at work: one queue, one lock and one timer task for each participant, a task for each call.
//!
//! All the concurrency is here. Something happens (a call is sent, one ends, time passes, an address changes): the
//! queue is told under its lock, and what it wants done is done after the lock is released. No lock is held across an
//! `.await`, and none while a report is made or an `on_done` dropped.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError},
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::time::Instant;
use unanimous_protocol::{
    id::{ParticipantName, TransactionId},
    message::Delivery,
};

use super::{
    Call, Endpoint, Limits, Stats, Transport,
    queue::{Action, Departure, Queue},
    threads::{Handle, Mutex, MutexGuard, Notify, RwLock, now, sleep_until, timeout},
};
use crate::{
    crash,
    metrics::calls::{Calls, CallsTo},
};

/// All couriers of a coordinator, and the table of who is registered where. Cheap to clone; when the last clone is
/// dropped, they close.
#[derive(Clone)]
pub struct Couriers {
    shared: Arc<Shared>,
}

struct Shared {
    limits: Limits,
    transport: Arc<dyn Transport>,
    runtime: Handle,
    seeds: Mutex<StdRng>,
    calls: Calls,
    /// A courier stays when its participant is unregistered: its calls wait. So there are as many as names that ever
    /// were registered or that an unfinished record holds.
    table: RwLock<Table>,
}

#[derive(Default)]
struct Table {
    couriers: BTreeMap<ParticipantName, Arc<Courier>>,
    closed: bool,
}

impl Couriers {
    /// Couriers without any participant. Calls are made on `runtime`, whoever sends them. The seed fixes all jitter; `calls`
    /// counts what leaves.
    #[must_use]
    pub fn new(
        limits: Limits,
        transport: Arc<dyn Transport>,
        runtime: Handle,
        seed: u64,
        calls: Calls,
    ) -> Self {
        let shared = Shared {
            limits,
            transport,
            runtime,
            seeds: Mutex::new(StdRng::seed_from_u64(seed)),
            calls,
            table: RwLock::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// From now on the participant is called there. What waited for it leaves at once.
    pub fn register(&self, participant: &ParticipantName, endpoint: Endpoint) {
        self.shared
            .courier(participant)
            .happens(|queue, now, actions| queue.set_endpoint(Some(endpoint), now, actions));
    }

    /// From now on the participant's calls wait. Those in flight go on.
    pub fn unregister(&self, participant: &ParticipantName) {
        if let Some(courier) = self.shared.known(participant) {
            courier.happens(|queue, now, actions| queue.set_endpoint(None, now, actions));
        }
    }

    /// Where the participant is called, if it is registered.
    #[must_use]
    pub fn endpoint(&self, participant: &ParticipantName) -> Option<Endpoint> {
        let courier = self.shared.known(participant)?;
        courier.desk().queue.endpoint().cloned()
    }

    /// Whether the participant may be called: whether it is registered.
    #[must_use]
    pub fn is_registered(&self, participant: &ParticipantName) -> bool {
        self.shared
            .known(participant)
            .is_some_and(|courier| courier.desk().queue.endpoint().is_some())
    }

    /// How many participants are registered.
    #[must_use]
    pub fn registered(&self) -> usize {
        let couriers = self.shared.all();
        couriers
            .values()
            .filter(|courier| courier.desk().queue.endpoint().is_some())
            .count()
    }

    /// Takes a call, and never blocks or fails. The report comes later, from another task.
    pub fn send(&self, call: Call) {
        self.shared
            .courier(&call.branch.participant)
            .happens(|queue, now, actions| queue.send(call, now, actions));
    }

    /// Withdraws what waits of an aborted transaction, at every participant: its undelivered aborts may be dropped at a
    /// bound (design rule 20). A commit is never withdrawn.
    pub fn forget(&self, transaction: TransactionId) {
        for courier in self.shared.all().into_values() {
            courier.happens(|queue, _, actions| queue.forget(transaction, actions));
        }
    }

    /// Nothing leaves any more, and what waits is withdrawn. Calls in flight end, and are reported.
    pub fn close(&self) {
        self.shared.close();
    }

    /// What an operator may want to know, by participant.
    #[must_use]
    pub fn stats(&self) -> BTreeMap<ParticipantName, Stats> {
        let couriers = self.shared.all().into_iter();
        couriers
            .map(|(name, courier)| {
                let stats = courier.desk().queue.stats(now());
                (name, stats)
            })
            .collect()
    }
}

impl Shared {
    fn known(&self, participant: &ParticipantName) -> Option<Arc<Courier>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.couriers.get(participant).cloned()
    }

    fn courier(&self, participant: &ParticipantName) -> Arc<Courier> {
        if let Some(courier) = self.known(participant) {
            return courier;
        }
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let closed = table.closed;
        let courier = table
            .couriers
            .entry(participant.clone())
            .or_insert_with(|| {
                let mut seeds = self.seeds.lock().unwrap_or_else(PoisonError::into_inner);
                Courier::start(self, participant, seeds.next_u64(), closed)
            });
        courier.clone()
    }

    fn all(&self) -> BTreeMap<ParticipantName, Arc<Courier>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.couriers.clone()
    }

    fn close(&self) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.closed = true;
        drop(table);
        for courier in self.all().into_values() {
            courier.happens(|queue, _, actions| queue.close(actions));
            courier.wake.notify_one();
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.close();
    }
}

/// The courier of one participant.
struct Courier {
    participant: ParticipantName,
    transport: Arc<dyn Transport>,
    runtime: Handle,
    calls: CallsTo,
    desk: Mutex<Desk>,
    /// Tells the timer task that something is due earlier than it thinks.
    wake: Notify,
}

struct Desk {
    queue: Queue,
    /// What the timer task sleeps until.
    timer: Option<Instant>,
}

impl Courier {
    fn start(shared: &Shared, participant: &ParticipantName, seed: u64, closed: bool) -> Arc<Self> {
        let mut queue = Queue::new(participant.clone(), shared.limits.clone(), seed);
        if closed {
            queue.close(&mut Vec::new());
        }
        let courier = Arc::new(Self {
            participant: participant.clone(),
            transport: shared.transport.clone(),
            runtime: shared.runtime.clone(),
            calls: shared.calls.to(participant),
            desk: Mutex::new(Desk { queue, timer: None }),
            wake: Notify::new(),
        });
        shared.runtime.spawn(courier.clone().keep_time());
        courier
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        // Nothing panics under this lock; and if something does, the process is ending (the hook aborts it).
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The only way anything reaches the queue, but for its timer.
    fn happens(self: &Arc<Self>, event: impl FnOnce(&mut Queue, Instant, &mut Vec<Action>)) {
        let mut actions = Vec::new();
        let timer_is_late = {
            let mut desk = self.desk();
            // Read under the lock, so that time never runs backwards in the queue.
            event(&mut desk.queue, now(), &mut actions);
            let due = desk.queue.next_tick();
            let late = match (due, desk.timer) {
                (Some(due), Some(timer)) => due < timer,
                (Some(_), None) => true,
                (None, _) => false,
            };
            if late {
                desk.timer = due;
            }
            late
        };
        if timer_is_late {
            self.wake.notify_one();
        }
        self.carry_out(actions);
    }

    async fn keep_time(self: Arc<Self>) {
        loop {
            let mut actions = Vec::new();
            let due = {
                let mut desk = self.desk();
                if desk.queue.is_closed() {
                    return;
                }
                desk.queue.tick(now(), &mut actions);
                desk.timer = desk.queue.next_tick();
                desk.timer
            };
            self.carry_out(actions);
            let slept = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = slept => {}
                () = self.wake.notified() => {}
            }
        }
    }

    fn carry_out(self: &Arc<Self>, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Leave(departure) => {
                    self.runtime.spawn(self.clone().deliver(*departure));
                }
                Action::Report(on_done, delivery) => on_done(delivery),
                Action::Withdrawn(call) => drop(call),
                Action::BreakerOpened {
                    silent_in_a_row,
                    last_error,
                } => tracing::warn!(
                    participant = %self.participant,
                    silent_in_a_row,
                    last_error,
                    "nobody answers: prepares are held back, one at a time tries; commits and aborts go on"
                ),
                Action::BreakerClosed => tracing::info!(
                    participant = %self.participant,
                    "the participant answers again: prepares leave again"
                ),
            }
        }
    }

    async fn deliver(self: Arc<Self>, departure: Departure) {
        let Departure {
            ticket,
            to,
            outgoing,
            timeout: limit,
            on_done,
        } = departure;
        let (kind, left_at) = (outgoing.request.kind(), now());
        crash::before_call(kind);
        let ended = timeout(limit, self.transport.call(&to, outgoing)).await;
        crash::after_call(kind);
        let delivery = match ended {
            Ok(ended) => {
                self.happens(|queue, now, actions| queue.ended(ticket, &ended, now, actions));
                ended.into_delivery()
            }
            Err(_) => {
                let error = format!("no answer within {} ms", limit.as_millis());
                self.happens(|queue, now, actions| queue.cut(ticket, &error, now, actions));
                Delivery::Unknown(error)
            }
        };
        self.calls
            .ended(kind, &delivery, now().duration_since(left_at));
        on_done(delivery);
    }
}
