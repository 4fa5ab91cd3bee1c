//! The conformance kit: plays the coordinator against any participant, over HTTP alone, and says what it breaks.
//!
//! A [`Check`] shows one sentence of the contract by requests of its own, on transactions of its own, and ends what it
//! has begun. The kit also *is* the coordinator that the participant asks about branches in doubt: it serves
//! `GET /v1/transactions/{id}/outcome`, and tells what the check wants, wrong answers included.
//!
//! Whatever the contract allows passes. So *unknown* (503, a broken connection) is asked again, as a coordinator does;
//! a tombstone may be lost in a crash; rows may be kept for ever. What fails names the sentence that was broken.

mod batches;
mod bodies;
mod card;
mod case;
mod coordinator;
mod crowd;
mod exchange;
mod hooks;
mod inquiries;
mod marks;
mod repeats;
mod reserved;
mod restarts;
pub(crate) mod server;
mod table;
mod views;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures_util::future::join_all;
use unanimous_protocol::id::{Epoch, LogIdentity, ParticipantName, Sequence};
use unanimous_protocol::operations::Operations;
use unanimous_protocol::wire::{Describe, parse_object};

use case::{Case, Checked, Halt, Said};
use coordinator::Coordinator;

use crate::wait::until;

pub use card::{Card, Finished, Verdict};
pub use exchange::Exchange;
pub use hooks::{look_by, restart_by};

/// A participant that was started answers by then.
const READY: Duration = Duration::from_secs(30);
/// Longer than an answer takes that comes at all: a coordinator waits as long.
const ANSWER: Duration = Duration::from_secs(10);
/// A check that takes longer than this, beside its waits for inquiries, hangs.
const CHECK_MAX: Duration = Duration::from_secs(60);

/// How the participant under test is to live again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// The coordinator to ask: `http://…`.
    pub coordinator: String,
    /// A name other than its own, for the check of a service that was renamed.
    pub name: Option<ParticipantName>,
    /// Then: the name that it had.
    pub former: Option<ParticipantName>,
}

/// What a hook returns.
pub type Hooked = Pin<Box<dyn Future<Output = anyhow::Result<String>>>>;
/// Kills the participant and starts it again; what it returns is shown.
pub type Restart = Arc<dyn Fn(Life) -> Hooked + Send + Sync>;
/// What the operations change, as a text that is only compared with what it was before.
pub type Look = Arc<dyn Fn() -> Hooked + Send + Sync>;

/// What to check, and what the participant understands.
#[derive(Clone)]
pub struct Options {
    /// The participant's base URL.
    pub url: String,
    /// Its name; without it the one that it describes itself with.
    pub name: Option<ParticipantName>,
    /// Where to answer inquiries; without it a free port of 127.0.0.1.
    pub listen: Option<SocketAddr>,
    /// Operations that vote yes, and can be prepared a thousand times at once.
    pub operations: Operations,
    /// Operations that vote no.
    pub refused: Option<Operations>,
    /// Operations that vote read-only.
    pub read_only: Option<Operations>,
    /// Operations that one transaction at a time can have prepared.
    pub exclusive: Option<Operations>,
    /// Kills the participant and starts it again.
    pub restart: Option<Restart>,
    /// A name that a restart can give it.
    pub renamed: Option<ParticipantName>,
    /// Shows what the operations change.
    pub look: Option<Look>,
    /// How long an inquiry, or what follows from one, is waited for.
    pub patience: Duration,
    /// Only the checks with these names; all where there is none.
    pub only: Vec<String>,
}

/// What the example bank takes: it votes yes however often it is prepared, and never runs dry.
const OPERATIONS: &str = r#"[{"kind": "credit", "account": 1, "amount": 1}]"#;
/// What the example bank refuses.
const REFUSED: &str = r#"[{"kind": "debit", "account": 1, "amount": 1000000000000000000}]"#;

