//! Golden scripts: one situation each, played by the simulated shells of the world, step by step and without chance.
//!
//! Every message takes a millisecond, every forced write too, and nothing is lost unless the script says so. Messages
//! are found by the words of their labels, in any order and as few as tell them apart:
//!
//! | label | what travels |
//! |---|---|
//! | `call prepare\|commit\|abort PARTICIPANT tN cN` | a coordinator's request |
//! | `calls prepare\|commit\|abort … PARTICIPANT tN … cN` | requests that travel together |
//! | `reply vote\|ack\|protest\|failure PARTICIPANT tN cN` | its answer |
//! | `ask begin\|enlist\|commit\|abort\|get\|inquire WHO cN` | to a coordinator |
//! | `answer WHO cN` | its answer |
//! | `log open\|decide\|append\|read\|by-key\|head\|remember cN tN` | to the decision log |
//! | `log opened\|decided\|appended\|found\|shut cN tN` | its answer |
//! | `flush PARTICIPANT`, `flush log` | a local transaction on its way to the disk |
//! | `work PARTICIPANT tN` | interactive work |
//!
//! `t1`, `t2` are transactions and `c1`, `c2` lives of coordinators, as they come.

use std::{
    collections::BTreeMap,
    error::Error,
    fmt::Write as _,
    panic::{AssertUnwindSafe, catch_unwind},
};

use goldenscript::{ArgumentConsumer, Command, Context};
use unanimous_protocol::{
    id::{Epoch, LogIdentity, Node, ParticipantName, Prefix, Sequence, TransactionId},
    message::{Prepare, Request},
    operations::{BodyDigest, Operations},
    record::IdempotencyKey,
};

use crate::{
    director::Action,
    log::Fault,
    participant::Operation,
    surroundings::{
        Asker, Call, Happening, LifeNumber, Millis, Question, Surroundings, Wait, Who, Work,
    },
    words,
    world::{HEALING, World},
};

type Failed = Box<dyn Error>;

/// Plays one script.
pub struct Stage {
    world: World,
    clients: usize,
    calls: u64,
    /// What `end` found still open, is shown and not an error.
    shows_open_ends: bool,
}

impl Default for Stage {
    fn default() -> Self {
        Self {
            world: World::of_script(),
            clients: 0,
            calls: 0,
            shows_open_ends: false,
        }
    }
}

/// One script, and what became of it.
pub struct Played {
    /// The name of its file.
    pub name: String,
    /// What the machines do in it, or why it could not be played to its end.
    pub result: Result<String, String>,
    /// What is recorded.
    pub recorded: String,
}

impl Played {
    /// The first line that is otherwise than recorded and its number, or what went wrong.
    #[must_use]
    pub fn difference(&self) -> Option<String> {
        match &self.result {
            Err(error) => Some(error.clone()),
            Ok(now) if *now == self.recorded => None,
            Ok(now) => {
                let (mut now, mut recorded) = (now.lines(), self.recorded.lines());
                let mut number = 0;
                loop {
                    number += 1;
                    match (now.next(), recorded.next()) {
                        (Some(now), Some(recorded)) if now == recorded => {}
                        (now, recorded) => {
                            return Some(format!(
                                "after {number} lines: recorded `{}`, and now `{}`",
                                recorded.unwrap_or("(the end)"),
                                now.unwrap_or("(the end)")
                            ));
                        }
                    }
                }
            }
        }
    }
}

/// Plays every script of a directory, by name.
///
/// # Errors
/// When the directory or a script can not be read.
pub fn play_all(directory: &std::path::Path) -> std::io::Result<Vec<Played>> {
    let mut paths: Vec<_> = std::fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let recorded = std::fs::read_to_string(&path)?;
            let name = path.file_name().unwrap_or_default();
            let mut stage = Stage::default();
            let playing = AssertUnwindSafe(|| goldenscript::generate(&mut stage, &recorded));
            let result = match catch_unwind(playing) {
                Ok(result) => result.map_err(|error| error.to_string()),
                Err(_) => Err("something panicked, see above".to_owned()),
            };
            Ok(Played {
                name: name.to_string_lossy().into_owned(),
                result,
                recorded,
            })
        })
        .collect()
}

