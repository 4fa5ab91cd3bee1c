//! The statements. Each is one implicit transaction, but for a new identity and a participant's removal, which lock all
//! nodes first: it commits with no word more from us, so nobody can freeze while holding a lock. The search path is `pg_catalog`, and tables are named in full.

/// The columns of a record, each as an array from $5 on: the statement is prepared once, whatever their number.
/// Proposals come before what rides along, and `at` is their place.
macro_rules! rows {
    () => {
        "unnest($5::text[], $6::int[], $7::text[], $8::bytea[], $9::text[], $10::bigint[], $11::bigint[],
                $12::text[], $13::text[], $14::text[], $15::boolean[], $16::bigint[], $17::bigint[])
         WITH ORDINALITY AS p (id, node, idempotency_key, request, labels, created_at, deadline, outcome, reason,
                               branches, second_phase, decided_at, finished_at, at)"
    };
}

/// What follows the fence. Rows are inserted in key order, so that two coordinators with the same keys in their batches
/// wait for each other in one direction only; of one key, and of one transaction, the first of the batch is inserted.
/// Nothing here sees what its siblings wrote: a finish is of a record that was there before.
macro_rules! writes {
    () => {
        concat!(
            ", inserted AS (
    INSERT INTO unanimous.record (id, node, idempotency_key, request, labels, created_at, deadline, outcome, reason,
                                  branches, second_phase, decided_at, finished_at)
    SELECT p.id::uuid, p.node, p.idempotency_key, p.request, p.labels, p.created_at, p.deadline, p.outcome, p.reason,
           p.branches, p.second_phase, p.decided_at, p.finished_at
    FROM fence CROSS JOIN ",
            rows!(),
            "
    ORDER BY p.idempotency_key COLLATE \"C\" NULLS LAST, p.at
    ON CONFLICT DO NOTHING
    RETURNING id, created_at, labels, branches
), named AS (
    INSERT INTO unanimous.record_participant (participant, created_at, id)
    SELECT name, inserted.created_at, inserted.id
    FROM inserted CROSS JOIN json_object_keys(inserted.branches::json) AS name
), labelled AS (
    INSERT INTO unanimous.record_label (digest, created_at, id)
    SELECT sha256(convert_to(label::text, 'UTF8')), inserted.created_at, inserted.id
    FROM inserted CROSS JOIN json_array_elements(inserted.labels::json) AS label
), finished AS (
    UPDATE unanimous.record SET finished_at = f.at
    FROM fence, unnest($18::text[], $19::bigint[]) AS f (id, at)
    WHERE record.id = f.id::uuid AND record.finished_at IS NULL
)
SELECT fence.decisions, ARRAY(SELECT inserted.id::text FROM inserted) AS inserted FROM fence"
        )
    };
}

/// What a writer believes, as a condition on its node's row. When the row was changed while we waited for its lock, the
/// condition is asked again of the new version: a new epoch has another number there, and a new identity raises all.
macro_rules! fence {
    () => {
        "WHERE node = $1 AND epoch = $2 AND decisions >= $3
      AND $4 = (SELECT identity FROM unanimous.log_identity ORDER BY ordinal DESC LIMIT 1)"
    };
}

/// Raises the counter, so a repeat after an unclear write has something to commit, whatever else it finds done.
pub(super) const DECIDE: &str = concat!(
    "WITH fence AS (
    UPDATE unanimous.epoch SET decisions = decisions + 1
    ",
    fence!(),
    " RETURNING decisions
)",
    writes!()
);

/// Leaves the counter, for it counts what was forced. The lock on the row is itself a change that the commit flushes.
pub(super) const APPEND: &str = concat!(
    "WITH fence AS MATERIALIZED (
    SELECT decisions FROM unanimous.epoch
    ",
    fence!(),
    " FOR UPDATE
)",
    writes!()
);

