//! What the demo shows: regions, top talkers, utilisation, event rate, lag, losses; every second, asked for over SQL.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use weir_config::DemoConfig;
use weir_loadtest::local::Addresses;

use crate::sql::{self, Table};

/// Shows a screen a second until it is dropped. Fails only when standard output is gone.
pub(super) async fn show(addresses: &Addresses, config: &DemoConfig, json: bool) -> anyhow::Result<()> {
    let url = format!("postgres://weir@{}/weir", addresses.sql);
    let terminal = std::io::stdout().is_terminal();
    let mut client = None;
    let mut before: Option<Totals> = None;
    let mut every = tokio::time::interval(if terminal || json { EVERY } else { EVERY_WITHOUT_TERMINAL });
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        if client.is_none() {
            client = sql::connect(&url).await.ok();
        }
        let Some(connected) = &client else { continue };
        let Ok(view) = read(connected).await else {
            client = None;
            continue;
        };
        let totals = Totals::of(&view);
        let rate = before.as_ref().map_or(0, |before| totals.rate_since(before));
        let text = match json {
            true => view.json(&totals, rate),
            false => view.screen(addresses, config, &totals, rate),
        };
        let mut out = std::io::stdout().lock();
        if terminal && !json {
            out.write_all(CLEAR.as_bytes())?;
        }
        out.write_all(text.as_bytes())?;
        out.flush()?;
        before = Some(totals);
    }
}

/// One look at the cluster.
struct View {
    regions: Table,
    talkers: Table,
    utilization: Table,
    alerts: Table,
    agents: Table,
    losses: Table,
    tick: Table,
}

async fn read(client: &tokio_postgres::Client) -> anyhow::Result<View> {
    let one = async |sql: &str| -> anyhow::Result<Table> { Ok(sql::query(client, sql).await?.pop().unwrap_or_default()) };
    Ok(View {
        regions: one(REGIONS).await?,
        talkers: one(TALKERS).await?,
        utilization: one(UTILIZATION).await?,
        alerts: one(ALERTS).await?,
        agents: one(AGENTS).await?,
        losses: one(LOSSES).await?,
        tick: one("SHOW weir.tick").await?,
    })
}

/// Numbers of one look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Totals {
    events: u64,
    agents: u64,
    lost: u64,
    tick: u64,
    lag_ms: u64,
}

impl Totals {
    fn of(view: &View) -> Self {
        let number = |table: &Table, column: usize| -> u64 {
            table.rows.first().and_then(|row| row.get(column)?.as_deref()?.parse().ok()).unwrap_or(0)
        };
        let tick = number(&view.tick, 0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        Self {
            agents: number(&view.agents, 0),
            events: number(&view.agents, 1),
            lost: number(&view.losses, 0),
            tick,
            lag_ms: now.saturating_sub(tick),
        }
    }

    /// Events per second of the ticks between.
    fn rate_since(&self, before: &Self) -> u64 {
        let milliseconds = self.tick.saturating_sub(before.tick).max(1);
        self.events.saturating_sub(before.events) * 1_000 / milliseconds
    }
}

impl View {
    fn screen(&self, addresses: &Addresses, config: &DemoConfig, totals: &Totals, rate: u64) -> String {
        let mut text = String::new();
        let simulated = match config.fleet {
            0 => "no simulation".to_owned(),
            hosts => format!("{hosts} of the hosts are SIMULATED; this host is real, region `local`"),
        };
        let _ = writeln!(text, "Weir demo: {} node(s); {simulated}", config.nodes);
        let _ = writeln!(
            text,
            "{} agents   {rate} events/s   {} events   answers are {} ms old   {} events lost\n",
            totals.agents, totals.events, totals.lag_ms, totals.lost
        );
        for (title, table) in [
            ("connections between regions (region_connections, busiest first)", &self.regions),
            ("top talkers of the last minute (top_talkers)", &self.talkers),
            ("utilisation of the last 10 s (utilization, by CPU)", &self.utilization),
            ("what the rules found (alerts, newest first)", &self.alerts),
        ] {
            let _ = writeln!(text, "{title}\n{}", table.aligned());
        }
        let _ = writeln!(
            text,
            "ask:  psql -h 127.0.0.1 -p {} -U weir weir -c \"select * from region_connections\"      Ctrl-C ends the demo",
            addresses.sql.port()
        );
        text
    }

    fn json(&self, totals: &Totals, rate: u64) -> String {
        let rows = |table: &Table| -> Vec<serde_json::Value> {
            let cells = |row: &[Option<String>]| table.columns.iter().cloned().zip(row.iter().cloned().map(Into::into)).collect();
            table.rows.iter().map(|row| serde_json::Value::Object(cells(row))).collect()
        };
        let line = serde_json::json!({
            "tick": totals.tick, "lag_ms": totals.lag_ms, "agents": totals.agents, "events": totals.events,
            "events_per_s": rate, "lost": totals.lost, "regions": rows(&self.regions), "top_talkers": rows(&self.talkers),
            "utilization": rows(&self.utilization), "alerts": rows(&self.alerts),
        });
        format!("{line}\n")
    }
}

const REGIONS: &str = "select src_region, dst_region, open, total, failed, bytes_sent, bytes_received from region_connections \
     order by total desc, src_region, dst_region limit 12";
const TALKERS: &str = "select rank, app, host, region, bytes from top_talkers order by rank limit 6";
const UTILIZATION: &str = "select app, region, cpu_ms_per_s, cpu_p95, mem_bytes, net_bytes_per_s, containers from utilization \
     order by cpu_ms_per_s desc, app, region limit 6";
const ALERTS: &str = "select severity, rule, host, revision as hits from alerts where state <> 'withdrawn' \
     order by last_seen desc, rule, host limit 4";
const AGENTS: &str = "select count(*), coalesce(sum(events), 0) from agents";
const LOSSES: &str = "select coalesce(sum(lost), 0) from losses";
const EVERY: Duration = Duration::from_secs(1);
const EVERY_WITHOUT_TERMINAL: Duration = Duration::from_secs(10);
const CLEAR: &str = "\x1b[H\x1b[2J\x1b[3J";
