//! The demonstration: a commit, a refusal, a load whose coordinator and bank are killed again and again, and the audit of
//! all of it. It is told step by step, and says so when anything is not as it should be.

mod screen;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::{MissedTickBehavior, interval};
use tokio::try_join;
use unanimous_protocol::coordinator::TransactionState;
use unanimous_protocol::record::{AbortCode, Outcome};
use unanimous_protocol::wire::{BeginRequest, TransactionView, Wait};

pub use self::screen::{Look, Screen, Stream, Tone};
use crate::audit::{self, Asked, Books, Claim, Counts, Evidence, Report, Told};
use crate::fault::Victim;
use crate::load::{Ended, Load, Transfers, Work as _, per_second};
use crate::recovery::{Recovery, Watch, kill_and_recover};
use crate::town::{LogKind, Plan, Programs, Servers, Town};
use crate::transfer::{Account, Side, Transfer};

const ACCOUNTS: i64 = 100;
const BALANCE: i64 = 1000;
/// The most that a transfer of the load moves.
const AMOUNT_MAX: i64 = 100;

const PAYER: Account = Account {
    side: Side::East,
    number: 7,
};
const PAYEE: Account = Account {
    side: Side::West,
    number: 9,
};

/// How long the last ones may take to settle before the audit looks all the same.
const SETTLING: Duration = Duration::from_secs(30);
/// How often the progress is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What the demo may be told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which programs it starts.
    pub programs: Programs,
    /// How many transfers the load makes.
    pub transfers: usize,
    /// By how many clients at once.
    pub clients: usize,
    /// How often a program is killed meanwhile.
    pub kills: usize,
    /// Where decisions are kept.
    pub log: LogKind,
    /// Where databases are.
    pub servers: Servers,
    /// Fixes the transfers, and who is killed.
    pub seed: u64,
}

/// What came of it, for programs. Its members and their order are a contract.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Summary {
    /// Transfers of the load,
    pub transfers: usize,
    /// of which so many committed, as their clients were told,
    pub committed: usize,
    /// so many aborted,
    pub aborted: usize,
    /// and of so many the client was never told.
    pub unknown: usize,
    /// How often the coordinator was killed.
    pub coordinator_kills: usize,
    /// How often a bank was killed.
    pub participant_kills: usize,
    /// Transactions in doubt at the end, at each place that says so.
    pub in_doubt: usize,
    /// Entries that are there more than once.
    pub applied_twice: usize,
    /// Entries of commits that are missing at one bank.
    pub half_applied: usize,
    /// Commits that are applied nowhere.
    pub lost: usize,
    /// What both banks held together at first.
    pub total_before: i64,
    /// What they hold at the end.
    pub total_after: i64,
    /// The longest time from a kill until all was settled that was in doubt then.
    pub recovery_ms_max: u64,
    /// Half of the requests were told within this, from the client's first attempt.
    pub p50_ms: u64,
    /// Of a hundred requests, 99.
    pub p99_ms: u64,
    /// Requests that were told each second, the kills included.
    pub per_second: u64,
    /// To repeat it.
    pub seed: u64,
}

/// The end of a demo. The programs run until it is dropped.
#[derive(Debug)]
pub struct Shown {
    /// In numbers.
    pub summary: Summary,
    /// What the audit says.
    pub report: Report,
    /// Everything that runs.
    pub town: Town,
}

impl Shown {
    /// Whether all was as it should be.
    pub fn is_right(&self) -> bool {
        self.report.findings.is_empty()
    }

    /// Three lines to try while it runs.
    pub fn lines_to_try(&self) -> [String; 3] {
        let (api, east) = (
            self.town.coordinator.url(),
            self.town.bank(Side::East).url(),
        );
        let branch = |side: Side, kind: &str, account: Account| {
            let number = account.number;
            format!(
                r#"{{"participant":"{side}","operations":[{{"kind":"{kind}","account":{number},"amount":5}}]}}"#
            )
        };
        let debit = branch(Side::East, "debit", PAYER);
        let credit = branch(Side::West, "credit", PAYEE);
        [
            format!(
                "curl -sS {api}/v1/transactions -H 'Content-Type: application/json' -H 'Idempotency-Key: mine-1' \
                 -d '{{\"commit\":true,\"wait\":\"applied\",\"branches\":[{debit},{credit}]}}'"
            ),
            format!("curl -sS {east}/accounts/{}", PAYER.number),
            format!("curl -sS '{api}/v1/transactions?limit=3'"),
        ]
    }
}