/// What is due goes, with its entries, and the marks rise (rule 14). Of what another coordinator is just forgetting this
/// one leaves the rest to that one. `MATERIALIZED`, so that the entries are found by all their columns. Marks rise in one order everywhere.
pub(super) const FORGET: &str = concat!(
    "WITH fence AS MATERIALIZED (
    SELECT node FROM unanimous.epoch
    ",
    fence!(),
    " FOR UPDATE
), due AS MATERIALIZED (
    SELECT record.id FROM unanimous.record
    WHERE substring(uuid_send(record.id) FROM 1 FOR 4) = $5 AND record.finished_at IS NOT NULL
      AND record.finished_at < $6 AND EXISTS (SELECT FROM fence)
    ORDER BY record.finished_at, record.id LIMIT $7
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM unanimous.record USING due WHERE record.id = due.id
    RETURNING record.id, record.created_at, record.labels, record.branches
), name AS MATERIALIZED (
    SELECT name AS participant, gone.created_at, gone.id
    FROM gone CROSS JOIN json_object_keys(gone.branches::json) AS name
), unnamed AS (
    DELETE FROM unanimous.record_participant AS entry USING name
    WHERE entry.participant = name.participant AND entry.created_at = name.created_at AND entry.id = name.id
), label AS MATERIALIZED (
    SELECT sha256(convert_to(label::text, 'UTF8')) AS digest, gone.created_at, gone.id
    FROM gone CROSS JOIN json_array_elements(gone.labels::json) AS label
), unlabelled AS (
    DELETE FROM unanimous.record_label AS entry USING label
    WHERE entry.digest = label.digest AND entry.created_at = label.created_at AND entry.id = label.id
), marked AS (
    INSERT INTO unanimous.forgotten AS mark (prefix, through)
    SELECT DISTINCT ON (1) substring(uuid_send(gone.id) FROM 1 FOR 6), gone.id FROM gone
    ORDER BY 1, gone.id DESC
    ON CONFLICT (prefix) DO UPDATE SET through = GREATEST(mark.through, excluded.through)
)
SELECT (SELECT count(*) FROM gone) FROM fence"
);

/// A row that this statement inserted was never locked or deleted by anybody.
pub(super) const PUT_PARTICIPANT: &str = concat!(
    "WITH fence AS MATERIALIZED (
    SELECT node FROM unanimous.epoch
    ",
    fence!(),
    " FOR UPDATE
)
INSERT INTO unanimous.participant (name, url) SELECT $5, $6 FROM fence
ON CONFLICT (name) DO UPDATE SET url = excluded.url
RETURNING xmax = 0"
);

/// The entry is looked for once for each unfinished record: those are few, and the records that ever named a
/// participant are not.
pub(super) const IS_NAMED: &str = "
SELECT coalesce(bool_or((
    SELECT true FROM unanimous.record_participant AS named
    WHERE named.participant = $1 AND named.created_at = record.created_at AND named.id = record.id
)), false)
FROM unanimous.record
WHERE record.second_phase AND record.finished_at IS NULL";

pub(super) const REMOVE_PARTICIPANT: &str = "DELETE FROM unanimous.participant WHERE name = $1";

pub(super) const IS_REGISTERED: &str =
    "SELECT EXISTS (SELECT FROM unanimous.participant WHERE name = $1)";

pub(super) const PARTICIPANTS: &str = "SELECT name, url FROM unanimous.participant ORDER BY name";

pub(super) const WENT_BACK: &str = "SELECT why FROM unanimous.went_back";

pub(super) const REMEMBER_THAT_IT_WENT_BACK: &str = "
INSERT INTO unanimous.went_back (one, why) VALUES (1, $1)
ON CONFLICT (one) DO UPDATE SET why = excluded.why";

pub(super) const DID_NOT_GO_BACK: &str = "DELETE FROM unanimous.went_back";

