-- Why: a transaction is committed when its record is in this database, and by nothing else. Several coordinators share
-- it. Everything that one of them may say after a restart it says from these tables, so they hold the decisions, and what
-- shuts out a coordinator that must not decide any more: the log's identity, and an epoch for each node.
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
-- kept as text: jsonb takes no U+0000, and a record is read as it was written. Labels are an array of pairs, so that
-- each of them can be taken out without its text being decoded.
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

-- What is due to be forgotten: as long as what is due. Records of a former identity are kept, so the identity (the
-- first four bytes of an id) comes first.
CREATE INDEX record_by_finish ON unanimous.record (substring(uuid_send(id) FROM 1 FOR 4), finished_at, id)
WHERE finished_at IS NOT NULL;

-- The history, newest first: by time, by outcome, by participant and by label. A page costs as much as the page, however
-- long the history is, so each of these has its entries in the order of the list. They are written and deleted by the
-- very statements that write and delete records.
CREATE INDEX record_by_time ON unanimous.record (created_at, id);

CREATE INDEX record_aborted ON unanimous.record (created_at, id) WHERE outcome = 'aborted';

CREATE TABLE unanimous.record_participant (
    participant text COLLATE "C" NOT NULL,
    created_at  bigint NOT NULL,
    id          uuid   NOT NULL,
    PRIMARY KEY (participant, created_at, id)
);

-- By a digest of key and value, for there is a limit to what an index takes.
CREATE TABLE unanimous.record_label (
    digest     bytea  NOT NULL CHECK (octet_length(digest) = 32),
    created_at bigint NOT NULL,
    id         uuid   NOT NULL,
    PRIMARY KEY (digest, created_at, id)
);

-- Up to which id the records of a prefix (the first 48 bits of an id) may be gone.
CREATE TABLE unanimous.forgotten (
    prefix  bytea NOT NULL PRIMARY KEY CHECK (octet_length(prefix) = 6),
    through uuid  NOT NULL CHECK (substring(uuid_send(through) FROM 1 FOR 6) = prefix)
);

-- Participants that are registered while a coordinator runs. Addresses stand here and in the configuration, and in no
-- transaction's record: stored data never chooses what is called.
CREATE TABLE unanimous.participant (
    name text COLLATE "C" NOT NULL PRIMARY KEY,
    url  text NOT NULL
);

-- Why somebody found that this log went back: at most one row, until there is a new identity. It outlives every
-- coordinator, but it goes with the next restore, as all that is in this database.
CREATE TABLE unanimous.went_back (
    one bigint NOT NULL PRIMARY KEY CHECK (one = 1),
    why text   NOT NULL
);
