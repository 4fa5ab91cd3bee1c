-- Why: a finished transaction is forgotten once its retention is over. Finding what is due must cost as much as what is
-- due, not as the history; and records of a former identity are kept, so the identity (the first four bytes of an id)
-- comes first.
CREATE INDEX record_by_finish ON record (substr(id, 1, 4), finished_at) WHERE finished_at IS NOT NULL;
