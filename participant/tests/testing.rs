//! What the crate gives a service's own tests: a service that keeps its promises passes the routine, and each that does
//! not is told by name why.

use std::sync::{Arc, Mutex};

use deadpool_postgres::Pool;
use serde::{Deserialize, Serialize};
use unanimous_participant::{
    Failure, Resource, Tx, Vote, deadpool_postgres,
    testing::{PROPERTIES, Trial, TrialError},
    tokio_postgres::Client,
};

use crate::service::{connect, fresh_database, pool};

/// What the service does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    /// What it writes it can not read.
    WritesAnother,
    /// It holds by a connection of its own.
    HoldsOutside,
    /// An abort gives nothing back.
    KeepsWhatItHolds,
    /// A commit does nothing.
    AppliesNothing,
    /// What it promised is in its memory.
    RemembersInMemory,
    /// It looks whether there is enough, and holds nothing.
    HoldsNothing,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Operation {
    Take {
        count: i64,
    },
    #[serde(rename(serialize = "give", deserialize = "given"))]
    Give {
        count: i64,
    },
}

struct Shelf {
    mistake: Mistake,
    own: Arc<Client>,
    memory: Mutex<Vec<i64>>,
}

const HOLD: &str = "UPDATE shelf SET held = held + $1 WHERE there - held >= $1";

impl Resource for Shelf {
    type Operation = Operation;

    async fn prepare(&self, operation: &Operation, tx: &mut Tx<'_>) -> Result<Vote, Failure> {
        let Operation::Take { count } = operation else {
            return Ok(Vote::refuse("nothing is given"));
        };
        let held = match self.mistake {
            Mistake::HoldsOutside => self.own.execute(HOLD, &[count]).await?,
            Mistake::HoldsNothing => {
                tx.execute("SELECT FROM shelf WHERE there >= $1", &[count])
                    .await?
            }
            Mistake::None
            | Mistake::WritesAnother
            | Mistake::KeepsWhatItHolds
            | Mistake::AppliesNothing
            | Mistake::RemembersInMemory => tx.execute(HOLD, &[count]).await?,
        };
        self.memory.lock().unwrap().push(*count);
        Ok(Vote::yes_if(held == 1, "not enough"))
    }

    async fn commit(&self, operation: &Operation, tx: &mut Tx<'_>) -> Result<(), Failure> {
        let Operation::Take { count } = operation else {
            return Ok(());
        };
        let promised = self.memory.lock().unwrap().contains(count);
        if self.mistake == Mistake::RemembersInMemory && !promised {
            return Err(Failure::msg("nothing was promised"));
        }
        let held = match self.mistake {
            Mistake::AppliesNothing => {
                // It only lets go of what it held.
                self.abort(operation, tx).await?;
                return Ok(());
            }
            Mistake::HoldsNothing => 0,
            Mistake::None
            | Mistake::WritesAnother
            | Mistake::HoldsOutside
            | Mistake::KeepsWhatItHolds
            | Mistake::RemembersInMemory => *count,
        };
        let sql = "UPDATE shelf SET there = there - $1, held = held - $2";
        tx.execute(sql, &[count, &held]).await?;
        Ok(())
    }

    async fn abort(&self, operation: &Operation, tx: &mut Tx<'_>) -> Result<(), Failure> {
        let Operation::Take { count } = operation else {
            return Ok(());
        };
        if !matches!(
            self.mistake,
            Mistake::KeepsWhatItHolds | Mistake::HoldsNothing
        ) {
            tx.execute("UPDATE shelf SET held = held - $1", &[count])
                .await?;
        }
        Ok(())
    }
}

/// A shelf with so many things on it.
async fn shelf(there: i64, mistake: Mistake) -> (Trial<Shelf>, Pool, Arc<Client>) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let database = fresh_database().await;
    let sql = Arc::new(connect(&database).await);
    sql.batch_execute(&format!(
        "CREATE TABLE shelf (there bigint NOT NULL CHECK (there >= 0), held bigint NOT NULL CHECK (held >= 0)); \
         INSERT INTO shelf VALUES ({there}, 0)"
    ))
    .await
    .unwrap();
    let own = Arc::clone(&sql);
    let pool = pool(&database, 5);
    let trial = Trial::start(pool.clone(), move || Shelf {
        mistake,
        own: Arc::clone(&own),
        memory: Mutex::default(),
    });
    (trial.await.unwrap(), pool, sql)
}

