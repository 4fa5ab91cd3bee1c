//! The rules of the protocol that a branch's machine carries, one claim each.

use unanimous_protocol::{
    branch::{Answer, Branch, Effect, Event, State},
    message::{Inform, Refusal, RefusalCode, Reply, Vote},
    operations::BodyDigest,
};

use crate::rig::{id, no, session};

pub(crate) const FIRST: BodyDigest = BodyDigest([1; 32]);
pub(crate) const OTHER: BodyDigest = BodyDigest([2; 32]);

pub(crate) fn prepare(digest: BodyDigest, of_session: Option<&str>, in_time: bool) -> Event {
    Event::PrepareReceived {
        digest,
        session: of_session.map(session),
        in_time,
    }
}

fn step(branch: &mut Branch, event: Event) -> Vec<Effect> {
    let mut effects = Vec::new();
    branch.step(event, &mut effects);
    effects
}

/// A branch that has lived through these events.
pub(crate) fn after(events: &[Event]) -> Branch {
    let mut branch = Branch::from_row(State::Absent);
    for event in events {
        step(&mut branch, event.clone());
    }
    branch
}

pub(crate) fn active() -> Branch {
    Branch::from_row(State::Active {
        session: session("s1"),
    })
}

pub(crate) fn prepared() -> Branch {
    after(&[prepare(FIRST, None, true), Event::Worked(Vote::Yes)])
}

pub(crate) fn committed() -> Branch {
    let mut branch = prepared();
    step(&mut branch, Event::CommitReceived);
    step(&mut branch, Event::Applied);
    branch
}

pub(crate) fn aborted() -> Branch {
    let mut branch = prepared();
    step(&mut branch, Event::AbortReceived);
    step(&mut branch, Event::Undone);
    branch
}

pub(crate) fn refused() -> Branch {
    let voted = Event::Worked(no(RefusalCode::Conflict));
    after(&[prepare(FIRST, None, true), voted])
}

pub(crate) fn tombstone() -> Branch {
    after(&[Event::AbortReceived])
}

pub(crate) fn pruned() -> Branch {
    Branch::from_row(State::Pruned { low_water: id(9) })
}

fn reply(reply: Reply, forced: bool) -> Effect {
    Effect::Answer {
        reply: Answer::Reply(reply),
        forced,
    }
}

fn vote_no(code: RefusalCode, reason: &str) -> Reply {
    Reply::Vote(Vote::No(Refusal {
        code,
        reason: reason.to_owned(),
    }))
}

/// The refusal that these effects answer, checked to be stored as well unless it is a tombstone's.
fn refusal_code(effects: &[Effect]) -> RefusalCode {
    let Some(Effect::Answer {
        reply: Answer::Reply(Reply::Vote(Vote::No(refusal))),
        forced: false,
    }) = effects.last()
    else {
        panic!("{effects:?}");
    };
    refusal.code
}

#[test]
fn a_yes_is_answered_only_after_the_row_is_stored_and_the_commit_was_forced() {
    let mut branch = Branch::from_row(State::Absent);
    assert_eq!(
        step(&mut branch, prepare(FIRST, None, true)),
        [Effect::Work]
    );
    let effects = step(&mut branch, Event::Worked(Vote::Yes));
    let stored = State::Prepared { digest: FIRST };
    assert_eq!(
        effects,
        [Effect::Store(stored), reply(Reply::Vote(Vote::Yes), true)]
    );
}

#[test]
fn committed_is_answered_only_after_the_effects_and_the_row_in_a_forced_commit() {
    let mut branch = prepared();
    assert_eq!(step(&mut branch, Event::CommitReceived), [Effect::Apply]);
    let effects = step(&mut branch, Event::Applied);
    let stored = State::Committed { digest: FIRST };
    assert_eq!(
        effects,
        [
            Effect::ReleaseKeys,
            Effect::Store(stored),
            reply(Reply::Committed, true)
        ]
    );
}

#[test]
fn a_branch_that_voted_yes_never_aborts_on_its_own() {
    let not_the_coordinators_word = [
        Event::DeadlinePassed,
        Event::Informed(Inform::Pending),
        Event::Worked(no(RefusalCode::Refused)),
        Event::Worked(Vote::ReadOnly),
        Event::Worked(Vote::Yes),
        Event::Applied,
        Event::Undone,
        prepare(FIRST, None, true),
        prepare(FIRST, None, false),
        prepare(FIRST, Some("s1"), true),
        prepare(OTHER, None, true),
    ];
    for event in not_the_coordinators_word {
        let mut branch = prepared();
        let effects = step(&mut branch, event.clone());
        assert_eq!(branch, prepared(), "{event:?}");
        let harmless = effects
            .iter()
            .all(|effect| matches!(effect, Effect::Answer { .. }));
        assert!(harmless, "{event:?}: {effects:?}");
    }
}

#[test]
fn only_an_answer_of_the_coordinator_leads_out_of_doubt() {
    for (told, effect) in [
        (Event::CommitReceived, Effect::Apply),
        (Event::Informed(Inform::Committed), Effect::Apply),
        (Event::AbortReceived, Effect::Undo),
        (Event::Informed(Inform::Aborted), Effect::Undo),
    ] {
        assert_eq!(step(&mut prepared(), told), [effect]);
    }
}

