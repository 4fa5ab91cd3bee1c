//! Asks the coordinators about branches left in doubt: at start about all of them, then about those that have been for a
//! while, for ever (design rule 4). A branch never decides alone, and no other part of this crate decides for it.
//!
//! Many branches are asked for at once, each with a pause of its own that grows. A coordinator that does not answer is
//! set aside, and only one probe at a time finds out whether it is back: the others go to the next address, and ten
//! thousand branches do not each wait for the same dead one.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use deadpool_postgres::Object;
use tokio::{task::JoinSet, time::Instant};
use tracing::Instrument as _;
use unanimous_protocol::{
    branch::Event,
    id::BranchId,
    message::Inform,
    trace::TraceContext,
    wire::{HttpAnswer, InquiryAnswer, read_inquiry},
};

use crate::{
    calls::chain,
    crash,
    intent_log::{self, After, LogError},
    participant::{Shared, StartError},
    traces::traced,
};

/// Inquiries under way at the same time.
const ASKING_MAX: usize = 128;
/// Branches in doubt that are kept track of; what is beyond is taken up as these settle.
const TRACKED_MAX: usize = 100_000;
const PAGE: i64 = 1_000;
/// How often the rows are looked through.
const SCAN_EVERY: Duration = Duration::from_millis(500);
/// The pause after a look that took too long.
const SCAN_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// A look through the rows, at most.
const SCAN_MAX: Duration = Duration::from_secs(30);
/// How often it is looked whose turn it is.
const TICK: Duration = Duration::from_millis(20);
/// The first pause between two inquiries about one branch.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// A coordinator that does not answer is set aside for at most so long.
const ASIDE_MAX: Duration = Duration::from_secs(5);
/// The same alarm is raised so often and no more.
const ALARM_EVERY: Duration = Duration::from_secs(60);
/// An answer is a few hundred bytes; nobody sends us more.
const ANSWER_MAX: usize = 64 * 1024;

/// The client for inquiries: no redirects (stored data and strangers never choose what is called), no proxy.
pub(crate) fn http_client() -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(ANSWER_TIMEOUT)
        .pool_idle_timeout(Duration::from_secs(30))
        .build()
}

/// One of the addresses that were given at start, and how it has been answering.
#[derive(Debug)]
pub(crate) struct Coordinator {
    base: String,
    health: Mutex<Health>,
}

#[derive(Debug, Default)]
struct Health {
    failures: u32,
    aside_until: Option<Instant>,
    alarmed_at: Option<Instant>,
}

