//! Forgets finished transactions once their retention is over (design rule 14): what is due goes within a minute, or
//! within the retention if that is shorter.
//!
//! In small batches with pauses, so that a million that fall due at once never make decisions wait. Nothing is forgotten
//! by a life that may not decide, nor while the log takes no writes: then one of its own may be unclear.

use std::{sync::Arc, time::Duration};

use actix::{ActorFutureExt as _, AsyncContext as _, Context, WrapFuture as _};
use tracing::{debug, error, warn};
use unanimous_protocol::{life::Standing, record::WallMillis};

use super::Registry;
use crate::{actors::wall_clock, crash, log::WriteError, telemetry::chain};

/// Records in one write. Some milliseconds of the log's time.
const BATCH: u32 = 256;
/// Between two batches: decisions have the log to themselves most of the time.
const PAUSE: Duration = Duration::from_millis(10);
/// Twice in the minute that rule 14 gives.
const LOOK_EVERY: Duration = Duration::from_secs(30);

impl Registry {
    pub(super) fn forget_in_time(&mut self, ctx: &mut Context<Self>) {
        let every = LOOK_EVERY.min(self.retention / 2);
        ctx.run_interval(every, |registry, ctx| {
            if !registry.forgetting {
                registry.forget_some(ctx);
            }
        });
    }

    fn forget_some(&mut self, ctx: &mut Context<Self>) {
        if *self.life.standing() != Standing::Serving || !self.log_answers() {
            self.forgetting = false;
            return;
        }
        self.forgetting = true;
        let kept_ms = i64::try_from(self.retention.as_millis()).unwrap_or(i64::MAX);
        let before = WallMillis(wall_clock().0.saturating_sub(kept_ms));
        let (log, writer) = (Arc::clone(&self.log), self.life.writer());
        let forget = async move {
            tokio::time::sleep(PAUSE).await;
            crash::point("forget-before");
            let forgotten = log.forget(&writer, before, BATCH).await;
            crash::point("forget-after");
            forgotten
        };
        let forgotten = forget.into_actor(self);
        ctx.spawn(forgotten.map(|result, registry, ctx| match result {
            Ok(gone) => {
                if gone > 0 {
                    debug!(records = gone, "forgotten after the retention");
                }
                if gone >= u64::from(BATCH) {
                    registry.forget_some(ctx);
                } else {
                    registry.forgetting = false;
                }
            }
            Err(WriteError::Unavailable(cause)) => {
                warn!(error = %chain(&*cause), "what is due could not be forgotten: it is tried again");
                registry.forgetting = false;
            }
            Err(WriteError::Fenced(_) | WriteError::WentBack(_)) => {
                registry.forgetting = false;
                registry.observe(ctx);
            }
            Err(WriteError::Broken(cause)) => {
                error!(error = %chain(&*cause), "the decision log can not be trusted any more: the process ends");
                std::process::abort();
            }
        }));
    }
}
