//! What waits for one participant, and what may leave now.
//!
//! A plain structure: things happen to it with the time they happen at, and it returns what is to be done. Whoever owns
//! it ([`super::couriers`]) calls it under a lock and does what it says outside of it.
//!
//! ```text
//!            attempt 1                     a slot of its class is free,
//!   send ─────────────────────> ready ──── for a prepare: the breaker permits ────> in flight ──> reported
//!     └─ from 2 on ─> backoff ──^  └─ nobody is registered for the longest interval ─────────────^
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rand::{SeedableRng as _, rngs::StdRng};
use tokio::time::Instant;
use unanimous_protocol::{
    coordinator::Pace,
    id::{ParticipantName, TransactionId},
    message::{Delivery, Reply, RequestKind},
};

use super::{
    Backoff, Call, Counts, Ended, Endpoint, LastError, Limits, OnDone, Outgoing, Stats,
    breaker::Breaker,
};

/// A first prepare that still waits is reported this long before its deadline: late enough that it makes no difference
/// to the branch, early enough that the machine hears of it before its own timer goes off.
const REPORT_AHEAD: Duration = Duration::from_millis(10);

/// What is to be done, outside of the lock.
pub(super) enum Action {
    /// Make this call, and say how it [`Queue::ended`].
    Leave(Box<Departure>),
    /// Report a call that never left.
    Report(OnDone, Delivery<Reply>),
    /// Drop it: what `on_done` holds is its owner's, and is not dropped under our lock.
    Withdrawn(Box<Call>),
    /// Prepares are held back from now on.
    BreakerOpened {
        silent_in_a_row: u32,
        last_error: String,
    },
    /// Prepares leave again.
    BreakerClosed,
}

/// A call that leaves now.
pub(super) struct Departure {
    pub(super) ticket: Ticket,
    pub(super) to: Endpoint,
    pub(super) outgoing: Outgoing,
    /// A call that takes longer is cut.
    pub(super) timeout: Duration,
    pub(super) on_done: OnDone,
}

/// Says which call [`Queue::ended`] or was [`Queue::cut`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    serial: u64,
    kind: RequestKind,
    /// Its own deadline gave it less time than a commit gets.
    hurried: bool,
}

/// One for each kind of request.
#[derive(Debug, Default)]
struct PerKind<T> {
    prepare: T,
    commit: T,
    abort: T,
}

impl<T> PerKind<T> {
    fn of(&self, kind: RequestKind) -> &T {
        match kind {
            RequestKind::Prepare => &self.prepare,
            RequestKind::Commit => &self.commit,
            RequestKind::Abort => &self.abort,
        }
    }

    fn of_mut(&mut self, kind: RequestKind) -> &mut T {
        match kind {
            RequestKind::Prepare => &mut self.prepare,
            RequestKind::Commit => &mut self.commit,
            RequestKind::Abort => &mut self.abort,
        }
    }
}

/// The calls of one kind.
#[derive(Debug, Default)]
struct Lane {
    in_flight: usize,
    /// In the order in which they became ready, with their serials.
    ready: BTreeMap<u64, u64>,
    backing_off: usize,
}

struct Waiting {
    call: Call,
    sent_at: Instant,
    /// For a prepare: when it is too late to leave.
    leave_by: Option<Instant>,
    place: Place,
    /// Its entry in `Queue::timers`.
    timer: Option<Instant>,
}

#[derive(Clone, Copy)]
enum Place {
    Backoff { until: Instant },
    Ready { position: u64 },
}

/// The calls to one participant.
pub(super) struct Queue {
    participant: ParticipantName,
    limits: Limits,
    endpoint: Option<Endpoint>,
    closed: bool,
    /// Numbers calls and positions.
    drawn: u64,
    /// Boxed: serials only rise, and a tree that grows at its end leaves almost half of its nodes' room empty.
    waiting: BTreeMap<u64, Box<Waiting>>,
    by_transaction: BTreeSet<(TransactionId, u64)>,
    timers: BTreeSet<(Instant, u64)>,
    lanes: PerKind<Lane>,
    breaker: Breaker,
    rng: StdRng,
    last_error: Option<(String, Instant)>,
    withdrawn: u64,
}

