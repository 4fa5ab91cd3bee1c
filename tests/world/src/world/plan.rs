//! What a client is to do.

use std::collections::BTreeMap;

use unanimous_protocol::{
    id::ParticipantName,
    operations::{BodyDigest, Operations},
    record::IdempotencyKey,
};

use crate::{
    client::{End, Plan},
    participant::{ACCOUNTS, Operation},
    rng::Rng,
    surroundings::Surroundings,
};

/// Every shape that a transaction can have.
pub(super) fn plan(names: &[ParticipantName], index: usize, s: &mut Surroundings) -> Plan {
    let rng = &mut s.rng;
    let mut shuffled = names.to_vec();
    for at in (1..shuffled.len()).rev() {
        shuffled.swap(at, rng.below(at as u64 + 1) as usize);
    }
    let account = |rng: &mut Rng| rng.below(ACCOUNTS);
    let amount = rng.between(1, 40);
    let debit = Operation::Debit {
        account: account(rng),
        amount,
    };
    let credit = Operation::Credit {
        account: account(rng),
        amount,
    };
    let from = account(rng);
    let shuffle = Operation::Shuffle {
        from,
        to: (from + 1) % ACCOUNTS,
        amount,
    };
    let mut work: Vec<(usize, Operation)> = match rng.below(12) {
        0..=4 => vec![(0, debit), (1, credit)],
        5 => vec![(0, shuffle)],
        6 => vec![(0, Operation::Look), (1, Operation::Look)],
        7 => vec![(0, Operation::Look), (1, shuffle)],
        8 => vec![(0, shuffle), (1, shuffle)],
        9 => vec![(0, debit), (1, credit), (1, Operation::Refuse)],
        10 => Vec::new(),
        _ => vec![(0, shuffle), (1, Operation::Look)],
    };
    if !work.is_empty() && rng.chance(4_000) {
        // Shared keys, in any order: waiters, and cycles of them.
        let key = rng.below(3);
        work.insert(0, (0, Operation::Lock { key }));
        work.push((1, Operation::Lock { key: key / 2 }));
    }
    if !work.is_empty() && rng.chance(3_000) {
        // A second piece for the same participant: in interactive use a part of its work can be lost.
        work.push((0, shuffle));
    }
    if let Some(last) = shuffled.len().checked_sub(1)
        && last > 1
        && rng.chance(4_000)
    {
        work.push((
            last,
            if rng.chance(5_000) {
                shuffle
            } else {
                Operation::Look
            },
        ));
    }
    let end = match rng.below(10) {
        0..=5 => End::AtOnce,
        6 | 7 => End::Commit,
        8 => End::Race,
        _ => End::Abort,
    };
    let mut branches: BTreeMap<ParticipantName, Vec<Operation>> = BTreeMap::new();
    let mut interactive = Vec::new();
    let interactive_from = if end == End::AtOnce {
        9
    } else {
        rng.below(3) as usize
    };
    for (at, operation) in work {
        let Some(name) = shuffled.get(at) else {
            continue;
        };
        if at >= interactive_from {
            interactive.push((name.clone(), operation.json()));
        } else {
            branches.entry(name.clone()).or_default().push(operation);
        }
    }
    let branches = branches
        .into_iter()
        .filter_map(|(name, operations)| {
            let list: Vec<String> = operations.into_iter().map(Operation::json).collect();
            let operations = Operations::parse(&format!("[{}]", list.join(","))).ok()?;
            Some((name, operations))
        })
        .collect();
    let keyed = match end {
        End::AtOnce => 6_000,
        End::Commit | End::Race => 3_000,
        End::Abort => 0,
    };
    let key: Option<IdempotencyKey> = if rng.chance(keyed) {
        format!("order-{index}").parse().ok()
    } else {
        None
    };
    let timeout = if s.temper.short_deadlines {
        s.rng.between(50, 4_000)
    } else {
        s.rng.between(20_000, 30_000)
    };
    // Somebody who thinks: longer than what others did meanwhile is kept.
    let pause = if end != End::AtOnce && !s.temper.calm && s.rng.chance(1_500) {
        s.rng.between(5_000, 25_000)
    } else {
        0
    };
    Plan {
        pause,
        key,
        request: BodyDigest([index as u8; 32]),
        branches,
        work: interactive,
        timeout,
        end,
    }
}
