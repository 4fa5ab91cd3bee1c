//! Nodes on a log that several coordinators share (design section 4): marks those that this life runs, adopts those that
//! it was asked to once nobody runs them any more, and shows those that nobody runs and that have left something
//! unfinished.
//!
//! A mark and its age only say when to *try* (design rule 13). What keeps an adoption safe is the epoch that it opens,
//! and what follows from it is said in [`unanimous_protocol::life`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use actix::{ActorFutureExt as _, AsyncContext as _, Context, WrapFuture as _};
use tokio::time::Instant;
use tracing::{error, info, warn};
use unanimous_protocol::{
    id::{Node, ParticipantName},
    life::{Head, Life, Writer},
    record::Record,
};

use super::{Registry, participants::register_stored};
use crate::{
    actors::{broken, transaction::LetGo},
    crash,
    log::{Abandoned, DecisionLog, LogError, NotAdopted, Opened},
};

/// What is abandoned is shown again after so long.
const SHOW_AGAIN: Duration = Duration::from_secs(60);

/// Whom to adopt, and when.
#[derive(Clone, Debug)]
pub struct Adoption {
    /// Nodes to adopt.
    pub nodes: BTreeSet<Node>,
    /// Adopt them at start, whoever runs them. Once fenced there the usual rule holds, or two coordinators that are
    /// restarted could fence each other for ever.
    pub force: bool,
    /// Between two marks.
    pub mark_every: Duration,
    /// A node that was not marked for so long is run by nobody.
    pub unseen_for: Duration,
}

/// What is known of the other nodes.
pub(super) struct Neighbours {
    /// Whether a look is under way.
    looking: bool,
    /// Adopted once by force, or not to be any more.
    forced: BTreeSet<Node>,
    /// Why a node was not adopted, as it was told last.
    told: BTreeMap<Node, NotAdopted>,
    /// When the log was last found not to answer, or was not yet looked at. Nobody could mark a node then, for all that is
    /// known, so a mark's age says nothing.
    silent_at: Instant,
    shown_at: Option<Instant>,
    shown: Vec<Node>,
}

impl Neighbours {
    /// Of a life that begins.
    pub(super) fn unknown() -> Self {
        Self {
            looking: false,
            forced: BTreeSet::new(),
            told: BTreeMap::new(),
            silent_at: Instant::now(),
            shown_at: None,
            shown: Vec::new(),
        }
    }
}

/// An epoch that was opened, and what its node had left; or why none was.
type Tried = Result<(Opened, Vec<Record>), NotAdopted>;

/// What one look found.
#[derive(Default)]
struct Look {
    heads: Vec<(Writer, Head)>,
    tried: Vec<(Node, Tried)>,
    /// Read once a node was adopted: its branches may be of participants that were registered there.
    participants: Option<Vec<(ParticipantName, String)>>,
    abandoned: Option<Vec<Abandoned>>,
}

impl Registry {
    pub(super) fn look_after_nodes(&mut self, ctx: &mut Context<Self>) {
        if self.log.is_exclusive() {
            return;
        }
        self.look(ctx);
        ctx.run_interval(self.adoption.mark_every, Self::look);
    }

    /// The log did not answer.
    pub(super) fn log_was_silent(&mut self) {
        self.neighbours.silent_at = Instant::now();
    }

    fn look(&mut self, ctx: &mut Context<Self>) {
        let runs = self.life.runs();
        if self.neighbours.looking || runs.is_empty() {
            return;
        }
        self.neighbours.looking = true;
        let wanted = self.to_adopt_now();
        // Once, whatever comes of it: an attempt that is unclear may have fenced somebody who is back by now.
        let forced = wanted.iter().filter(|(_, unseen_for)| unseen_for.is_none());
        self.neighbours.forced.extend(forced.map(|(node, _)| *node));
        let (log, unseen_for) = (Arc::clone(&self.log), self.adoption.unseen_for);
        let look = async move {
            let mut found = Look::default();
            let whole = look(&*log, &runs, wanted, unseen_for, &mut found).await;
            (found, whole)
        };
        ctx.spawn(look.into_actor(self).map(|(found, whole), registry, ctx| {
            registry.neighbours.looking = false;
            registry.looked(found, ctx);
            match whole {
                Ok(()) => {}
                Err(LogError::Unavailable(cause)) => {
                    warn!(error = %cause, "this coordinator could not mark that it runs its node: it is tried again");
                    registry.log_was_silent();
                }
                Err(LogError::Broken(cause)) => broken(&*cause),
            }
        }));
    }

