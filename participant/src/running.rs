//! The prepares that run in this process, by branch: a repeat joins the one that runs, an abort cancels it.
//!
//! Only a shortcut. Between processes, and whenever this map knows nothing, the row decides.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;
use unanimous_protocol::{branch::Answer, id::BranchId, message::Session, operations::BodyDigest};

use crate::calls::Unanswered;

type Ended = Option<Result<Answer, Unanswered>>;

#[derive(Default)]
pub(crate) struct Running {
    prepares: Mutex<HashMap<BranchId, Arc<Prepare>>>,
}

/// One prepare that runs.
pub(crate) struct Prepare {
    digest: BodyDigest,
    session: Option<Session>,
    cancelled: watch::Sender<bool>,
    ended: watch::Sender<Ended>,
}

impl Prepare {
    /// Whether a repeat with these is the same request, and so may share its answer.
    pub(crate) fn is_same(&self, digest: BodyDigest, session: Option<&Session>) -> bool {
        self.digest == digest && self.session.as_ref() == session
    }

    /// Returns once an abort wants this prepare to stop.
    pub(crate) async fn cancelled(&self) {
        let mut cancelled = self.cancelled.subscribe();
        // The sender lives as long as `self`.
        drop(cancelled.wait_for(|&cancelled| cancelled).await);
    }

    /// How it ended, once it has; `None` when its task died.
    pub(crate) async fn ended(&self) -> Ended {
        let mut ended = self.ended.subscribe();
        match ended.wait_for(Option::is_some).await {
            Ok(ended) => ended.clone(),
            Err(_) => None,
        }
    }
}

/// Who runs a branch's prepare.
pub(crate) enum Entered<'a> {
    /// The caller.
    First(Turn<'a>),
    /// Somebody else.
    Joined(Arc<Prepare>),
}

/// The right to run a branch's prepare. Whoever joined learns its end, at the latest when it is dropped.
pub(crate) struct Turn<'a> {
    running: &'a Running,
    branch: BranchId,
    pub(crate) prepare: Arc<Prepare>,
}

impl Running {
    fn prepares(&self) -> MutexGuard<'_, HashMap<BranchId, Arc<Prepare>>> {
        // Nothing panics while it holds the lock, and a map of shortcuts is right in any state.
        self.prepares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn enter(
        &self,
        branch: &BranchId,
        digest: BodyDigest,
        session: Option<&Session>,
    ) -> Entered<'_> {
        let mut prepares = self.prepares();
        if let Some(prepare) = prepares.get(branch) {
            return Entered::Joined(Arc::clone(prepare));
        }
        let prepare = Arc::new(Prepare {
            digest,
            session: session.cloned(),
            cancelled: watch::Sender::new(false),
            ended: watch::Sender::new(None),
        });
        prepares.insert(branch.clone(), Arc::clone(&prepare));
        Entered::First(Turn {
            running: self,
            branch: branch.clone(),
            prepare,
        })
    }

    /// Whether a prepare of this branch runs here, or waits to.
    pub(crate) fn is_preparing(&self, branch: &BranchId) -> bool {
        self.prepares().contains_key(branch)
    }

    /// Tells the prepare of this branch, if one runs here, to stop.
    pub(crate) fn cancel(&self, branch: &BranchId) -> Option<Arc<Prepare>> {
        let prepare = self.prepares().get(branch).cloned()?;
        prepare.cancelled.send_replace(true);
        Some(prepare)
    }
}

impl Turn<'_> {
    /// Tells whoever joined.
    pub(crate) fn end(self, ended: &Result<Answer, Unanswered>) {
        self.prepare.ended.send_replace(Some(ended.clone()));
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.running.prepares().remove(&self.branch);
        self.prepare.ended.send_if_modified(|ended| {
            let died = ended.is_none();
            if died {
                *ended = Some(Err(Unanswered::Busy));
            }
            died
        });
    }
}
