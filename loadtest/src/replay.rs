//! Replays a recording (JSON lines) over the wire: one simulated agent per host in it.
//!
//! Times are moved as a whole, so that the recording's last event happens now: views admit events for a bounded time only. With
//! `as_recorded` they stay, and what is older than the views' retention is stored as late. Order is not assumed.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use weir_schema::{Event, Host, Name, parse_line};

use crate::agents::{SimAgent, Target, random_epoch};

/// How a recording is replayed.
#[derive(Debug, Clone)]
pub struct ReplayOptions {
    /// Keep the recording's own times.
    pub as_recorded: bool,
    /// Region of hosts whose lines name none.
    pub region: String,
}

/// A recording, read.
#[derive(Debug, Default, PartialEq)]
pub struct Recording {
    /// Events per (region, host).
    pub hosts: BTreeMap<(String, String), (Host, Vec<Event>)>,
    /// Lines that are events.
    pub events: u64,
    /// Lines that are not, with their numbers (from 1) and why; the first ones only.
    pub skipped: Vec<(u64, String)>,
    /// How many lines are not events.
    pub skipped_count: u64,
}

impl Recording {
    /// Reads JSON lines. A line that is not an event is skipped and reported.
    pub fn read(lines: impl BufRead, region: &str) -> std::io::Result<Self> {
        let mut recording = Self::default();
        for (index, line) in lines.lines().enumerate() {
            let line = line?;
            if line.trim().is_empty() {
                continue;
            }
            match parse_line(&line) {
                Ok(parsed) => {
                    let region = parsed.region.as_ref().map_or(region, Name::as_str).to_owned();
                    let mut host = parsed.host;
                    if host.host.is_empty() {
                        host.host = UNNAMED_HOST.into();
                    }
                    let key = (region, host.host.to_string());
                    let (_, events) = recording.hosts.entry(key).or_insert_with(|| (host, Vec::new()));
                    events.push(parsed.event);
                    recording.events += 1;
                }
                Err(wrong) => {
                    recording.skipped_count += 1;
                    if recording.skipped.len() < SKIPPED_SHOWN_MAX {
                        recording.skipped.push((index as u64 + 1, wrong.to_string()));
                    }
                }
            }
        }
        Ok(recording)
    }

    /// Moves all times so that the last event happens at `now_ns`.
    pub fn move_to(&mut self, now_ns: i64) {
        let all = || self.hosts.values().flat_map(|(_, events)| events);
        let Some(last) = all().map(|event| event.time).max() else { return };
        let shift = now_ns - last;
        for (_, events) in self.hosts.values_mut() {
            events.iter_mut().for_each(|event| event.time += shift);
        }
    }
}

/// Sends the recording and waits until all of it is acknowledged.
pub async fn run(mut recording: Recording, options: &ReplayOptions, target: &Target, now_ns: i64) -> anyhow::Result<()> {
    if !options.as_recorded {
        recording.move_to(now_ns);
    }
    let mut sending = Vec::new();
    for (index, ((region, _), (host, events))) in recording.hosts.into_iter().enumerate() {
        let mut agent = SimAgent::start(target, &region, Arc::new(host), random_epoch(), index)?;
        sending.push(tokio::spawn(async move {
            for event in &events {
                agent.tell(event, Instant::now()).await?;
            }
            agent.finish(FINISH_WITHIN).await.map(|_| ())
        }));
    }
    for sent in sending {
        sent.await??;
    }
    Ok(())
}

const UNNAMED_HOST: &str = "unnamed";
const SKIPPED_SHOWN_MAX: usize = 20;
const FINISH_WITHIN: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_no_event_is_named_and_skipped() {
        let text = "{\"kind\":\"exec\",\"time\":5,\"host\":\"a\",\"pid\":1}\nnot json\n\n{\"kind\":\"nothing\",\"time\":1}\n";
        let recording = Recording::read(text.as_bytes(), "local").unwrap();
        assert_eq!((recording.events, recording.skipped_count), (1, 2));
        assert_eq!(recording.skipped.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [2, 4]);
    }

    #[test]
    fn times_move_as_a_whole() {
        let text = "{\"kind\":\"exec\",\"time\":5,\"host\":\"a\"}\n{\"kind\":\"exit\",\"time\":25,\"host\":\"b\"}\n";
        let mut recording = Recording::read(text.as_bytes(), "local").unwrap();
        recording.move_to(1_000);
        let mut times: Vec<i64> =
            recording.hosts.values().flat_map(|(_, events)| events.iter().map(|event| event.time)).collect();
        times.sort_unstable();
        assert_eq!(times, [980, 1_000]);
    }
}