/// What is in the way of proposals that were not inserted. A statement of its own, after the write: `ON CONFLICT` sees
/// rows that the snapshot of its own statement does not have.
pub(super) const STANDING: &str = "
SELECT own.outcome, own.reason, own.branches, holder.id::text AS holder
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS p (id, idempotency_key, at)
LEFT JOIN unanimous.record AS own ON own.id = p.id::uuid
LEFT JOIN unanimous.record AS holder ON holder.idempotency_key = p.idempotency_key
ORDER BY p.at";

/// Waits for the row's lock, which every write of this node holds until its commit.
pub(super) const OPEN_EPOCH: &str = "
INSERT INTO unanimous.epoch AS e (node, epoch, decisions) VALUES ($1, 1, 0)
ON CONFLICT (node) DO UPDATE SET epoch = e.epoch + 1, seen_at = clock_timestamp()
RETURNING epoch, decisions";

/// The clock is read once the row's lock is held.
pub(super) const MARK: &str = concat!(
    "UPDATE unanimous.epoch SET seen_at = clock_timestamp()
    ",
    fence!()
);

/// Waits for the row's lock as [`OPEN_EPOCH`] does. When its owner marked or opened it meanwhile, the condition is asked
/// again of the new version.
pub(super) const ADOPT: &str = "
UPDATE unanimous.epoch SET epoch = epoch + 1, seen_at = clock_timestamp()
WHERE node = $1 AND ($2::bigint IS NULL OR seen_at <= clock_timestamp() - $2::bigint * interval '1 millisecond')
  AND NOT EXISTS (SELECT FROM unanimous.went_back)
RETURNING epoch, decisions";

pub(super) const WHY_NOT_ADOPTED: &str = "
SELECT EXISTS (SELECT FROM unanimous.went_back) AS went_back,
       EXISTS (SELECT FROM unanimous.epoch WHERE node = $1) AS known";

pub(super) const ABANDONED: &str = "
SELECT epoch.node, left_over.unfinished,
       (extract(epoch FROM clock_timestamp() - epoch.seen_at) * 1000)::bigint AS unseen_for
FROM unanimous.epoch CROSS JOIN LATERAL (
    SELECT count(*) AS unfinished FROM unanimous.record
    WHERE record.node = epoch.node AND record.second_phase AND record.finished_at IS NULL
) AS left_over
WHERE epoch.seen_at <= clock_timestamp() - $1::bigint * interval '1 millisecond' AND left_over.unfinished > 0
ORDER BY epoch.node";

/// The lock waits for every write under way, of decisions and epochs alike, and holds off new ones.
pub(super) const LOCK_EPOCHS: &str = "LOCK TABLE unanimous.epoch IN EXCLUSIVE MODE";

pub(super) const ADD_IDENTITY: &str = "
INSERT INTO unanimous.log_identity (ordinal, identity)
SELECT max(ordinal) + 1, $1 FROM unanimous.log_identity";

pub(super) const RAISE_EPOCHS: &str = "UPDATE unanimous.epoch SET epoch = epoch + 1";

pub(super) const FIRST_IDENTITY: &str = "
INSERT INTO unanimous.log_identity (ordinal, identity)
SELECT 1, $1 WHERE NOT EXISTS (SELECT FROM unanimous.log_identity)";

/// A write that changes nothing: its commit flushes and replicates all that was committed before it. It locks nothing
/// and leaves nothing behind.
pub(super) const FLUSH: &str = "SELECT pg_logical_emit_message(true, 'unanimous', ''::text)::text";

pub(super) const NODES: &str = "SELECT node FROM unanimous.epoch ORDER BY node";

pub(super) const HEAD: &str = "
SELECT (SELECT array_agg(identity ORDER BY ordinal) FROM unanimous.log_identity) AS identities,
       (SELECT epoch FROM unanimous.epoch WHERE node = $1) AS epoch,
       (SELECT decisions FROM unanimous.epoch WHERE node = $1) AS decisions";

