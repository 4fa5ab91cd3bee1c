//! The rules of the protocol that a coordinator's machine carries, one claim each.

use unanimous_protocol::{
    coordinator::{
        Alarm, BRANCHES_MAX, BranchPhase, Effect, EnlistRefused, Enlisted, Event, Pace, State,
        Transaction, TransactionState,
    },
    message::{Inform, RefusalCode, Reply, RequestKind, Vote},
    record::{AbortCode, AbortReason, Outcome, Part, Standing, Verdict},
};

use crate::rig::{
    ABORT_REQUESTED, Rig, aborted, alarms, answered, appended, decision, delivered, enlist, forced,
    id, name, no, prepare_of, reason, refused, sent, unknown,
};
use RequestKind::{Abort, Commit, Prepare};

const BOTH: &[&str] = &["east", "west"];

/// Everything that can happen to a branch or transaction once both have been asked to prepare, except what the log says.
fn all_but_the_log() -> Vec<Event> {
    let mut events = vec![
        enlist("east", "[1]", None),
        enlist("north", "[]", Some("s")),
        Event::CommitRequested,
        ABORT_REQUESTED,
        Event::DeadlinePassed,
        Event::AbortsDropped,
        Event::Appended,
    ];
    for kind in [Prepare, Commit, Abort] {
        events.extend([
            delivered("east", kind, unknown()),
            delivered("east", kind, refused()),
        ]);
        for reply in [
            Reply::Vote(Vote::Yes),
            Reply::Vote(Vote::ReadOnly),
            Reply::Vote(no(RefusalCode::Refused)),
            Reply::Vote(no(RefusalCode::BelowLowWater)),
            Reply::Committed,
            Reply::Aborted,
            Reply::VoteLost,
            Reply::OutcomeDiffers,
        ] {
            events.push(delivered("east", kind, answered(reply)));
        }
    }
    events
}

// The commit point (rules 1, 2, 3, 12).

#[test]
fn a_commit_needs_every_vote() {
    let mut rig = Rig::preparing(false, &["east", "north", "west"]);
    for participant in ["east", "north"] {
        assert_eq!(rig.vote(participant, Vote::Yes), []);
        assert_eq!(*rig.machine.state(), State::Preparing);
    }
    let effects = rig.vote("west", Vote::ReadOnly);
    let expected = decision(
        Verdict::Commit,
        &[
            ("east", Part::Updates),
            ("north", Part::Updates),
            ("west", Part::ReadOnly),
        ],
    );
    assert_eq!(effects, [Effect::Force(expected)]);
}

#[test]
fn no_commit_is_sent_before_the_decision_is_durable() {
    for keyed in [false, true] {
        for event in all_but_the_log() {
            let mut rig = Rig::deciding(keyed);
            let effects = rig.step(event.clone());
            assert_eq!(sent(&effects), [], "{event:?}");
            assert!(matches!(rig.machine.state(), State::Deciding { .. }));
            // Nor is anybody told.
            assert_eq!(rig.machine.told(), None);
            assert_eq!(rig.machine.inform(&name("east")), Inform::Pending);
            assert_eq!(rig.machine.transaction_state(), TransactionState::Deciding);
            assert!(rig.machine.is_undecided());
        }
        let mut rig = Rig::deciding(keyed);
        let effects = rig.step(Event::Forced(Standing::Proposed));
        assert_eq!(sent(&effects), [("east", Commit), ("west", Commit)]);
        let told = rig.machine.told().unwrap();
        assert_eq!(told.verdict, Verdict::Commit);
        assert_eq!(rig.machine.inform(&name("east")), Inform::Committed);
    }
}

#[test]
fn the_deadline_changes_nothing_once_the_decision_was_handed_to_the_log() {
    let deciding = Rig::deciding(false);
    let mut rig = deciding.clone();
    assert_eq!(rig.step(Event::DeadlinePassed), []);
    assert_eq!(rig.machine, deciding.machine);
}

#[test]
fn a_clients_abort_changes_nothing_once_the_decision_was_handed_to_the_log() {
    let deciding = Rig::deciding(false);
    let mut rig = deciding.clone();
    assert_eq!(rig.step(ABORT_REQUESTED), []);
    assert_eq!(rig.machine, deciding.machine);
}

#[test]
fn a_decision_never_changes_once_it_is_told() {
    let mut by_abort = Rig::preparing(false, BOTH);
    by_abort.step(Event::DeadlinePassed);
    for (decided, outcome) in [
        (Rig::committing(false), Outcome::Committed),
        (by_abort, Outcome::Aborted),
    ] {
        let mut events = all_but_the_log();
        events.extend([
            Event::Forced(Standing::Proposed),
            Event::Forced(Standing::KeyHeldBy(id(2))),
            Event::Forced(Standing::Earlier(decision(
                aborted(AbortCode::Requested),
                &[],
            ))),
            Event::Forced(Standing::Earlier(decision(Verdict::Commit, &[]))),
        ]);
        for event in events {
            let mut rig = decided.clone();
            let effects = rig.step(event.clone());
            assert_eq!(forced(&effects).or(appended(&effects)), None, "{event:?}");
            let told = rig.machine.told().unwrap();
            assert_eq!(told.verdict.outcome(), outcome, "{event:?}");
        }
    }
}

