//! The contract of [`DecisionLog`], asked of every backend. Another backend implements [`Backend`] and adds one line at
//! the end of this file.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use unanimous_protocol::{
    coordinator::TransactionState,
    id::{Epoch, LogIdentity, Node, Prefix, Sequence, TransactionId},
    life::{Fence, Regression, Writer},
    operations::BodyDigest,
    record::{
        AbortCode, AbortReason, Decision, Header, IdempotencyKey, KeyClaim, Outcome, Part, Record,
        Standing, Verdict, WallMillis,
    },
};

use super::{
    Appends, Batch, Decided, DecisionLog, Filter, NotAdopted, Opened, Position, Removal,
    WriteError,
    memory::{Gate, MemoryLog, Snapshot},
    postgres::tests::InPostgres,
    sqlite::{OpenError, SqliteLog},
};

/// What the suite needs of a backend, besides the contract.
pub(super) trait Backend: Sized + Send + Sync {
    /// A state to go back to.
    type Saved;

    async fn fresh() -> Self;
    fn log(&self) -> Arc<dyn DecisionLog>;
    /// From now on its writes wait between check and commit.
    async fn hold(&self);
    /// Returns when a write waits.
    async fn reached(&self);
    /// Lets all go on.
    async fn release(&self);
    /// The process ends and another one opens the log. Nobody may hold the log.
    async fn reopen(&mut self);
    /// The store will have no record of this transaction.
    async fn refuse(&self, id: TransactionId);
    async fn mark_forgotten(&self, through: TransactionId);
    /// Lets time pass, for the marks of all nodes.
    async fn age_marks(&self, by: Duration);
    async fn save(&mut self) -> Self::Saved;
    /// Somebody restores a backup.
    async fn go_back(&mut self, saved: Self::Saved);
}

struct InMemory(Arc<MemoryLog>);

impl Backend for InMemory {
    type Saved = Snapshot;

    async fn fresh() -> Self {
        Self(Arc::new(MemoryLog::shared()))
    }

    fn log(&self) -> Arc<dyn DecisionLog> {
        Arc::clone(&self.0) as Arc<dyn DecisionLog>
    }

    async fn hold(&self) {
        self.0.gate.hold();
    }

    async fn reached(&self) {
        self.0.gate.reached().await;
    }

    async fn release(&self) {
        self.0.gate.release();
    }

    async fn reopen(&mut self) {
        self.0.crash();
    }

    async fn refuse(&self, id: TransactionId) {
        self.0.refuse(id);
    }

    async fn mark_forgotten(&self, through: TransactionId) {
        self.0.mark_forgotten(through);
    }

    async fn age_marks(&self, by: Duration) {
        self.0.age_marks(by);
    }

    async fn save(&mut self) -> Snapshot {
        self.0.snapshot()
    }

    async fn go_back(&mut self, saved: Snapshot) {
        self.0.restore(saved);
    }
}

struct InSqlite {
    /// `None` only while it is reopened.
    log: Option<Arc<SqliteLog>>,
    directory: tempfile::TempDir,
}

impl InSqlite {
    fn sqlite(&self) -> &Arc<SqliteLog> {
        self.log.as_ref().unwrap()
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("unanimous.sqlite")
    }

    async fn close(&mut self) {
        Arc::into_inner(self.log.take().unwrap())
            .expect("somebody holds the log")
            .close()
            .await;
    }

    async fn open(&mut self) {
        self.log = Some(Arc::new(SqliteLog::open(&self.path()).await.unwrap()));
    }

    fn gate(&self) -> &Gate {
        self.sqlite().gate()
    }

    async fn run(&self, sql: &str) {
        self.sqlite().on_the_writing_connection(sql).await;
    }
}

fn hex(id: TransactionId) -> String {
    id.to_string().replace('-', "")
}

impl Backend for InSqlite {
    type Saved = Vec<u8>;

    async fn fresh() -> Self {
        let mut fresh = Self {
            log: None,
            directory: tempfile::tempdir().unwrap(),
        };
        fresh.open().await;
        fresh
    }

    fn log(&self) -> Arc<dyn DecisionLog> {
        Arc::clone(self.sqlite()) as Arc<dyn DecisionLog>
    }

    async fn hold(&self) {
        self.gate().hold();
    }

    async fn reached(&self) {
        self.gate().reached().await;
    }

    async fn release(&self) {
        self.gate().release();
    }

    async fn reopen(&mut self) {
        self.close().await;
        self.open().await;
    }

    async fn refuse(&self, id: TransactionId) {
        let id = hex(id);
        self.run(&format!(
            "CREATE TRIGGER refuse_{id} BEFORE INSERT ON record WHEN NEW.id = x'{id}'
             BEGIN SELECT RAISE(ABORT, 'a test refuses it'); END"
        ))
        .await;
    }

    /// Nobody marks anything in a file.
    async fn age_marks(&self, _: Duration) {}

    async fn mark_forgotten(&self, through: TransactionId) {
        let id = hex(through);
        self.run(&format!(
            "INSERT INTO forgotten VALUES (substr(x'{id}', 1, 6), x'{id}')"
        ))
        .await;
    }

    async fn save(&mut self) -> Vec<u8> {
        self.close().await;
        let saved = std::fs::read(self.path()).unwrap();
        self.open().await;
        saved
    }

    async fn go_back(&mut self, saved: Vec<u8>) {
        self.close().await;
        std::fs::write(self.path(), saved).unwrap();
        self.open().await;
    }
}

pub(super) const NODE: Node = Node(1);

/// A life of a coordinator: what it writes with, and the ids that it draws.
pub(super) struct Life {
    pub(super) writer: Writer,
    next: Sequence,
}

impl Life {
    pub(super) async fn begin(backend: &impl Backend, node: Node) -> Self {
        let Opened { writer, .. } = backend.log().open_epoch(node).await.unwrap();
        Self::of(writer)
    }

    pub(super) fn of(writer: Writer) -> Self {
        Self {
            writer,
            next: Sequence::start(rand::random()),
        }
    }

    pub(super) fn id(&mut self) -> TransactionId {
        let Writer {
            identity,
            node,
            epoch,
            ..
        } = self.writer;
        let sequence = self.next;
        self.next = sequence.next().unwrap();
        TransactionId::new(Prefix { identity, node }, epoch, sequence)
    }

    /// A commit with a branch to tell.
    pub(super) fn commit(&mut self) -> Record {
        record(
            self.id(),
            commit_of([("east", Part::Updates), ("west", Part::ReadOnly)]),
        )
    }

    pub(super) fn abort(&mut self) -> Record {
        record(self.id(), abort(AbortCode::Refused))
    }

    /// Decides, and believes what the log says.
    pub(super) async fn decide<'a>(
        &mut self,
        log: &dyn DecisionLog,
        proposals: impl IntoIterator<Item = &'a Record>,
    ) -> Vec<Standing> {
        let decided = log.decide(&self.writer, &batch(proposals)).await.unwrap();
        self.writer.decisions_at_least = decided.decisions;
        decided.standings.into_iter().map(Result::unwrap).collect()
    }
}

fn commit_of<const N: usize>(branches: [(&str, Part); N]) -> Decision {
    let branches = branches
        .map(|(name, part)| (name.parse().unwrap(), part))
        .into();
    Decision {
        verdict: Verdict::Commit,
        branches,
    }
}

fn abort(code: AbortCode) -> Decision {
    let verdict = Verdict::Abort(AbortReason::new(code));
    Decision {
        verdict,
        ..commit_of([("east", Part::Refused), ("west", Part::Unanswered)])
    }
}

fn record(id: TransactionId, decision: Decision) -> Record {
    let header = Header {
        id,
        key: None,
        labels: BTreeMap::new(),
        created_at: WallMillis(1_000),
        deadline: WallMillis(31_000),
    };
    let decided_at = WallMillis(2_000);
    let finished_at = decision.is_finished_at_once().then_some(decided_at);
    Record {
        header: Arc::new(header),
        decision,
        decided_at,
        finished_at,
    }
}

/// Each filter as it is, and with each of these values in one of its members.
fn crossed<T: Clone>(
    filters: Vec<Filter>,
    values: &[T],
    member: impl Fn(&mut Filter) -> &mut T,
) -> Vec<Filter> {
    let mut all = filters.clone();
    for filter in filters {
        all.extend(values.iter().map(|value| {
            let mut with = filter.clone();
            *member(&mut with) = value.clone();
            with
        }));
    }
    all
}

pub(super) fn key(text: &str) -> IdempotencyKey {
    text.parse().unwrap()
}

pub(super) fn keyed(mut record: Record, text: &str) -> Record {
    let header = Arc::make_mut(&mut record.header);
    header.key = Some(KeyClaim {
        key: key(text),
        request: BodyDigest([7; 32]),
    });
    record
}

pub(super) fn batch<'a>(proposals: impl IntoIterator<Item = &'a Record>) -> Batch {
    Batch {
        proposals: proposals.into_iter().cloned().collect(),
        appends: Appends::default(),
    }
}

fn finish(record: &Record) -> Appends {
    Appends {
        records: Vec::new(),
        finishes: vec![(record.header.id, WallMillis(3_000))],
    }
}

pub(super) async fn stored(log: &dyn DecisionLog, record: &Record) -> Option<Record> {
    log.look_up(record.header.id).await.unwrap().record
}

/// That neither a decision nor anything unforced of this writer gets into the log.
async fn assert_takes_nothing(
    log: &dyn DecisionLog,
    writer: &Writer,
    record: &Record,
) -> WriteError {
    let before = log.head(writer.node).await.unwrap();
    let riding = Appends {
        records: vec![record.clone()],
        finishes: Vec::new(),
    };
    // By itself, which a store may write in another way than what has something in its way.
    let alone = Batch {
        proposals: vec![record.clone()],
        appends: Appends::default(),
    };
    let refused = log.decide(writer, &alone).await.unwrap_err();
    let twice = Batch {
        appends: riding.clone(),
        ..alone
    };
    let also = [
        log.decide(writer, &twice).await.unwrap_err(),
        log.append(writer, &riding).await.unwrap_err(),
    ];
    for also in also {
        assert_eq!(also.to_string(), refused.to_string());
    }
    assert_eq!(stored(log, record).await, None);
    assert_eq!(log.head(writer.node).await.unwrap(), before);
    assert_eq!(
        before.check(writer).unwrap_err().to_string(),
        refused.to_string()
    );
    refused
}