macro_rules! record {
    () => {
        "record.id::text AS id, record.idempotency_key, record.request, record.labels, record.created_at,
         record.deadline, record.reason, record.branches, record.decided_at, record.finished_at"
    };
}

/// One statement, so one snapshot.
pub(super) const LOOK_UP: &str = concat!(
    "
SELECT (SELECT array_agg(identity ORDER BY ordinal) FROM unanimous.log_identity) AS identities,
       (SELECT epoch FROM unanimous.epoch WHERE node = $2) AS epoch,
       (SELECT through::text FROM unanimous.forgotten WHERE prefix = $3) AS forgotten_through,
       ",
    record!(),
    "
FROM (SELECT 1) AS one LEFT JOIN unanimous.record ON record.id = $1::uuid"
);

pub(super) const BY_KEY: &str = concat!(
    "SELECT ",
    record!(),
    "
FROM unnest($1::text[]) AS k (idempotency_key)
JOIN unanimous.record ON record.idempotency_key = k.idempotency_key"
);

pub(super) const UNFINISHED: &str = concat!(
    "SELECT ",
    record!(),
    " FROM unanimous.record
WHERE node = $1 AND second_phase AND finished_at IS NULL
ORDER BY record.id"
);

/// A page of the list, driven by an index that has its entries in the list's order. The filter's other members are
/// tried on what it yields. `$1` and `$2` are the place to go on after, `$3` is the limit. Entries are asked for by scalar
/// subqueries, for of `EXISTS` the server may make a table of all there are.
macro_rules! page {
    ($driver:literal by $place:literal) => {
        concat!(
            "SELECT ",
            record!(),
            " FROM ",
            $driver,
            " AND (",
            $place,
            ".created_at, ",
            $place,
            ".id) < ($1, $2::text::uuid)
  AND ($4::text IS NULL OR (
    SELECT true FROM unanimous.record_participant AS named
    WHERE named.participant = $4 AND named.created_at = record.created_at AND named.id = record.id))
  AND ($5::text IS NULL OR record.idempotency_key = $5)
  AND ($6::text IS NULL OR record.outcome = $6)
  AND ($7::boolean IS NULL OR (record.outcome = 'committed' AND record.finished_at IS NULL) = $7)
  AND NOT EXISTS (SELECT FROM unnest($8::text[]) AS wanted (label) WHERE (
    SELECT true FROM unanimous.record_label AS labelled
    WHERE labelled.digest = sha256(convert_to(wanted.label, 'UTF8'))
      AND labelled.created_at = record.created_at AND labelled.id = record.id) IS NULL)
ORDER BY ",
            $place,
            ".created_at DESC, ",
            $place,
            ".id DESC LIMIT $3"
        )
    };
}

pub(super) const PAGE_BY_KEY: &str =
    page!("unanimous.record WHERE record.idempotency_key = $5" by "record");

/// What is unfinished is little, and is sorted: without `OFFSET` the history might be read instead, in its order.
pub(super) const PAGE_UNFINISHED: &str = page!(
    "(SELECT * FROM unanimous.record WHERE second_phase AND finished_at IS NULL OFFSET 0) AS record
WHERE true" by "record"
);

pub(super) const PAGE_BY_LABEL: &str = page!(
    "unanimous.record_label AS entry JOIN unanimous.record ON record.id = entry.id
WHERE entry.digest = sha256(convert_to(($8::text[])[1], 'UTF8'))" by "entry"
);

pub(super) const PAGE_BY_PARTICIPANT: &str = page!(
    "unanimous.record_participant AS entry JOIN unanimous.record ON record.id = entry.id
WHERE entry.participant = $4" by "entry"
);

pub(super) const PAGE_ABORTED: &str =
    page!("unanimous.record WHERE record.outcome = 'aborted'" by "record");

pub(super) const PAGE_BY_TIME: &str = page!("unanimous.record WHERE true" by "record");
