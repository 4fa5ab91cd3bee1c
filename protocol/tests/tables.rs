//! `docs/PROTOCOL.md` holds a table of every state and every event of both machines, and of what is said of an id
//! without a record. They are printed from `step` and `judge` here, and compared with the page.

use std::{fmt::Write as _, fs, path::Path};

use unanimous_protocol::{
    branch::{self, Branch},
    coordinator::{Alarm, Effect, Event, Pace, State, Transaction},
    id::{Epoch, LogIdentity, Node, Prefix, Sequence, TransactionId},
    life::{Head, Judgement, Life, Snapshot, Unknown, Writer},
    message::{Inform, RefusalCode, Reply, RequestKind, Vote},
    record::{AbortCode, Decision, Outcome, Part, Standing, Verdict},
};

use crate::{
    branch::{
        FIRST, OTHER, aborted as aborted_branch, active, after, committed, prepare, prepared,
        pruned, refused as refused_branch, tombstone,
    },
    rig::{
        ABORT_REQUESTED, Rig, aborted, answered, decision, delivered, enlist, id, no, refused,
        session, unknown,
    },
};
use RequestKind::{Abort, Commit, Prepare};

/// The page with this table generated anew.
fn with_table(page: &str, table: &str, generated: &str) -> String {
    let begin = format!("<!-- state table: {table} (generated: make fix) -->\n");
    let end = format!("<!-- end of {table} -->");
    let from = page.find(&begin).expect("the page has the marker") + begin.len();
    let to = from + page[from..].find(&end).expect("and its end");
    format!("{}{generated}{}", &page[..from], &page[to..])
}

/// With `UPDATE_GOLDEN=1` the page is rewritten instead.
#[test]
fn the_page_says_what_the_machines_do_in_every_state_on_every_event() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/PROTOCOL.md");
    let page = fs::read_to_string(&path).unwrap();
    let mut generated = page.clone();
    for (table, text) in [
        ("judgement", judgement_table()),
        ("coordinator", coordinator_table()),
        ("branch", branch_table()),
    ] {
        generated = with_table(&generated, table, &text);
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(path, generated).unwrap();
    } else {
        assert!(
            page == generated,
            "docs/PROTOCOL.md does not say what the machines do: run make fix"
        );
    }
}

/// One state's table: what changes something as a line for each consequence, the rest in a sentence.
fn print_state(out: &mut String, title: &str, lines: &[(&str, String, String)], idle: &[&str]) {
    writeln!(out, "\n### {title}\n").unwrap();
    if !lines.is_empty() {
        out.push_str("| event | next | effects |\n|---|---|---|\n");
        for alike in lines.chunk_by(|one, other| (&one.1, &one.2) == (&other.1, &other.2)) {
            let events: Vec<_> = alike.iter().map(|line| line.0).collect();
            let (_, next, effects) = &alike[0];
            writeln!(out, "| {} | {next} | {effects} |", events.join("; ")).unwrap();
        }
        out.push('\n');
    }
    if idle.is_empty() {
        out.push_str("Every event means something here.\n");
    } else {
        writeln!(
            out,
            "Nothing changes, and nothing is done, on: {}.",
            idle.join("; ")
        )
        .unwrap();
    }
}

fn either(effects: Vec<String>) -> String {
    if effects.is_empty() {
        "none".to_owned()
    } else {
        effects.join(", ")
    }
}

// The coordinator's machine.

fn show_verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Commit => "commit".to_owned(),
        Verdict::Abort(reason) => {
            let code = serde_json::to_value(reason.code).unwrap();
            format!("abort: {}", code.as_str().unwrap())
        }
    }
}

fn show_decision(decision: &Decision) -> String {
    let parts = decision.branches.iter().map(|(name, part)| {
        let part = match part {
            Part::Updates => "updates",
            Part::ReadOnly => "read-only",
            Part::Refused => "refused",
            Part::Unanswered => "unanswered",
            Part::Untouched => "untouched",
        };
        format!("{name} {part}")
    });
    let parts: Vec<_> = parts.collect();
    format!("{} ({})", show_verdict(&decision.verdict), parts.join(", "))
}