/// Each one is asked of every backend.
mod claims {
    use super::*;

    pub(super) async fn the_first_writer_wins<B: Backend>() {
        let backend = B::fresh().await;
        let log = backend.log();
        let mut life = Life::begin(&backend, NODE).await;
        let first = life.commit();
        let second = record(first.header.id, abort(AbortCode::Timeout));
        assert_eq!(life.decide(&*log, [&first]).await, [Standing::Proposed]);
        let earlier = Standing::Earlier(first.decision.clone());
        assert_eq!(life.decide(&*log, [&second]).await, [earlier]);
        assert_eq!(stored(&*log, &first).await, Some(first));
    }

    pub(super) async fn of_one_transaction_in_one_batch_the_first_proposal_wins<B: Backend>() {
        let backend = B::fresh().await;
        let log = backend.log();
        let mut life = Life::begin(&backend, NODE).await;
        let first = life.abort();
        let second = record(first.header.id, commit_of([("east", Part::Updates)]));
        let standings = life
            .decide(&*log, &[first.clone(), second, first.clone()])
            .await;
        let earlier = Standing::Earlier(first.decision.clone());
        assert_eq!(standings, [Standing::Proposed, earlier, Standing::Proposed]);
        assert_eq!(stored(&*log, &first).await, Some(first));
    }

    pub(super) async fn a_repeat_after_an_unclear_write_is_proposed<B: Backend>() {
        let backend = B::fresh().await;
        let log = backend.log();
        let mut life = Life::begin(&backend, NODE).await;
        let batch = batch(&[life.commit(), keyed(life.commit(), "k"), life.abort()]);
        log.decide(&life.writer, &batch).await.unwrap();
        // The answer was lost, so the writer knows of no decision; and a new one came into the batch.
        let mut repeat = batch.clone();
        repeat.proposals.insert(1, life.commit());
        let Decided { standings, .. } = log.decide(&life.writer, &repeat).await.unwrap();
        for standing in standings {
            assert_eq!(standing.unwrap(), Standing::Proposed);
        }
    }

    pub(super) async fn a_write_whose_caller_went_away_is_whole_or_not_at_all<B: Backend>() {
        let backend = B::fresh().await;
        let log = backend.log();
        let mut life = Life::begin(&backend, NODE).await;
        let batch = batch(&[life.commit(), life.commit()]);
        backend.hold().await;
        {
            let gone = log.decide(&life.writer, &batch);
            tokio::select! {
                _ = gone => panic!("it was not held"),
                () = backend.reached() => {}
            }
        }
        backend.release().await;
        let next = life.commit();
        assert_eq!(life.decide(&*log, [&next]).await, [Standing::Proposed]);
        let first = stored(&*log, &batch.proposals[0]).await;
        let second = stored(&*log, &batch.proposals[1]).await;
        assert_eq!(first.is_some(), second.is_some());
        let standings = life.decide(&*log, &batch.proposals).await;
        assert_eq!(standings, [Standing::Proposed, Standing::Proposed]);
    }

    pub(super) async fn a_key_has_one_transaction_and_a_loser_stores_nothing<B: Backend>() {
        let backend = B::fresh().await;
        let log = backend.log();
        let mut life = Life::begin(&backend, NODE).await;
        let winner = keyed(life.abort(), "k");
        let loser = keyed(life.commit(), "k");
        let other = keyed(life.commit(), "K");
        assert_eq!(life.decide(&*log, [&winner]).await, [Standing::Proposed]);
        let held = Standing::KeyHeldBy(winner.header.id);
        assert_eq!(
            life.decide(&*log, &[loser.clone(), other]).await,
            [held, Standing::Proposed]
        );
        assert_eq!(stored(&*log, &loser).await, None);
        assert_eq!(log.by_key(&[key("k")]).await.unwrap(), [Some(winner)]);
        assert_eq!(log.unfinished(NODE).await.unwrap().len(), 1);
    }

    pub(super) async fn of_one_key_in_one_batch_the_first_proposal_wins<B: Backend>() {
        let backend = B::fresh().await;
        let log = backend.log();
        let mut life = Life::begin(&backend, NODE).await;
        // Drawn in the other order: the order of the batch counts.
        let (second, first) = (keyed(life.commit(), "k"), keyed(life.commit(), "k"));
        let standings = life.decide(&*log, &[first.clone(), second.clone()]).await;
        assert_eq!(
            standings,
            [Standing::Proposed, Standing::KeyHeldBy(first.header.id)]
        );
        assert_eq!(stored(&*log, &first).await, Some(first));
        assert_eq!(stored(&*log, &second).await, None);
    }

    pub(super) async fn records_without_a_key_do_not_collide<B: Backend>() {
        let backend = B::fresh().await;
        let log = backend.log();
        let mut life = Life::begin(&backend, NODE).await;
        let many: Vec<_> = (0..200).map(|_| life.commit()).collect();
        let standings = life.decide(&*log, &many).await;
        assert_eq!(standings, vec![Standing::Proposed; 200]);
    }

    pub(super) async fn one_bad_proposal_fails_alone<B: Backend>() {
        let backend = B::fresh().await;
        let log = backend.log();
        let mut life = Life::begin(&backend, NODE).await;
        let [good, bad, last] = [
            life.commit(),
            keyed(life.commit(), "k"),
            keyed(life.commit(), "k"),
        ];
        let riding = life.abort();
        backend.refuse(bad.header.id).await;
        let mut batch = batch(&[good.clone(), bad.clone(), last.clone()]);
        batch.appends.records = vec![bad.clone(), riding.clone()];
        let Decided { standings, .. } = log.decide(&life.writer, &batch).await.unwrap();
        assert_eq!(*standings[0].as_ref().unwrap(), Standing::Proposed);
        assert_eq!(
            standings[1].as_ref().unwrap_err().transaction,
            bad.header.id
        );
        // The key of what was refused is free.
        assert_eq!(*standings[2].as_ref().unwrap(), Standing::Proposed);
        for (record, is_stored) in [(&good, true), (&bad, false), (&last, true), (&riding, true)] {
            assert_eq!(stored(&*log, record).await.is_some(), is_stored);
        }
    }

    pub(super) async fn a_bad_record_that_rides_along_fails_nothing<B: Backend>() {
        let backend = B::fresh().await;
        let log = backend.log();
        let mut life = Life::begin(&backend, NODE).await;
        let old = life.commit();
        life.decide(&*log, [&old]).await;
        let [good, bad, riding] = [life.commit(), life.abort(), life.abort()];
        backend.refuse(bad.header.id).await;
        let mut batch = batch([&good]);
        batch.appends = finish(&old);
        batch.appends.records = vec![bad.clone(), riding.clone()];
        let Decided { standings, .. } = log.decide(&life.writer, &batch).await.unwrap();
        assert_eq!(*standings[0].as_ref().unwrap(), Standing::Proposed);
        assert_eq!(stored(&*log, &bad).await, None);
        assert_eq!(stored(&*log, &riding).await, Some(riding));
        assert_eq!(log.unfinished(NODE).await.unwrap(), [good]);
    }

    pub(super) async fn a_proposal_of_another_life_is_refused<B: Backend>() {
        let backend = B::fresh().await;
        let log = backend.log();
        let mut fenced = Life::begin(&backend, NODE).await;
        let mut neighbour = Life::begin(&backend, Node(2)).await;
        let mut life = Life::begin(&backend, NODE).await;
        let mut foreign = Life {
            writer: life.writer,
            next: Sequence::start(1),
        };
        foreign.writer.identity = LogIdentity(!life.writer.identity.0);
        let own = life.commit();
        let others = [fenced.commit(), neighbour.commit(), foreign.commit()];
        let batch = batch(&[others[0].clone(), own, others[1].clone(), others[2].clone()]);
        let Decided { standings, .. } = log.decide(&life.writer, &batch).await.unwrap();
        let stand: Vec<_> = standings.iter().map(Result::is_ok).collect();
        assert_eq!(stand, [false, true, false, false]);
        for other in others {
            assert_eq!(stored(&*log, &other).await, None);
        }
    }

    pub(super) async fn a_new_epoch_fences_the_older_ones<B: Backend>() {
        let backend = B::fresh().await;
        let log = backend.log();
        let mut old = Life::begin(&backend, NODE).await;
        let told = old.commit();
        old.decide(&*log, [&told]).await;
        let mut new = Life::begin(&backend, NODE).await;
        assert_eq!(new.writer.epoch.number(), old.writer.epoch.number() + 1);
        let late = old.commit();
        let error = assert_takes_nothing(&*log, &old.writer, &late).await;
        let WriteError::Fenced(Fence::Epoch {
            node,
            epoch,
            newest,
        }) = error
        else {
            panic!("{error:?}")
        };
        assert_eq!(
            (node, epoch, newest),
            (NODE, old.writer.epoch, new.writer.epoch)
        );
        // Nor may it repeat what it had decided before.
        let repeat = log.decide(&old.writer, &batch([&told])).await;
        assert!(matches!(repeat, Err(WriteError::Fenced(_))));
        let commit = new.commit();
        assert_eq!(new.decide(&*log, [&commit]).await, [Standing::Proposed]);
    }

