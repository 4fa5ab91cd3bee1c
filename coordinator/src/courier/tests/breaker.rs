//! The breaker, where it matters: between prepares and a participant that is not there.

use super::*;
use RequestKind::{Abort, Commit, Prepare as Ask};

#[tokio::test(start_paused = true)]
async fn five_calls_without_an_answer_hold_prepares_back_and_only_prepares() {
    let office = Office::new(|_| at_once(refused()));
    for number in 0..4 {
        office.send(number, Ask);
        pass(2).await;
    }
    assert!(!office.stats("east").breaker_open);
    office.send(4, Ask);
    pass(2).await;
    let stats = office.stats("east");
    assert!(stats.breaker_open);
    assert_eq!(stats.silent_in_a_row, 5);
    assert_eq!(stats.last_error.unwrap().text, "connection refused");
    office.send(10, Ask);
    office.send(11, Commit);
    office.send(12, Abort);
    let kinds: Vec<_> = {
        pass(1).await;
        office.seen().split_off(5).iter().map(Seen::kind).collect()
    };
    assert_eq!(kinds, [Commit, Abort]);
}

#[tokio::test(start_paused = true)]
async fn an_error_page_is_somebody_and_holds_nobody_back() {
    let office = Office::new(|_| at_once(Ended::Heard(Delivery::Unknown("status 503".into()))));
    for number in 0..50 {
        office.send(number, Ask);
    }
    pass(5).await;
    assert_eq!(office.seen().len(), 50);
    assert!(!office.stats("east").breaker_open);
}

#[tokio::test(start_paused = true)]
async fn an_open_breaker_lets_one_prepare_at_a_time_try() {
    let office = Office::new(|_| None);
    office.open_breaker().await;
    office.now_does(|_| Some((Duration::from_secs(2), Ended::Silent("broken".into()))));
    for number in 0..50 {
        office.send(number, Ask);
    }
    pass(20_000).await;
    let left: Vec<_> = office.seen().iter().map(|seen| seen.at).collect();
    assert!(left.len() >= 6, "it goes on trying: {left:?}");
    for pair in left.windows(2) {
        assert!(pair[1] - pair[0] >= Duration::from_secs(2), "{left:?}");
    }
    assert!(office.stats("east").breaker_open);
}