impl Queue {
    pub(super) fn new(participant: ParticipantName, limits: Limits, seed: u64) -> Self {
        Self {
            participant,
            endpoint: None,
            closed: false,
            drawn: 0,
            waiting: BTreeMap::new(),
            by_transaction: BTreeSet::new(),
            timers: BTreeSet::new(),
            lanes: PerKind::default(),
            breaker: Breaker::new(limits.breaker_opens_after, limits.prepare_backoff),
            rng: StdRng::seed_from_u64(seed),
            last_error: None,
            withdrawn: 0,
            limits,
        }
    }

    /// Takes a call. Never reports one: that is left to [`Self::tick`] and [`Self::ended`], so that nobody is called
    /// back from within his own `send`.
    pub(super) fn send(&mut self, mut call: Call, now: Instant, actions: &mut Vec<Action>) {
        if self.closed {
            return actions.push(Action::Withdrawn(Box::new(call)));
        }
        let kind = call.request.kind();
        match kind {
            RequestKind::Prepare => {}
            // Nobody wants that vote any more. One that is in flight goes on: it may have been heard.
            RequestKind::Commit | RequestKind::Abort => {
                // An outcome is never too late, whatever its call says of the deadline.
                call.deadline = None;
                self.withdraw(call.branch.transaction, &[RequestKind::Prepare], actions);
            }
        }
        let wait = match call.pace {
            _ if call.attempt < 2 => Duration::ZERO,
            Pace::Backoff => self
                .limits
                .backoff(kind)
                .before(call.attempt, &mut self.rng),
            Pace::Longest => self.limits.backoff(kind).longest,
        };
        let leave_by = call.deadline.map(|deadline| {
            let ahead = deadline.checked_sub(REPORT_AHEAD);
            ahead.filter(|ahead| *ahead > now).unwrap_or(deadline)
        });
        let serial = self.draw();
        self.by_transaction
            .insert((call.branch.transaction, serial));
        self.lanes.of_mut(kind).backing_off += 1;
        let waiting = Waiting {
            call,
            sent_at: now,
            leave_by,
            place: Place::Backoff { until: now + wait },
            timer: None,
        };
        self.waiting.insert(serial, Box::new(waiting));
        if wait.is_zero() {
            self.make_ready(serial);
        }
        self.set_timer(serial);
        self.start(now, actions);
    }

    /// A call that left has ended.
    pub(super) fn ended(
        &mut self,
        ticket: Ticket,
        ended: &Ended,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        match ended {
            Ended::Heard(Delivery::Answered(_)) => self.answered(actions),
            Ended::Heard(Delivery::Refused(error) | Delivery::Unknown(error)) => {
                self.proved_nothing(ticket, error, now);
            }
            Ended::Refused(error) | Ended::Silent(error) => {
                self.silent(ticket, error, now, actions);
            }
        }
        self.free_slot(ticket, now, actions);
    }

    /// A call that left was cut, because its time was over.
    pub(super) fn cut(
        &mut self,
        ticket: Ticket,
        error: &str,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        if ticket.hurried {
            // A client in a hurry must not be able to hold everybody's prepares back.
            self.proved_nothing(ticket, error, now);
        } else {
            self.silent(ticket, error, now, actions);
        }
        self.free_slot(ticket, now, actions);
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Instant, actions: &mut Vec<Action>) {
        while let Some((at, serial)) = self.timers.first().copied()
            && at <= now
        {
            let Some(waiting) = self.waiting.get(&serial) else {
                self.timers.pop_first();
                continue;
            };
            if waiting.leave_by.is_some_and(|leave_by| leave_by <= now) {
                self.came_too_late(serial, actions);
                continue;
            }
            match waiting.place {
                Place::Backoff { .. } => {
                    self.make_ready(serial);
                    self.set_timer(serial);
                }
                // Only a missing endpoint gives a ready call a timer of its own.
                Place::Ready { .. } => {
                    let reason = self.not_registered();
                    self.report(serial, reason, actions);
                }
            }
        }
        self.start(now, actions);
    }

