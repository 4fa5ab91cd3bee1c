//! What this process has promised lately: the operations of branches in doubt, so that their outcome need not read and parse
//! them again. Only a shortcut: the row decides, and says by its digest whether these are the ones.

use std::{collections::HashMap, sync::Arc};

use unanimous_protocol::{id::BranchId, operations::BodyDigest};

use crate::service::Work;

/// Branches of each of the two generations, at most.
const GENERATION_MAX: usize = 4_096;
/// Operations longer than this are read again.
const TEXT_MAX: usize = 4_096;

/// A branch's yes, as it was given.
pub(crate) struct Promise {
    pub(crate) work: Arc<dyn Work>,
    pub(crate) digest: BodyDigest,
    pub(crate) voted_yes: Vec<i32>,
}

/// Two generations: where the young one is full, it becomes the old one, whose rest is forgotten.
#[derive(Default)]
pub(crate) struct Promises {
    young: HashMap<BranchId, Arc<Promise>>,
    old: HashMap<BranchId, Arc<Promise>>,
}

impl Promises {
    /// `length`: of the operations' text, in bytes.
    pub(crate) fn remember(&mut self, branch: BranchId, promise: Promise, length: usize) {
        if length > TEXT_MAX {
            return;
        }
        if self.young.len() >= GENERATION_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(branch, Arc::new(promise));
    }

    pub(crate) fn of(&self, branch: &BranchId) -> Option<Arc<Promise>> {
        let promise = self.young.get(branch).or_else(|| self.old.get(branch));
        promise.cloned()
    }

    /// The branch has its outcome.
    pub(crate) fn forget(&mut self, branch: &BranchId) {
        if self.young.remove(branch).is_none() {
            self.old.remove(branch);
        }
    }
}
