//! Backoff, deadlines, withdrawal, and participants that are not registered.

use super::*;
use RequestKind::{Abort, Commit, Prepare as Ask};

const MS: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn a_repeated_call_waits_longer_each_time_up_to_the_cap_of_its_kind() {
    let office = Office::new(|seen| at_once(heard(seen.kind())));
    for (kind, cap_ms) in [(Ask, 1_000), (Commit, 10_000), (Abort, 10_000)] {
        for (attempt, uncapped_ms) in [(2, 20), (3, 40), (6, 320), (9, 2_560), (60, 1 << 40)] {
            let whole = Duration::from_millis(uncapped_ms.min(cap_ms));
            office.transport.seen.lock().unwrap().clear();
            let sent_at = office.transport.began.elapsed();
            for number in 0..40 {
                office.send_again(number, kind, attempt);
            }
            pass(11_000).await;
            let waits: Vec<_> = office.seen().iter().map(|seen| seen.at - sent_at).collect();
            assert_eq!(waits.len(), 40);
            // The timer's granularity is a millisecond, upwards.
            let within = |wait: &Duration| whole / 2 <= *wait && *wait <= whole + 2 * MS;
            assert!(waits.iter().all(within), "{kind:?} {attempt}: {waits:?}");
            let spread = waits
                .iter()
                .max()
                .unwrap()
                .abs_diff(*waits.iter().min().unwrap());
            assert!(spread > whole / 4, "{kind:?} {attempt}: {waits:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_only_an_operator_can_mend_waits_the_longest_interval_at_once() {
    let office = Office::new(|seen| at_once(heard(seen.kind())));
    for (number, kind) in [(1, Commit), (2, Abort)] {
        let call = office.call(number, "east", kind);
        office.couriers.send(Call {
            attempt: 2,
            pace: Pace::Longest,
            ..call
        });
    }
    pass(9_999).await;
    assert!(office.seen().is_empty());
    pass(3).await;
    assert_eq!(office.seen().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_for_its_next_attempt_takes_no_slot() {
    let office = Office::new(|seen| at_once(heard(seen.kind())));
    for number in 0..300 {
        for kind in [Ask, Commit, Abort] {
            office.send_again(number, kind, 9);
        }
    }
    for kind in [Ask, Commit, Abort] {
        office.send(500, kind);
    }
    pass(2).await;
    for kind in [Ask, Commit, Abort] {
        assert_eq!(office.reported_of(500, kind), [answered(kind)]);
    }
    assert_eq!(office.stats("east").commits.backing_off, 300);
}

#[tokio::test(start_paused = true)]
async fn remaining_ms_is_read_when_the_call_leaves() {
    let limits = Limits {
        prepares_in_flight_max: 1,
        ..Limits::default()
    };
    let office = Office::with_limits(limits, |seen| {
        Some((Duration::from_millis(200), heard(seen.kind())))
    });
    office.send_within(1, Duration::from_secs(2));
    office.send_within(2, Duration::from_secs(2));
    pass(500).await;
    let remaining: Vec<_> = office
        .seen()
        .iter()
        .map(|seen| seen.outgoing.remaining_ms)
        .collect();
    assert_eq!(remaining[0], 2_000);
    assert!((1_795..=1_800).contains(&remaining[1]), "{remaining:?}");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_takes_too_long_is_cut_and_its_end_is_unknown() {
    let office = Office::new(|_| None);
    office.send(1, Ask);
    office.send_within(2, Duration::from_secs(300));
    office.send_within(3, Duration::from_secs(7));
    office.send(4, Commit);
    office.send(5, Abort);
    pass(60_000).await;
    let seconds = |number| {
        let reported = office.reported().into_iter();
        let mut of = reported.filter(|report| report.branch.transaction == transaction(number));
        let report = of.next().unwrap();
        assert!(
            matches!(report.delivery, Delivery::Unknown(_)),
            "{report:?}"
        );
        report.at.as_secs()
    };
    assert_eq!([1, 2, 3, 4, 5].map(seconds), [30, 30, 7, 5, 5]);
}

#[tokio::test(start_paused = true)]
async fn a_commit_or_abort_withdraws_the_waiting_prepare_of_its_branch_and_no_other() {
    for outcome in [Commit, Abort] {
        let limits = Limits {
            prepares_in_flight_max: 1,
            ..Limits::default()
        };
        let office = Office::with_limits(limits, |seen| match seen.kind() {
            Ask => Some((Duration::from_secs(3), heard(Ask))),
            Commit | Abort => at_once(heard(seen.kind())),
        });
        office.send(1, Ask); // in flight
        office.send(2, Ask); // waits for the slot
        office.send_again(3, Ask, 5); // waits for its attempt
        office.send(4, Ask);
        office.couriers.send(office.call(2, "west", Ask));
        pass(1).await;
        for number in [1, 2, 3] {
            office.send(number, outcome);
        }
        pass(60_000).await;
        let asked: Vec<_> = office
            .seen_of(Ask)
            .into_iter()
            .map(|seen| seen.outgoing.branch)
            .collect();
        let expected = [branch(1, "east"), branch(2, "west"), branch(4, "east")];
        assert_eq!(asked, expected, "{outcome:?}");
        assert_eq!(office.reported_of(1, Ask), [answered(Ask)], "it had left");
        assert!(office.reported_of(3, Ask).is_empty());
        for number in [1, 2, 3] {
            assert_eq!(office.reported_of(number, outcome), [answered(outcome)]);
        }
        assert_eq!(office.stats("east").withdrawn, 2);
    }
}

#[tokio::test(start_paused = true)]
async fn forgetting_withdraws_prepares_and_aborts_and_never_a_commit() {
    let office = Office::new(|seen| at_once(heard(seen.kind())));
    for number in [1, 2] {
        for kind in [Commit, Abort, Ask] {
            office.send_again(number, kind, 5);
        }
    }
    let at_west = office.call(1, "west", Abort);
    office.couriers.send(Call {
        attempt: 5,
        ..at_west
    });
    office.couriers.forget(transaction(1));
    pass(60_000).await;
    assert_eq!(office.reported_of(1, Commit), [answered(Commit)]);
    assert!(office.reported_of(1, Abort).is_empty());
    assert!(office.reported_of(1, Ask).is_empty());
    for kind in [Ask, Commit, Abort] {
        assert_eq!(office.reported_of(2, kind), [answered(kind)]);
    }
}

#[tokio::test(start_paused = true)]
async fn calls_to_a_participant_that_is_not_registered_wait_and_say_so() {
    let office = Office::new(|seen| at_once(heard(seen.kind())));
    for number in [1, 2] {
        office.couriers.send(office.call(number, "north", Commit));
    }
    office.couriers.send(office.call(3, "north", Ask));
    pass(9_990).await;
    assert_eq!(office.stats("north").commits.ready, 2);
    assert_eq!(
        office.reported_of(3, Ask).len(),
        1,
        "a prepare has less time"
    );
    assert!(office.reported_of(1, Commit).is_empty());
    pass(20).await;
    for number in [1, 2] {
        let [Delivery::Refused(reason)] = &office.reported_of(number, Commit)[..] else {
            panic!("{:?}", office.reported());
        };
        assert!(
            reason.starts_with("participant north is no longer registered: "),
            "{reason}"
        );
    }
    assert!(office.seen().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_waited_for_an_unregistered_participant_goes_on_once_it_is_registered_again() {
    let office = Office::new(|seen| at_once(heard(seen.kind())));
    office.couriers.unregister(&name("east"));
    assert_eq!(office.couriers.endpoint(&name("east")), None);
    for kind in [Ask, Commit, Abort] {
        office.send(1, kind);
        office.send_again(2, kind, 20);
    }
    pass(900).await;
    assert!(office.seen().is_empty());
    office
        .couriers
        .register(&name("east"), endpoint("http://new-east"));
    pass(2).await;
    let seen = office.seen();
    assert!(
        seen.iter()
            .all(|seen| seen.to.as_str() == "http://new-east")
    );
    for kind in [Commit, Abort] {
        for number in [1, 2] {
            assert_eq!(office.reported_of(number, kind), [answered(kind)]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_participant_unregistered_while_calls_wait_keeps_them() {
    let office = Office::new(|_| None);
    for number in 0..40 {
        office.send(number, Commit);
    }
    pass(1).await;
    office.couriers.unregister(&name("east"));
    office.now_does(|seen| at_once(heard(seen.kind())));
    pass(5_500).await; // those in flight were cut
    assert_eq!(office.reported().len(), 32);
    assert_eq!(office.seen().len(), 32, "nothing left meanwhile");
    pass(5_000).await;
    assert_eq!(office.reported().len(), 40, "and the others said so");
}

#[tokio::test(start_paused = true)]
async fn a_first_prepare_that_can_not_leave_says_why_before_its_deadline() {
    let limits = Limits {
        prepares_in_flight_max: 1,
        ..Limits::default()
    };
    let office = Office::with_limits(limits, |_| None);
    office.send(1, Ask);
    office.send_within(2, Duration::from_secs(2));
    pass(1_995).await;
    let [Delivery::Refused(reason)] = &office.reported_of(2, Ask)[..] else {
        panic!("{:?}", office.reported());
    };
    assert!(
        reason.contains("not sent by the deadline: 1 other prepares"),
        "{reason}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_repeated_prepare_that_can_not_leave_by_its_deadline_is_withdrawn() {
    let office = Office::new(|seen| at_once(heard(seen.kind())));
    let call = office.call(1, "east", Ask);
    office.couriers.send(Call {
        attempt: 9,
        deadline: Some(Instant::now() + 100 * MS),
        ..call
    });
    pass(10_000).await;
    assert!(office.seen().is_empty() && office.reported().is_empty());
    assert_eq!(office.stats("east").withdrawn, 1);
}

#[tokio::test(start_paused = true)]
async fn an_outcome_is_never_too_late() {
    let office = Office::new(|seen| at_once(heard(seen.kind())));
    for (number, kind) in [(1, Commit), (2, Abort)] {
        for attempt in [1, 9] {
            let call = office.call(number, "east", kind);
            let deadline = Some(Instant::now());
            office.couriers.send(Call {
                attempt,
                deadline,
                ..call
            });
        }
    }
    pass(20_000).await;
    for (number, kind) in [(1, Commit), (2, Abort)] {
        let reported = office.reported_of(number, kind);
        assert_eq!(reported, [answered(kind), answered(kind)]);
    }
    assert_eq!(office.stats("east").withdrawn, 0);
}

#[tokio::test(start_paused = true)]
async fn a_prepare_with_hardly_any_time_left_is_tried_all_the_same() {
    let office = Office::new(|seen| at_once(heard(seen.kind())));
    office.send_within(1, 3 * MS);
    pass(10).await;
    assert_eq!(office.reported_of(1, Ask), [answered(Ask)]);
}