fn show_transaction(transaction: &Transaction) -> String {
    let state = match transaction.state() {
        State::Active => "**Active**".to_owned(),
        State::Preparing => "**Preparing**".to_owned(),
        State::Deciding { decision } => {
            format!("**Deciding** {}", show_verdict(&decision.verdict))
        }
        State::Completing { decision, told } => {
            let told = if *told { "" } else { ", clients not told" };
            format!("**Completing** {}{told}", show_verdict(&decision.verdict))
        }
        State::Ended { decision } => {
            let over = if transaction.is_over() { ", over" } else { "" };
            format!("**Ended** {}{over}", show_verdict(&decision.verdict))
        }
    };
    let branches = transaction.branches().map(|branch| {
        let phase = serde_json::to_value(branch.phase).unwrap();
        format!("{} {}", branch.participant, phase.as_str().unwrap())
    });
    let branches: Vec<_> = branches.collect();
    let frozen = if transaction.is_frozen() {
        ", frozen"
    } else {
        ""
    };
    format!("{state}{frozen}; {}", branches.join(", "))
}

fn show_alarm(alarm: &Alarm) -> String {
    match alarm {
        Alarm::VoteLost(name) => format!("vote-lost at {name}"),
        Alarm::OutcomeDiffers(name) => format!("outcome-differs at {name}"),
        Alarm::VoteChanged(name) => format!("vote changed at {name}"),
        Alarm::BelowLowWater(name) => format!("below-low-water at {name}"),
        Alarm::DecisionContradicted => "decision contradicted".to_owned(),
    }
}

fn show_effect(effect: &Effect) -> String {
    match effect {
        Effect::Send {
            participant,
            request,
            attempt,
            pace,
        } => {
            let pace = match (attempt, pace) {
                (1, _) => "",
                (_, Pace::Backoff) => " again",
                (_, Pace::Longest) => " again at the longest interval",
            };
            format!("send {} to {participant}{pace}", request.kind().as_str())
        }
        Effect::Force(decision) => format!("**force** {}", show_decision(decision)),
        Effect::Append(decision) => format!("append {}", show_decision(decision)),
        Effect::Finish => "append the finish".to_owned(),
        Effect::StartDeadline => "start the deadline".to_owned(),
        Effect::Answer(Ok(enlisted)) => format!("answer {enlisted:?}").to_lowercase(),
        Effect::Answer(Err(why)) => format!("answer \"{why}\""),
        Effect::Alarm(alarm) => format!("**alarm** {}", show_alarm(alarm)),
    }
}

/// Every event, as it is for east, one of two branches. A match below keeps the list complete.
fn events() -> Vec<(&'static str, Event)> {
    let east = |kind, delivery| delivered("east", kind, delivery);
    let earlier = |verdict| {
        let parts = [("east", Part::Updates), ("west", Part::Updates)];
        Event::Forced(Standing::Earlier(decision(verdict, &parts)))
    };
    let vote = |vote| east(Prepare, answered(Reply::Vote(vote)));
    let events = vec![
        ("enlist north", enlist("north", "[]", None)),
        ("enlist east again", enlist("east", "[1]", None)),
        (
            "enlist east with other operations",
            enlist("east", "[2]", None),
        ),
        (
            "enlist east with session s1",
            enlist("east", "[1]", Some("s1")),
        ),
        (
            "enlist east with session s2",
            enlist("east", "[1]", Some("s2")),
        ),
        ("commit requested", Event::CommitRequested),
        ("abort requested", ABORT_REQUESTED),
        ("deadline passed", Event::DeadlinePassed),
        ("east votes yes", vote(Vote::Yes)),
        ("east votes read-only", vote(Vote::ReadOnly)),
        ("east votes no", vote(no(RefusalCode::Refused))),
        (
            "east votes no, below-low-water",
            vote(no(RefusalCode::BelowLowWater)),
        ),
        (
            "prepare of east: no vote",
            east(Prepare, answered(Reply::Aborted)),
        ),
        ("prepare of east: refused", east(Prepare, refused())),
        ("prepare of east: unknown", east(Prepare, unknown())),
        (
            "commit of east: committed",
            east(Commit, answered(Reply::Committed)),
        ),
        (
            "commit of east: vote-lost",
            east(Commit, answered(Reply::VoteLost)),
        ),
        (
            "commit of east: outcome-differs",
            east(Commit, answered(Reply::OutcomeDiffers)),
        ),
        (
            "commit of east: refused, unknown, another answer",
            east(Commit, unknown()),
        ),
        (
            "abort of east: aborted",
            east(Abort, answered(Reply::Aborted)),
        ),
        (
            "abort of east: outcome-differs",
            east(Abort, answered(Reply::OutcomeDiffers)),
        ),
        (
            "abort of east: refused, unknown, another answer",
            east(Abort, unknown()),
        ),
        ("durable: mine stands", Event::Forced(Standing::Proposed)),
        (
            "durable: an earlier commit stands",
            earlier(Verdict::Commit),
        ),
        (
            "durable: an earlier abort stands",
            earlier(aborted(AbortCode::Requested)),
        ),
        (
            "durable: the key is another's",
            Event::Forced(Standing::KeyHeldBy(id(2))),
        ),
        (
            "durable: the log would not take the record",
            Event::Forced(Standing::Refused("too large".to_owned())),
        ),
        ("appended", Event::Appended),
        ("the log went back", Event::LogWentBack),
        ("aborts dropped", Event::AbortsDropped),
    ];
    for (_, event) in &events {
        match event {
            Event::Enlist { .. }
            | Event::CommitRequested
            | Event::AbortRequested { .. }
            | Event::DeadlinePassed
            | Event::Delivered { .. }
            | Event::Forced(_)
            | Event::Appended
            | Event::LogWentBack
            | Event::AbortsDropped => {}
        }
    }
    events
}