/// Runs the demo, and tells it on the screen. What it started is left running in what it returns, and ends with that.
pub async fn run(options: &Options, screen: &mut Screen<'_>) -> anyhow::Result<Shown> {
    let begun = Instant::now();
    let title = "Unanimous: a change in two services, in both of them or in none.";
    screen.line(screen.paint(Tone::Strong, title))?;
    let plan = Plan {
        programs: options.programs.clone(),
        accounts: ACCOUNTS,
        balance: BALANCE,
        log: options.log,
        servers: options.servers.clone(),
    };
    let town = Town::start(&plan).await?;
    let mut demo = Demo {
        town,
        screen,
        asked: Vec::new(),
        transfers: BTreeMap::new(),
    };
    match demo.tell(options, begun).await {
        Ok((summary, report)) => Ok(Shown {
            summary,
            report,
            town: demo.town,
        }),
        Err(error) => {
            demo.screen.end_progress();
            Err(error.context(demo.town.outputs()))
        }
    }
}

struct Demo<'a, 'b> {
    town: Town,
    screen: &'a mut Screen<'b>,
    /// What single clients were told.
    asked: Vec<Asked>,
    /// What they asked for.
    transfers: BTreeMap<String, Transfer>,
}

impl Demo<'_, '_> {
    async fn tell(
        &mut self,
        options: &Options,
        begun: Instant,
    ) -> anyhow::Result<(Summary, Report)> {
        self.introduce(begun)?;
        let before = Books::read_both(&self.town.site()).await?;
        self.commit().await?;
        self.refuse().await?;
        let (load, recoveries) = self.load(options).await?;
        let counts = Counts::of(&load.asked);
        let (within_half, within_most, per_second) =
            (load.within(50), load.within(99), load.per_second());
        let report = self.audit(options, load, before).await?;
        self.show_recoveries(&recoveries)?;
        self.conclude(&report, options, begun)?;
        let killed = |is: fn(&Victim) -> bool| recoveries.iter().filter(|r| is(&r.victim)).count();
        let longest = recoveries.iter().map(|r| r.settled_after).max();
        let summary = Summary {
            transfers: options.transfers,
            committed: counts.committed,
            aborted: counts.aborted,
            // What was not even begun because a client gave up is not known to anybody either.
            unknown: options.transfers - counts.committed - counts.aborted,
            coordinator_kills: killed(|victim| matches!(victim, Victim::Coordinator)),
            participant_kills: killed(|victim| matches!(victim, Victim::Bank(_))),
            in_doubt: report.broken(Claim::NothingInDoubt),
            applied_twice: report.broken(Claim::NothingTwice),
            half_applied: report.broken(Claim::NothingHalf),
            lost: report.broken(Claim::NothingLost),
            total_before: report.total_before,
            total_after: report.total_after,
            recovery_ms_max: milliseconds(longest.unwrap_or_default()),
            p50_ms: milliseconds(within_half),
            p99_ms: milliseconds(within_most),
            per_second,
            seed: options.seed,
        };
        Ok((summary, report))
    }

    fn introduce(&mut self, begun: Instant) -> anyhow::Result<()> {
        self.screen.line("")?;
        let coordinator = &self.town.coordinator;
        let (url, log) = (coordinator.url(), coordinator.log());
        self.screen
            .line(format_args!("  coordinator   {url}   its log: {log}"))?;
        for side in Side::BOTH {
            let bank = self.town.bank(side);
            let (url, database) = (bank.url(), bank.database());
            self.screen
                .line(format_args!("  bank {side}     {url}   {database}"))?;
        }
        let together = 2 * ACCOUNTS * BALANCE;
        self.screen.line(format_args!(
            "  Each bank has {ACCOUNTS} accounts with {BALANCE} in each, {together} together. Ready after {}.",
            seconds(begun.elapsed())
        ))?;
        Ok(())
    }

    async fn balances(&self) -> anyhow::Result<[i64; 2]> {
        Ok([
            self.town.balance(PAYER).await?,
            self.town.balance(PAYEE).await?,
        ])
    }

    fn show_accounts(&mut self, before: [i64; 2], after: [i64; 2]) -> anyhow::Result<()> {
        self.screen
            .line(format_args!("\n  {:10}{:>10}{:>10}", "", "before", "after"))?;
        for ((account, before), after) in [PAYER, PAYEE].into_iter().zip(before).zip(after) {
            self.screen
                .line(format_args!("  {account:10}{before:>10}{after:>10}"))?;
        }
        Ok(())
    }

