//! What Prometheus reads at `GET /metrics` of the admin listener. `docs/METRICS.md` has the table for operators.
//!
//! Three sources, by what they cost:
//! - **Events** (decisions, log writes, calls, inquiries, requests, alarms) are counted where they happen. Whoever counts
//!   holds the very counter it raises: an event is some atomic additions. No lock, no allocation, no look-up by label.
//! - **What is true now** (states, doubts, bounds, conditions) is asked for at the scrape, and costs nothing between two:
//!   see [`present`]. An age is reckoned then too.
//! - Calls are counted by their participant's courier and printed only while that participant is registered.
//!
//! **No label grows with traffic.** Its values are words of the contract, routes as the table spells them, and the names
//! of registered participants. A name that somebody makes up makes no series; one that is unregistered loses its own.
//! Ids, keys, labels of transactions and paths are in the log and in the API, not here.
//!
//! The library is `prometheus`, without protobuf. Its counters and histograms are handles of atomics that may be held,
//! its families may be sieved before they are printed, and it prints text format 0.0.4, which every scraper reads.
//! `prometheus-client` prints OpenMetrics only and finds a series by its labels under a lock; `metrics` has one recorder
//! for the whole process.

pub mod calls;
pub mod present;

use std::time::Duration;

use prometheus::{
    Encoder as _, Error, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts,
    Registry, TextEncoder, core::Collector, proto::MetricFamily,
};
use unanimous_protocol::{
    coordinator::Alarm,
    life::{Judgement, Unknown},
    message::Inform,
    record::{AbortCode, Verdict},
};

use calls::Calls;
use present::Present;

/// Text format 0.0.4.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds of the latency histograms, in seconds: from a local write that is fast to the longest prepare.
const SECONDS: [f64; 15] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

const ALARMS: [&str; 5] = [
    "vote-lost",
    "outcome-differs",
    "vote-changed",
    "below-low-water",
    "decision-contradicted",
];

/// The classes of status codes that this server answers with.
const CLASSES: [&str; 3] = ["2xx", "4xx", "5xx"];

/// The label of a method that its route does not have, and of a path that is no route.
const OTHER: &str = "other";

/// Everything that is counted as it happens.
pub struct Metrics {
    registry: Registry,
    committed: IntCounter,
    aborted: [IntCounter; AbortCode::ALL.len()],
    committed_after: Histogram,
    aborted_after: Histogram,
    /// Of log writes.
    pub log: LogWrites,
    /// Of calls to participants.
    pub calls: Calls,
    inquiries: Inquiries,
    former_identity: IntCounter,
    alarms: [IntCounter; ALARMS.len()],
    requests: Requests,
}

impl Metrics {
    /// Counters that begin at zero. `operations` are the methods and routes that requests are counted by.
    ///
    /// # Errors
    /// When a name or label is none that Prometheus takes: a mistake in this file.
    pub fn new(operations: &'static [(&'static str, &'static str)]) -> Result<Self, Error> {
        let registry = Registry::new();
        let decisions = counters(
            &registry,
            "unanimous_decisions_total",
            "Transactions decided by this process whose outcome may be told, by outcome and, for an abort, the code of \
             its reason.",
            &["outcome", "reason"],
        )?;
        let durations = histograms(
            &registry,
            "unanimous_decision_duration_seconds",
            "From the beginning of a transaction until its outcome may be told to the client, by outcome; the time that \
             a client takes between begin and commit counts.",
            &["outcome"],
        )?;
        let inquiries = counters(
            &registry,
            "unanimous_inquiries_total",
            "Inquiries of participants about their branches, by what they were told; unavailable: nothing could be said.",
            &["answer"],
        )?;
        let alarms = counters(
            &registry,
            "unanimous_alarms_total",
            "Answers of participants that only an operator can resolve, by what is wrong.",
            &["alarm"],
        )?;
        Ok(Self {
            committed: decisions.with_label_values(&["committed", ""]),
            aborted: AbortCode::ALL
                .map(|code| decisions.with_label_values(&["aborted", code.as_str()])),
            committed_after: durations.with_label_values(&["committed"]),
            aborted_after: durations.with_label_values(&["aborted"]),
            log: LogWrites::new(&registry)?,
            calls: Calls::new()?,
            inquiries: Inquiries {
                committed: inquiries.with_label_values(&["committed"]),
                aborted: inquiries.with_label_values(&["aborted"]),
                pending: inquiries.with_label_values(&["pending"]),
                foreign: inquiries.with_label_values(&["foreign"]),
                unavailable: inquiries.with_label_values(&["unavailable"]),
            },
            former_identity: counter(
                &registry,
                "unanimous_inquiries_former_identity_total",
                "Inquiries about ids of an identity that the log had before it was restored, without a record: told \
                 pending until an operator resolves them.",
            )?,
            alarms: ALARMS.map(|alarm| alarms.with_label_values(&[alarm])),
            requests: Requests::new(&registry, operations)?,
            registry,
        })
    }

