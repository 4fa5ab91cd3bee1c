//! A vote is proven, not assumed: what happens when the database, the service's code or the process fails in between.

use std::time::{Duration, Instant};

use serde_json::json;
use unanimous_participant::{StartError, deadpool_postgres::Pool, tokio_postgres::NoTls, watched};

use crate::service::{
    NOWHERE, Service, branch_body, connect, east, fresh_database, id, logged, note, pool, post,
    prepare_body,
};

#[tokio::test]
async fn a_restart_between_yes_and_commit_keeps_the_promise() {
    let east = Service::start().await;
    east.prepare(&id(1), note("a")).await.is_vote("yes");
    let east = east.restart(|builder| builder.coordinator(NOWHERE)).await;
    east.prepare(&id(1), note("a")).await.is_vote("yes");
    east.commit(&id(1)).await.is_state("committed");
    assert_eq!(east.journal(&id(1)).await, ["prepared a", "committed a"]);
}

#[tokio::test]
async fn no_vote_is_given_when_the_commit_of_its_local_transaction_fails() {
    let east = Service::start().await;
    for (number, text) in [(1, "fail at commit"), (2, "die at commit")] {
        let one = id(number);
        east.prepare(&one, note(text))
            .await
            .is_problem(503, "commit-unclear");
        assert_eq!(east.row(&one).await, None, "{text}");
        assert!(east.journal(&one).await.is_empty());
        east.commit(&one).await.is_problem(409, "vote-lost");
    }
    east.prepare(&id(3), note("a")).await.is_vote("yes");
}

#[tokio::test]
async fn a_failure_is_no_answer_and_leaves_nothing() {
    let east = Service::start().await;
    for (number, operation) in [
        (1, json!({"kind": "fail"})),
        (
            2,
            json!({"kind": "sql", "sql": "SELECT pg_terminate_backend(pg_backend_pid())"}),
        ),
        (3, json!({"kind": "sql", "sql": "SELECT no_such_column"})),
    ] {
        let one = id(number);
        let operations = json!([{"kind": "note", "text": "a"}, operation]);
        let answer = east.prepare(&one, operations).await;
        answer.is_problem(503, "service-failed");
        assert!(answer.body["detail"].as_str().unwrap().contains(&one));
        assert!(
            answer.body["detail"]
                .as_str()
                .unwrap()
                .contains("operations[1]")
        );
        assert_eq!(answer.headers["retry-after"], "1");
        assert_eq!(east.row(&one).await, None);
        assert!(east.journal(&one).await.is_empty());
        east.prepare(&one, note("again")).await.is_vote("yes");
    }
}

#[tokio::test]
async fn a_yes_on_a_broken_local_transaction_is_not_given_and_a_no_is() {
    let east = Service::start().await;
    let stumble = |vote| json!([{"kind": "stumble", "vote": vote}]);
    let answer = east.prepare(&id(1), stumble("yes")).await;
    answer.is_problem(503, "service-failed");
    assert_eq!(east.row(&id(1)).await, None);
    east.prepare(&id(2), stumble("no")).await.is_no("refused");
    assert_eq!(east.row(&id(2)).await.as_deref(), Some("refused"));
}

#[tokio::test]
async fn the_services_code_can_not_end_its_local_transaction() {
    let east = Service::start().await;
    for (number, sql) in [
        (1, "COMMIT"),
        (2, "/* hidden */ rollback"),
        (3, "SAVEPOINT mine"),
        (4, "SET LOCAL synchronous_commit = off"),
        (5, "DO $$ BEGIN COMMIT; END $$"),
    ] {
        let one = id(number);
        let operations = json!([{"kind": "note", "text": "a"}, {"kind": "sql", "sql": sql}]);
        let answer = east.prepare(&one, operations).await;
        answer.is_problem(503, "service-failed");
        assert_eq!(east.row(&one).await, None, "{sql}");
        assert!(east.journal(&one).await.is_empty(), "{sql}");
    }
}

