//! A worker: one thread of the mesh. It reads its feed, keeps its share of every view and answers asks.
//!
//! One turn of the loop: take up requests, feed a tick if the views keep up, let the operators work, answer what has become
//! answerable, forget what nobody can ask for any more. With nothing to do it parks; it never spins and reads no clock.
//!
//! When the feed has ended the inputs stay open: closing them would let every calendar fire, at ticks that never were.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use timely::worker::Worker;

use crate::ask::{Asker, Progress};
use crate::checkpoint::{CheckpointSink, Restore, Saved};
use crate::definition::ViewDefinition;
use crate::feed::{Feed, FeedStep, Tick};
use crate::history::ChangesKept;
use crate::install::{Books, Installed};
use crate::mesh::{Ask, Mesh};
use crate::peek::{self, Waiting};
use crate::rulebook::Rules;
use crate::run::Error;
use crate::server::{Incoming, Waker};
use crate::settings::Command;

/// What all workers of a process share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    stop: AtomicBool,
    error: Mutex<Option<Error>>,
}

impl Shared {
    /// Ends all workers of the process. The first error is the one told.
    pub(crate) fn fail(&self, error: Error) {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.stop.store(true, Ordering::Release);
    }

    /// Why the workers ended.
    pub(crate) fn take_error(&self) -> Option<Error> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What every worker of a process begins with.
#[derive(Clone, Default)]
pub(crate) struct Start {
    /// What to begin from.
    pub(crate) restore: Option<Arc<Restore>>,
    /// Where saved states go.
    pub(crate) saves: Option<Saves>,
    /// The views that people had made when the state was saved.
    pub(crate) views: Vec<ViewDefinition>,
    /// What is kept of what changed.
    pub(crate) changes: ChangesKept,
    /// The rules that were in force then.
    pub(crate) rules: Option<Rules>,
}

/// Where saved states go, and who is told that one is being saved.
#[derive(Clone)]
pub(crate) struct Saves {
    pub(crate) to: SyncSender<Saved>,
    pub(crate) sink: Arc<dyn CheckpointSink>,
}

/// What only the first worker of a process has: the requests of its node.
pub(crate) struct Door {
    /// Requests and beats.
    pub(crate) incoming: Receiver<Incoming>,
    /// Wakes this worker for them.
    pub(crate) waker: Waker,
    /// Number of the process.
    pub(crate) process: usize,
}

/// Runs one worker until it is told to stop.
pub(crate) fn run(
    worker: &mut Worker,
    feed: Box<dyn Feed>,
    door: Option<Door>,
    processes: usize,
    shared: &Arc<Shared>,
    start: &Start,
) {
    if let Some(door) = &door {
        door.waker.here();
    }
    let mut state = State {
        mesh: Mesh::build(worker),
        asker: door.map(|door| (Asker::new(worker.index(), worker.peers()), door)),
        feed,
        views: None,
        fed: VecDeque::new(),
        fed_last: None,
        ended: false,
        closed: None,
        recent: VecDeque::new(),
        since: 0,
        holds: BTreeMap::new(),
        processes,
        told: None,
        waiting: Waiting::default(),
        saving: None,
        saves: start.saves.clone(),
        changes: start.changes,
    };
    if let Some(restore) = &start.restore
        && let Err(error) = state.begin(worker, restore, start)
    {
        shared.fail(error);
    }
    while !shared.stop.load(Ordering::Acquire) {
        match state.turn(worker) {
            Ok(true) => {
                worker.step();
            }
            Ok(false) => {
                worker.step_or_park(Some(PARK));
            }
            Err(error) => shared.fail(error),
        }
    }
    for dataflow in worker.installed_dataflows() {
        worker.drop_dataflow(dataflow);
    }
}

struct State {
    mesh: Mesh,
    asker: Option<(Asker, Door)>,
    feed: Box<dyn Feed>,
    views: Option<Installed>,
    /// Ticks fed and not yet closed.
    fed: VecDeque<u64>,
    fed_last: Option<u64>,
    ended: bool,
    closed: Option<u64>,
    /// The newest closed ticks: these can be asked for by number.
    recent: VecDeque<u64>,
    since: u64,
    /// Below which tick no process will ask for the newest.
    holds: BTreeMap<usize, u64>,
    processes: usize,
    told: Option<u64>,
    waiting: Waiting,
    /// The tick whose state is to be saved when it is closed; nothing later is fed before.
    saving: Option<u64>,
    /// Where it goes.
    saves: Option<Saves>,
    /// What is kept of what changed.
    changes: ChangesKept,
}

impl State {
    /// Takes up a checkpoint: its tick counts as fed.
    fn begin(&mut self, worker: &mut Worker, restore: &Arc<Restore>, start: &Start) -> Result<(), Error> {
        let tick = restore.tick();
        let mut views = Installed::install(worker, restore.settings(), Some(Arc::clone(restore)), self.changes)?;
        views.take_up(worker, tick, &start.views)?;
        if let Some(rules) = &start.rules {
            views.begin_rules(tick, rules);
        }
        self.views = Some(views);
        self.fed.push_back(tick);
        (self.fed_last, self.since) = (Some(tick), tick);
        tracing::info!(worker = worker.index(), tick, "begins from a checkpoint");
        Ok(())
    }

