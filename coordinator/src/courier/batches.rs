//! Calls to a participant that takes batches (`docs/API.md` section 2): what comes while a request is under way leaves
//! together with the next one, and with nothing under way a call leaves at once, but for an outcome that may get a ride.
//!
//! - **Prepares and outcomes have lanes of their own**, so that phase two never waits behind phase one (design rule 17).
//!   But what prepares leave in takes along the outcomes that wait; and an outcome that nobody waits for waits for such a
//!   ride, for [`RIDE_MAX`] and no longer, as long as rides come. One that comes saves a request, and at the participant a
//!   local transaction and its forced write.
//! - **A request is under way until it is first answered**, or for [`PATIENCE`]: whoever waits for a key, or for a
//!   participant that hangs, holds up nobody for longer than that.
//! - **A batch is many, not one** (design rule 23). Each line is judged by [`read_reply`] as the answer to its call alone,
//!   and counts once, for the call whose branch it echoes. A batch that is clearly refused is sent again one by one.
//! - **Who listens no more does not matter**: a call that is cut drops its end, and leaves with no batch; a request to
//!   which nobody listens is given up, with its connection.

use std::{
    collections::{HashMap, VecDeque},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use reqwest::{Response, header};
use tokio::{
    runtime::Handle,
    sync::oneshot,
    time::{Instant, sleep, timeout, timeout_at},
};
use unanimous_protocol::{
    id::TransactionId,
    message::{Delivery, Request, RequestKind},
    wire::{BATCH_BYTES_MAX, BATCH_MESSAGES_MAX, BatchLine, BatchMessage, read_reply},
};

use super::{
    Ended, Endpoint, Http, Outgoing,
    http::{ANSWER_BYTES_MAX, Failure, broke_off, failure, read},
    rides::{RIDE_MAX, Rides},
};
use crate::crash;

/// Requests of a lane that are under way and not answered at all, at most.
const UNDER_WAY_MAX: usize = 2;

/// A request that was not answered for so long is not waited for any more: it waits itself, and a lane may have many
/// that do.
const PATIENCE: Duration = Duration::from_millis(10);

/// How often it is looked whether anybody still listens to a request that was not waited for any more.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A line, at most: an answer, and what says whose it is.
const LINE_BYTES_MAX: usize = ANSWER_BYTES_MAX + 1024;

/// Lines of an answer that may be longer, about: they are passed over.
const LONG_LINES_MAX: usize = 8;

/// What a message has beside its operations, at most: names, ids, the trace, white space between them.
const MEMBERS_BYTES_MAX: usize = 1024;

/// The lanes of all participants that take batches, by their address: as many as were ever registered.
#[derive(Debug, Default)]
pub(super) struct Batches(Mutex<HashMap<String, Lanes>>);

#[derive(Clone, Debug)]
struct Lanes {
    prepares: Arc<Lane>,
    outcomes: Arc<Lane>,
}

impl Default for Lanes {
    fn default() -> Self {
        let outcomes = Arc::<Lane>::default();
        let prepares = Lane {
            takes_along: Some(Arc::clone(&outcomes)),
            ..Lane::default()
        };
        Self {
            prepares: Arc::new(prepares),
            outcomes,
        }
    }
}

impl Batches {
    pub(super) fn lane(&self, to: &Endpoint, kind: RequestKind) -> Arc<Lane> {
        let mut by_address = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lanes = match by_address.get(to.as_str()) {
            Some(lanes) => lanes,
            None => by_address.entry(to.as_str().to_owned()).or_default(),
        };
        let lane = match kind {
            RequestKind::Prepare => &lanes.prepares,
            RequestKind::Commit | RequestKind::Abort => &lanes.outcomes,
        };
        Arc::clone(lane)
    }
}

/// Calls to one participant that wait for each other.
#[derive(Debug, Default)]
pub(super) struct Lane {
    calls: Mutex<Calls>,
    /// What waits there leaves with what leaves here.
    takes_along: Option<Arc<Lane>>,
}

#[derive(Debug, Default)]
struct Calls {
    waiting: VecDeque<Waiting>,
    under_way: usize,
    rides: Rides,
}

/// When a call leaves.
enum Leaves {
    Now,
    /// With a ride, or when none has come.
    WithARide,
    /// When whoever is before it says so.
    Later,
}

/// A call, and who listens.
#[derive(Debug)]
struct Waiting {
    call: Outgoing,
    since: Instant,
    tell: oneshot::Sender<Ended>,
}

impl Waiting {
    /// Bytes in a batch, at most. Texts may double in size where they are escaped.
    fn bytes_max(&self) -> usize {
        let operations = match &self.call.request {
            Request::Prepare(prepare) => prepare.operations.text().len(),
            Request::Commit | Request::Abort => 0,
        };
        let state = self.call.trace.tracestate().map_or(0, str::len);
        operations + 2 * state + MEMBERS_BYTES_MAX
    }

    fn may_wait_for_a_ride(&self) -> bool {
        match self.call.request.kind() {
            RequestKind::Prepare => false,
            RequestKind::Commit | RequestKind::Abort => !self.call.is_awaited,
        }
    }

    fn message(&self) -> BatchMessage {
        let call = &self.call;
        let mut message = BatchMessage {
            kind: call.request.kind(),
            transaction: call.branch.transaction,
            participant: call.branch.participant.clone(),
            operations: None,
            remaining_ms: None,
            begun_at_ms: None,
            session: None,
            low_water: call.low_water,
            traceparent: Some(call.trace.traceparent(rand::random())),
            tracestate: call.trace.tracestate().map(str::to_owned),
        };
        match &call.request {
            Request::Prepare(prepare) => {
                message.operations = Some(prepare.operations.clone());
                message.remaining_ms = Some(self.remaining_ms());
                message.begun_at_ms = Some(call.begun_at_ms);
                message.session.clone_from(&prepare.session);
            }
            Request::Commit | Request::Abort => {}
        }
        message
    }

    /// Less what was waited here.
    fn remaining_ms(&self) -> u64 {
        let waited = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.call.remaining_ms.saturating_sub(waited)
    }
}

impl Lane {
    /// Calls a branch with the next batch. Dropping the future cuts the call.
    pub(super) async fn call(self: Arc<Self>, http: Http, to: Endpoint, call: Outgoing) -> Ended {
        let (tell, told) = oneshot::channel();
        let leaves = self.calls().add(Waiting {
            call,
            since: Instant::now(),
            tell,
        });
        let runtime = Handle::current();
        match leaves {
            Leaves::Now => Turn {
                lane: self,
                http,
                to,
                runtime,
            }
            .go(),
            Leaves::WithARide => drop(runtime.spawn(self.ride_is_due(http, to))),
            Leaves::Later => {}
        }
        told.await
            .unwrap_or_else(|_| Ended::Silent("the process is ending".to_owned()))
    }

    /// Those for whom no ride has come leave by themselves.
    async fn ride_is_due(self: Arc<Self>, http: Http, to: Endpoint) {
        sleep(RIDE_MAX).await;
        if self.calls().leave_without_a_ride() {
            let turn = Turn {
                lane: self,
                http,
                to,
                runtime: Handle::current(),
            };
            turn.leave().await;
        }
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What leaves in one request: a first call, whatever its size, and what fits behind it.
    fn take(&self, takes_batches: bool) -> Vec<Waiting> {
        let mut load = Load::default();
        self.calls().load(&mut load);
        if takes_batches
            && !load.taken.is_empty()
            && let Some(others) = &self.takes_along
        {
            let before = load.taken.len();
            let mut others = others.calls();
            others.load(&mut load);
            if load.taken.len() > before {
                others.rides.came();
            }
        }
        load.taken
    }
}

impl Calls {
    fn add(&mut self, waiting: Waiting) -> Leaves {
        let may_wait = waiting.may_wait_for_a_ride();
        self.waiting.push_back(waiting);
        if self.under_way >= UNDER_WAY_MAX || (may_wait && self.rides.are_expected) {
            Leaves::Later
        } else if may_wait && self.rides.are_worth_waiting_for() {
            self.rides.are_expected = true;
            Leaves::WithARide
        } else {
            self.under_way += 1;
            Leaves::Now
        }
    }

    /// Whether a request is to leave with those that have waited in vain.
    fn leave_without_a_ride(&mut self) -> bool {
        self.rides.are_expected = false;
        if self.waiting.is_empty() {
            return false;
        }
        self.rides.did_not_come();
        let leaves = self.under_way < UNDER_WAY_MAX;
        self.under_way += usize::from(leaves);
        leaves
    }

    fn load(&mut self, load: &mut Load) {
        while load.taken.len() < BATCH_MESSAGES_MAX
            && let Some(next) = self.waiting.pop_front()
        {
            if next.tell.is_closed() {
                continue;
            }
            if !load.has_room_for(&next) {
                self.waiting.push_front(next);
                return;
            }
            load.add(next);
        }
    }
}

/// What leaves in one request. A branch is in it once.
#[derive(Default)]
struct Load {
    taken: Vec<Waiting>,
    bytes: usize,
}

impl Load {
    fn has_room_for(&self, next: &Waiting) -> bool {
        let is_there = |one: &Waiting| one.call.branch == next.call.branch;
        let bytes = MEMBERS_BYTES_MAX + self.bytes + next.bytes_max();
        self.taken.is_empty() || (bytes <= BATCH_BYTES_MAX && !self.taken.iter().any(is_there))
    }

    fn add(&mut self, next: Waiting) {
        self.bytes += next.bytes_max();
        self.taken.push(next);
    }
}

/// The right to have a request under way in a lane. Dropped, it goes to whoever waits.
struct Turn {
    lane: Arc<Lane>,
    http: Http,
    to: Endpoint,
    runtime: Handle,
}

impl Drop for Turn {
    fn drop(&mut self) {
        {
            let mut calls = self.lane.calls();
            if calls.waiting.is_empty() {
                calls.under_way -= 1;
                return;
            }
        }
        let (lane, http, to) = (Arc::clone(&self.lane), self.http.clone(), self.to.clone());
        let runtime = self.runtime.clone();
        // It is a turn once it runs: where the runtime is ending, what was spawned is dropped right here, and a turn in it
        // would be given on, and on.
        self.runtime.spawn(async move {
            let turn = Self {
                lane,
                http,
                to,
                runtime,
            };
            turn.leave().await;
        });
    }
}

impl Turn {
    fn go(self) {
        self.runtime.clone().spawn(self.leave());
    }

    async fn leave(self) {
        // Once around: what is to be sent at this moment comes along.
        tokio::task::yield_now().await;
        let takes_batches = self.to.announced().takes_batches();
        let mut calls = self.lane.take(takes_batches);
        if calls.len() > 1 && takes_batches {
            Batch::of(self, calls).go().await;
        } else if calls.len() > 1 {
            self.singly(calls);
        } else if let Some(call) = calls.pop() {
            let alone = single(self.http.clone(), self.to.clone(), call);
            patiently(&mut Held::by(self), alone, || false).await;
        }
    }

    /// Each by itself, all at once.
    fn singly(&self, calls: impl IntoIterator<Item = Waiting>) {
        for call in calls {
            let alone = single(self.http.clone(), self.to.clone(), call);
            self.runtime.spawn(alone);
        }
    }
}

/// A call of its own, as to a participant that takes no batches; given up when it is cut.
async fn single(http: Http, to: Endpoint, waiting: Waiting) {
    let remaining_ms = waiting.remaining_ms();
    let Waiting { call, mut tell, .. } = waiting;
    let call = Outgoing {
        remaining_ms,
        ..call
    };
    tokio::select! {
        ended = http.single(&to, call) => drop(tell.send(ended)),
        () = tell.closed() => {}
    }
}

/// A turn, while its request keeps it: not for longer than [`PATIENCE`], however often something comes that is no answer.
struct Held {
    turn: Option<Turn>,
    until: Instant,
}

impl Held {
    fn by(turn: Turn) -> Self {
        Self {
            turn: Some(turn),
            until: Instant::now() + PATIENCE,
        }
    }

    fn give_on(&mut self) {
        self.turn = None;
    }
}

/// Waits for what is to come. When patience ends, the turn goes to the next ones; from then on it is looked from time to
/// time whether to go on, and there is nothing where not.
async fn patiently<T>(
    held: &mut Held,
    coming: impl Future<Output = T>,
    is_pointless: impl Fn() -> bool,
) -> Option<T> {
    let mut coming = pin!(coming);
    if held.turn.is_some() {
        match timeout_at(held.until, &mut coming).await {
            Ok(come) => return Some(come),
            Err(_) => held.give_on(),
        }
    }
    loop {
        match timeout(LOOK_EVERY, &mut coming).await {
            Ok(come) => return Some(come),
            Err(_) if is_pointless() => return None,
            Err(_) => {}
        }
    }
}

/// Calls that left in one request.
struct Batch {
    http: Http,
    to: Endpoint,
    runtime: Handle,
    /// Until it is answered for the first time.
    turn: Held,
    /// Those that are not answered yet.
    open: Vec<Waiting>,
}

impl Batch {
    fn of(turn: Turn, calls: Vec<Waiting>) -> Self {
        Self {
            http: turn.http.clone(),
            to: turn.to.clone(),
            runtime: turn.runtime.clone(),
            turn: Held::by(turn),
            open: calls,
        }
    }

    async fn go(mut self) {
        let body = self.body();
        let request = self.http.client.post(self.to.route("/v1/batch"));
        let request = request.header(header::CONTENT_TYPE, "application/json");
        crash::point("batch-before");
        let sending = request.body(body).send();
        let sent = patiently(&mut self.turn, sending, || all_cut(&self.open)).await;
        crash::point("batch-after");
        match sent {
            Some(Ok(response)) => self.answered(response).await,
            Some(Err(error)) => self.failed(failure(error)),
            None => {}
        }
    }

    /// All messages, straight into one buffer.
    fn body(&mut self) -> Vec<u8> {
        let mut body = Vec::with_capacity(self.open.len() * 512);
        body.extend_from_slice(b"{\"messages\":[");
        for (at, waiting) in self.open.iter().enumerate() {
            if at > 0 {
                body.push(b',');
            }
            let end = body.len();
            // One that can not be written gets no line, and is unknown.
            if serde_json::to_writer(&mut body, &waiting.message()).is_err() {
                body.truncate(end);
                body.extend_from_slice(b"{}");
            }
        }
        body.extend_from_slice(b"]}");
        body
    }

    async fn answered(mut self, response: Response) {
        match response.status().as_u16() {
            200 => self.read_lines(response).await,
            // Nobody takes batches there: an older version behind a restart, or a proxy.
            404 | 405 | 413 | 415 => {
                self.to.announced().takes_none();
                self.again_singly();
            }
            // One of them may be what is refused, and the others have nothing to do with it.
            400 | 422 => self.again_singly(),
            _ => {
                let all_cut = || all_cut(&self.open);
                match patiently(&mut self.turn, read(response), all_cut).await {
                    Some(Ok(answer)) => self.heard_nothing(&format!(
                        "the batch was answered as a whole: {}",
                        answer.as_http().describe()
                    )),
                    Some(Err(why)) => self.failed(why),
                    None => {}
                }
            }
        }
    }

    fn again_singly(self) {
        for waiting in self.open {
            let alone = single(self.http.clone(), self.to.clone(), waiting);
            self.runtime.spawn(alone);
        }
    }

    async fn read_lines(mut self, mut response: Response) {
        // Each line is as long as an answer by itself may be, with a little around it, and there is room for some that are
        // longer and say nothing: one message's line is not to cost the others theirs.
        let bytes_max = ANSWER_BYTES_MAX * (self.open.len() + LONG_LINES_MAX);
        let (mut bytes, mut begun, mut is_too_long) = (0, Vec::new(), false);
        let mut no_longer_than = None;
        loop {
            let coming = response.chunk();
            let piece = match patiently(&mut self.turn, coming, || all_cut(&self.open)).await {
                Some(Ok(Some(piece))) => piece,
                Some(Ok(None)) => break,
                Some(Err(error)) => return self.failed(broke_off(error)),
                None => return,
            };
            bytes += piece.len();
            let mut lines = piece.split(|byte| *byte == b'\n');
            let rest = lines.next_back().unwrap_or_default();
            for line in lines {
                if std::mem::take(&mut is_too_long) {
                    // Its end.
                } else if begun.is_empty() {
                    self.line(line);
                } else {
                    begun.extend_from_slice(line);
                    self.line(&begun);
                }
                begun.clear();
            }
            begun.extend_from_slice(rest);
            if begun.len() > LINE_BYTES_MAX {
                begun.clear();
                is_too_long = true;
            }
            if bytes > bytes_max {
                return self.heard_nothing(
                    "the batch's answer was longer than its lines can be, and not read to its end",
                );
            }
            // Nobody listens any more; whatever else comes only keeps a connection.
            if all_cut(&self.open) {
                let now = Instant::now();
                if now >= *no_longer_than.get_or_insert(now + LOOK_EVERY) {
                    return;
                }
            }
        }
        // The end of the answer ends its last line.
        if !is_too_long {
            self.line(&begun);
        }
        self.heard_nothing("the batch's answer has no line for this branch");
    }

    /// One that echoes no branch of this batch that is not answered yet says nothing.
    fn line(&mut self, line: &[u8]) {
        let Some(line) = BatchLine::read(line) else {
            return;
        };
        let Ok(transaction) = line.transaction.parse::<TransactionId>() else {
            return;
        };
        let answers = |call: &Outgoing| {
            call.branch.transaction == transaction
                && call.branch.participant.as_str() == line.participant
        };
        if let Some(at) = self.open.iter().position(|open| answers(&open.call)) {
            let waiting = self.open.swap_remove(at);
            let call = &waiting.call;
            let reply = read_reply(call.request.kind(), &call.branch, &line.answer());
            drop(waiting.tell.send(Ended::Heard(reply)));
            self.turn.give_on();
        }
    }

    /// Nothing came for those that are left, though somebody was there.
    fn heard_nothing(self, why: &str) {
        for waiting in self.open {
            let unknown = Delivery::Unknown(why.to_owned());
            drop(waiting.tell.send(Ended::Heard(unknown)));
        }
    }

    /// One request was lost, and so there is one silence, however many calls it carried.
    fn failed(self, why: Failure) {
        let mut told = why.clone().into_ended();
        for waiting in self.open {
            drop(waiting.tell.send(told));
            told = match why.clone().into_ended() {
                Ended::Silent(reason) => Ended::Heard(Delivery::Unknown(reason)),
                told @ (Ended::Heard(_) | Ended::Refused(_)) => told,
            };
        }
    }
}

fn all_cut(calls: &[Waiting]) -> bool {
    calls.iter().all(|waiting| waiting.tell.is_closed())
}