    pub(super) async fn an_epoch_is_of_one_node<B: Backend>() {
        let backend = B::fresh().await;
        let log = backend.log();
        let mut one = Life::begin(&backend, NODE).await;
        Life::begin(&backend, Node(0)).await;
        Life::begin(&backend, Node(u16::MAX)).await;
        Life::begin(&backend, Node(u16::MAX)).await;
        let commit = one.commit();
        assert_eq!(one.decide(&*log, [&commit]).await, [Standing::Proposed]);
        assert_eq!(log.nodes().await.unwrap(), [Node(0), NODE, Node(u16::MAX)]);
        let newest = log.head(Node(u16::MAX)).await.unwrap().epoch;
        assert_eq!(newest, Epoch::new(2));
        assert_eq!(log.head(Node(7)).await.unwrap().epoch, None);
    }

    pub(super) async fn an_epoch_opens_after_the_decisions_under_way<B: Backend>() {
        let backend = B::fresh().await;
        let log = backend.log();
        let mut old = Life::begin(&backend, NODE).await;
        let commit = old.commit();
        backend.hold().await;
        let deciding = tokio::spawn({
            let (log, writer, batch) = (Arc::clone(&log), old.writer, batch([&commit]));
            async move { log.decide(&writer, &batch).await }
        });
        backend.reached().await;
        let mut opening = tokio::spawn({
            let log = Arc::clone(&log);
            async move {
                log.open_epoch(NODE).await.unwrap();
                log.unfinished(NODE).await.unwrap()
            }
        });
        // A wait that ends too early could only let a wrong backend pass.
        let opened = tokio::time::timeout(Duration::from_millis(50), &mut opening).await;
        assert!(
            opened.is_err(),
            "an epoch was opened while a decision was under way"
        );
        backend.release().await;
        deciding.await.unwrap().unwrap();
        assert_eq!(
            opening.await.unwrap(),
            [commit],
            "recovery missed a decision"
        );
    }

    const A_WHILE: Duration = Duration::from_secs(10);

    pub(super) async fn a_node_is_adopted_once_it_was_not_marked_for_a_while<B: Backend>() {
        let backend = B::fresh().await;
        let log = backend.log();
        let mut owner = Life::begin(&backend, NODE).await;
        let owed = owner.commit();
        owner.decide(&*log, [&owed]).await;
        if !log.is_exclusive() {
            // To begin is a mark, too.
            let early = log.adopt(NODE, Some(A_WHILE)).await.unwrap();
            assert_eq!(early, Err(NotAdopted::SeenLately));
            for _ in 0..3 {
                backend.age_marks(A_WHILE - Duration::from_secs(1)).await;
                let early = log.adopt(NODE, Some(A_WHILE)).await.unwrap();
                assert_eq!(early, Err(NotAdopted::SeenLately));
                log.mark(&owner.writer).await.unwrap();
            }
            let commit = owner.commit();
            let stands = owner.decide(&*log, [&commit]).await;
            assert_eq!(stands, [Standing::Proposed], "nobody fenced it");
            log.append(&owner.writer, &finish(&commit)).await.unwrap();
            backend.age_marks(A_WHILE).await;
        }
        let adopted = log.adopt(NODE, Some(A_WHILE)).await.unwrap().unwrap();
        let epoch = owner.writer.epoch.number() + 1;
        assert_eq!(adopted.writer.epoch.number(), epoch);
        assert_eq!(log.unfinished(NODE).await.unwrap(), [owed]);
        let late = owner.commit();
        let error = assert_takes_nothing(&*log, &owner.writer, &late).await;
        assert!(matches!(error, WriteError::Fenced(_)), "{error:?}");
        if !log.is_exclusive() {
            let again = log.adopt(NODE, Some(A_WHILE)).await.unwrap();
            assert_eq!(again, Err(NotAdopted::SeenLately), "to adopt is a mark");
        }
        let forced = log.adopt(NODE, None).await.unwrap().unwrap();
        assert_eq!(forced.writer.epoch.number(), epoch + 1);
    }

    pub(super) async fn whoever_is_fenced_marks_nothing<B: Backend>() {
        let backend = B::fresh().await;
        let log = backend.log();
        let former = Life::begin(&backend, NODE).await;
        Life::begin(&backend, NODE).await;
        let other = Life::begin(&backend, Node(2)).await;
        backend.age_marks(A_WHILE).await;
        for nothing in [&former, &other] {
            log.mark(&nothing.writer).await.unwrap();
        }
        let adopted = log.adopt(NODE, Some(A_WHILE)).await.unwrap();
        assert!(adopted.is_ok(), "{adopted:?}");
    }

    pub(super) async fn neither_an_unknown_node_nor_one_of_a_log_that_went_back_is_adopted<
        B: Backend,
    >() {
        let backend = B::fresh().await;
        let log = backend.log();
        let unknown = log.adopt(NODE, None).await.unwrap();
        assert_eq!(unknown, Err(NotAdopted::UnknownNode));
        assert_eq!(log.nodes().await.unwrap(), []);
        Life::begin(&backend, NODE).await;
        log.remember_that_it_went_back("a test says so")
            .await
            .unwrap();
        let went_back = log.adopt(NODE, None).await.unwrap();
        assert_eq!(went_back, Err(NotAdopted::LogWentBack));
        let head = log.head(NODE).await.unwrap();
        assert_eq!(head.epoch, Epoch::new(1), "it comes no nearer to lost ones");
    }

    pub(super) async fn an_adoption_comes_after_the_decisions_under_way<B: Backend>() {
        let backend = B::fresh().await;
        let log = backend.log();
        let mut owner = Life::begin(&backend, NODE).await;
        let commit = owner.commit();
        backend.hold().await;
        let deciding = tokio::spawn({
            let (log, writer, batch) = (Arc::clone(&log), owner.writer, batch([&commit]));
            async move { log.decide(&writer, &batch).await }
        });
        backend.reached().await;
        let mut adopting = tokio::spawn({
            let log = Arc::clone(&log);
            async move {
                log.adopt(NODE, None).await.unwrap().unwrap();
                log.unfinished(NODE).await.unwrap()
            }
        });
        // A wait that ends too early could only let a wrong backend pass.
        let adopted = tokio::time::timeout(Duration::from_millis(50), &mut adopting).await;
        assert!(adopted.is_err(), "adopted while a decision was under way");
        backend.release().await;
        deciding.await.unwrap().unwrap();
        assert_eq!(adopting.await.unwrap(), [commit]);
    }

    pub(super) async fn what_a_node_left_that_nobody_runs_is_shown_until_it_is_finished<
        B: Backend,
    >() {
        let backend = B::fresh().await;
        let log = backend.log();
        let mut owner = Life::begin(&backend, NODE).await;
        Life::begin(&backend, Node(2)).await;
        let owed = [owner.commit(), owner.commit()];
        owner.decide(&*log, &owed).await;
        let shown = async || {
            let abandoned = log.abandoned(A_WHILE).await.unwrap();
            let shown = abandoned.iter().map(|abandoned| {
                assert!(abandoned.unseen_for >= A_WHILE, "{abandoned:?}");
                (abandoned.node, abandoned.unfinished)
            });
            shown.collect::<Vec<_>>()
        };
        assert_eq!(shown().await, [], "its owner lives");
        backend.age_marks(A_WHILE).await;
        if log.is_exclusive() {
            assert_eq!(shown().await, [], "a start takes over every node");
            return;
        }
        assert_eq!(shown().await, [(NODE, 2)]);
        log.append(&owner.writer, &finish(&owed[0])).await.unwrap();
        assert_eq!(shown().await, [(NODE, 1)]);
        log.mark(&owner.writer).await.unwrap();
        assert_eq!(shown().await, []);
        backend.age_marks(A_WHILE).await;
        log.append(&owner.writer, &finish(&owed[1])).await.unwrap();
        assert_eq!(shown().await, []);
    }

    pub(super) async fn no_record_under_a_fenced_epoch_is_for_ever<B: Backend>() {
        let backend = B::fresh().await;
        let log = backend.log();
        for _ in 0..60 {
            let mut life = Life::begin(&backend, NODE).await;
            let commit = life.commit();
            let look = {
                let (log, id) = (Arc::clone(&log), commit.header.id);
                tokio::spawn(async move {
                    let mut told_aborted = false;
                    loop {
                        let view = log.look_up(id).await.unwrap();
                        if view.epoch > Some(id.epoch()) {
                            // Design rule 3, from this one snapshot.
                            told_aborted |= view.record.is_none();
                            return told_aborted;
                        }
                        tokio::task::yield_now().await;
                    }
                })
            };
            let decide = {
                let (log, writer, batch) = (Arc::clone(&log), life.writer, batch([&commit]));
                tokio::spawn(async move { log.decide(&writer, &batch).await })
            };
            let open = {
                let log = Arc::clone(&log);
                tokio::spawn(async move { log.open_epoch(NODE).await.unwrap() })
            };
            let committed = decide.await.unwrap().is_ok();
            open.await.unwrap();
            assert_ne!(committed, look.await.unwrap(), "of {}", commit.header.id);
            assert_eq!(committed, stored(&*log, &commit).await.is_some());
        }
    }

    pub(super) async fn a_log_that_went_back_takes_nothing<B: Backend>() {
        let mut backend = B::fresh().await;
        let empty = backend.save().await;
        Life::begin(&backend, NODE).await;
        let one_epoch = backend.save().await;
        let mut life = Life::begin(&backend, NODE).await;
        let two_epochs = backend.save().await;
        let commit = life.commit();
        life.decide(&*backend.log(), [&commit]).await;
        let Writer {
            node,
            epoch,
            decisions_at_least,
            ..
        } = life.writer;

        backend.go_back(two_epochs).await;
        let error = assert_takes_nothing(&*backend.log(), &life.writer, &commit).await;
        let found = decisions_at_least - 1;
        let expected = Regression::Decisions {
            node,
            decisions_at_least,
            found,
        };
        assert!(
            matches!(error, WriteError::WentBack(why) if why == expected),
            "{error:?}"
        );

        backend.go_back(one_epoch).await;
        let error = assert_takes_nothing(&*backend.log(), &life.writer, &commit).await;
        let expected = Regression::Epoch {
            node,
            epoch,
            found: Epoch::new(1).unwrap(),
        };
        assert!(
            matches!(error, WriteError::WentBack(why) if why == expected),
            "{error:?}"
        );

        backend.go_back(empty).await;
        let error = assert_takes_nothing(&*backend.log(), &life.writer, &commit).await;
        let expected = Regression::NoEpoch { node, epoch };
        assert!(
            matches!(error, WriteError::WentBack(why) if why == expected),
            "{error:?}"
        );
    }

