//! What one check has in hand: transactions of its own, the calls that a coordinator makes, and what was said.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tokio::time::{Instant, sleep};
use unanimous_protocol::id::{BranchId, Node, Prefix, Sequence, TransactionId};
use unanimous_protocol::message::{Delivery, Inform, Refusal, Reply, RequestKind, Vote};
use unanimous_protocol::operations::Operations;
use unanimous_protocol::wire::{
    BranchRequest, BranchState, BranchStateAnswer, HttpAnswer, PROBLEM_JSON, PrepareRequest,
    Problem, parse_object, problem_type, read_reply,
};

use super::coordinator::{Coordinator, Tell};
use super::exchange::{Exchange, Exchanges, Typed};
use super::{Kit, Life};

/// What is left until the deadline of a prepare that has time.
const REMAINING_MS: u64 = 30_000;
/// *Unknown* is asked again, as a coordinator does, but not for ever.
const ASKED_AGAIN_FOR: Duration = Duration::from_secs(10);
/// A server error without an end in sight is asked again that often.
const ERRORS_MAX: u32 = 3;
const PAUSE: Duration = Duration::from_millis(50);
/// Ending what a check left open, at most.
const CLEANING_MAX: Duration = Duration::from_secs(5);

/// Why a check ended before its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Halt {
    /// The participant broke the contract, and how.
    Failed(String),
    /// What the check needs was not given.
    NotApplicable(String),
}

/// How a check ended.
pub(super) type Checked<T = ()> = Result<T, Halt>;

/// A failure with this text.
pub(super) fn failed<T>(why: impl Into<String>) -> Checked<T> {
    Err(Halt::Failed(why.into()))
}

/// Not applicable, for this reason.
pub(super) fn not_applicable<T>(why: impl Into<String>) -> Checked<T> {
    Err(Halt::NotApplicable(why.into()))
}

/// A participant's answer, whatever it is.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) content_type: Option<String>,
    pub(super) body: Vec<u8>,
}

impl Answer {
    fn http(&self) -> HttpAnswer<'_> {
        HttpAnswer {
            status: self.status,
            content_type: self.content_type.as_deref(),
            body: &self.body,
        }
    }

    /// The problem in it, where it is one as the contract wants it: the media type, the `type` and the status say so.
    pub(super) fn problem(&self) -> Option<Problem> {
        let problem: Problem = parse_object(&self.body).ok()?;
        let ours = self.media_type() == Some(PROBLEM_JSON)
            && problem.problem_type == problem_type(&problem.code)
            && problem.status == self.status;
        ours.then_some(problem)
    }

    pub(super) fn media_type(&self) -> Option<&str> {
        self.content_type
            .as_deref()?
            .split(';')
            .next()
            .map(str::trim)
    }

    /// Whether it is worth asking again: the participant says that it can not answer now.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self.status, 408 | 429 | 503)
    }

    pub(super) fn text(&self) -> String {
        format!("{} {}", self.status, String::from_utf8_lossy(&self.body))
    }
}

/// What an answer says, read as a coordinator reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Yes,
    ReadOnly,
    No(Refusal),
    Committed,
    Aborted,
    VoteLost,
    OutcomeDiffers,
    /// A clear refusal of this request: 400, 413, 415 or 422, with its code.
    Refused(u16, String),
    /// Anything else.
    Unknown(String),
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Yes => f.write_str("*yes*"),
            Self::ReadOnly => f.write_str("*read_only*"),
            Self::No(refusal) => write!(f, "*no*, {} ({})", refusal.code.as_str(), refusal.reason),
            Self::Committed => f.write_str("committed"),
            Self::Aborted => f.write_str("aborted"),
            Self::VoteLost => f.write_str("409 vote-lost"),
            Self::OutcomeDiffers => f.write_str("409 outcome-differs"),
            Self::Refused(status, code) => write!(f, "{status} {code}"),
            Self::Unknown(why) => write!(f, "no answer ({why})"),
        }
    }
}