#[tokio::test]
async fn a_promise_is_flushed_even_where_the_role_turned_that_off() {
    let east = Service::start().await;
    // Seen at commit, by a trigger that runs there.
    east.sql
        .batch_execute(
            "CREATE FUNCTION note_setting() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 INSERT INTO settings VALUES (NEW.what, current_setting('synchronous_commit')); RETURN NULL; END $$;
             CREATE TABLE settings (what text, setting text);
             CREATE CONSTRAINT TRIGGER note_setting AFTER INSERT ON journal DEFERRABLE INITIALLY DEFERRED
                 FOR EACH ROW EXECUTE FUNCTION note_setting();
             ALTER ROLE postgres IN DATABASE template1 RESET ALL;",
        )
        .await
        .unwrap();
    let name = east.database.get_dbname().unwrap();
    let off = format!("ALTER DATABASE {name} SET synchronous_commit = off");
    east.sql.batch_execute(&off).await.unwrap();
    let east = east.restart(|builder| builder.coordinator(NOWHERE)).await;
    let weaken = "SELECT set_config('synchronous_commit', 'off', true)";
    let operations = json!([{"kind": "note", "text": "a"}, {"kind": "sql", "sql": weaken}]);
    east.prepare(&id(1), operations).await.is_vote("yes");
    east.commit(&id(1)).await.is_state("committed");
    east.prepare(&id(2), note("b")).await.is_vote("yes");
    east.abort(&id(2)).await.is_state("aborted");
    let rows = east
        .sql
        .query(
            "SELECT DISTINCT what, setting FROM settings ORDER BY what",
            &[],
        )
        .await
        .unwrap();
    let settings: Vec<(&str, &str)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(
        settings,
        [("aborted", "off"), ("committed", "on"), ("prepared", "on")]
    );
}

#[tokio::test]
async fn a_row_that_something_else_committed_halfway_is_no_promise() {
    let east = Service::start().await;
    let insert = "INSERT INTO unanimous.branches (participant, transaction, state) VALUES ('east', $1::text::uuid, 'working')";
    east.sql.execute(insert, &[&id(1)]).await.unwrap();
    east.prepare(&id(1), note("a"))
        .await
        .is_problem(503, "branch-unreadable");
    east.commit(&id(1))
        .await
        .is_problem(503, "branch-unreadable");
}

#[tokio::test]
async fn a_deadline_that_passes_during_the_work_is_a_no_that_is_stored_and_lets_go() {
    for kind in ["hang", "hang_in_sql"] {
        let east = Service::start().await;
        let operations = json!([{"kind": "note", "text": "a"}, {"kind": kind}]);
        let mut body = prepare_body(&id(1), operations.clone());
        body["remaining_ms"] = json!(300);
        let begun = Instant::now();
        east.post("/v1/prepare", &body).await.is_no("deadline");
        let took = begun.elapsed();
        assert!(
            took >= Duration::from_millis(300) && took < Duration::from_secs(3),
            "{took:?}"
        );
        assert_eq!(east.row(&id(1)).await.as_deref(), Some("refused"));
        assert!(east.journal(&id(1)).await.is_empty());
        east.prepare(&id(1), operations).await.is_no("deadline");
        east.until("SELECT count(*) = 0 FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND datname = current_database() AND pid <> pg_backend_pid()")
            .await;
    }
}

#[tokio::test]
async fn a_prepare_that_comes_after_its_deadline_does_no_work() {
    let east = Service::start().await;
    let mut body = prepare_body(&id(1), note("a"));
    body["remaining_ms"] = json!(0);
    east.post("/v1/prepare", &body).await.is_no("deadline");
    assert!(east.journal(&id(1)).await.is_empty());
}