    pub(super) async fn a_log_of_another_identity_takes_nothing<B: Backend>() {
        let (mut ours, mut other) = (B::fresh().await, B::fresh().await);
        let mut life = Life::begin(&ours, NODE).await;
        let stranger = Life::begin(&other, NODE).await.writer.identity;
        assert_ne!(stranger, life.writer.identity);
        let commit = life.commit();
        let error = assert_takes_nothing(&*other.log(), &life.writer, &commit).await;
        let expected = Regression::Identity {
            identity: life.writer.identity,
            found: stranger,
        };
        assert!(
            matches!(error, WriteError::WentBack(why) if why == expected),
            "{error:?}"
        );

        // Restored from before the identity that this life began under.
        let saved = ours.save().await;
        ours.log().new_identity().await.unwrap();
        let mut life = Life::begin(&ours, NODE).await;
        ours.go_back(saved).await;
        let commit = life.commit();
        let error = assert_takes_nothing(&*ours.log(), &life.writer, &commit).await;
        assert!(
            matches!(error, WriteError::WentBack(Regression::Identity { .. })),
            "{error:?}"
        );
        other.reopen().await;
        assert_eq!(other.log().head(NODE).await.unwrap().identity, stranger);
    }

    pub(super) async fn a_writer_under_a_former_identity_is_fenced<B: Backend>() {
        let backend = B::fresh().await;
        let log = backend.log();
        let mut life = Life::begin(&backend, NODE).await;
        let change = log.new_identity().await.unwrap();
        assert_eq!(change.former, life.writer.identity);
        let commit = life.commit();
        let error = assert_takes_nothing(&*log, &life.writer, &commit).await;
        assert!(
            matches!(error, WriteError::Fenced(Fence::Epoch { .. })),
            "{error:?}"
        );
        // Its identity alone is enough.
        life.writer.epoch = log.head(NODE).await.unwrap().epoch.unwrap();
        let commit = life.commit();
        let error = assert_takes_nothing(&*log, &life.writer, &commit).await;
        let expected = Fence::Identity {
            identity: change.former,
            newest: change.present,
        };
        assert!(
            matches!(error, WriteError::Fenced(why) if why == expected),
            "{error:?}"
        );
    }

    pub(super) async fn every_decision_write_is_counted<B: Backend>() {
        let mut backend = B::fresh().await;
        let mut life = Life::begin(&backend, NODE).await;
        let other = Life::begin(&backend, Node(2)).await;
        assert_eq!(life.writer.decisions_at_least, 0);
        let log = backend.log();
        for count in 1..=3 {
            let proposals = [life.commit(), life.commit()];
            let decided = log.decide(&life.writer, &batch(&proposals)).await.unwrap();
            assert_eq!(decided.decisions, count);
            // A repeat is a write too, and is counted: it must have something to make durable.
            life.writer.decisions_at_least = count;
        }
        let unforced = Appends {
            records: vec![life.abort()],
            finishes: Vec::new(),
        };
        log.append(&life.writer, &unforced).await.unwrap();
        assert_eq!(log.head(NODE).await.unwrap().decisions, 3);
        assert_eq!(
            log.head(Node(2)).await.unwrap().decisions,
            other.writer.decisions_at_least
        );

        let ahead = Writer {
            decisions_at_least: 4,
            ..life.writer
        };
        let commit = life.commit();
        let error = assert_takes_nothing(&*log, &ahead, &commit).await;
        assert!(matches!(
            error,
            WriteError::WentBack(Regression::Decisions { found: 3, .. })
        ));
        let behind = Writer {
            decisions_at_least: 1,
            ..life.writer
        };
        log.decide(&behind, &batch([&commit])).await.unwrap();
        let endless = Writer {
            decisions_at_least: u64::MAX,
            ..life.writer
        };
        let commit = life.commit();
        let error = assert_takes_nothing(&*log, &endless, &commit).await;
        assert!(matches!(
            error,
            WriteError::WentBack(Regression::Decisions { .. })
        ));

        // The counter goes on in the next life.
        drop(log);
        backend.reopen().await;
        assert_eq!(
            Life::begin(&backend, NODE).await.writer.decisions_at_least,
            4
        );
    }

    pub(super) async fn unfinished_are_the_commits_that_somebody_must_be_told<B: Backend>() {
        let mut backend = B::fresh().await;
        let mut life = Life::begin(&backend, NODE).await;
        let mut neighbour = Life::begin(&backend, Node(2)).await;
        let log = backend.log();
        let owed = [life.commit(), life.commit()];
        let read_only = record(life.id(), commit_of([("east", Part::ReadOnly)]));
        // Nothing but the decision makes a record finished at once.
        let mut abort = life.abort();
        abort.finished_at = None;
        let mut finished = life.commit();
        finished.finished_at = Some(WallMillis(5));
        let all = [owed[1].clone(), read_only, abort, finished, owed[0].clone()];
        life.decide(&*log, &all).await;
        let theirs = neighbour.commit();
        neighbour.decide(&*log, [&theirs]).await;
        assert_eq!(log.unfinished(NODE).await.unwrap(), owed);
        assert_eq!(log.unfinished(Node(2)).await.unwrap(), [theirs]);
        assert_eq!(log.unfinished(Node(3)).await.unwrap(), []);

        drop(log);
        backend.reopen().await;
        let mut next = Life::begin(&backend, NODE).await;
        let log = backend.log();
        assert_eq!(log.unfinished(NODE).await.unwrap(), owed);

        // Of a former identity too, and in the order of ids.
        let third = next.commit();
        next.decide(&*log, [&third]).await;
        log.new_identity().await.unwrap();
        let mut last = Life::begin(&backend, NODE).await;
        let fourth = last.commit();
        last.decide(&*log, [&fourth]).await;
        let mut expected = vec![owed[0].clone(), owed[1].clone(), third, fourth];
        expected.sort_by_key(|record| record.header.id);
        assert_eq!(log.unfinished(NODE).await.unwrap(), expected);
    }

    pub(super) async fn a_finish_is_kept_once<B: Backend>() {
        let mut backend = B::fresh().await;
        let mut life = Life::begin(&backend, NODE).await;
        let log = backend.log();
        let [mut one, two, absent] = [life.commit(), life.commit(), life.commit()];
        life.decide(&*log, &[one.clone(), two.clone()]).await;
        let mut finishes = finish(&one);
        finishes.finishes.extend(finish(&absent).finishes);
        log.append(&life.writer, &finishes).await.unwrap();
        let again = vec![(one.header.id, WallMillis(9_000))];
        log.append(
            &life.writer,
            &Appends {
                records: vec![],
                finishes: again,
            },
        )
        .await
        .unwrap();
        assert_eq!(
            log.unfinished(NODE).await.unwrap(),
            std::slice::from_ref(&two)
        );
        one.finished_at = Some(WallMillis(3_000));
        assert_eq!(stored(&*log, &one).await, Some(one.clone()));
        assert_eq!(stored(&*log, &absent).await, None);

        // A repeat of the decision does not make it unfinished again.
        let repeat = Record {
            finished_at: None,
            ..one.clone()
        };
        assert_eq!(life.decide(&*log, [&repeat]).await, [Standing::Proposed]);
        drop(log);
        backend.reopen().await;
        assert_eq!(backend.log().unfinished(NODE).await.unwrap(), [two]);
        assert_eq!(stored(&*backend.log(), &one).await, Some(one));
    }

    pub(super) async fn what_rides_along_is_written_with_the_decision<B: Backend>() {
        let mut backend = B::fresh().await;
        let mut life = Life::begin(&backend, NODE).await;
        let log = backend.log();
        let old = life.commit();
        life.decide(&*log, [&old]).await;
        let [new, aborted] = [life.commit(), life.abort()];
        let mut batch = batch([&new]);
        batch.appends = finish(&old);
        batch.appends.records = vec![aborted.clone()];
        let decided = log.decide(&life.writer, &batch).await.unwrap();
        assert_eq!(decided.standings.len(), 1);
        drop(log);
        backend.reopen().await;
        let log = backend.log();
        assert_eq!(log.unfinished(NODE).await.unwrap(), [new]);
        assert_eq!(stored(&*log, &aborted).await, Some(aborted));
    }

    pub(super) async fn an_unforced_record_never_replaces_a_decision<B: Backend>() {
        let backend = B::fresh().await;
        let log = backend.log();
        let mut life = Life::begin(&backend, NODE).await;
        let decided = keyed(life.commit(), "k");
        life.decide(&*log, [&decided]).await;
        let same_id = record(decided.header.id, abort(AbortCode::Timeout));
        let same_key = keyed(life.abort(), "k");
        let good = life.abort();
        let records = vec![same_id, same_key.clone(), good.clone()];
        let appends = Appends {
            records,
            finishes: Vec::new(),
        };
        log.append(&life.writer, &appends).await.unwrap();
        assert_eq!(stored(&*log, &decided).await, Some(decided));
        assert_eq!(stored(&*log, &same_key).await, None);
        assert_eq!(stored(&*log, &good).await, Some(good));
    }