impl Options {
    /// For a participant at this base URL that takes what the example bank does.
    #[must_use]
    pub fn of_a_bank(url: impl Into<String>) -> Self {
        let parsed = |text| Operations::parse(text).unwrap_or_else(|_| Operations::none());
        Self {
            url: url.into(),
            name: None,
            listen: None,
            operations: parsed(OPERATIONS),
            refused: Some(parsed(REFUSED)),
            read_only: None,
            exclusive: None,
            restart: None,
            renamed: None,
            look: None,
            patience: Duration::from_secs(30),
            only: Vec::new(),
        }
    }
}

/// Where the sentence stands that a check shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `docs/API.md`, to the letter.
    Api(&'static str),
    /// `docs/RULES.md`: the rule with this number, to the letter.
    Rule(u8, &'static str),
    /// What HTTP itself asks for.
    Http(&'static str),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Api(sentence) => write!(f, "docs/API.md: {sentence}"),
            Self::Rule(number, sentence) => write!(f, "docs/RULES.md, rule {number}: {sentence}"),
            Self::Http(sentence) => write!(f, "RFC 9112, section 8: {sentence}"),
        }
    }
}

// All run on one task: nothing of them moves to another thread.
type Running<'a> = Pin<Box<dyn Future<Output = Checked> + 'a>>;

/// One property of a participant.
pub struct Check {
    /// Its name, which stays.
    pub id: &'static str,
    /// What it shows.
    pub source: Source,
    /// What goes wrong in production with a participant that fails it.
    pub without_it: &'static str,
    run: for<'a> fn(&'a Case<'a>) -> Running<'a>,
}

impl std::fmt::Debug for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Check")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Checks that belong together, and whether they run side by side: those that mostly wait for inquiries do.
const GROUPS: [(&[Check], bool); 10] = [
    (table::CHECKS, false),
    (repeats::CHECKS, false),
    (reserved::CHECKS, false),
    (views::CHECKS, false),
    (bodies::CHECKS, false),
    (inquiries::CHECKS, true),
    (marks::CHECKS, false),
    (restarts::CHECKS, false),
    (batches::CHECKS, false),
    (crowd::CHECKS, false),
];

/// All checks, in the order in which they are told.
pub fn checks() -> impl Iterator<Item = &'static Check> {
    GROUPS.into_iter().flat_map(|(checks, _)| checks)
}

/// The kit, listening, before it has met the participant.
pub struct Kit {
    options: Options,
    name: ParticipantName,
    http: reqwest::Client,
    coordinator: Coordinator,
    identity: LogIdentity,
    epoch: Epoch,
    first_sequence: Sequence,
}

/// The number of what is done before the first check; checks count from 0.
const BEFORE_ALL: u16 = 10_000;
/// Before the participant has said its name.
const NAMELESS: &str = "participant";

impl Kit {
    /// Listens for inquiries.
    ///
    /// # Errors
    /// When it can not listen there, or a check is named that there is not.
    pub async fn listen(mut options: Options) -> anyhow::Result<Self> {
        for only in &options.only {
            ensure!(
                checks().any(|check| check.id == only),
                "there is no check {only:?}; --list names them all"
            );
        }
        while options.url.ends_with('/') {
            options.url.pop();
        }
        // An error says that there is a provider already, and that is all that is wanted.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(ANSWER)
            .build()
            .context("cannot make an HTTP client")?;
        let identity = LogIdentity(rand::random());
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let coordinator = Coordinator::listen(options.listen.unwrap_or(anywhere), identity).await?;
        let nameless: ParticipantName = NAMELESS.parse()?;
        Ok(Self {
            name: options.name.clone().unwrap_or(nameless),
            options,
            http,
            coordinator,
            identity,
            epoch: Epoch::new(1).context("an epoch is at least 1")?,
            first_sequence: Sequence::start(rand::random()),
        })
    }

    /// The address that the participant under test has to ask.
    pub fn coordinator_url(&self) -> &str {
        self.coordinator.url()
    }