#[test]
fn the_deadline_and_a_clients_abort_act_until_the_decision_was_handed_to_the_log() {
    for event in [Event::DeadlinePassed, ABORT_REQUESTED] {
        let mut half = Rig::preparing(false, BOTH);
        half.vote("east", Vote::Yes);
        for mut rig in [
            Rig::active(false, BOTH),
            Rig::preparing(false, BOTH),
            half.clone(),
        ] {
            let effects = rig.step(event.clone());
            let decided = appended(&effects).unwrap();
            assert_eq!(decided.verdict.outcome(), Outcome::Aborted);
            assert_eq!(rig.machine.told(), Some(decided));
        }
    }
}

#[test]
fn the_decision_that_was_in_the_log_first_stands() {
    let commit = decision(
        Verdict::Commit,
        &[("east", Part::Updates), ("west", Part::ReadOnly)],
    );
    let mut rig = Rig::deciding(false);
    let effects = rig.step(Event::Forced(Standing::Earlier(commit.clone())));
    assert_eq!(sent(&effects), [("east", Commit)]);
    assert_eq!(rig.machine.told(), Some(&commit));

    let abort = decision(aborted(AbortCode::Requested), &[("east", Part::Updates)]);
    let mut rig = Rig::deciding(false);
    let effects = rig.step(Event::Forced(Standing::Earlier(abort.clone())));
    assert_eq!(sent(&effects), [("east", Abort), ("west", Abort)]);
    assert_eq!(
        forced(&effects).or(appended(&effects)),
        None,
        "it has a record"
    );
    assert_eq!(rig.machine.told(), Some(&abort));
}

#[test]
fn an_undecided_transaction_is_pending_for_every_name() {
    for rig in [
        Rig::active(false, BOTH),
        Rig::preparing(false, BOTH),
        Rig::deciding(true),
    ] {
        for participant in ["east", "nobody"] {
            assert_eq!(rig.machine.inform(&name(participant)), Inform::Pending);
        }
    }
}

#[test]
fn a_transaction_without_branches_commits() {
    let mut rig = Rig::empty(false);
    let effects = rig.step(Event::CommitRequested);
    assert_eq!(appended(&effects).unwrap().verdict, Verdict::Commit);
    assert_eq!(rig.machine.transaction_state(), TransactionState::Committed);
}

// Unknown is not no (rules 5, 9).

#[test]
fn an_unknown_answer_is_asked_again_and_never_counts_as_a_no() {
    let no_vote = [
        unknown(),
        refused(),
        answered(Reply::Committed),
        answered(Reply::Aborted),
        answered(Reply::VoteLost),
        answered(Reply::OutcomeDiffers),
    ];
    for delivery in no_vote {
        let mut rig = Rig::preparing(false, BOTH);
        for attempt in 2..5 {
            let effects = rig.deliver("east", Prepare, delivery.clone());
            assert!(
                matches!(effects[..], [Effect::Send { attempt: a, pace: Pace::Backoff, .. }] if a == attempt)
            );
            assert_eq!(sent(&effects), [("east", Prepare)]);
            assert_eq!(
                prepare_of(&effects, "east"),
                ("[1]", None),
                "the same prepare"
            );
            assert_eq!(*rig.machine.state(), State::Preparing);
        }
        rig.vote("west", Vote::Yes);
        let effects = rig.vote("east", Vote::Yes);
        assert_eq!(forced(&effects).unwrap().verdict, Verdict::Commit);
    }
}

#[test]
fn a_branch_that_did_not_answer_by_the_deadline_is_still_sent_the_abort() {
    let mut rig = Rig::preparing(false, BOTH);
    rig.vote("east", Vote::Yes);
    rig.deliver("west", Prepare, unknown());
    let effects = rig.step(Event::DeadlinePassed);
    assert_eq!(sent(&effects), [("east", Abort), ("west", Abort)]);
    let decided = appended(&effects).unwrap();
    assert_eq!(decided.branches[&name("west")], Part::Unanswered);
}

#[test]
fn a_refused_branch_is_still_sent_the_abort() {
    let mut rig = Rig::preparing(false, BOTH);
    let effects = rig.vote("east", no(RefusalCode::Refused));
    assert_eq!(sent(&effects), [("east", Abort), ("west", Abort)]);
    assert_eq!(rig.phase("east"), BranchPhase::Refused);
    rig.deliver("west", Abort, answered(Reply::Aborted));
    assert!(rig.machine.is_delivering_aborts(), "east is owed its abort");
    let again = rig.deliver("east", Abort, unknown());
    assert_eq!(sent(&again), [("east", Abort)]);
    rig.deliver("east", Abort, answered(Reply::Aborted));
    assert_eq!(rig.phase("east"), BranchPhase::Refused, "and it stays so");
    assert_eq!(rig.machine.transaction_state(), TransactionState::Aborted);
}

#[test]
fn one_no_decides_without_waiting_for_the_others() {
    let mut rig = Rig::preparing(false, BOTH);
    let effects = rig.vote("west", no(RefusalCode::Conflict));
    let expected = AbortReason {
        participant: Some(name("west")),
        detail: Some("because".to_owned()),
        ..AbortReason::new(AbortCode::Conflict)
    };
    assert_eq!(reason(&effects), expected);
    let parts = &appended(&effects).unwrap().branches;
    assert_eq!(
        *parts,
        decision(
            Verdict::Commit,
            &[("east", Part::Unanswered), ("west", Part::Refused)]
        )
        .branches
    );
    // A yes that was on its way changes nothing: the abort follows it.
    assert_eq!(rig.vote("east", Vote::Yes), []);
    assert_eq!(rig.machine.inform(&name("east")), Inform::Aborted);
}