impl goldenscript::Runner for Stage {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Failed> {
        let mut arguments = command.consume_args();
        let shown = self.carry_out(&command.name, &mut arguments)?;
        arguments.reject_next()?;
        if let Some(what) = self.world.s.checker.violation() {
            return Err(what.to_owned().into());
        }
        let mut lines = self.world.s.trace.take().unwrap_or_default();
        self.world.s.trace = Some(Vec::new());
        let short = |line: &String| self.world.s.with_short_names(line);
        lines.extend(shown.iter().map(short));
        Ok(lines.join("\n"))
    }
}

impl Stage {
    fn carry_out(
        &mut self,
        name: &str,
        arguments: &mut ArgumentConsumer<'_>,
    ) -> Result<Vec<String>, Failed> {
        match name {
            // coordinators and participants
            "start" => {
                let on_the_copy = arguments.take_key("on") == Some("copy");
                self.start(&words_of(arguments), on_the_copy)?;
            }
            "crash" => self.crash(arguments)?,
            "betray" => {
                // `betray east 1`: so many durable local transactions are gone.
                let name = participant(arguments)?;
                let count = number(arguments)?;
                let (participant, s) = self.participant(&name)?;
                participant.crash_and_lose_durable_rows(count as usize, s);
            }
            "lose-session" => {
                let name = participant(arguments)?;
                let (participant, s) = self.participant(&name)?;
                participant.lose_a_session(s);
            }
            "unregister" => {
                let name = participant(arguments)?;
                self.world.s.unregistered.insert(name);
            }
            "register" => {
                let name = participant(arguments)?;
                self.world.s.unregistered.remove(&name);
            }
            "rename" => {
                // `rename east orient`
                let (first, name) = (participant(arguments)?, participant(arguments)?);
                let (renamed, _) = self.participant(&first)?;
                renamed.rename(name.clone());
                self.world.renamed.insert(name, first);
            }
            "processes" => {
                // `processes east 2`: so many over one database.
                let name = participant(arguments)?;
                let size = number(arguments)?;
                let (participant, s) = self.participant(&name)?;
                participant.resize(size as usize, s);
            }
            "route" => {
                // `route east 1`: what comes arrives at the second process.
                let name = participant(arguments)?;
                let at = number(arguments)?;
                self.participant(&name)?.0.route_to(at as usize);
            }
            "together" => {
                // `together east`: messages that wait share its local transactions, and calls to it travel together.
                let name = participant(arguments)?;
                self.world.s.batches.shared.insert(name.clone());
                self.world.s.batches.bundled.insert(name);
            }
            "unclear" => {
                // `unclear east happened|not`: its next shared commit, of which nobody hears.
                let name = participant(arguments)?;
                let happens = match arguments.next_pos() {
                    Some("happened") => true,
                    Some("not") => false,
                    _ => return Err("happened or not".into()),
                };
                self.world.s.batches.unclear = Some((name, happens));
            }
            "break-off" => {
                // `break-off east 1`: its next answer to calls that travelled together has so many lines.
                let name = participant(arguments)?;
                let lines = number(arguments)?;
                self.world.s.batches.breaks_off = Some((name, lines as usize));
            }
            "adopt" => {
                // `adopt c1 2`: this life adopts node 2.
                let life = life(arguments.next_pos().ok_or("who?")?).ok_or("a life is c1, c2 …")?;
                let node = Node(arguments.next_pos().ok_or("which node?")?.parse()?);
                self.world.adopt(life, node);
            }
            "connect" => {
                // `connect c2 copy`: from now on it writes to the copy of the log; `connect c2 log`.
                let life = life(arguments.next_pos().ok_or("who?")?).ok_or("a life is c1, c2 …")?;
                match arguments.next_pos() {
                    Some("copy") => self.world.on_the_copy.insert(life),
                    Some("log") => self.world.on_the_copy.remove(&life),
                    _ => return Err("copy or log".into()),
                };
            }
            // clients
            "begin" => self.begin(arguments)?,
            "commit" | "abort" | "get" => self.asks(name, arguments)?,
            "work" => self.work(arguments)?,
            // somebody who is no coordinator and no participant of ours
            "inquire" => self.inquire(arguments)?,
            "send" => self.send(arguments)?,
            // the network
            "hold" => self.rule(arguments, Action::Hold)?,
            "lose" => self.rule(arguments, Action::Lose)?,
            "twice" => self.rule(arguments, Action::Twice)?,
            "let-go" => self.let_go(arguments, true)?,
            "discard" => self.let_go(arguments, false)?,
            // the log
            "log" => self.log(arguments)?,
            // time
            "run" => {
                // `run 3m quiet` shows nothing of it.
                let span = arguments.next_pos().map(millis);
                let quiet = arguments.next_pos() == Some("quiet");
                self.world.pass(span.transpose()?.unwrap_or(50))?;
                if quiet {
                    self.world.s.trace = Some(Vec::new());
                }
            }
            // what stands
            "marks" => return Ok(self.marks()),
            "rows" | "accounts" | "keys" => return self.shows(name, arguments),
            "prune" => self.prune(arguments)?,
            "records" => return Ok(self.records()),
            "memory" => return self.memory(),
            "expect-alarms" => self.world.s.checker.expects_alarms = true,
            "expect-open-ends" => self.shows_open_ends = true,
            "end" => return self.end(),
            unknown => return Err(format!("no command {unknown}").into()),
        }
        Ok(Vec::new())
    }