    /// Whether the participant can know that address: it was chosen by whoever started both, or a restart tells it.
    fn may_be_asked(&self) -> bool {
        self.options.listen.is_some() || self.options.restart.is_some()
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.options.url)
    }

    /// Starts the participant, where that is the kit's to do, and learns its name.
    ///
    /// # Errors
    /// When there is no participant at the URL, or one that does not say who it is, or that refuses the operations which
    /// are to vote yes: there is nothing to check then.
    pub async fn meet(&mut self) -> anyhow::Result<()> {
        if self.options.restart.is_some() {
            let life = self.life();
            self.restart(life).await?;
        }
        let described = self.describe().await?;
        if self.options.name.is_none() {
            self.name = described.participant;
        }
        let case = Case::new(self, BEFORE_ALL);
        let heard = case.prepare(case.id()).await;
        case.clean_up().await;
        match heard.said {
            Said::No(_) | Said::Refused(..) => bail!(
                "the operations that are to vote yes (--operations FILE) are answered {}",
                heard.said
            ),
            // What is wrong with it otherwise, the checks say.
            Said::Yes
            | Said::ReadOnly
            | Said::Committed
            | Said::Aborted
            | Said::VoteLost
            | Said::OutcomeDiffers
            | Said::Unknown(_) => Ok(()),
        }
    }

    /// The participant's name: as it was given, else as it describes itself.
    pub fn participant(&self) -> &ParticipantName {
        &self.name
    }

    /// An ordinary life of the participant.
    fn life(&self) -> Life {
        Life {
            coordinator: self.coordinator.url().to_owned(),
            name: None,
            former: None,
        }
    }

    async fn describe(&self) -> anyhow::Result<Describe> {
        let url = self.url("/v1/describe");
        let what = || format!("GET {url}");
        let answered = self.http.get(&url).send().await.with_context(what)?;
        let status = answered.status();
        let body = answered.bytes().await.with_context(what)?;
        if status != 200 {
            bail!("GET {url}: {status} {}", String::from_utf8_lossy(&body));
        }
        parse_object(&body).with_context(what)
    }

    async fn restart(&self, life: Life) -> anyhow::Result<String> {
        let restart = self
            .options
            .restart
            .as_ref()
            .context("no --restart CMD was given")?;
        let said = restart(life).await?;
        until("the participant answers", READY, async || {
            self.describe().await.map(drop)
        })
        .await?;
        Ok(said)
    }

    /// A participant that a check has killed is not to fail the checks behind it, too.
    async fn revive(&self) {
        if self.options.restart.is_some() && self.describe().await.is_err() {
            // One that does not come back fails them all, and each says so.
            self.restart(self.life()).await.ok();
        }
    }

    /// Runs the checks; `finished` sees each as it ends.
    pub async fn run(&self, mut finished: impl FnMut(&Finished)) -> Card {
        let mut card = Card {
            participant: self.name.to_string(),
            url: self.options.url.clone(),
            coordinator: self.coordinator.url().to_owned(),
            checks: Vec::new(),
        };
        let only = &self.options.only;
        let mut numbers = 0..;
        for (checks, side_by_side) in GROUPS {
            // Each has its number, whether it is run or not.
            let numbered = checks.iter().zip(&mut numbers);
            let wanted: Vec<(&Check, u16)> = numbered
                .filter(|(check, _)| only.is_empty() || only.iter().any(|id| id == check.id))
                .collect();
            let at_once = if side_by_side { wanted.len().max(1) } else { 1 };
            for wanted in wanted.chunks(at_once) {
                let running = wanted
                    .iter()
                    .map(|(check, number)| self.run_one(check, *number));
                for ended in join_all(running).await {
                    finished(&ended);
                    card.checks.push(ended);
                }
            }
        }
        card
    }

    async fn run_one(&self, check: &Check, number: u16) -> Finished {
        let case = Case::new(self, number);
        let limit = CHECK_MAX + 4 * self.options.patience;
        let ended = tokio::time::timeout(limit, (check.run)(&case)).await;
        let verdict = match ended {
            Ok(Ok(())) => Verdict::Passed,
            Ok(Err(Halt::Failed(why))) => Verdict::Failed(why),
            Ok(Err(Halt::NotApplicable(why))) => Verdict::NotApplicable(why),
            Err(_elapsed) => Verdict::Failed(format!("it did not end within {limit:?}")),
        };
        let exchanges = case.exchanges();
        case.clean_up().await;
        if matches!(verdict, Verdict::Failed(_)) {
            self.revive().await;
        }
        Finished::new(check, verdict, exchanges)
    }
}
