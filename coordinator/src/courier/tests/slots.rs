//! Who waits behind whom, and who reports.

use super::*;
use RequestKind::{Abort, Commit, Prepare as Ask};

#[tokio::test(start_paused = true)]
async fn phase_two_leaves_at_once_while_prepares_that_never_answer_hold_all_their_slots() {
    let office = Office::new(|seen| match seen.kind() {
        Ask => None,
        Commit | Abort => at_once(heard(seen.kind())),
    });
    for number in 0..200 {
        office.send(number, Ask);
    }
    pass(50).await;
    assert_eq!(office.seen_of(Ask).len(), 64);
    office.send(500, Commit);
    office.send(501, Abort);
    pass(2).await;
    assert_eq!(office.reported_of(500, Commit), [answered(Commit)]);
    assert_eq!(office.reported_of(501, Abort), [answered(Abort)]);
    let prepares = office.stats("east").prepares;
    assert_eq!((prepares.in_flight, prepares.ready), (64, 136));
}

#[tokio::test(start_paused = true)]
async fn aborts_never_take_the_commits_slots_nor_commits_the_aborts() {
    for (hangs, passes, slots) in [(Abort, Commit, 16), (Commit, Abort, 32)] {
        let office = Office::new(move |seen| {
            let passes = seen.kind() == passes;
            passes.then(|| (Duration::from_millis(1), heard(seen.kind())))
        });
        for number in 0..100 {
            office.send(number, hangs);
        }
        office.send(500, passes);
        pass(2).await;
        assert_eq!(office.seen_of(hangs).len(), slots);
        assert_eq!(office.reported_of(500, passes), [answered(passes)]);
    }
}

