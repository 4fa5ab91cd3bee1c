//! Idempotency keys in one life of a coordinator (design rule 21).
//!
//! The unique key in the decision log is what makes two commits under one key impossible. This ring is what makes a
//! repeat cheap and harmless before that: it finds the transaction that runs under the key, and a key that this life
//! has not seen is looked up in the log once, before any branch is asked to prepare, while further requests with that
//! key wait for the answer.

use std::collections::BTreeMap;

use crate::{id::TransactionId, operations::BodyDigest, record::IdempotencyKey};

/// What a request with a key does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Nobody knows the key: look it up in the log, then [`Keyring::hold`] or [`Keyring::release`] it.
    LookUp,
    /// Another request is looking it up: claim again when that is done.
    Wait,
    /// This transaction was begun with the same request.
    Same(TransactionId),
    /// A transaction was begun with another request under this key.
    Reused,
}

/// The request that a transaction was begun with, as memory or the log knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Holder {
    /// The transaction.
    pub transaction: TransactionId,
    /// Of its request.
    pub request: BodyDigest,
}

impl Holder {
    /// What this holder means for a repeat of `request`.
    #[must_use]
    pub fn claim(self, request: BodyDigest) -> Claim {
        if self.request == request {
            Claim::Same(self.transaction)
        } else {
            Claim::Reused
        }
    }
}

/// The keys of the transactions in memory, and those being looked up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Keyring {
    /// `None` while it is looked up.
    entries: BTreeMap<IdempotencyKey, Option<Holder>>,
}

impl Keyring {
    /// A request with this key has arrived.
    pub fn claim(&mut self, key: &IdempotencyKey, request: BodyDigest) -> Claim {
        match self.entries.get(key) {
            Some(Some(holder)) => holder.claim(request),
            Some(None) => Claim::Wait,
            None => {
                self.entries.insert(key.clone(), None);
                Claim::LookUp
            }
        }
    }

    /// A transaction was begun under a key that the log did not have.
    pub fn hold(&mut self, key: &IdempotencyKey, holder: Holder) {
        self.entries.insert(key.clone(), Some(holder));
    }

    /// The look-up ended without a transaction of this life: the log has it, did not answer, or nothing was begun.
    pub fn release(&mut self, key: &IdempotencyKey) {
        if let Some(None) = self.entries.get(key) {
            self.entries.remove(key);
        }
    }

    /// `transaction` left memory, or lost the key to another one: from now on the log answers for the key.
    pub fn forget(&mut self, key: &IdempotencyKey, transaction: TransactionId) {
        if let Some(Some(holder)) = self.entries.get(key)
            && holder.transaction == transaction
        {
            self.entries.remove(key);
        }
    }

    /// Keys in the ring.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_looked_up_once_and_its_repeats_find_the_transaction() {
        let key: IdempotencyKey = "order-1".parse().unwrap();
        let (request, other) = (BodyDigest([1; 32]), BodyDigest([2; 32]));
        let transaction = "00000001-0001-8000-8000-100000000001".parse().unwrap();
        let mut ring = Keyring::default();
        assert_eq!(ring.claim(&key, request), Claim::LookUp);
        assert_eq!(ring.claim(&key, request), Claim::Wait);
        ring.hold(
            &key,
            Holder {
                transaction,
                request,
            },
        );
        assert_eq!(ring.claim(&key, request), Claim::Same(transaction));
        assert_eq!(ring.claim(&key, other), Claim::Reused);
        ring.release(&key);
        assert_eq!(
            ring.claim(&key, request),
            Claim::Same(transaction),
            "release is for look-ups"
        );
        ring.forget(
            &key,
            "00000001-0001-8000-8000-100000000002".parse().unwrap(),
        );
        assert_eq!(ring.len(), 1, "another one's end does not free it");
        ring.forget(&key, transaction);
        assert!(ring.is_empty());
    }

    #[test]
    fn a_request_that_began_nothing_does_not_consume_its_key() {
        let key: IdempotencyKey = "order-1".parse().unwrap();
        let mut ring = Keyring::default();
        assert_eq!(ring.claim(&key, BodyDigest([1; 32])), Claim::LookUp);
        ring.release(&key);
        assert_eq!(ring.claim(&key, BodyDigest([2; 32])), Claim::LookUp);
    }
}