#[test]
fn work_that_was_never_voted_on_goes_with_the_deadline() {
    let mut branch = active();
    let effects = step(&mut branch, Event::DeadlinePassed);
    assert_eq!(
        effects,
        [Effect::RollBackWork, Effect::Store(State::Tombstone)]
    );
    let late = step(&mut branch, prepare(FIRST, Some("s1"), true));
    assert_eq!(refusal_code(&late), RefusalCode::Aborted);
}

#[test]
fn a_prepare_that_can_not_make_the_deadline_is_refused_without_work() {
    for mut branch in [Branch::from_row(State::Absent), active()] {
        let held = matches!(branch.state(), State::Active { .. }).then_some("s1");
        let effects = step(&mut branch, prepare(FIRST, held, false));
        assert_eq!(refusal_code(&effects), RefusalCode::Deadline);
        assert!(matches!(branch.state(), State::Refused { .. }));
    }
}

#[test]
fn a_commit_without_a_vote_is_vote_lost_and_changes_nothing() {
    for branch in [Branch::from_row(State::Absent), active()] {
        let mut told = branch.clone();
        let effects = step(&mut told, Event::CommitReceived);
        assert_eq!(effects, [reply(Reply::VoteLost, false)]);
        assert_eq!(told, branch);
    }
}

#[test]
fn an_outcome_that_differs_from_the_row_is_an_alarm_and_changes_nothing() {
    for (branch, told) in [
        (refused(), Event::CommitReceived),
        (aborted(), Event::CommitReceived),
        (tombstone(), Event::CommitReceived),
        (committed(), Event::AbortReceived),
    ] {
        let mut after = branch.clone();
        let effects = step(&mut after, told.clone());
        assert_eq!(
            effects,
            [reply(Reply::OutcomeDiffers, false)],
            "{told:?} to {branch:?}"
        );
        assert_eq!(after, branch);
    }
}

#[test]
fn an_abort_of_an_unknown_branch_leaves_a_tombstone_a_late_prepare_loses_to() {
    let mut branch = Branch::from_row(State::Absent);
    let effects = step(&mut branch, Event::AbortReceived);
    assert_eq!(
        effects,
        [
            Effect::Store(State::Tombstone),
            reply(Reply::Aborted, false)
        ]
    );
    for late in [
        prepare(FIRST, None, true),
        prepare(OTHER, None, false),
        prepare(FIRST, Some("s1"), true),
    ] {
        let effects = step(&mut branch, late);
        assert_eq!(refusal_code(&effects), RefusalCode::Aborted);
        assert_eq!(*branch.state(), State::Tombstone);
    }
}

#[test]
fn an_abort_gives_back_what_was_held() {
    let mut branch = active();
    let effects = step(&mut branch, Event::AbortReceived);
    assert_eq!(effects[0], Effect::RollBackWork);
    assert_eq!(*branch.state(), State::Tombstone);
    assert_eq!(effects.last(), Some(&reply(Reply::Aborted, false)));

    let mut branch = prepared();
    assert_eq!(step(&mut branch, Event::AbortReceived), [Effect::Undo]);
    let effects = step(&mut branch, Event::Undone);
    assert_eq!(
        effects,
        [
            Effect::ReleaseKeys,
            Effect::Store(State::Aborted),
            reply(Reply::Aborted, false)
        ]
    );
}

#[test]
fn a_stored_row_answers_first_and_the_same_way_every_time() {
    let yes = reply(Reply::Vote(Vote::Yes), true);
    let conflict = reply(vote_no(RefusalCode::Conflict, "because"), false);
    let gone = "an abort of this branch came before the prepare";
    let too_late = reply(vote_no(RefusalCode::Aborted, gone), false);
    for (branch, to_prepare, to_commit, to_abort) in [
        (committed(), yes, Some(reply(Reply::Committed, true)), None),
        (
            refused(),
            conflict,
            None,
            Some(reply(Reply::Aborted, false)),
        ),
        (
            aborted(),
            too_late.clone(),
            None,
            Some(reply(Reply::Aborted, false)),
        ),
        (
            tombstone(),
            too_late,
            None,
            Some(reply(Reply::Aborted, false)),
        ),
    ] {
        for _ in 0..2 {
            let mut repeated = branch.clone();
            // Neither the deadline nor a session comes before the row.
            for event in [
                prepare(FIRST, None, true),
                prepare(FIRST, None, false),
                prepare(FIRST, Some("s9"), true),
            ] {
                assert_eq!(
                    step(&mut repeated, event),
                    std::slice::from_ref(&to_prepare)
                );
            }
            if let Some(answer) = &to_commit {
                let effects = step(&mut repeated, Event::CommitReceived);
                assert_eq!(effects, std::slice::from_ref(answer));
            }
            if let Some(answer) = &to_abort {
                let effects = step(&mut repeated, Event::AbortReceived);
                assert_eq!(effects, std::slice::from_ref(answer));
            }
            assert_eq!(repeated, branch);
        }
    }
    let mut repeated = prepared();
    let effects = step(&mut repeated, prepare(FIRST, None, true));
    assert_eq!(effects, [reply(Reply::Vote(Vote::Yes), true)], "forced");
}