    fn participant(
        &mut self,
        name: &ParticipantName,
    ) -> Result<(&mut crate::participant::Participant, &mut Surroundings), Failed> {
        let World {
            participants, s, ..
        } = &mut self.world;
        let participant = participants.get_mut(name).ok_or("no such participant")?;
        Ok((participant, s))
    }

    /// `prune east`: a round of pruning, by the highest mark that a coordinator would send now, or that of `by=c2`.
    fn prune(&mut self, arguments: &mut ArgumentConsumer<'_>) -> Result<(), Failed> {
        let name = participant(arguments)?;
        if let Some(by) = arguments.take_key("by") {
            let by = life(by).ok_or("a life is c1, c2 …")?;
            let by = self.world.coordinators.get(&by).ok_or("no such life")?;
            let mark = by.low_water().ok_or("it has no mark")?;
            let (participant, s) = self.participant(&name)?;
            participant.prune(mark, s).ok();
            return Ok(());
        }
        let marks = self.world.coordinators.values();
        let mark = marks
            .filter_map(crate::coordinator::Coordinator::low_water)
            .max();
        let mark = mark.ok_or("no coordinator has a mark")?;
        let (participant, s) = self.participant(&name)?;
        participant.prune(mark, s).ok();
        Ok(())
    }

    /// `start 1`: a life of node 1, also beside another; `start 1 on=copy`. `start east`: after a crash.
    fn start(&mut self, names: &[String], on_the_copy: bool) -> Result<(), Failed> {
        for name in names {
            if let Ok(node) = name.parse() {
                let number = self.world.start_coordinator(Node(node));
                if on_the_copy {
                    self.world.on_the_copy.insert(number);
                }
                self.world.pass(10)?;
            } else {
                let name: ParticipantName = name.parse()?;
                let (participant, s) = self.participant(&name)?;
                participant.start(s);
            }
        }
        Ok(())
    }

    /// `crash c1`, `crash log`, `crash east keeping=1`: so many unforced local transactions survive.
    fn crash(&mut self, arguments: &mut ArgumentConsumer<'_>) -> Result<(), Failed> {
        let keeping = arguments.take_key("keeping");
        let keeping = keeping.map_or(Ok(0), str::parse)?;
        let whom = arguments.next_pos().ok_or("whom?")?.to_owned();
        if whom == "log" {
            self.world.log.crash(&mut self.world.s);
        } else if let Some(life) = life(&whom) {
            if !self.world.coordinators.contains_key(&life) {
                return Err(format!("{whom} does not run").into());
            }
            self.world.crash_coordinator(life);
        } else {
            let (participant, s) = self.participant(&whom.parse()?)?;
            participant.crash(keeping, s);
        }
        Ok(())
    }

    fn next_client(&mut self) -> Asker {
        self.clients += 1;
        Asker {
            who: Who::Client(self.clients),
            question: 0,
        }
    }

    /// Asks the life `at`, or any of `node`.
    fn ask(
        &mut self,
        at: Option<&str>,
        node: Option<Node>,
        asker: Asker,
        question: Question,
    ) -> Result<(), Failed> {
        match at {
            None => self.world.s.ask(node, asker, question),
            Some(at) => {
                let life = life(at).ok_or("a life is c1, c2 …")?;
                self.world.s.transmit(Happening::Asked {
                    life,
                    asker,
                    question,
                });
            }
        }
        Ok(())
    }

