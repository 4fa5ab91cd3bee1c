//! The audit is proven to see: real programs that are wrong once, and a log from which one decision is removed. It names
//! the transaction and what is wrong, and nothing else.

use std::path::PathBuf;

use unanimous_lab::audit::{self, Asked, Books, Claim, Evidence, Finding, Report};
use unanimous_lab::fault::{Fault, Victim};
use unanimous_lab::town::{LogKind, Plan, Programs, Servers, Site, Town};
use unanimous_lab::transfer::Side;
use unanimous_lab::{Load, Transfers, postgres};
use unanimous_protocol::record::Outcome;

use crate::support::coordinator::{BANK, BINARY};
use crate::support::{Log, On, SOON, on_both_logs};

const FORGETFUL_BANK: &str = env!("CARGO_BIN_EXE_system-forgetful-bank");
const DOUBLING_BANK: &str = env!("CARGO_BIN_EXE_system-doubling-bank");

const TRANSFERS: usize = 60;

const WORK: Transfers = Transfers {
    seed: 7,
    accounts: 10,
    amount_max: 90,
};

/// A town after a load, all settled, and what its books said before.
struct AfterLoad {
    town: Town,
    site: Site,
    before: [Books; 2],
    asked: Vec<Asked>,
}

impl AfterLoad {
    async fn of(bank: &str, log: LogKind) -> Self {
        let plan = Plan {
            programs: Programs {
                unanimous: PathBuf::from(BINARY),
                bank: PathBuf::from(bank),
            },
            accounts: WORK.accounts,
            balance: 1_000,
            log,
            servers: Servers::Private,
        };
        let town = Town::start(&plan).await.expect("the town starts");
        let site = town.site();
        let before = Books::read_both(&site).await.expect("books can be read");
        let load = Load::start(WORK, 8, site.address().expect("an address"));
        load.allow(TRANSFERS);
        let ended = load.finish().await.expect("every client is told");
        audit::settled(&site, SOON).await.expect("all settles");
        Self {
            town,
            site,
            before,
            asked: ended.asked,
        }
    }

    async fn audit(&self) -> Report {
        let transfers = WORK.by_key(TRANSFERS);
        let (asked, before) = (self.asked.clone(), self.before.clone());
        let evidence = Evidence::collect(&self.site, asked, transfers, before);
        evidence.await.expect("books and log can be read").examine()
    }

    /// Which transaction each bank was wrong about, as it noted down itself.
    async fn wrong(&self) -> Vec<(Side, String)> {
        let mut wrong = Vec::new();
        for bank in &self.site.banks {
            let database = postgres::connect(&bank.database_url).await;
            let database = database.expect("the bank's database answers");
            let noted = database
                .query_one("SELECT transaction FROM wrong", &[])
                .await;
            wrong.push((bank.side, noted.expect("it was wrong once").get(0)));
        }
        wrong
    }
}

/// The findings that break this claim, as a reader sees them.
fn breaking(report: &Report, claim: Claim) -> Vec<String> {
    let findings = report.findings.iter();
    let breaking = findings.filter(|finding| finding.breaks() == claim);
    breaking.map(ToString::to_string).collect()
}

#[tokio::test]
async fn where_nothing_is_wrong_nothing_is_found() {
    let load = AfterLoad::of(BANK, LogKind::Sqlite).await;
    let report = load.audit().await;
    assert_eq!(report.findings, []);
    assert!(report.told.committed > TRANSFERS / 2, "{report:?}");
    assert!(
        report.told.aborted > 0,
        "some are to be refused: {report:?}"
    );
}

#[tokio::test]
async fn a_bank_that_forgets_one_entry_is_named_with_the_transaction() {
    let load = AfterLoad::of(FORGETFUL_BANK, LogKind::Sqlite).await;
    let report = load.audit().await;
    let found = breaking(&report, Claim::NothingHalf);
    let wrong = load.wrong().await;
    assert_eq!(found.len(), wrong.len(), "{:?}", report.findings);
    for (side, transaction) in &wrong {
        let names = format!("{transaction} committed and is applied in part: at {side} the entry");
        assert!(
            found.iter().any(|line| line.starts_with(&names)),
            "{names}: {found:?}"
        );
    }
    // What it forgot is missing in the total as well, and nothing else is wrong.
    assert_eq!(report.broken(Claim::TotalUnchanged), 1);
    assert!(report.total_after < report.total_before);
    assert_eq!(report.findings.len(), wrong.len() + 1, "{report:?}");
}

