//! What one worker reads: every record of the chain, and the bytes it names out of the logs that are this worker's.
//!
//! Log l is read by worker l mod workers. A tick goes to the worker only when all its bytes are in hand. Runs on a thread of
//! its own and hands ticks over a bounded channel; the worker never waits for a disk.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::Duration;

use weir_dataflow::{Arrived, Command as EngineCommand, Feed, FeedStep, Tick};
use weir_schema::StampedFrame;

use crate::chain::{ChainRecord, ChainState, Command};
use crate::checkpoint::{Position, Positions};
use crate::error::Error;
use crate::log::{LogError, Logs, Pace, Reader};

/// Which logs are this worker's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share {
    /// Number of this worker over the whole mesh.
    pub worker: usize,
    /// Workers of the whole mesh.
    pub workers: usize,
}

/// Where a feed ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// Never: it follows the chain.
    Forever,
    /// After the last record whose tick is not above this one.
    Tick(u64),
}

/// What a feed is for.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    /// Where it ends.
    pub(crate) until: Until,
    /// Which generation it is for: checkpoints that were commanded for another one are over.
    pub(crate) generation: u64,
    /// Told where the chain stands behind the tick of a checkpoint.
    pub(crate) positions: Positions,
}

/// One worker's feed. Dropping it ends its thread.
pub(crate) struct ChainFeed {
    steps: Receiver<FeedStep>,
}

impl ChainFeed {
    /// Starts reading the chain and this worker's logs, behind `from`.
    pub(crate) fn start(all: Arc<dyn Logs>, share: Share, from: Position, span: Span) -> Self {
        let (to_worker, steps) = sync_channel(TICKS_AHEAD_MAX);
        let Span { until, generation, positions } = span;
        std::thread::Builder::new()
            .name(format!("feed-{}", share.worker))
            .spawn(move || {
                let mut tail = Tail::new(all, share, from, (generation, positions));
                let end = match tail.run(until, &to_worker) {
                    Ok(()) => FeedStep::Ended,
                    Err(failed) => FeedStep::Failed(failed.to_string()),
                };
                // A worker that is gone needs no end.
                let _ = to_worker.send(end);
            })
            .expect("a thread can be started");
        Self { steps }
    }
}

impl Feed for ChainFeed {
    fn poll(&mut self) -> FeedStep {
        match self.steps.try_recv() {
            Ok(step) => step,
            Err(TryRecvError::Empty) => FeedStep::Idle,
            Err(TryRecvError::Disconnected) => FeedStep::Ended,
        }
    }
}

/// Where one worker's feed stands.
pub(crate) struct Tail {
    all: Arc<dyn Logs>,
    share: Share,
    /// The record that comes next.
    record: u64,
    state: ChainState,
    generation: u64,
    positions: Positions,
    /// Per registered log, its reader when the log is ours.
    logs: Vec<Option<Box<dyn Reader>>>,
}

impl Tail {
    /// Begins behind `from`, for a generation; positions of its checkpoints are noted.
    pub(crate) fn new(all: Arc<dyn Logs>, share: Share, from: Position, (generation, positions): (u64, Positions)) -> Self {
        let Position { record, state } = from;
        Self { all, share, record, state, logs: Vec::new(), generation, positions }
    }

    fn run(&mut self, until: Until, to_worker: &SyncSender<FeedStep>) -> Result<(), Error> {
        let mut chain = loop {
            match self.all.read_chain(self.record, Pace::Polling) {
                Ok(reader) => break reader,
                Err(missing) if until != Until::Forever => return Err(Error::log("opening the chain")(missing)),
                // The holder makes it; it may not have come so far.
                Err(_) => std::thread::sleep(POLL),
            }
        };
        loop {
            match chain.next().map_err(Error::log("reading the chain"))? {
                Some((number, bytes)) => {
                    let record = ChainRecord::decode(&bytes)?;
                    if let Until::Tick(last) = until
                        && record.tick > last
                    {
                        return Ok(());
                    }
                    let tick = self.tick(number, record)?;
                    if to_worker.send(FeedStep::Tick(tick)).is_err() {
                        return Ok(());
                    }
                }
                None if until != Until::Forever => return Ok(()),
                None => std::thread::sleep(POLL),
            }
        }
    }