/// Every state that a transaction of two branches comes through, each reached by real events.
fn situations() -> Vec<(&'static str, Rig)> {
    const BOTH: &[&str] = &["east", "west"];
    let after = |mut rig: Rig, events: Vec<Event>| {
        for event in events {
            rig.step(event);
        }
        rig
    };
    let yes = |who| delivered(who, Prepare, answered(Reply::Vote(Vote::Yes)));
    let read_only = |who| delivered(who, Prepare, answered(Reply::Vote(Vote::ReadOnly)));
    let veto = delivered(
        "east",
        Prepare,
        answered(Reply::Vote(no(RefusalCode::Refused))),
    );
    let done = |who| delivered(who, Commit, answered(Reply::Committed));
    let gone = |who| delivered(who, Abort, answered(Reply::Aborted));
    let preparing = |keyed| Rig::preparing(keyed, BOTH);
    let deadline = || Event::DeadlinePassed;
    vec![
        ("Active, both named by a client", Rig::active(false, BOTH)),
        (
            "Active, east enlisted itself with session s1",
            after(
                Rig::empty(false),
                vec![
                    enlist("east", "[1]", Some("s1")),
                    enlist("west", "[1]", None),
                ],
            ),
        ),
        ("Active, with a key", Rig::active(true, BOTH)),
        ("Preparing, nobody has answered", preparing(false)),
        (
            "Preparing, east has voted yes",
            after(preparing(false), vec![yes("east")]),
        ),
        (
            "Preparing, east has voted read-only",
            after(preparing(false), vec![read_only("east")]),
        ),
        (
            "Preparing, west has voted yes",
            after(preparing(false), vec![yes("west")]),
        ),
        (
            "Preparing, west has voted read-only",
            after(preparing(false), vec![read_only("west")]),
        ),
        (
            "Preparing, west has voted read-only, with a key",
            after(preparing(true), vec![read_only("west")]),
        ),
        ("Preparing, with a key", preparing(true)),
        (
            "Preparing, west has voted yes, the log went back",
            after(preparing(false), vec![yes("west"), Event::LogWentBack]),
        ),
        ("Deciding", Rig::deciding(false)),
        ("Deciding, with a key", Rig::deciding(true)),
        (
            "Deciding, with a key, both read-only",
            after(preparing(true), vec![read_only("east"), read_only("west")]),
        ),
        ("Completing a commit", Rig::committing(false)),
        (
            "Completing a commit, only east has acknowledged",
            after(Rig::committing(false), vec![done("east")]),
        ),
        (
            "Completing a commit, only west has acknowledged",
            after(Rig::committing(false), vec![done("west")]),
        ),
        (
            "Completing an abort",
            after(preparing(false), vec![deadline()]),
        ),
        (
            "Completing an abort after a no of east",
            after(preparing(false), vec![veto]),
        ),
        (
            "Completing an abort, only west has acknowledged",
            after(preparing(false), vec![deadline(), gone("west")]),
        ),
        (
            "Completing an abort, with a key, clients not told",
            after(preparing(true), vec![deadline()]),
        ),
        (
            "Completing an abort, with a key, clients not told, both have acknowledged",
            after(
                preparing(true),
                vec![deadline(), gone("east"), gone("west")],
            ),
        ),
        (
            "Completing an abort, with a key, clients told",
            after(
                preparing(true),
                vec![deadline(), Event::Forced(Standing::Proposed)],
            ),
        ),
        (
            "Ended, committed, its finish not durable",
            after(Rig::committing(false), vec![done("east"), done("west")]),
        ),
        (
            "Ended, aborted, its record not durable",
            after(
                preparing(false),
                vec![deadline(), gone("east"), gone("west")],
            ),
        ),
        (
            "Ended, aborted, over",
            after(
                preparing(false),
                vec![deadline(), gone("east"), gone("west"), Event::Appended],
            ),
        ),
    ]
}

