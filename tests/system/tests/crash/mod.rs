//! The crash matrix: a process dies by `abort` at every point before and after a write that lasts or a call (`points.rs`),
//! while a transaction commits, aborts, only reads, or has a single branch; on both kinds of log. Only the victim is
//! started again. Within 5 s of that all is settled, the client has its answer, and the audit holds.
//!
//! One town for each role and kind of log lives through all its cells, so what one cell spoils the next ones see.
//! `make test` runs all cells with SQLite and every third one with Postgres, `make crash` all of both (`CRASH=all`).

mod apart;
mod points;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use unanimous_lab::audit::{self, Asked as Told, Books, Evidence};
use unanimous_lab::fault::{Fault, Victim};
use unanimous_lab::load::Work;
use unanimous_lab::recovery::Watch;
use unanimous_lab::town::{LogKind, Plan, Programs, Servers, Site, Town};
use unanimous_lab::transfer::{Side, Transfer};
use unanimous_lab::wait::until;
use unanimous_lab::{Load, Program};
use unanimous_protocol::record::Outcome;
use unanimous_protocol::wire::{BeginRequest, Wait};

use self::points::{Met, POINTS};
use crate::support::coordinator::{BANK, BINARY};

/// From the restart until all is settled.
const SETTLED: Duration = Duration::from_secs(5);
/// For what happens at once, on a busy machine.
const SOON: Duration = Duration::from_secs(20);
/// By the signal of `abort`.
const ABORTED: i32 = 6;

const EAST: Victim = Victim::Bank(Side::East);
const WEST: Victim = Victim::Bank(Side::West);

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    /// From one bank to the other.
    Commit,
    /// More than there is at east, so that west, which says yes, has to undo it.
    Abort,
    /// A look at both banks.
    ReadOnly,
    /// From one account of east to another.
    Single,
}

impl Ask {
    fn transfer(self) -> Transfer {
        let (from, to, amount) = match self {
            Self::Commit => (Side::East.account(1), Side::West.account(2), 3),
            Self::Abort => (Side::East.account(3), Side::West.account(4), 1_000_000),
            Self::ReadOnly => (Side::East.account(5), Side::West.account(6), 0),
            Self::Single => (Side::East.account(7), Side::East.account(8), 2),
        };
        Transfer { from, to, amount }
    }

    fn ends(self) -> Outcome {
        match self {
            Self::Abort => Outcome::Aborted,
            Self::Commit | Self::ReadOnly | Self::Single => Outcome::Committed,
        }
    }
}

/// One request, by a client that repeats it until it is told.
#[derive(Clone, Debug)]
struct One {
    key: String,
    transfer: Transfer,
}

impl Work for One {
    fn request(&self, _: usize) -> anyhow::Result<BeginRequest> {
        self.transfer.request(Wait::Decided)
    }

    fn key(&self, _: usize) -> String {
        self.key.clone()
    }
}

/// One way to die.
#[derive(Clone, Copy, Debug)]
struct Cell {
    point: &'static str,
    victim: Victim,
    ask: Ask,
    met: Met,
}

impl Cell {
    /// All of a role on a kind of log, in the order of the list.
    fn all(is_coordinator: bool, log: LogKind) -> Vec<Self> {
        let mut cells = Vec::new();
        for &(point, victim, met) in POINTS {
            let asks = match met {
                Met::Asked(asks)
                | Met::Started(_, asks)
                | Met::Resumed(_, asks)
                | Met::Joined(_, asks) => asks,
                Met::StartedOnPostgres(_, asks) if log == LogKind::Postgres => asks,
                Met::StartedOnPostgres(..) | Met::Apart(_) | Met::Never(_) => continue,
            };
            if (victim == Victim::Coordinator) == is_coordinator {
                cells.extend(asks.iter().map(|&ask| Self {
                    point,
                    victim,
                    ask,
                    met,
                }));
            }
        }
        cells
    }

    fn name(&self) -> String {
        format!("{:?}, {} dies at {}", self.ask, self.victim, self.point)
    }
}

/// Requests of one moment, each by a client of its own: what is sent to a bank for them leaves in batches.
#[derive(Clone, Debug)]
struct Crowd {
    name: String,
}

impl Crowd {
    const CLIENTS: usize = 24;
    const REQUESTS: usize = 120;

    fn transfer(number: usize) -> Transfer {
        let account = i64::try_from(number % 10).expect("a small number") + 1;
        Transfer {
            from: Side::East.account(account),
            to: Side::West.account(account),
            amount: 1,
        }
    }
}

impl Work for Crowd {
    fn request(&self, number: usize) -> anyhow::Result<BeginRequest> {
        Self::transfer(number).request(Wait::Decided)
    }