    /// Takes the chain's record of this number, which is the next one.
    pub(crate) fn tick(&mut self, number: u64, record: ChainRecord) -> Result<Tick, Error> {
        self.record = number + 1;
        let before = self.state.offsets.clone();
        self.state.apply(&record)?;
        for (index, name) in self.state.logs.iter().enumerate().skip(self.logs.len()) {
            let ours = index % self.share.workers == self.share.worker;
            // A log that is known already goes on where it was, a new one begins.
            let from = before.get(index).copied().unwrap_or(0);
            let open = || self.all.read_log(name, from).map_err(Error::log(format!("opening log {name}")));
            self.logs.push(if ours { Some(open()?) } else { None });
        }
        let mut frames = Vec::new();
        for (index, reader) in self.logs.iter_mut().enumerate() {
            let Some(reader) = reader else { continue };
            let from = before.get(index).copied().unwrap_or(0);
            read_named(&mut **reader, index as u32, from, self.state.offsets[index], &mut frames)
                .map_err(|failed| failed.in_log(self.state.logs[index].as_str()))?;
        }
        let ours = self.state.formed.as_ref().is_some_and(|formed| formed.number == self.generation);
        let engine = |command| match command {
            Command::Engine(EngineCommand::Checkpoint) if !ours => None,
            Command::Engine(command) => Some(command),
            Command::RegisterLog { .. } | Command::Form(_) | Command::Sinks(_) => None,
            Command::Views(request) => self.state.views.engine(record.tick, request),
            Command::Rules(request) => self.state.rules.engine(record.tick, request.id),
        };
        let commands: Vec<EngineCommand> = record.commands.into_iter().filter_map(engine).collect();
        if commands.contains(&EngineCommand::Checkpoint) {
            self.positions.note(record.tick, Position { record: self.record, state: self.state.clone() });
        }
        Ok(Tick { tick: record.tick, commands, frames })
    }
}

/// Reads exactly the records [from, until) of a log. A record that the chain names and the log has lost is an error.
pub(crate) fn read_named(
    reader: &mut dyn Reader,
    log: u32,
    from: u64,
    until: u64,
    frames: &mut Vec<Arrived>,
) -> Result<(), LogFault> {
    // The holder named them after a sync, whatever the log itself says after the power failed.
    reader.proven(until);
    for expected in from..until {
        let (number, record) = reader.next().map_err(LogFault::Log)?.ok_or(LogFault::Missing { offset: expected })?;
        if number != expected {
            return Err(LogFault::Missing { offset: expected });
        }
        let stamped = StampedFrame::decode(&record).map_err(|error| LogFault::Record { offset: expected, error })?;
        frames.push(Arrived { log, offset: expected, stamped });
    }
    Ok(())
}

pub(crate) enum LogFault {
    Log(LogError),
    Missing { offset: u64 },
    Record { offset: u64, error: weir_schema::Error },
}

impl LogFault {
    pub(crate) fn in_log(self, name: &str) -> Error {
        match self {
            Self::Log(source) => Error::log(format!("reading log {name}"))(source),
            Self::Missing { offset } => Error::ChainRecord(format!(
                "names record {offset} of log {name}, which the log has lost: restore the log's files"
            )),
            Self::Record { offset, error } => Error::ChainRecord(format!("names record {offset} of log {name}: {error}")),
        }
    }
}

