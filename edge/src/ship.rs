//! Hands frames to the transport, and says which lanes may still make events.
//!
//! Frames wait un-acknowledged in the client's bounded memory. As it fills, lanes are shut in the order of their class: samples
//! first, security last. An event of a shut lane is dropped before it gets a seq, so seqs stay dense and nothing that was
//! promised is taken back.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;
use weir_schema::{Frame, Lane};
use weir_transport::{Client, ClientStats, Full};

use crate::error::Error;
use crate::loss::Losses;

/// The agent's way to the nodes.
pub struct Shipper {
    client: Client,
    bytes_max: u64,
    /// Frames that found no room: few, since lanes shut before the memory is full.
    waiting: VecDeque<Frame>,
    waiting_bytes: u64,
    shut: [bool; Lane::ALL.len()],
    reconnects: u64,
}

impl Shipper {
    /// Ships through `client`, whose memory holds `bytes_max`.
    pub fn new(client: Client, bytes_max: u64) -> Self {
        let shut = [false; Lane::ALL.len()];
        Self { client, bytes_max, waiting: VecDeque::new(), waiting_bytes: 0, shut, reconnects: 0 }
    }

    /// Sends a frame, or keeps it until there is room.
    pub fn ship(&mut self, frame: Frame) -> Result<(), Error> {
        let lane = frame.header.lane.as_str();
        metrics::counter!(crate::metrics::EVENTS, "lane" => lane).increment(u64::from(frame.header.count));
        metrics::counter!(crate::metrics::FRAMES, "lane" => lane).increment(1);
        metrics::counter!(crate::metrics::FRAME_BYTES).increment(frame.bytes.len() as u64);
        self.waiting_bytes += frame.bytes.len() as u64;
        self.waiting.push_back(frame);
        self.push_on()
    }

    /// Sends what waits, looks how full the memory is, and takes over what nodes refused. Called every pass of the loop.
    pub fn refresh(&mut self, losses: &mut Losses) -> Result<(), Error> {
        self.push_on()?;
        for nack in self.client.take_refused() {
            tracing::error!(
                lane = nack.key.lane.as_str(),
                events = nack.key.count,
                why = nack.refusal.as_str(),
                "a node refused a frame"
            );
            losses.add_frame(nack.key.lane, nack.key.first_seq.0, nack.key.count);
        }
        let stats = self.client.stats();
        let held = stats.unacked_bytes + self.waiting_bytes;
        metrics::gauge!(crate::metrics::UNACKED_BYTES).set(held as f64);
        metrics::counter!(crate::metrics::RECONNECTS).increment(stats.reconnects.saturating_sub(self.reconnects));
        self.reconnects = stats.reconnects;
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
        Ok(())
    }

    /// Whether events of this lane are taken.
    pub fn admits(&self, lane: Lane) -> bool {
        !self.shut[lane as usize]
    }

    /// What the transport did.
    pub fn stats(&self) -> ClientStats {
        self.client.stats()
    }

    /// Waits until everything is acknowledged or `within` is over; returns the events that nobody has acknowledged, as far as known.
    pub async fn finish(mut self, within: Duration) -> ClientStats {
        let deadline = Instant::now() + within;
        while let Some(frame) = self.waiting.pop_front() {
            if tokio::time::timeout_at(deadline, self.client.send(frame)).await.is_err() {
                break;
            }
        }
        if let Err(error) = self.client.flush(deadline.into_std()).await {
            tracing::warn!(%error, "stopped before everything was acknowledged");
        }
        let stats = self.client.stats();
        self.client.close().await;
        stats
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