#[tokio::test]
async fn a_bank_that_applies_one_entry_twice_is_named_with_the_transaction() {
    let load = AfterLoad::of(DOUBLING_BANK, LogKind::Sqlite).await;
    let report = load.audit().await;
    let found = breaking(&report, Claim::NothingTwice);
    let wrong = load.wrong().await;
    assert_eq!(found.len(), wrong.len(), "{:?}", report.findings);
    for (side, transaction) in &wrong {
        let names = format!("{transaction} is applied 2 times at {side}: the entry");
        assert!(
            found.iter().any(|line| line.starts_with(&names)),
            "{names}: {found:?}"
        );
    }
    assert_eq!(report.broken(Claim::TotalUnchanged), 1);
    assert!(report.total_after > report.total_before);
    assert_eq!(report.findings.len(), wrong.len() + 1, "{report:?}");
}

on_both_logs! {
    a_decision_that_is_removed_from_the_log_is_named
}

async fn a_decision_that_is_removed_from_the_log_is_named(on: On) {
    let kind = match on {
        On::Sqlite => LogKind::Sqlite,
        On::Postgres => LogKind::Postgres,
    };
    let mut load = AfterLoad::of(BANK, kind).await;
    assert_eq!(load.audit().await.findings, [], "before the harm");
    let told = load.asked.iter().filter_map(|asked| asked.told.as_ref());
    let committed = told.filter(|told| told.outcome == Outcome::Committed);
    let transaction = committed.map(|told| told.transaction).next();
    let transaction = transaction.expect("something committed");

    let victim = Victim::Coordinator;
    let stopped = load.town.inflict(Fault::Stop, victim).await;
    stopped.expect("it stops in good order");
    let log = Log::of_url(load.town.coordinator.log_url());
    log.remove_record(transaction).await;
    let restarted = load.town.inflict(Fault::Restart, victim).await;
    restarted.expect("it starts again");

    let report = load.audit().await;
    let text = transaction.to_string();
    assert_eq!(report.findings.len(), 3, "{:?}", report.findings);
    let lines: Vec<String> = report.findings.iter().map(Finding::to_string).collect();
    assert!(
        lines.iter().all(|line| line.starts_with(&text)),
        "{lines:?}"
    );
    let told = breaking(&report, Claim::ToldIsLogged).concat();
    let words = "was told committed, and the log has no record of it";
    assert!(told.contains(words), "{lines:?}");
    let applied = breaking(&report, Claim::NothingElse).concat();
    for side in Side::BOTH {
        assert!(
            applied.contains(&format!("is applied at {side}")),
            "{lines:?}"
        );
    }
}

#[tokio::test]
async fn what_stands_still_goes_on_and_what_was_stopped_comes_back() {
    let mut load = AfterLoad::of(BANK, LogKind::Sqlite).await;
    for victim in [Victim::Coordinator, Victim::Bank(Side::West)] {
        for fault in [Fault::Pause, Fault::Stop, Fault::Kill] {
            let id = load.town.process_id(victim);
            let inflicted = load.town.inflict(fault, victim).await;
            inflicted.unwrap_or_else(|error| panic!("{fault} {victim}: {error:#}"));
            let restarted = load.town.inflict(Fault::Restart, victim).await;
            restarted.unwrap_or_else(|error| panic!("{fault} {victim}: {error:#}"));
            let is_same = load.town.process_id(victim) == id;
            assert_eq!(is_same, fault == Fault::Pause, "{fault} {victim}");
            let again = Load::start(WORK, 2, load.site.address().expect("an address"));
            again.allow(1);
            again.finish().await.expect("its client is told");
        }
    }
    // The same request each time: it was done once, and told again.
    audit::settled(&load.site, SOON).await.expect("all settles");
    assert_eq!(load.audit().await.findings, []);
}
