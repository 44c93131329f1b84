//! Ingest: an agent's frame is checked against what is there, appended to this node's log, synced, and only then acknowledged.
//!
//! Promise: an acknowledgement is sent only for frames that a sync has covered. Frames that arrive while a sync runs share the
//! next one (group commit). What was refused is counted by reason.
//!
//! Duplicates that reach two nodes meet again in the dataflow's dedupe, which has the last word; this one saves the disk.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{self, error::TryRecvError};
use tracing::{error, warn};
use weir_schema::{AgentIdentity, Epoch, Frame, FrameHeader, Lane, Name, Seq, StampedFrame};
use weir_transport::{AckRanges, Acknowledge, Added, Incoming, RefusedReason, ResumeState};

use crate::error::Error;
use crate::forget::Floor;
use crate::log::{Gather, LogError, LogWriter, Logs};
use crate::metrics;

/// What this node's log holds of each agent: the answer to "is this frame new?".
#[derive(Debug, Default)]
pub(crate) struct Received {
    lanes: HashMap<LaneKey, LaneReceived>,
}

type LaneKey = (AgentIdentity, Epoch, Lane);

#[derive(Debug, Default)]
struct LaneReceived {
    ranges: AckRanges,
    /// Content of the latest frames by first seq, to tell a resend from a forgery.
    contents: BTreeMap<u64, (u32, u32)>,
}

/// What to do with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Append it.
    New,
    /// All of it is in the log: acknowledge it again, once what is pending is durable.
    Duplicate,
    /// The same key came with other content: refuse it.
    Conflict,
}

impl Received {
    /// Judges a frame, and takes it as received when it is new.
    pub(crate) fn judge(&mut self, identity: &AgentIdentity, header: &FrameHeader) -> Verdict {
        let lane = self.lanes.entry((identity.clone(), header.epoch, header.lane)).or_default();
        let first = header.first_seq.0;
        if let Some((count, crc)) = lane.contents.get(&first)
            && (*count, *crc) != (header.count, header.crc)
        {
            return Verdict::Conflict;
        }
        // A range too many is not remembered: should the frame come again, the dataflow's dedupe has the last word.
        if lane.ranges.add(seqs(header)) == Added::Known {
            return Verdict::Duplicate;
        }
        lane.contents.insert(first, (header.count, header.crc));
        if lane.contents.len() > CONTENTS_PER_LANE_MAX {
            lane.contents.pop_first();
        }
        Verdict::New
    }

    fn ranges(&self) -> HashMap<LaneKey, AckRanges> {
        self.lanes.iter().map(|(key, lane)| (key.clone(), lane.ranges.clone())).collect()
    }
}

/// What is durable of each agent: the answer to a reconnecting agent's Hello. The loop that writes the log adds to it after each sync, so
/// nobody is ever told of a frame that is not durable, and nobody waits for a sync.
#[derive(Debug, Clone, Default)]
pub(crate) struct Durable(Arc<Mutex<HashMap<LaneKey, AckRanges>>>);

impl Durable {
    fn lock(&self) -> MutexGuard<'_, HashMap<LaneKey, AckRanges>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ResumeState for Durable {
    fn acked(&self, agent: &AgentIdentity, epoch: Epoch) -> Vec<(Lane, AckRanges)> {
        let durable = self.lock();
        let of = |lane| Some((lane, durable.get(&(agent.clone(), epoch, lane))?.clone()));
        Lane::ALL.into_iter().filter_map(of).collect()
    }
}

/// The one loop of ingest. Blocks; run it on a thread of its own.
pub(crate) struct Ingest<Open> {
    open: Open,
    /// Absent only while it is opened again.
    log: Option<Box<dyn LogWriter>>,
    received: Received,
    durable: Durable,
    /// What may be forgotten, and which log this is.
    floor: (Floor, Name),
}

impl<Open: FnMut() -> Result<(Box<dyn LogWriter>, Received), Error>> Ingest<Open> {
    /// Opens the log by `open`, which is called again whenever the log has failed. Also gives what reconnecting agents are told.
    pub(crate) fn new(mut open: Open, floor: (Floor, Name)) -> Result<(Self, Durable), Error> {
        let (log, received) = open()?;
        let durable = Durable(Arc::new(Mutex::new(received.ranges())));
        Ok((Self { open, log: Some(log), received, durable: durable.clone(), floor }, durable))
    }

    /// Runs until every sender of `incoming` is gone.
    pub(crate) fn run(mut self, mut incoming: mpsc::Receiver<Incoming>, wall_ms: impl Fn() -> u64) {
        let mut group: Vec<Incoming> = Vec::new();
        let mut last: Option<Instant> = None;
        while let Some(first) = incoming.blocking_recv() {
            group.push(first);
            let gather = self.log.as_ref().expect("present outside reopen").gather();
            fill(&mut group, &mut incoming, gather, last);
            last = Some(Instant::now());
            let committed = self.commit(&mut group, wall_ms()).and_then(|()| self.forget());
            if let Err(failed) = committed {
                error!(error = %failed, "log could not be written: its frames stay unacknowledged and are resent");
                metrics::log_failed();
                group.clear();
                self.reopen(&incoming);
                if self.log.is_none() {
                    return;
                }
            }
        }
    }