#[tokio::test]
async fn an_abort_stops_the_prepare_that_is_still_running() {
    for kind in ["hang", "hang_in_sql"] {
        let east = Service::start().await;
        let participant = east.participant.clone();
        let operations = json!([{"kind": "note", "text": "a"}, {"kind": kind}]);
        let body = prepare_body(&id(1), operations);
        let prepare = tokio::spawn(async move { post(&participant, "/v1/prepare", &body).await });
        let running = match kind {
            "hang" => {
                "SELECT count(*) = 1 FROM pg_locks
                 WHERE mode = 'RowExclusiveLock' AND relation = 'journal'::regclass"
            }
            _ => {
                "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
            }
        };
        east.until(running).await;
        let begun = Instant::now();
        east.abort(&id(1)).await.is_state("aborted");
        assert!(
            begun.elapsed() < Duration::from_secs(2),
            "{:?}",
            begun.elapsed()
        );
        prepare.await.unwrap().is_problem(503, "branch-busy");
        assert_eq!(east.row(&id(1)).await.as_deref(), Some("tombstone"));
        assert!(east.journal(&id(1)).await.is_empty());
    }
}

#[tokio::test]
async fn a_message_does_not_wait_for_ever_for_a_row_that_another_process_holds() {
    let east = Service::start().await;
    east.prepare(&id(1), note("a")).await.is_vote("yes");
    let mut other = connect(&east.database).await;
    let holding = other.transaction().await.unwrap();
    holding
        .execute("SELECT 1 FROM unanimous.branches FOR UPDATE", &[])
        .await
        .unwrap();
    let begun = Instant::now();
    east.commit(&id(1)).await.is_problem(503, "branch-busy");
    assert!(begun.elapsed() < Duration::from_secs(5));
    holding.rollback().await.unwrap();
    east.commit(&id(1)).await.is_state("committed");
}

#[tokio::test]
async fn a_caller_that_hangs_up_does_not_stop_the_work_in_the_middle() {
    let east = Service::start().await;
    let slow = json!([{"kind": "slow", "ms": 300}]);
    let body = prepare_body(&id(1), slow.clone());
    let hung_up = post(&east.participant, "/v1/prepare", &body);
    assert!(
        tokio::time::timeout(Duration::from_millis(100), hung_up)
            .await
            .is_err()
    );
    east.prepare(&id(1), slow).await.is_vote("yes");
    assert_eq!(east.journal(&id(1)).await, ["prepared slow"]);
}

#[tokio::test]
async fn a_branch_of_a_former_name_is_finished_and_new_work_under_it_turned_away() {
    let first = Service::start().await;
    first.prepare(&id(1), note("a")).await.is_vote("yes");
    let database = first.database.clone();
    drop(first.participant);
    let renamed = |former: Option<&str>| {
        let mut builder =
            unanimous_participant::Participant::builder("orient", crate::service::Journal)
                .pool(pool(&database, 3))
                .coordinator(NOWHERE);
        if let Some(former) = former {
            builder = builder.formerly(former);
        }
        builder.start()
    };
    let stranger = renamed(None).await.unwrap();
    let answer = post(&stranger, "/v1/commit", &branch_body(&id(1))).await;
    answer.is_problem(409, "other-participant");
    assert_eq!(answer.body["participant"], "orient");
    let prepare = prepare_body(&id(2), note("b"));
    let answer = post(&stranger, "/v1/prepare", &prepare).await;
    answer.is_problem(409, "other-participant");

    let heir = renamed(Some("east")).await.unwrap();
    let answer = post(&heir, "/v1/prepare", &prepare).await;
    answer.is_problem(409, "other-participant");
    post(&heir, "/v1/prepare", &prepare_body(&id(1), note("a")))
        .await
        .is_vote("yes");
    let answer = post(&heir, "/v1/commit", &branch_body(&id(1))).await;
    answer.is_state("committed");
    assert_eq!(answer.body["participant"], "east");
}

