use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use unanimous_lab::Transfer;
use unanimous_lab::audit::{Books, Entry, Finding, compare};
use unanimous_lab::town::Total;
use unanimous_lab::transfer::Side;
use unanimous_protocol::id::TransactionId;

const ID: &str = "08f66b21-0001-8000-8000-104eae94fab2";

fn transfer() -> Transfer {
    Transfer {
        from: Side::East.account(1),
        to: Side::West.account(1),
        amount: 30,
    }
}

fn books(side: Side, balance: i64) -> Books {
    Books {
        side,
        balances: BTreeMap::from([(side.account(1), balance), (side.account(2), 100)]),
        held: 0,
        entries: BTreeMap::new(),
        in_doubt: Vec::new(),
        told: Total {
            accounts: 2,
            balance: balance + 100,
        },
    }
}

fn before() -> [Books; 2] {
    [books(Side::East, 100), books(Side::West, 100)]
}

/// The books as they are after the transfer committed.
fn after() -> [Books; 2] {
    let [(from, taken), (to, put)] = transfer().changes();
    let entry = |account, change| Entry {
        transaction: ID.to_owned(),
        account,
        change,
    };
    let (mut east, mut west) = (books(Side::East, 70), books(Side::West, 130));
    east.entries.insert(entry(from, taken), 1);
    west.entries.insert(entry(to, put), 1);
    [east, west]
}

fn committed() -> anyhow::Result<Vec<(TransactionId, Transfer)>> {
    Ok(vec![(ID.parse()?, transfer())])
}

/// What is found after `harm` was done to the books.
fn found(harm: impl FnOnce(&mut Books, &mut Books)) -> anyhow::Result<Vec<Finding>> {
    let [mut east, mut west] = after();
    harm(&mut east, &mut west);
    Ok(compare(&before(), &committed()?, &[east, west]))
}

#[test]
fn books_that_are_right_have_no_findings() -> anyhow::Result<()> {
    ensure!(found(|_, _| {})?.is_empty());
    ensure!(compare(&before(), &[], &before()).is_empty());
    Ok(())
}

#[test]
fn an_entry_that_is_missing_doubled_or_nobodys_is_found() -> anyhow::Result<()> {
    let missing = found(|east, _| east.entries.clear())?;
    ensure!(
        matches!(
            missing[..],
            [Finding::Entry {
                expected: 1,
                found: 0,
                ..
            }]
        ),
        "{missing:?}"
    );
    let doubled = found(|_, west| west.entries.values_mut().for_each(|count| *count = 2))?;
    ensure!(
        matches!(
            doubled[..],
            [Finding::Entry {
                expected: 1,
                found: 2,
                ..
            }]
        ),
        "{doubled:?}"
    );
    let nobodys = compare(&after(), &[], &after());
    ensure!(nobodys.is_empty(), "what was there before is not new");
    let nobodys = compare(&before(), &[], &after());
    let entries = nobodys.iter().filter(|finding| {
        matches!(
            finding,
            Finding::Entry {
                expected: 0,
                found: 1,
                ..
            }
        )
    });
    ensure!(entries.count() == 2, "{nobodys:?}");
    Ok(())
}

#[test]
fn money_that_was_made_lost_or_put_elsewhere_is_found() -> anyhow::Result<()> {
    let add = |books: &mut Books, number, change: i64| {
        let account = books.side.account(number);
        *books.balances.entry(account).or_default() += change;
        books.told.balance += change;
    };
    let made = found(|east, _| add(east, 1, 5))?;
    ensure!(
        made.contains(&Finding::Total {
            before: 400,
            after: 405
        }),
        "{made:?}"
    );
    let elsewhere = found(|east, _| {
        add(east, 1, 5);
        add(east, 2, -5);
    })?;
    ensure!(
        matches!(
            elsewhere[..],
            [Finding::Balance { .. }, Finding::Balance { .. }]
        ),
        "{elsewhere:?}"
    );
    let gone = found(|_, west| {
        west.balances.remove(&Side::West.account(2));
    })?;
    ensure!(
        gone.len() == 3,
        "the total, the account, and what the bank tells: {gone:?}"
    );
    Ok(())
}

#[test]
fn who_still_waits_is_found() -> anyhow::Result<()> {
    let in_doubt = found(|east, _| {
        east.in_doubt.push(ID.to_owned());
        east.held = 30;
    })?;
    let text = in_doubt.first().context("no finding")?.to_string();
    ensure!(
        in_doubt.len() == 1 && text.contains("in doubt at east"),
        "{in_doubt:?}"
    );
    let held = found(|east, _| east.held = 30)?;
    ensure!(
        matches!(held[..], [Finding::Held { held: 30, .. }]),
        "{held:?}"
    );
    Ok(())
}
