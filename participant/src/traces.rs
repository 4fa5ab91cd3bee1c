//! Which trace a branch's prepare belonged to, so that what this process asks about the branch later belongs to it too.
//!
//! In memory only, and of the newest branches only: whoever follows a trace looks at what happens now. An inquiry after a
//! restart, or about a branch that is not remembered any more, begins a trace of its own.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
};

use http::HeaderMap;
use reqwest::RequestBuilder;
use unanimous_protocol::{id::BranchId, trace::TraceContext};

/// Branches that are remembered.
const KEPT_MAX: usize = 10_000;

#[derive(Default)]
pub(crate) struct Traces(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    by_branch: HashMap<BranchId, TraceContext>,
    oldest_first: VecDeque<BranchId>,
}

impl Traces {
    pub(crate) fn remember(&self, branch: &BranchId, trace: &TraceContext) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let earlier = kept.by_branch.insert(branch.clone(), trace.clone());
        if earlier.is_some() {
            return;
        }
        kept.oldest_first.push_back(branch.clone());
        if kept.oldest_first.len() > KEPT_MAX
            && let Some(oldest) = kept.oldest_first.pop_front()
        {
            kept.by_branch.remove(&oldest);
        }
    }

    /// The branch's trace; a new one where it is not known.
    pub(crate) fn of(&self, branch: &BranchId) -> TraceContext {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = kept.by_branch.get(branch).cloned();
        known.unwrap_or_else(|| TraceContext::begun(rand::random()))
    }
}

/// The trace that a request belongs to; a new one where it names none, or names it in a form that is none.
pub(crate) fn received(headers: &HeaderMap) -> TraceContext {
    let text = |name| {
        let values = headers.get_all(name).iter();
        let texts: Option<Vec<&str>> = values.map(|value| value.to_str().ok()).collect();
        texts.filter(|texts| !texts.is_empty())
    };
    let states = text("tracestate").map(|states| states.join(","));
    match text("traceparent").as_deref() {
        Some([parent]) => named(Some(parent), states.as_deref()),
        Some(_) | None => named(None, None),
    }
}

/// The trace of a message that has these two as members.
pub(crate) fn named(parent: Option<&str>, state: Option<&str>) -> TraceContext {
    let received = parent.and_then(|parent| TraceContext::received(parent, state));
    received.unwrap_or_else(|| TraceContext::begun(rand::random()))
}

/// The request as a call of its own in that trace.
pub(crate) fn traced(request: RequestBuilder, trace: &TraceContext) -> RequestBuilder {
    let request = request.header("traceparent", trace.traceparent(rand::random()));
    match trace.tracestate() {
        Some(state) => request.header("tracestate", state),
        None => request,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn branch(number: usize) -> BranchId {
        let id = format!("00000001-0001-8000-8000-1000{number:08x}");
        BranchId {
            transaction: id.parse().unwrap(),
            participant: "east".parse().unwrap(),
        }
    }

    #[test]
    fn a_bounded_number_is_remembered_the_newest_ones() {
        let traces = Traces::default();
        let trace = |number: usize| TraceContext::begun(number as u128 + 1);
        for number in 0..=KEPT_MAX {
            traces.remember(&branch(number), &trace(number));
        }
        // A repeated prepare takes no room of its own.
        traces.remember(&branch(KEPT_MAX), &trace(KEPT_MAX));
        assert_ne!(traces.of(&branch(0)), trace(0));
        for number in [1, KEPT_MAX] {
            assert_eq!(traces.of(&branch(number)), trace(number));
        }
        let kept = traces.0.lock().unwrap();
        assert_eq!(kept.by_branch.len(), KEPT_MAX);
        assert_eq!(kept.oldest_first.len(), KEPT_MAX);
    }
}
