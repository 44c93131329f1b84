//! Hosts that only measure: one tells connections and asks each view when they are visible, one waits for an acknowledgement after the other.
//!
//! The clock is this machine's, so both ends of a measured time are. Asking costs the node some CPU, which the figures include.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_postgres::NoTls;
use weir_schema::{Event, Fields, Host, Kind};

use crate::agents::{SimAgent, Target, random_epoch};
use crate::runner::now_ns;

/// A view, and how many of the probe's connections it shows.
struct Watched {
    view: &'static str,
    query: &'static str,
}

const WATCHED: [Watched; 3] = [
    Watched { view: "region_connections", query: "select total from region_connections where src_region = 'probe'" },
    Watched { view: "service_map", query: "select coalesce(sum(total), 0) from service_map where dst_port = 7" },
    Watched { view: "agents", query: "select coalesce(sum(events), 0) from agents where agent = 'probe'" },
];

/// Event to visible row in one view.
#[derive(Debug, Clone)]
pub struct Freshness {
    /// The view.
    pub view: &'static str,
    /// Milliseconds, sorted.
    pub ms: Vec<f64>,
    /// Probes that did not become visible in time.
    pub missing: usize,
}

impl Freshness {
    /// What this share of probes did not exceed; infinite where so many are missing.
    pub fn at(&self, share: f64) -> f64 {
        let at = ((self.ms.len() + self.missing) as f64 * share) as usize;
        match self.ms.get(at) {
            Some(ms) => *ms,
            None if self.missing > 0 => f64::INFINITY,
            None => self.ms.last().copied().unwrap_or(f64::NAN),
        }
    }
}

