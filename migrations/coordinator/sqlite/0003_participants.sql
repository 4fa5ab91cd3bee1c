-- Why: participants that are registered while the coordinator runs must still be there after a restart, or the branches
-- of unfinished transactions would wait for an operator. Addresses stand here and in the configuration, and in no
-- transaction's record: stored data never chooses what is called.
CREATE TABLE participant (
    name TEXT NOT NULL PRIMARY KEY,
    url  TEXT NOT NULL
) STRICT, WITHOUT ROWID;
