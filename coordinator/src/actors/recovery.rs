//! At start: a new epoch, which fences every earlier one, then every unfinished transaction back to the registry.
//!
//! On a log that one process owns for its life (SQLite) nobody else can be running a node, so all nodes in it are fenced
//! and recovered here. On a shared one only the own node is.

use std::sync::Arc;

use tracing::info;
use unanimous_protocol::{
    id::{Node, ParticipantName},
    life::Life,
    record::Record,
};

use crate::{
    crash,
    log::{DecisionLog, LogError},
};

/// Why no life can begin.
#[derive(Debug, thiserror::Error)]
pub enum NoLife {
    /// An earlier life found that the log had lost what it had promised to keep.
    #[error(
        "the decision log went back ({0}): a new life on it would call aborted what its lost part committed. Bring back \
         the newest log there is, or run `unanimous log new-identity` on this one, then start again"
    )]
    WentBack(String),
    /// The log does not answer, or can not be trusted.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// A life that has begun, and what it owes for those before it.
pub struct Recovered {
    /// The life.
    pub life: Life,
    /// Commits that some branch has still to be told, of all nodes that this life takes.
    pub unfinished: Vec<Record>,
    /// Participants registered in earlier lives, with their addresses as text.
    pub participants: Vec<(ParticipantName, String)>,
}

/// Opens an epoch of `node` and reads what is unfinished, in this order: what an older life was deciding has ended by
/// then, or can never be durable.
///
/// # Errors
/// When the log does not answer, can not be trusted, or went back.
pub async fn recover(log: &Arc<dyn DecisionLog>, node: Node) -> Result<Recovered, NoLife> {
    // Before the epoch is raised: a start must not come nearer to the epochs that were lost.
    if let Some(why) = log.went_back().await? {
        return Err(NoLife::WentBack(why));
    }
    crash::point("epoch-before");
    let opened = log.open_epoch(node).await?;
    crash::point("epoch-after");
    let life = Life::begin(opened.writer, rand::random());
    let mut nodes = vec![node];
    if log.is_exclusive() {
        for other in log
            .nodes()
            .await?
            .into_iter()
            .filter(|other| *other != node)
        {
            crash::point("other-epoch-before");
            log.open_epoch(other).await?;
            crash::point("other-epoch-after");
            nodes.push(other);
        }
    }
    let mut unfinished = Vec::new();
    for node in nodes {
        unfinished.extend(log.unfinished(node).await?);
    }
    let writer = life.writer();
    info!(
        identity = %writer.identity, %node, epoch = %writer.epoch, unfinished = unfinished.len(),
        "a new life of the coordinator has begun"
    );
    let participants = log.participants().await?;
    Ok(Recovered {
        life,
        unfinished,
        participants,
    })
}
