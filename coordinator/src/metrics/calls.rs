//! Calls to participants: how they ended, and how long they took.
//!
//! Each courier holds the counters of its own participant, so counting touches nobody else's. There may be couriers of
//! names that are not registered (an unfinished record holds one): what they count is kept and not printed.

use std::{collections::BTreeSet, time::Duration};

use prometheus::{
    Error, Histogram, HistogramVec, IntCounter, IntCounterVec, Opts, proto::MetricFamily,
};
use unanimous_protocol::{
    id::ParticipantName,
    message::{Delivery, Reply, RequestKind},
};

use super::{sieved, unregistered_histograms};

/// All calls, of all participants.
#[derive(Clone)]
pub struct Calls {
    count: IntCounterVec,
    duration: HistogramVec,
}

/// Calls to one participant.
pub struct CallsTo {
    prepare: Ends,
    commit: Ends,
    abort: Ends,
}

struct Ends {
    answered: IntCounter,
    refused: IntCounter,
    unknown: IntCounter,
    duration: Histogram,
}

impl Calls {
    /// Counters that begin at zero.
    ///
    /// # Errors
    /// When a name or label is none that Prometheus takes: a mistake in this file.
    pub fn new() -> Result<Self, Error> {
        Ok(Self {
            count: IntCounterVec::new(
                Opts::new(
                    "unanimous_calls_total",
                    "Calls to participants that ended, by participant, kind and result: answered; refused (no \
                     connection was made, so the branch certainly did not act); unknown (it may have acted).",
                ),
                &["participant", "kind", "result"],
            )?,
            duration: unregistered_histograms(
                "unanimous_call_duration_seconds",
                "How long calls to participants took, whatever their result, by participant and kind.",
                &["participant", "kind"],
            )?,
        })
    }

    /// The counters of one participant; made when its courier is.
    #[must_use]
    pub fn to(&self, participant: &ParticipantName) -> CallsTo {
        let name = participant.as_str();
        let ends = |kind: RequestKind| {
            let result = |result| self.count.with_label_values(&[name, kind.as_str(), result]);
            Ends {
                answered: result("answered"),
                refused: result("refused"),
                unknown: result("unknown"),
                duration: self.duration.with_label_values(&[name, kind.as_str()]),
            }
        };
        CallsTo {
            prepare: ends(RequestKind::Prepare),
            commit: ends(RequestKind::Commit),
            abort: ends(RequestKind::Abort),
        }
    }

    pub(super) fn of_registered(&self, registered: &BTreeSet<&str>) -> Vec<MetricFamily> {
        let mut families = sieved(&self.count, |name| registered.contains(name));
        families.extend(sieved(&self.duration, |name| registered.contains(name)));
        families
    }
}

impl CallsTo {
    /// A call that had left ended like this.
    pub fn ended(&self, kind: RequestKind, delivery: &Delivery<Reply>, took: Duration) {
        let ends = match kind {
            RequestKind::Prepare => &self.prepare,
            RequestKind::Commit => &self.commit,
            RequestKind::Abort => &self.abort,
        };
        match delivery {
            Delivery::Answered(_) => ends.answered.inc(),
            Delivery::Refused(_) => ends.refused.inc(),
            Delivery::Unknown(_) => ends.unknown.inc(),
        }
        ends.duration.observe(took.as_secs_f64());
    }
}
