//! Keeps this node's workers in the newest generation: starts the worker child, watches it, ends it.
//!
//! Promises: there is never more than one child, and never one of a generation that this node knows to be over. How the child is, is told
//! by this node's beats. A child that ended is not started again for the same generation: the others have lost it.

mod pulse;

use std::net::TcpListener;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};
use weir_config::MeshLimits;
use weir_query::Live;
use weir_schema::Name;

use crate::beats::Status;
use crate::child::{self, ChildCommand, Report, Start};
use crate::follow::Now;
use crate::generation::Generation;
use crate::membership::Workers;
use crate::mesh::Place;
use crate::metrics;
use pulse::{Pulse, Seen};

/// What is needed to keep a child.
pub(crate) struct Supervisor {
    /// Who we are.
    pub(crate) node: Name,
    /// Which run of us.
    pub(crate) run: u64,
    /// How a child is started.
    pub(crate) command: ChildCommand,
    /// Where the mesh calls us.
    pub(crate) listener: TcpListener,
    /// Where the child answers.
    pub(crate) socket: PathBuf,
    /// What the chain says.
    pub(crate) now: watch::Receiver<Now>,
    /// Asks the child.
    pub(crate) live: Live,
    /// Told to the others.
    pub(crate) status: Status,
    /// Times.
    pub(crate) limits: MeshLimits,
}

/// How a child's time was over.
enum End {
    /// There is another generation.
    Over,
    /// This node ends.
    Stopped,
    /// It ended by itself or had to be ended.
    Ended(LastWords),
}

/// What a child said of why it ended.
#[derive(Debug, Default)]
struct LastWords {
    unreachable: Vec<Name>,
    bad_checkpoint: Option<u64>,
}

impl Supervisor {
    /// Runs until dropped.
    pub(crate) async fn run(mut self) {
        // The last generation whose child ended here.
        let mut ended = 0;
        loop {
            let now = self.now.borrow_and_update().clone();
            let newest = now.formed.filter(|formed| formed.number > ended);
            let place = newest.as_ref().and_then(|formed| Some((formed.clone(), formed.place(&self.node, self.run)?)));
            let Some((generation, process)) = place else {
                if let Some(others) = newest {
                    info!(generation = others.number, "this node's workers are in no generation: waiting to be taken in");
                    self.status.set(Workers::None);
                }
                if self.now.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let number = generation.number;
            self.status.set(Workers::Starting { generation: number });
            match self.keep(Place { cluster: now.cluster, generation: Arc::unwrap_or_clone(generation), process }).await {
                End::Over => {}
                End::Stopped => return,
                End::Ended(LastWords { unreachable, bad_checkpoint }) => {
                    ended = number;
                    metrics::engine_ended();
                    self.status.set(Workers::Ended { generation: number, unreachable, bad_checkpoint });
                }
            }
        }
    }

    /// Starts a child and keeps it while its generation is the newest.
    async fn keep(&mut self, place: Place) -> End {
        let (generation, members) = (place.generation.clone(), place.generation.members.len());
        metrics::generation(generation.number, members);
        let start = Start { place, until: None, socket: self.socket.clone() };
        let (mut child, control) = match child::start(&self.command, &self.listener, &start) {
            Ok(started) => started,
            Err(failed) => {
                error!(error = %failed, program = %self.command.program.display(), "the worker child could not be started");
                tokio::time::sleep(START_PAUSE).await;
                return End::Ended(LastWords::default());
            }
        };
        let (say, mut reports) = mpsc::channel(REPORTS_MAX);
        let reading = tokio::spawn(read_reports(control, say));
        let end = self.watch(&mut child, &generation, &mut reports).await;
        let _ = child.start_kill();
        let _ = child.wait().await;
        reading.abort();
        end
    }

    async fn watch(&mut self, child: &mut Child, generation: &Generation, reports: &mut mpsc::Receiver<Report>) -> End {
        let begun = Instant::now();
        let mut pulse = Pulse::new(self.limits.frozen_ms_max, self.limits.meet_ms_max + LOAD_MS_MAX);
        let mut said = LastWords::default();
        let mut tick = tokio::time::interval(WATCH_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                ended = child.wait() => {
                    // What it said last may still be on its way.
                    while let Ok(Some(report)) = tokio::time::timeout(LAST_WORDS, reports.recv()).await {
                        said.hear(report);
                    }
                    match ended {
                        Ok(status) => warn!(%status, generation = generation.number, "the worker child ended"),
                        Err(failed) => error!(error = %failed, "the worker child could not be waited for"),
                    }
                    return End::Ended(said);
                }
                Some(report) = reports.recv() => {
                    if let Report::Saving(_) = report {
                        pulse.excuse(begun.elapsed().as_millis() as u64 + SAVE_MS_MAX);
                    }
                    said.hear(report);
                }
                changed = self.now.changed() => match changed {
                    Ok(()) => {
                        info!(generation = generation.number, "the generation is over");
                        return End::Over;
                    }
                    Err(_) => return End::Stopped,
                },
                _ = tick.tick() => {
                    let answer = tokio::time::timeout(ANSWER_WITHIN, self.live.frontier()).await;
                    let answer = answer.ok().and_then(Result::ok).map(|frontier| frontier.closed);
                    let chained = self.now.borrow().tick;
                    // What still reads the past is not running: a checkpoint of it would come late and hold it up.
                    if answer.flatten().is_some_and(|closed| closed + CAUGHT_UP_MS >= chained) {
                        self.status.set(Workers::Running { generation: generation.number });
                    }
                    let now_ms = begun.elapsed().as_millis() as u64;
                    if let Some(why) = pulse.frozen(Seen { now_ms, answer, chained }) {
                        error!(generation = generation.number, why, "the workers are frozen: they are ended");
                        return End::Ended(said);
                    }
                }
            }
        }
    }
}

impl LastWords {
    fn hear(&mut self, report: Report) {
        match report {
            Report::Met | Report::Saving(_) => {}
            Report::Unreachable(nodes) => self.unreachable.extend(nodes.into_iter().filter_map(|node| Name::new(node).ok())),
            Report::BadCheckpoint(tick) => self.bad_checkpoint = Some(tick),
        }
    }
}

/// Reads what the child says, and holds the socket: dropped, the child ends.
async fn read_reports(control: StdUnixStream, say: mpsc::Sender<Report>) {
    let socket = control.set_nonblocking(true).and_then(|()| UnixStream::from_std(control));
    let Ok(socket) = socket else { return };
    let mut lines = BufReader::new(socket).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(report) = Report::parse(&line) {
            let _ = say.send(report).await;
        }
    }
    std::future::pending::<()>().await;
}

/// Ticks behind the chain that are no lag yet.
const CAUGHT_UP_MS: u64 = 5_000;
const WATCH_EVERY: Duration = Duration::from_millis(500);
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// For what a child said right before its end.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// After a child that could not even be started.
const START_PAUSE: Duration = Duration::from_secs(1);
/// Reports not yet taken.
const REPORTS_MAX: usize = 16;
/// For saving one: a large state stops its worker for a while.
const SAVE_MS_MAX: u64 = 120_000;
/// For loading a checkpoint, before the first answer.
const LOAD_MS_MAX: u64 = 120_000;