#[test]
fn once_decided_unknown_means_ask_again_without_an_end() {
    for (mut rig, kind) in [(Rig::committing(false), Commit), {
        let mut rig = Rig::preparing(false, BOTH);
        rig.step(Event::DeadlinePassed);
        (rig, Abort)
    }] {
        for attempt in 2..200 {
            let of_this_kind = [
                unknown(),
                refused(),
                answered(Reply::Vote(Vote::Yes)),
                answered(Reply::Vote(no(RefusalCode::Refused))),
            ];
            let delivery = of_this_kind[attempt as usize % 4].clone();
            let effects = rig.deliver("east", kind, delivery);
            assert_eq!(sent(&effects), [("east", kind)]);
            assert!(
                matches!(effects[..], [Effect::Send { attempt: a, pace: Pace::Backoff, .. }] if a == attempt)
            );
        }
        // Nor does the other outcome's acknowledgement count.
        let wrong = if kind == Commit {
            Reply::Aborted
        } else {
            Reply::Committed
        };
        assert_eq!(
            sent(&rig.deliver("east", kind, answered(wrong))),
            [("east", kind)]
        );
    }
}

#[test]
fn the_wire_s_refusal_codes_become_the_reasons_that_the_wire_names() {
    for (refusal, code) in [
        (RefusalCode::Refused, AbortCode::Refused),
        (RefusalCode::Conflict, AbortCode::Conflict),
        (RefusalCode::WorkLost, AbortCode::WorkLost),
        (RefusalCode::Deadline, AbortCode::Timeout),
        (RefusalCode::Aborted, AbortCode::Refused),
        (RefusalCode::BelowLowWater, AbortCode::Refused),
    ] {
        let mut rig = Rig::preparing(false, BOTH);
        let effects = rig.vote("east", no(refusal));
        assert_eq!(reason(&effects).code, code, "{refusal:?}");
        assert_eq!(reason(&effects).participant, Some(name("east")));
    }
}

#[test]
fn a_live_prepare_below_the_low_water_mark_is_an_alarm() {
    let mut rig = Rig::preparing(false, BOTH);
    let effects = rig.vote("east", no(RefusalCode::BelowLowWater));
    assert_eq!(alarms(&effects), [Alarm::BelowLowWater(name("east"))]);
}

#[test]
fn who_never_even_connected_is_unreachable_and_who_only_stayed_silent_timed_out() {
    let timeout = |deliveries: Vec<_>| {
        let mut rig = Rig::preparing(false, BOTH);
        rig.vote("east", Vote::Yes);
        for delivery in deliveries {
            rig.deliver("west", Prepare, delivery);
        }
        let reason = reason(&rig.step(Event::DeadlinePassed));
        assert_eq!(reason.participant, Some(name("west")), "not who answered");
        (reason.code, reason.detail)
    };
    let refusal = Some("connection refused".to_owned());
    let silence = Some("timed out".to_owned());
    assert_eq!(timeout(vec![]), (AbortCode::Timeout, None));
    assert_eq!(
        timeout(vec![refused(), refused()]),
        (AbortCode::Unreachable, refusal.clone())
    );
    assert_eq!(timeout(vec![unknown()]), (AbortCode::Timeout, silence));
    assert_eq!(
        timeout(vec![unknown(), refused()]),
        (AbortCode::Timeout, refusal)
    );

    let mut rig = Rig::active(false, BOTH);
    let reason = reason(&rig.step(Event::DeadlinePassed));
    assert_eq!(
        reason,
        AbortReason::new(AbortCode::Timeout),
        "nobody was asked"
    );
}

#[test]
fn a_branchs_last_error_is_shown_bounded_until_it_answers() {
    let mut rig = Rig::preparing(false, BOTH);
    let error = format!("a\0{}", "b".repeat(5_000));
    rig.deliver(
        "east",
        Prepare,
        unanimous_protocol::message::Delivery::Unknown(error),
    );
    let shown = rig.machine.branches().next().unwrap();
    assert_eq!(shown.last_error.unwrap().len(), 1_024);
    assert!(shown.last_error.unwrap().starts_with("ab"));
    assert_eq!(shown.attempts, 2);
    rig.vote("east", Vote::Yes);
    assert_eq!(rig.machine.branches().next().unwrap().last_error, None);
}

// "Not found" is never success (rule 6).

#[test]
fn vote_lost_is_an_alarm_and_never_an_acknowledgement() {
    let mut rig = Rig::committing(false);
    rig.deliver("west", Commit, answered(Reply::Committed));
    for _ in 0..3 {
        let effects = rig.deliver("east", Commit, answered(Reply::VoteLost));
        assert_eq!(alarms(&effects), [Alarm::VoteLost(name("east"))]);
        assert!(
            matches!(
                effects.last(),
                Some(Effect::Send {
                    pace: Pace::Longest,
                    ..
                })
            ),
            "asked again at the longest interval"
        );
        assert_eq!(sent(&effects), [("east", Commit)]);
        assert_eq!(
            rig.machine.transaction_state(),
            TransactionState::Committing
        );
        assert_eq!(rig.phase("east"), BranchPhase::Committing);
    }
}

#[test]
fn an_outcome_that_differs_is_an_alarm_and_never_an_acknowledgement() {
    let mut aborting = Rig::preparing(false, BOTH);
    aborting.step(Event::DeadlinePassed);
    for (mut rig, kind, state) in [
        (Rig::committing(false), Commit, TransactionState::Committing),
        (aborting, Abort, TransactionState::Aborting),
    ] {
        let other = if kind == Commit {
            Reply::Committed
        } else {
            Reply::Aborted
        };
        rig.deliver("west", kind, answered(other));
        let effects = rig.deliver("east", kind, answered(Reply::OutcomeDiffers));
        assert_eq!(alarms(&effects), [Alarm::OutcomeDiffers(name("east"))]);
        assert_eq!(sent(&effects), [("east", kind)]);
        assert!(matches!(
            effects.last(),
            Some(Effect::Send {
                pace: Pace::Longest,
                ..
            })
        ));
        assert_eq!(rig.machine.transaction_state(), state);
    }
}