    /// `begin east="debit 0 10, look" west="credit 0 10" key=k timeout=5s`, and `open` to commit later.
    fn begin(&mut self, arguments: &mut ArgumentConsumer<'_>) -> Result<(), Failed> {
        let key: Option<IdempotencyKey> = arguments.take_key("key").map(str::parse).transpose()?;
        let timeout = arguments.take_key("timeout").map_or(Ok(30_000), millis)?;
        let at = arguments.take_key("at");
        let open = arguments.next_pos();
        let commit = match open {
            None => true,
            Some("open") => false,
            Some(other) => return Err(format!("{other}?").into()),
        };
        let mut branches = BTreeMap::new();
        let mut request = String::new();
        for argument in arguments.by_ref() {
            let goldenscript::Argument::KeyValue(name, operations) = argument else {
                return Err("a branch is PARTICIPANT=OPERATIONS".into());
            };
            write!(request, "{name} {operations} ")?;
            branches.insert(name.parse::<ParticipantName>()?, parse(operations)?);
        }
        let asker = self.next_client();
        let question = Question::Begin {
            key,
            request: BodyDigest::of_json(&format!("{request:?}"))?,
            branches: branches.into_iter().collect(),
            commit,
            timeout,
        };
        self.ask(at, None, asker, question)
    }

    /// `commit t1`, `abort t1`, `get t1`, of its own node or `at=c2`.
    fn asks(&mut self, name: &str, arguments: &mut ArgumentConsumer<'_>) -> Result<(), Failed> {
        let at = arguments.take_key("at");
        let id = self.id(arguments)?;
        let question = match name {
            "commit" => Question::Commit(id, Wait::Decided),
            "abort" => Question::Abort(id, Wait::Decided),
            _ => Question::Get(id),
        };
        let asker = self.next_client();
        self.ask(at, Some(id.node()), asker, question)
    }

    /// `work east t1 "debit 0 10"`: a client asks a participant for interactive work.
    fn work(&mut self, arguments: &mut ArgumentConsumer<'_>) -> Result<(), Failed> {
        let participant = participant(arguments)?;
        let id = self.id(arguments)?;
        let operations = parse(arguments.next_pos().ok_or("which work?")?)?;
        self.calls += 1;
        let asker = self.next_client();
        self.world.s.transmit(Happening::WorkArrives(Work {
            id,
            participant,
            node: id.node(),
            ordinal: self.calls as u32,
            operations: operations.text().to_owned(),
            asker,
        }));
        Ok(())
    }

    /// `inquire east t1`: whoever can reach the coordinator may ask so; `at=c2`.
    fn inquire(&mut self, arguments: &mut ArgumentConsumer<'_>) -> Result<(), Failed> {
        let at = arguments.take_key("at");
        let participant = participant(arguments)?;
        let id = self.id(arguments)?;
        let asker = Asker {
            who: Who::Participant(participant.clone()),
            question: 0,
        };
        let question = Question::Outcome { id, participant };
        self.ask(at, None, asker, question)
    }

    /// `send east prepare t1 "debit 0 10"`: a request that no life waits for the answer of, as late duplicates are.
    fn send(&mut self, arguments: &mut ArgumentConsumer<'_>) -> Result<(), Failed> {
        let session = arguments.take_key("session").map(str::parse).transpose()?;
        let remaining = arguments.take_key("remaining").map_or(Ok(30_000), millis)?;
        let participant = participant(arguments)?;
        let kind = arguments.next_pos().ok_or("which request?")?;
        let id = self.id(arguments)?;
        let request = match kind {
            "prepare" => Request::Prepare(Prepare {
                operations: parse(arguments.next_pos().unwrap_or_default())?,
                session,
            }),
            "commit" => Request::Commit,
            "abort" => Request::Abort,
            other => return Err(format!("no request {other}").into()),
        };
        self.calls += 1;
        let call = Call {
            low_water: None,
            life: LifeNumber(0),
            number: self.calls,
            id,
            participant,
            request,
            remaining,
            begun_at_ms: 0,
            lines: None,
        };
        self.world.s.transmit(Happening::CallArrives(call));
        Ok(())
    }

    /// `lose reply vote east times=2` (once, without), `hold flush east` (until it is let go).
    fn rule(&mut self, arguments: &mut ArgumentConsumer<'_>, action: Action) -> Result<(), Failed> {
        let times = match arguments.take_key("times") {
            Some("all") => None,
            Some(times) => Some(times.parse()?),
            None if action == Action::Hold => None,
            None => Some(1),
        };
        let label = words_of(arguments);
        let director = self.world.s.director.as_mut().ok_or("no director")?;
        director.rule(label, action, times);
        Ok(())
    }