    pub(super) async fn a_view_is_of_the_node_and_the_prefix_of_the_id<B: Backend>() {
        let backend = B::fresh().await;
        let log = backend.log();
        let mut life = Life::begin(&backend, NODE).await;
        let (forgotten, next) = (life.id(), life.id());
        backend.mark_forgotten(forgotten).await;
        Life::begin(&backend, Node(2)).await;
        Life::begin(&backend, Node(2)).await;
        let view = log.look_up(next).await.unwrap();
        assert_eq!(view.record, None);
        assert_eq!(view.epoch, Some(life.writer.epoch));
        assert_eq!((view.identity, view.former), (life.writer.identity, vec![]));
        assert_eq!(view.forgotten_through, Some(forgotten));

        for (identity, node, epoch) in [(life.writer.identity, 2, 2), (LogIdentity(0), 1, 1)] {
            let prefix = Prefix {
                identity,
                node: Node(node),
            };
            let id = TransactionId::new(prefix, next.epoch(), next.sequence());
            let view = log.look_up(id).await.unwrap();
            assert_eq!(view.epoch, Epoch::new(epoch));
            assert_eq!(view.forgotten_through, None);
            assert_eq!(
                view.identity, life.writer.identity,
                "the log's, whatever the id says"
            );
        }
    }

    pub(super) async fn many_keys_are_answered_in_their_order<B: Backend>() {
        let backend = B::fresh().await;
        let log = backend.log();
        let mut life = Life::begin(&backend, NODE).await;
        let texts = [
            "plain",
            "with space",
            "it's",
            "\"quoted\"",
            "back\\slash",
            "[1]",
            "null",
            "1",
        ];
        let records: Vec<_> = texts
            .iter()
            .map(|text| keyed(life.commit(), text))
            .collect();
        life.decide(&*log, &records).await;
        assert_eq!(log.by_key(&[]).await.unwrap(), []);
        let asked: Vec<_> = ["1", "none", "null", "PLAIN", "plain", "1"].map(key).into();
        let expected = [7, 99, 6, 99, 0, 7].map(|at: usize| records.get(at).cloned());
        assert_eq!(log.by_key(&asked).await.unwrap(), expected);
        let all: Vec<_> = texts.iter().map(|text| key(text)).collect();
        let expected: Vec<_> = records.into_iter().map(Some).collect();
        assert_eq!(log.by_key(&all).await.unwrap(), expected);
    }

    pub(super) async fn what_finished_before_is_forgotten_and_nothing_else<B: Backend>() {
        let backend = B::fresh().await;
        let log = backend.log();
        let mut life = Life::begin(&backend, NODE).await;
        // Finished at 2000, at once; at 3000, by its finish; not at all.
        let at_once = keyed(life.abort(), "k");
        let (later, unfinished) = (life.commit(), life.commit());
        let all = [&at_once, &later, &unfinished];
        life.decide(&*log, all).await;
        log.append(&life.writer, &finish(&later)).await.unwrap();
        let forget = async |writer, before| log.forget(&writer, WallMillis(before), 100).await;
        assert_eq!(forget(life.writer, 2_000).await.unwrap(), 0, "not before");
        assert_eq!(
            log.look_up(at_once.header.id)
                .await
                .unwrap()
                .forgotten_through,
            None
        );
        assert_eq!(forget(life.writer, 2_001).await.unwrap(), 1);
        let view = log.look_up(at_once.header.id).await.unwrap();
        assert_eq!(view.record, None);
        assert_eq!(view.forgotten_through, Some(at_once.header.id));
        assert!(stored(&*log, &later).await.is_some());
        assert_eq!(forget(life.writer, i64::MAX).await.unwrap(), 1);
        assert_eq!(forget(life.writer, i64::MAX).await.unwrap(), 0);
        let view = log.look_up(unfinished.header.id).await.unwrap();
        assert_eq!(view.record.as_ref(), Some(&unfinished), "it never expires");
        assert_eq!(view.forgotten_through, Some(later.header.id));
        assert_eq!(log.unfinished(NODE).await.unwrap(), [unfinished]);
        // The key is free again.
        assert_eq!(log.by_key(&[key("k")]).await.unwrap(), [None]);
        let next = keyed(life.commit(), "k");
        assert_eq!(life.decide(&*log, [&next]).await, [Standing::Proposed]);
    }

    pub(super) async fn forgetting_is_bounded_and_takes_the_oldest_finish_first<B: Backend>() {
        let backend = B::fresh().await;
        let log = backend.log();
        let mut life = Life::begin(&backend, NODE).await;
        let mut records: Vec<_> = (0..10).map(|_| life.abort()).collect();
        for (record, finished_at) in records.iter_mut().zip([5, 9, 1, 7, 3, 8, 2, 6, 4, 0]) {
            record.finished_at = Some(WallMillis(finished_at));
        }
        life.decide(&*log, &records).await;
        let mut through = None;
        for expected in [4, 4, 2, 0] {
            let gone = log.forget(&life.writer, WallMillis(100), 4).await.unwrap();
            assert_eq!(gone, expected);
            let mut left = Vec::new();
            for record in &records {
                left.extend(stored(&*log, record).await);
            }
            records.sort_by_key(|record| record.finished_at);
            let taken = records.len().min(usize::try_from(expected).unwrap());
            let highest = records.drain(..taken).map(|record| record.header.id).max();
            // The mark never falls.
            through = through.max(highest);
            left.sort_by_key(|record| record.finished_at);
            assert_eq!(left, records);
            let view = log.look_up(life.id()).await.unwrap();
            assert_eq!(view.forgotten_through, through);
        }
    }

    pub(super) async fn each_prefix_has_its_own_forgotten_mark<B: Backend>() {
        let backend = B::fresh().await;
        let log = backend.log();
        let mut one = Life::begin(&backend, Node(1)).await;
        let mut two = Life::begin(&backend, Node(2)).await;
        let (of_one, of_two) = (one.abort(), two.abort());
        one.decide(&*log, [&of_one]).await;
        two.decide(&*log, [&of_two]).await;
        let gone = log.forget(&one.writer, WallMillis(i64::MAX), 10).await;
        assert_eq!(gone.unwrap(), 2, "whichever node it was");
        for forgotten in [&of_one, &of_two] {
            let view = log.look_up(forgotten.header.id).await.unwrap();
            assert_eq!(view.record, None);
            assert_eq!(view.forgotten_through, Some(forgotten.header.id));
        }
    }

    pub(super) async fn records_of_a_former_identity_are_kept<B: Backend>() {
        let backend = B::fresh().await;
        let log = backend.log();
        let mut life = Life::begin(&backend, NODE).await;
        let (aborted, committed) = (life.abort(), life.commit());
        life.decide(&*log, [&aborted, &committed]).await;
        log.append(&life.writer, &finish(&committed)).await.unwrap();
        log.new_identity().await.unwrap();
        let mut life = Life::begin(&backend, NODE).await;
        let present = life.abort();
        life.decide(&*log, [&present]).await;
        let gone = log.forget(&life.writer, WallMillis(i64::MAX), 10).await;
        assert_eq!(gone.unwrap(), 1);
        assert_eq!(stored(&*log, &present).await, None);
        assert!(stored(&*log, &aborted).await.is_some());
        assert!(stored(&*log, &committed).await.is_some());
    }

    pub(super) async fn whoever_is_fenced_forgets_nothing<B: Backend>() {
        let backend = B::fresh().await;
        let log = backend.log();
        let mut life = Life::begin(&backend, NODE).await;
        let aborted = life.abort();
        life.decide(&*log, [&aborted]).await;
        let decisions = log.head(NODE).await.unwrap().decisions;
        let forget = async |writer| log.forget(&writer, WallMillis(i64::MAX), 10).await;
        let lost = Writer {
            decisions_at_least: decisions + 1,
            ..life.writer
        };
        assert!(matches!(forget(lost).await, Err(WriteError::WentBack(_))));
        let newer = Life::begin(&backend, NODE).await;
        assert!(matches!(
            forget(life.writer).await,
            Err(WriteError::Fenced(_))
        ));
        assert!(stored(&*log, &aborted).await.is_some());
        assert_eq!(forget(newer.writer).await.unwrap(), 1);
        let head = log.head(NODE).await.unwrap();
        assert_eq!(head.decisions, decisions, "it is no decision write");
    }

    pub(super) async fn the_history_is_read_page_by_page_newest_first<B: Backend>() {
        let backend = B::fresh().await;
        let log = backend.log();
        let mut life = Life::begin(&backend, NODE).await;
        let mut records = Vec::new();
        // Three of each moment, and not in their order.
        for at in [3, 1, 5, 2, 4, 3, 1, 5, 2, 4, 3, 1, 5, 2, 4] {
            let mut record = life.abort();
            Arc::make_mut(&mut record.header).created_at = WallMillis(at);
            records.push(record);
        }
        life.decide(&*log, &records).await;
        records.sort_by_key(|record| (record.header.created_at, record.header.id));
        records.reverse();
        let all = Filter::default();
        for limit in [1, 2, 7, 15, 100] {
            let (mut read, mut after) = (Vec::new(), None);
            loop {
                let page = log.history(&all, after, limit).await.unwrap();
                let is_last = page.len() < usize::try_from(limit).unwrap();
                assert!(page.len() <= usize::try_from(limit).unwrap());
                read.extend(page);
                if is_last {
                    break;
                }
                after = read.last().map(|record| Position::of(&record.header));
            }
            assert_eq!(read, records, "{limit} at a time");
        }
    }