// Everything is idempotent (rule 8).

#[test]
fn a_repeated_answer_changes_nothing() {
    let mut rig = Rig::preparing(false, BOTH);
    rig.vote("east", Vote::Yes);
    let before = rig.machine.clone();
    assert_eq!(rig.vote("east", Vote::Yes), []);
    assert_eq!(rig.deliver("east", Prepare, unknown()), []);
    assert_eq!(rig.machine, before);

    let mut rig = Rig::committing(false);
    rig.deliver("east", Commit, answered(Reply::Committed));
    let before = rig.machine.clone();
    for delivery in [
        answered(Reply::Committed),
        answered(Reply::VoteLost),
        unknown(),
    ] {
        assert_eq!(rig.deliver("east", Commit, delivery), []);
    }
    assert_eq!(rig.machine, before);
}

#[test]
fn a_repeated_request_of_a_client_changes_nothing() {
    let mut rig = Rig::preparing(false, BOTH);
    let before = rig.machine.clone();
    assert_eq!(rig.step(Event::CommitRequested), []);
    assert_eq!(rig.machine, before);
    rig.step(ABORT_REQUESTED);
    let before = rig.machine.clone();
    assert_eq!(rig.step(ABORT_REQUESTED), []);
    assert_eq!(rig.step(Event::CommitRequested), []);
    assert_eq!(rig.machine, before);
}

#[test]
fn an_answer_of_a_stranger_changes_nothing() {
    for kind in [Prepare, Commit, Abort] {
        let mut rig = Rig::preparing(false, BOTH);
        let before = rig.machine.clone();
        assert_eq!(rig.deliver("north", kind, answered(Reply::Committed)), []);
        assert_eq!(
            rig.deliver("north", kind, answered(Reply::Vote(Vote::Yes))),
            []
        );
        assert_eq!(rig.machine, before);
    }
}

#[test]
fn a_branch_may_not_take_back_a_yes() {
    // Before the decision its no is believed, for aborting harms nobody; and somebody has to look.
    let mut rig = Rig::preparing(false, BOTH);
    rig.vote("east", Vote::Yes);
    let effects = rig.vote("east", no(RefusalCode::Refused));
    assert_eq!(alarms(&effects), [Alarm::VoteChanged(name("east"))]);
    assert_eq!(sent(&effects), [("east", Abort), ("west", Abort)]);

    // A yes that turns read-only stays a yes: what it promised is still to be committed.
    let mut rig = Rig::preparing(false, BOTH);
    rig.vote("east", Vote::Yes);
    let effects = rig.vote("east", Vote::ReadOnly);
    assert_eq!(alarms(&effects), [Alarm::VoteChanged(name("east"))]);
    let effects = rig.vote("west", Vote::ReadOnly);
    let updating: Vec<_> = forced(&effects).unwrap().updating().collect();
    assert_eq!(updating, [&name("east")]);

    // Once the decision is under way it is an alarm and nothing else.
    for deciding in [Rig::deciding(false), Rig::committing(false)] {
        for vote in [no(RefusalCode::Refused), Vote::ReadOnly] {
            let mut rig = deciding.clone();
            let effects = rig.vote("east", vote);
            assert_eq!(sent(&effects), []);
            assert_eq!(rig.machine.state(), deciding.machine.state());
        }
    }
    let effects = Rig::deciding(false).vote("east", no(RefusalCode::Refused));
    assert_eq!(alarms(&effects), [Alarm::VoteChanged(name("east"))]);
}

// Presumed abort; finishing and forgetting (rules 14, 15).

#[test]
fn an_abort_without_a_key_is_told_at_once_and_needs_no_forced_write() {
    let mut rig = Rig::preparing(false, BOTH);
    let effects = rig.step(ABORT_REQUESTED);
    assert_eq!(forced(&effects), None);
    assert!(appended(&effects).unwrap().is_finished_at_once());
    assert_eq!(rig.machine.transaction_state(), TransactionState::Aborting);
    assert_eq!(rig.machine.inform(&name("east")), Inform::Aborted);
    assert!(rig.machine.is_applied());
    assert!(!rig.machine.is_undecided() && !rig.machine.is_committing());
}

#[test]
fn a_clients_reason_is_the_aborts_detail() {
    let mut rig = Rig::preparing(false, BOTH);
    let detail = Some("changed her mind".to_owned());
    let effects = rig.step(Event::AbortRequested {
        detail: detail.clone(),
    });
    let expected = AbortReason {
        detail,
        ..AbortReason::new(AbortCode::Requested)
    };
    assert_eq!(reason(&effects), expected);
}

#[test]
fn a_commit_is_finished_only_when_every_updating_branch_has_acknowledged() {
    let mut rig = Rig::committing(false);
    assert!(rig.machine.is_committing() && !rig.machine.is_applied());
    assert_eq!(rig.deliver("east", Commit, answered(Reply::Committed)), []);
    assert!(rig.machine.is_committing() && !rig.machine.is_applied());
    let effects = rig.deliver("west", Commit, answered(Reply::Committed));
    assert_eq!(effects, [Effect::Finish]);
    assert!(rig.machine.is_applied());
    assert_eq!(rig.machine.transaction_state(), TransactionState::Committed);
}

