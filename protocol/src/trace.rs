//! Which trace a transaction belongs to, as W3C Trace Context (level 1) spells it.
//!
//! Nothing of the protocol depends on it: it is carried along so that a person finds the lines and spans of one
//! transaction in every service. A header that is none is passed over, never refused. Randomness comes from the caller.

use std::{fmt, sync::Arc};

/// A longer `tracestate` is dropped, and so passed on by nobody; the recommendation asks for 512 at least.
const STATE_MAX: usize = 4096;

/// The trace of a request: what stays the same in all calls that follow from it. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: u128,
    flags: u8,
    state: Option<Arc<str>>,
}

impl TraceContext {
    /// The trace that these two headers name; `None` when `traceparent` is not one. A `tracestate` without it means
    /// nothing, and where it was sent in several headers, their values are joined by commas.
    #[must_use]
    pub fn received(traceparent: &str, tracestate: Option<&str>) -> Option<Self> {
        let hex = |text: &str| {
            let lower_case = text
                .bytes()
                .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
            lower_case
                .then(|| u128::from_str_radix(text, 16).ok())
                .flatten()
        };
        let mut fields = traceparent.split('-');
        let mut field = |length: usize| fields.next().filter(|text| text.len() == length);
        let (version, trace_id) = (hex(field(2)?)?, hex(field(32)?)?);
        let (parent_id, flags) = (hex(field(16)?)?, hex(field(2)?)?);
        // A later version may have more fields; they are not ours to pass on. 255 is none.
        let known_form = match version {
            0 => fields.next().is_none(),
            255 => false,
            _ => true,
        };
        (known_form && trace_id != 0 && parent_id != 0).then(|| Self {
            trace_id,
            flags: u8::try_from(flags).unwrap_or_default(),
            state: tracestate.and_then(passed_on).map(Arc::from),
        })
    }

    /// A trace that begins here. Nobody asked for it to be recorded, so the flags ask for nothing.
    #[must_use]
    pub fn begun(random: u128) -> Self {
        Self {
            // Zero is no trace.
            trace_id: random.max(1),
            flags: 0,
            state: None,
        }
    }

    /// The `traceparent` of one call: the same trace, and a parent of its own.
    #[must_use]
    pub fn traceparent(&self, random: u64) -> String {
        // Zero is no parent.
        let parent_id = random.max(1);
        format!(
            "00-{:032x}-{parent_id:016x}-{:02x}",
            self.trace_id, self.flags
        )
    }

    /// The `tracestate` of every call, as it came.
    #[must_use]
    pub fn tracestate(&self) -> Option<&str> {
        self.state.as_deref()
    }
}

/// The trace's id, by which it is looked up.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.trace_id)
    }
}

/// What may stand in a header, and is not too long.
fn passed_on(state: &str) -> Option<&str> {
    let printable = state.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    let state = state.trim();
    (printable && !state.is_empty() && state.len() <= STATE_MAX).then_some(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0af7651916cd43dd8448eb211c80319c";

    fn trace(text: &str) -> Option<TraceContext> {
        TraceContext::received(text, None)
    }

    #[test]
    fn a_call_has_the_trace_and_the_flags_of_the_request_and_a_parent_of_its_own() {
        let sent = format!("00-{ID}-b7ad6b7169203331-01");
        let received = trace(&sent).unwrap();
        assert_eq!(received.to_string(), ID);
        assert_eq!(
            received.traceparent(0x17),
            format!("00-{ID}-0000000000000017-01")
        );
        assert!(
            trace(&received.traceparent(0)).is_some(),
            "zero is no parent"
        );
        // Of a later version what is known is taken, and version 00 is spoken.
        for later in [
            format!("01-{ID}-b7ad6b7169203331-01"),
            format!("fe-{ID}-b7ad6b7169203331-01-more"),
        ] {
            let received = trace(&later).unwrap();
            assert_eq!(
                received.traceparent(1),
                format!("00-{ID}-0000000000000001-01")
            );
        }
    }

    #[test]
    fn what_is_no_traceparent_is_none() {
        let zeros = "0".repeat(32);
        for text in [
            String::new(),
            "-".repeat(55),
            format!("00-{ID}-b7ad6b7169203331"),
            format!("00-{ID}-b7ad6b7169203331-01-"),
            format!("00-{ID}-b7ad6b7169203331-01-more"),
            format!("00-{ID}-b7ad6b7169203331-1"),
            format!("00-{ID}-b7ad6b7169203331-+1"),
            format!("00-{}-b7ad6b7169203331-01", ID.to_uppercase()),
            format!("00-{zeros}-b7ad6b7169203331-01"),
            format!("00-{ID}-0000000000000000-01"),
            format!("ff-{ID}-b7ad6b7169203331-01"),
            format!("0-{ID}-b7ad6b7169203331-01"),
            format!("00-{ID}b-7ad6b7169203331-01"),
            format!(" 00-{ID}-b7ad6b7169203331-01"),
            format!("00-{ID}-b7ad6b716920333é-01"),
        ] {
            assert_eq!(trace(&text), None, "{text:?}");
        }
    }

    #[test]
    fn a_trace_that_begins_here_is_one_that_others_take() {
        for random in [0, 1, u128::MAX] {
            let begun = TraceContext::begun(random);
            assert_eq!(trace(&begun.traceparent(7)), Some(begun));
        }
    }

    #[test]
    fn the_state_is_passed_on_as_it_came_or_not_at_all() {
        let sent = format!("00-{ID}-b7ad6b7169203331-01");
        let state = |state: &str| {
            let received = TraceContext::received(&sent, Some(state)).unwrap();
            received.tracestate().map(str::to_owned)
        };
        let several = "congo=t61rcWkgMzE, rojo=00f067aa0ba902b7";
        assert_eq!(state(several).as_deref(), Some(several));
        assert_eq!(
            state(&"a".repeat(STATE_MAX)).map(|state| state.len()),
            Some(STATE_MAX)
        );
        for dropped in ["", "  ", "a=\r\nb", "a=\u{e9}", &"a".repeat(STATE_MAX + 1)] {
            assert_eq!(state(dropped), None, "{dropped:?}");
        }
    }
}