    /// Appends, syncs, acknowledges. On failure nothing of the group is acknowledged: the agents keep and resend it.
    pub(crate) fn commit<A: Acknowledge>(&mut self, group: &mut Vec<Incoming<A>>, received_ms: u64) -> Result<(), LogError> {
        let log = self.log.as_mut().expect("present outside reopen");
        let mut acks = Vec::with_capacity(group.len());
        let mut fresh = Vec::new();
        for incoming in group.drain(..) {
            let header = incoming.frame.header;
            match self.received.judge(&incoming.identity, &header) {
                Verdict::New => {
                    metrics::frame_received(incoming.frame.bytes.len(), header.count);
                    let identity = (*incoming.identity).clone();
                    fresh.push((identity.clone(), header));
                    let stamped = StampedFrame { identity, received_ms, frame: incoming.frame.bytes };
                    log.append(&stamped.encode())?;
                    acks.push(incoming.ack);
                }
                Verdict::Duplicate => {
                    metrics::frame_duplicate();
                    acks.push(incoming.ack);
                }
                Verdict::Conflict => {
                    metrics::frame_refused("conflict");
                    warn!(agent = %incoming.identity.agent, lane = header.lane.as_str(), first_seq = header.first_seq.0,
                        "frame refused: its key is taken by other content");
                    incoming.ack.refused(RefusedReason::Conflict);
                }
            }
        }
        if !fresh.is_empty() {
            let begun = Instant::now();
            log.sync()?;
            metrics::group_synced(begun.elapsed());
        }
        let mut durable = self.durable.lock();
        for (identity, header) in fresh {
            durable.entry((identity, header.epoch, header.lane)).or_default().add(seqs(&header));
        }
        drop(durable);
        acks.into_iter().for_each(A::durable);
        Ok(())
    }

    /// Lets go what checkpoints and archive hold.
    pub(crate) fn forget(&mut self) -> Result<(), LogError> {
        let (floor, name) = &self.floor;
        self.log.as_mut().map_or(Ok(()), |log| log.forget(floor.log(name)))
    }

    /// A failed sync leaves unknown what is on the disk: read the log again before the next frame.
    /// Gives up when nobody is left to send.
    fn reopen(&mut self, incoming: &mpsc::Receiver<Incoming>) {
        self.close();
        let mut pause = REOPEN_AFTER;
        while !incoming.is_closed() {
            std::thread::sleep(pause);
            pause = (pause * 2).min(REOPEN_AFTER_MAX);
            match self.open_again() {
                Ok(()) => return,
                Err(failed) => error!(error = %failed, "log could not be opened again; trying on"),
            }
        }
    }

    /// Lets the log go, and its lock with it.
    pub(crate) fn close(&mut self) {
        self.log = None;
    }

    /// Opens the log after `close`.
    pub(crate) fn open_again(&mut self) -> Result<(), Error> {
        let (log, received) = (self.open)()?;
        self.log = Some(log);
        *self.durable.lock() = received.ranges();
        self.received = received;
        Ok(())
    }
}

/// Adds what comes until there is enough, or it is time for the next sync.
fn fill(group: &mut Vec<Incoming>, incoming: &mut mpsc::Receiver<Incoming>, gather: Gather, last: Option<Instant>) {
    let mut bytes: usize = group.iter().map(|incoming| incoming.frame.bytes.len()).sum();
    while bytes < gather.bytes_max {
        match incoming.try_recv() {
            Ok(next) => {
                bytes += next.frame.bytes.len();
                group.push(next);
            }
            Err(TryRecvError::Disconnected) => return,
            Err(TryRecvError::Empty) => {
                let left = last.map_or(Duration::ZERO, |last| gather.pause.saturating_sub(last.elapsed()));
                if left.is_zero() {
                    return;
                }
                std::thread::sleep(left.min(GATHER_EVERY));
            }
        }
    }
}

fn seqs(header: &FrameHeader) -> Range<Seq> {
    header.first_seq..Seq(header.first_seq.0 + u64::from(header.count))
}