#[test]
fn a_transaction_leaves_memory_only_when_its_record_is_durable() {
    let mut committed = Rig::committing(false);
    committed.deliver("east", Commit, answered(Reply::Committed));
    committed.deliver("west", Commit, answered(Reply::Committed));
    let mut aborted = Rig::active(false, BOTH);
    aborted.step(ABORT_REQUESTED);
    let mut read_only = Rig::preparing(false, &["east"]);
    read_only.vote("east", Vote::ReadOnly);
    for mut rig in [committed, aborted, read_only] {
        assert!(matches!(rig.machine.state(), State::Ended { .. }));
        assert!(!rig.machine.is_over());
        rig.step(Event::Appended);
        assert!(rig.machine.is_over());
    }
}

#[test]
fn an_abort_whose_record_is_durable_stays_until_its_branches_acknowledged() {
    let mut rig = Rig::preparing(false, BOTH);
    rig.step(ABORT_REQUESTED);
    rig.step(Event::Appended);
    rig.deliver("east", Abort, answered(Reply::Aborted));
    assert!(!rig.machine.is_over());
    rig.deliver("west", Abort, answered(Reply::Aborted));
    assert!(rig.machine.is_over());
    assert_eq!(rig.phase("east"), BranchPhase::Aborted);
}

// Read-only (rule 16).

#[test]
fn a_read_only_branch_is_left_out_of_the_second_phase() {
    for event in [Event::Forced(Standing::Proposed), Event::DeadlinePassed] {
        let mut rig = Rig::preparing(false, BOTH);
        rig.vote("east", Vote::ReadOnly);
        if matches!(event, Event::Forced(_)) {
            rig.vote("west", Vote::Yes);
        }
        let effects = rig.step(event);
        let called: Vec<_> = sent(&effects).into_iter().map(|(to, _)| to).collect();
        assert_eq!(called, ["west"]);
        assert_eq!(rig.phase("east"), BranchPhase::ReadOnly);
    }
}

#[test]
fn a_read_only_branch_of_a_committed_transaction_is_told_aborted() {
    let mut rig = Rig::preparing(false, BOTH);
    rig.vote("east", Vote::ReadOnly);
    // Its late duplicate did the work again and says yes: nobody counts it.
    rig.vote("east", Vote::Yes);
    let effects = rig.vote("west", Vote::Yes);
    assert_eq!(
        forced(&effects).unwrap().branches[&name("east")],
        Part::ReadOnly
    );
    rig.step(Event::Forced(Standing::Proposed));
    assert_eq!(rig.machine.inform(&name("east")), Inform::Aborted);
    assert_eq!(rig.machine.inform(&name("west")), Inform::Committed);
    assert_eq!(
        rig.machine.inform(&name("north")),
        Inform::Pending,
        "a name it does not have"
    );
}

#[test]
fn an_aborted_transaction_is_aborted_for_every_name() {
    let mut rig = Rig::preparing(false, BOTH);
    rig.vote("east", Vote::ReadOnly);
    rig.step(ABORT_REQUESTED);
    for participant in ["east", "west", "north"] {
        assert_eq!(rig.machine.inform(&name(participant)), Inform::Aborted);
    }
}

#[test]
fn where_nobody_updates_anything_there_is_no_commit_point_to_force() {
    let mut rig = Rig::preparing(false, BOTH);
    rig.vote("east", Vote::ReadOnly);
    let effects = rig.vote("west", Vote::ReadOnly);
    assert!(matches!(&effects[..], [Effect::Append(it)] if it.verdict == Verdict::Commit));
    assert_eq!(rig.machine.transaction_state(), TransactionState::Committed);

    let mut rig = Rig::preparing(true, BOTH);
    rig.vote("east", Vote::ReadOnly);
    let effects = rig.vote("west", Vote::ReadOnly);
    assert!(matches!(&effects[..], [Effect::Force(_)]), "but for a key");
    assert_eq!(rig.machine.told(), None);
    assert_eq!(rig.step(Event::Forced(Standing::Proposed)), []);
    assert!(rig.machine.is_over());
}

// The low-water mark (rule 15).

#[test]
fn a_commit_holds_the_low_water_mark_until_its_finish_is_durable() {
    let mut rig = Rig::committing(false);
    assert!(rig.machine.holds_low_water());
    rig.deliver("east", Commit, answered(Reply::Committed));
    assert!(rig.machine.holds_low_water());
    rig.deliver("west", Commit, answered(Reply::Committed));
    assert!(
        rig.machine.holds_low_water(),
        "a crash now would bring it back"
    );
    rig.step(Event::Appended);
    assert!(!rig.machine.holds_low_water());
}

#[test]
fn an_abort_holds_the_low_water_mark_until_it_may_be_told_and_no_longer() {
    let mut rig = Rig::preparing(false, BOTH);
    assert!(rig.machine.holds_low_water());
    rig.step(ABORT_REQUESTED);
    assert!(
        !rig.machine.holds_low_water(),
        "whoever is still to be told"
    );
    let mut rig = Rig::preparing(true, BOTH);
    rig.step(ABORT_REQUESTED);
    assert!(rig.machine.holds_low_water());
    rig.step(Event::Forced(Standing::Proposed));
    assert!(!rig.machine.holds_low_water());
}

