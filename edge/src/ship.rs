//! Hands frames to the transport, or to the spool while no node acknowledges, and says which lanes may still make events.
//!
//! ```text
//!            session, little un-acknowledged        spare credit
//!  frame ──► client's memory ──► node   ◄────────── spool
//!       └──► spool: the link is slow, or there has been no session for a while; then the memory's frames go there too
//! ```
//!
//! What is new goes first; the backlog takes what credit is left. Without a spool, or when its disk refuses, frames wait in the client's
//! bounded memory. As that fills, lanes are shut in the order of their class: samples first, security last. An event of a shut lane
//! is dropped before it gets a seq, so seqs stay dense and nothing that was promised is taken back.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;
use weir_config::SpoolLimits;
use weir_schema::{Epoch, Frame, Lane, Seq};
use weir_transport::{Client, ClientStats, FrameKey, Full};

use crate::error::Error;
use crate::loss::{Losses, Reason};
use crate::spool::{Gap, Spool, Verdict};

/// The agent's way to the nodes.
pub struct Shipper {
    client: Client,
    bytes_max: u64,
    spool: Option<Spool>,
    limits: SpoolLimits,
    /// Frames that found no room anywhere: few, since lanes shut before the memory is full.
    waiting: VecDeque<Frame>,
    waiting_bytes: u64,
    shut: [bool; Lane::ALL.len()],
    reconnects: u64,
    /// Since when there is no session.
    away_since: Option<Instant>,
    /// When what was appended to the spool is to be synced, and how far it is settled to be marked.
    sync_due: Option<Instant>,
    mark_due: Option<Instant>,
    /// The floors that the client knows.
    floors: BTreeMap<(Epoch, Lane), Seq>,
    /// The spool's last error, told once.
    failed: Option<String>,
}

impl Shipper {
    /// Ships through `client`, whose memory holds `bytes_max`, and keeps what is not acknowledged in `spool`.
    pub fn new(client: Client, bytes_max: u64, spool: Option<Spool>, limits: SpoolLimits) -> Self {
        let mut shipper = Self {
            client,
            bytes_max,
            spool,
            limits,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            shut: [false; Lane::ALL.len()],
            reconnects: 0,
            away_since: None,
            sync_due: None,
            mark_due: None,
            floors: BTreeMap::new(),
            failed: None,
        };
        shipper.tell_floors();
        shipper
    }

    /// Sends a frame, or keeps it until there is room.
    pub fn ship(&mut self, frame: Frame, now: Instant) -> Result<(), Error> {
        let lane = frame.header.lane.as_str();
        metrics::counter!(crate::metrics::EVENTS, "lane" => lane).increment(u64::from(frame.header.count));
        metrics::counter!(crate::metrics::FRAMES, "lane" => lane).increment(1);
        metrics::counter!(crate::metrics::FRAME_BYTES).increment(frame.bytes.len() as u64);
        let held = self.client.stats().unacked_bytes + self.waiting_bytes + frame.bytes.len() as u64;
        let to_disk = self.is_away(now) || held > self.limits.memory_bytes_max;
        if to_disk && self.append(&frame, now) {
            return Ok(());
        }
        self.waiting_bytes += frame.bytes.len() as u64;
        self.waiting.push_back(frame);
        self.push_on()
    }

    /// Sends what waits, looks how full memory and spool are, and takes over what nodes refused. Called every pass of the loop.
    /// True when there is more of the backlog to send at once.
    pub fn refresh(&mut self, now: Instant, losses: &mut Losses) -> Result<bool, Error> {
        self.push_on()?;
        for nack in self.client.take_refused() {
            tracing::error!(
                lane = nack.key.lane.as_str(),
                events = nack.key.count,
                why = nack.refusal.as_str(),
                "a node refused a frame"
            );
            losses.add_gap(Reason::Refused, Gap::of(&nack.key));
        }
        let stats = self.client.stats();
        self.away_since = if stats.connected_to.is_some() { None } else { self.away_since.or(Some(now)) };
        if self.is_away(now) && (stats.unacked_frames > 0 || !self.waiting.is_empty()) {
            self.lay_aside(now)?;
        }
        let more = self.turn_spool(now, losses)?;
        self.shut_lanes(stats.unacked_bytes + self.waiting_bytes);
        metrics::counter!(crate::metrics::RECONNECTS).increment(stats.reconnects.saturating_sub(self.reconnects));
        self.reconnects = stats.reconnects;
        Ok(more)
    }