/// Opens a node's log and reads what it holds of each agent.
pub(crate) fn open_log(logs: &dyn Logs, name: &Name) -> Result<(Box<dyn LogWriter>, Received), Error> {
    let log = match logs.open_log(name) {
        Err(LogError::Held) => return Err(Error::NodeRuns(name.to_string())),
        opened => opened.map_err(Error::log(format!("opening log {name}")))?,
    };
    let mut received = Received::default();
    let mut reader = logs.read_log(name, log.first()).map_err(Error::log(format!("reading log {name}")))?;
    loop {
        let (number, record) = match reader.next() {
            Ok(Some(next)) => next,
            Ok(None) => break,
            // Ingest goes on behind the gap. Whoever needs the lost records reports them: the workers' feed does.
            Err(LogError::Gap { from, to }) => {
                error!(log = %name, from, to, "records of the log are lost");
                metrics::log_records_lost(to - from);
                reader.seek(to);
                continue;
            }
            Err(failed) => return Err(Error::log(format!("reading log {name}"))(failed)),
        };
        match StampedFrame::decode(&record).and_then(|stamped| Ok((Frame::parse(&stamped.frame)?.header, stamped.identity))) {
            Ok((header, identity)) => _ = received.judge(&identity, &header),
            Err(unreadable) => warn!(log = %name, number, error = %unreadable, "record of the log does not decode"),
        }
    }
    Ok((log, received))
}

/// Frames per lane whose content is remembered to tell a resend from a forgery.
const CONTENTS_PER_LANE_MAX: usize = 1_024;
const REOPEN_AFTER: Duration = Duration::from_millis(200);
const REOPEN_AFTER_MAX: Duration = Duration::from_secs(5);
/// How often frames are taken from the sockets while a sync waits for more.
const GATHER_EVERY: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use weir_config::JournalLimits;
    use weir_schema::{BatchBuilder, Event, Host, Kind};

    use super::*;
    use crate::log::LocalLogs;

    fn frame(first: u64, events: usize, time: i64) -> FrameHeader {
        let mut builder = BatchBuilder::new(Arc::new(Host::default()), Epoch(1), Lane::Network, Seq(first));
        for _ in 0..events {
            builder.push(&Event { time, kind: Kind::Connect, ..Event::default() }).unwrap();
        }
        builder.finish().unwrap().header
    }

    fn agent(name: &str) -> AgentIdentity {
        AgentIdentity { tenant: Name::new("t").unwrap(), region: Name::new("r").unwrap(), agent: Name::new(name).unwrap() }
    }

    #[test]
    fn a_frame_is_new_once_and_its_key_takes_no_other_content() {
        let mut received = Received::default();
        let (one, two) = (agent("one"), agent("two"));
        assert_eq!(received.judge(&one, &frame(0, 3, 5)), Verdict::New);
        assert_eq!(received.judge(&one, &frame(0, 3, 5)), Verdict::Duplicate);
        assert_eq!(received.judge(&one, &frame(0, 3, 6)), Verdict::Conflict);
        assert_eq!(received.judge(&two, &frame(0, 3, 6)), Verdict::New, "another agent has seqs of its own");
        assert_eq!(received.judge(&one, &frame(9, 1, 5)), Verdict::New, "a gap is no reason to refuse");
        let durable = Durable(Arc::new(Mutex::new(received.ranges())));
        let lanes = durable.acked(&one, Epoch(1));
        assert_eq!(lanes.len(), 1);
        assert!(lanes[0].1.contains(Seq(0)..Seq(3)) && lanes[0].1.contains(Seq(9)..Seq(10)));
        assert!(!lanes[0].1.contains(Seq(3)..Seq(4)));
        assert!(durable.acked(&one, Epoch(2)).is_empty());
    }

    struct Silent;

    impl Acknowledge for Silent {
        fn durable(self) {}
        fn refused(self, _: RefusedReason) {}
    }

    #[test]
    fn nobody_is_told_of_frames_whose_sync_failed() {
        let sim = weir_journal::SimDisk::new(3);
        let logs = LocalLogs::new(Arc::new(sim.clone()), "/shared".as_ref(), &JournalLimits::default());
        let name = Name::new("n1").unwrap();
        let own = (Floor::default(), name.clone());
        let (mut ingest, told) = Ingest::new(move || open_log(&logs, &name), own).unwrap();
        let identity = Arc::new(agent("one"));
        let mut builder = BatchBuilder::new(Arc::new(Host::default()), Epoch(1), Lane::Network, Seq(0));
        builder.push(&Event { kind: Kind::Connect, ..Event::default() }).unwrap();
        let frame = builder.finish().unwrap();
        let mut group = vec![Incoming { identity: identity.clone(), frame: frame.clone(), ack: Silent }];
        sim.fail_at(0, weir_journal::Failure::SyncFails);
        assert!(ingest.commit(&mut group, 0).is_err());
        // Its agent connects again before the log is open again: it must keep the frame.
        assert!(told.acked(&identity, Epoch(1)).is_empty());
        ingest.close();
        ingest.open_again().unwrap();
        ingest.commit(&mut vec![Incoming { identity: identity.clone(), frame, ack: Silent }], 0).unwrap();
        assert_eq!(told.acked(&identity, Epoch(1)).len(), 1);
    }
}