/// What this share of sorted values did not exceed.
pub fn at_share(sorted: &[f64], share: f64) -> f64 {
    let at = (sorted.len() as f64 * share) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// Connects every 20 ms from a region of its own for `lasts`, and notes when each connection is counted in each view.
pub(crate) async fn freshness(url: &str, target: &Target, lasts: Duration) -> anyhow::Result<Vec<Freshness>> {
    let host = Arc::new(Host { host: PROBE.into(), simulated: true, ..Host::default() });
    let mut agent = SimAgent::start(target, PROBE, host, random_epoch(), 0)?;
    let (tell, told) = watch::channel(Told::default());
    let mut watchers = JoinSet::new();
    for (place, watched) in WATCHED.into_iter().enumerate() {
        let (url, told) = (url.to_owned(), told.clone());
        watchers.spawn(async move { watch_view(&url, &watched, told, lasts).await.map(|seen| (place, seen)) });
    }
    let started = Instant::now();
    let mut every = tokio::time::interval(PROBE_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while started.elapsed() < lasts {
        every.tick().await;
        let now = now_ns();
        agent.tell(&probe_event(now, told.borrow().at.len() as u64, PROBE_PORT), Instant::now()).await?;
        tell.send_modify(|told| told.at.push(now));
        agent.due(Instant::now()).await?;
    }
    agent.finish(VISIBLE_WITHIN).await?;
    tell.send_modify(|told| told.ended = true);
    let mut seen = Vec::new();
    while let Some(watched) = watchers.join_next().await {
        seen.push(watched??);
    }
    seen.sort_by_key(|(place, _)| *place);
    Ok(seen.into_iter().map(|(_, freshness)| freshness).collect())
}

/// When the probe's events happened, and whether there are no more to come.
#[derive(Default)]
struct Told {
    at: Vec<i64>,
    ended: bool,
}

async fn watch_view(url: &str, watched: &Watched, told: watch::Receiver<Told>, lasts: Duration) -> anyhow::Result<Freshness> {
    let sql = connect(url).await?;
    let (started, mut ms) = (Instant::now(), Vec::new());
    let mut every = tokio::time::interval(PROBE_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let all = loop {
        every.tick().await;
        let visible = number(&sql, watched.query).await?;
        let now = now_ns();
        let told = told.borrow();
        let new = told.at.iter().take(visible as usize).skip(ms.len());
        ms.extend(new.map(|at| (now - at) as f64 / 1e6));
        if told.ended && (ms.len() == told.at.len() || started.elapsed() > lasts + VISIBLE_WITHIN) {
            break told.at.len();
        }
    };
    let missing = all - ms.len();
    ms.sort_by(f64::total_cmp);
    Ok(Freshness { view: watched.view, ms, missing })
}

/// Sends a frame, waits for its acknowledgement and a little longer, and so on for `lasts`. Milliseconds, sorted.
pub(crate) async fn acks(target: &Target, lasts: Duration) -> anyhow::Result<Vec<f64>> {
    let host = Arc::new(Host { host: ACKS.into(), simulated: true, ..Host::default() });
    let mut agent = SimAgent::start(target, ACKS, host, random_epoch(), 0)?;
    let (started, mut acks_ms) = (Instant::now(), Vec::new());
    while started.elapsed() < lasts {
        let event = probe_event(now_ns(), acks_ms.len() as u64, ACKS_PORT);
        acks_ms.push(agent.acked(&event, VISIBLE_WITHIN).await?.as_secs_f64() * 1e3);
        tokio::time::sleep(ACK_PAUSE).await;
    }
    agent.finish(VISIBLE_WITHIN).await?;
    // The first one waited for the connection.
    let mut rest = acks_ms.split_off(1.min(acks_ms.len()));
    rest.sort_by(f64::total_cmp);
    Ok(rest)
}

/// A connection of a probe's host.
pub(crate) fn probe_event(time: i64, number: u64, port: u16) -> Event {
    let fields = Fields {
        src_ip: Some("192.0.2.1".into()),
        src_port: Some(1_024 + (number % 60_000) as u16),
        dst_ip: Some("192.0.2.2".into()),
        dst_port: Some(port),
        proto: Some("tcp".into()),
        direction: Some("out".into()),
        result: Some(0),
        socket_id: Some(number + 1),
        ..Fields::default()
    };
    Event { time, kind: Kind::Connect, process: None, container: None, fields }
}

/// Waits until the views' side has counted so many events of the fleet, or too long; what it has counted, and the time since `started`.
pub(crate) async fn wait_until_counted(
    sql: &tokio_postgres::Client,
    events: u64,
    started: Instant,
) -> anyhow::Result<(u64, Duration)> {
    let deadline = Instant::now() + VISIBLE_WITHIN;
    loop {
        let counted = number(sql, COUNTED).await?;
        if counted >= events || Instant::now() > deadline {
            return Ok((counted, started.elapsed()));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A client of a node's SQL port.
pub(crate) async fn connect(url: &str) -> anyhow::Result<tokio_postgres::Client> {
    let (sql, connection) = tokio_postgres::connect(url, NoTls).await.with_context(|| format!("connecting to {url}"))?;
    tokio::spawn(connection);
    Ok(sql)
}

/// The first column of the first row, as a number.
pub(crate) async fn number(sql: &tokio_postgres::Client, query: &str) -> anyhow::Result<u64> {
    for message in sql.simple_query(query).await.with_context(|| format!("asking {query:?}"))? {
        if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
            return Ok(row.get(0).and_then(|text| text.parse().ok()).unwrap_or(0));
        }
    }
    Ok(0)
}

/// The fleet's events; the probes' own are not.
pub(crate) const COUNTED: &str = "select coalesce(sum(events), 0) from agents where agent like 'sim-%'";
const PROBE: &str = "probe";
const ACKS: &str = "acks";
/// Nobody else's in a simulated fleet.
const PROBE_PORT: u16 = 7;
const ACKS_PORT: u16 = 9;
/// No multiple of what a node gathers for.
const ACK_PAUSE: Duration = Duration::from_millis(37);
const PROBE_EVERY: Duration = Duration::from_millis(20);
const VISIBLE_WITHIN: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_later_than_all_that_is_there() {
        let seen = |missing| Freshness { view: "agents", ms: (1..=98).map(f64::from).collect(), missing };
        assert_eq!((seen(0).at(0.5), seen(0).at(1.0), seen(2).at(0.5)), (50.0, 98.0, 51.0));
        assert!(seen(2).at(0.99).is_infinite() && Freshness { view: "agents", ms: Vec::new(), missing: 0 }.at(0.5).is_nan());
        assert_eq!(at_share(&[1.0, 2.0, 3.0], 0.99), 3.0);
    }
}