fn coordinator_table() -> String {
    let mut out = String::new();
    for (title, rig) in situations() {
        let (mut lines, mut idle) = (Vec::new(), Vec::new());
        for (label, event) in events() {
            let mut next = rig.clone();
            let effects = next.step(event);
            if effects.is_empty() && next.machine == rig.machine {
                idle.push(label);
                continue;
            }
            let (before, now) = (
                show_transaction(&rig.machine),
                show_transaction(&next.machine),
            );
            let now = if now == before {
                "the same".to_owned()
            } else {
                now
            };
            let effects = effects.iter().map(show_effect).collect();
            lines.push((label, now, either(effects)));
        }
        let title = format!("{title}: {}", show_transaction(&rig.machine));
        print_state(&mut out, &title.replace("**", ""), &lines, &idle);
    }
    out.push('\n');
    out
}

// The branch's machine.

fn show_branch(state: &branch::State) -> String {
    match state {
        branch::State::Absent => "Absent",
        branch::State::Active { .. } => "Active",
        branch::State::Working { .. } => "Working",
        branch::State::Prepared { .. } => "Prepared",
        branch::State::Applying { .. } => "Applying",
        branch::State::Undoing => "Undoing",
        branch::State::Committed { .. } => "Committed",
        branch::State::Refused { .. } => "Refused",
        branch::State::Aborted => "Aborted",
        branch::State::Tombstone => "Tombstone",
        branch::State::Pruned { .. } => "Pruned",
    }
    .to_owned()
}

fn show_reply(reply: &branch::Answer) -> String {
    match reply {
        branch::Answer::PrepareChanged => "prepare-changed".to_owned(),
        branch::Answer::BelowLowWater { .. } => "no (below-low-water), with the mark".to_owned(),
        branch::Answer::Reply(reply) => match reply {
            Reply::Vote(Vote::Yes) => "yes".to_owned(),
            Reply::Vote(Vote::ReadOnly) => "read-only".to_owned(),
            Reply::Vote(Vote::No(refusal)) => format!("no ({})", refusal.code.as_str()),
            Reply::Committed => "committed".to_owned(),
            Reply::Aborted => "aborted".to_owned(),
            Reply::VoteLost => "vote-lost".to_owned(),
            Reply::OutcomeDiffers => "outcome-differs".to_owned(),
        },
    }
}

fn show_branch_effect(effect: &branch::Effect) -> String {
    match effect {
        branch::Effect::Work => "run the service's prepare".to_owned(),
        branch::Effect::Apply => "run the service's commit".to_owned(),
        branch::Effect::Undo => "run the service's abort".to_owned(),
        branch::Effect::RollBackWork => "roll the work back".to_owned(),
        branch::Effect::ReleaseKeys => "release the keys".to_owned(),
        branch::Effect::Store(state) => format!("store {}", show_branch(state)),
        branch::Effect::Answer { reply, forced } => {
            let forced = if *forced { " once **forced**" } else { "" };
            format!("answer {}{forced}", show_reply(reply))
        }
    }
}

fn branch_events() -> Vec<(&'static str, branch::Event)> {
    use branch::Event;
    let events = vec![
        ("prepare", prepare(FIRST, None, true)),
        ("prepare, too late", prepare(FIRST, None, false)),
        ("prepare with other operations", prepare(OTHER, None, true)),
        ("prepare of session s1", prepare(FIRST, Some("s1"), true)),
        (
            "prepare of session s1, too late",
            prepare(FIRST, Some("s1"), false),
        ),
        ("prepare of session s2", prepare(FIRST, Some("s2"), true)),
        ("the service says yes", Event::Worked(Vote::Yes)),
        ("the service says read-only", Event::Worked(Vote::ReadOnly)),
        (
            "the service says no",
            Event::Worked(no(RefusalCode::Refused)),
        ),
        ("commit", Event::CommitReceived),
        ("the service has applied", Event::Applied),
        ("abort", Event::AbortReceived),
        ("the service has undone", Event::Undone),
        ("told committed", Event::Informed(Inform::Committed)),
        ("told aborted", Event::Informed(Inform::Aborted)),
        ("told pending", Event::Informed(Inform::Pending)),
        ("deadline passed", Event::DeadlinePassed),
    ];
    for (_, event) in &events {
        match event {
            Event::PrepareReceived { .. }
            | Event::Worked(_)
            | Event::CommitReceived
            | Event::Applied
            | Event::AbortReceived
            | Event::Undone
            | Event::Informed(Inform::Committed | Inform::Aborted | Inform::Pending)
            | Event::DeadlinePassed => {}
        }
    }
    events
}

