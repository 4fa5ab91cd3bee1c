//! Forgets: hears the low-water marks that calls carry, and has the rows below them dropped, in rounds (design rule 15).
//!
//! A mark takes effect when it is stored, together with the dropping; until then it is only heard, and a restart may
//! forget it. Nothing waits for any of this: a round takes a prepare's slot, never one of phase two.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use unanimous_protocol::{
    id::{Prefix, TransactionId},
    low_water,
};

use crate::{
    calls::chain,
    intent_log::{LogError, pruning::prune},
    participant::Shared,
};

/// Prefixes that marks are kept of: coordinators' nodes, over all identities of their logs. What is beyond is not pruned
/// by this process.
const PREFIXES_MAX: usize = 1_024;
/// So often a round looks through all that is below the mark, for what was in doubt when the mark passed it. The others
/// begin where the last one ended: rows that are dropped stay in the index until Postgres cleans up, which a long-running
/// transaction can hold up for hours, and they would be walked over every time.
const SWEEP_EVERY: u32 = 60;
/// A round waits so long for a slot.
const SLOT_PATIENCE: Duration = Duration::from_secs(10);

/// The highest marks that were heard.
#[derive(Default)]
pub(crate) struct Marks {
    heard: Mutex<BTreeMap<Prefix, Heard>>,
    news: Notify,
}

#[derive(Clone, Copy)]
struct Heard {
    mark: TransactionId,
    /// Up to where everything that had an outcome is gone.
    pruned: Option<TransactionId>,
    rounds: u32,
}

impl Heard {
    /// Where the next round begins; `None` for the first one of all.
    fn from(&self) -> Option<TransactionId> {
        self.pruned
            .filter(|_| !self.rounds.is_multiple_of(SWEEP_EVERY))
    }
}

impl Marks {
    /// A call about `transaction` carried this mark. One that says nothing of it is somebody's mistake and not heard.
    pub(crate) fn hear(&self, transaction: TransactionId, low_water: Option<TransactionId>) {
        let Some(mark) = low_water::about(transaction, low_water) else {
            return;
        };
        let prefix = mark.prefix();
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.len() >= PREFIXES_MAX && !heard.contains_key(&prefix) {
            return;
        }
        let known = heard.entry(prefix).or_insert(Heard {
            mark,
            pruned: None,
            rounds: 0,
        });
        known.mark = known.mark.max(mark);
        if known.pruned.is_none_or(|pruned| pruned < known.mark) {
            drop(heard);
            self.news.notify_one();
        }
    }

    /// Marks that were heard and not pruned up to, each with where to begin.
    fn due(&self) -> Vec<(Option<TransactionId>, TransactionId)> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let due = heard
            .values()
            .filter(|heard| heard.pruned.is_none_or(|pruned| pruned < heard.mark));
        due.map(|heard| (heard.from(), heard.mark)).collect()
    }

    fn pruned(&self, mark: TransactionId) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(heard) = heard.get_mut(&mark.prefix()) {
            heard.pruned = heard.pruned.max(Some(mark));
            heard.rounds = heard.rounds.wrapping_add(1);
        }
    }
}

/// Prunes whenever there is something new to prune, with a pause after each round.
pub(crate) async fn run(shared: Arc<Shared>) {
    loop {
        shared.marks.news.notified().await;
        for (from, mark) in shared.marks.due() {
            if let Err(error) = round(&shared, from, mark).await {
                tracing::warn!(participant = %shared.name, %mark, error = chain(&error),
                    "rows of finished transactions could not be dropped; they are in the next round");
                // Also where no call brings news.
                shared.marks.news.notify_one();
            }
        }
        tokio::time::sleep(shared.prune_every).await;
    }
}

/// All that is below the mark, in short local transactions.
async fn round(
    shared: &Shared,
    from: Option<TransactionId>,
    mark: TransactionId,
) -> Result<(), LogError> {
    loop {
        let slot = shared
            .connections
            .prepare_slot(Instant::now() + SLOT_PATIENCE);
        let Some(_slot) = slot.await else {
            return Err(LogError::NoConnection("no slot came free".to_owned()));
        };
        if !prune(shared.connections.get().await?, from, mark).await? {
            shared.marks.pruned(mark);
            return Ok(());
        }
    }
}
