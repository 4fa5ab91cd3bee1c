-- Why: a transaction is committed when its record is in this file, and by nothing else. Everything a coordinator may
-- say after a restart it says from these four tables, so they hold the decisions, and what shuts out a coordinator that
-- must not decide any more: the log's identity, and an epoch for each node.

-- The identity that is in every id of this log. The highest ordinal is the present one; the others are kept, for ids
-- of them are still asked about after a restore from a backup.
CREATE TABLE log_identity (
    ordinal  INTEGER NOT NULL PRIMARY KEY,
    identity INTEGER NOT NULL UNIQUE CHECK (identity BETWEEN 0 AND 4294967295)
) STRICT;

-- One row for each node that ever opened an epoch here. `decisions` counts decision writes: a counter below one that a
-- coordinator has seen tells it that this file was put back to an earlier state.
CREATE TABLE epoch (
    node      INTEGER NOT NULL PRIMARY KEY CHECK (node BETWEEN 0 AND 65535),
    epoch     INTEGER NOT NULL CHECK (epoch BETWEEN 1 AND 1073741823),
    decisions INTEGER NOT NULL CHECK (decisions >= 0)
) STRICT;

-- One row for each transaction that ended, never changed but for `finished_at`. The id's bytes are in the order in
-- which a coordinator draws them, so without a rowid the inserts go to the end of the one tree there is.
CREATE TABLE record (
    id              BLOB    NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    idempotency_key TEXT,
    request         BLOB    CHECK (length(request) = 32),
    labels          TEXT    NOT NULL,
    created_at      INTEGER NOT NULL,
    deadline        INTEGER NOT NULL,
    outcome         TEXT    NOT NULL CHECK (outcome IN ('committed', 'aborted')),
    reason          TEXT,
    branches        TEXT    NOT NULL,
    -- 1 for a commit that has branches to tell: the only kind of record that is ever unfinished.
    second_phase    INTEGER NOT NULL CHECK (second_phase IN (0, 1)),
    decided_at      INTEGER NOT NULL,
    finished_at     INTEGER,
    CHECK ((idempotency_key IS NULL) = (request IS NULL)),
    CHECK ((outcome = 'aborted') = (reason IS NOT NULL))
) STRICT, WITHOUT ROWID;

-- A key belongs to one transaction. Most transactions have none, and cost nothing here.
CREATE UNIQUE INDEX record_by_key ON record (idempotency_key) WHERE idempotency_key IS NOT NULL;

-- What recovery reads: as long as what is unfinished, not as long as the history.
CREATE INDEX record_unfinished ON record (id) WHERE second_phase = 1 AND finished_at IS NULL;

-- The history, by time.
CREATE INDEX record_by_time ON record (created_at, id);

-- Up to which id the records of a prefix (the first 48 bits of an id) may be gone.
CREATE TABLE forgotten (
    prefix  BLOB NOT NULL PRIMARY KEY CHECK (length(prefix) = 6),
    through BLOB NOT NULL CHECK (length(through) = 16 AND substr(through, 1, 6) = prefix)
) STRICT, WITHOUT ROWID;
