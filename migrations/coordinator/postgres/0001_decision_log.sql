-- Why: a transaction is committed when its record is in this database, and by nothing else. Several coordinators share
-- it. Everything that one of them may say after a restart it says from these four tables, so they hold the decisions,
-- and what shuts out a coordinator that must not decide any more: the log's identity, and an epoch for each node.
-- The schema `unanimous` and the table of its versions are made by the program before this file runs.

-- The identity that is in every id of this log. The highest ordinal is the present one; the others are kept, for ids
-- of them are still asked about after a restore from a backup.
CREATE TABLE unanimous.log_identity (
    ordinal  bigint NOT NULL PRIMARY KEY,
    identity bigint NOT NULL UNIQUE CHECK (identity BETWEEN 0 AND 4294967295)
);

-- One row for each node that ever opened an epoch here. Every write of a node locks its row, and so does who opens a
-- new epoch of it. `decisions` counts decision writes: a counter below one that a coordinator has seen tells it that
-- this database was put back to an earlier state.
CREATE TABLE unanimous.epoch (
    node      integer NOT NULL PRIMARY KEY CHECK (node BETWEEN 0 AND 65535),
    epoch     integer NOT NULL CHECK (epoch BETWEEN 1 AND 1073741823),
    decisions bigint  NOT NULL CHECK (decisions >= 0)
) WITH (fillfactor = 10); -- Changed by each write: its next versions find room on the same page.

-- One row for each transaction that ended, never changed but for `finished_at`. Labels, reason and branches are JSON
-- kept as text: jsonb takes no U+0000, and a record is read as it was written.
CREATE TABLE unanimous.record (
    id              uuid    NOT NULL PRIMARY KEY,
    -- Bytes 5 and 6 of the id.
    node            integer NOT NULL,
    idempotency_key text COLLATE "C",
    request         bytea   CHECK (octet_length(request) = 32),
    labels          text    NOT NULL,
    created_at      bigint  NOT NULL,
    deadline        bigint  NOT NULL,
    outcome         text    NOT NULL CHECK (outcome IN ('committed', 'aborted')),
    reason          text,
    branches        text    NOT NULL,
    -- True for a commit that has branches to tell: the only kind of record that is ever unfinished.
    second_phase    boolean NOT NULL,
    decided_at      bigint  NOT NULL,
    finished_at     bigint,
    CHECK ((idempotency_key IS NULL) = (request IS NULL)),
    CHECK ((outcome = 'aborted') = (reason IS NOT NULL))
);

-- A key belongs to one transaction. Most transactions have none, and cost nothing here.
CREATE UNIQUE INDEX record_by_key ON unanimous.record (idempotency_key) WHERE idempotency_key IS NOT NULL;

-- What recovery reads: as long as what is unfinished, not as long as the history.
CREATE INDEX record_unfinished ON unanimous.record (node, id) WHERE second_phase AND finished_at IS NULL;

-- The history, by time.
CREATE INDEX record_by_time ON unanimous.record (created_at, id);

-- Up to which id the records of a prefix (the first 48 bits of an id) may be gone.
CREATE TABLE unanimous.forgotten (
    prefix  bytea NOT NULL PRIMARY KEY CHECK (octet_length(prefix) = 6),
    through uuid  NOT NULL CHECK (substring(uuid_send(through) FROM 1 FOR 6) = prefix)
);