impl Said {
    fn read(kind: RequestKind, branch: &BranchId, answer: &Answer) -> Self {
        match read_reply(kind, branch, &answer.http()) {
            Delivery::Answered(Reply::Vote(_)) if answer.status != 200 => {
                let code = answer.problem().map(|problem| problem.code);
                Self::Refused(answer.status, code.unwrap_or_default())
            }
            Delivery::Answered(Reply::Vote(Vote::Yes)) => Self::Yes,
            Delivery::Answered(Reply::Vote(Vote::ReadOnly)) => Self::ReadOnly,
            Delivery::Answered(Reply::Vote(Vote::No(refusal))) => Self::No(refusal),
            Delivery::Answered(Reply::Committed) => Self::Committed,
            Delivery::Answered(Reply::Aborted) => Self::Aborted,
            Delivery::Answered(Reply::VoteLost) => Self::VoteLost,
            Delivery::Answered(Reply::OutcomeDiffers) => Self::OutcomeDiffers,
            Delivery::Refused(why) | Delivery::Unknown(why) => Self::Unknown(why),
        }
    }
}

/// What was said to one call, and to which.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    pub(super) kind: RequestKind,
    pub(super) id: TransactionId,
    pub(super) said: Said,
    /// As it came, where something came.
    pub(super) answer: Option<Answer>,
}

impl Heard {
    /// Fails with what was expected instead.
    pub(super) fn is(&self, expected: &Said) -> Checked {
        if self.said == *expected {
            Ok(())
        } else {
            self.not(&expected.to_string())
        }
    }

    /// The failure that it is not this.
    pub(super) fn not<T>(&self, expected: &str) -> Checked<T> {
        failed(format!(
            "{} of {}: the answer has to be {expected}, and was {}",
            self.kind.as_str(),
            self.id,
            self.said
        ))
    }

    pub(super) fn is_yes(&self) -> Checked {
        self.is(&Said::Yes)
    }

    pub(super) fn is_committed(&self) -> Checked {
        self.is(&Said::Committed)
    }

    pub(super) fn is_aborted(&self) -> Checked {
        self.is(&Said::Aborted)
    }

    pub(super) fn is_vote_lost(&self) -> Checked {
        self.is(&Said::VoteLost)
    }

    pub(super) fn is_outcome_differs(&self) -> Checked {
        self.is(&Said::OutcomeDiffers)
    }

    /// A *no* with one of these codes.
    pub(super) fn is_no(&self, codes: &[&str]) -> Checked<&Refusal> {
        match &self.said {
            Said::No(refusal) if codes.contains(&refusal.code.as_str()) => Ok(refusal),
            Said::No(_)
            | Said::Yes
            | Said::ReadOnly
            | Said::Committed
            | Said::Aborted
            | Said::VoteLost
            | Said::OutcomeDiffers
            | Said::Refused(..)
            | Said::Unknown(_) => self.not(&format!("*no*, {}", codes.join(" or "))),
        }
    }

    /// No answer, from somebody who may have one later.
    pub(super) fn is_passing(&self) -> bool {
        self.is_unknown() && self.answer.as_ref().is_none_or(Answer::is_passing)
    }

    pub(super) fn is_unknown(&self) -> bool {
        matches!(self.said, Said::Unknown(_))
    }
}

/// One check's surroundings.
pub(super) struct Case<'a> {
    pub(super) kit: &'a Kit,
    prefix: Prefix,
    next: AtomicU64,
    exchanges: Arc<Exchanges>,
    /// Branches that may have voted yes and were not told an outcome.
    open: Mutex<BTreeSet<TransactionId>>,
}

impl<'a> Case<'a> {
    /// For the check with this number: low-water marks speak of one prefix, so each check has prefixes of its own.
    pub(super) fn new(kit: &'a Kit, number: u16) -> Self {
        let exchanges = Arc::new(Exchanges::default());
        let prefix = Prefix {
            identity: kit.identity,
            node: Node(2 * number + 1),
        };
        kit.coordinator
            .record_into(prefix.node, Arc::clone(&exchanges));
        Self {
            kit,
            prefix,
            next: AtomicU64::new(kit.first_sequence.number()),
            exchanges,
            open: Mutex::default(),
        }
    }

    pub(super) fn exchanges(&self) -> Vec<Exchange> {
        self.exchanges.list()
    }

    pub(super) fn coordinator(&self) -> &Coordinator {
        &self.kit.coordinator
    }

    /// A new transaction, with a higher id than all before it.
    pub(super) fn id(&self) -> TransactionId {
        self.id_of(self.prefix)
    }

