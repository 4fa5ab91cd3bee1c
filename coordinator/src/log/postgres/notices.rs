//! Hears what the server warns of while a statement runs.
//!
//! A commit whose wait for its synchronous standby was cancelled returns like any other: it is committed here, may be
//! nowhere else, and says so in a WARNING. That is unclear (design rule 10). The driver shows notices to nobody, but
//! emits each as a `tracing` event while the statement's future is polled. So forced writes run under a dispatcher of
//! their own, which keeps the warnings and hands everything on to the one that was there.
//!
//! That this works is not assumed: every writing connection proves it before it is used (see [`super::session`]).

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use tracing::{
    Dispatch, Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    instrument::WithSubscriber as _,
    level_filters::LevelFilter,
    span,
    subscriber::Interest,
};

const TARGET: &str = "sqlx::postgres::notice";

/// Runs statements and tells what the server warned of.
pub(super) struct Ears {
    dispatch: Dispatch,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Ears {
    /// One for each log: a dispatcher is known to the whole process as long as it lives, so there should be few.
    pub(super) fn new() -> Self {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let listener = Listener {
            heard: Arc::clone(&heard),
            outer: tracing::dispatcher::get_default(Clone::clone),
            level: LevelFilter::current(),
        };
        Self {
            dispatch: Dispatch::new(listener),
            heard,
        }
    }

    /// What `statements` come to, and the warnings that came with it. One at a time: the caller holds the only
    /// connection that is listened to.
    pub(super) async fn listen<T>(
        &self,
        statements: impl Future<Output = T> + Send,
    ) -> (T, Vec<String>) {
        self.take();
        let done = statements.with_subscriber(self.dispatch.clone()).await;
        (done, self.take())
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Whether a warning leaves a write as clear as it is without it. Only what is known to: texts may be translated.
pub(super) fn is_harmless(warning: &str) -> bool {
    // The server warns of used-up transaction numbers with each one it gives out, for days.
    warning.contains("must be vacuumed within")
}

struct Listener {
    heard: Arc<Mutex<Vec<String>>>,
    outer: Dispatch,
    level: LevelFilter,
}

fn is_warning(metadata: &Metadata<'_>) -> bool {
    metadata.target() == TARGET && *metadata.level() <= Level::WARN
}

impl Subscriber for Listener {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        let outer = self.outer.register_callsite(metadata);
        if is_warning(metadata) {
            Interest::always()
        } else {
            outer
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        is_warning(metadata) || self.outer.enabled(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level.max(LevelFilter::WARN))
    }

    fn event(&self, event: &Event<'_>) {
        if is_warning(event.metadata()) {
            let mut message = Message(String::new());
            event.record(&mut message);
            let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
            heard.push(message.0);
            // Whoever listens says what it means.
            return;
        }
        if self.outer.enabled(event.metadata()) {
            self.outer.event(event);
        }
    }

    fn new_span(&self, attributes: &span::Attributes<'_>) -> span::Id {
        self.outer.new_span(attributes)
    }

    fn record(&self, span: &span::Id, values: &span::Record<'_>) {
        self.outer.record(span, values);
    }

    fn record_follows_from(&self, span: &span::Id, follows: &span::Id) {
        self.outer.record_follows_from(span, follows);
    }

    fn enter(&self, span: &span::Id) {
        self.outer.enter(span);
    }

    fn exit(&self, span: &span::Id) {
        self.outer.exit(span);
    }

    fn clone_span(&self, span: &span::Id) -> span::Id {
        self.outer.clone_span(span)
    }

    fn try_close(&self, span: span::Id) -> bool {
        self.outer.try_close(span)
    }
}

struct Message(String);

impl Visit for Message {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.0);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}