#[test]
fn what_may_still_commit_holds_the_low_water_mark() {
    let active = Rig::active(false, BOTH);
    let preparing = Rig::preparing(false, BOTH);
    let mut deciding = Rig::preparing(false, BOTH);
    deciding.vote("east", Vote::Yes);
    deciding.vote("west", Vote::Yes);
    for mut rig in [active, preparing, deciding] {
        assert!(rig.machine.holds_low_water());
        // Not decided, and never will be here: another life may find what became of it.
        rig.step(Event::LogWentBack);
        assert!(rig.machine.holds_low_water());
    }
}

// Nobody waits behind a dead participant (rule 17).

#[test]
fn every_branch_is_asked_and_told_at_once() {
    let mut rig = Rig::active(false, &["east", "north", "west"]);
    let effects = rig.step(Event::CommitRequested);
    let all = ["east", "north", "west"];
    assert_eq!(sent(&effects), all.map(|it| (it, Prepare)));
    rig.vote("east", Vote::Yes);
    rig.vote("north", Vote::Yes);
    rig.vote("west", Vote::Yes);
    let effects = rig.step(Event::Forced(Standing::Proposed));
    assert_eq!(sent(&effects), all.map(|it| (it, Commit)));
    // One that is dead holds up nobody's acknowledgement.
    rig.deliver("east", Commit, refused());
    rig.deliver("west", Commit, answered(Reply::Committed));
    assert_eq!(rig.phase("west"), BranchPhase::Committed);
    assert_eq!(rig.phase("east"), BranchPhase::Committing);
}

// Bounds (rule 20).

#[test]
fn a_transaction_has_so_many_branches_and_no_more() {
    let mut rig = Rig::empty(false);
    for number in 0..BRANCHES_MAX {
        let effects = rig.step(enlist(&format!("p{number}"), "[]", None));
        assert_eq!(effects, [Effect::Answer(Ok(Enlisted::New))]);
    }
    let one_more = rig.step(enlist("one-more", "[]", None));
    assert_eq!(
        one_more,
        [Effect::Answer(Err(EnlistRefused::TooManyBranches))]
    );
    let repeat = rig.step(enlist("p0", "[]", None));
    assert_eq!(
        repeat,
        [Effect::Answer(Ok(Enlisted::Repeated))],
        "a repeat is none"
    );
    assert_eq!(rig.machine.branches().count(), BRANCHES_MAX);
}

#[test]
fn undelivered_aborts_may_be_dropped_and_undelivered_commits_may_not() {
    let mut rig = Rig::preparing(false, BOTH);
    rig.step(Event::DeadlinePassed);
    assert_eq!(rig.step(Event::AbortsDropped), []);
    assert!(!rig.machine.is_delivering_aborts());
    assert_eq!(
        rig.machine.inform(&name("east")),
        Inform::Aborted,
        "it will ask"
    );
    assert_eq!(rig.deliver("east", Abort, unknown()), []);
    rig.step(Event::Appended);
    assert!(rig.machine.is_over());

    let mut rig = Rig::committing(false);
    let before = rig.machine.clone();
    assert_eq!(rig.step(Event::AbortsDropped), []);
    assert_eq!(rig.machine, before);
}

#[test]
fn aborts_that_are_dropped_do_not_let_a_key_go_before_its_outcome_is_durable() {
    let mut rig = Rig::preparing(true, BOTH);
    rig.step(Event::DeadlinePassed);
    rig.step(Event::AbortsDropped);
    assert_eq!(rig.machine.told(), None);
    assert!(!rig.machine.is_over());
    rig.step(Event::Forced(Standing::Proposed));
    assert!(rig.machine.is_over());
}

// Idempotency keys (rule 21).

#[test]
fn a_keyed_abort_is_told_to_clients_only_once_durable_and_to_branches_at_once() {
    let mut rig = Rig::preparing(true, BOTH);
    let effects = rig.step(ABORT_REQUESTED);
    assert_eq!(appended(&effects), None);
    assert_eq!(
        forced(&effects).unwrap().verdict.outcome(),
        Outcome::Aborted
    );
    assert_eq!(sent(&effects), [("east", Abort), ("west", Abort)]);
    assert_eq!(rig.machine.inform(&name("east")), Inform::Aborted);
    assert_eq!(rig.machine.told(), None);
    assert!(!rig.machine.is_applied());
    assert_eq!(rig.machine.transaction_state(), TransactionState::Deciding);
    // Nor when every branch has acknowledged.
    rig.deliver("east", Abort, answered(Reply::Aborted));
    rig.deliver("west", Abort, answered(Reply::Aborted));
    assert_eq!(rig.machine.told(), None);
    assert!(!rig.machine.is_over());
    rig.step(Event::Forced(Standing::Proposed));
    assert_eq!(rig.machine.transaction_state(), TransactionState::Aborted);
    assert!(rig.machine.is_over());
}

#[test]
fn a_keyed_abort_that_is_durable_is_told_while_branches_are_still_owed() {
    let mut rig = Rig::preparing(true, BOTH);
    rig.step(ABORT_REQUESTED);
    rig.step(Event::Forced(Standing::Proposed));
    assert_eq!(rig.machine.transaction_state(), TransactionState::Aborting);
    assert!(rig.machine.told().is_some());
}

fn duplicate() -> AbortReason {
    AbortReason {
        winner: Some(id(2)),
        ..AbortReason::new(AbortCode::Duplicate)
    }
}

