//! The statements, all of them on records and epochs. What each is for is said where it is run.

/// Conditional on all that the writer believes (rule 11); raises the counter in the same statement. A repeat after an
/// unclear write changes this row again, so its commit has a frame to sync, whatever else it finds done.
pub(super) const FENCE: &str = "
UPDATE epoch SET decisions = decisions + 1
WHERE node = ?1 AND epoch = ?2 AND decisions >= ?3
  AND ?4 = (SELECT identity FROM log_identity ORDER BY ordinal DESC LIMIT 1)
RETURNING decisions";

/// Records as one JSON array, so that the statement is prepared once, whatever their number. Taken in their order, so
/// that of two with one key the first one wins.
macro_rules! insert {
    ($rows:literal) => {
        concat!(
            "INSERT INTO record (id, idempotency_key, request, labels, created_at, deadline, outcome, reason, branches,
                                 second_phase, decided_at, finished_at)
             SELECT unhex(p.value ->> 0), p.value ->> 1, unhex(p.value ->> 2), p.value ->> 3, p.value ->> 4,
                    p.value ->> 5, p.value ->> 6, p.value ->> 7, p.value ->> 8, p.value ->> 9, p.value ->> 10,
                    p.value ->> 11
             FROM json_each(",
            $rows,
            ") AS p WHERE true"
        )
    };
}

pub(super) const INSERT: &str = concat!(insert!("?1"), " ON CONFLICT DO NOTHING RETURNING id");

