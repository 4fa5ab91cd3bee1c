-- Every message writes the row of its branch twice, and each index has to follow. Two of the three held the same two columns
-- in another order: one is enough, in the order of ids, in which lists are read and marks speak.
-- The table is locked meanwhile; it is small where coordinators tell their low-water marks.

ALTER TABLE unanimous.branches DROP CONSTRAINT branches_pkey, ADD PRIMARY KEY (transaction, participant);
DROP INDEX unanimous.branches_by_id;