fn take(count: i64) -> [Operation; 1] {
    [Operation::Take { count }]
}

/// What the routine reports of a service with this mistake.
async fn broken(mistake: Mistake) -> Vec<&'static str> {
    // By sevens: in the end there is not enough for all that are promised at the same time.
    let (mut trial, pool, _) = shelf(60, mistake).await;
    let operations = match mistake {
        Mistake::WritesAnother => [Operation::Give { count: 7 }],
        Mistake::None
        | Mistake::HoldsOutside
        | Mistake::KeepsWhatItHolds
        | Mistake::AppliesNothing
        | Mistake::RemembersInMemory
        | Mistake::HoldsNothing => take(7),
    };
    let routine = trial.routine(&operations, async || {
        let row = pool
            .get()
            .await?
            .query_one("SELECT there, held FROM shelf", &[])
            .await?;
        Ok((row.get::<_, i64>(0), row.get::<_, i64>(1)))
    });
    match routine.await {
        Ok(()) => Vec::new(),
        Err(broken) => {
            let told = broken.to_string();
            let names: Vec<&str> = broken.names().collect();
            for name in &names {
                assert!(told.contains(name), "{told}");
            }
            names
        }
    }
}

#[tokio::test]
async fn a_service_that_keeps_its_promises_passes_the_routine() {
    assert_eq!(broken(Mistake::None).await, Vec::<&str>::new());
}

#[tokio::test]
async fn every_mistake_of_a_service_is_reported_by_name() {
    let mut reported = Vec::new();
    for (mistake, property) in [
        (Mistake::WritesAnother, "votes-yes"),
        (Mistake::HoldsOutside, "effects-only-through-tx"),
        (Mistake::KeepsWhatItHolds, "abort-gives-back"),
        (Mistake::AppliesNothing, "commit-applies-once"),
        (Mistake::RemembersInMemory, "survives-a-restart"),
        (Mistake::HoldsNothing, "keeps-every-promise"),
    ] {
        let broken = broken(mistake).await;
        assert!(broken.contains(&property), "{mistake:?}: {broken:?}");
        reported.push(property);
    }
    assert_eq!(reported, PROPERTIES.map(|(name, _)| name));
}

#[tokio::test]
async fn a_trial_goes_step_by_step_through_a_commit_an_abort_and_a_restart() {
    let (mut trial, _, sql) = shelf(10, Mistake::None).await;
    let there = async || -> (i64, i64) {
        let row = sql
            .query_one("SELECT there, held FROM shelf", &[])
            .await
            .unwrap();
        (row.get(0), row.get(1))
    };
    let (first, second) = (
        trial.branch(&take(4)).unwrap(),
        trial.branch(&take(6)).unwrap(),
    );
    assert_ne!(first.transaction(), second.transaction());
    assert_eq!(trial.prepare(&first).await.unwrap(), Vote::Yes);
    assert_eq!(trial.prepare(&first).await.unwrap(), Vote::Yes);
    assert_eq!(trial.prepare(&second).await.unwrap(), Vote::Yes);
    assert_eq!(there().await, (10, 10));
    let third = trial.branch(&take(1)).unwrap();
    assert_eq!(
        trial.prepare(&third).await.unwrap(),
        Vote::refuse("not enough")
    );
    trial.restart().await.unwrap();
    assert_eq!(
        there().await,
        (10, 10),
        "what was promised outlives the process"
    );
    trial.commit(&first).await.unwrap();
    trial.commit(&first).await.unwrap();
    trial.abort(&second).await.unwrap();
    assert_eq!(there().await, (6, 0));
    // What the protocol forbids is an error, and changes nothing.
    let refused = |outcome: Result<(), TrialError>| outcome.unwrap_err().to_string();
    assert!(refused(trial.abort(&first).await).contains("outcome-differs"));
    assert!(refused(trial.commit(&second).await).contains("outcome-differs"));
    let unknown = trial.branch(&take(1)).unwrap();
    assert!(refused(trial.commit(&unknown).await).contains("vote-lost"));
    assert_eq!(there().await, (6, 0));
}

#[test]
fn the_page_for_implementers_names_every_property() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/PARTICIPANTS.md");
    let page = std::fs::read_to_string(page).unwrap();
    for (name, _) in PROPERTIES {
        assert!(page.contains(&format!("`{name}`")), "{name}");
    }
}