#[tokio::test(start_paused = true)]
async fn more_may_be_under_way_at_once_where_a_call_needs_no_connection_of_its_own() {
    let office = Office::new(|_| None);
    let describes = |features: &str| {
        let text = format!(r#"{{"participant":"east","protocol":1,"features":[{features}]}}"#);
        serde_json::from_str(&text).unwrap()
    };
    let east = office.couriers.endpoint(&name("east")).unwrap();
    east.announced()
        .described(&describes(r#""batch""#), Instant::now());
    for number in 0..300 {
        for kind in [Ask, Commit, Abort] {
            office.send(number, kind);
        }
    }
    pass(5).await;
    for kind in [Commit, Abort] {
        assert_eq!(office.seen_of(kind).len(), 256, "{kind:?}");
    }
    east.announced().described(&describes(""), Instant::now());
    let office = Office::new(|_| None);
    for number in 0..300 {
        office.send(number, Ask);
    }
    pass(5).await;
    assert_eq!(office.seen_of(Ask).len(), 64);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_behind_a_dead_participant() {
    let office = Office::new(|seen| {
        let east = seen.to.as_str() == "http://east";
        (!east).then(|| (Duration::from_millis(3), heard(seen.kind())))
    });
    office
        .couriers
        .register(&name("south"), endpoint("http://south"));
    for number in 0..100 {
        for kind in [Ask, Commit, Abort] {
            office.send(number, kind);
        }
    }
    pass(100).await;
    let sent_at = office.transport.began.elapsed();
    for participant in ["west", "south"] {
        for (number, kind) in [(1, Ask), (2, Commit), (3, Abort)] {
            office.couriers.send(office.call(number, participant, kind));
        }
    }
    pass(50).await;
    let reported = office.reported();
    assert_eq!(reported.len(), 6, "{reported:?}");
    for report in reported {
        assert_eq!(report.at - sent_at, Duration::from_millis(3), "{report:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn calls_of_a_class_leave_in_the_order_in_which_they_became_ready() {
    let limits = Limits {
        prepares_in_flight_max: 1,
        commits_in_flight_max: 1,
        ..Limits::default()
    };
    let office = Office::with_limits(limits, |seen| at_once(heard(seen.kind())));
    for number in 0..20 {
        office.send(number, Ask);
        office.send(number + 100, Commit);
    }
    pass(100).await;
    for (kind, first) in [(Ask, 0), (Commit, 100)] {
        let left = office.seen_of(kind).into_iter();
        let order: Vec<_> = left.map(|seen| seen.outgoing.branch.transaction).collect();
        let expected: Vec<_> = (first..first + 20).map(transaction).collect();
        assert_eq!(order, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn every_call_reports_exactly_once_whatever_happens_meanwhile() {
    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
    for seed in 0..20 {
        let ends = Mutex::new(StdRng::seed_from_u64(seed));
        let office = Office::new(move |seen| {
            let mut rng = ends.lock().unwrap();
            let after = Duration::from_millis(rng.random_range(0..8_000));
            match rng.random_range(0..6) {
                0 => None,
                1 => Some((after, refused())),
                2 => Some((after, Ended::Silent("broken".into()))),
                3 => Some((after, Ended::Heard(Delivery::Unknown("odd".into())))),
                _ => Some((after / 100, heard(seen.kind()))),
            }
        });
        let mut rng = StdRng::seed_from_u64(seed);
        for number in 0..600 {
            let kind = [Ask, Commit, Abort][rng.random_range(0..3)];
            let call = office.call(number, ["east", "west"][rng.random_range(0..2)], kind);
            office.couriers.send(Call {
                attempt: rng.random_range(1..8),
                pace: [Pace::Backoff, Pace::Longest][usize::from(rng.random_bool(0.1))],
                ..call
            });
            match rng.random_range(0..60) {
                0 => office.couriers.unregister(&name("east")),
                1 => office
                    .couriers
                    .register(&name("east"), endpoint("http://east")),
                2 => office
                    .couriers
                    .register(&name("east"), endpoint("http://elsewhere")),
                _ => pass(rng.random_range(0..20)).await,
            }
        }
        office.now_does(|seen| at_once(heard(seen.kind())));
        office
            .couriers
            .register(&name("east"), endpoint("http://east"));
        pass(120_000).await;
        let mut reported: Vec<_> = office
            .reported()
            .into_iter()
            .map(|report| report.branch.transaction)
            .collect();
        reported.sort_unstable();
        let expected: Vec<_> = (0..600).map(transaction).collect();
        assert_eq!(reported, expected, "seed {seed}");
        for participant in ["east", "west"] {
            let stats = office.stats(participant);
            for counts in [stats.prepares, stats.commits, stats.aborts] {
                let left = (counts.in_flight, counts.ready, counts.backing_off);
                assert_eq!(left, (0, 0, 0), "seed {seed}: {stats:?}");
            }
            assert_eq!(stats.withdrawn, 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_report_may_send_the_next_call() {
    let office = Office::new(|seen| at_once(heard(seen.kind())));
    let (couriers, next) = (office.couriers.clone(), office.call(2, "east", Commit));
    let first = office.call(1, "east", Ask);
    office.couriers.send(Call {
        on_done: Box::new(move |_| couriers.send(next)),
        ..first
    });
    pass(5).await;
    assert_eq!(office.reported_of(2, Commit), [answered(Commit)]);
}

#[tokio::test(start_paused = true)]
async fn a_withdrawn_report_may_call_back_in_when_it_is_dropped() {
    struct CallsBack(Couriers);
    impl Drop for CallsBack {
        fn drop(&mut self) {
            assert!(self.0.endpoint(&name("east")).is_some());
        }
    }
    let office = Office::new(|seen| at_once(heard(seen.kind())));
    let (calls_back, call) = (
        CallsBack(office.couriers.clone()),
        office.call(1, "east", Ask),
    );
    office.couriers.send(Call {
        attempt: 5,
        on_done: Box::new(move |_| drop(calls_back)),
        ..call
    });
    office.send(1, Abort);
    assert_eq!(office.stats("east").withdrawn, 1);
}

#[tokio::test(start_paused = true)]
async fn closed_couriers_send_nothing_more_and_report_what_was_in_flight() {
    let office = Office::new(|seen| Some((Duration::from_millis(10), heard(seen.kind()))));
    office.send(1, Commit);
    office.send_again(2, Commit, 5);
    pass(1).await;
    office.couriers.close();
    office.send(3, Commit);
    office.couriers.send(office.call(4, "north", Commit));
    office
        .couriers
        .register(&name("north"), endpoint("http://north"));
    pass(60_000).await;
    assert_eq!(office.seen().len(), 1);
    assert_eq!(office.reported().len(), 1);
    assert_eq!(office.reported_of(1, Commit), [answered(Commit)]);
}