macro_rules! finish {
    ($finishes:literal) => {
        concat!(
            "UPDATE record SET finished_at = f.at
             FROM (SELECT unhex(value ->> 0) AS id, value ->> 1 AS at FROM json_each(",
            $finishes,
            ")) AS f WHERE record.id = f.id AND record.finished_at IS NULL"
        )
    };
}

pub(super) const FINISH: &str = finish!("?1");

/// For [`DECIDE`]: a view that nothing is in, and what is done instead of inserting into it. The connection's own, so they
/// are in no file. All is done or, where anything is not as it is believed to be, nothing: the fence lets nothing
/// through, the counter is another one, a record's id or key is there already, or a record is refused.
pub(super) const TO_DECIDE: [&str; 2] = [
    "CREATE TEMP VIEW decision AS
     SELECT NULL AS node, NULL AS epoch, NULL AS decisions, NULL AS identity, NULL AS records, NULL AS finishes",
    concat!(
        "CREATE TEMP TRIGGER decide INSTEAD OF INSERT ON decision BEGIN
            UPDATE epoch SET decisions = decisions + 1
            WHERE node = NEW.node AND epoch = NEW.epoch AND decisions = NEW.decisions
              AND NEW.identity = (SELECT identity FROM log_identity ORDER BY ordinal DESC LIMIT 1);
            SELECT RAISE(ABORT, 'the log is not as this writer believes') WHERE changes() <> 1; ",
        insert!("NEW.records"),
        "; ",
        finish!("NEW.finishes"),
        "; END"
    ),
];

/// A whole decision write: one statement in its own implicit transaction, and so one trip to SQLite's thread and one
/// answer. A trip costs more than the statements do.
pub(super) const DECIDE: &str = "
INSERT INTO decision (node, epoch, decisions, identity, records, finishes) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";

/// What is in the way of proposals that were not inserted.
pub(super) const STANDING: &str = "
SELECT own.outcome, own.reason, own.branches, holder.id AS holder
FROM json_each(?1) AS p
LEFT JOIN record AS own ON own.id = unhex(p.value ->> 0)
LEFT JOIN record AS holder ON holder.idempotency_key = p.value ->> 1
ORDER BY p.key";

pub(super) const HEAD: &str = "
SELECT (SELECT json_group_array(identity ORDER BY ordinal) FROM log_identity) AS identities,
       (SELECT epoch FROM epoch WHERE node = ?1) AS epoch,
       (SELECT decisions FROM epoch WHERE node = ?1) AS decisions";

/// One statement, so one snapshot.
pub(super) const LOOK_UP: &str = "
SELECT (SELECT json_group_array(identity ORDER BY ordinal) FROM log_identity) AS identities,
       (SELECT epoch FROM epoch WHERE node = ?2) AS epoch,
       (SELECT through FROM forgotten WHERE prefix = substr(?1, 1, 6)) AS forgotten_through,
       record.*
FROM (SELECT 1) LEFT JOIN record ON record.id = ?1";

pub(super) const BY_KEY: &str = "
SELECT record.*
FROM json_each(?1) AS k
CROSS JOIN record ON record.idempotency_key = k.value";

/// Bytes 5 and 6 of an id are its node, under whatever identity. The index has only what is unfinished.
pub(super) const UNFINISHED: &str = "
SELECT * FROM record INDEXED BY record_unfinished
WHERE second_phase = 1 AND finished_at IS NULL AND substr(id, 5, 2) = ?1
ORDER BY id";

pub(super) const PUT_PARTICIPANT: &str = "
INSERT INTO participant (name, url) VALUES (?1, ?2)
ON CONFLICT (name) DO UPDATE SET url = excluded.url";

/// Names hold nothing that a JSON path would take for its own.
pub(super) const IS_NAMED: &str = "
SELECT EXISTS (SELECT 1 FROM record INDEXED BY record_unfinished
               WHERE second_phase = 1 AND finished_at IS NULL
                 AND json_type(branches, '$.\"' || ?1 || '\"') IS NOT NULL)";

/// A page of the list, driven by an index that has its entries in the list's order. The filter's other members are
/// tried on what it yields. `?1` and `?2` are the place to go on after, `?3` is the limit.
macro_rules! page {
    ($driver:literal by $place:literal) => {
        concat!(
            "SELECT record.* FROM ",
            $driver,
            " AND (",
            $place,
            ".created_at, ",
            $place,
            ".id) < (?1, ?2)
              AND (?4 IS NULL OR json_type(record.branches, '$.\"' || ?4 || '\"') IS NOT NULL)
              AND (?5 IS NULL OR record.idempotency_key = ?5)
              AND (?6 IS NULL OR record.outcome = ?6)
              AND (?7 IS NULL OR (record.outcome = 'committed' AND record.finished_at IS NULL) = ?7)
              AND NOT EXISTS (SELECT 1 FROM json_each(?8) AS wanted WHERE NOT EXISTS (
                SELECT 1 FROM json_each(record.labels) AS label
                WHERE label.key = wanted.value ->> 0 AND label.value = wanted.value ->> 1))
            ORDER BY ",
            $place,
            ".created_at DESC, ",
            $place,
            ".id DESC LIMIT ?3"
        )
    };
}

pub(super) const PAGE_BY_KEY: &str = page!("record WHERE record.idempotency_key = ?5" by "record");
/// What is unfinished is little, and is sorted.
pub(super) const PAGE_UNFINISHED: &str = page!(
    "record INDEXED BY record_unfinished WHERE second_phase = 1 AND finished_at IS NULL" by "record"
);
pub(super) const PAGE_BY_LABEL: &str = page!(
    "record_label AS entry CROSS JOIN record ON record.id = entry.id
     WHERE entry.key = ?8 ->> '$[0][0]' AND entry.value = ?8 ->> '$[0][1]'" by "entry"
);
pub(super) const PAGE_BY_PARTICIPANT: &str = page!(
    "record_participant AS entry CROSS JOIN record ON record.id = entry.id
     WHERE entry.participant = ?4" by "entry"
);
pub(super) const PAGE_ABORTED: &str =
    page!("record INDEXED BY record_aborted WHERE outcome = 'aborted'" by "record");
pub(super) const PAGE_BY_TIME: &str =
    page!("record INDEXED BY record_by_time WHERE true" by "record");

/// What is due: of the present identity, oldest finish first. The same rows in the two statements that use it, for they
/// are in one transaction.
macro_rules! due {
    () => {
        "SELECT id FROM record INDEXED BY record_by_finish
         WHERE substr(id, 1, 4) = ?1 AND finished_at IS NOT NULL AND finished_at < ?2
         ORDER BY finished_at, id LIMIT ?3"
    };
}

/// The marks rise, in the transaction that deletes (rule 14).
pub(super) const MARK_FORGOTTEN: &str = concat!(
    "INSERT INTO forgotten (prefix, through) SELECT substr(id, 1, 6), max(id) FROM (",
    due!(),
    ") WHERE true GROUP BY substr(id, 1, 6)
     ON CONFLICT (prefix) DO UPDATE SET through = max(through, excluded.through)"
);

pub(super) const FORGET: &str = concat!("DELETE FROM record WHERE id IN (", due!(), ")");