    /// `let-go reply vote east`: what was held arrives now. `discard` loses it.
    fn let_go(
        &mut self,
        arguments: &mut ArgumentConsumer<'_>,
        arrives: bool,
    ) -> Result<(), Failed> {
        let label = words_of(arguments);
        let director = self.world.s.director.as_mut().ok_or("no director")?;
        for happening in director.let_go(&label) {
            if arrives {
                self.world.s.after(1, happening);
            }
        }
        Ok(())
    }

    /// `log fails lost|answer-lost|visible-only`: the next write; `log goes-back 3`; `log is-down 5s`;
    /// `log gets-new-identity` (where it went back), `log is-given-new-identity`; `log is-copied`,
    /// `log copy-is-given-new-identity`.
    fn log(&mut self, arguments: &mut ArgumentConsumer<'_>) -> Result<(), Failed> {
        let World { log, copy, s, .. } = &mut self.world;
        match arguments.next_pos().ok_or("what of the log?")? {
            "fails" => {
                let fault = match arguments.next_pos() {
                    Some("lost") => Fault::Lost,
                    Some("answer-lost") => Fault::AnswerLost,
                    Some("visible-only") => Fault::VisibleOnly,
                    _ => return Err("lost, answer-lost or visible-only".into()),
                };
                s.director.as_mut().ok_or("no director")?.log_fault = Some(fault);
            }
            "goes-back" => {
                let writes = number(arguments)?;
                log.go_back(writes as usize, s);
            }
            "is-down" => {
                let span = millis(arguments.next_pos().ok_or("how long?")?)?;
                log.outage(span, s);
            }
            "gets-new-identity" => log.new_identity(s),
            "is-given-new-identity" => log.give_new_identity(s),
            "is-copied" => {
                // Who moves from one to the other finds a log that lost something.
                s.checker.log_went_back();
                *copy = Some(log.copied());
            }
            "copy-is-given-new-identity" => {
                copy.as_mut()
                    .ok_or("there is no copy")?
                    .give_new_identity(s);
            }
            other => return Err(format!("log {other}?").into()),
        }
        Ok(())
    }

    /// `t1`, or an id that nobody issued: `ours/1/5/7` is identity, node, epoch, sequence; `ours` is the log's
    /// present identity, `foreign` another log's.
    fn id(&self, arguments: &mut ArgumentConsumer<'_>) -> Result<TransactionId, Failed> {
        let text = arguments.next_pos().ok_or("which transaction?")?;
        if let Some(id) = self.world.s.named(text) {
            return Ok(id);
        }
        let parts: Vec<&str> = text.split('/').collect();
        let [identity, node, epoch, sequence] = parts[..] else {
            return Err(format!("no transaction {text}").into());
        };
        let identity = match identity {
            "ours" => self.world.log.identity(),
            "foreign" => LogIdentity(0xf0e1),
            other => return Err(format!("whose is {other}?").into()),
        };
        let prefix = Prefix {
            identity,
            node: Node(node.parse()?),
        };
        let epoch = Epoch::new(epoch.parse()?).ok_or("too large")?;
        let sequence = Sequence::new(sequence.parse()?).ok_or("too large")?;
        Ok(TransactionId::new(prefix, epoch, sequence))
    }

    /// `rows east`, `accounts east`, `keys east`.
    fn shows(
        &mut self,
        what: &str,
        arguments: &mut ArgumentConsumer<'_>,
    ) -> Result<Vec<String>, Failed> {
        let name = participant(arguments)?;
        let World {
            participants, s, ..
        } = &self.world;
        let participant = participants.get(&name).ok_or("no such participant")?;
        let lines: Vec<String> = match what {
            "rows" => participant
                .rows()
                .map(|(id, state)| format!("{name}: {} {}", s.name_of(id), words::branch(state)))
                .collect(),
            "keys" => participant
                .keys()
                .map(|(key, id)| format!("{name}: key {key} held by {}", s.name_of(id)))
                .collect(),
            _ => participant
                .accounts()
                .filter(|(_, balance, held)| (*balance, *held) != (100, 0))
                .map(|(account, balance, held)| {
                    format!("{name}: account {account} has {balance}, of which {held} held")
                })
                .collect(),
        };
        Ok(if lines.is_empty() {
            vec![format!("{name}: no {what}")]
        } else {
            lines
        })
    }

