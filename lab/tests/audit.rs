use std::collections::{BTreeMap, BTreeSet};

use anyhow::ensure;
use unanimous_lab::audit::{
    Asked, Books, Claim, Counts, Entry, Evidence, Finding, Log, Logged, Told,
};
use unanimous_lab::town::Total;
use unanimous_lab::transfer::{Side, Transfer};
use unanimous_protocol::id::TransactionId;
use unanimous_protocol::record::Outcome;

const COMMITTED: &str = "08f66b21-0001-8000-8000-104eae94fab2";
const ABORTED: &str = "08f66b21-0001-8000-8000-104eae94fab3";
const OTHER: &str = "08f66b21-0001-8000-8000-104eae94fab4";

fn id(text: &str) -> TransactionId {
    text.parse().expect("it is an id")
}

fn transfer() -> Transfer {
    Transfer {
        from: Side::East.account(1),
        to: Side::West.account(1),
        amount: 30,
    }
}

fn entry(side: Side, transaction: &str) -> Entry {
    let changes = transfer().changes();
    let change = changes.iter().find(|(account, _)| account.side == side);
    let (account, change) = *change.expect("it changes one account of each");
    Entry {
        transaction: transaction.to_owned(),
        account,
        change,
    }
}

fn books(side: Side, balance: i64) -> Books {
    Books {
        side,
        balances: BTreeMap::from([(side.account(1), balance), (side.account(2), 100)]),
        held: BTreeMap::new(),
        entries: BTreeMap::new(),
        in_doubt: BTreeSet::new(),
        keys: BTreeSet::new(),
        told: Total {
            accounts: 2,
            balance: balance + 100,
        },
    }
}

fn asked(key: &str, transaction: &str, outcome: Outcome) -> Asked {
    Asked {
        key: key.to_owned(),
        told: Some(Told {
            transaction: id(transaction),
            outcome,
            reason: None,
        }),
    }
}

fn logged(key: &str, outcome: Outcome) -> Logged {
    Logged {
        outcome: Some(outcome),
        key: Some(key.to_owned()),
    }
}

/// One transfer committed, another one aborted, and everything is as it should be.
fn all_is_well() -> Evidence {
    let before = [books(Side::East, 100), books(Side::West, 100)];
    let (mut east, mut west) = (books(Side::East, 70), books(Side::West, 130));
    east.entries.insert(entry(Side::East, COMMITTED), 1);
    west.entries.insert(entry(Side::West, COMMITTED), 1);
    Evidence {
        asked: vec![
            asked("a", COMMITTED, Outcome::Committed),
            asked("b", ABORTED, Outcome::Aborted),
        ],
        transfers: BTreeMap::from([("a".to_owned(), transfer()), ("b".to_owned(), transfer())]),
        log: Log {
            transactions: BTreeMap::from([
                (id(COMMITTED), logged("a", Outcome::Committed)),
                (id(ABORTED), logged("b", Outcome::Aborted)),
            ]),
            in_doubt: BTreeSet::new(),
        },
        before,
        after: [east, west],
    }
}

/// Changes an account and what the bank tells of it, as a wrong program would.
fn add(books: &mut Books, number: i64, change: i64) {
    let account = books.side.account(number);
    *books.balances.entry(account).or_default() += change;
    books.told.balance += change;
}

#[test]
fn where_all_is_well_nothing_is_found() {
    let report = all_is_well().examine();
    assert_eq!(report.findings, []);
    let counts = Counts {
        committed: 1,
        aborted: 1,
        unknown: 0,
    };
    assert_eq!((report.told, report.logged), (counts, counts));
    assert_eq!(report.applied, [1, 1]);
    assert_eq!((report.total_before, report.total_after), (400, 400));
}

#[test]
fn what_was_there_before_is_nobodys_fault() {
    let mut evidence = all_is_well();
    let old = entry(Side::East, OTHER);
    evidence.before[0].entries.insert(old.clone(), 1);
    evidence.after[0].entries.insert(old.clone(), 1);
    assert_eq!(evidence.examine().findings, []);
    evidence.after[0].entries.insert(old, 2);
    assert!(!evidence.examine().findings.is_empty());
}