#[tokio::test]
async fn a_start_says_what_is_missing_and_whether_trying_again_helps() {
    let database = fresh_database().await;
    let refused =
        |builder: unanimous_participant::Builder| async { builder.start().await.unwrap_err() };
    let error = refused(
        east(&database)
            .pool(pool(&database, 2))
            .coordinator(NOWHERE),
    )
    .await;
    assert!(matches!(error, StartError::PoolTooSmall { size: 2, .. }));
    assert!(error.to_string().contains("at least 3"));
    let error = refused(east(&database)).await;
    assert!(matches!(error, StartError::NoCoordinator(_)));
    let error = refused(east(&database).coordinator("localhost:7070")).await;
    assert!(
        matches!(error, StartError::CoordinatorAddress { .. }),
        "{error}"
    );
    let mut nowhere = database.clone();
    nowhere.dbname("no_such_database");
    let error = refused(east(&database).pool(pool(&nowhere, 3)).coordinator(NOWHERE)).await;
    assert!(matches!(error, StartError::Database { .. }) && error.is_retryable());

    drop(east(&database).coordinator(NOWHERE).start().await.unwrap());
    let sql = connect(&database).await;
    sql.batch_execute("INSERT INTO unanimous.participant_schema (version) VALUES (99)")
        .await
        .unwrap();
    let error = refused(east(&database).coordinator(NOWHERE)).await;
    assert!(matches!(error, StartError::Schema { .. }) && !error.is_retryable());
}

#[tokio::test]
async fn what_an_older_version_promised_is_kept_when_its_tables_are_migrated() {
    let database = fresh_database().await;
    let sql = connect(&database).await;
    sql.batch_execute(
        "CREATE SCHEMA unanimous;
         CREATE TABLE unanimous.participant_schema (
             version int PRIMARY KEY, migrated_at timestamptz NOT NULL DEFAULT clock_timestamp());
         INSERT INTO unanimous.participant_schema (version) VALUES (1)",
    )
    .await
    .unwrap();
    sql.batch_execute(include_str!("../migrations/0001_branches.sql"))
        .await
        .unwrap();
    sql.execute(
        "INSERT INTO unanimous.branches (participant, transaction, state, operations, digest, voted_yes)
         VALUES ('east', $1::text::uuid, 'prepared', $2, sha256('x'), '{0}')",
        &[&id(1), &note("a").to_string()],
    )
    .await
    .unwrap();
    let east = Service::on(database, |builder| builder.coordinator(NOWHERE)).await;
    east.commit(&id(1)).await.is_state("committed");
    assert_eq!(east.journal(&id(1)).await, ["committed a"]);
    let version = "SELECT max(version)::bigint FROM unanimous.participant_schema";
    assert!(east.count(version).await > 1);
}

#[tokio::test]
async fn several_processes_that_start_at_once_migrate_once() {
    let database = fresh_database().await;
    let starts = (0..4).map(|_| east(&database).coordinator(NOWHERE).start());
    for started in futures_util::future::join_all(starts).await {
        started.unwrap();
    }
}

#[tokio::test]
async fn an_outcome_that_the_service_can_not_carry_out_yet_is_asked_for_again_and_stays_in_doubt() {
    let east = Service::start().await;
    east.prepare(&id(1), note("a")).await.is_vote("yes");
    let forbid = "ALTER TABLE journal ADD CONSTRAINT stuck CHECK (what = 'prepared')";
    east.sql.batch_execute(forbid).await.unwrap();
    for answer in [east.commit(&id(1)).await, east.abort(&id(1)).await] {
        answer.is_problem(503, "service-failed");
    }
    assert_eq!(east.row(&id(1)).await.as_deref(), Some("prepared"));
    let allow = "ALTER TABLE journal DROP CONSTRAINT stuck";
    east.sql.batch_execute(allow).await.unwrap();
    east.commit(&id(1)).await.is_state("committed");
    assert_eq!(east.journal(&id(1)).await, ["prepared a", "committed a"]);
}

#[tokio::test]
async fn connections_that_were_cut_are_replaced() {
    let east = Service::start().await;
    east.prepare(&id(1), note("a")).await.is_vote("yes");
    for _ in 0..3 {
        let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE datname = current_database() AND pid <> pg_backend_pid()";
        east.sql.query(cut, &[]).await.unwrap();
        let mut answer = east.commit(&id(1)).await;
        while answer.status == 503 {
            answer = east.commit(&id(1)).await;
        }
        answer.is_state("committed");
    }
    assert_eq!(east.journal(&id(1)).await, ["prepared a", "committed a"]);
}

