//! The demonstration: a commit, a refusal, and a coordinator killed at its worst moment, told step
//! by step, and then the books of both banks. It fails when anything is not as it says.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use unanimous_protocol::coordinator::TransactionState;
use unanimous_protocol::id::TransactionId;
use unanimous_protocol::record::{AbortCode, Outcome};
use unanimous_protocol::wire::{BeginRequest, BranchState, TransactionView, Wait};

use crate::audit::{self, Books};
use crate::town::{Gates, Plan, Programs, Town};
use crate::transfer::{Account, Answer, Side, Transfer};
use crate::wait::until;

const ACCOUNTS: i64 = 10;
const BALANCE: i64 = 1000;

const PAYER: Account = Account {
    side: Side::East,
    number: 7,
};
const PAYEE: Account = Account {
    side: Side::West,
    number: 9,
};

/// For what takes milliseconds, on a machine that is very busy.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the demo may be told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which programs it starts.
    pub programs: Programs,
}

/// What happened, for a program that looks on.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The transfers that committed. The last one's coordinator was killed on the way.
    pub committed: Vec<(TransactionId, Transfer)>,
    /// The transfer that a bank refused.
    pub refused: TransactionId,
    /// From the restart of the coordinator until both banks had committed.
    pub recovered_in: Duration,
    /// All of the demo, from nothing to the end.
    pub took: Duration,
}

/// Runs the demo, and tells it on `out`. Nothing is left of it when it returns or is dropped.
pub async fn run(options: &Options, out: &mut dyn Write) -> anyhow::Result<Summary> {
    let begun = Instant::now();
    writeln!(
        out,
        "Two banks, one transfer: in both of them, or in none.\n"
    )?;
    writeln!(
        out,
        "Starting two Postgres servers, two banks and a coordinator …"
    )?;
    let plan = Plan {
        programs: options.programs.clone(),
        accounts: ACCOUNTS,
        balance: BALANCE,
        gates: true,
    };
    let mut demo = Demo {
        town: Town::start(&plan).await?,
        out,
        committed: Vec::new(),
    };
    match demo.tell(begun).await {
        Ok(summary) => Ok(summary),
        Err(error) => Err(error.context(demo.town.outputs())),
    }
}

struct Demo<'a> {
    town: Town,
    out: &'a mut dyn Write,
    committed: Vec<(TransactionId, Transfer)>,
}

