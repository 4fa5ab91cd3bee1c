//! Everything that tests, the demo and whatever measures or breaks the programs need around Unanimous: private Postgres
//! clusters, our programs as child processes, a load, the faults that are done to all of them, and the one audit.
//!
//! | what | where |
//! |---|---|
//! | two banks and a coordinator, running | [`town`] |
//! | a Postgres server of one's own | [`postgres`] |
//! | a server that somebody else runs, and databases borrowed there | [`server`] |
//! | any program as a child: started, listened to, killed | [`process`] |
//! | clients that repeat a request until they are told | [`load`] |
//! | what is done to a program, as a value | [`fault`] |
//! | a kill, and the time until all has settled | [`recovery`] |
//! | a place on the road where requests are held | [`gate`] |
//! | what clients were told, the log, and the banks' books, compared | [`audit`] |
//! | the same work by hand and through us, measured | [`mod@bench`] |
//! | what grows with what is under way, and with the history | [`growth`] |
//! | all of it, told to somebody who has never heard of us | [`demo`] |
//!
//! A load, a kill and an audit:
//!
//! ```no_run
//! # use std::time::Duration;
//! # use unanimous_lab::audit::{self, Books, Evidence};
//! # use unanimous_lab::{Fault, Load, Town, Transfers, Victim, town::Plan};
//! # async fn example(plan: Plan) -> anyhow::Result<()> {
//! let mut town = Town::start(&plan).await?;
//! let site = town.site();
//! let before = Books::read_both(&site).await?;
//!
//! let work = Transfers { seed: 1, accounts: plan.accounts, amount_max: 50 };
//! let load = Load::start(work, 16, site.address()?);
//! load.allow(1000);
//! load.told_at_least(500).await?;
//! town.inflict(Fault::Kill, Victim::Coordinator).await?;
//! town.inflict(Fault::Restart, Victim::Coordinator).await?;
//! let ended = load.finish().await?;
//!
//! audit::settled(&site, Duration::from_secs(30)).await?;
//! let evidence = Evidence::collect(&site, ended.asked, work.by_key(1000), before).await?;
//! assert!(evidence.examine().findings.is_empty());
//! # Ok(())
//! # }
//! ```
//!
//! The lab starts real processes and talks to them from outside; nothing depends on it. It needs
//! Linux (`/proc`, and `setpriv` of util-linux), because only there can a child be made to die with
//! its parent whatever kills the parent.
//!
//! Errors here are [`anyhow::Error`]: nobody can repair a server that does not start in the middle
//! of a test, so they are written for the person who reads the failure, with the end of the output.

pub mod at_size;
pub mod audit;
pub mod bench;
pub mod check;
pub mod demo;
pub mod disk;
pub mod fault;
pub mod gate;
pub mod growth;
pub mod lean;
pub mod load;
pub mod ports;
pub mod postgres;
pub mod power;
pub mod process;
pub mod recovery;
pub mod scratch;
pub mod server;
mod stand;
pub mod testing;
pub mod town;
pub mod transfer;
pub mod wait;

mod alone;
mod spawn;
mod tree;
mod vault;

pub use fault::{Fault, Victim};
pub use gate::Gate;
pub use load::{Load, Transfers};
pub use postgres::{Cluster, Options, Stop, Template};
pub use process::{Process, Program};
pub use spawn::{DeathSignal, command_that_dies_with_us, spawn};
pub use town::Town;
pub use transfer::Transfer;
pub use tree::{descendants_of, is_alive, kill_all_descendants};