#[test]
fn of_two_commits_under_one_key_the_loser_aborts_as_a_duplicate_of_the_winner() {
    let mut rig = Rig::deciding(true);
    let effects = rig.step(Event::Forced(Standing::KeyHeldBy(id(2))));
    assert_eq!(reason(&effects), duplicate());
    assert_eq!(
        forced(&effects),
        None,
        "its own record carries no key and is not forced"
    );
    assert_eq!(sent(&effects), [("east", Abort), ("west", Abort)]);
    assert_eq!(
        rig.machine.told().unwrap().verdict,
        Verdict::Abort(duplicate())
    );
}

#[test]
fn an_abort_that_lost_its_key_is_a_duplicate_too() {
    let mut rig = Rig::preparing(true, BOTH);
    rig.step(Event::DeadlinePassed);
    let effects = rig.step(Event::Forced(Standing::KeyHeldBy(id(2))));
    assert_eq!(reason(&effects), duplicate());
    assert_eq!(sent(&effects), [], "the branches were told already");
    assert_eq!(
        rig.machine.told().unwrap().verdict,
        Verdict::Abort(duplicate())
    );
    rig.step(Event::AbortsDropped);
    assert!(!rig.machine.is_over());
    rig.step(Event::Appended);
    assert!(rig.machine.is_over());
}

#[test]
fn a_keyed_abort_takes_the_reason_that_was_in_the_log_first() {
    let mut rig = Rig::preparing(true, BOTH);
    rig.step(Event::DeadlinePassed);
    let earlier = decision(aborted(AbortCode::Requested), &[]);
    rig.step(Event::Forced(Standing::Earlier(earlier)));
    let told = rig.machine.told().unwrap();
    assert_eq!(told.verdict, aborted(AbortCode::Requested));
    assert_eq!(told.branches.len(), 2, "the branches are ours");
}

#[test]
fn a_log_that_holds_a_commit_of_what_this_life_aborted_is_an_alarm_and_nobody_is_told() {
    let mut rig = Rig::preparing(true, BOTH);
    rig.step(Event::DeadlinePassed);
    let commit = decision(Verdict::Commit, &[("east", Part::Updates)]);
    let effects = rig.step(Event::Forced(Standing::Earlier(commit)));
    assert_eq!(effects, [Effect::Alarm(Alarm::DecisionContradicted)]);
    assert_eq!(rig.machine.told(), None);
}

// Interactive work, and enlisting (rules 8, 22, and docs/API.md's paragraph sentence by sentence).

const NEW: Effect = Effect::Answer(Ok(Enlisted::New));
const REPEATED: Effect = Effect::Answer(Ok(Enlisted::Repeated));

fn refusal(why: EnlistRefused) -> Effect {
    Effect::Answer(Err(why))
}