    pub(super) async fn every_filter_finds_what_it_takes<B: Backend>() {
        let backend = B::fresh().await;
        let log = backend.log();
        let mut life = Life::begin(&backend, NODE).await;
        let labels = [("k", "1"), ("k", "2"), ("l", "1"), ("l", "a:\"ü' ")];
        let mut records = Vec::new();
        for number in 0..48_usize {
            let mut record = match number % 4 {
                0 => life.commit(),
                1 => life.abort(),
                2 => record(life.id(), commit_of([("north", Part::ReadOnly)])),
                _ => record(life.id(), commit_of([("east", Part::Updates)])),
            };
            if number % 4 == 3 {
                record.finished_at = Some(WallMillis(9));
            }
            if number % 5 == 0 {
                record = keyed(record, &format!("key {number}"));
            }
            let header = Arc::make_mut(&mut record.header);
            header.created_at = WallMillis(i64::try_from(number / 3).unwrap());
            for (at, (key, value)) in labels.into_iter().enumerate() {
                if number >> at & 1 == 1 {
                    header.labels.insert(key.to_owned(), value.to_owned());
                }
            }
            records.push(record);
        }
        life.decide(&*log, &records).await;
        records.sort_by_key(|record| std::cmp::Reverse(Position::of(&record.header)));

        let label = |at: usize| (labels[at].0.to_owned(), labels[at].1.to_owned());
        use TransactionState::{Aborted, Aborting, Active, Committed, Committing};
        let states = [Active, Committing, Committed, Aborting, Aborted].map(Some);
        let outcomes = [Outcome::Committed, Outcome::Aborted].map(Some);
        let participants = ["east", "north", "eas"].map(|name| Some(name.parse().unwrap()));
        let keys = ["key 5", "key"].map(|key| Some(key.parse().unwrap()));
        let labels = [vec![0], vec![1, 3], vec![0, 1]];
        let labels = labels.map(|these| these.into_iter().map(label).collect());
        let filters = vec![Filter::default()];
        let filters = crossed(filters, &states, |filter| &mut filter.state);
        let filters = crossed(filters, &outcomes, |filter| &mut filter.outcome);
        let filters = crossed(filters, &[Some(true), Some(false)], |f| &mut f.in_doubt);
        let filters = crossed(filters, &participants, |filter| &mut filter.participant);
        let filters = crossed(filters, &keys, |filter| &mut filter.idempotency_key);
        let filters = crossed(filters, &labels, |filter| &mut filter.labels);
        let mut fruitful = 0;
        for filter in filters {
            let taken = records.iter().filter(|record| filter.takes_record(record));
            let taken: Vec<_> = taken.cloned().collect();
            let found = log.history(&filter, None, 100).await.unwrap();
            assert_eq!(found, taken, "{filter:?}");
            let Some((first, rest)) = taken.split_first() else {
                continue;
            };
            fruitful += 1;
            let after = Some(Position::of(&first.header));
            let found = log.history(&filter, after, 100).await.unwrap();
            assert_eq!(found, rest, "{filter:?}");
        }
        assert!(fruitful >= 100, "{fruitful}");
    }

    pub(super) async fn what_is_forgotten_is_in_no_list<B: Backend>() {
        let backend = B::fresh().await;
        let log = backend.log();
        let mut life = Life::begin(&backend, NODE).await;
        let (mut aborted, mut unfinished) = (life.abort(), life.commit());
        for record in [&mut aborted, &mut unfinished] {
            let labels = &mut Arc::make_mut(&mut record.header).labels;
            labels.insert("k".to_owned(), "v".to_owned());
        }
        life.decide(&*log, [&aborted, &unfinished]).await;
        let by_participant = Filter {
            participant: Some("east".parse().unwrap()),
            ..Filter::default()
        };
        let by_label = Filter {
            labels: vec![("k".to_owned(), "v".to_owned())],
            ..Filter::default()
        };
        let gone = log.forget(&life.writer, WallMillis(i64::MAX), 10).await;
        assert_eq!(gone.unwrap(), 1);
        for filter in [Filter::default(), by_participant, by_label] {
            let found = log.history(&filter, None, 10).await.unwrap();
            assert_eq!(found, std::slice::from_ref(&unfinished));
        }
    }

    pub(super) async fn participants_are_kept_by_name<B: Backend>() {
        let mut backend = B::fresh().await;
        let log = backend.log();
        let life = Life::begin(&backend, NODE).await;
        assert_eq!(log.participants().await.unwrap(), []);
        let (east, west) = ("east".parse().unwrap(), "west".parse().unwrap());
        for (name, url, is_new) in [(&west, "w", true), (&east, "e", true), (&west, "v", false)] {
            let put = log.put_participant(&life.writer, name, url).await;
            assert_eq!(put.unwrap(), is_new, "{name}");
        }
        drop(log);
        backend.reopen().await;
        let log = backend.log();
        let both = [(east.clone(), "e".to_owned()), (west, "v".to_owned())];
        assert_eq!(log.participants().await.unwrap(), both);
        let remove = async || log.remove_participant(&life.writer, &east).await.unwrap();
        assert_eq!(remove().await, Removal::Removed);
        assert_eq!(remove().await, Removal::Absent);
        assert_eq!(log.participants().await.unwrap(), both[1..]);
    }

    pub(super) async fn a_participant_that_an_unfinished_record_names_stays<B: Backend>() {
        let backend = B::fresh().await;
        let log = backend.log();
        let mut life = Life::begin(&backend, NODE).await;
        // East updates, and west only read.
        let commit = life.commit();
        let aborted = record(life.id(), commit_of([("north", Part::Updates)]));
        let aborted = Record {
            finished_at: Some(WallMillis(1)),
            ..aborted
        };
        life.decide(&*log, [&commit, &aborted]).await;
        let names = ["east", "west", "north", "eas"].map(|name| name.parse().unwrap());
        for name in &names {
            log.put_participant(&life.writer, name, "u").await.unwrap();
        }
        let writer = life.writer;
        let remove = async |name| log.remove_participant(&writer, name).await.unwrap();
        assert_eq!(remove(&names[0]).await, Removal::InUse);
        assert_eq!(remove(&names[1]).await, Removal::InUse);
        assert_eq!(remove(&names[2]).await, Removal::Removed);
        assert_eq!(remove(&names[3]).await, Removal::Removed);
        log.append(&life.writer, &finish(&commit)).await.unwrap();
        assert_eq!(remove(&names[0]).await, Removal::Removed);
    }

    pub(super) async fn whoever_is_fenced_changes_no_participant<B: Backend>() {
        let backend = B::fresh().await;
        let log = backend.log();
        let old = Life::begin(&backend, NODE).await;
        let east = "east".parse().unwrap();
        log.put_participant(&old.writer, &east, "e").await.unwrap();
        Life::begin(&backend, NODE).await;
        let put = log.put_participant(&old.writer, &east, "other").await;
        assert!(matches!(put, Err(WriteError::Fenced(_))));
        let removed = log.remove_participant(&old.writer, &east).await;
        assert!(matches!(removed, Err(WriteError::Fenced(_))));
        let kept = [(east, "e".to_owned())];
        assert_eq!(log.participants().await.unwrap(), kept);
    }

    pub(super) async fn that_it_went_back_is_remembered_until_a_new_identity<B: Backend>() {
        let mut backend = B::fresh().await;
        assert_eq!(backend.log().went_back().await.unwrap(), None);
        for why in ["first", "second"] {
            let log = backend.log();
            log.remember_that_it_went_back(why).await.unwrap();
            drop(log);
            backend.reopen().await;
            let found = backend.log().went_back().await.unwrap();
            assert_eq!(found.as_deref(), Some(why));
        }
        backend.log().new_identity().await.unwrap();
        assert_eq!(backend.log().went_back().await.unwrap(), None);
    }

    pub(super) async fn a_new_identity_keeps_records_and_raises_every_epoch<B: Backend>() {
        let mut backend = B::fresh().await;
        let mut life = Life::begin(&backend, NODE).await;
        Life::begin(&backend, Node(2)).await;
        let log = backend.log();
        let commit = keyed(life.commit(), "k");
        life.decide(&*log, [&commit]).await;
        let first = log.new_identity().await.unwrap();
        let second = log.new_identity().await.unwrap();
        assert_eq!(first.former, life.writer.identity);
        assert_eq!(second.former, first.present);
        assert_ne!(first.present, second.present);
        drop(log);
        backend.reopen().await;
        let log = backend.log();
        let view = log.look_up(commit.header.id).await.unwrap();
        assert_eq!(view.record, Some(commit.clone()));
        assert_eq!(view.identity, second.present);
        assert_eq!(view.former, [first.former, second.former]);
        assert_eq!(log.by_key(&[key("k")]).await.unwrap(), [Some(commit)]);
        for node in [NODE, Node(2)] {
            let head = log.head(node).await.unwrap();
            assert_eq!(head.epoch, Epoch::new(3));
            assert_eq!((head.identity, &head.former), (view.identity, &view.former));
        }
        let opened = log.open_epoch(NODE).await.unwrap();
        assert_eq!(opened.writer.identity, second.present);
        assert_eq!(opened.former, view.former);
    }

    pub(super) async fn another_process_finds_everything_there<B: Backend>() {
        let mut backend = B::fresh().await;
        let identity = backend.log().head(NODE).await.unwrap().identity;
        let mut life = Life::begin(&backend, NODE).await;
        let records = [keyed(life.commit(), "k"), life.abort()];
        life.decide(&*backend.log(), &records).await;
        backend.reopen().await;
        backend.reopen().await;
        let log = backend.log();
        let head = log.head(NODE).await.unwrap();
        assert_eq!(
            (head.identity, head.epoch),
            (identity, Some(life.writer.epoch))
        );
        assert_eq!(head.decisions, life.writer.decisions_at_least);
        assert_eq!(log.nodes().await.unwrap(), [NODE]);
        for record in records {
            assert_eq!(stored(&*log, &record).await, Some(record));
        }
        // Opening the file is no fence: opening an epoch is.
        let commit = life.commit();
        assert_eq!(life.decide(&*log, [&commit]).await, [Standing::Proposed]);
    }

    pub(super) async fn an_empty_batch_is_a_write<B: Backend>() {
        let backend = B::fresh().await;
        let log = backend.log();
        let life = Life::begin(&backend, NODE).await;
        let decided = log.decide(&life.writer, &Batch::default()).await.unwrap();
        assert_eq!((decided.standings.len(), decided.decisions), (0, 1));
        log.append(&life.writer, &Appends::default()).await.unwrap();
    }

