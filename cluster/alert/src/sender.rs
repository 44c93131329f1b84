//! The one that sends: looks at the alerts, makes durable what is to be sent, sends it, and makes durable what became of it.
//!
//! Promise: nothing is sent that the ledger does not hold, nor by one who has not just seen that the ledger is still its own. What a
//! predecessor on another node had under way gets the time of one request to end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tracing::{info, warn};
use weir_config::AlertLimits;

use crate::alert::Alert;
use crate::entry::{Entry, Fate, Send};
use crate::error::Error;
use crate::ledger::{Change, Ledger, Objects};
use crate::metrics;
use crate::outbox::Outbox;
use crate::retry::Jitter;
use crate::sink::{Outcome, Sinks};
use crate::status::Status;

/// The relation `alerts`.
#[async_trait::async_trait]
pub trait Source: std::marker::Send + Sync {
    /// Its rows at a closed tick; none: there is no such relation yet.
    async fn rows(&self) -> Result<Option<Rows>, String>;
}

/// Rows of one tick.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows {
    /// The tick.
    pub tick: u64,
    /// All of them.
    pub alerts: Vec<Alert>,
}

/// What a sender is made of.
#[derive(Clone)]
pub struct Sender {
    /// To whom; they may become others.
    pub sinks: watch::Receiver<Sinks>,
    /// Under which limits.
    pub limits: AlertLimits,
    /// Where the outbox is.
    pub objects: Arc<dyn Objects>,
    /// What there is to tell.
    pub source: Arc<dyn Source>,
    /// This node's name.
    pub node: String,
    /// Unix time in milliseconds.
    pub wall_ms: fn() -> u64,
    /// 128 bits that nobody else has.
    pub nonce: fn() -> u128,
}

/// The sender at work.
struct Work<'a> {
    sender: &'a Sender,
    /// Those that are sent to now.
    sinks: Sinks,
    /// Tells of others.
    news: watch::Receiver<Sinks>,
    status: Status,
    outbox: Outbox,
    ledger: Ledger,
    sends: JoinSet<(Send, Outcome)>,
    looks: JoinSet<(Result<Option<Rows>, String>, Duration)>,
    /// Not yet durable.
    changes: BTreeMap<(String, String), Option<Entry>>,
    /// Requests to send dead letters again, to be removed once that is durable.
    redriven: Vec<String>,
    /// When the ledger was last seen to be ours.
    ours: Instant,
    look_at: Instant,
    keep_at: Instant,
    dropped: u64,
    /// Why the alerts could not be read last.
    unread: String,
}

impl Sender {
    /// Sends for as long as `held` says that this node is the one to do so. `Fenced`: another node is.
    pub async fn run(&self, held: impl Fn() -> bool) -> Result<(), Error> {
        let (ledger, memory) = Ledger::take(Arc::clone(&self.objects), &self.node, (self.nonce)()).await?;
        let (tick, before) = (memory.tick, memory.node);
        let mut news = self.sinks.clone();
        let sinks = news.borrow_and_update().clone();
        let mut outbox = Outbox::new(self.limits.clone(), sinks.routes().clone(), tick, memory.entries);
        if before.as_ref().is_some_and(|node| *node != self.node) {
            outbox.hold_back((self.wall_ms)(), sinks.time_max().as_millis() as u64);
        }
        outbox.reroute(sinks.routes().clone(), sinks.gone());
        info!(tick, before, sinks = sinks.routes().len(), "sending alerts");
        let now = Instant::now();
        let mut work = Work {
            sender: self,
            sinks,
            news,
            status: Status::read(&*self.objects).await,
            outbox,
            ledger,
            sends: JoinSet::new(),
            looks: JoinSet::new(),
            changes: BTreeMap::new(),
            redriven: Vec::new(),
            ours: now,
            look_at: now,
            keep_at: now,
            dropped: 0,
            unread: String::new(),
        };
        while held() {
            work.step().await?;
        }
        Ok(())
    }
}