    /// One client's transfer from [`PAYER`] to [`PAYEE`].
    async fn ask(&mut self, key: &str, amount: i64) -> anyhow::Result<TransactionView> {
        let transfer = Transfer {
            from: PAYER,
            to: PAYEE,
            amount,
        };
        let request = transfer.request(Wait::Applied)?;
        self.show_request(&request)?;
        let sent = Instant::now();
        let answer = self.town.api().begin(&request, key).await?;
        let took = sent.elapsed();
        let (view, status) = (answer.transaction, answer.status);
        let outcome = view.outcome.context("an answer without an outcome")?;
        let (tone, text) = match outcome {
            Outcome::Committed => (Tone::Good, "committed, applied at both banks"),
            Outcome::Aborted => (Tone::Bad, "aborted, nothing is applied at either bank"),
        };
        let said = self.screen.paint(tone, format_args!("{status} {text}"));
        let milliseconds = milliseconds(took);
        self.screen
            .line(format_args!("  {said}, after {milliseconds} ms"))?;
        self.transfers.insert(key.to_owned(), transfer);
        self.asked.push(Asked {
            key: key.to_owned(),
            told: Some(Told {
                transaction: view.id,
                outcome,
                reason: view.reason.clone(),
            }),
        });
        Ok(view)
    }

    fn show_request(&mut self, request: &BeginRequest) -> anyhow::Result<()> {
        self.screen
            .line("  POST /v1/transactions, with an Idempotency-Key")?;
        for branch in request.branches.iter().flatten() {
            let branch = serde_json::to_string(branch)?;
            self.screen.line(format_args!("    {branch}"))?;
        }
        Ok(())
    }

    async fn commit(&mut self) -> anyhow::Result<()> {
        const AMOUNT: i64 = 100;
        self.screen.heading(format_args!(
            "1. A transfer that commits: {AMOUNT} from {PAYER} to {PAYEE}"
        ))?;
        let before = self.balances().await?;
        let view = self.ask("demo-1", AMOUNT).await?;
        ensure!(
            view.state == TransactionState::Committed,
            "this transfer should be committed everywhere: {view:?}"
        );
        let after = self.balances().await?;
        self.show_accounts(before, after)?;
        let [payer, payee] = before;
        ensure!(
            after == [payer - AMOUNT, payee + AMOUNT],
            "{AMOUNT} has moved, and not that is in the accounts"
        );
        Ok(())
    }

    async fn refuse(&mut self) -> anyhow::Result<()> {
        const AMOUNT: i64 = 5000;
        self.screen.heading(format_args!(
            "2. A transfer that a bank refuses: {AMOUNT} from {PAYER} to {PAYEE}"
        ))?;
        let before = self.balances().await?;
        let view = self.ask("demo-2", AMOUNT).await?;
        let reason = view.reason.context("an abort without a reason")?;
        ensure!(
            reason.code == AbortCode::Refused,
            "it aborted for another reason: {reason:?}"
        );
        let reason = serde_json::to_string(&reason)?;
        self.screen.line(format_args!("  the reason: {reason}"))?;
        let after = self.balances().await?;
        self.show_accounts(before, after)?;
        ensure!(after == before, "an aborted transfer has moved money");
        Ok(())
    }

    /// All transfers of the load, and all kills meanwhile.
    async fn load(&mut self, options: &Options) -> anyhow::Result<(Ended, Vec<Recovery>)> {
        let Options {
            transfers, clients, ..
        } = *options;
        self.screen.heading(format_args!(
            "3. {transfers} transfers by {clients} clients, while programs are killed with kill -9 and started again"
        ))?;
        let work = transfers_of(options);
        self.transfers.extend(work.by_key(transfers));
        let watch = Watch::of(&self.town.site()).await?;
        let load = Load::start(work, clients, self.town.site().address()?);
        self.screen.begin_progress(transfers)?;
        let victims = victims(options);
        let screen = RefCell::new(&mut *self.screen);
        let remark = RefCell::new(String::new());
        let under_way = Cell::new(true);
        let begun = Instant::now();
        let show = async {
            let mut looks = interval(LOOK_EVERY);
            looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while under_way.get() {
                looks.tick().await;
                let in_doubt = watch.in_doubt().await?.len();
                let told = load.told();
                let rate = per_second(told, begun.elapsed());
                let text = format!("{rate:>6}/s {in_doubt:>4} in doubt   {}", remark.borrow());
                screen.borrow_mut().progress(told, transfers, &text)?;
            }
            anyhow::Ok(())
        };
        let kill = async {
            let recoveries = kill_each(
                &mut self.town,
                &load,
                transfers,
                &victims,
                &watch,
                |event| {
                    let mut screen = screen.borrow_mut();
                    *remark.borrow_mut() = tell_kill(&mut screen, event)?;
                    Ok(())
                },
            )
            .await?;
            load.allow(transfers);
            load.told_at_least(transfers).await?;
            under_way.set(false);
            anyhow::Ok(recoveries)
        };
        let ((), recoveries) = try_join!(show, kill)?;
        self.screen.end_progress();
        let ended = load.finish().await?;
        let told = ended.took.len();
        self.screen.line(format_args!(
            "  {told} of {transfers} told within {}, {} each second, the kills included",
            seconds(ended.lasted),
            ended.per_second(),
        ))?;
        self.screen.line(format_args!(
            "  from a client's first attempt until it was told: median {} ms, 99 % within {} ms",
            milliseconds(ended.within(50)),
            milliseconds(ended.within(99)),
        ))?;
        Ok((ended, recoveries))
    }