    pub(super) async fn a_record_is_read_as_it_was_written<B: Backend>() {
        let mut backend = B::fresh().await;
        let mut life = Life::begin(&backend, NODE).await;
        let seed = rand::random();
        let mut random = Random(StdRng::seed_from_u64(seed));
        let mut written = Vec::new();
        for size in [1, 3, 64, 400] {
            let proposals: Vec<_> = (0..size).map(|_| random.record(life.id())).collect();
            life.decide(&*backend.log(), &proposals).await;
            let records: Vec<_> = (0..size).map(|_| random.record(life.id())).collect();
            let appends = Appends {
                records,
                finishes: Vec::new(),
            };
            backend.log().append(&life.writer, &appends).await.unwrap();
            written.extend(proposals.into_iter().chain(appends.records));
        }
        backend.reopen().await;
        let log = backend.log();
        for record in &written {
            assert_eq!(
                stored(&*log, record).await.as_ref(),
                Some(record),
                "seed {seed}"
            );
            if let Some(claim) = &record.header.key {
                let held = log.by_key(std::slice::from_ref(&claim.key)).await.unwrap();
                assert_eq!(held, [Some(record.clone())], "seed {seed}");
            }
        }
    }
}

/// Records of every kind there is, and beyond what the API lets through.
struct Random(StdRng);

impl Random {
    fn one_of<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.0.random_range(0..of.len())].clone()
    }

    fn text(&mut self) -> String {
        let pieces = [
            "", "a", "ß", "漢字", "🦀", "\"", "\\", "'", "\u{0}", "\n", "\u{7f}", "{}", "\u{ffff}",
        ];
        (0..self.0.random_range(0..6))
            .map(|_| self.one_of(&pieces))
            .collect()
    }

    fn millis(&mut self) -> WallMillis {
        let number = self.0.random();
        WallMillis(self.one_of(&[0, 1, -1, i64::MAX, i64::MIN, 1_790_000_000_000, number]))
    }

    fn record(&mut self, id: TransactionId) -> Record {
        use AbortCode as Code;
        use Part::{ReadOnly, Refused, Unanswered, Untouched, Updates};
        let printable: String = (b' '..=b'~').map(char::from).collect();
        let key = self.0.random_bool(0.5).then(|| KeyClaim {
            key: key(&format!(
                "{id} {}",
                &printable[..self.0.random_range(0..95)]
            )),
            request: BodyDigest(self.0.random()),
        });
        let code = self.one_of(&[
            Code::Refused,
            Code::Conflict,
            Code::Timeout,
            Code::Unreachable,
            Code::Requested,
            Code::WorkLost,
            Code::Duplicate,
            Code::CoordinatorRestarted,
            Code::Unrecorded,
        ]);
        let names = ["a", "east", "west-2"].map(|name| name.parse().unwrap());
        let reason = AbortReason {
            code,
            participant: self.0.random_bool(0.5).then(|| self.one_of(&names)),
            detail: self.0.random_bool(0.5).then(|| self.text()),
            winner: self.0.random_bool(0.2).then_some(id),
        };
        let verdict = if self.0.random_bool(0.5) {
            Verdict::Commit
        } else {
            Verdict::Abort(reason)
        };
        let parts = [Updates, ReadOnly, Refused, Unanswered, Untouched];
        let branches = (0..self.0.random_range(0..4))
            .map(|_| (self.one_of(&names), self.one_of(&parts)))
            .collect();
        let header = Header {
            id,
            key,
            labels: (0..self.0.random_range(0..5))
                .map(|_| (self.text(), self.text()))
                .collect(),
            created_at: self.millis(),
            deadline: self.millis(),
        };
        Record {
            header: Arc::new(header),
            decision: Decision { verdict, branches },
            decided_at: self.millis(),
            finished_at: self.0.random_bool(0.5).then(|| self.millis()),
        }
    }
}

/// Asks all claims of one backend.
macro_rules! contract {
    ($name:ident: $backend:ty) => {
        contract! { $name: $backend =>
            the_first_writer_wins
            of_one_transaction_in_one_batch_the_first_proposal_wins
            a_repeat_after_an_unclear_write_is_proposed
            a_write_whose_caller_went_away_is_whole_or_not_at_all
            a_key_has_one_transaction_and_a_loser_stores_nothing
            of_one_key_in_one_batch_the_first_proposal_wins
            records_without_a_key_do_not_collide
            one_bad_proposal_fails_alone
            a_bad_record_that_rides_along_fails_nothing
            a_proposal_of_another_life_is_refused
            a_new_epoch_fences_the_older_ones
            an_epoch_is_of_one_node
            an_epoch_opens_after_the_decisions_under_way
            a_node_is_adopted_once_it_was_not_marked_for_a_while
            whoever_is_fenced_marks_nothing
            neither_an_unknown_node_nor_one_of_a_log_that_went_back_is_adopted
            an_adoption_comes_after_the_decisions_under_way
            what_a_node_left_that_nobody_runs_is_shown_until_it_is_finished
            no_record_under_a_fenced_epoch_is_for_ever
            a_log_that_went_back_takes_nothing
            a_log_of_another_identity_takes_nothing
            a_writer_under_a_former_identity_is_fenced
            every_decision_write_is_counted
            unfinished_are_the_commits_that_somebody_must_be_told
            a_finish_is_kept_once
            what_rides_along_is_written_with_the_decision
            an_unforced_record_never_replaces_a_decision
            a_view_is_of_the_node_and_the_prefix_of_the_id
            many_keys_are_answered_in_their_order
            what_finished_before_is_forgotten_and_nothing_else
            forgetting_is_bounded_and_takes_the_oldest_finish_first
            each_prefix_has_its_own_forgotten_mark
            records_of_a_former_identity_are_kept
            whoever_is_fenced_forgets_nothing
            the_history_is_read_page_by_page_newest_first
            every_filter_finds_what_it_takes
            what_is_forgotten_is_in_no_list
            that_it_went_back_is_remembered_until_a_new_identity
            participants_are_kept_by_name
            a_participant_that_an_unfinished_record_names_stays
            whoever_is_fenced_changes_no_participant
            a_new_identity_keeps_records_and_raises_every_epoch
            another_process_finds_everything_there
            an_empty_batch_is_a_write
            a_record_is_read_as_it_was_written
        }
    };
    ($name:ident: $backend:ty => $($claim:ident)*) => {
        mod $name {
            use super::*;

            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $claim() {
                    claims::$claim::<$backend>().await;
                }
            )*
        }
    };
}

contract!(memory: InMemory);
contract!(sqlite: InSqlite);
contract!(postgres: InPostgres);

/// What only the double does: it fails as it is told.
mod the_memory_double {
    use super::{super::memory::Fault, *};

    async fn begin() -> (InMemory, Life) {
        let backend = InMemory::fresh().await;
        let life = Life::begin(&backend, NODE).await;
        (backend, life)
    }

    #[tokio::test]
    async fn an_unclear_write_is_whole_or_not_at_all_as_the_test_asks() {
        for (fault, is_visible, is_durable) in [
            (Fault::Before, false, false),
            (Fault::Visible, true, false),
            (Fault::Durable, true, true),
        ] {
            let (backend, mut life) = begin().await;
            let commit = life.commit();
            backend.0.fail_next(1, fault);
            let error = backend.0.decide(&life.writer, &batch([&commit])).await;
            assert!(matches!(error, Err(WriteError::Unavailable(_))));
            assert_eq!(stored(&*backend.0, &commit).await.is_some(), is_visible);
            backend.0.crash();
            assert_eq!(stored(&*backend.0, &commit).await.is_some(), is_durable);
        }
    }

    #[tokio::test]
    async fn a_repeat_makes_durable_what_was_only_visible() {
        let (backend, mut life) = begin().await;
        let commit = life.commit();
        backend.0.fail_next(1, Fault::Visible);
        backend
            .0
            .decide(&life.writer, &batch([&commit]))
            .await
            .unwrap_err();
        assert_eq!(
            life.decide(&*backend.0, [&commit]).await,
            [Standing::Proposed]
        );
        backend.0.crash();
        assert!(stored(&*backend.0, &commit).await.is_some());
    }

    #[tokio::test]
    async fn an_unforced_write_is_lost_in_a_crash_unless_a_forced_one_came_after_it() {
        let (backend, mut life) = begin().await;
        backend.0.let_appends_wait(true);
        for is_forced in [false, true] {
            let aborted = life.abort();
            let appends = Appends {
                records: vec![aborted.clone()],
                finishes: Vec::new(),
            };
            let appending = tokio::spawn({
                let (log, writer) = (Arc::clone(&backend.0), life.writer);
                async move { log.append(&writer, &appends).await }
            });
            while stored(&*backend.0, &aborted).await.is_none() {
                tokio::task::yield_now().await;
            }
            assert!(!appending.is_finished());
            if is_forced {
                let commit = life.commit();
                life.decide(&*backend.0, [&commit]).await;
            }
            backend.0.crash();
            assert_eq!(appending.await.unwrap().is_ok(), is_forced);
            assert_eq!(stored(&*backend.0, &aborted).await.is_some(), is_forced);
        }
    }

    #[tokio::test]
    async fn a_log_that_does_not_answer_answers_again_and_a_broken_one_never() {
        let (backend, mut life) = begin().await;
        let commit = life.commit();
        backend.0.set_answering(false);
        assert!(backend.0.look_up(commit.header.id).await.is_err());
        backend
            .0
            .decide(&life.writer, &batch([&commit]))
            .await
            .unwrap_err();
        backend.0.set_answering(true);
        assert_eq!(stored(&*backend.0, &commit).await, None);
        backend.0.fail_next(1, Fault::Broken);
        for _ in 0..2 {
            let broken = backend.0.decide(&life.writer, &batch([&commit])).await;
            assert!(matches!(broken, Err(WriteError::Broken(_))));
        }
    }
}

