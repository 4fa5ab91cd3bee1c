//! What one search is about: how many branches and lives there are, what services may answer, and how often what fails.

/// What a service may answer to prepare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// Yes; on a good day. It may refuse, too.
    YesOrNo,
    /// Yes, always.
    Yes,
    /// Read-only, and yes to a later duplicate of the same prepare, which finds something to do.
    ReadOnlyOrYes,
    /// Read-only, always.
    ReadOnly,
    /// Yes, unless the prepare comes after its deadline.
    YesOrLate,
}

/// How transactions begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// It names the branches and asks for the commit at once.
    Commits,
    /// The same under one idempotency key, which it sends to whichever coordinator there is, again and again.
    Repeats,
    /// It begins, works at the services, which enlist themselves, and asks for the commit when it likes.
    Interacts,
}

/// Bounds of one search. Within them everything is tried; nothing limits its depth.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// Its name in reports.
    pub name: &'static str,
    /// One for each branch.
    pub branches: &'static [Answers],
    /// How they begin.
    pub client: Client,
    /// Transactions that are begun, at most. The first is there from the beginning on, but where a key is repeated.
    pub transactions: usize,
    /// Lives of coordinators, at most; a new one may begin while an older one still runs.
    pub lives: usize,
    /// Coordinators that share the log.
    pub nodes: usize,
    /// Coordinators that crash.
    pub coordinator_crashes: u8,
    /// Participants that crash, and lose what they had not forced.
    pub participant_crashes: u8,
    /// Crashes of the log, which lose what was not forced.
    pub log_crashes: u8,
    /// Participants that lose a durable row.
    pub betrayals: u8,
    /// The log may refuse a record for good.
    pub log_refuses: bool,
    /// Calls carry low-water marks, and participants drop rows.
    pub prunes: bool,
    /// Coordinators drop undelivered aborts, as at their bound.
    pub drops_aborts: bool,
    /// Somebody asks about an id before it is issued.
    pub made_up_inquiry: bool,
    /// What nobody can act on any more stays, and tells states apart: the same is found in more of them.
    pub keeps_all: bool,
}

/// Where a configuration says nothing else: one transaction, one life, no crash.
const CALM: Configuration = Configuration {
    name: "calm",
    branches: &[],
    client: Client::Commits,
    transactions: 1,
    lives: 1,
    nodes: 1,
    coordinator_crashes: 0,
    participant_crashes: 0,
    log_crashes: 0,
    betrayals: 0,
    log_refuses: false,
    prunes: false,
    drops_aborts: false,
    made_up_inquiry: false,
    keeps_all: false,
};

/// The same, and what is spent stays.
const KEEPING: Configuration = Configuration {
    keeps_all: true,
    ..CALM
};

use Answers::{ReadOnly, ReadOnlyOrYes, Yes, YesOrLate, YesOrNo};