    async fn audit(
        &mut self,
        options: &Options,
        load: Ended,
        before: [Books; 2],
    ) -> anyhow::Result<Report> {
        let all = self.transfers.len();
        self.screen.heading(format_args!(
            "4. The audit of all {all} transfers: what clients were told, the log, the banks' own tables"
        ))?;
        let site = self.town.site();
        // What does not settle is what the audit then finds.
        let settled = audit::settled(&site, SETTLING).await;
        self.asked.extend(load.asked);
        let begun: BTreeSet<&String> = self.asked.iter().map(|a| &a.key).collect();
        let work = transfers_of(options);
        let never: Vec<Asked> = (0..options.transfers)
            .map(|number| work.key(number))
            .filter(|key| !begun.contains(key))
            .map(|key| Asked { key, told: None })
            .collect();
        self.asked.extend(never);
        let evidence = Evidence::collect(
            &site,
            std::mem::take(&mut self.asked),
            std::mem::take(&mut self.transfers),
            before,
        );
        let report = evidence.await?.examine();
        self.show_counts(&report)?;
        self.show_claims(&report)?;
        if let Err(error) = settled {
            self.screen.line(format_args!("  {error:#}"))?;
        }
        Ok(report)
    }

    fn show_counts(&mut self, report: &Report) -> anyhow::Result<()> {
        self.screen.line(format_args!(
            "\n  {:26}{:>10}{:>10}{:>10}",
            "", "committed", "aborted", "unknown"
        ))?;
        for (what, counts) in [
            ("clients were told", report.told),
            ("the log says", report.logged),
        ] {
            let Counts {
                committed,
                aborted,
                unknown,
            } = counts;
            self.screen.line(format_args!(
                "  {what:26}{committed:>10}{aborted:>10}{unknown:>10}"
            ))?;
        }
        for (side, applied) in Side::BOTH.into_iter().zip(report.applied) {
            let what = format!("the bank {side} has applied");
            self.screen.line(format_args!("  {what:26}{applied:>10}"))?;
        }
        self.screen.line("")?;
        Ok(())
    }

    fn show_claims(&mut self, report: &Report) -> anyhow::Result<()> {
        for claim in Claim::ALL {
            let sentence = claim.sentence();
            let found = match report.broken(claim) {
                0 => self.screen.paint(Tone::Good, "yes"),
                1 => self.screen.paint(Tone::Bad, "NO, one finding"),
                wrong => self
                    .screen
                    .paint(Tone::Bad, format_args!("NO, {wrong} findings")),
            };
            let totals = match claim {
                Claim::TotalUnchanged => {
                    format!(
                        "   {} before, {} after",
                        report.total_before, report.total_after
                    )
                }
                Claim::EveryClientTold
                | Claim::ToldIsLogged
                | Claim::NothingLost
                | Claim::NothingHalf
                | Claim::NothingTwice
                | Claim::NothingElse
                | Claim::NothingInDoubt
                | Claim::NothingHeld
                | Claim::BooksAddUp => String::new(),
            };
            self.screen
                .line(format_args!("  {sentence:46}{found}{totals}"))?;
        }
        Ok(())
    }

    fn show_recoveries(&mut self, recoveries: &[Recovery]) -> anyhow::Result<()> {
        if recoveries.is_empty() {
            return Ok(());
        }
        self.screen
            .heading("5. Each recovery, in milliseconds from kill -9 until all that was in doubt had settled")?;
        self.screen.line(format_args!(
            "\n  {:14}{:>10}{:>14}{:>14}{:>20}",
            "killed", "in doubt", "ready again", "all settled", "from its restart"
        ))?;
        for recovery in recoveries {
            self.screen.line(format_args!(
                "  {:14}{:>10}{:>14}{:>14}{:>20}",
                recovery.victim,
                recovery.in_doubt,
                milliseconds(recovery.ready_after),
                milliseconds(recovery.settled_after),
                milliseconds(recovery.settled_after_restart),
            ))?;
        }
        Ok(())
    }