    /// What must go for the spool to be within its limit. The caller tells the loss and then calls `drop_told`.
    pub fn overflow(&mut self) -> Option<(Verdict, Vec<Gap>)> {
        if self.failed.is_some() {
            return None;
        }
        let found = self.spool.as_mut()?.overflow();
        self.heed(found).flatten()
    }

    /// Drops from the spool what `overflow` named; `told` are the frames that tell it, none if there was nothing in it.
    pub fn drop_told(&mut self, mut told: Vec<Frame>, verdict: Verdict, now: Instant) -> Result<(), Error> {
        let last = told.pop();
        for frame in told {
            self.ship(frame, now)?;
        }
        let Some(spool) = &mut self.spool else { return Ok(()) };
        let dropped = spool.drop_told(last.as_ref(), verdict);
        let synced = match (dropped, last) {
            (Err(error), Some(last)) => {
                // The word of it goes from memory, then.
                let dropped = spool.drop_told(None, verdict);
                self.waiting_bytes += last.bytes.len() as u64;
                self.waiting.push_back(last);
                dropped.and(Err(error))
            }
            (dropped, _) => dropped.and_then(|()| spool.sync()),
        };
        if self.heed(synced).is_none() {
            self.sync_due.get_or_insert(now + SYNC_AGAIN);
        }
        self.tell_floors();
        Ok(())
    }

    /// When there is something to do though nothing happens.
    pub fn next_due(&self) -> Option<Instant> {
        [self.sync_due, self.mark_due].into_iter().flatten().min()
    }

    /// Waits until the backlog may go on; for ever while there is none.
    pub async fn heard(&self) {
        match &self.spool {
            // A node's word may fall between two waits.
            Some(spool) if !spool.is_empty() => drop(tokio::time::timeout(BACKLOG_LOOK, self.client.heard()).await),
            _ => std::future::pending().await,
        }
    }

    /// Bytes of the spool on the disk, as far as its disk answers.
    pub fn spool_bytes(&mut self) -> u64 {
        self.spool.as_mut().and_then(|spool| spool.bytes().ok()).unwrap_or(0)
    }

    /// Events in the spool.
    pub fn spooled_events(&self) -> u64 {
        self.spool.as_ref().map_or(0, Spool::events)
    }

    /// Whether events of this lane are taken.
    pub fn admits(&self, lane: Lane) -> bool {
        !self.shut[lane as usize]
    }

    /// What the transport did.
    pub fn stats(&self) -> ClientStats {
        self.client.stats()
    }

    /// Waits until everything is acknowledged or `within` is over, and spools what is not. Returns the transport's last figures, and the
    /// events that are left in the spool.
    pub async fn finish(mut self, within: Duration) -> Result<(ClientStats, u64), Error> {
        let now = Instant::now();
        // Nobody has been there for a while: nobody is waited for.
        let deadline = if self.spool.is_some() && self.is_away(now) { now } else { now + within };
        while let Some(frame) = self.waiting.pop_front() {
            let kept = frame.clone();
            if tokio::time::timeout_at(deadline, self.client.send(frame)).await.is_err() {
                self.waiting.push_front(kept);
                break;
            }
        }
        if let Err(error) = self.client.flush(deadline.into_std()).await {
            tracing::info!(%error, "stopping before everything was acknowledged");
        }
        self.lay_aside(now)?;
        let spooled = self.spooled_events();
        let closed = match self.spool.take() {
            Some(mut spool) => {
                let settled = spool.settle(|key| self.client.holds(key));
                settled.and_then(|()| spool.close())
            }
            None => Ok(()),
        };
        self.heed(closed);
        let stats = self.client.stats();
        self.client.close().await;
        Ok((stats, spooled))
    }