/// What only a file can do.
mod a_sqlite_file {
    use super::*;

    async fn refusal(path: &std::path::Path) -> OpenError {
        let Err(error) = SqliteLog::open(path).await else {
            panic!("{} was opened", path.display())
        };
        error
    }

    #[tokio::test]
    async fn has_one_process_and_another_is_told_which_file() {
        let mut backend = InSqlite::fresh().await;
        let path = backend.path().canonicalize().unwrap();
        let error = refusal(&path).await;
        assert!(matches!(error, OpenError::Held { .. }));
        let text = error.to_string();
        assert!(text.contains("another coordinator runs on"), "{text}");
        assert!(
            text.contains(&format!("it holds {}.lock", path.display())),
            "{text}"
        );
        // By another name too.
        #[cfg(unix)]
        {
            let link = backend.directory.path().join("link.sqlite");
            std::os::unix::fs::symlink(&path, &link).unwrap();
            assert!(matches!(refusal(&link).await, OpenError::Held { .. }));
        }
        backend.reopen().await;
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn is_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt as _;
        let backend = InSqlite::fresh().await;
        Life::begin(&backend, NODE).await;
        for file in std::fs::read_dir(backend.directory.path()).unwrap() {
            let file = file.unwrap();
            let mode = file.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{}", file.path().display());
        }
    }

    #[tokio::test]
    async fn of_somebody_else_is_refused_and_left_alone() {
        let mut backend = InSqlite::fresh().await;
        backend
            .run("PRAGMA application_id = 0; PRAGMA wal_checkpoint(TRUNCATE)")
            .await;
        backend.close().await;
        let before = std::fs::read(backend.path()).unwrap();
        let error = refusal(&backend.path()).await;
        assert!(matches!(error, OpenError::NotOurs { .. }), "{error:?}");
        assert!(
            error.to_string().contains("is not a decision log"),
            "{error}"
        );
        assert_eq!(std::fs::read(backend.path()).unwrap(), before);

        let text = "no database, but long enough to be one. ".repeat(100);
        std::fs::write(backend.path(), &text).unwrap();
        let error = refusal(&backend.path()).await;
        assert!(matches!(error, OpenError::NotOurs { .. }), "{error:?}");
        assert_eq!(std::fs::read_to_string(backend.path()).unwrap(), text);
    }

    #[tokio::test]
    async fn of_a_newer_program_is_refused() {
        let mut backend = InSqlite::fresh().await;
        let newer = "INSERT INTO _sqlx_migrations VALUES (9999, 'newer', 0, 1, x'00', 0)";
        backend.run(newer).await;
        backend.close().await;
        let error = refusal(&backend.path()).await;
        assert!(
            matches!(error, OpenError::Newer { version: 9999, .. }),
            "{error:?}"
        );
    }

    #[tokio::test]
    async fn in_no_directory_is_said_so() {
        let error = refusal(std::path::Path::new("/nowhere/at/all/unanimous.sqlite")).await;
        assert!(matches!(error, OpenError::File { .. }), "{error:?}");
        assert!(
            error
                .to_string()
                .contains("/nowhere/at/all/unanimous.sqlite"),
            "{error}"
        );
    }

    /// Design rule 10: what a process left in the WAL may not have been synced.
    #[tokio::test]
    async fn is_checkpointed_before_it_is_read() {
        let backend = InSqlite::fresh().await;
        let mut life = Life::begin(&backend, NODE).await;
        let commit = life.commit();
        life.decide(&*backend.log(), [&commit]).await;
        // As a process that was killed leaves it.
        let killed = InSqlite {
            log: None,
            directory: tempfile::tempdir().unwrap(),
        };
        let (wal, left) = (backend.path().with_extension("sqlite-wal"), killed.path());
        assert!(std::fs::metadata(&wal).unwrap().len() > 0);
        std::fs::copy(backend.path(), &left).unwrap();
        std::fs::copy(&wal, left.with_extension("sqlite-wal")).unwrap();

        let mut restarted = killed;
        restarted.open().await;
        let wal = std::fs::metadata(left.with_extension("sqlite-wal")).unwrap();
        assert_eq!(wal.len(), 0);
        assert_eq!(restarted.log().unfinished(NODE).await.unwrap(), [commit]);
    }

    #[tokio::test]
    async fn on_a_full_disk_is_unavailable_and_goes_on_when_there_is_room() {
        let backend = InSqlite::fresh().await;
        let log = backend.log();
        let mut life = Life::begin(&backend, NODE).await;
        let before = life.commit();
        life.decide(&*log, [&before]).await;
        backend.run("PRAGMA max_page_count = 1").await;
        let many = batch(&(0..500).map(|_| life.commit()).collect::<Vec<_>>());
        for _ in 0..2 {
            let full = log.decide(&life.writer, &many).await;
            assert!(matches!(full, Err(WriteError::Unavailable(_))), "{full:?}");
        }
        assert_eq!(stored(&*log, &many.proposals[0]).await, None);
        assert_eq!(log.unfinished(NODE).await.unwrap(), [before]);
        backend.run("PRAGMA max_page_count = 1000000").await;
        let standings = life.decide(&*log, &many.proposals).await;
        assert_eq!(standings, vec![Standing::Proposed; 500]);
    }

    /// A COMMIT that fails leaves its transaction open, as it does on a full disk.
    #[tokio::test]
    async fn has_nothing_left_open_after_a_commit_that_failed() {
        let backend = InSqlite::fresh().await;
        let log = backend.log();
        let mut life = Life::begin(&backend, NODE).await;
        let spoil = "PRAGMA foreign_keys = ON;
            CREATE TABLE spoil (of BLOB REFERENCES spoil (none) DEFERRABLE INITIALLY DEFERRED, none BLOB UNIQUE);
            CREATE TRIGGER spoil AFTER INSERT ON record BEGIN INSERT INTO spoil (of) VALUES (NEW.id); END;";
        backend.run(spoil).await;
        let [first, second] = [life.commit(), life.commit()];
        let failed = log.decide(&life.writer, &batch([&first])).await;
        assert!(
            matches!(failed, Err(WriteError::Unavailable(_))),
            "{failed:?}"
        );
        backend
            .run("PRAGMA foreign_keys = OFF; DROP TRIGGER spoil")
            .await;
        life.decide(&*log, [&second]).await;
        assert_eq!(stored(&*log, &first).await, None);
        assert_eq!(stored(&*log, &second).await, Some(second));
        assert_eq!(log.head(NODE).await.unwrap().decisions, 1);
    }

    #[tokio::test]
    async fn that_is_damaged_is_broken_for_good() {
        let backend = InSqlite::fresh().await;
        let log = backend.log();
        let mut life = Life::begin(&backend, NODE).await;
        let [commit, other] = [life.commit(), life.commit()];
        life.decide(&*log, [&commit]).await;
        backend
            .run("UPDATE record SET branches = 'not what we wrote'")
            .await;
        let broken = log.look_up(commit.header.id).await;
        assert!(
            matches!(broken, Err(super::super::LogError::Broken(_))),
            "{broken:?}"
        );
        // Nothing is said on the way out, and nothing decided.
        let broken = log.look_up(other.header.id).await;
        assert!(
            matches!(broken, Err(super::super::LogError::Broken(_))),
            "{broken:?}"
        );
        let broken = log.decide(&life.writer, &batch([&other])).await;
        assert!(matches!(broken, Err(WriteError::Broken(_))), "{broken:?}");
    }

    #[tokio::test]
    async fn does_not_grow_a_wal_without_end() {
        let backend = InSqlite::fresh().await;
        let log = backend.log();
        let mut life = Life::begin(&backend, NODE).await;
        let label = "x".repeat(16_000);
        for _ in 0..20 {
            let mut many: Vec<_> = (0..60).map(|_| life.commit()).collect();
            for record in &mut many {
                Arc::make_mut(&mut record.header)
                    .labels
                    .insert("long".into(), label.clone());
            }
            life.decide(&*log, &many).await;
        }
        // 20 MB were written, and some 4 MB are what is kept before a checkpoint.
        let wal = std::fs::metadata(backend.path().with_extension("sqlite-wal")).unwrap();
        assert!(wal.len() < 2_000 * 4_096, "{} bytes", wal.len());
    }

    #[tokio::test]
    async fn of_an_earlier_program_lists_the_records_that_are_there() {
        let mut backend = InSqlite::fresh().await;
        let mut life = Life::begin(&backend, NODE).await;
        let mut commit = life.commit();
        let labels = &mut Arc::make_mut(&mut commit.header).labels;
        labels.insert("k".to_owned(), "v".to_owned());
        life.decide(&*backend.log(), [&commit]).await;
        backend
            .run(
                "DROP TRIGGER record_indexed; DROP TRIGGER record_unindexed; DROP INDEX record_aborted;
                 DROP TABLE record_participant; DROP TABLE record_label;
                 DELETE FROM _sqlx_migrations WHERE version = 4",
            )
            .await;
        backend.reopen().await;
        let by_participant = Filter {
            participant: Some("west".parse().unwrap()),
            ..Filter::default()
        };
        let by_label = Filter {
            labels: vec![("k".to_owned(), "v".to_owned())],
            ..Filter::default()
        };
        for filter in [by_participant, by_label] {
            let found = backend.log().history(&filter, None, 10).await.unwrap();
            assert_eq!(found, std::slice::from_ref(&commit), "{filter:?}");
        }
    }

    #[tokio::test]
    async fn has_an_index_for_whatever_is_asked_of_its_records() {
        let backend = InSqlite::fresh().await;
        for (sql, step) in backend.sqlite().plans().await {
            let step = format!("{step} ");
            let scans = ["record", "own", "holder"].map(|table| format!("SCAN {table} "));
            let reads_all = scans.iter().any(|scan| step.starts_with(scan));
            assert!(
                !reads_all || step.contains("INDEX record_unfinished"),
                "{step}: {sql}"
            );
        }
    }
}
