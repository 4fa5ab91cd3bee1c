//! SQLite's result codes: which mean that nothing may be believed any more, and which refuse a statement.

/// SQLite's result codes that are told apart here (sqlite.org/rescode.html).
pub(super) mod code {
    pub(in crate::log::sqlite) const ERROR: i32 = 1;
    pub(in crate::log::sqlite) const IOERR: i32 = 10;
    pub(in crate::log::sqlite) const CORRUPT: i32 = 11;
    pub(in crate::log::sqlite) const TOOBIG: i32 = 18;
    pub(in crate::log::sqlite) const CONSTRAINT: i32 = 19;
    pub(in crate::log::sqlite) const MISMATCH: i32 = 20;
    pub(in crate::log::sqlite) const MISUSE: i32 = 21;
    pub(in crate::log::sqlite) const NOTADB: i32 = 26;

    pub(in crate::log::sqlite) const IOERR_UNLOCK: i32 = extended(IOERR, 8);
    pub(in crate::log::sqlite) const IOERR_RDLOCK: i32 = extended(IOERR, 9);
    pub(in crate::log::sqlite) const IOERR_NOMEM: i32 = extended(IOERR, 12);
    pub(in crate::log::sqlite) const IOERR_CHECKRESERVEDLOCK: i32 = extended(IOERR, 14);
    pub(in crate::log::sqlite) const IOERR_LOCK: i32 = extended(IOERR, 15);
    pub(in crate::log::sqlite) const IOERR_SHMOPEN: i32 = extended(IOERR, 18);
    pub(in crate::log::sqlite) const IOERR_SHMSIZE: i32 = extended(IOERR, 19);
    pub(in crate::log::sqlite) const IOERR_SHMLOCK: i32 = extended(IOERR, 20);
    pub(in crate::log::sqlite) const IOERR_SHMMAP: i32 = extended(IOERR, 21);
    /// The file was moved or removed under us: what is written now is in no file that a restart would open.
    pub(in crate::log::sqlite) const READONLY_DBMOVED: i32 = extended(8, 4);

    const fn extended(primary: i32, detail: i32) -> i32 {
        primary | detail << 8
    }
}

/// SQLite's extended result code.
pub(in crate::log) fn sqlite_code(error: &sqlx::Error) -> Option<i32> {
    error.as_database_error()?.code()?.parse().ok()
}

/// Whether nothing may be believed any more after this result code.
pub(in crate::log) fn is_broken(extended: i32) -> bool {
    match extended {
        // Not a word about the data: a lock, memory, the shared index of the WAL.
        code::IOERR_UNLOCK
        | code::IOERR_RDLOCK
        | code::IOERR_NOMEM
        | code::IOERR_CHECKRESERVEDLOCK
        | code::IOERR_LOCK
        | code::IOERR_SHMOPEN
        | code::IOERR_SHMSIZE
        | code::IOERR_SHMLOCK
        | code::IOERR_SHMMAP => false,
        code::READONLY_DBMOVED => true,
        _ => match extended & 0xff {
            // Every other I/O error, fsync's above all, may have lost what was written before (rule 10).
            code::IOERR | code::CORRUPT | code::NOTADB => true,
            // Our own statements do not fail so on our own schema, and will not when repeated.
            code::ERROR | code::MISUSE => true,
            // Full disk, busy file, no more descriptors, mounted read-only: somebody can help, and it goes on.
            _ => false,
        },
    }
}

/// Whether SQLite says of a statement, and of nothing else, that its values can not be stored.
pub(super) fn is_refusal(error: &sqlx::Error) -> bool {
    sqlite_code(error).is_some_and(|extended| {
        matches!(
            extended & 0xff,
            code::CONSTRAINT | code::TOOBIG | code::MISMATCH
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the numbers of sqlite.org/rescode.html, which are not the constants above.
    #[test]
    fn a_failed_fsync_ends_the_process_and_a_full_disk_does_not() {
        let [ioerr_write, ioerr_fsync, ioerr_dir_fsync] = [778, 1034, 1290];
        let [corrupt, corrupt_index, notadb, readonly_dbmoved] = [11, 779, 26, 1032];
        for extended in [
            ioerr_write,
            ioerr_fsync,
            ioerr_dir_fsync,
            10,
            corrupt,
            corrupt_index,
        ] {
            assert!(is_broken(extended), "{extended}");
        }
        assert!(is_broken(notadb) && is_broken(readonly_dbmoved));
        let [busy, busy_snapshot, locked, nomem, readonly, full, cantopen] =
            [5, 517, 6, 7, 8, 13, 14];
        let [
            ioerr_nomem,
            ioerr_lock,
            ioerr_shmmap,
            constraint_foreign_key,
        ] = [3082, 3850, 5386, 787];
        for extended in [busy, busy_snapshot, locked, nomem, readonly, full, cantopen] {
            assert!(!is_broken(extended), "{extended}");
        }
        for extended in [
            ioerr_nomem,
            ioerr_lock,
            ioerr_shmmap,
            constraint_foreign_key,
        ] {
            assert!(!is_broken(extended), "{extended}");
        }
    }
}