/// A name, the harm that is done, the claims that it breaks, and what the findings have to name.
type Case = (
    &'static str,
    fn(&mut Evidence),
    &'static [Claim],
    &'static [&'static str],
);

const CASES: &[Case] = &[
    (
        "a client was never told",
        |evidence| evidence.asked[1].told = None,
        &[Claim::EveryClientTold],
        &["\"b\"", "idempotency_key"],
    ),
    (
        "a commit was told and is not in the log",
        |evidence| {
            evidence.log.transactions.remove(&id(COMMITTED));
        },
        &[Claim::ToldIsLogged, Claim::NothingElse, Claim::NothingElse],
        &[
            COMMITTED,
            "told committed",
            "no record",
            "at east",
            "at west",
        ],
    ),
    (
        "an abort was told and is not in the log",
        |evidence| {
            evidence.log.transactions.remove(&id(ABORTED));
        },
        &[Claim::ToldIsLogged],
        &[ABORTED, "told aborted", "no record"],
    ),
    (
        "a commit was told and the log says that it aborted",
        |evidence| {
            let log = &mut evidence.log.transactions;
            log.insert(id(COMMITTED), logged("a", Outcome::Aborted));
        },
        &[Claim::ToldIsLogged, Claim::NothingElse, Claim::NothingElse],
        &[COMMITTED, "told committed", "says that it aborted"],
    ),
    (
        "an abort was told and the log says that it committed",
        |evidence| {
            let log = &mut evidence.log.transactions;
            log.insert(id(ABORTED), logged("b", Outcome::Committed));
        },
        &[Claim::ToldIsLogged, Claim::NothingLost],
        &[ABORTED, "told aborted", "neither bank"],
    ),
    (
        "a transaction was told and is undecided",
        |evidence| {
            let log = &mut evidence.log.transactions;
            log.get_mut(&id(ABORTED)).expect("it is there").outcome = None;
        },
        &[Claim::ToldIsLogged],
        &[ABORTED, "undecided"],
    ),
    (
        "a commit is applied nowhere",
        |evidence| {
            for (books, change) in evidence.after.iter_mut().zip([30, -30]) {
                books.entries.clear();
                add(books, 1, change);
            }
        },
        &[Claim::NothingLost],
        &[COMMITTED, "its client was told so", "neither bank"],
    ),
    (
        "a commit that was not told is applied nowhere",
        |evidence| {
            let log = &mut evidence.log.transactions;
            log.insert(id(OTHER), logged("b", Outcome::Committed));
        },
        &[Claim::NothingLost],
        &[OTHER, "by the log", "neither bank"],
    ),
    (
        "a bank has forgotten the entry, and moved the money",
        |evidence| evidence.after[1].entries.clear(),
        &[Claim::NothingHalf, Claim::BooksAddUp],
        &[
            COMMITTED,
            "at west the entry +30 on west/1",
            "west/1 holds 130",
        ],
    ),
    (
        "a bank has forgotten all of it",
        |evidence| {
            evidence.after[1].entries.clear();
            add(&mut evidence.after[1], 1, -30);
        },
        &[Claim::NothingHalf, Claim::TotalUnchanged],
        &[COMMITTED, "at west", "held 400 and hold 370"],
    ),
    (
        "a bank has applied it twice",
        |evidence| {
            let west = &mut evidence.after[1];
            west.entries.values_mut().for_each(|count| *count = 2);
            add(west, 1, 30);
        },
        &[Claim::NothingTwice, Claim::TotalUnchanged],
        &[COMMITTED, "2 times at west", "+30 on west/1"],
    ),
    (
        "an entry is there of a transaction that aborted",
        |evidence| {
            let east = &mut evidence.after[0];
            east.entries.insert(entry(Side::East, ABORTED), 1);
            add(east, 1, -30);
        },
        &[Claim::NothingElse, Claim::TotalUnchanged],
        &[ABORTED, "at east", "its client was told that it aborted"],
    ),
    (
        "an entry is there of no transaction at all",
        |evidence| {
            let east = &mut evidence.after[0];
            east.entries.insert(entry(Side::East, "nobody"), 1);
            add(east, 1, -30);
        },
        &[Claim::NothingElse, Claim::TotalUnchanged],
        &["nobody is applied at east", "no record"],
    ),
    (
        "a commit has an entry that nobody asked for",
        |evidence| {
            let west = &mut evidence.after[1];
            let more = Entry {
                change: 5,
                ..entry(Side::West, COMMITTED)
            };
            west.entries.insert(more, 1);
            add(west, 1, 5);
        },
        &[Claim::NothingElse, Claim::TotalUnchanged],
        &[COMMITTED, "+5 on west/1", "no part of what was asked"],
    ),
    (
        "a commit that nobody asked for",
        |evidence| {
            let log = &mut evidence.log.transactions;
            log.insert(id(OTHER), logged("nobody's", Outcome::Committed));
        },
        &[Claim::NothingElse],
        &[OTHER, "nobody's"],
    ),
    (
        "one key, two commits",
        |evidence| {
            let log = &mut evidence.log.transactions;
            log.insert(id(OTHER), logged("a", Outcome::Committed));
            for (books, change) in evidence.after.iter_mut().zip([-30, 30]) {
                books.entries.insert(entry(books.side, OTHER), 1);
                add(books, 1, change);
            }
        },
        &[Claim::ToldIsLogged],
        &[COMMITTED, OTHER, "\"a\""],
    ),
    (
        "a branch is in doubt, with what it holds",
        |evidence| {
            let east = &mut evidence.after[0];
            east.in_doubt.insert(OTHER.to_owned());
            east.held.insert(Side::East.account(2), 30);
            east.keys.insert(OTHER.to_owned());
        },
        &[Claim::NothingInDoubt],
        &[OTHER, "in doubt at east"],
    ),
    (
        "the coordinator waits for an acknowledgement",
        |evidence| {
            evidence.log.in_doubt.insert(id(COMMITTED));
        },
        &[Claim::NothingInDoubt],
        &[COMMITTED, "last_error"],
    ),
    (
        "money is held for nobody",
        |evidence| {
            let held = &mut evidence.after[0].held;
            held.insert(Side::East.account(2), 30);
        },
        &[Claim::NothingHeld],
        &["east/2 holds back 30"],
    ),
    (
        "a key is held for nobody",
        |evidence| {
            evidence.after[1].keys.insert(OTHER.to_owned());
        },
        &[Claim::NothingHeld],
        &[OTHER, "key at west"],
    ),
    (
        "money was made",
        |evidence| add(&mut evidence.after[0], 1, 5),
        &[Claim::BooksAddUp, Claim::TotalUnchanged],
        &["east/1 holds 75", "add up to 70", "held 400 and hold 405"],
    ),
    (
        "money was put elsewhere",
        |evidence| {
            add(&mut evidence.after[0], 1, 5);
            add(&mut evidence.after[0], 2, -5);
        },
        &[Claim::BooksAddUp, Claim::BooksAddUp],
        &["east/1 holds 75", "east/2 holds 95"],
    ),
    (
        "an account is gone",
        |evidence| {
            let west = &mut evidence.after[1];
            west.balances.remove(&Side::West.account(2));
        },
        &[Claim::BooksAddUp, Claim::BooksAddUp, Claim::TotalUnchanged],
        &["west/2 holds 0", "west tells a total of 230"],
    ),
];

#[test]
fn every_harm_is_found_by_name_and_nothing_else_is() -> anyhow::Result<()> {
    for (harm, inflict, claims, names) in CASES {
        let mut evidence = all_is_well();
        inflict(&mut evidence);
        let report = evidence.examine();
        let mut broken: Vec<Claim> = report.findings.iter().map(Finding::breaks).collect();
        broken.sort_unstable();
        ensure!(broken == *claims, "{harm}: {:?}", report.findings);
        let lines: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
        let text = lines.join("\n");
        for name in *names {
            ensure!(text.contains(name), "{harm}: {name:?} is not in\n{text}");
        }
    }
    Ok(())
}

#[test]
fn every_claim_can_be_broken() {
    let broken: BTreeSet<Claim> = CASES.iter().flat_map(|case| case.2).copied().collect();
    assert_eq!(broken, BTreeSet::from(Claim::ALL));
}