    fn key(&self, number: usize) -> String {
        format!("{}, request {number}", self.name)
    }
}

/// The programs, and what has been asked of them so far.
struct Stage {
    town: Town,
    site: Site,
    log: LogKind,
    before: [Books; 2],
    told: Vec<Told>,
    transfers: BTreeMap<String, Transfer>,
}

impl Stage {
    async fn set(log: LogKind) -> Self {
        let plan = Plan {
            programs: Programs {
                unanimous: PathBuf::from(BINARY),
                bank: PathBuf::from(BANK),
            },
            accounts: 10,
            balance: 10_000,
            log,
            servers: Servers::Private,
        };
        let town = Town::start(&plan).await.expect("the town starts");
        let site = town.site();
        let before = Books::read_both(&site).await.expect("books can be read");
        Self {
            town,
            site,
            log,
            before,
            told: Vec::new(),
            transfers: BTreeMap::new(),
        }
    }

    /// Starts the victim again with the point armed; it may die at once.
    async fn arm(&mut self, victim: Victim, point: &str) -> Program {
        let unarmed = self.town.program(victim).clone();
        let armed = unarmed.clone().env("FAILPOINTS", format!("{point}=return"));
        let started = self.town.restart_as(victim, &armed).await;
        started.unwrap_or_else(|error| panic!("{victim}, armed with {point}: {error:#}"));
        unarmed
    }

    /// Waits until it has died by its point and by nothing else.
    async fn dies(&mut self, victim: Victim, what: &str) {
        let ended = self.town.ended(victim, SOON).await;
        let ended = ended.unwrap_or_else(|error| panic!("{what}: {error:#}"));
        assert_eq!(ended.signal(), Some(ABORTED), "{what}: {ended}");
    }

    async fn start(&mut self, victim: Victim, unarmed: &Program, what: &str) {
        let started = self.town.restart_as(victim, unarmed).await;
        started.unwrap_or_else(|error| panic!("{what}, {victim} started again: {error:#}"));
    }

    /// With the client's request under way; what to start it again with.
    async fn coordinator_dies_at(&mut self, point: &str, client: &Load, what: &str) -> Program {
        let unarmed = self.arm(Victim::Coordinator, point).await;
        client.allow(1);
        self.dies(Victim::Coordinator, what).await;
        unarmed
    }

    /// East is about to refuse; not before west has said yes, or has died of it.
    async fn refuse_late(&mut self, client: &Load, what: &str) {
        let watch = Watch::of(&self.site).await.expect("databases answer");
        let paused = self.town.inflict(Fault::Pause, EAST).await;
        paused.unwrap_or_else(|error| panic!("{what}: {error:#}"));
        client.allow(1);
        until("west has said yes, or is dead", SOON, async || {
            let is_dead = self.town.has_ended(WEST);
            is_dead || watch.in_doubt().await.is_ok_and(|found| !found.is_empty())
        })
        .await
        .unwrap_or_else(|error| panic!("{what}: {error:#}"));
        let resumed = self.town.inflict(Fault::Restart, EAST).await;
        resumed.unwrap_or_else(|error| panic!("{what}: {error:#}"));
    }

    async fn play(&mut self, cell: Cell) {
        let what = format!("{} ({:?})", cell.name(), self.log);
        let one = One {
            key: what.clone(),
            transfer: cell.ask.transfer(),
        };
        self.transfers.insert(one.key.clone(), one.transfer);
        let client = Load::start(one, 1, self.site.address().expect("an address"));

        // First somebody else's death, where the point is one of what follows from it.
        let unarmed = match cell.met {
            Met::Asked(_) if cell.ask == Ask::Abort && cell.victim == WEST => {
                let unarmed = self.arm(WEST, cell.point).await;
                self.refuse_late(&client, &what).await;
                unarmed
            }
            Met::Asked(_) | Met::Apart(_) | Met::Never(_) => {
                let unarmed = self.arm(cell.victim, cell.point).await;
                client.allow(1);
                unarmed
            }
            Met::Started(first, _) | Met::StartedOnPostgres(first, _) => {
                let coordinator = self.coordinator_dies_at(first, &client, &what).await;
                let unarmed = self.arm(cell.victim, cell.point).await;
                self.dies(cell.victim, &what).await;
                if cell.victim == Victim::Coordinator {
                    coordinator
                } else {
                    self.start(Victim::Coordinator, &coordinator, &what).await;
                    unarmed
                }
            }
            Met::Resumed(first, _) => {
                let coordinator = self.coordinator_dies_at(first, &client, &what).await;
                let unarmed = self.arm(cell.victim, cell.point).await;
                self.start(Victim::Coordinator, &coordinator, &what).await;
                unarmed
            }
            Met::Joined(first, _) => {
                let coordinator = self.coordinator_dies_at(first, &client, &what).await;
                let killed = self.town.inflict(Fault::Kill, cell.victim).await;
                killed.unwrap_or_else(|error| panic!("{what}: {error:#}"));
                self.start(Victim::Coordinator, &coordinator, &what).await;
                self.arm(cell.victim, cell.point).await
            }
        };
        self.dies(cell.victim, &what).await;

        let restarted = Instant::now();
        self.start(cell.victim, &unarmed, &what).await;
        let ended = client.finish().await;
        let ended = ended.unwrap_or_else(|error| panic!("{what}: {error:#}"));
        let settled = audit::settled(&self.site, SOON).await;
        settled.unwrap_or_else(|error| panic!("{what}: {error:#}"));
        let took = restarted.elapsed();
        self.examine(&what, cell.ask, ended.asked).await;
        assert!(took < SETTLED, "{what}: settled after {took:?}");
    }