    /// When [`Self::tick`] is due, if nothing else happens before.
    pub(super) fn next_tick(&self) -> Option<Instant> {
        let timer = self.timers.first().map(|(at, _)| *at);
        let prepares = &self.lanes.prepare;
        let waits_for_breaker = self.endpoint.is_some()
            && !prepares.ready.is_empty()
            && prepares.in_flight < self.in_flight_max(RequestKind::Prepare);
        let probe = self.breaker.next_probe().filter(|_| waits_for_breaker);
        timer.into_iter().chain(probe).min()
    }

    /// The participant is registered at this address, or no longer.
    pub(super) fn set_endpoint(
        &mut self,
        endpoint: Option<Endpoint>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        if self.closed || self.endpoint == endpoint {
            return;
        }
        self.endpoint = endpoint;
        if self.endpoint.is_some() {
            // Nothing is known of the new address yet, and an operator waits to see whether it is the right one.
            let limits = &self.limits;
            self.breaker = Breaker::new(limits.breaker_opens_after, limits.prepare_backoff);
            self.end_backoffs(|_| true);
        }
        let waiting: Vec<u64> = self.waiting.keys().copied().collect();
        for serial in waiting {
            self.set_timer(serial);
        }
        self.start(now, actions);
    }

    /// Withdraws what waits of a transaction, except a commit: that is never withdrawn.
    pub(super) fn forget(&mut self, transaction: TransactionId, actions: &mut Vec<Action>) {
        let kinds = [RequestKind::Prepare, RequestKind::Abort];
        self.withdraw(transaction, &kinds, actions);
    }

