//! The log's writer: all that waits goes into the next write.

use unanimous_protocol::{coordinator::Event, id::TransactionId, record::Standing};

use super::{Coordinator, Pending};
use crate::{
    log,
    surroundings::{Crashed, Happening, Surroundings},
};

impl Coordinator {
    pub(super) fn write_soon(&mut self, s: &mut Surroundings) {
        if !self.lonely_append_set {
            self.lonely_append_set = true;
            s.after(100, Happening::LonelyAppend(self.number));
        }
    }

    pub(crate) fn lonely_append(&mut self, s: &mut Surroundings) {
        self.lonely_append_set = false;
        let next = &self.next_write;
        if !(next.proposals.is_empty() && next.appends.is_empty() && next.finishes.is_empty()) {
            if self.write_under_way && !self.next_write.proposals.is_empty() {
                return self.write_soon(s);
            }
            self.send_write(s);
        }
    }

    pub(crate) fn write(&mut self, s: &mut Surroundings) {
        if !self.write_under_way && !self.next_write.proposals.is_empty() {
            self.send_write(s);
        }
    }

    pub(super) fn send_write(&mut self, s: &mut Surroundings) {
        let Some(life) = &self.life else {
            return;
        };
        let mut write = std::mem::take(&mut self.next_write);
        write.writer = Some(life.writer());
        if !write.proposals.is_empty() {
            self.write_under_way = true;
        }
        self.ask_log(Pending::Write(write.clone()), log::Request::Write(write), s);
    }

    pub(super) fn write_failed(&mut self, write: log::Write, s: &mut Surroundings) {
        if !write.proposals.is_empty() {
            self.write_under_way = false;
        }
        let mut write = write;
        write.proposals.append(&mut self.next_write.proposals);
        write.appends.append(&mut self.next_write.appends);
        write.finishes.append(&mut self.next_write.finishes);
        self.next_write = write;
        let delay = s.rng.between(10, 300);
        s.after(delay, Happening::WriteAgain(self.number));
        self.write_soon(s);
    }

    pub(super) fn written(
        &mut self,
        write: log::Write,
        standings: Vec<(TransactionId, Standing)>,
        decisions: u64,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        if !write.proposals.is_empty() {
            self.write_under_way = false;
            if let Some(life) = &mut self.life {
                life.decided(decisions);
            }
        }
        for (id, standing) in standings {
            s.crash_point()?;
            self.step(id, Event::Forced(standing), None, s)?;
        }
        let appended = write.appends.iter().map(|record| record.header.id);
        for id in appended.chain(write.finishes.iter().copied()) {
            self.step(id, Event::Appended, None, s)?;
        }
        self.write(s);
        Ok(())
    }
}