fn branch_table() -> String {
    let working = after(&[prepare(FIRST, None, true)]);
    let applying = {
        let mut branch = prepared();
        branch.step(branch::Event::CommitReceived, &mut Vec::new());
        branch
    };
    let undoing = {
        let mut branch = prepared();
        branch.step(branch::Event::AbortReceived, &mut Vec::new());
        branch
    };
    assert_eq!(
        *active().state(),
        branch::State::Active {
            session: session("s1")
        }
    );
    let mut out = String::new();
    for (title, branch) in [
        ("Absent", Branch::from_row(branch::State::Absent)),
        ("Active, with session s1", active()),
        ("Working", working),
        ("Prepared", prepared()),
        ("Applying", applying),
        ("Undoing", undoing),
        ("Committed", committed()),
        ("Refused, code conflict", refused_branch()),
        ("Aborted", aborted_branch()),
        ("Tombstone", tombstone()),
        ("Pruned: no row, and below the low-water mark", pruned()),
    ] {
        assert!(title.starts_with(&show_branch(branch.state())), "{title}");
        let (mut lines, mut idle) = (Vec::new(), Vec::new());
        for (label, event) in branch_events() {
            let mut next = branch.clone();
            let mut effects = Vec::new();
            next.step(event, &mut effects);
            if effects.is_empty() && next == branch {
                idle.push(label);
                continue;
            }
            let now = if next == branch {
                "the same".to_owned()
            } else {
                show_branch(next.state())
            };
            let effects = effects.iter().map(show_branch_effect).collect();
            lines.push((label, now, either(effects)));
        }
        print_state(&mut out, title, &lines, &idle);
    }
    out.push('\n');
    out
}

// What is said of an id that memory does not hold.

const HERE: LogIdentity = LogIdentity(7);
const FORMER: LogIdentity = LogIdentity(6);

fn id_of(identity: LogIdentity, node: u16, epoch: u32, sequence: u64) -> TransactionId {
    let prefix = Prefix {
        identity,
        node: Node(node),
    };
    TransactionId::new(
        prefix,
        Epoch::new(epoch).unwrap(),
        Sequence::new(sequence).unwrap(),
    )
}

fn show_judgement(judgement: Judgement) -> String {
    let judged = match judgement {
        Judgement::Recorded => "as recorded".to_owned(),
        Judgement::Aborted(code) => {
            let code = serde_json::to_value(code).unwrap();
            format!("aborted, `{}`", code.as_str().unwrap())
        }
        Judgement::Forgotten => "forgotten".to_owned(),
        Judgement::NeverIssued => "never issued".to_owned(),
        Judgement::OtherNode(_) => "another node's".to_owned(),
        Judgement::Foreign => "foreign".to_owned(),
        Judgement::Unknown(Unknown::NewerEpoch) => "unknown: newer epoch".to_owned(),
        Judgement::Unknown(Unknown::NodeWithoutEpoch) => "unknown: no such node".to_owned(),
        Judgement::Unknown(Unknown::FormerIdentity) => "unknown: former identity".to_owned(),
        Judgement::LogWentBack => "the log went back".to_owned(),
        Judgement::Silent => "silent".to_owned(),
    };
    if judgement == Judgement::Recorded {
        return judged;
    }
    let told = match judgement.inform() {
        Some(Inform::Committed) => unreachable!("nothing is committed without a record"),
        Some(Inform::Aborted) => "**aborted**",
        Some(Inform::Pending) => "pending",
        None => "nothing",
    };
    format!("{judged} → {told}")
}