    /// Withdraws everything and takes nothing more.
    pub(super) fn close(&mut self, actions: &mut Vec<Action>) {
        self.closed = true;
        self.endpoint = None;
        let waiting: Vec<u64> = self.waiting.keys().copied().collect();
        for serial in waiting {
            self.withdraw_one(serial, actions);
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    pub(super) fn endpoint(&self) -> Option<&Endpoint> {
        self.endpoint.as_ref()
    }

    pub(super) fn stats(&self, now: Instant) -> Stats {
        let counts = |kind| {
            let lane = self.lanes.of(kind);
            Counts {
                in_flight: lane.in_flight,
                ready: lane.ready.len(),
                backing_off: lane.backing_off,
            }
        };
        Stats {
            endpoint: self.endpoint.clone(),
            prepares: counts(RequestKind::Prepare),
            commits: counts(RequestKind::Commit),
            aborts: counts(RequestKind::Abort),
            breaker_open: self.breaker.is_open(),
            probing: self.breaker.is_probing(),
            silent_in_a_row: self.breaker.silent_in_a_row(),
            last_error: self.last_error.as_ref().map(|(text, at)| LastError {
                text: text.clone(),
                ago: now.saturating_duration_since(*at),
            }),
            withdrawn: self.withdrawn,
        }
    }

    fn answered(&mut self, actions: &mut Vec<Action>) {
        if self.breaker.answered() {
            actions.push(Action::BreakerClosed);
            // Whoever waited for a participant that was not there need not wait any longer. They do not come all at
            // once: there are only so many slots.
            self.end_backoffs(|call| call.pace == Pace::Backoff);
        }
    }

    fn proved_nothing(&mut self, ticket: Ticket, error: &str, now: Instant) {
        self.last_error = Some((error.to_owned(), now));
        self.breaker
            .proved_nothing(ticket.serial, now, &mut self.rng);
    }

    fn silent(&mut self, ticket: Ticket, error: &str, now: Instant, actions: &mut Vec<Action>) {
        self.last_error = Some((error.to_owned(), now));
        if self.breaker.silent(ticket.serial, now, &mut self.rng) {
            actions.push(Action::BreakerOpened {
                silent_in_a_row: self.breaker.silent_in_a_row(),
                last_error: error.to_owned(),
            });
        }
    }

    fn free_slot(&mut self, ticket: Ticket, now: Instant, actions: &mut Vec<Action>) {
        self.lanes.of_mut(ticket.kind).in_flight -= 1;
        self.start(now, actions);
    }

    fn in_flight_max(&self, kind: RequestKind) -> usize {
        let limits = &self.limits;
        let singly = match kind {
            RequestKind::Prepare => limits.prepares_in_flight_max,
            RequestKind::Commit => limits.commits_in_flight_max,
            RequestKind::Abort => limits.aborts_in_flight_max,
        };
        match &self.endpoint {
            Some(endpoint) if endpoint.announced().takes_batches() => {
                singly.max(limits.batched_in_flight_max)
            }
            Some(_) | None => singly,
        }
    }

    fn draw(&mut self) -> u64 {
        self.drawn += 1;
        self.drawn
    }

    /// Lets go whatever may.
    fn start(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Some(endpoint) = self.endpoint.clone() else {
            return;
        };
        for kind in [
            RequestKind::Commit,
            RequestKind::Abort,
            RequestKind::Prepare,
        ] {
            while self.lanes.of(kind).in_flight < self.in_flight_max(kind)
                && (kind != RequestKind::Prepare || self.breaker.permits(now))
                && let Some((_, serial)) = self.lanes.of(kind).ready.first_key_value()
                && let serial = *serial
                && let Some(waiting) = self.waiting.get(&serial)
            {
                // Its timer is due, and has the word.
                if waiting.leave_by.is_some_and(|leave_by| leave_by <= now) {
                    break;
                }
                self.leave(serial, endpoint.clone(), now, actions);
            }
        }
    }

    fn leave(&mut self, serial: u64, to: Endpoint, now: Instant, actions: &mut Vec<Action>) {
        let Some(waiting) = self.take(serial) else {
            return;
        };
        let call = waiting.call;
        let kind = call.request.kind();
        self.lanes.of_mut(kind).in_flight += 1;
        let limits = &self.limits;
        let (remaining, timeout) = match kind {
            RequestKind::Prepare => {
                let remaining = match call.deadline {
                    Some(deadline) => deadline.saturating_duration_since(now),
                    None => limits.prepare_timeout,
                };
                // A probe that hangs keeps all the others waiting.
                let timeout_max = if self.breaker.prepare_leaves(serial) {
                    limits.prepare_timeout.min(limits.outcome_timeout)
                } else {
                    limits.prepare_timeout
                };
                (remaining, remaining.min(timeout_max))
            }
            RequestKind::Commit | RequestKind::Abort => (Duration::ZERO, limits.outcome_timeout),
        };
        actions.push(Action::Leave(Box::new(Departure {
            ticket: Ticket {
                serial,
                kind,
                hurried: timeout < limits.outcome_timeout,
            },
            to,
            outgoing: Outgoing {
                branch: call.branch,
                request: call.request,
                remaining_ms: u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX),
                begun_at_ms: call.begun_at_ms,
                low_water: call.low_water,
                is_awaited: call.is_awaited,
                trace: call.trace,
            },
            timeout,
            on_done: call.on_done,
        })));
    }

    /// Removes a waiting call from everywhere.
    fn take(&mut self, serial: u64) -> Option<Box<Waiting>> {
        let waiting = self.waiting.remove(&serial)?;
        let transaction = waiting.call.branch.transaction;
        self.by_transaction.remove(&(transaction, serial));
        if let Some(at) = waiting.timer {
            self.timers.remove(&(at, serial));
        }
        let lane = self.lanes.of_mut(waiting.call.request.kind());
        match waiting.place {
            Place::Backoff { .. } => lane.backing_off -= 1,
            Place::Ready { position } => {
                lane.ready.remove(&position);
            }
        }
        Some(waiting)
    }

    /// At the end of its class's line.
    fn make_ready(&mut self, serial: u64) {
        let position = self.draw();
        let Some(waiting) = self.waiting.get_mut(&serial) else {
            return;
        };
        if matches!(waiting.place, Place::Backoff { .. }) {
            waiting.place = Place::Ready { position };
            let lane = self.lanes.of_mut(waiting.call.request.kind());
            lane.backing_off -= 1;
            lane.ready.insert(position, serial);
        }
    }

    /// Those whose wait would have ended first go first.
    fn end_backoffs(&mut self, of: impl Fn(&Call) -> bool) {
        let backing_off = self
            .waiting
            .iter()
            .filter_map(|(serial, waiting)| match waiting.place {
                Place::Backoff { until } if of(&waiting.call) => Some((until, *serial)),
                Place::Backoff { .. } | Place::Ready { .. } => None,
            });
        let in_order: BTreeSet<(Instant, u64)> = backing_off.collect();
        for (_, serial) in in_order {
            self.make_ready(serial);
            self.set_timer(serial);
        }
    }

    fn set_timer(&mut self, serial: u64) {
        let registered = self.endpoint.is_some();
        let Some(waiting) = self.waiting.get_mut(&serial) else {
            return;
        };
        let longest = self.limits.backoff(waiting.call.request.kind()).longest;
        let of_place = match waiting.place {
            Place::Backoff { until } => Some(until),
            Place::Ready { .. } if registered => None,
            Place::Ready { .. } => Some(waiting.sent_at + longest),
        };
        let at = of_place.into_iter().chain(waiting.leave_by).min();
        if let Some(former) = std::mem::replace(&mut waiting.timer, at) {
            self.timers.remove(&(former, serial));
        }
        if let Some(at) = at {
            self.timers.insert((at, serial));
        }
    }

    fn report(&mut self, serial: u64, reason: String, actions: &mut Vec<Action>) {
        if let Some(waiting) = self.take(serial) {
            // It never left, so the branch certainly did not act.
            actions.push(Action::Report(
                waiting.call.on_done,
                Delivery::Refused(reason),
            ));
        }
    }

    /// A prepare that could not leave in time. Only a first attempt is reported: the machine then knows why nobody was
    /// asked. Its answer, attempt 2, comes too late as well, and reporting that would go round in circles.
    fn came_too_late(&mut self, serial: u64, actions: &mut Vec<Action>) {
        let first = self
            .waiting
            .get(&serial)
            .is_some_and(|waiting| waiting.call.attempt < 2);
        if first {
            let why = self.why_prepares_wait();
            self.report(serial, format!("not sent by the deadline: {why}"), actions);
        } else {
            self.withdraw_one(serial, actions);
        }
    }

    fn why_prepares_wait(&self) -> String {
        if self.endpoint.is_none() {
            return self.not_registered();
        }
        if self.breaker.is_open() {
            let last = match &self.last_error {
                Some((error, _)) => format!(", the last one: {error}"),
                None => String::new(),
            };
            return format!(
                "{} calls to participant {} in a row went without an answer{last}",
                self.breaker.silent_in_a_row(),
                self.participant,
            );
        }
        format!(
            "{} other prepares were in flight at participant {}",
            self.lanes.prepare.in_flight, self.participant,
        )
    }

    fn not_registered(&self) -> String {
        let name = &self.participant;
        format!(
            "participant {name} is no longer registered: its branches wait until it is registered again \
             (PUT /admin/v1/participants/{name})"
        )
    }

    fn withdraw(
        &mut self,
        transaction: TransactionId,
        kinds: &[RequestKind],
        actions: &mut Vec<Action>,
    ) {
        let of_transaction: Vec<u64> = self
            .by_transaction
            .range((transaction, 0)..=(transaction, u64::MAX))
            .map(|(_, serial)| *serial)
            .collect();
        for serial in of_transaction {
            let wanted = self
                .waiting
                .get(&serial)
                .is_some_and(|waiting| kinds.contains(&waiting.call.request.kind()));
            if wanted {
                self.withdraw_one(serial, actions);
            }
        }
    }

    fn withdraw_one(&mut self, serial: u64, actions: &mut Vec<Action>) {
        if let Some(waiting) = self.take(serial) {
            self.withdrawn += 1;
            actions.push(Action::Withdrawn(Box::new(waiting.call)));
        }
    }
}

impl Limits {
    fn backoff(&self, kind: RequestKind) -> Backoff {
        match kind {
            RequestKind::Prepare => self.prepare_backoff,
            RequestKind::Commit | RequestKind::Abort => self.outcome_backoff,
        }
    }
}