    /// An outcome may be told from now on. `since_begin` is known of transactions that began in this life.
    pub fn decided(&self, verdict: &Verdict, since_begin: Option<Duration>) {
        let after = match verdict {
            Verdict::Commit => {
                self.committed.inc();
                &self.committed_after
            }
            Verdict::Abort(reason) => {
                self.aborted[reason.code as usize].inc();
                &self.aborted_after
            }
        };
        if let Some(since_begin) = since_begin {
            after.observe(since_begin.as_secs_f64());
        }
    }

    /// A machine raised an alarm.
    pub fn alarmed(&self, alarm: &Alarm) {
        let which = match alarm {
            Alarm::VoteLost(_) => 0,
            Alarm::OutcomeDiffers(_) => 1,
            Alarm::VoteChanged(_) => 2,
            Alarm::BelowLowWater(_) => 3,
            Alarm::DecisionContradicted => 4,
        };
        self.alarms[which].inc();
    }

    /// An inquiry about an id without a record, and what is to be said of that.
    pub fn inquired_without_record(&self, judgement: Judgement) {
        if judgement == Judgement::Unknown(Unknown::FormerIdentity) {
            self.former_identity.inc();
        }
    }

    /// An inquiry was told this.
    pub fn inquiry_told(&self, inform: Inform) {
        match inform {
            Inform::Committed => self.inquiries.committed.inc(),
            Inform::Aborted => self.inquiries.aborted.inc(),
            Inform::Pending => self.inquiries.pending.inc(),
        }
    }

    /// An inquiry about another log's id.
    pub fn inquiry_was_foreign(&self) {
        self.inquiries.foreign.inc();
    }

    /// An inquiry that could be told nothing.
    pub fn inquiry_failed(&self) {
        self.inquiries.unavailable.inc();
    }

    /// A request was answered: at this route of the table, if it is one.
    pub fn request_answered(&self, method: &str, route: Option<&str>, status: u16) {
        self.requests.answered(method, route, status);
    }

    /// The page, with what is true at this moment.
    ///
    /// # Errors
    /// When a name or label is none that Prometheus takes: a mistake in these files.
    pub fn page(&self, present: &Present) -> Result<String, Error> {
        let mut families = self.registry.gather();
        families.extend(self.calls.of_registered(&present.registered()));
        families.extend(present.families()?);
        families.sort_by(|one, other| one.name().cmp(other.name()));
        // A family without a series has nothing to say, and the encoder refuses it.
        families.retain(|family| !family.get_metric().is_empty());
        let mut page = Vec::new();
        TextEncoder::new().encode(&families, &mut page)?;
        Ok(String::from_utf8_lossy(&page).into_owned())
    }
}

/// What became of a write, and what it carried.
pub struct LogWrites {
    decide: KindOfWrite,
    append: KindOfWrite,
    unclear: IntCounter,
    decisions: IntCounter,
    unforced: IntCounter,
}

struct KindOfWrite {
    count: IntCounter,
    duration: Histogram,
}

impl LogWrites {
    fn new(registry: &Registry) -> Result<Self, Error> {
        let writes = counters(
            registry,
            "unanimous_log_writes_total",
            "Writes to the decision log that returned clearly, by kind: decide carries decisions, and what need not be \
             forced with them; append only the latter.",
            &["kind"],
        )?;
        let durations = histograms(
            registry,
            "unanimous_log_write_duration_seconds",
            "How long a write to the decision log took that returned clearly, by kind; attempts before it not counted.",
            &["kind"],
        )?;
        let of = |kind| KindOfWrite {
            count: writes.with_label_values(&[kind]),
            duration: durations.with_label_values(&[kind]),
        };
        Ok(Self {
            decide: of("decide"),
            append: of("append"),
            unclear: counter(
                registry,
                "unanimous_log_writes_unclear_total",
                "Attempts to write to the decision log that did not return clearly. Each is repeated until it does.",
            )?,
            decisions: counter(
                registry,
                "unanimous_log_decisions_total",
                "Decisions that the decide writes carried: divided by their number, how many share a forced write.",
            )?,
            unforced: counter(
                registry,
                "unanimous_log_unforced_total",
                "Records and finishes that were written without being forced.",
            )?,
        })
    }

