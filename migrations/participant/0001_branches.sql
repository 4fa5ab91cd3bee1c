-- What a participant promised, in its own database. A branch's state is its row: every message inserts the row or locks
-- it, and the service's work is in the same transaction, so that neither is ever there without the other.
-- The schema `unanimous` and the table of its version are made by the crate before this file runs.

CREATE TABLE unanimous.branches (
    -- The name as the prepare gave it, not as the service is configured now: inquiries ask by it.
    participant    text COLLATE "C" NOT NULL,
    transaction    uuid        NOT NULL,
    -- `working` is never committed: it is what a row says while the transaction that inserted it runs.
    state          text        NOT NULL CHECK (state IN
        ('working', 'prepared', 'committed', 'refused', 'aborted', 'tombstone')),
    -- To the letter as received: through numbers, money would be rounded.
    operations     text,
    -- Added by interactive work, run after `operations`.
    added          text,
    -- Of `operations`: tells a repeated prepare from a changed one.
    digest         bytea,
    -- The places of the operations that voted yes, in `operations` and `added` as one list: only they are committed.
    voted_yes      int[]       NOT NULL DEFAULT '{}',
    -- How many rows of keys go with the outcome.
    keys_held      int         NOT NULL DEFAULT 0,
    refusal_code   text,
    refusal_reason text,
    since          timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (participant, transaction),
    CHECK (state NOT IN ('prepared', 'committed', 'refused') OR digest IS NOT NULL),
    CHECK ((state = 'refused') = (refusal_code IS NOT NULL))
) WITH (fillfactor = 70); -- Room on the page for the outcome's version of the row.

-- What is in doubt, without reading what is settled.
CREATE INDEX branches_in_doubt ON unanimous.branches (transaction, participant) WHERE state = 'prepared';

-- Lists of branches are in the order of their ids.
CREATE INDEX branches_by_id ON unanimous.branches (transaction, participant);

-- Every transaction of the prefix below the mark has ended, and its row, if there was one, may be gone: a missing row
-- below it is never taken for one that was never there. One for each prefix (log identity and node: the first 48 bits of
-- its ids), stored by the same local transaction that drops rows below it.
CREATE TABLE unanimous.low_water (
    prefix bigint PRIMARY KEY,
    mark   uuid   NOT NULL
);

-- A key is held exclusively from its branch's prepare until its outcome. The primary key is the lock: it holds between
-- several processes of one service, and over a restart.
-- A service that was renamed takes a key under each of its names, one row for each: a process that still runs under a
-- former name takes it under that one, and so the two exclude each other whichever of them comes first.
CREATE TABLE unanimous.keys (
    -- The name under which it is taken: the branch's own, or a former one of its service.
    participant    text COLLATE "C" NOT NULL,
    key            text COLLATE "C" NOT NULL,
    transaction    uuid        NOT NULL,
    -- With the transaction, the branch that holds it: `participant` in that branch's row.
    held_by        text COLLATE "C" NOT NULL,
    -- With the id, the holder's age: who is younger gives way.
    begun_at_ms    bigint      NOT NULL,
    PRIMARY KEY (participant, key)
);

CREATE INDEX keys_by_transaction ON unanimous.keys (transaction);