    fn conclude(
        &mut self,
        report: &Report,
        options: &Options,
        begun: Instant,
    ) -> anyhow::Result<()> {
        let (took, seed) = (seconds(begun.elapsed()), options.seed);
        if report.findings.is_empty() {
            let verdict = "Nothing lost, nothing doubled, nothing half done, nothing in doubt.";
            let verdict = self.screen.paint(Tone::Good, verdict);
            self.screen.line(format_args!(
                "\n{verdict} All of it took {took}, seed {seed}."
            ))?;
            return Ok(());
        }
        let count = report.findings.len();
        let verdict = format!("The audit FAILED, {count} findings (seed {seed}):");
        let verdict = self.screen.paint(Tone::Bad, verdict);
        self.screen.line(format_args!("\n{verdict}"))?;
        for finding in report.findings.iter().take(FINDINGS_SHOWN) {
            self.screen.line(format_args!("  - {finding}"))?;
        }
        if count > FINDINGS_SHOWN {
            let more = count - FINDINGS_SHOWN;
            self.screen.line(format_args!("  and {more} more"))?;
        }
        self.screen.line("Kept, to be looked at:")?;
        for kept in self.town.keep() {
            self.screen.line(format_args!("  {kept}"))?;
        }
        Ok(())
    }
}

/// More of them hide the first.
const FINDINGS_SHOWN: usize = 20;

/// What is told of a kill.
enum Event<'a> {
    Killed { victim: Victim, in_doubt: usize },
    Recovered(&'a Recovery),
}

/// The line of a kill that is over, on the screen; what the progress says from then on.
fn tell_kill(screen: &mut Screen<'_>, event: Event<'_>) -> anyhow::Result<String> {
    match event {
        Event::Killed { victim, in_doubt } => Ok(format!(
            "{} with {in_doubt} in doubt",
            screen.paint(Tone::Bad, format_args!("killed the {victim}"))
        )),
        Event::Recovered(recovery) => {
            let Recovery {
                victim,
                process_id,
                in_doubt,
                settled_after,
                ..
            } = recovery;
            let killed = screen.paint(Tone::Bad, format_args!("kill -9 {process_id:<8}"));
            let took = milliseconds(*settled_after);
            screen.line(format_args!(
                "  {killed}{victim:13}{in_doubt:>4} in doubt, all of it settled {took} ms later"
            ))?;
            Ok(String::new())
        }
    }
}

/// Kills one after the other, at points spread evenly over the load; each has recovered before the next one.
async fn kill_each(
    town: &mut Town,
    load: &Load,
    transfers: usize,
    victims: &[Victim],
    watch: &Watch,
    mut tell: impl FnMut(Event<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<Recovery>> {
    let point = |kill: usize| transfers * kill.min(victims.len() + 1) / (victims.len() + 1);
    let mut recoveries = Vec::new();
    for (kill, &victim) in (1..).zip(victims) {
        // No further than to the next point, so that each kill hits a load that is under way, however fast it is.
        load.allow(point(kill + 1));
        if !load.told_at_least(point(kill)).await? {
            break;
        }
        let mut told = Ok(());
        let killed = |in_doubt| told = tell(Event::Killed { victim, in_doubt });
        let recovery = kill_and_recover(town, victim, watch, killed).await?;
        told?;
        tell(Event::Recovered(&recovery))?;
        recoveries.push(recovery);
    }
    Ok(recoveries)
}

/// Coordinator and one bank by turns; the seed says which bank, and who is first.
fn victims(options: &Options) -> Vec<Victim> {
    // Not the generator of the transfers.
    let mut random = StdRng::seed_from_u64(!options.seed);
    let side = if random.random_bool(0.5) {
        Side::East
    } else {
        Side::West
    };
    let mut order = [Victim::Coordinator, Victim::Bank(side)];
    if random.random_bool(0.5) {
        order.reverse();
    }
    order.into_iter().cycle().take(options.kills).collect()
}

fn transfers_of(options: &Options) -> Transfers {
    Transfers {
        seed: options.seed,
        accounts: ACCOUNTS,
        amount_max: AMOUNT_MAX,
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
