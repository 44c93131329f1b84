//! Groups events into frames: one batch per lane, finished by number, size or age.
//!
//! While no node is there, batches may grow older and so larger, since small ones fill the spool with headers. Not those of the security
//! lane: what an agent that is killed has not yet spooled is lost.
//!
//! Promise: an event that was pushed is in exactly one frame, and each lane's frames have dense seqs from 0. What is not pushed has
//! no seq, so whoever drops an event before this door leaves no gap behind. Time is an argument.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use weir_config::BatchLimits;
use weir_schema::{BatchBuilder, Epoch, Event, Frame, Host, Lane, Refused, Seq};

use crate::error::Error;

/// The open batches of all lanes.
pub struct Batcher {
    host: Arc<Host>,
    epoch: Epoch,
    limits: BatchLimits,
    away: bool,
    /// Of builders that are gone.
    texts_cut: u64,
    lanes: [Open; Lane::ALL.len()],
}

struct Open {
    lane: Lane,
    builder: BatchBuilder,
    /// When the oldest event came.
    since: Option<Instant>,
}

impl Batcher {
    /// Batches of `host` in run `epoch`. Every lane begins at seq 0.
    pub fn new(host: Arc<Host>, epoch: Epoch, limits: BatchLimits) -> Self {
        let open = |lane| Open { lane, builder: BatchBuilder::new(host.clone(), epoch, lane, Seq(0)), since: None };
        let lanes = Lane::ALL.map(open);
        Self { host, epoch, limits, away: false, texts_cut: 0, lanes }
    }

    /// Says whether batches go to the spool, because no node is there.
    pub const fn set_away(&mut self, away: bool) {
        self.away = away;
    }

    /// Takes an event; returns the frames that this completes: mostly none, seldom one.
    pub fn push(&mut self, event: &Event, now: Instant) -> Result<Vec<Frame>, Error> {
        let (events_max, bytes_max) = (self.limits.events_max, self.limits.bytes_max);
        let open = self.open(event.kind.lane());
        let mut frames = Vec::new();
        match open.builder.push(event) {
            Ok(()) => {}
            Err(Refused::Full) => {
                frames.push(open.finish()?);
                // An empty batch has room for any event: its texts are cut to the wire's limits.
                let again = open.builder.push(event);
                assert_eq!(again, Ok(()), "an empty batch takes any event of its lane");
            }
            Err(Refused::WrongLane) => unreachable!("the lane was taken from the event's kind"),
        }
        open.since.get_or_insert(now);
        if open.builder.len() >= events_max || open.builder.bytes_estimate() >= bytes_max {
            frames.push(open.finish()?);
        }
        Ok(frames)
    }

    /// The frames of batches that are old enough by `now`.
    pub fn due(&mut self, now: Instant) -> Result<Vec<Frame>, Error> {
        let (limits, away) = (&self.limits, self.away);
        let due = self.lanes.iter_mut().filter(|open| open.due(limits, away).is_some_and(|due| due <= now));
        due.map(Open::finish).collect()
    }

    /// When the next batch is due; nothing while all are empty.
    pub fn next_due(&self) -> Option<Instant> {
        self.lanes.iter().filter_map(|open| open.due(&self.limits, self.away)).min()
    }

    /// The frames of all open batches.
    pub fn finish(&mut self) -> Result<Vec<Frame>, Error> {
        self.lanes.iter_mut().filter(|open| open.since.is_some()).map(Open::finish).collect()
    }

    /// What is pushed from now on is of this host, as something else of it became known. Returns the frames of what was pushed before.
    pub fn set_host(&mut self, host: Arc<Host>) -> Result<Vec<Frame>, Error> {
        let frames = self.finish()?;
        for open in &mut self.lanes {
            // A builder knows its host for ever, and its cuts.
            self.texts_cut += open.builder.texts_cut();
            open.builder = BatchBuilder::new(host.clone(), self.epoch, open.lane, open.builder.next_seq());
        }
        self.host = host;
        Ok(frames)
    }

    /// The host of what is pushed now.
    pub const fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// The frame of one lane's open batch, if there is one.
    pub fn finish_lane(&mut self, lane: Lane) -> Result<Option<Frame>, Error> {
        let open = self.open(lane);
        open.since.is_some().then(|| open.finish()).transpose()
    }

    /// Texts cut to the wire's limit so far.
    pub fn texts_cut(&self) -> u64 {
        self.lanes.iter().map(|open| open.builder.texts_cut()).sum::<u64>() + self.texts_cut
    }

    fn open(&mut self, lane: Lane) -> &mut Open {
        self.lanes.iter_mut().find(|open| open.lane == lane).expect("one batch per lane")
    }
}

impl Open {
    /// When it is old enough; nothing while it is empty.
    fn due(&self, limits: &BatchLimits, away: bool) -> Option<Instant> {
        let grows = away && self.lane != Lane::Security;
        let age_ms_max = if grows { limits.age_ms_max.max(limits.away_age_ms_max) } else { limits.age_ms_max };
        self.since.map(|since| since + Duration::from_millis(age_ms_max))
    }

