//! The statements. Each is one implicit transaction: it commits with no word more from us, so nobody can freeze while
//! holding a lock. The search path is `pg_catalog`, and tables are named in full.

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
    RETURNING id
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
ON CONFLICT (node) DO UPDATE SET epoch = e.epoch + 1
RETURNING epoch, decisions";

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