    pub(super) fn ids(&self, count: usize) -> Vec<TransactionId> {
        (0..count).map(|_| self.id()).collect()
    }

    /// As [`Self::id`], of another node, whose ids are all above.
    pub(super) fn id_of_the_next_node(&self) -> TransactionId {
        self.id_of(Prefix {
            node: Node(self.prefix.node.0 + 1),
            ..self.prefix
        })
    }

    fn id_of(&self, prefix: Prefix) -> TransactionId {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        // It begins below 2^43 and has 2^43 to go.
        let sequence = Sequence::new(number).unwrap_or(Sequence::MAX);
        TransactionId::new(prefix, self.kit.epoch, sequence)
    }

    fn open(&self) -> MutexGuard<'_, BTreeSet<TransactionId>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn branch(&self, id: TransactionId) -> BranchId {
        BranchId {
            transaction: id,
            participant: self.kit.name.clone(),
        }
    }

    // ------ the three calls

    /// A prepare's body with the operations that vote yes.
    pub(super) fn prepare_request(&self, id: TransactionId) -> PrepareRequest {
        PrepareRequest {
            transaction: id,
            participant: self.kit.name.clone(),
            operations: self.kit.options.operations.clone(),
            remaining_ms: REMAINING_MS,
            begun_at_ms: now_ms(),
            session: None,
            low_water: None,
        }
    }

    /// A commit's or an abort's body.
    pub(super) fn branch_request(&self, id: TransactionId) -> BranchRequest {
        BranchRequest {
            transaction: id,
            participant: self.kit.name.clone(),
            low_water: None,
        }
    }

    pub(super) async fn prepare(&self, id: TransactionId) -> Heard {
        self.prepare_with(id, |_| {}).await
    }

    pub(super) async fn prepare_operations(
        &self,
        id: TransactionId,
        operations: &Operations,
    ) -> Heard {
        self.prepare_with(id, |request| request.operations = operations.clone())
            .await
    }

    pub(super) async fn prepare_with(
        &self,
        id: TransactionId,
        change: impl FnOnce(&mut PrepareRequest),
    ) -> Heard {
        let mut request = self.prepare_request(id);
        change(&mut request);
        self.call(RequestKind::Prepare, id, &text(&request)).await
    }

    pub(super) async fn commit(&self, id: TransactionId) -> Heard {
        let body = text(&self.branch_request(id));
        self.call(RequestKind::Commit, id, &body).await
    }

    pub(super) async fn abort(&self, id: TransactionId) -> Heard {
        let body = text(&self.branch_request(id));
        self.call(RequestKind::Abort, id, &body).await
    }

    /// An abort of a transaction that this check has not used, which carries the mark.
    pub(super) async fn tell_mark(&self, id: TransactionId, mark: TransactionId) -> Checked {
        let mut request = self.branch_request(id);
        request.low_water = Some(mark);
        let heard = self.call(RequestKind::Abort, id, &text(&request)).await;
        heard.is_aborted()
    }

    /// Asks until there is an answer, as a coordinator does, within limits.
    pub(super) async fn call(&self, kind: RequestKind, id: TransactionId, body: &str) -> Heard {
        let until = Instant::now() + ASKED_AGAIN_FOR;
        let mut errors = 0;
        loop {
            let heard = self.call_once(kind, id, body).await;
            let status = heard.answer.as_ref().map(|answer| answer.status);
            let passing = heard.answer.as_ref().is_none_or(Answer::is_passing);
            let error = status.is_some_and(|status| status >= 500);
            errors += u32::from(error && !passing);
            let again = heard.is_unknown() && (passing || (error && errors < ERRORS_MAX));
            if !again || Instant::now() >= until {
                return heard;
            }
            sleep(PAUSE).await;
        }
    }

    /// Asks once; an answer that is none stays *unknown*.
    pub(super) async fn call_once(
        &self,
        kind: RequestKind,
        id: TransactionId,
        body: &str,
    ) -> Heard {
        self.asks(kind, id);
        let path = format!("/v1/{}", kind.as_str());
        let asked = self.post(&path, Some("application/json"), body).await;
        match asked {
            Ok(answer) => self.heard(kind, id, answer),
            Err(why) => Heard {
                kind,
                id,
                said: Said::Unknown(why),
                answer: None,
            },
        }
    }

    /// Notes what may have to be ended.
    pub(super) fn asks(&self, kind: RequestKind, id: TransactionId) {
        if kind == RequestKind::Prepare {
            self.open().insert(id);
        }
    }

    /// Reads an answer as a coordinator does, and notes what has ended.
    pub(super) fn heard(&self, kind: RequestKind, id: TransactionId, answer: Answer) -> Heard {
        let said = Said::read(kind, &self.branch(id), &answer);
        match &said {
            Said::Committed | Said::Aborted | Said::No(_) => {
                self.open().remove(&id);
            }
            Said::Yes
            | Said::ReadOnly
            | Said::VoteLost
            | Said::OutcomeDiffers
            | Said::Refused(..)
            | Said::Unknown(_) => {}
        }
        Heard {
            kind,
            id,
            said,
            answer: Some(answer),
        }
    }

    // ------ any request

    pub(super) async fn post(
        &self,
        path: &str,
        content_type: Option<&str>,
        body: &str,
    ) -> Result<Answer, String> {
        let mut request = self.kit.http.post(self.kit.url(path)).body(body.to_owned());
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let answered = receive(request).await;
        self.record(
            Typed {
                method: "POST",
                url: &self.kit.url(path),
                content_type,
                body: Some(body),
                remark: "",
            },
            &answered,
        );
        answered
    }

    pub(super) async fn get(&self, path: &str) -> Result<Answer, String> {
        let answered = receive(self.kit.http.get(self.kit.url(path))).await;
        self.record(
            Typed {
                method: "GET",
                url: &self.kit.url(path),
                content_type: None,
                body: None,
                remark: "",
            },
            &answered,
        );
        answered
    }

    /// As [`Self::get`]; asked again while it can not be answered, and a failure where it never is.
    pub(super) async fn look_up(&self, path: &str) -> Checked<Answer> {
        let until = Instant::now() + ASKED_AGAIN_FOR;
        loop {
            let answered = self.get(path).await;
            let settled = answered.as_ref().is_ok_and(|answer| !answer.is_passing());
            if settled || Instant::now() >= until {
                return answered.or_else(|why| failed(format!("GET {path}: {why}")));
            }
            sleep(PAUSE).await;
        }
    }

    pub(super) fn record(&self, typed: Typed<'_>, answered: &Result<Answer, String>) {
        let answer = match answered {
            Ok(answer) => answer.text(),
            Err(why) => why.clone(),
        };
        self.exchanges
            .push(Exchange::asked_of_participant(typed, answer));
    }

    // ------ what can be seen

    /// Where the branch stands; `None` for one that the participant does not know.
    pub(super) async fn state(&self, id: TransactionId) -> Checked<Option<BranchState>> {
        let path = format!("/v1/branches/{id}");
        let answer = self.look_up(&path).await?;
        if answer.status == 404 {
            let code = answer.problem().map(|problem| problem.code);
            return match code.as_deref() {
                Some("unknown-branch") => Ok(None),
                _ => failed(format!(
                    "GET {path}: a branch that is not known is the problem 404 `unknown-branch`, and the answer was {}",
                    answer.text()
                )),
            };
        }
        let view: Result<BranchStateAnswer, _> = parse_object(&answer.body);
        match view {
            Ok(view) if answer.status == 200 => {
                let branch = self.branch(id);
                let echoes = view.transaction == id.to_string()
                    && view.participant == branch.participant.as_str();
                if echoes {
                    Ok(Some(view.state))
                } else {
                    failed(format!(
                        "GET {path}: it names {:?} at {:?}, not the branch that was asked for",
                        view.transaction, view.participant
                    ))
                }
            }
            Ok(_) => failed(format!("GET {path}: {}", answer.text())),
            Err(error) => failed(format!("GET {path}: {error}: {}", answer.text())),
        }
    }

    /// Fails unless the branch stands there.
    pub(super) async fn stands(&self, id: TransactionId, expected: BranchState) -> Checked {
        let state = self.state(id).await?;
        if state == Some(expected) {
            return Ok(());
        }
        failed(format!(
            "the branch of {id} has to be {}, and is {}",
            word(Some(expected)),
            word(state)
        ))
    }

    /// Waits until the branch stands there, for as long as the kit is patient.
    pub(super) async fn becomes(&self, id: TransactionId, expected: BranchState) -> Checked {
        let until = Instant::now() + self.kit.options.patience;
        loop {
            let state = self.state(id).await?;
            if state == Some(expected) {
                self.open().remove(&id);
                return Ok(());
            }
            if Instant::now() >= until {
                return failed(format!(
                    "the branch of {id} did not become {} within {:?}: it is {}",
                    word(Some(expected)),
                    self.kit.options.patience,
                    word(state)
                ));
            }
            sleep(PAUSE).await;
        }
    }

    // ------ what it needs of its surroundings

    /// Where the participant can not know whom to ask, nothing is seen of its inquiries.
    pub(super) fn needs_inquiries(&self) -> Checked {
        if self.kit.may_be_asked() {
            Ok(())
        } else {
            not_applicable(
                "without --listen ADDR or --restart CMD the participant can not know whom to ask",
            )
        }
    }

    /// Kills the participant and starts it again, and waits until it answers.
    pub(super) async fn restart(&self) -> Checked {
        self.restart_as(self.kit.life()).await
    }

    pub(super) async fn restart_as(&self, life: Life) -> Checked {
        self.needs_restart()?;
        let restarted = self.kit.restart(life).await;
        let said = restarted
            .as_ref()
            .map_or_else(|error| format!("{error:#}"), String::clone);
        self.exchanges.push(Exchange::command(
            "the participant was killed and started again",
            said,
        ));
        match restarted {
            Ok(_) => Ok(()),
            Err(error) => failed(format!("it did not come back after the restart: {error:#}")),
        }
    }

    pub(super) fn needs_restart(&self) -> Checked {
        if self.kit.options.restart.is_some() {
            Ok(())
        } else {
            not_applicable("no --restart CMD was given")
        }
    }

    /// What the operations change, as a text that is only compared.
    pub(super) async fn look(&self) -> Checked<String> {
        let Some(look) = &self.kit.options.look else {
            return not_applicable("no --look CMD was given");
        };
        match look().await {
            Ok(seen) => {
                self.exchanges.push(Exchange::command(
                    "what the operations change, by --look",
                    seen.clone(),
                ));
                Ok(seen)
            }
            Err(error) => failed(format!("--look could not look: {error:#}")),
        }
    }

    pub(super) fn exclusive(&self) -> Checked<&Operations> {
        let given = self.kit.options.exclusive.as_ref();
        given.map_or_else(|| not_applicable("no --exclusive FILE was given"), Ok)
    }

    pub(super) fn read_only(&self) -> Checked<&Operations> {
        let given = self.kit.options.read_only.as_ref();
        given.map_or_else(|| not_applicable("no --read-only FILE was given"), Ok)
    }

    /// Ends what the check has left open, so that nothing stays locked.
    pub(super) async fn clean_up(&self) {
        let open: Vec<TransactionId> = self.open().iter().copied().collect();
        for id in &open {
            // Also for a participant that the abort does not reach.
            self.coordinator().tell(*id, Tell::Outcome(Inform::Aborted));
        }
        let aborting = async {
            for id in open {
                self.abort(id).await;
            }
        };
        // What can not be ended within that is asked about, and told.
        tokio::time::timeout(CLEANING_MAX, aborting).await.ok();
    }
}

/// A state as the wire spells it.
pub(super) fn word(state: Option<BranchState>) -> String {
    let Some(state) = state else {
        return "not known".to_owned();
    };
    let spelled = serde_json::to_value(state).unwrap_or_default();
    spelled.as_str().unwrap_or_default().to_owned()
}

pub(super) fn text(body: &impl serde::Serialize) -> String {
    // These types write to JSON whatever they hold.
    serde_json::to_string(body).unwrap_or_default()
}

/// A body of ours as a value, to change it into one that is none of ours.
pub(super) fn value(body: &impl serde::Serialize) -> Value {
    serde_json::to_value(body).unwrap_or_default()
}

pub(super) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    })
}

async fn receive(request: reqwest::RequestBuilder) -> Result<Answer, String> {
    let said = |error: reqwest::Error| format!("no answer: {:#}", anyhow::Error::new(error));
    let response = request.send().await.map_err(said)?;
    let status = response.status().as_u16();
    let content_type = response.headers().get("content-type");
    let content_type = content_type
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    let body = response.bytes().await.map_err(said)?.to_vec();
    Ok(Answer {
        status,
        content_type,
        body,
    })
}