    /// There has been no session for so long that frames go to the disk.
    pub fn is_away(&self, now: Instant) -> bool {
        let away_max = Duration::from_millis(self.limits.away_ms_max);
        self.away_since.is_some_and(|since| since + away_max <= now)
    }

    /// Appends a frame to the spool; false if there is none, or if its disk refuses.
    fn append(&mut self, frame: &Frame, now: Instant) -> bool {
        let Some(spool) = &mut self.spool else { return false };
        let appended = spool.append(frame);
        let appended = self.heed(appended).is_some();
        if appended {
            self.sync_due.get_or_insert(now + SYNC_AFTER);
            self.tell_floors();
        }
        appended
    }

    /// Moves what is in memory to the spool.
    fn lay_aside(&mut self, now: Instant) -> Result<(), Error> {
        if self.spool.is_none() {
            return Ok(());
        }
        let mut left = VecDeque::new();
        for (key, bytes) in self.client.take_held() {
            // The client has set a floor of its own.
            self.floors.insert((key.epoch, key.lane), Seq(u64::MAX));
            let is_there = self.spool.as_ref().is_some_and(|spool| spool.gave(&key));
            let frame = if is_there { None } else { Some(Frame::parse(&bytes)?) };
            left.extend(frame.filter(|frame| !self.append(frame, now)));
        }
        if let Some(spool) = &mut self.spool {
            spool.rewind();
        }
        let waiting = std::mem::take(&mut self.waiting);
        left.extend(waiting.into_iter().filter(|frame| !self.append(frame, now)));
        self.waiting_bytes = left.iter().map(|frame| frame.bytes.len() as u64).sum();
        self.waiting = left;
        if let Some(spool) = &mut self.spool {
            let synced = spool.sync();
            self.heed(synced);
        }
        // First: what was not taken by the spool has no floor there.
        self.push_on()?;
        self.tell_floors();
        Ok(())
    }

    /// Syncs, forgets what is settled, and sends some of the backlog. True when there is more to send at once.
    fn turn_spool(&mut self, now: Instant, losses: &mut Losses) -> Result<bool, Error> {
        let Some(spool) = &mut self.spool else { return Ok(false) };
        if spool.is_empty() && self.sync_due.is_none() && self.mark_due.is_none() {
            return Ok(false);
        }
        let mut outcome = Ok(());
        if self.sync_due.is_some_and(|due| due <= now) || spool.unsynced_bytes() > SYNC_BYTES {
            let synced = spool.sync();
            outcome = outcome.and(synced);
            self.sync_due = outcome.is_err().then(|| now + SYNC_AGAIN);
        }
        let before = spool.events();
        let client = &self.client;
        let settled = spool.settle(|key| client.holds(key));
        outcome = outcome.and(settled);
        if spool.events() != before {
            self.mark_due.get_or_insert(now + MARK_AFTER);
        }
        if self.mark_due.is_some_and(|due| due <= now) {
            let marked = spool.mark();
            outcome = outcome.and(marked);
            self.mark_due = None;
        }
        let (mut given, mut lost) = (0, Vec::new());
        while given < BACKLOG_FRAMES && self.client.spare_bytes() > 0 && self.client.stats().unacked_bytes < BACKLOG_BYTES {
            let Some(frame) = spool.give() else { break };
            let key = FrameKey::of(&frame.header);
            given += 1;
            match self.client.try_send(frame) {
                Ok(Ok(())) => {}
                Ok(Err(Full(_))) => {
                    spool.put_back(&key);
                    break;
                }
                // It stays given out and is settled, since nobody holds it: this agent has less memory than the one before.
                Err(error) => {
                    tracing::error!(%error, lane = key.lane.as_str(), "a frame of the spool cannot be sent");
                    lost.push(key);
                }
            }
        }
        spool.take_damaged().into_iter().for_each(|gap| losses.add_gap(Reason::SpoolDamaged, gap));
        lost.iter().for_each(|key| losses.add_gap(Reason::Refused, Gap::of(key)));
        metrics::gauge!(crate::metrics::SPOOL_EVENTS).set(spool.events() as f64);
        metrics::gauge!(crate::metrics::SPOOL_BYTES).set(spool.bytes().unwrap_or(0) as f64);
        self.heed(outcome);
        self.tell_floors();
        Ok(given == BACKLOG_FRAMES)
    }