    /// One turn. True when something was done.
    fn turn(&mut self, worker: &mut Worker) -> Result<bool, Error> {
        let requested = self.take_requests();
        let fed = self.feed_tick(worker)?;
        let passed = self.views.as_mut().is_some_and(|views| views.pass_on(worker, &self.fed));
        let closed = self.close_ticks();
        let talked = self.talk();
        let answered = self.answer();
        if closed || answered {
            self.compact();
        }
        Ok(requested || fed || passed || closed || talked || answered)
    }

    fn progress(&self) -> Progress {
        Progress { closed: self.closed, since: self.since, fed: self.fed_last }
    }

    fn take_requests(&mut self) -> bool {
        let now = self.progress();
        let nothing = Books::default();
        let shelf = self.views.as_ref().map_or(&nothing, Installed::shelf);
        let Some((asker, door)) = &mut self.asker else { return false };
        let mut any = false;
        for incoming in door.incoming.try_iter().take(REQUESTS_PER_TURN) {
            match incoming {
                Incoming::Beat => asker.beat(),
                Incoming::Request(request, outbox) => {
                    any = true;
                    if let Some(peek) = asker.request(request, outbox, now, shelf) {
                        self.mesh.ask(&Ask::Peek(peek));
                    }
                }
            }
        }
        any
    }

    fn feed_tick(&mut self, worker: &mut Worker) -> Result<bool, Error> {
        if self.ended || self.saving.is_some() || self.fed.len() >= TICKS_AHEAD_MAX {
            return Ok(false);
        }
        match self.feed.poll() {
            FeedStep::Idle => Ok(false),
            FeedStep::Ended => {
                tracing::info!(worker = worker.index(), last = self.fed_last, "the feed has ended");
                self.ended = true;
                Ok(false)
            }
            FeedStep::Failed(why) => Err(Error::Feed(why)),
            FeedStep::Tick(tick) => self.take_tick(worker, tick).map(|()| true),
        }
    }

    fn take_tick(&mut self, worker: &mut Worker, tick: Tick) -> Result<(), Error> {
        if self.fed_last.is_some_and(|last| tick.tick <= last) {
            return Err(Error::Feed(format!("tick {} came after tick {}", tick.tick, self.fed_last.unwrap_or(0))));
        }
        for command in tick.commands {
            match (command, &mut self.views) {
                (Command::Configure(settings), None) => {
                    self.views = Some(Installed::install(worker, settings, None, self.changes)?);
                }
                (Command::Configure(settings), Some(views)) if *views.settings() == settings => {}
                (Command::Configure(_), Some(_)) => {
                    return Err(Error::Feed("the settings of the views were changed while they run".into()));
                }
                (Command::CreateView(definition), Some(views)) => views.create(worker, tick.tick, &definition),
                (Command::DropViews(names), Some(views)) => views.drop_views(tick.tick, &names),
                (Command::WriteTable(write), Some(views)) => views.write_table(tick.tick, &write),
                (Command::SetRules(rules), Some(views)) => views.set_rules(tick.tick, &rules),
                (Command::CreateView(_) | Command::DropViews(_) | Command::SetRules(_) | Command::WriteTable(_), None) => {
                    return Err(Error::Feed("the chain changes views, tables or rules before its settings".into()));
                }
                (Command::Checkpoint, _) => self.saving = self.saves.is_some().then_some(tick.tick),
            }
        }
        let views = self.views.as_mut().ok_or_else(|| Error::Feed("the chain does not begin with its settings".into()))?;
        views.feed(tick.tick, tick.frames);
        self.fed.push_back(tick.tick);
        self.fed_last = Some(tick.tick);
        Ok(())
    }