    /// A write returned clearly: with so many decisions (none: an append), and so many entries that were not forced.
    pub fn written(&self, decisions: usize, unforced: usize, took: Duration) {
        let kind = if decisions == 0 {
            &self.append
        } else {
            &self.decide
        };
        kind.count.inc();
        kind.duration.observe(took.as_secs_f64());
        self.decisions.inc_by(decisions as u64);
        self.unforced.inc_by(unforced as u64);
    }

    /// An attempt was unclear, and is repeated.
    pub fn unclear(&self) {
        self.unclear.inc();
    }
}

struct Inquiries {
    committed: IntCounter,
    aborted: IntCounter,
    pending: IntCounter,
    foreign: IntCounter,
    unavailable: IntCounter,
}

/// Answers by operation and class of status.
struct Requests {
    operations: Vec<Answers>,
    /// Of a method that the route does not have.
    other_method: Vec<Answers>,
    no_route: [IntCounter; CLASSES.len()],
}

struct Answers {
    method: &'static str,
    route: &'static str,
    by_class: [IntCounter; CLASSES.len()],
}

impl Requests {
    fn new(
        registry: &Registry,
        operations: &'static [(&'static str, &'static str)],
    ) -> Result<Self, Error> {
        let all = counters(
            registry,
            "unanimous_http_requests_total",
            "Requests answered, by method, route and class of the status; a method that the route does not have, and a \
             path that is no route, are other.",
            &["method", "route", "status"],
        )?;
        let by_class = |method: &'static str, route: &'static str| {
            CLASSES.map(|class| all.with_label_values(&[method, route, class]))
        };
        let answers = |&(method, route): &(&'static str, &'static str)| Answers {
            method,
            route,
            by_class: by_class(method, route),
        };
        let mut routes: Vec<_> = operations
            .iter()
            .map(|(_, route)| (OTHER, *route))
            .collect();
        routes.dedup();
        Ok(Self {
            operations: operations.iter().map(answers).collect(),
            other_method: routes.iter().map(answers).collect(),
            no_route: by_class(OTHER, OTHER),
        })
    }

    fn answered(&self, method: &str, route: Option<&str>, status: u16) {
        let of_route = |answers: &&Answers| Some(answers.route) == route;
        let mut operations = self.operations.iter().filter(of_route);
        let by_class = operations
            .find(|answers| answers.method == method)
            .or_else(|| self.other_method.iter().find(of_route))
            .map_or(&self.no_route, |answers| &answers.by_class);
        let class = match status {
            0..400 => 0,
            400..500 => 1,
            500.. => 2,
        };
        by_class[class].inc();
    }
}

fn counter(registry: &Registry, name: &str, help: &str) -> Result<IntCounter, Error> {
    let counter = IntCounter::new(name, help)?;
    registry.register(Box::new(counter.clone()))?;
    Ok(counter)
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntCounterVec, Error> {
    let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(counters.clone()))?;
    Ok(counters)
}

fn histograms(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<HistogramVec, Error> {
    let histograms = unregistered_histograms(name, help, labels)?;
    registry.register(Box::new(histograms.clone()))?;
    Ok(histograms)
}

fn unregistered_histograms(name: &str, help: &str, labels: &[&str]) -> Result<HistogramVec, Error> {
    HistogramVec::new(
        HistogramOpts::new(name, help).buckets(SECONDS.to_vec()),
        labels,
    )
}

/// The families of a collector, with only the series that `keep` of their label `participant`.
fn sieved(collector: &impl Collector, keep: impl Fn(&str) -> bool) -> Vec<MetricFamily> {
    let mut families = collector.collect();
    for family in &mut families {
        family.mut_metric().retain(|metric| {
            let mut labels = metric.get_label().iter();
            labels.any(|label| label.name() == "participant" && keep(label.value()))
        });
    }
    families
}
