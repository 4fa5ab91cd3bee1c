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

use crate::log::{DecisionLog, LogError};

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
/// When the log does not answer, or can not be trusted.
pub async fn recover(log: &Arc<dyn DecisionLog>, node: Node) -> Result<Recovered, LogError> {
    let opened = log.open_epoch(node).await?;
    let life = Life::begin(opened.writer, rand::random());
    let mut nodes = vec![node];
    if log.is_exclusive() {
        for other in log
            .nodes()
            .await?
            .into_iter()
            .filter(|other| *other != node)
        {
            log.open_epoch(other).await?;
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
