//! Which programs a command starts: those beside this one, unless it is told otherwise.

use std::path::PathBuf;

use clap::Args;
use unanimous_lab::town::Programs;

/// The coordinator's.
#[derive(Args)]
pub(super) struct Coordinator {
    /// The coordinator's program; by default `unanimous` beside this one
    #[arg(long, value_name = "PATH")]
    unanimous: Option<PathBuf>,
}

/// The coordinator's and the banks'.
#[derive(Args)]
pub(super) struct Both {
    #[command(flatten)]
    coordinator: Coordinator,
    /// The bank's program; by default `bank` beside this one
    #[arg(long, value_name = "PATH")]
    bank: Option<PathBuf>,
}

impl Coordinator {
    pub(super) fn programs(&self) -> anyhow::Result<Programs> {
        let beside = Programs::beside_this_one()?;
        Ok(Programs {
            unanimous: self.unanimous.clone().unwrap_or(beside.unanimous),
            ..beside
        })
    }
}

impl Both {
    pub(super) fn programs(&self) -> anyhow::Result<Programs> {
        let beside = self.coordinator.programs()?;
        Ok(Programs {
            bank: self.bank.clone().unwrap_or(beside.bank),
            ..beside
        })
    }
}