#[test]
fn a_repeat_of_an_enlist_returns_the_branch_and_other_operations_are_refused() {
    let mut rig = Rig::empty(false);
    assert_eq!(rig.step(enlist("east", r#"[{"a":1,"b":2}]"#, None)), [NEW]);
    let before = rig.machine.clone();
    assert_eq!(
        rig.step(enlist("east", r#"[ {"b": 2, "a": 1} ]"#, None)),
        [REPEATED],
        "the same body in another spelling"
    );
    for other in ["[]", r#"[{"a":1.0,"b":2}]"#] {
        let effects = rig.step(enlist("east", other, None));
        assert_eq!(effects, [refusal(EnlistRefused::AlreadyEnlisted)]);
    }
    assert_eq!(rig.machine, before, "operations are given once");
}

#[test]
fn a_repeat_of_an_enlist_with_its_session_returns_the_branch() {
    let mut rig = Rig::empty(false);
    assert_eq!(rig.step(enlist("east", "[1]", Some("s1"))), [NEW]);
    assert_eq!(rig.step(enlist("east", "[1]", Some("s1"))), [REPEATED]);
    let other = rig.step(enlist("east", "[2]", Some("s1")));
    assert_eq!(other, [refusal(EnlistRefused::AlreadyEnlisted)]);
    let effects = rig.step(Event::CommitRequested);
    assert_eq!(prepare_of(&effects, "east"), ("[1]", Some("s1")));
}

#[test]
fn a_named_branch_takes_the_first_session_that_comes_and_keeps_its_operations() {
    let mut rig = Rig::empty(false);
    rig.step(enlist("east", "[1]", None));
    assert_eq!(rig.step(enlist("east", "[2]", Some("s1"))), [REPEATED]);
    // So is a repeat of that request.
    assert_eq!(rig.step(enlist("east", "[2]", Some("s1"))), [REPEATED]);
    // An enlist without a session says nothing about it.
    assert_eq!(rig.step(enlist("east", "[1]", None)), [REPEATED]);
    let other = rig.step(enlist("east", "[2]", None));
    assert_eq!(other, [refusal(EnlistRefused::AlreadyEnlisted)]);
    let effects = rig.step(Event::CommitRequested);
    assert_eq!(prepare_of(&effects, "east"), ("[1]", Some("s1")));
    let again = rig.deliver("east", Prepare, unknown());
    assert_eq!(
        prepare_of(&again, "east"),
        ("[1]", Some("s1")),
        "every time"
    );
}

#[test]
fn another_session_than_the_first_is_work_lost_and_the_transaction_aborts() {
    let named_first = {
        let mut rig = Rig::empty(false);
        rig.step(enlist("east", "[1]", None));
        rig.step(enlist("east", "[1]", Some("s1")));
        rig
    };
    let itself = {
        let mut rig = Rig::empty(false);
        rig.step(enlist("east", "[1]", Some("s1")));
        rig
    };
    for mut rig in [named_first, itself] {
        rig.step(enlist("west", "[]", None));
        // Whatever its operations are.
        let effects = rig.step(enlist("east", "[2]", Some("s2")));
        assert_eq!(effects[0], refusal(EnlistRefused::WorkLost));
        assert_eq!(reason(&effects).code, AbortCode::WorkLost);
        assert_eq!(reason(&effects).participant, Some(name("east")));
        assert_eq!(rig.machine.transaction_state(), TransactionState::Aborting);
        assert_eq!(
            sent(&effects),
            [("east", Abort)],
            "it may hold work, west was never asked"
        );
        assert_eq!(rig.phase("west"), BranchPhase::Aborted);
    }
}

#[test]
fn nobody_enlists_once_commit_or_abort_has_begun() {
    let mut aborting = Rig::active(false, BOTH);
    aborting.step(ABORT_REQUESTED);
    for mut rig in [
        Rig::preparing(false, BOTH),
        Rig::deciding(false),
        Rig::committing(false),
        aborting,
    ] {
        let before = rig.machine.clone();
        for event in [
            enlist("north", "[]", None),
            enlist("east", "[1]", None),
            enlist("east", "[1]", Some("s2")),
        ] {
            assert_eq!(rig.step(event), [refusal(EnlistRefused::NotActive)]);
        }
        assert_eq!(rig.machine, before);
    }
}

#[test]
fn a_branch_that_enlisted_itself_is_sent_the_abort_before_it_was_asked_and_a_named_one_is_not() {
    for event in [ABORT_REQUESTED, Event::DeadlinePassed] {
        let mut rig = Rig::empty(false);
        rig.step(enlist("east", "[]", Some("s1")));
        rig.step(enlist("west", "[1]", None));
        let effects = rig.step(event);
        assert_eq!(sent(&effects), [("east", Abort)]);
        let parts = &appended(&effects).unwrap().branches;
        assert_eq!(parts[&name("east")], Part::Unanswered);
        assert_eq!(parts[&name("west")], Part::Untouched);
    }
}

// Recovery.

#[test]
fn recovery_tells_every_updating_branch_again_and_nobody_else() {
    let decided = decision(
        Verdict::Commit,
        &[
            ("east", Part::Updates),
            ("north", Part::ReadOnly),
            ("west", Part::Updates),
        ],
    );
    let mut effects = Vec::new();
    let machine = Transaction::recover(id(1), decided.clone(), &mut effects);
    assert_eq!(sent(&effects), [("east", Commit), ("west", Commit)]);
    assert!(machine.is_committing());
    assert_eq!(machine.told(), Some(&decided));
    assert_eq!(machine.inform(&name("east")), Inform::Committed);
    assert_eq!(machine.inform(&name("north")), Inform::Aborted);

    let mut rig = Rig { machine };
    assert_eq!(rig.step(ABORT_REQUESTED), []);
    assert_eq!(rig.step(Event::DeadlinePassed), []);
    assert_eq!(
        sent(&rig.deliver("east", Commit, unknown())),
        [("east", Commit)]
    );
    rig.deliver("west", Commit, answered(Reply::Committed));
    let effects = rig.deliver("east", Commit, answered(Reply::Committed));
    assert_eq!(effects, [Effect::Finish]);
    rig.step(Event::Appended);
    assert!(rig.machine.is_over());
}

#[test]
fn an_aborts_record_owes_nothing_after_a_crash() {
    let decided = decision(aborted(AbortCode::Timeout), &[("east", Part::Unanswered)]);
    let mut effects = Vec::new();
    let machine = Transaction::recover(id(1), decided, &mut effects);
    assert_eq!(effects, []);
    assert!(machine.is_over());
    assert_eq!(machine.inform(&name("east")), Inform::Aborted);
}

// The log went back (rule 11), or would not take a record (rule 23).

#[test]
fn once_the_log_went_back_nothing_is_decided_not_even_by_the_deadline() {
    for mut rig in [
        Rig::active(false, BOTH),
        Rig::preparing(false, BOTH),
        Rig::preparing(true, BOTH),
    ] {
        rig.step(Event::LogWentBack);
        for event in all_but_the_log() {
            let effects = rig.step(event.clone());
            assert_eq!(forced(&effects), None, "{event:?}");
            assert_eq!(appended(&effects), None, "{event:?}");
            let outcomes = sent(&effects)
                .into_iter()
                .filter(|(_, kind)| *kind != Prepare)
                .count();
            assert_eq!(outcomes, 0, "{event:?}");
        }
        rig.vote("west", Vote::Yes);
        assert!(rig.machine.is_undecided());
        assert_eq!(rig.machine.inform(&name("east")), Inform::Pending);
    }
}

#[test]
fn a_commit_decided_before_the_log_went_back_is_still_delivered() {
    let mut rig = Rig::committing(false);
    rig.step(Event::LogWentBack);
    assert_eq!(
        sent(&rig.deliver("east", Commit, unknown())),
        [("east", Commit)]
    );
    rig.deliver("east", Commit, answered(Reply::Committed));
    rig.deliver("west", Commit, answered(Reply::Committed));
    assert!(rig.machine.is_applied());
}

#[test]
fn a_decision_that_the_log_would_not_take_aborts_that_transaction() {
    for mut rig in [Rig::deciding(false), Rig::deciding(true)] {
        let effects = rig.step(Event::Forced(Standing::Refused("too large".to_owned())));
        assert_eq!(sent(&effects), [("east", Abort), ("west", Abort)]);
        let told = rig
            .machine
            .told()
            .expect("it is clear that there is no record");
        assert_eq!(told.verdict.outcome(), Outcome::Aborted);
    }
}
