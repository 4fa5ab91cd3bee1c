//! What is done to our programs, as values: a plan of faults can be printed, compared and repeated.
//!
//! The lab carries them out ([`Town::inflict`](crate::Town::inflict)), on real processes and by real signals.

use std::fmt;

use crate::transfer::Side;

/// To whom it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Victim {
    /// The coordinator's process.
    Coordinator,
    /// The process of a bank. Its database server lives on.
    Bank(Side),
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coordinator => f.pad("coordinator"),
            Self::Bank(side) => f.pad(&format!("bank {side}")),
        }
    }
}

/// What is done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// SIGKILL, to it and its children at once, as if the power had gone. It stays dead.
    Kill,
    /// SIGTERM: it may end in good order, and has to within 30 s. It stays down.
    Stop,
    /// SIGSTOP: it stands still with all that it holds, connections and locks, and answers nobody.
    Pause,
    /// Brings it back, whatever was done to it. One that was paused goes on (SIGCONT). One that was killed or stopped is
    /// started again on the same port and the same data, and so is one that runs, after SIGKILL.
    Restart,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Pause => "pause",
            Self::Restart => "restart",
        })
    }
}