/// Ticks that are read before the worker has taken them.
const TICKS_AHEAD_MAX: usize = 64;
const POLL: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use weir_config::JournalLimits;
    use weir_dataflow::ViewSettings;
    use weir_journal::RealDisk;
    use weir_schema::{AgentIdentity, Name};

    use super::*;
    use crate::holder::Holder;
    use crate::log::LocalLogs;

    fn stamped(number: u8) -> StampedFrame {
        let name = |text| Name::new(text).unwrap();
        let identity = AgentIdentity { tenant: name("t"), region: name("r"), agent: name("a") };
        StampedFrame { identity, received_ms: 7, frame: vec![number; 100] }
    }

    fn ticks(logs: &Arc<dyn Logs>, share: Share, until: u64) -> Vec<Tick> {
        let span = Span { until: Until::Tick(until), generation: 0, positions: Positions::default() };
        let mut feed = ChainFeed::start(logs.clone(), share, Position::default(), span);
        let mut ticks = Vec::new();
        loop {
            match feed.poll() {
                FeedStep::Tick(tick) => ticks.push(tick),
                FeedStep::Idle => std::thread::yield_now(),
                FeedStep::Ended => return ticks,
                FeedStep::Failed(why) => panic!("{why}"),
            }
        }
    }

    fn numbers(tick: &Tick) -> Vec<(u32, u64, u8)> {
        tick.frames.iter().map(|arrived| (arrived.log, arrived.offset, arrived.stamped.frame[0])).collect()
    }

    #[test]
    fn a_tick_brings_its_commands_and_exactly_the_bytes_it_names() {
        let dir = tempfile::tempdir().unwrap();
        let logs: Arc<dyn Logs> = Arc::new(LocalLogs::new(Arc::new(RealDisk), dir.path(), &JournalLimits::default()));
        let open = |node: &str| logs.open_log(&Name::new(node).unwrap()).unwrap();
        let (mut first, mut second) = (open("n1"), open("n2"));
        first.append(&stamped(1).encode()).unwrap();
        first.sync().unwrap();
        let settings = ViewSettings::default();
        let mut holder = Holder::take(logs.clone(), settings, 1_000, |_| Ok(Position::default())).unwrap().unwrap();
        assert!(
            Holder::take(logs.clone(), settings, 1_000, |_| Ok(Position::default())).unwrap().is_none(),
            "the chain has one holder"
        );
        holder.step(0, vec![]).unwrap();
        first.append(&stamped(2).encode()).unwrap();
        second.append(&stamped(3).encode()).unwrap();
        second.sync().unwrap();
        // Record 2 of the first log is appended and not synced: the chain may not name it yet.
        let last = holder.step(100, vec![]).unwrap();

        let whole = ticks(&logs, Share { worker: 0, workers: 1 }, last);
        assert_eq!(whole.iter().map(numbers).collect::<Vec<_>>(), [vec![(0, 0, 1)], vec![(1, 0, 3)]]);
        assert_eq!(whole[0].commands, [EngineCommand::Configure(settings)]);
        let shares: Vec<_> = (0..2).map(|worker| ticks(&logs, Share { worker, workers: 2 }, last)).collect();
        assert_eq!(shares[0].iter().map(numbers).collect::<Vec<_>>(), [vec![(0, 0, 1)], vec![]]);
        assert_eq!(shares[1].iter().map(numbers).collect::<Vec<_>>(), [vec![], vec![(1, 0, 3)]]);
        assert_eq!(ticks(&logs, Share { worker: 0, workers: 1 }, last - 1).len(), 1, "a replay ends at its tick");

        drop(holder);
        let mut again = Holder::take(logs, settings, 0, |_| Ok(Position::default())).unwrap().unwrap();
        assert!(again.step(0, vec![]).unwrap() > last, "ticks rise over a restart, whatever the wall clock says");
    }

    /// The watermark needs no sync of its own, so a power failure may take it back. The node that would publish it anew may stay away.
    #[test]
    fn the_power_fails_and_a_log_stays_without_its_node() {
        let mut older = 0;
        for seed in 0..32 {
            let sim = weir_journal::SimDisk::new(seed);
            let disk = Arc::new(sim.clone());
            let logs: Arc<dyn Logs> = Arc::new(LocalLogs::new(disk, "/shared".as_ref(), &JournalLimits::default()));
            let name = Name::new("n1").unwrap();
            let settings = ViewSettings::default();
            let take = || Holder::take(logs.clone(), settings, 1_000, |_| Ok(Position::default())).unwrap().unwrap();
            let mut log = logs.open_log(&name).unwrap();
            let mut holder = take();
            for number in 0..5 {
                log.append(&stamped(number).encode()).unwrap();
                log.sync().unwrap();
                holder.step(u64::from(number) * 100, vec![]).unwrap();
            }
            drop((log, holder));
            sim.restart();
            older += u64::from(logs.read_log(&name, 0).unwrap().durable().unwrap() < 5);
            let mut holder = take();
            holder.step(0, vec![]).unwrap();
            let share = Share { worker: 0, workers: 1 };
            let mut tail = Tail::new(logs.clone(), share, Position::default(), (0, Positions::default()));
            let mut chain = logs.read_chain(0, Pace::UpToNow).unwrap();
            let mut read = Vec::new();
            while let Some((number, bytes)) = chain.next().unwrap() {
                read.extend(numbers(&tail.tick(number, ChainRecord::decode(&bytes).unwrap()).unwrap()));
            }
            assert_eq!(read, (0..5).map(|number| (0, u64::from(number), number)).collect::<Vec<_>>(), "seed {seed}");
        }
        assert!(older > 5, "the disk of the test forgets watermarks, {older} times of 32");
    }
}