    /// Many ask at once, and the victim dies at this point of a batch.
    async fn play_a_batch(&mut self, point: &str, victim: Victim) {
        let what = format!("{victim} dies at {point} ({:?})", self.log);
        let crowd = Crowd { name: what.clone() };
        for number in 0..Crowd::REQUESTS {
            let transfer = Crowd::transfer(number);
            self.transfers.insert(crowd.key(number), transfer);
        }
        let unarmed = self.arm(victim, point).await;
        let address = self.site.address().expect("an address");
        let clients = Load::start(crowd, Crowd::CLIENTS, address);
        clients.allow(Crowd::REQUESTS);
        self.dies(victim, &what).await;
        self.start(victim, &unarmed, &what).await;
        let ended = clients.finish().await;
        let ended = ended.unwrap_or_else(|error| panic!("{what}: {error:#}"));
        let settled = audit::settled(&self.site, SOON).await;
        settled.unwrap_or_else(|error| panic!("{what}: {error:#}"));
        let all_told = ended.asked.iter().all(|asked| asked.told.is_some());
        assert!(all_told, "{what}: {:?}", ended.asked);
        assert_eq!(ended.asked.len(), Crowd::REQUESTS, "{what}");
        self.audit(&what, ended.asked).await;
    }

    async fn examine(&mut self, what: &str, ask: Ask, asked: Vec<Told>) {
        let told = asked.first().and_then(|asked| asked.told.as_ref());
        let told = told.unwrap_or_else(|| panic!("{what}: the client was not told"));
        assert_eq!(told.outcome, ask.ends(), "{what}: {told:?}");
        self.audit(what, asked).await;
    }

    async fn audit(&mut self, what: &str, asked: Vec<Told>) {
        self.told.extend(asked);
        let (told, transfers) = (self.told.clone(), self.transfers.clone());
        let evidence = Evidence::collect(&self.site, told, transfers, self.before.clone()).await;
        let evidence = evidence.unwrap_or_else(|error| panic!("{what}: {error:#}"));
        let report = evidence.examine();
        assert!(report.findings.is_empty(), "{what}: {:?}", report.findings);
    }
}

/// Plays every `each`-th cell of a role, or all of them where the environment says so.
async fn play_all(is_coordinator: bool, log: LogKind, each: usize) {
    let each = match std::env::var("CRASH").as_deref() {
        Ok("all") => 1,
        _ => each,
    };
    let mut stage = Stage::set(log).await;
    let cells = Cell::all(is_coordinator, log);
    for cell in cells.iter().step_by(each) {
        stage.play(*cell).await;
    }
}

#[tokio::test]
async fn a_coordinator_that_dies_at_any_point_loses_nothing_on_sqlite() {
    play_all(true, LogKind::Sqlite, 1).await;
}

#[tokio::test]
async fn a_coordinator_that_dies_at_any_point_loses_nothing_on_postgres() {
    play_all(true, LogKind::Postgres, 3).await;
}

#[tokio::test]
async fn a_participant_that_dies_at_any_point_loses_nothing_on_sqlite() {
    play_all(false, LogKind::Sqlite, 1).await;
}

#[tokio::test]
async fn a_participant_that_dies_at_any_point_loses_nothing_on_postgres() {
    play_all(false, LogKind::Postgres, 3).await;
}

#[tokio::test]
async fn whoever_dies_at_a_batch_loses_nothing_of_any_of_its_transactions() {
    let mut stage = Stage::set(LogKind::Sqlite).await;
    for (point, victim) in [
        ("batch-before", Victim::Coordinator),
        ("batch-after", Victim::Coordinator),
        ("batch-answer", EAST),
        ("batch-answer", WEST),
    ] {
        stage.play_a_batch(point, victim).await;
    }
}