    /// Notes which ticks every worker has done.
    fn close_ticks(&mut self) -> bool {
        let Some(views) = &self.views else { return false };
        let mut any = false;
        while let Some(tick) = self.fed.front().copied().filter(|tick| views.is_closed(*tick)) {
            self.fed.pop_front();
            self.recent.push_back(tick);
            self.closed = Some(tick);
            views.closed(tick);
            any = true;
            if self.saving == Some(tick) {
                self.saving = None;
                save(views, tick, self.saves.as_ref());
            }
        }
        any
    }

    /// Exchanges holds, asks and answers with the other workers.
    fn talk(&mut self) -> bool {
        if let (Some((_, door)), Some(closed)) = (&self.asker, self.closed)
            && self.told != Some(closed)
        {
            self.told = Some(closed);
            self.mesh.ask(&Ask::Hold { process: door.process, tick: closed });
        }
        let (asked, answered) = (self.mesh.asked(), self.mesh.answered());
        let any = !(asked.is_empty() && answered.is_empty());
        for ask in asked {
            match ask {
                Ask::Hold { process, tick } => {
                    self.holds.insert(process, tick);
                }
                Ask::Peek(peek) => self.waiting.push(peek),
            }
        }
        let now = self.progress();
        if let Some((asker, _)) = &mut self.asker {
            answered.into_iter().for_each(|part| asker.part(part, now));
        }
        any
    }

    /// Answers the asks whose tick is closed. Without views there are only counters to be asked for.
    fn answer(&mut self) -> bool {
        let mut any = false;
        while let Some(peek) = self.waiting.pop_ready(self.closed) {
            let nothing = Books::default();
            let shelf = self.views.as_ref().map_or(&nothing, Installed::shelf);
            let mesh = &mut self.mesh;
            peek::answer(&peek, shelf, &mut |body| mesh.answer(&peek, body));
            any = true;
        }
        any
    }

    /// Forgets the ticks that nobody can ask for any more.
    fn compact(&mut self) {
        while self.recent.len() > RECENT_TICKS {
            self.recent.pop_front();
        }
        let (Some(views), Some(oldest)) = (&mut self.views, self.recent.front().copied()) else { return };
        if self.holds.len() < self.processes {
            return;
        }
        let held = self.holds.values().copied().min().unwrap_or(0);
        let since = oldest.min(held).min(self.waiting.tick_min().unwrap_or(u64::MAX));
        if since > self.since {
            self.since = since;
            views.compact(since);
        }
    }
}

/// Saves the state and hands it on. The worker does not wait: with the last checkpoint still being written, this one is left out.
fn save(views: &Installed, tick: u64, saves: Option<&Saves>) {
    let Some(Saves { to, sink }) = saves else { return };
    sink.begun(tick);
    if let Err(TrySendError::Full(_)) = to.try_send(views.save(tick)) {
        tracing::warn!(tick, "the last checkpoint is still being written: this one is left out");
    }
}

/// How long a worker with nothing to do sleeps, unless it is woken.
const PARK: Duration = Duration::from_millis(4);
/// Ticks a worker is fed ahead of what all workers have done.
const TICKS_AHEAD_MAX: usize = 8;
/// Closed ticks that can be asked for by number: some seconds.
const RECENT_TICKS: usize = 50;
/// Requests taken up in one turn.
const REQUESTS_PER_TURN: usize = 64;
