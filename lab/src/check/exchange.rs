//! What was said during a check, as lines that can be typed again.

use std::sync::{Mutex, PoisonError};

use serde::Serialize;

/// A check that says more is shown by its first and its last exchanges.
const KEPT_AT_EACH_END: usize = 20;
/// A longer body is cut where it is shown.
const SHOWN_MAX: usize = 700;

/// One request and its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Exchange {
    /// The request, as a line for a shell.
    pub request: String,
    /// The status and the body, or what was there instead of an answer.
    pub answer: String,
}

/// A request that the kit makes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Typed<'a> {
    pub(super) method: &'static str,
    pub(super) url: &'a str,
    pub(super) content_type: Option<&'a str>,
    pub(super) body: Option<&'a str>,
    /// Said behind it, for what curl can not do.
    pub(super) remark: &'a str,
}

impl Exchange {
    pub(super) fn asked_of_participant(typed: Typed<'_>, answer: String) -> Self {
        let mut request = String::from("curl -sS -i");
        match (typed.method, typed.body) {
            ("GET", None) | ("POST", Some(_)) => {}
            (method, _) => request.push_str(&format!(" -X {method}")),
        }
        request.push_str(&format!(" {}", quoted(typed.url)));
        if let Some(content_type) = typed.content_type {
            request.push_str(&format!(" -H 'Content-Type: {content_type}'"));
        }
        if let Some(body) = typed.body {
            request.push_str(&format!(" -d {}", quoted(&shortened(body))));
        }
        if !typed.remark.is_empty() {
            request.push_str(&format!("   # {}", typed.remark));
        }
        Self {
            request,
            answer: shortened(&answer),
        }
    }

    pub(super) fn asked_by_participant(url: &str, path: &str, query: &str, answer: String) -> Self {
        let target = quoted(&format!("{url}{path}?{query}"));
        Self {
            request: format!("# the participant asked: curl -sS -i {target}"),
            answer: shortened(&answer),
        }
    }

    pub(super) fn command(what: &str, command_answer: String) -> Self {
        Self {
            request: format!("# {what}"),
            answer: shortened(&command_answer),
        }
    }
}

fn shortened(text: &str) -> String {
    let text = text.replace('\n', " ");
    if text.len() <= SHOWN_MAX {
        return text;
    }
    let cut: String = text.chars().take(SHOWN_MAX / 2).collect();
    format!("{cut}… ({} bytes)", text.len())
}

/// For a POSIX shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || ":/._-@%=,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// The exchanges of one check, in their order. Bounded: of many it keeps the first and the last.
#[derive(Debug, Default)]
pub(super) struct Exchanges(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    exchanges: Vec<Exchange>,
    left_out: usize,
}

impl Exchanges {
    pub(super) fn push(&self, exchange: Exchange) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.exchanges.len() >= 2 * KEPT_AT_EACH_END {
            kept.exchanges.remove(KEPT_AT_EACH_END);
            kept.left_out += 1;
        }
        kept.exchanges.push(exchange);
    }

    pub(super) fn list(&self) -> Vec<Exchange> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut list = kept.exchanges.clone();
        if kept.left_out > 0 {
            let left_out = Exchange::command(
                &format!("{} more requests like these", kept.left_out),
                "…".to_owned(),
            );
            list.insert(KEPT_AT_EACH_END, left_out);
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_can_be_typed_again_whatever_is_in_it() {
        let typed = Typed {
            method: "POST",
            url: "http://127.0.0.1:1/v1/prepare",
            content_type: Some("application/json"),
            body: Some(r#"{"a": "it's"}"#),
            remark: "",
        };
        let exchange = Exchange::asked_of_participant(typed, "200 {}".to_owned());
        assert_eq!(
            exchange.request,
            r#"curl -sS -i http://127.0.0.1:1/v1/prepare -H 'Content-Type: application/json' -d '{"a": "it'\''s"}'"#
        );
        let get = Typed {
            method: "GET",
            url: "http://127.0.0.1:1/v1/branches?state=prepared&limit=2",
            content_type: None,
            body: None,
            remark: "",
        };
        assert_eq!(
            Exchange::asked_of_participant(get, String::new()).request,
            "curl -sS -i 'http://127.0.0.1:1/v1/branches?state=prepared&limit=2'"
        );
    }

    #[test]
    fn of_many_exchanges_the_first_and_the_last_are_kept() {
        let exchanges = Exchanges::default();
        for number in 0..100 {
            exchanges.push(Exchange::command(&number.to_string(), String::new()));
        }
        let list = exchanges.list();
        assert_eq!(list.len(), 2 * KEPT_AT_EACH_END + 1);
        assert_eq!(list[0].request, "# 0");
        assert_eq!(
            list[KEPT_AT_EACH_END].request,
            "# 60 more requests like these"
        );
        assert_eq!(list[2 * KEPT_AT_EACH_END].request, "# 99");
    }
}