#[test]
fn other_operations_than_the_first_time_are_refused_without_touching_the_row() {
    for branch in [prepared(), committed(), refused()] {
        let mut after = branch.clone();
        let effects = step(&mut after, prepare(OTHER, None, true));
        let changed = Effect::Answer {
            reply: Answer::PrepareChanged,
            forced: false,
        };
        assert_eq!(effects, [changed]);
        assert_eq!(after, branch);
    }
}

#[test]
fn a_no_undoes_the_work_and_is_stored_with_its_code_and_reason() {
    let mut branch = after(&[prepare(FIRST, None, true)]);
    let effects = step(&mut branch, Event::Worked(no(RefusalCode::Conflict)));
    let refusal = Refusal {
        code: RefusalCode::Conflict,
        reason: "because".to_owned(),
    };
    assert_eq!(
        effects,
        [
            Effect::RollBackWork,
            Effect::Store(State::Refused {
                digest: FIRST,
                refusal
            }),
            reply(vote_no(RefusalCode::Conflict, "because"), false),
        ]
    );
}

#[test]
fn a_read_only_branch_keeps_nothing_and_stores_nothing() {
    let mut branch = after(&[prepare(FIRST, None, true)]);
    let effects = step(&mut branch, Event::Worked(Vote::ReadOnly));
    assert_eq!(
        effects,
        [
            Effect::RollBackWork,
            reply(Reply::Vote(Vote::ReadOnly), false)
        ]
    );
    assert_eq!(*branch.state(), State::Absent);
}

#[test]
fn interactive_work_is_all_there_or_the_vote_is_no() {
    // Its work is gone; another session's is there; and work is there of which the coordinator never learnt.
    for (mut branch, named) in [
        (Branch::from_row(State::Absent), Some("s1")),
        (active(), Some("s2")),
        (active(), None),
    ] {
        let effects = step(&mut branch, prepare(FIRST, named, true));
        assert_eq!(refusal_code(&effects), RefusalCode::WorkLost, "{named:?}");
        assert_eq!(effects[0], Effect::RollBackWork);
        let again = step(&mut branch, prepare(FIRST, named, true));
        assert_eq!(refusal_code(&again), RefusalCode::WorkLost);
    }
    let mut branch = active();
    let effects = step(&mut branch, prepare(FIRST, Some("s1"), true));
    assert_eq!(effects, [Effect::Work]);
}

#[test]
fn an_answer_to_an_inquiry_that_is_older_than_the_row_changes_nothing() {
    for branch in [
        Branch::from_row(State::Absent),
        active(),
        committed(),
        refused(),
        aborted(),
        tombstone(),
    ] {
        for inform in [Inform::Committed, Inform::Aborted, Inform::Pending] {
            let mut after = branch.clone();
            assert_eq!(step(&mut after, Event::Informed(inform)), []);
            assert_eq!(after, branch);
        }
    }
}

// The low-water mark (rule 15).

#[test]
fn without_a_row_the_mark_of_its_prefix_says_that_a_transaction_has_ended() {
    let held = || Some(session("s1"));
    let mark = id(9);
    let pruned = State::Pruned { low_water: mark };
    assert_eq!(State::without_row(id(8), None, Some(mark)), pruned);
    assert_eq!(State::without_row(id(8), held(), Some(mark)), pruned);
    for (below, mark) in [
        (id(9), Some(mark)),
        (id(10), Some(mark)),
        (id(8), None),
        // Of another log's.
        (
            "5eed0000-0001-8000-8000-100000000008".parse().unwrap(),
            Some(mark),
        ),
    ] {
        assert_eq!(State::without_row(below, None, mark), State::Absent);
        let active = State::Active {
            session: session("s1"),
        };
        assert_eq!(State::without_row(below, held(), mark), active);
    }
}

#[test]
fn below_the_mark_a_prepare_does_no_work_and_a_commit_is_an_alarm() {
    let no = Answer::BelowLowWater { low_water: id(9) };
    for (of_session, in_time) in [(None, true), (Some("s1"), true), (None, false)] {
        let mut branch = pruned();
        let effects = step(&mut branch, prepare(FIRST, of_session, in_time));
        let answered = Effect::Answer {
            reply: no.clone(),
            forced: false,
        };
        assert_eq!(effects, [Effect::RollBackWork, answered]);
        assert_eq!(branch, pruned(), "and nothing is stored");
    }
    let effects = step(&mut pruned(), Event::CommitReceived);
    assert_eq!(effects, [reply(Reply::VoteLost, false)]);
}

#[test]
fn below_the_mark_an_abort_leaves_no_tombstone() {
    let effects = step(&mut pruned(), Event::AbortReceived);
    assert_eq!(
        effects,
        [Effect::RollBackWork, reply(Reply::Aborted, false)]
    );
    let effects = step(&mut pruned(), Event::DeadlinePassed);
    assert_eq!(effects, [Effect::RollBackWork]);
}