    fn finish(&mut self) -> Result<Frame, Error> {
        self.since = None;
        Ok(self.builder.finish()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_schema::{Decoder, Fields, Kind};

    fn batcher(limits: BatchLimits) -> Batcher {
        Batcher::new(Arc::new(Host { host: "h".into(), ..Host::default() }), Epoch(7), limits)
    }

    fn event(kind: Kind, time: i64) -> Event {
        Event { time, kind, process: None, container: None, fields: Fields::default() }
    }

    fn keys(frames: &[Frame]) -> Vec<(Lane, u64, u32)> {
        frames.iter().map(|frame| (frame.header.lane, frame.header.first_seq.0, frame.header.count)).collect()
    }

    #[tokio::test]
    async fn lanes_have_their_own_batches_and_dense_seqs() {
        let now = Instant::now();
        let mut batcher = batcher(BatchLimits { events_max: 2, ..BatchLimits::default() });
        let mut frames = Vec::new();
        for (time, kind) in [Kind::Exec, Kind::Connect, Kind::Exec, Kind::Exec, Kind::Connect, Kind::Exec].into_iter().enumerate()
        {
            frames.extend(batcher.push(&event(kind, time as i64), now).unwrap());
        }
        let expected = [(Lane::Security, 0, 2), (Lane::Network, 0, 2), (Lane::Security, 2, 2)];
        assert_eq!(keys(&frames), expected);
        assert!(batcher.finish().unwrap().is_empty());
        let first = frames[0].decode(&mut Decoder::default()).unwrap().events();
        assert_eq!(first.iter().map(|event| event.time).collect::<Vec<_>>(), [0, 2]);
    }

    #[tokio::test]
    async fn another_word_on_the_host_is_on_what_comes_after_it() {
        let now = Instant::now();
        let mut batcher = batcher(BatchLimits::default());
        assert!(batcher.push(&event(Kind::Exec, 1), now).unwrap().is_empty());
        let host = Host { cloud: Some("aws".into()), ..(**batcher.host()).clone() };
        let mut frames = batcher.set_host(Arc::new(host)).unwrap();
        batcher.push(&event(Kind::Exec, 2), now).unwrap();
        frames.extend(batcher.finish().unwrap());
        assert_eq!(keys(&frames), [(Lane::Security, 0, 1), (Lane::Security, 1, 1)], "seqs stay dense");
        let clouds = frames.iter().map(|frame| frame.decode(&mut Decoder::default()).unwrap().host.cloud);
        assert_eq!(clouds.collect::<Vec<_>>(), [None, Some("aws".into())]);
    }

    #[tokio::test]
    async fn batches_grow_older_while_no_node_is_there_but_for_security() {
        let now = Instant::now();
        let limits = BatchLimits { age_ms_max: 50, away_age_ms_max: 1000, ..BatchLimits::default() };
        let mut batcher = batcher(limits);
        batcher.set_away(true);
        batcher.push(&event(Kind::Open, 0), now).unwrap();
        assert_eq!(batcher.next_due(), Some(now + Duration::from_millis(1000)));
        batcher.push(&event(Kind::Exec, 0), now).unwrap();
        assert_eq!(keys(&batcher.due(now + Duration::from_millis(999)).unwrap()), [(Lane::Security, 0, 1)]);
        // The node is back: what waited longer than is usual is due at once.
        batcher.set_away(false);
        assert_eq!(keys(&batcher.due(now + Duration::from_millis(999)).unwrap()), [(Lane::File, 0, 1)]);
    }

    #[tokio::test]
    async fn age_ends_a_batch() {
        let now = Instant::now();
        let mut batcher = batcher(BatchLimits { age_ms_max: 50, ..BatchLimits::default() });
        assert_eq!(batcher.next_due(), None);
        batcher.push(&event(Kind::Open, 0), now).unwrap();
        batcher.push(&event(Kind::Exec, 0), now + Duration::from_millis(20)).unwrap();
        assert_eq!(batcher.next_due(), Some(now + Duration::from_millis(50)));
        assert!(batcher.due(now + Duration::from_millis(49)).unwrap().is_empty());
        assert_eq!(keys(&batcher.due(now + Duration::from_millis(50)).unwrap()), [(Lane::File, 0, 1)]);
        assert_eq!(keys(&batcher.finish().unwrap()), [(Lane::Security, 0, 1)]);
        assert_eq!(batcher.next_due(), None);
    }

    #[tokio::test]
    async fn size_ends_a_batch() {
        let now = Instant::now();
        let mut batcher = batcher(BatchLimits { bytes_max: 4096, ..BatchLimits::default() });
        let mut frames = Vec::new();
        for number in 0..2_000_i64 {
            let mut event = event(Kind::Open, number);
            event.fields.path = Some(format!("/a/rather/long/path/{number}").into());
            frames.extend(batcher.push(&event, now).unwrap());
        }
        frames.extend(batcher.finish().unwrap());
        assert!(frames.len() > 1);
        assert_eq!(frames.iter().map(|frame| u64::from(frame.header.count)).sum::<u64>(), 2_000);
    }
}
