-- Why: an operator looks for transactions by participant, by label, by outcome, and the newest come first. A page must
-- cost as much as the page, however long the history is, so each of these has entries in the order of the list.
-- They are kept by triggers, so that no record is ever without them. A label costs an entry, a branch costs one, an abort
-- costs one; a commit pays for nothing else.
CREATE TABLE record_participant (
    participant TEXT    NOT NULL,
    created_at  INTEGER NOT NULL,
    id          BLOB    NOT NULL,
    PRIMARY KEY (participant, created_at, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE record_label (
    key        TEXT    NOT NULL,
    value      TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    id         BLOB    NOT NULL,
    PRIMARY KEY (key, value, created_at, id)
) STRICT, WITHOUT ROWID;

CREATE INDEX record_aborted ON record (created_at, id) WHERE outcome = 'aborted';

INSERT INTO record_participant
SELECT branch.key, record.created_at, record.id FROM record, json_each(record.branches) AS branch;

INSERT INTO record_label
SELECT label.key, label.value, record.created_at, record.id FROM record, json_each(record.labels) AS label;

CREATE TRIGGER record_indexed AFTER INSERT ON record BEGIN
    INSERT INTO record_participant SELECT key, NEW.created_at, NEW.id FROM json_each(NEW.branches);
    INSERT INTO record_label SELECT key, value, NEW.created_at, NEW.id FROM json_each(NEW.labels);
END;

CREATE TRIGGER record_unindexed AFTER DELETE ON record BEGIN
    DELETE FROM record_participant
    WHERE participant IN (SELECT key FROM json_each(OLD.branches)) AND created_at = OLD.created_at AND id = OLD.id;
    DELETE FROM record_label
    WHERE (key, value) IN (SELECT key, value FROM json_each(OLD.labels)) AND created_at = OLD.created_at AND id = OLD.id;
END;