#[tokio::test(start_paused = true)]
async fn prepares_that_the_breaker_holds_back_are_not_answered_by_it() {
    let office = Office::new(|_| None);
    office.open_breaker().await;
    office.now_does(|_| None);
    for number in 0..50 {
        office.send_within(number, Duration::from_secs(300));
    }
    pass(60_000).await;
    let asked = office.seen().len();
    assert!(asked >= 10, "a probe that hangs is cut early: {asked}");
    let reported = office.reported();
    assert!(
        asked - reported.len() <= 1,
        "only those that left were reported"
    );
    for report in reported {
        assert!(
            matches!(report.delivery, Delivery::Unknown(_)),
            "{report:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_answer_to_a_probe_lets_everybody_go() {
    let office = Office::new(|_| None);
    office.open_breaker().await;
    for number in 0..50 {
        office.send(number, Ask);
    }
    office.now_does(|seen| at_once(heard(seen.kind())));
    pass(100).await;
    assert!(!office.stats("east").breaker_open);
    assert_eq!(office.reported().len(), 50);
}

#[tokio::test(start_paused = true)]
async fn the_answer_to_a_commit_lets_everybody_go() {
    let office = Office::new(|_| None);
    office.open_breaker().await;
    office.now_does(|seen| match seen.kind() {
        Ask => None, // the probe hangs
        Commit | Abort => at_once(heard(seen.kind())),
    });
    office.send(1, Ask);
    pass(100).await;
    assert_eq!(office.seen().len(), 1);
    office.now_does(|seen| at_once(heard(seen.kind())));
    for number in 2..50 {
        office.send(number, Ask);
    }
    pass(100).await;
    assert_eq!(office.seen().len(), 1, "one probe at a time");
    office.send(100, Commit);
    pass(5).await;
    assert!(!office.stats("east").breaker_open);
    assert_eq!(office.reported().len(), 49, "all but the one that hangs");
}

#[tokio::test(start_paused = true)]
async fn the_first_answer_after_a_silence_ends_everybodys_wait() {
    let office = Office::new(|_| None);
    office.open_breaker().await;
    office.now_does(|seen| at_once(heard(seen.kind())));
    for number in 0..100 {
        office.send_again(number, Commit, 30);
    }
    let alarmed = office.call(200, "east", Commit);
    office.couriers.send(Call {
        attempt: 2,
        pace: Pace::Longest,
        ..alarmed
    });
    office.send(300, Commit);
    pass(10).await;
    assert_eq!(office.reported().len(), 101);
    assert!(
        office.reported_of(200, Commit).is_empty(),
        "an alarm's wait is not the silence's"
    );
}

#[tokio::test(start_paused = true)]
async fn a_commit_or_abort_withdraws_a_prepare_that_the_breaker_holds_back() {
    let office = Office::new(|_| None);
    office.open_breaker().await;
    office.now_does(|_| None);
    office.send(0, Ask);
    pass(50).await; // the probe
    office.send(1, Ask);
    office.send(2, Ask);
    office.send(1, Abort);
    office.now_does(|seen| at_once(heard(seen.kind())));
    pass(60_000).await;
    let asked: Vec<_> = office
        .seen_of(Ask)
        .into_iter()
        .map(|seen| seen.outgoing.branch.transaction)
        .collect();
    assert!(!asked.contains(&transaction(1)), "{asked:?}");
    assert!(asked.contains(&transaction(2)), "{asked:?}");
    assert_eq!(office.stats("east").withdrawn, 1);
}

#[tokio::test(start_paused = true)]
async fn a_prepare_held_back_until_its_deadline_says_what_it_waited_for() {
    let office = Office::new(|_| None);
    office.open_breaker().await;
    office.now_does(|_| None);
    office.send_within(1, Duration::from_secs(30)); // the probe
    office.send_within(2, Duration::from_secs(1));
    pass(995).await;
    let [Delivery::Refused(reason)] = &office.reported_of(2, Ask)[..] else {
        panic!("{:?}", office.reported());
    };
    assert!(
        reason.contains("not sent by the deadline: 5 calls to participant east in a row"),
        "{reason}"
    );
    assert!(reason.ends_with("connection refused"), "{reason}");
}

#[tokio::test(start_paused = true)]
async fn a_new_address_begins_with_a_closed_breaker() {
    let office = Office::new(|_| None);
    office.open_breaker().await;
    office
        .couriers
        .register(&name("east"), endpoint("http://east"));
    assert!(
        office.stats("east").breaker_open,
        "the same address is no news"
    );
    office.now_does(|seen| at_once(heard(seen.kind())));
    for number in 0..50 {
        office.send(number, Ask);
    }
    office
        .couriers
        .register(&name("east"), endpoint("http://elsewhere"));
    pass(2).await;
    assert_eq!(office.reported().len(), 50);
}

#[tokio::test(start_paused = true)]
async fn probes_that_meet_an_error_page_are_followed_by_others() {
    let office = Office::new(|_| None);
    office.open_breaker().await;
    office.now_does(|_| at_once(Ended::Heard(Delivery::Unknown("status 502".into()))));
    for number in 0..5 {
        office.send(number, Ask);
    }
    pass(10_000).await;
    assert_eq!(office.reported().len(), 5);
    assert!(office.stats("east").breaker_open, "a page is no answer");
}

#[tokio::test(start_paused = true)]
async fn clients_in_a_hurry_hold_nobody_back() {
    let office = Office::new(|seen| Some((Duration::from_millis(100), heard(seen.kind()))));
    for number in 0..60 {
        office.send_within(number, Duration::from_millis(50));
    }
    pass(60).await;
    assert_eq!(office.reported().len(), 60);
    assert!(!office.stats("east").breaker_open);
    office.now_does(|_| None);
    for number in 100..105 {
        office.send_within(number, Duration::from_secs(6));
    }
    pass(6_010).await;
    assert!(
        office.stats("east").breaker_open,
        "six seconds are no hurry"
    );
}