fn judgement_table() -> String {
    let serving = {
        let writer = Writer {
            node: Node(1),
            epoch: Epoch::new(3).unwrap(),
            identity: HERE,
            decisions_at_least: 10,
        };
        let mut life = Life::begin(writer, 100 << 21);
        assert_eq!(life.issue(), Some(id_of(HERE, 1, 3, 100)));
        life
    };
    let observing = |epoch, decisions| {
        let mut life = serving.clone();
        let head = Head {
            identity: HERE,
            former: vec![FORMER],
            epoch: Epoch::new(epoch),
            decisions,
        };
        life.observe(&life.known(), &head);
        life
    };
    let (went_back, fenced) = (observing(3, 9), observing(4, 10));
    let ids = [
        ("of this life, issued", id_of(HERE, 1, 3, 100), Some(3)),
        ("of this life, not issued", id_of(HERE, 1, 3, 101), Some(3)),
        (
            "of this node, of a fenced epoch",
            id_of(HERE, 1, 2, 1),
            Some(3),
        ),
        (
            "of this node, of a newer epoch than the log has",
            id_of(HERE, 1, 4, 1),
            Some(3),
        ),
        (
            "of this node, whose epoch in the log is newer than this life's",
            id_of(HERE, 1, 3, 100),
            Some(4),
        ),
        (
            "of this node, whose epoch in the log is older than this life's",
            id_of(HERE, 1, 2, 1),
            Some(2),
        ),
        (
            "of this node, which has no epoch in the log",
            id_of(HERE, 1, 2, 1),
            None,
        ),
        (
            "of another node, of its live epoch",
            id_of(HERE, 2, 5, 1),
            Some(5),
        ),
        (
            "of another node, of a fenced epoch",
            id_of(HERE, 2, 4, 1),
            Some(5),
        ),
        (
            "of another node, of a newer epoch than the log has",
            id_of(HERE, 2, 6, 1),
            Some(5),
        ),
        (
            "of another node without an epoch",
            id_of(HERE, 2, 1, 1),
            None,
        ),
        (
            "of a former identity of the log",
            id_of(FORMER, 1, 1, 1),
            Some(3),
        ),
        ("of another log", id_of(LogIdentity(5), 1, 1, 1), Some(3)),
    ];
    let snapshot = |of: TransactionId, newest: Option<u32>, forgotten, recorded| Snapshot {
        recorded,
        epoch: newest.and_then(Epoch::new),
        identity: HERE,
        former: vec![FORMER],
        forgotten_through: (forgotten && of.identity() != LogIdentity(5))
            .then(|| TransactionId::new(of.prefix(), Epoch::MAX, Sequence::MAX)),
    };
    let mut out = String::from(
        "| an id | serving | serving, up to the forgotten mark | the log went back | fenced |\n\
         |---|---|---|---|---|\n",
    );
    for (label, of, newest) in ids {
        let judge = |life: &Life, forgotten| {
            show_judgement(life.judge(life.ask(of), &snapshot(of, newest, forgotten, false)))
        };
        writeln!(
            out,
            "| {label} | {} | {} | {} | {} |",
            judge(&serving, false),
            judge(&serving, true),
            judge(&went_back, false),
            judge(&fenced, false),
        )
        .unwrap();
        // A record answers whatever its id, except from a life that has been fenced.
        let recorded = snapshot(of, newest, false, true);
        for life in [&serving, &went_back] {
            assert_eq!(
                life.judge(life.ask(of), &recorded),
                Judgement::Recorded,
                "{label}"
            );
        }
        assert_eq!(
            fenced.judge(fenced.ask(of), &recorded),
            Judgement::Silent,
            "{label}"
        );
    }
    out
}

#[test]
fn the_states_of_the_page_are_all_there_are() {
    let reached: Vec<_> = situations()
        .iter()
        .map(|(_, rig)| rig.machine.state().clone())
        .collect();
    let has = |wanted: fn(&State) -> bool| reached.iter().any(wanted);
    assert!(has(|state| *state == State::Active));
    assert!(has(|state| *state == State::Preparing));
    assert!(has(|state| matches!(state, State::Deciding { .. })));
    for outcome in [Outcome::Committed, Outcome::Aborted] {
        let of = |decision: &Decision| decision.verdict.outcome() == outcome;
        let completing =
            |state: &State| matches!(state, State::Completing { decision, .. } if of(decision));
        let ended = |state: &State| matches!(state, State::Ended { decision } if of(decision));
        assert!(reached.iter().any(completing) && reached.iter().any(ended));
    }
    assert!(has(|state| matches!(
        state,
        State::Completing { told: false, .. }
    )));
}
