use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use shuttle::{
    sync::{
        Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};
use tokio::sync::oneshot;
use unanimous_protocol::{
    id::{Epoch, LogIdentity, Node, Prefix, Sequence, TransactionId},
    record::{AbortCode, AbortReason, Decision, Header, Record, Standing, Verdict, WallMillis},
};

use super::batches::{Batches, Unforced};
use crate::{explore, log::Batch};

/// Small, so that it is met.
const BATCH: usize = 2;

/// What reaches the log writer's mailbox.
enum Message {
    Propose(u64),
    Finish(u64),
    AppendDue,
    Flush(oneshot::Sender<()>),
    Written(Batch),
    Stop,
}

fn id(number: u64) -> TransactionId {
    let prefix = Prefix {
        identity: LogIdentity(7),
        node: Node(1),
    };
    TransactionId::new(
        prefix,
        Epoch::new(1).unwrap(),
        Sequence::new(number).unwrap(),
    )
}

fn record(number: u64) -> Record {
    let reason = AbortReason {
        code: AbortCode::Requested,
        participant: None,
        detail: None,
        winner: None,
    };
    Record {
        header: Arc::new(Header {
            id: id(number),
            key: None,
            labels: BTreeMap::new(),
            created_at: WallMillis(0),
            deadline: WallMillis(0),
        }),
        decision: Decision {
            verdict: Verdict::Abort(reason),
            branches: BTreeMap::new(),
        },
        decided_at: WallMillis(0),
        finished_at: None,
    }
}

/// What is durable, and whether a write is under way.
#[derive(Default)]
struct Log {
    writing: bool,
    durable: BTreeSet<TransactionId>,
}

/// What the log writer's actor does around its batches, over the same messages.
struct Writer {
    batches: Batches,
    log: Arc<Mutex<Log>>,
    told: Arc<Mutex<Vec<TransactionId>>>,
    mailbox: Sender<Message>,
}

impl Writer {
    fn run(mut self, messages: &Receiver<Message>) {
        while let Ok(message) = messages.recv() {
            match message {
                Message::Propose(number) => {
                    let (log, told) = (Arc::clone(&self.log), Arc::clone(&self.told));
                    let on_durable = Box::new(move |standing| {
                        // The log answers each proposal with its own id, so that a mix-up shows.
                        assert_eq!(standing, Standing::KeyHeldBy(id(number)));
                        assert!(log.lock().unwrap().durable.contains(&id(number)));
                        told.lock().unwrap().push(id(number));
                    });
                    self.batches.propose(record(number), on_durable);
                }
                Message::Finish(number) => {
                    let (log, told) = (Arc::clone(&self.log), Arc::clone(&self.told));
                    let on_durable = Box::new(move || {
                        assert!(log.lock().unwrap().durable.contains(&id(number)));
                        told.lock().unwrap().push(id(number));
                    });
                    let finish = Unforced::Finish(id(number), WallMillis(0));
                    self.batches.append(finish, on_durable);
                    // Until its time has come it may ride, or not.
                    continue;
                }
                Message::AppendDue => {
                    if !self.batches.append_due() {
                        continue;
                    }
                }
                Message::Flush(flushed) => self.batches.flush(flushed),
                Message::Written(batch) => {
                    let standings = batch.proposals.iter();
                    let standings = standings.map(|record| Standing::KeyHeldBy(record.header.id));
                    self.batches.durable(standings.collect());
                }
                Message::Stop => return,
            }
            self.write();
        }
    }

    fn write(&mut self) {
        let Some(batch) = self.batches.next() else {
            return;
        };
        assert!(batch.proposals.len() <= BATCH && batch.appends.finishes.len() <= BATCH);
        assert!(!batch.proposals.is_empty() || !batch.appends.is_empty());
        let (log, mailbox) = (Arc::clone(&self.log), self.mailbox.clone());
        thread::spawn(move || {
            {
                let mut log = log.lock().unwrap();
                assert!(!log.writing, "two writes at once");
                log.writing = true;
            }
            let mut log = log.lock().unwrap();
            let finishes = batch.appends.finishes.iter().map(|(id, _)| *id);
            let proposals = batch.proposals.iter().map(|record| record.header.id);
            log.durable.extend(proposals.chain(finishes));
            log.writing = false;
            drop(log);
            mailbox.send(Message::Written(batch)).unwrap();
        });
    }
}

/// Proposals from two threads, finishes from a third, and at last a flush.
#[test]
fn every_decision_and_finish_is_written_once_and_told_once_it_is_durable() {
    explore(|| {
        let (mailbox, messages) = channel();
        let told = Arc::new(Mutex::new(Vec::new()));
        let writer = Writer {
            batches: Batches::new(BATCH),
            log: Arc::default(),
            told: Arc::clone(&told),
            mailbox: mailbox.clone(),
        };
        let writing = thread::spawn(move || writer.run(&messages));
        let send = |messages: Vec<Message>| {
            let mailbox = mailbox.clone();
            thread::spawn(move || {
                for message in messages {
                    mailbox.send(message).unwrap();
                }
            })
        };
        let finishes = (20..23).map(Message::Finish);
        let senders = [
            send((0..3).map(Message::Propose).collect()),
            send((10..13).map(Message::Propose).collect()),
            send(finishes.chain([Message::AppendDue]).collect()),
        ];
        for sender in senders {
            sender.join().unwrap();
        }
        // Its time had come when the last of them was there, so nobody waits for the flush.
        while told.lock().unwrap().len() < 9 {
            thread::yield_now();
        }
        let (flushed, mut is_flushed) = oneshot::channel();
        mailbox.send(Message::Flush(flushed)).unwrap();
        while is_flushed.try_recv().is_err() {
            thread::yield_now();
        }
        let told = told.lock().unwrap().clone();
        let of_one_thread = |from: u64| {
            let numbers = (from..from + 3).map(id);
            numbers.collect::<Vec<_>>()
        };
        for from in [0, 10, 20] {
            let mine = of_one_thread(from);
            let in_order: Vec<_> = told
                .iter()
                .copied()
                .filter(|id| mine.contains(id))
                .collect();
            assert_eq!(in_order, mine, "first come, first written, and told once");
        }
        assert_eq!(told.len(), 9);
        mailbox.send(Message::Stop).unwrap();
        writing.join().unwrap();
    });
}