impl Demo<'_> {
    async fn tell(&mut self, begun: Instant) -> anyhow::Result<Summary> {
        self.introduce(begun)?;
        let before = Books::read_both(&self.town).await?;
        self.show_accounts().await?;
        self.commit().await?;
        let refused = self.refuse().await?;
        let recovered_in = self.crash().await?;
        self.check(&before).await?;
        let took = begun.elapsed();
        writeln!(
            self.out,
            "\nAs it should be: nothing lost, nothing doubled, nothing in doubt. ({:.1} s)",
            took.as_secs_f64()
        )?;
        Ok(Summary {
            committed: self.committed.clone(),
            refused,
            recovered_in,
            took,
        })
    }

    fn introduce(&mut self, begun: Instant) -> anyhow::Result<()> {
        for side in Side::BOTH {
            let bank = self.town.bank(side);
            writeln!(
                self.out,
                "  bank {side}     {}  its own Postgres on port {}",
                bank.url(),
                bank.database_port()
            )?;
        }
        writeln!(
            self.out,
            "  coordinator   {}  its log is the file {}",
            self.town.coordinator.url(),
            self.town.coordinator.log().display()
        )?;
        writeln!(
            self.out,
            "  ready after {:.1} s; each bank has {ACCOUNTS} accounts with {BALANCE} in each\n",
            begun.elapsed().as_secs_f64()
        )?;
        Ok(())
    }

    /// Shows the two accounts, which hold what the transfers that committed have left in them.
    async fn show_accounts(&mut self) -> anyhow::Result<()> {
        let payer = self.town.balance(PAYER).await?;
        let payee = self.town.balance(PAYEE).await?;
        writeln!(
            self.out,
            "     {PAYER} holds {payer:>5}     {PAYEE} holds {payee:>5}"
        )?;
        let moved: i64 = self.committed.iter().map(|(_, done)| done.amount).sum();
        ensure!(
            (payer, payee) == (BALANCE - moved, BALANCE + moved),
            "{moved} has moved, and not that is in the accounts"
        );
        Ok(())
    }

    async fn commit(&mut self) -> anyhow::Result<()> {
        let transfer = transfer(100);
        let request = transfer.request(Wait::Applied)?;
        writeln!(self.out, "\n1. A transfer that commits: {transfer}")?;
        self.show_request(&request)?;
        let sent = Instant::now();
        let answer = self.town.api().begin(&request, "demo-1").await?;
        let took = sent.elapsed();
        expect_committed(&answer)?;
        self.committed.push((answer.transaction.id, transfer));
        writeln!(
            self.out,
            "     {} committed, in both banks, after {} ms",
            answer.status,
            took.as_millis()
        )?;
        self.show_accounts().await
    }

    async fn refuse(&mut self) -> anyhow::Result<TransactionId> {
        let transfer = transfer(5000);
        writeln!(
            self.out,
            "\n2. A transfer that one bank refuses: {transfer}"
        )?;
        let request = transfer.request(Wait::Applied)?;
        let answer = self.town.api().begin(&request, "demo-2").await?;
        let transaction = answer.transaction;
        let (status, outcome) = (answer.status, transaction.outcome);
        ensure!(
            status == 409 && outcome == Some(Outcome::Aborted),
            "the coordinator answers {status}, {outcome:?}, and not that it aborted"
        );
        let reason = transaction.reason.context("an abort without a reason")?;
        ensure!(
            reason.code == AbortCode::Refused,
            "it aborted for another reason: {reason:?}"
        );
        writeln!(
            self.out,
            "     {status} aborted, and the reason: {}",
            serde_json::to_string(&reason)?
        )?;
        self.show_accounts().await?;
        writeln!(self.out, "     nothing moved, at neither bank")?;
        self.wait_until_nothing_is_in_doubt().await?;
        Ok(transaction.id)
    }

    /// Kills the coordinator when its decision is in the log and nobody has been told.
    async fn crash(&mut self) -> anyhow::Result<Duration> {
        let transfer = transfer(250);
        writeln!(
            self.out,
            "\n3. The coordinator is killed at its worst moment: {transfer}"
        )?;
        self.gates()?.hold_decisions();

        let request = transfer.request(Wait::Applied)?;
        let api = self.town.api();
        let client = tokio::spawn({
            let (api, request) = (api.clone(), request.clone());
            async move { api.begin(&request, "demo-3").await }
        });
        let gates = self.gates()?;
        gates.to_east.wait_until_held(PATIENCE).await?;
        gates.to_west.wait_until_held(PATIENCE).await?;
        let id = self.the_one_in_doubt().await?;
        let view = api.transaction(id, Wait::None).await?;
        ensure!(
            view.outcome == Some(Outcome::Committed) && view.state == TransactionState::Committing,
            "the coordinator sends commits, and says of the transaction: {view:?}"
        );
        writeln!(
            self.out,
            "     both banks said yes; the decision to commit is on disk; no bank has heard it:"
        )?;
        self.show_branches(id, BranchState::Prepared).await?;

        let pid = self.town.coordinator.id();
        self.town.coordinator.kill();
        if let Ok(answer) = client.await.context("the client's task has ended")? {
            bail!("the client of a killed coordinator got an answer: {answer:?}");
        }
        writeln!(
            self.out,
            "     kill -9 {pid}: the coordinator is gone, its client's connection broke without an answer;"
        )?;
        writeln!(
            self.out,
            "     a bank that said yes does not decide alone, so both wait:"
        )?;
        self.show_branches(id, BranchState::Prepared).await?;

        // What was held is lost with it: whatever the banks hear now, the restarted one says.
        self.gates()?.open();
        let restarted = Instant::now();
        self.town.coordinator.restart().await?;
        for side in Side::BOTH {
            self.wait_for_branch(side, id).await?;
        }
        let recovered_in = restarted.elapsed();
        self.committed.push((id, transfer));
        writeln!(
            self.out,
            "     started again on the same log; {} ms later, its start included:",
            recovered_in.as_millis()
        )?;
        self.show_branches(id, BranchState::Committed).await?;
        self.repeat(&request, id).await?;
        self.show_accounts().await?;
        Ok(recovered_in)
    }

    /// The client does what clients do after a broken connection.
    async fn repeat(&mut self, request: &BeginRequest, id: TransactionId) -> anyhow::Result<()> {
        let answer = self.town.api().begin(request, "demo-3").await?;
        expect_committed(&answer)?;
        ensure!(
            answer.transaction.id == id,
            "the repeated request was answered with another transaction: {}",
            answer.transaction.id
        );
        writeln!(
            self.out,
            "     the client repeats its request, same Idempotency-Key: {} committed, the same transaction",
            answer.status
        )?;
        Ok(())
    }

    async fn check(&mut self, before: &[Books]) -> anyhow::Result<()> {
        writeln!(self.out, "\n4. The books, read from the banks' own tables")?;
        self.wait_until_nothing_is_in_doubt().await?;
        for (id, transfer) in &self.committed {
            let view = self.town.api().transaction(*id, Wait::Applied).await?;
            ensure!(
                view.state == TransactionState::Committed,
                "the transfer of {transfer} is not finished: {view:?}"
            );
        }
        let after = Books::read_both(&self.town).await?;
        writeln!(
            self.out,
            "               {:>8}{:>8}{:>10}",
            "before", "after", "in doubt"
        )?;
        for (before, after) in before.iter().zip(&after) {
            writeln!(
                self.out,
                "     {:<10}{:>8}{:>8}{:>10}",
                after.side,
                before.told.balance,
                after.told.balance,
                after.in_doubt.len()
            )?;
        }
        let together = |books: &[Books]| books.iter().map(|b| b.told.balance).sum::<i64>();
        writeln!(
            self.out,
            "     {:<10}{:>8}{:>8}",
            "together",
            together(before),
            together(&after)
        )?;
        for (entry, count) in after.iter().flat_map(|books| &books.entries) {
            writeln!(
                self.out,
                "     entry: {:>5} on {}, {}, {}",
                format!("{:+}", entry.change),
                entry.account,
                entry.transaction,
                if *count == 1 {
                    "once"
                } else {
                    "more than once"
                }
            )?;
        }
        let findings = audit::compare(before, &self.committed, &after);
        if !findings.is_empty() {
            let findings: Vec<String> = findings.iter().map(ToString::to_string).collect();
            bail!("the books are WRONG:\n  {}", findings.join("\n  "));
        }
        Ok(())
    }

    fn show_request(&mut self, request: &BeginRequest) -> anyhow::Result<()> {
        writeln!(
            self.out,
            "     POST {}/v1/transactions, with an Idempotency-Key",
            self.town.api().url()
        )?;
        for branch in request.branches.iter().flatten() {
            writeln!(self.out, "       {}", serde_json::to_string(branch)?)?;
        }
        Ok(())
    }

    async fn show_branches(
        &mut self,
        id: TransactionId,
        expected: BranchState,
    ) -> anyhow::Result<()> {
        for side in Side::BOTH {
            let branch = self.town.bank(side).branch(id).await?;
            ensure!(
                branch.state == expected,
                "the branch of {id} at {side} is {:?}, not {expected:?}",
                branch.state
            );
            let words = match branch.state {
                BranchState::Prepared => "prepared, in doubt",
                BranchState::Committed => "committed",
                BranchState::Active | BranchState::Aborted | BranchState::ReadOnly => "not ours",
            };
            writeln!(self.out, "       {side}  {id}  {words}")?;
        }
        Ok(())
    }

    async fn the_one_in_doubt(&self) -> anyhow::Result<TransactionId> {
        let branches = self.town.east.in_doubt().await?;
        let [branch] = branches.as_slice() else {
            bail!("one branch should be in doubt at east: {branches:?}");
        };
        Ok(branch.transaction.parse()?)
    }

    async fn wait_for_branch(&self, side: Side, id: TransactionId) -> anyhow::Result<()> {
        let what = format!("{id} is committed at {side}");
        until(&what, PATIENCE, async || {
            let branch = self.town.bank(side).branch(id).await?;
            ensure!(branch.state == BranchState::Committed, "{:?}", branch.state);
            Ok(())
        })
        .await
    }

    fn gates(&self) -> anyhow::Result<&Gates> {
        self.town
            .gates
            .as_ref()
            .context("the demo's town has gates")
    }

    /// An abort is told to the client before the banks.
    async fn wait_until_nothing_is_in_doubt(&self) -> anyhow::Result<()> {
        for side in Side::BOTH {
            let what = format!("nothing is in doubt at {side}");
            let look = async || {
                let branches = self.town.bank(side).in_doubt().await?;
                ensure!(branches.is_empty(), "{branches:?}");
                Ok(())
            };
            until(&what, PATIENCE, look).await?;
        }
        Ok(())
    }
}

fn transfer(amount: i64) -> Transfer {
    Transfer {
        from: PAYER,
        to: PAYEE,
        amount,
    }
}

fn expect_committed(answer: &Answer) -> anyhow::Result<()> {
    let TransactionView { state, reason, .. } = &answer.transaction;
    ensure!(
        answer.status == 200 && *state == TransactionState::Committed,
        "the coordinator answers {}, {state:?}, {reason:?}, and not that it committed everywhere",
        answer.status
    );
    Ok(())
}