    /// The nodes to try, each with how long nobody may have marked it.
    fn to_adopt_now(&self) -> Vec<(Node, Option<Duration>)> {
        let Adoption {
            nodes,
            force,
            unseen_for,
            ..
        } = &self.adoption;
        if !self.accepting {
            return Vec::new();
        }
        let neighbours = &self.neighbours;
        let marks_count = neighbours.silent_at.elapsed() >= *unseen_for;
        let wanted = nodes.iter().copied();
        wanted
            .filter(|node| self.life.may_adopt(*node))
            .filter_map(|node| {
                if *force && !neighbours.forced.contains(&node) {
                    Some((node, None))
                } else {
                    marks_count.then_some((node, Some(*unseen_for)))
                }
            })
            .collect()
    }

    fn looked(&mut self, look: Look, ctx: &mut Context<Self>) {
        for (known, head) in look.heads {
            if let Some(fence) = self.life.observe_adopted(&known, &head) {
                warn!(
                    node = %known.node, %fence,
                    "somebody else runs the adopted node now: it is left to them, and adopted again when nobody does"
                );
                self.let_go_of(known.node);
            }
        }
        for (node, tried) in look.tried {
            self.neighbours.forced.insert(node);
            match tried {
                Ok((opened, unfinished)) => self.adopted(&opened, unfinished),
                Err(why) => {
                    if self.neighbours.told.insert(node, why) != Some(why) {
                        warn!(
                            %node, %why,
                            "the node is not adopted now: it is tried again, and this coordinator serves its own"
                        );
                    }
                }
            }
        }
        if let Some(participants) = look.participants {
            register_stored(&self.couriers, &self.configured, participants);
        }
        if let Some(abandoned) = look.abandoned {
            self.show(&abandoned);
        }
        self.report_condition(ctx);
    }

    fn let_go_of(&mut self, node: Node) {
        let all = self.transactions.keys().copied();
        for id in all.filter(|id| Life::leaves(node, *id)).collect::<Vec<_>>() {
            if let Some(live) = self.transactions.get(&id) {
                live.actor.do_send(LetGo);
            }
            self.couriers.forget(id);
            self.left_memory(id);
        }
    }

    fn adopted(&mut self, opened: &Opened, unfinished: Vec<Record>) {
        let writer = opened.writer;
        if !self.life.adopt(writer) {
            warn!(node = %writer.node, "the node was adopted too late: this life has ended");
            return;
        }
        self.neighbours.told.remove(&writer.node);
        info!(
            node = %writer.node, epoch = %writer.epoch, unfinished = unfinished.len(),
            "the node is adopted: its commits are delivered from here, and what it had not decided is aborted"
        );
        self.recover(unfinished);
    }

    fn show(&mut self, abandoned: &[Abandoned]) {
        let nodes: Vec<_> = abandoned.iter().map(|abandoned| abandoned.node).collect();
        let neighbours = &mut self.neighbours;
        let due = neighbours
            .shown_at
            .is_none_or(|at| at.elapsed() >= SHOW_AGAIN);
        let is_news = neighbours.shown != nodes || (due && !nodes.is_empty());
        if !is_news {
            return;
        }
        for Abandoned {
            node,
            unfinished,
            unseen_for,
        } in abandoned
        {
            error!(
                %node, unfinished, unseen_for = ?Duration::from_secs(unseen_for.as_secs()),
                "NOBODY RUNS this node, and it has committed transactions whose branches were not all told: start its \
                 coordinator, or adopt it with --adopt-node"
            );
        }
        neighbours.shown = nodes;
        neighbours.shown_at = Some(Instant::now());
    }
}

/// Marks first: whoever adopts must be seen to live, too. What was found before a failure counts.
async fn look(
    log: &dyn DecisionLog,
    runs: &[Writer],
    wanted: Vec<(Node, Option<Duration>)>,
    unseen_for: Duration,
    look: &mut Look,
) -> Result<(), LogError> {
    for (at, writer) in runs.iter().enumerate() {
        crash::point("mark-before");
        log.mark(writer).await?;
        crash::point("mark-after");
        // The own node is observed every second.
        if at > 0 {
            look.heads.push((*writer, log.head(writer.node).await?));
        }
    }
    for (node, unseen_for) in wanted {
        crash::point("adopt-before");
        let adopted = log.adopt(node, unseen_for).await?;
        crash::point("adopt-after");
        let tried = match adopted {
            // Where this fails the epoch stays opened by nobody, and is adopted like any other.
            Ok(opened) => {
                let unfinished = log.unfinished(node).await?;
                look.participants = Some(log.participants().await?);
                Ok((opened, unfinished))
            }
            Err(why) => Err(why),
        };
        look.tried.push((node, tried));
    }
    look.abandoned = Some(log.abandoned(unseen_for).await?);
    Ok(())
}