impl Work<'_> {
    /// Waits for something to happen, and does what follows from it.
    async fn step(&mut self) -> Result<(), Error> {
        let wait = self.wait();
        tokio::select! {
            Some(sent) = self.sends.join_next() => {
                self.sent(sent);
                while let Some(sent) = self.sends.try_join_next() {
                    self.sent(sent);
                }
            }
            Some(looked) = self.looks.join_next() => self.looked(looked),
            () = renewed(&mut self.news) => self.renew(),
            () = tokio::time::sleep(wait) => {}
        }
        let now = Instant::now();
        if self.looks.is_empty() && now >= self.look_at && !self.sinks.routes().is_empty() {
            let source = Arc::clone(&self.sender.source);
            self.looks.spawn(async move {
                let begun = Instant::now();
                (source.rows().await, begun.elapsed())
            });
        }
        if now >= self.keep_at {
            self.keep().await;
            self.keep_at = now + KEEP_EVERY;
        }
        match self.commit_and_send().await {
            Err(Error::Fenced) => Err(Error::Fenced),
            Err(away) => {
                metrics::failed();
                warn!(error = %away, "nothing is sent until the outbox can be written");
                tokio::time::sleep(STORE_PAUSE).await;
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// The sinks are others now.
    fn renew(&mut self) {
        let sinks = self.news.borrow_and_update().clone();
        let before = self.sinks.routes().keys().filter(|name| !sinks.routes().contains_key(*name));
        // Dropped and gone from the list of the last that were, or dropped just now: both are gone.
        let gone = before.cloned().chain(sinks.gone().iter().cloned()).collect();
        let waited = self.outbox.reroute(sinks.routes().clone(), &gone);
        info!(sinks = sinks.routes().len(), waited, "the sinks are others now");
        self.status.keep(|name| sinks.routes().contains_key(name));
        self.sinks = sinks;
        self.look_at = Instant::now();
    }

    fn wait(&self) -> Duration {
        let now = Instant::now();
        let look = if self.looks.is_empty() { self.look_at.saturating_duration_since(now) } else { LOOP_MAX };
        let due =
            self.outbox.next_ms().map_or(LOOP_MAX, |due| Duration::from_millis(due.saturating_sub((self.sender.wall_ms)())));
        // All places of a sink may be taken: then the next answer wakes us.
        look.min(due.max(LOOP_MIN)).min(LOOP_MAX)
    }

    fn sent(&mut self, sent: Result<(Send, Outcome), JoinError>) {
        let Ok((send, outcome)) = sent else {
            warn!("a request ended without an outcome; the next sender sends it again");
            return;
        };
        let (attempt, why) = match &outcome {
            Outcome::Delivered => ("delivered", None),
            Outcome::Retry { why, .. } => ("retry", Some(why.clone())),
            Outcome::Refused { why } => ("refused", Some(why.clone())),
        };
        let jitter = Jitter(((self.sender.nonce)() & 511) as u16);
        self.status.note(&send.sink, (self.sender.wall_ms)(), why.as_deref());
        let fate = self.outbox.answered((self.sender.wall_ms)(), &send, outcome, jitter);
        match fate {
            Some(Fate::Sent) => metrics::sent(&send.sink),
            Some(Fate::Retried) => {
                metrics::retried(&send.sink);
                tracing::debug!(sink = send.sink, alert = send.key, attempt, why, "an alert is sent again later");
            }
            Some(Fate::Dead) => {
                metrics::dead(&send.sink);
                warn!(sink = send.sink, alert = send.key, attempt, why, "an alert is a dead letter: see `weir alerts dead`");
            }
            None => {}
        }
    }

    fn looked(&mut self, looked: Result<(Result<Option<Rows>, String>, Duration), JoinError>) {
        let every = Duration::from_millis(self.sender.limits.look_ms);
        let (rows, took) = looked.unwrap_or_else(|_| (Err("the look ended".to_owned()), every));
        // Never more than a fifth of the time is spent on looking.
        self.look_at = Instant::now() + every.max(took * 4);
        match rows {
            Ok(Some(rows)) => {
                self.unread.clear();
                self.outbox.observe((self.sender.wall_ms)(), rows.tick, &rows.alerts);
            }
            // The workers are away while a mesh is formed anew.
            Ok(None) => {}
            // Told once, until it is over or otherwise.
            Err(why) => {
                metrics::failed();
                if why != self.unread {
                    warn!(why, "the alerts could not be read; trying on");
                    self.unread = why;
                }
            }
        }
    }

    /// What needs no haste: forgetting, sending dead letters again, numbers.
    async fn keep(&mut self) {
        let now_ms = (self.sender.wall_ms)();
        self.outbox.forget(now_ms);
        let counts = self.outbox.sinks();
        for (sink, counts) in &counts {
            metrics::held(sink, counts, now_ms);
        }
        self.status.count(&counts, &self.sinks);
        // Told by nobody who was overtaken.
        if self.status.is_new() && self.ledger.confirm().await.is_ok() {
            self.status.write(&*self.sender.objects).await;
        }
        let dropped = self.outbox.counts().dropped;
        if dropped > self.dropped {
            metrics::dropped(dropped - self.dropped);
            warn!(count = dropped - self.dropped, "the outbox is full: alerts were dropped; see alerts.limits");
            self.dropped = dropped;
        }
        let Ok(asked) = self.sender.objects.list(REDRIVE).await else { return };
        for name in asked.into_iter().take(REDRIVES_MAX).filter(|name| !self.redriven.contains(name)).collect::<Vec<_>>() {
            let Ok(Some(bytes)) = self.sender.objects.read(&name).await else { continue };
            let sink = String::from_utf8_lossy(&bytes).into_owned();
            let count = self.outbox.redrive(now_ms, (!sink.is_empty()).then_some(&*sink));
            info!(sink, count, "dead letters are sent again");
            self.redriven.push(name);
        }
    }

    async fn commit_and_send(&mut self) -> Result<(), Error> {
        let changed = self.outbox.take_changes().into_iter();
        self.changes.extend(changed.map(|change| ((change.sink, change.key), change.entry)));
        if !self.changes.is_empty() {
            let begun = Instant::now();
            let changes = self.changes.iter();
            let changes =
                changes.map(|((sink, key), entry)| Change { sink: sink.clone(), key: key.clone(), entry: entry.clone() });
            self.ledger.commit((self.sender.nonce)(), &self.outbox, changes.collect()).await?;
            self.changes.clear();
            self.ours = begun;
        }
        for name in std::mem::take(&mut self.redriven) {
            // One that stays is done once more, which does no harm.
            _ = self.sender.objects.remove(&name).await;
        }
        let now_ms = (self.sender.wall_ms)();
        if self.outbox.next_ms().is_none_or(|due| due > now_ms) {
            return Ok(());
        }
        if self.ours.elapsed() > OURS_MAX {
            let begun = Instant::now();
            self.ledger.confirm().await?;
            self.ours = begun;
        }
        for send in self.outbox.due(now_ms) {
            let delivery = self.sinks.deliver(&send.sink, send.alert.clone());
            self.sends.spawn(async move { (send, delivery.await) });
        }
        Ok(())
    }
}

/// Comes back once the sinks are others; never, if nobody can make them so any more.
async fn renewed(news: &mut watch::Receiver<Sinks>) {
    if news.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Asks whoever sends to send the dead letters of one sink, or of all, again.
pub async fn ask_redrive(objects: &dyn Objects, nonce: u128, sink: Option<&str>) -> Result<(), Error> {
    let (object, bytes) = (format!("{REDRIVE}/{nonce:032x}"), sink.unwrap_or_default().as_bytes().to_vec());
    let created = objects.create(&object, bytes).await;
    created.map(drop).map_err(|why| Error::Store { action: "create", object, why })
}

const REDRIVE: &str = "redrive";
/// Requests that are taken up at one look.
const REDRIVES_MAX: usize = 64;
const KEEP_EVERY: Duration = Duration::from_secs(2);
/// How soon it is noticed that another node is to send, or that all is to end.
const LOOP_MAX: Duration = Duration::from_millis(500);
const LOOP_MIN: Duration = Duration::from_millis(20);
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// For so long the ledger is believed to be ours without a look.
const OURS_MAX: Duration = Duration::from_secs(2);