/// Those that CI runs.
pub const SMALL: &[Configuration] = &[
    Configuration {
        name: "single branch",
        branches: &[YesOrNo],
        lives: 3,
        coordinator_crashes: 1,
        participant_crashes: 1,
        log_crashes: 1,
        log_refuses: true,
        drops_aborts: true,
        ..KEEPING
    },
    Configuration {
        name: "late prepare",
        branches: &[YesOrLate],
        lives: 2,
        participant_crashes: 1,
        ..KEEPING
    },
    Configuration {
        name: "all read-only",
        branches: &[ReadOnlyOrYes, ReadOnly],
        lives: 2,
        coordinator_crashes: 1,
        participant_crashes: 1,
        ..KEEPING
    },
    Configuration {
        name: "made-up inquiry",
        branches: &[Yes],
        lives: 2,
        coordinator_crashes: 1,
        participant_crashes: 1,
        made_up_inquiry: true,
        ..KEEPING
    },
    Configuration {
        name: "low-water mark",
        branches: &[Yes],
        transactions: 2,
        lives: 2,
        coordinator_crashes: 1,
        prunes: true,
        ..KEEPING
    },
    Configuration {
        name: "lost row",
        branches: &[Yes, Yes],
        lives: 2,
        coordinator_crashes: 1,
        betrayals: 1,
        ..KEEPING
    },
    Configuration {
        name: "two nodes",
        branches: &[YesOrNo],
        nodes: 2,
        lives: 3,
        coordinator_crashes: 1,
        participant_crashes: 1,
        ..KEEPING
    },
    Configuration {
        name: "key used twice",
        branches: &[Yes],
        client: Client::Repeats,
        transactions: 2,
        nodes: 2,
        lives: 2,
        ..KEEPING
    },
    Configuration {
        name: "interactive",
        branches: &[Yes],
        client: Client::Interacts,
        lives: 2,
        coordinator_crashes: 1,
        participant_crashes: 1,
        ..KEEPING
    },
    Configuration {
        name: "one read-only",
        branches: &[YesOrNo, ReadOnlyOrYes],
        lives: 2,
        coordinator_crashes: 1,
        ..KEEPING
    },
    Configuration {
        name: "two branches",
        branches: &[YesOrNo, YesOrNo],
        lives: 2,
        coordinator_crashes: 1,
        participant_crashes: 1,
        ..KEEPING
    },
    Configuration {
        name: "three branches, all crash",
        branches: &[YesOrNo, YesOrNo, YesOrNo],
        lives: 2,
        coordinator_crashes: 1,
        participant_crashes: 1,
        ..CALM
    },
    Configuration {
        name: "three branches, one read-only, all crash",
        branches: &[YesOrNo, YesOrNo, ReadOnly],
        lives: 2,
        coordinator_crashes: 1,
        participant_crashes: 1,
        ..CALM
    },
    Configuration {
        name: "key used twice, all crash",
        branches: &[Yes],
        client: Client::Repeats,
        transactions: 2,
        nodes: 2,
        lives: 2,
        coordinator_crashes: 1,
        participant_crashes: 1,
        ..CALM
    },
    Configuration {
        name: "key used twice, two branches",
        branches: &[Yes, Yes],
        client: Client::Repeats,
        transactions: 2,
        nodes: 2,
        lives: 2,
        coordinator_crashes: 1,
        ..CALM
    },
];

/// Those that take longer.
pub const LARGE: &[Configuration] = &[
    Configuration {
        name: "three branches",
        branches: &[YesOrNo, YesOrNo, YesOrNo],
        lives: 2,
        coordinator_crashes: 1,
        ..KEEPING
    },
    Configuration {
        name: "one read-only, all crash",
        branches: &[YesOrNo, ReadOnlyOrYes],
        lives: 2,
        coordinator_crashes: 1,
        participant_crashes: 1,
        ..KEEPING
    },
    Configuration {
        name: "three branches that agree, all crash",
        branches: &[Yes, Yes, Yes],
        lives: 2,
        coordinator_crashes: 1,
        participant_crashes: 1,
        ..KEEPING
    },
    Configuration {
        name: "key used twice, the participant crashes",
        branches: &[Yes],
        client: Client::Repeats,
        transactions: 2,
        nodes: 2,
        lives: 2,
        participant_crashes: 1,
        ..KEEPING
    },
    Configuration {
        name: "three branches, one that changes, all crash",
        branches: &[YesOrNo, YesOrNo, ReadOnlyOrYes],
        lives: 2,
        coordinator_crashes: 1,
        participant_crashes: 1,
        ..CALM
    },
];

/// Those that nobody has seen run dry, by their names only.
pub const OPEN: &[Configuration] = &[
    Configuration {
        name: "key used twice, two branches, all crash",
        branches: &[Yes, Yes],
        client: Client::Repeats,
        transactions: 2,
        nodes: 2,
        lives: 2,
        coordinator_crashes: 1,
        participant_crashes: 1,
        ..CALM
    },
    Configuration {
        name: "key used twice, three branches",
        branches: &[Yes, Yes, Yes],
        client: Client::Repeats,
        transactions: 2,
        nodes: 2,
        lives: 2,
        coordinator_crashes: 1,
        ..CALM
    },
    Configuration {
        name: "key used twice, three branches, one read-only",
        branches: &[Yes, Yes, ReadOnly],
        client: Client::Repeats,
        transactions: 2,
        nodes: 2,
        lives: 2,
        coordinator_crashes: 1,
        ..CALM
    },
];
