-- Why: several coordinators share this database, and one of them may be asked to adopt the node of another that is gone.
-- It must not take it from one that lives, so whoever runs a node marks that from time to time, by this server's clock.
-- In the epoch's row, whose lock an adoption takes: mark and adoption can not miss each other. The mark only says when to
-- try; what keeps a decision safe is the epoch. Nodes that were there before count as seen now.
ALTER TABLE unanimous.epoch ADD COLUMN seen_at timestamptz NOT NULL DEFAULT clock_timestamp();