#[tokio::test]
async fn a_decided_outcome_that_can_not_be_applied_is_an_alarm() {
    let east = Service::start().await;
    // By a trigger that runs at the commit, and only once there is an outcome.
    east.sql
        .batch_execute(
            "CREATE FUNCTION too_late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF NEW.what <> 'prepared' AND NEW.text = 'too late' THEN RAISE EXCEPTION 'too late'; END IF;
                 RETURN NULL; END $$;
             CREATE CONSTRAINT TRIGGER too_late AFTER INSERT ON journal DEFERRABLE INITIALLY DEFERRED
                 FOR EACH ROW EXECUTE FUNCTION too_late();",
        )
        .await
        .unwrap();
    let (lines, _until) = logged();
    for (number, text) in [(1, "never applied"), (2, "too late")] {
        let one = id(number);
        east.prepare(&one, note(text)).await.is_vote("yes");
        assert_eq!(east.commit(&one).await.status, 503, "{text}");
        assert_eq!(east.row(&one).await.as_deref(), Some("prepared"), "{text}");
        let lines = lines.lock().unwrap();
        let alarm = lines.last().unwrap();
        for word in [
            "ERROR",
            &one,
            "a decided commit can not be applied",
            "the coordinator asks again",
        ] {
            assert!(alarm.contains(word), "{word}: {alarm}");
        }
    }
    assert_eq!(east.abort(&id(2)).await.status, 503);
    let alarm = lines.lock().unwrap().pop().unwrap();
    assert!(
        alarm.contains("a decided abort can not be applied"),
        "{alarm}"
    );
    east.prepare(&id(3), json!([{"kind": "fail"}]))
        .await
        .is_problem(503, "service-failed");
    let warning = lines.lock().unwrap().pop().unwrap();
    assert!(
        warning.starts_with("WARN") && warning.contains("could not find out"),
        "{warning}"
    );
}

#[tokio::test]
async fn a_commit_that_stopped_waiting_for_its_standby_is_unclear() {
    let east = Service::start().await;
    // The server's own warning needs a standby; this one comes at the same place, in front of the commit's answer.
    east.sql
        .batch_execute(
            "CREATE FUNCTION warn() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 RAISE WARNING '%', NEW.text; RETURN NULL; END $$;
             CREATE CONSTRAINT TRIGGER warn AFTER INSERT ON journal DEFERRABLE INITIALLY DEFERRED
                 FOR EACH ROW EXECUTE FUNCTION warn();",
        )
        .await
        .unwrap();
    let pool = Pool::builder(watched(east.database.clone(), NoTls))
        .max_size(3)
        .build()
        .unwrap();
    let east = east
        .restart(|builder| builder.pool(pool).coordinator(NOWHERE))
        .await;
    east.prepare(&id(1), note("the disk is nearly full"))
        .await
        .is_vote("yes");
    let text = "canceling wait for synchronous replication due to user request";
    // A branch that takes keys has a local transaction of its own.
    let cancelled = json!([{"kind": "hold", "key": "a", "text": text}]);
    let answer = east.prepare(&id(2), cancelled.clone()).await;
    answer.is_problem(503, "commit-unclear");
    east.until("SELECT count(*) = 2 FROM unanimous.branches WHERE state = 'prepared'")
        .await;
    // Asked again, its commit is forced again: by then the standby has everything.
    east.prepare(&id(2), cancelled).await.is_vote("yes");
    assert_eq!(east.journal(&id(2)).await.len(), 1);
    // Those that shared theirs are asked again, each alone, before anything is answered.
    east.prepare(&id(3), note(text)).await.is_vote("yes");
    assert_eq!(east.journal(&id(3)).await.len(), 1);
}