    /// Tells the client from where on the spool holds frames.
    fn tell_floors(&mut self) {
        let Some(spool) = &self.spool else { return };
        let now: BTreeMap<_, _> = spool.floors().map(|(epoch, lane, floor)| ((epoch, lane), floor)).collect();
        if now != self.floors {
            for &(epoch, lane) in self.floors.keys().filter(|key| !now.contains_key(key)) {
                self.client.set_floor(epoch, lane, None);
            }
            for (&(epoch, lane), &floor) in now.iter().filter(|(key, floor)| self.floors.get(key) != Some(floor)) {
                self.client.set_floor(epoch, lane, Some(floor));
            }
            self.floors = now;
        }
    }

    fn shut_lanes(&mut self, held: u64) {
        metrics::gauge!(crate::metrics::UNACKED_BYTES).set(held as f64);
        for (shut, lane) in self.shut.iter_mut().zip(Lane::ALL) {
            let now = !has_room(lane, held, self.bytes_max);
            if now != *shut {
                let lane = lane.as_str();
                match now {
                    true => {
                        tracing::warn!(lane, held_bytes = held, "memory is filling: this lane's events are dropped and counted")
                    }
                    false => tracing::info!(lane, held_bytes = held, "there is room again"),
                }
            }
            *shut = now;
        }
    }

    /// What the spool gave; an error of its disk is told once, until something else happens.
    fn heed<T>(&mut self, outcome: Result<T, weir_journal::Error>) -> Option<T> {
        match outcome {
            Ok(done) => {
                self.failed = None;
                Some(done)
            }
            Err(error) => {
                let text = error.to_string();
                if self.failed.as_ref() != Some(&text) {
                    tracing::warn!(error = text, "the spool's disk refuses: batches stay in memory, and it is tried again");
                    self.failed = Some(text);
                }
                None
            }
        }
    }

    fn push_on(&mut self) -> Result<(), Error> {
        while let Some(frame) = self.waiting.pop_front() {
            let bytes = frame.bytes.len() as u64;
            match self.client.try_send(frame)? {
                Ok(()) => self.waiting_bytes -= bytes,
                Err(Full(frame)) => {
                    self.waiting.push_front(frame);
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Whether a lane may add to memory that holds `held` of `bytes_max`: the shares leave the more important their part.
pub fn has_room(lane: Lane, held: u64, bytes_max: u64) -> bool {
    let percent = match lane {
        Lane::Sample => 50,
        Lane::File => 65,
        Lane::Network => 80,
        Lane::Security => 95,
    };
    held < bytes_max / 100 * percent
}

/// How long what was appended waits for its sync: one sync of each lane costs milliseconds.
const SYNC_AFTER: Duration = Duration::from_millis(200);
/// A refusing disk is asked again after this.
const SYNC_AGAIN: Duration = Duration::from_secs(1);
const SYNC_BYTES: u64 = 1 << 20;
/// After a crash what was settled in this time is sent again.
const MARK_AFTER: Duration = Duration::from_secs(1);
/// Frames of the backlog per pass: the collector must have its turn.
const BACKLOG_FRAMES: usize = 64;
/// Un-acknowledged bytes up to which the backlog goes on: the credit beyond is for what is new.
const BACKLOG_BYTES: u64 = 2 << 20;
const BACKLOG_LOOK: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_shut_in_the_order_of_their_class() {
        let open = |held: u64| -> Vec<&str> {
            Lane::ALL.into_iter().filter(|lane| has_room(*lane, held, 1000)).map(Lane::as_str).collect()
        };
        assert_eq!(open(0), ["security", "network", "file", "sample"]);
        assert_eq!(open(500), ["security", "network", "file"]);
        assert_eq!(open(650), ["security", "network"]);
        assert_eq!(open(800), ["security"]);
        assert_eq!(open(950), Vec::<&str>::new());
    }
}
