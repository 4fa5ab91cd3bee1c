//! Makes a service on Postgres take part in Unanimous' atomic transactions: a change in several services happens in all
//! of them or in none.
//!
//! You write one trait, [`Resource`]: what an operation checks and reserves (`prepare`), applies (`commit`) and gives
//! back (`abort`). The crate does the rest: it keeps what your service promised in tables of its own in your database
//! (schema `unanimous`), in the very transaction that does your work; serves the routes that a coordinator calls; answers
//! repeated, late and reordered calls the same way every time; and asks the coordinator about what a crash left in doubt.
//!
//! # A complete service
//!
//! ```no_run
//! use actix_web::{App, HttpServer};
//! use serde::{Deserialize, Serialize};
//! use unanimous_participant::{
//!     Failure, Participant, Resource, Tx, Vote, deadpool_postgres::Pool, tokio_postgres::NoTls, watched,
//! };
//!
//! /// What a branch may ask: `{"kind": "reserve", "item": "tea", "count": 2}`. Anything else is refused.
//! #[derive(Serialize, Deserialize)]
//! #[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
//! enum Operation {
//!     Reserve { item: String, count: i64 },
//! }
//!
//! struct Stock;
//!
//! impl Resource for Stock {
//!     type Operation = Operation;
//!
//!     async fn prepare(&self, operation: &Operation, tx: &mut Tx<'_>) -> Result<Vote, Failure> {
//!         let Operation::Reserve { item, count } = operation;
//!         if *count <= 0 {
//!             return Ok(Vote::refuse("a count is at least 1"));
//!         }
//!         let held = tx
//!             .execute(
//!                 "UPDATE stock SET held = held + $2 WHERE item = $1 AND there - held >= $2",
//!                 &[item, count],
//!             )
//!             .await?;
//!         Ok(Vote::yes_if(held == 1, "not enough in stock"))
//!     }
//!
//!     async fn commit(&self, operation: &Operation, tx: &mut Tx<'_>) -> Result<(), Failure> {
//!         let Operation::Reserve { item, count } = operation;
//!         tx.execute(
//!             "UPDATE stock SET there = there - $2, held = held - $2 WHERE item = $1",
//!             &[item, count],
//!         )
//!         .await?;
//!         Ok(())
//!     }
//!
//!     async fn abort(&self, operation: &Operation, tx: &mut Tx<'_>) -> Result<(), Failure> {
//!         let Operation::Reserve { item, count } = operation;
//!         tx.execute("UPDATE stock SET held = held - $2 WHERE item = $1", &[item, count]).await?;
//!         Ok(())
//!     }
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // The program chooses its TLS provider; the inquiries need one, even over plain http.
//!     let _ = rustls::crypto::ring::default_provider().install_default();
//!     let database = "postgres://stock@db.internal/stock".parse()?;
//!     let pool = Pool::builder(watched(database, NoTls)).max_size(16).build()?;
//!     let stock = Participant::builder("stock", Stock)
//!         .pool(pool)
//!         .coordinator("http://coordinator.internal:7070")
//!         .start()
//!         .await?;
//!     // Keep connections longer than the coordinator does: it then never writes into one that is just being closed.
//!     // Send without delay: answers come in pieces, and each would wait some 40 ms for the last one's acknowledgement.
//!     HttpServer::new(move || App::new().service(stock.scope("/unanimous")))
//!         .keep_alive(std::time::Duration::from_secs(75))
//!         .tcp_nodelay(true)
//!         .bind("0.0.0.0:8081")?
//!         .run()
//!         .await?;
//!     Ok(())
//! }
//! ```
//!
//! The coordinator then has it registered as `stock=http://stock.internal:8081/unanimous`. Without actix-web
//! (`default-features = false`), [`Participant::answer`] is the same over the types of the `http` crate. Where many
//! transactions run at once the coordinator sends many messages in one request, and their answers are lines that come as
//! they are ready: pass the pieces of [`Body::Lines`], which is a `Stream`, on as they come.
//!
//! # What your code owes
//!
//! - **After a yes it can commit**, whatever happens in between. So `prepare` reserves: a `held` column beside the
//!   balance, a row that takes the name. What others may take meanwhile was not reserved.
//! - **Effects go through [`Tx`]**: they are durable together with the promise or gone with it, and done once however
//!   often the call is repeated. A mail sent from `prepare` is neither.
//! - **A refusal is [`Vote::No`], "I could not find out" is an error by `?`.** The first aborts the transaction, the
//!   second is asked again.
//! - **What was promised stays readable.** A new version of the service reads the operations that the old one said yes to.
//! - **It may run for nothing.** Branches that wait share a local transaction, where their statements travel behind a row that is
//!   only hoped to be as it should. If it is not, or another branch refuses or fails, all of it is rolled back and run again.
//!   Beside others a branch runs one statement; one that needs more, sets something (`set_config`), or takes an advisory
//!   lock is given a turn or a transaction of its own. What a function of yours does inside can not be seen: settings,
//!   cursors and temporary tables there are shared with whoever is in the same transaction.
//! - Constraints that are checked at commit (`DEFERRABLE INITIALLY DEFERRED`) fail too late to be a refusal: the vote is
//!   then not given at all. Check in `prepare`.
//!
//! # Reserve or keys: which when
//!
//! Between a yes and its outcome nobody else may take what was promised. There are two ways to see to that.
//!
//! **Reserve**, wherever it is a question of how much. A column beside the amount says how much of it is promised, as `held`
//! does above: `prepare` adds to it only while enough is left, `commit` takes from both, `abort` gives back. Any number of
//! transactions promise from one row side by side; a row is locked for the length of a statement, not of a transaction; and
//! who comes too late is refused at once, with a reason. It needs nothing from this crate.
//!
//! **Keys**, where a thing is one and can not be split: a seat, a user name, a document that is rewritten as a whole, a row
//! whose new value depends on its old one. Name it in [`Resource::keys`], and one branch at a time holds it, from its prepare
//! until its outcome:
//!
//! ```
//! use serde::{Deserialize, Serialize};
//! use unanimous_participant::{Failure, Key, Resource, Tx, Vote};
//!
//! #[derive(Serialize, Deserialize)]
//! #[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
//! enum Operation {
//!     Book { seat: String, passenger: String },
//! }
//!
//! struct Seats;
//!
//! impl Resource for Seats {
//!     type Operation = Operation;
//!
//!     fn keys(&self, operation: &Operation) -> Vec<Key> {
//!         let Operation::Book { seat, .. } = operation;
//!         vec![Key::new(format!("seat/{seat}"))]
//!     }
//!
//!     async fn prepare(&self, operation: &Operation, tx: &mut Tx<'_>) -> Result<Vote, Failure> {
//!         // The key is ours by now, so what this sees nobody changes through the protocol before the outcome.
//!         let Operation::Book { seat, .. } = operation;
//!         let free = "SELECT FROM seats WHERE seat = $1 AND passenger IS NULL";
//!         let found = tx.query_opt(free, &[seat]).await?;
//!         Ok(Vote::yes_if(found.is_some(), "the seat is taken"))
//!     }
//!
//!     async fn commit(&self, operation: &Operation, tx: &mut Tx<'_>) -> Result<(), Failure> {
//!         let Operation::Book { seat, passenger } = operation;
//!         let book = "UPDATE seats SET passenger = $2 WHERE seat = $1";
//!         tx.execute(book, &[seat, passenger]).await?;
//!         Ok(())
//!     }
//! }
//! ```
//!
//! | | reserve | keys |
//! |---|---|---|
//! | side by side on one row | as many as there is enough for | one; the others wait a moment and are refused (`conflict`) |
//! | the wait | none | up to 100 ms for a younger transaction, 1 s for an older one, which is then asked again |
//! | what `prepare` writes | the reservation | nothing: the key is a row of this crate's |
//! | what `abort` does | gives back | nothing: the key goes with the outcome |
//! | who else must take part | everybody who spends has to look at `held` | everybody who changes it has to do so through a branch, or look at the same key |
//! | a hot row | goes on | is a queue: its throughput is one transaction for each outcome |
//!
//! Reserve where you can; take keys where you must. Both may be used by one service, and in one operation: keys are taken
//! first.
//!
//! # What it needs
//!
//! - Postgres with `fsync` on (checked at start), and a role that may create the schema `unanimous` once. Where the
//!   database itself may fail over, a *synchronous* standby: what an asynchronous one has not received was promised to
//!   nobody, as far as it knows. Make the pool with [`watched`], which notices when somebody cancels
//!   (`pg_cancel_backend`) a commit that waits for that standby: Postgres answers such a commit with success.
//! - A pool of at least 3 connections; prepares use all but two, so that commits and aborts never wait behind them. From 4
//!   on one of them is kept for what goes together, which is most of it under load: the others serve keys, interactive and slow work. Give
//!   a service's own requests a pool of their own where they can use all of it.
//! - Several processes of one service may share one database. Different participants may, too: each leaves the other's
//!   branches alone, also an heir its predecessor's, unless it is told ([`Builder::formerly`]).
//!
//! # Interactive work
//!
//! A client may also begin a transaction, call your service's own routes with the header [`TRANSACTION_HEADER`], and
//! commit. There, [`Participant::interactive`] enlists the branch and [`InteractiveBranch::add`] adds operations, which
//! run at prepare.
//!
//! # Tests
//!
//! [`testing`] drives your code through commit, abort, duplicates and restart on a real database, in an ordinary
//! `#[tokio::test]`. The conformance kit (`unanimous-lab check`) checks the service as a whole.
//!
//! # Traces
//!
//! Calls about a transaction carry W3C Trace Context. What this crate logs while it serves one is inside a `tracing` span
//! with the field `trace_id`, and what it asks of a coordinator goes out in the same trace. A service's own routes pass
//! theirs on by [`Participant::interactive_in_trace`].
//!
//! # How it is built
//!
//! `branch` is the shell around the pure state machine of `unanimous-protocol`, inside one local transaction;
//! `batch` takes many messages in one call, and `lane` has what waits share a local transaction; `intent_log` holds all SQL
//! on the crate's tables; `calls` the life of a request; `inquiry` what ends a doubt.
//! `pruning` drops the rows of what has ended everywhere, told by the coordinator's low-water mark. Left out: branches of plain SQL
//! over `PREPARE TRANSACTION`.

#[cfg(feature = "actix-web")]
mod actix;
mod batch;
mod branch;
mod calls;
mod connections;
mod crash;
mod http;
mod inquiry;
mod intent_log;
mod interactive;
mod keys;
mod lane;
mod participant;
mod pruning;
mod resource;
mod running;
mod schema;
mod service;
pub mod testing;
mod traces;
mod tx;
mod watched;

#[cfg(feature = "actix-web")]
pub use crate::actix::scope_started_by;
pub use crate::{
    batch::{Body, Lines},
    http::BODY_MAX,
    interactive::{InteractiveBranch, InteractiveError, TRANSACTION_HEADER},
    participant::{Builder, Participant, StartError},
    resource::{Failure, Key, Resource, Vote},
    schema::SchemaError,
    tx::{Database, TokioPostgres, Tx, TxError},
    watched::watched,
};
// Their types are in this crate's signatures.
pub use deadpool_postgres;
pub use tokio_postgres;
pub use unanimous_protocol::{
    id::{InvalidId, ParticipantName, TransactionId},
    trace::TraceContext,
};