impl Coordinator {
    pub(crate) fn at(address: &str) -> Result<Self, StartError> {
        let invalid = |reason: &str| StartError::CoordinatorAddress {
            address: address.to_owned(),
            reason: reason.to_owned(),
        };
        let url = reqwest::Url::parse(address).map_err(|error| invalid(&error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(invalid("it must begin with http:// or https://"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(invalid("it must end before a ? or a #"));
        }
        Ok(Self {
            base: address.trim_end_matches('/').to_owned(),
            health: Mutex::default(),
        })
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn health<T>(&self, change: impl FnOnce(&mut Health) -> T) -> T {
        change(&mut self.health.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether this one may be asked now. Where it is set aside, whoever comes first after the pause is the probe.
    fn may_be_asked(&self, now: Instant) -> bool {
        self.health(|health| match health.aside_until {
            None => true,
            Some(until) if until <= now => {
                health.aside_until = Some(now + ANSWER_TIMEOUT);
                true
            }
            Some(_) => false,
        })
    }

    /// Whether it did not answer the last time.
    pub(crate) fn is_set_aside(&self) -> bool {
        self.health(|health| health.aside_until.is_some())
    }

    pub(crate) fn answered(&self) {
        self.health(|health| {
            health.failures = 0;
            health.aside_until = None;
        });
    }

    pub(crate) fn did_not_answer(&self, now: Instant) {
        self.health(|health| {
            health.failures = (health.failures + 1).min(16);
            let aside = jittered(PAUSE_MIN * (1 << health.failures.min(10)), ASIDE_MAX);
            health.aside_until = Some(now + aside);
        });
    }

    fn may_alarm(&self, now: Instant) -> bool {
        self.health(|health| {
            let due = health
                .alarmed_at
                .is_none_or(|at| now.duration_since(at) >= ALARM_EVERY);
            if due {
                health.alarmed_at = Some(now);
            }
            due
        })
    }
}

/// A pause between half of `pause` and `pause`, at most `max`: many that wait for the same thing do not come back at the
/// same moment.
fn jittered(pause: Duration, max: Duration) -> Duration {
    pause.min(max).mul_f64(0.5 + rand::random::<f64>() / 2.0)
}

/// The branches in doubt, and whose turn it is when.
#[derive(Default)]
struct Doubts {
    branches: HashMap<BranchId, Doubt>,
    /// Those that are not being asked for, by when they are due.
    due: BTreeSet<(Instant, BranchId)>,
}

/// A branch in doubt.
struct Doubt {
    inquiries: u32,
    /// `None` while it is being asked for.
    due: Option<Instant>,
    /// In which look through the rows it was last seen.
    seen_in: u64,
}

impl Doubts {
    /// Takes up a branch, or notes that it is still in doubt.
    fn seen(&mut self, branch: BranchId, seen_in: u64) {
        if let Some(doubt) = self.branches.get_mut(&branch) {
            doubt.seen_in = seen_in;
        } else if self.branches.len() < TRACKED_MAX {
            let now = Instant::now();
            self.due.insert((now, branch.clone()));
            let doubt = Doubt {
                inquiries: 0,
                due: Some(now),
                seen_in,
            };
            self.branches.insert(branch, doubt);
        }
    }

    /// Drops what a look through all rows has not seen: a message settled it.
    fn drop_unseen(&mut self, seen_in: u64) {
        let due = &mut self.due;
        self.branches.retain(|branch, doubt| {
            let Some(at) = doubt.due.filter(|_| doubt.seen_in != seen_in) else {
                return true;
            };
            due.remove(&(at, branch.clone()));
            false
        });
    }

    /// The next branch that is due, and how often it has been asked for before.
    fn next_due(&mut self, now: Instant) -> Option<(BranchId, u32)> {
        let (at, _) = self.due.first()?;
        if *at > now {
            return None;
        }
        let (_, branch) = self.due.pop_first()?;
        let doubt = self.branches.get_mut(&branch)?;
        let before = doubt.inquiries;
        doubt.due = None;
        doubt.inquiries = before.saturating_add(1);
        Some((branch, before))
    }

    fn settled(&mut self, branch: &BranchId) {
        self.branches.remove(branch);
    }

    /// Its next turn comes after a pause that grows.
    fn not_yet(&mut self, branch: BranchId, pause_max: Duration) {
        if let Some(doubt) = self.branches.get_mut(&branch) {
            let pause = PAUSE_MIN * (1 << doubt.inquiries.min(10));
            let at = Instant::now() + jittered(pause, pause_max);
            doubt.due = Some(at);
            self.due.insert((at, branch));
        }
    }
}

/// Which answer an inquiry brought, for the branch's next pause.
enum Told {
    /// It has its outcome.
    Settled,
    /// Not yet.
    NotYet,
}

/// Runs until its task is aborted.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut doubts = Doubts::default();
    let mut asking = JoinSet::new();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut next_scan = Instant::now();
    let mut scans = 0;
    // All of them at start, and after that what was left alone for a while.
    let mut in_doubt_for = None;
    loop {
        ticks.tick().await;
        while let Some(ended) = asking.try_join_next() {
            ended_inquiry(&shared, &mut doubts, ended);
        }
        if Instant::now() >= next_scan {
            scans += 1;
            let pause = SCAN_EVERY.min(shared.inquire_after.max(TICK));
            let pause = match scan(&shared, &mut doubts, in_doubt_for, scans).await {
                Ok(took) => {
                    in_doubt_for = Some(shared.inquire_after);
                    // A look takes at most a tenth of the time, however many are in doubt.
                    pause.max(10 * took)
                }
                Err(error) => {
                    tracing::warn!(participant = %shared.name, error = %chain(&error),
                        "branches in doubt can not be looked up; trying again");
                    if matches!(error, LogError::NoAnswer) {
                        SCAN_AGAIN_AFTER
                    } else {
                        // The database had no work with it.
                        pause
                    }
                }
            };
            next_scan = Instant::now() + pause;
        }
        let now = Instant::now();
        while asking.len() < ASKING_MAX
            && let Some((branch, before)) = doubts.next_due(now)
        {
            let shared = Arc::clone(&shared);
            // A panic of the service's code must not lose the branch: whose it was is known only inside.
            asking.spawn(async move {
                let inquiring = Arc::clone(&shared);
                let asked = branch.clone();
                let trace = shared.traces.of(&branch);
                let span = tracing::error_span!("inquiry", trace_id = %trace);
                let asking =
                    async move { inquire(&inquiring, &asked, &trace, before as usize).await };
                let task = tokio::spawn(asking.instrument(span));
                (branch, task.await.unwrap_or(Told::NotYet))
            });
        }
        // While there is more to ask than may be asked at once, the next begins as soon as one ends.
        if asking.len() >= ASKING_MAX
            && let Some(ended) = asking.join_next().await
        {
            ended_inquiry(&shared, &mut doubts, ended);
            ticks.reset_immediately();
        }
    }
}

fn ended_inquiry(
    shared: &Shared,
    doubts: &mut Doubts,
    ended: Result<(BranchId, Told), tokio::task::JoinError>,
) {
    match ended {
        Ok((branch, Told::Settled)) => doubts.settled(&branch),
        Ok((branch, Told::NotYet)) => doubts.not_yet(branch, shared.inquire_every_max),
        // These tasks only wait for another; they end early with the program.
        Err(error) => tracing::error!(participant = %shared.name, %error, "an inquiry's task died"),
    }
}

/// Looks through all rows in doubt: takes up new ones, drops those that have been settled by a message. How long the
/// database had work with it, which is not how long a busy pool let it wait for a connection.
async fn scan(
    shared: &Shared,
    doubts: &mut Doubts,
    in_doubt_for: Option<Duration>,
    scan: u64,
) -> Result<Duration, LogError> {
    let connection = shared.connections.get().await?;
    let looking_since = Instant::now();
    let mut after = After::start();
    loop {
        let names = &shared.names;
        let page = intent_log::in_doubt(&connection, names, &after, in_doubt_for, PAGE);
        let Ok(page) = tokio::time::timeout_at(looking_since + SCAN_MAX, page).await else {
            // The statement still runs on it, so nobody else may have it.
            drop(Object::take(connection));
            return Err(LogError::NoAnswer);
        };
        let page = page?;
        let last = (page.len() as i64) < PAGE;
        if let Some(seen) = page.last() {
            after = After::branch(&seen.branch);
        }
        for seen in page {
            doubts.seen(seen.branch, scan);
        }
        if last {
            break;
        }
    }
    doubts.drop_unseen(scan);
    Ok(looking_since.elapsed())
}

/// Asks each coordinator in turn, beginning with another one each time, until one of them knows.
async fn inquire(
    shared: &Arc<Shared>,
    branch: &BranchId,
    trace: &TraceContext,
    turn: usize,
) -> Told {
    let coordinators = &shared.coordinators;
    for step in 0..coordinators.len() {
        let Some(coordinator) = coordinators.get((turn + step) % coordinators.len()) else {
            continue;
        };
        if !coordinator.may_be_asked(Instant::now()) {
            continue;
        }
        match ask(shared, branch, trace, coordinator).await {
            InquiryAnswer::Informed(Inform::Pending) => {}
            InquiryAnswer::Informed(inform) => return settle(shared, branch, inform).await,
            InquiryAnswer::AskAgain(why) => {
                tracing::debug!(transaction = %branch.transaction, participant = %branch.participant,
                    coordinator = coordinator.base, why, "an inquiry was not answered");
            }
            InquiryAnswer::Alarm(why) => {
                if coordinator.may_alarm(Instant::now()) {
                    tracing::error!(transaction = %branch.transaction, participant = %branch.participant,
                        coordinator = coordinator.base, why,
                        "the coordinator says that this transaction is none of its log's; the branch stays in doubt. \
                         Is this the right coordinator?");
                }
            }
        }
    }
    Told::NotYet
}

async fn ask(
    shared: &Shared,
    branch: &BranchId,
    trace: &TraceContext,
    coordinator: &Coordinator,
) -> InquiryAnswer {
    // By the name in the branch's row (design rule 16). Neither it nor the id needs an escape.
    let url = coordinator.url(&format!(
        "/v1/transactions/{}/outcome?participant={}",
        branch.transaction, branch.participant
    ));
    crash::point("inquiry-before");
    let answered = traced(shared.http.get(url), trace).send().await;
    crash::point("inquiry-after");
    match answered {
        Ok(response) => {
            coordinator.answered();
            let status = response.status().as_u16();
            let content_type = response.headers().get("content-type").cloned();
            let body = read_body(response).await;
            read_inquiry(
                branch,
                &HttpAnswer {
                    status,
                    content_type: content_type.as_ref().and_then(|value| value.to_str().ok()),
                    body: &body,
                },
            )
        }
        Err(error) => {
            let now = Instant::now();
            coordinator.did_not_answer(now);
            let why = chain(&error);
            if coordinator.may_alarm(now) {
                tracing::warn!(transaction = %branch.transaction, participant = %branch.participant,
                    coordinator = coordinator.base, why,
                    "a coordinator does not answer; branches stay in doubt until one does");
            }
            InquiryAnswer::AskAgain(why)
        }
    }
}

/// The body, as far as an answer of ours can reach; a broken or longer one is none, and reads as that.
pub(crate) async fn read_body(mut response: reqwest::Response) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        if body.len() + chunk.len() > ANSWER_MAX {
            return Vec::new();
        }
        body.extend_from_slice(&chunk);
    }
    body
}

/// The outcome as a normal message: one local transaction, on the branch's row.
async fn settle(shared: &Arc<Shared>, branch: &BranchId, inform: Inform) -> Told {
    let Ok(_turn) = shared.settling.acquire().await else {
        return Told::NotYet;
    };
    match shared.event(branch, Event::Informed(inform)).await {
        Ok(_) => {
            tracing::info!(transaction = %branch.transaction, participant = %branch.participant,
                outcome = ?inform, "an inquiry ended the doubt");
            Told::Settled
        }
        // Logged where it happened.
        Err(_) => Told::NotYet,
    }
}