    /// The low-water mark that each life would send.
    fn marks(&self) -> Vec<String> {
        let lives = self.world.coordinators.iter();
        let line = |(number, life): (&LifeNumber, &crate::coordinator::Coordinator)| {
            let mark = life
                .low_water()
                .map_or("no mark".to_owned(), |mark| mark.to_string());
            format!("{number}: {mark}")
        };
        lives.map(line).collect()
    }

    fn records(&self) -> Vec<String> {
        let World { log, s, .. } = &self.world;
        let mut lines: Vec<String> = log
            .records()
            .map(|record| {
                format!(
                    "log: {} {}{}",
                    s.name_of(record.header.id),
                    words::decision(&record.decision),
                    if record.finished_at.is_some() {
                        ", finished"
                    } else {
                        ""
                    }
                )
            })
            .collect();
        if lines.is_empty() {
            lines.push("log: no records".to_owned());
        }
        lines
    }

    fn memory(&self) -> Result<Vec<String>, Failed> {
        let mut lines = Vec::new();
        for (life, coordinator) in &self.world.coordinators {
            let mut line = format!("{life}: ");
            let held: Vec<String> = coordinator
                .unfinished()
                .into_iter()
                .map(|id| self.world.s.name_of(id))
                .collect();
            write!(line, "holds {}", held.join(", "))?;
            lines.push(if held.is_empty() {
                format!("{life}: holds nothing")
            } else {
                line
            });
        }
        Ok(lines)
    }

    /// The world is healed, everybody runs, and minutes pass: then everything must have ended (AC5).
    fn end(&mut self) -> Result<Vec<String>, Failed> {
        self.world.s.trace = None;
        if let Some(director) = &mut self.world.s.director {
            let held = director.let_go(&[]);
            for happening in held {
                self.world.s.after(1, happening);
            }
        }
        self.world.heal();
        self.world.pass(HEALING)?;
        let ended = self.world.all_has_ended();
        self.world.s.trace = Some(Vec::new());
        match ended {
            Ok(()) => Ok(vec!["all has ended".to_owned()]),
            Err(open) if self.shows_open_ends => Ok(vec![self.world.s.with_short_names(&open)]),
            Err(open) => Err(open.into()),
        }
    }
}

fn words_of(arguments: &mut ArgumentConsumer<'_>) -> Vec<String> {
    std::iter::from_fn(|| arguments.next_pos().map(str::to_owned)).collect()
}

fn participant(arguments: &mut ArgumentConsumer<'_>) -> Result<ParticipantName, Failed> {
    Ok(arguments.next_pos().ok_or("which participant?")?.parse()?)
}

fn number(arguments: &mut ArgumentConsumer<'_>) -> Result<u64, Failed> {
    Ok(arguments.next_pos().ok_or("how many?")?.parse()?)
}

fn life(text: &str) -> Option<LifeNumber> {
    text.strip_prefix('c')?.parse().ok().map(LifeNumber)
}

/// `50ms`, `5s` or `3m`.
fn millis(text: &str) -> Result<Millis, Failed> {
    let at = text
        .find(|c: char| !c.is_ascii_digit())
        .ok_or("a span has a unit")?;
    let number: Millis = text[..at].parse()?;
    match &text[at..] {
        "ms" => Ok(number),
        "s" => Ok(number * 1_000),
        "m" => Ok(number * 60_000),
        unit => Err(format!("no unit {unit}").into()),
    }
}

/// `debit 0 10, look` as the ledger's operations.
fn parse(text: &str) -> Result<Operations, Failed> {
    let mut operations = Vec::new();
    for operation in text.split(',').filter(|text| !text.is_empty()) {
        let mut parts = operation.split_whitespace();
        let kind = parts.next().unwrap_or_default();
        let numbers: Vec<u64> = parts.map(str::parse).collect::<Result<_, _>>()?;
        operations.push(
            match (kind, &numbers[..]) {
                ("debit", &[account, amount]) => Operation::Debit { account, amount },
                ("credit", &[account, amount]) => Operation::Credit { account, amount },
                ("shuffle", &[from, to, amount]) => Operation::Shuffle { from, to, amount },
                ("look", []) => Operation::Look,
                ("refuse", []) => Operation::Refuse,
                ("lock", &[key]) => Operation::Lock { key },
                _ => return Err(format!("no operation {operation}").into()),
            }
            .json(),
        );
    }
    Ok(Operations::parse(&format!("[{}]", operations.join(",")))?)
}
