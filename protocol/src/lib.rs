//! # The protocol of Unanimous on one page
//!
//! Two-phase commit with presumed abort (Mohan, Lindsay, Obermarck 1986), as pure state machines: an event goes in, the
//! state changes, effects come out. No I/O, no clock, no `async`, no randomness. Actors, Postgres and HTTP carry the
//! effects out and bring their results back as events; a simulation does the same with a clock, a network and disks of
//! its own. What is decided, and what follows from it, is here and nowhere else.
//!
//! ## Roles
//! A **coordinator** ([`coordinator::Transaction`], one for each global transaction) asks every **participant**
//! ([`branch::Branch`], one for each part) to prepare, decides, and tells each of them. A [`life::Life`] is one run of a
//! coordinator: it issues ids, knows whether it may still decide, and judges ids that it does not hold.
//!
//! ## Messages ([`message`])
//! | from the coordinator | answer | what the receiver of the answer may conclude |
//! |---|---|---|
//! | prepare | yes | the branch holds its work durably and waits for the decision |
//! | | no | the branch is aborted for good |
//! | | read-only | the branch holds nothing and needs no second phase |
//! | commit | committed | applied, durably; the branch may be left out of the record's unfinished ones |
//! | abort | aborted | nothing is left, and a late prepare will lose |
//! | | anything else | nothing: unknown is neither yes nor no |
//!
//! A participant in doubt **inquires**, and is told committed, aborted or pending.
//!
//! ## Log records ([`record`])
//! The coordinator forces one record for a commit: that write *is* the commit point. Aborts are presumed and leave an
//! unforced record for history, unless an idempotency key wants their outcome to be durable before it is told. A
//! participant forces its row with the work before it says yes, and with the effects before it acknowledges a commit.
//!
//! ## A commit, a crash
//! ```text
//! client     coordinator            log        east        west
//!   │ begin ─────>│                  │           │           │
//!   │             │── prepare ───────┼──────────>│──────────>│   each: work + row, forced
//!   │             │<─ yes ───────────┼───────────│<──────────│
//!   │             │── decision ─────>│           │           │   forced: the commit point
//!   │<─committed ─│── commit ────────┼──────────>│──────────>│   each: effects + row, forced
//!   │             │<─ committed ─────┼───────────│<──────────│
//!   │             │── finish ───────>│           │           │   unforced
//! ```
//! A coordinator that crashes before the decision is durable has decided nothing: its epoch is fenced by the next life,
//! and a participant that inquires is told "aborted", for there is no record and can never be one. After it, the record
//! is found unfinished, [`coordinator::Transaction::recover`] yields the second phase, and every updating branch is told
//! again. A participant that crashes finds its prepared rows and inquires.
//!
//! ## Names ([`id`])
//! An id carries log identity, node and epoch, so that the absence of a record can be judged ([`life::Life::judge`]).
//!
//! ## Forgetting
//! Every call carries a low-water mark: all ids below it are finished ([`low_water`]). A participant drops such rows, and
//! keeps the mark instead, to which late messages lose ([`branch::State::Pruned`]).
//!
//! ## What is left out
//! - A one-phase path for a single branch: it would need a record of its own before the call and save nothing.
//! - Storing read-only votes: see [`branch`].
//! - A forced record for a commit in which nobody updates anything: a client that asks again after a crash may then be
//!   told "aborted", which for a transaction without effects says the same.
//! - Heuristic decisions: not built yet.
//! - Byzantine participants. One that lies about durability loses its own data; it can not make another one lose any.

pub mod branch;
mod by_name;
pub mod coordinator;
pub mod id;
pub mod keyring;
pub mod keys;
pub mod life;
pub mod low_water;
pub mod message;
pub mod operations;
pub mod record;
pub mod tally;
pub mod together;
pub mod trace;
pub mod wire;
