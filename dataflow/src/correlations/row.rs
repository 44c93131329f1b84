//! What changes of the matches in a tick: rows of `alerts` and `losses`, and hits of the correlations above.

use std::fmt::Write as _;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weir_schema::Text;
use xxhash_rust::xxh3::xxh3_64;

use super::compiled::CorrelationRule;
use super::group::Shown;
use super::hit::{CorrelationHit, Hit, group_bytes, group_values};
use super::spot::route;
use crate::alerts::SUMMARY_BYTES_MAX;
use crate::chains::ChainHead;
use crate::checkpoint::shared;
use crate::delta::DeltaBatch;
use crate::hits::{AlertOfHits, HotKeys, alert_id, hex};
use crate::packed::Bytes;

/// Whose matches they are.
pub(crate) struct Told<'a> {
    pub(crate) rule: &'a CorrelationRule,
    pub(crate) group: &'a Bytes,
}

/// An alert of a match, with all that its row says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MatchAlert {
    #[serde(with = "shared")]
    pub(crate) head: Arc<ChainHead>,
    /// A hash of tenant and group.
    pub(crate) key: u64,
    pub(crate) summary: Text,
    pub(crate) shown: Shown,
}

/// What changed in a tick.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    alerts: Vec<(MatchAlert, i64)>,
    /// For the levels above.
    pub(crate) fed: Vec<CorrelationHit>,
    /// Hits that found no room.
    pub(crate) hot: HotKeys,
    /// Matches that went before their time.
    pub(crate) evicted: u64,
}

impl Changes {
    /// A match is told otherwise than before, comes, or is a part of another one.
    pub(crate) fn change(&mut self, told: &Told<'_>, was: Option<&Shown>, now: Option<&Shown>) {
        if told.rule.says().alerts {
            let rows = was.map(|was| (was, -1)).into_iter().chain(now.map(|now| (now, 1)));
            self.alerts.extend(rows.map(|(shown, diff)| (MatchAlert::of(told, shown), diff)));
        }
        if told.rule.feeds.is_empty() {
            return;
        }
        let [was, now] = [was, now].map(|shown| shown.filter(|shown| !shown.withdrawn).map(|shown| told.as_hit(shown)));
        if was != now {
            was.into_iter().for_each(|hit| self.feed(told, &hit, -1));
            now.into_iter().for_each(|hit| self.feed(told, &hit, 1));
        }
    }

    /// A match was shown for long enough: those that counted it go on doing so.
    pub(crate) fn forget(&mut self, told: &Told<'_>, shown: &Shown) {
        if told.rule.says().alerts {
            self.alerts.push((MatchAlert::of(told, shown), -1));
        }
    }

    /// An alert whose rule is no more.
    pub(crate) fn alert(&mut self, alert: MatchAlert, diff: i64) {
        self.alerts.push((alert, diff));
    }

    fn feed(&mut self, told: &Told<'_>, hit: &Hit, diff: i8) {
        let (tenant, keys) = group_values(told.group);
        for (version, input, place) in &told.rule.feeds {
            let upper = told.rule.other(*place);
            let Some(grouped) = upper.regrouped(*input, &keys) else { continue };
            let group = group_bytes(&tenant, &grouped.keys);
            let hit = Hit { inputs: 1 << input, datum: grouped.datum.map(Into::into), ..hit.clone() };
            let (route, level) = (route(*version, &group), upper.level as u8);
            self.fed.push(CorrelationHit { route, level, version: *version, group, hit, diff });
        }
    }

    /// The rows of `alerts`.
    pub(crate) fn alerts(&self, tick: u64) -> Option<DeltaBatch> {
        let mut table = AlertOfHits::table(self.alerts.len());
        self.alerts.iter().for_each(|(alert, _)| alert.row(|row| row.encode(&mut table)));
        let diffs = self.alerts.iter().map(|(_, diff)| *diff).collect();
        (!self.alerts.is_empty()).then(|| DeltaBatch::new(tick, table.finish(), diffs))
    }
}

impl Told<'_> {
    /// A match as correlations above it count it. Its number of the rule and its value are theirs to say.
    fn as_hit(&self, shown: &Shown) -> Hit {
        let run = &shown.run;
        let id = alert_id(self.rule.head.rule.id, xxh3_64(self.group), &run.first.1);
        Hit {
            at: (run.met.0, id.to_be_bytes()),
            inputs: 0,
            datum: None,
            source: Arc::clone(&run.source),
            evidence: run.evidence[..run.met_evidence].to_vec(),
        }
    }
}

impl MatchAlert {
    pub(crate) fn of(told: &Told<'_>, shown: &Shown) -> Self {
        let (rule, run) = (told.rule, &shown.run);
        let mut summary = format!("{}:", rule.head.rule.name);
        let (_, keys) = group_values(told.group);
        let mut write = |text: std::fmt::Arguments<'_>| summary.write_fmt(text).expect("a string takes everything");
        for (name, value) in rule.says().group_by.iter().zip(&keys) {
            write(format_args!(" {name}={value}"));
        }
        for (name, stage) in rule.head.stages.iter().zip(&run.stages).filter(|(_, stage)| stage.count > 0) {
            write(format_args!(", {name} {} times", stage.count));
        }
        let hosts: Vec<&str> = run.hosts.iter().take(HOSTS_NAMED).map(|host| &**host).collect();
        write(format_args!(" on {}", hosts.join(", ")));
        if run.hosts.len() > HOSTS_NAMED {
            write(format_args!(" and more"));
        }
        if summary.len() > SUMMARY_BYTES_MAX {
            summary.truncate(summary.floor_char_boundary(SUMMARY_BYTES_MAX));
        }
        Self { head: Arc::clone(&rule.head), key: xxh3_64(told.group), summary: summary.into(), shown: shown.clone() }
    }

    fn row(&self, encode: impl FnOnce(&AlertOfHits<'_>)) {
        let Self { head, key, summary, shown } = self;
        let (rule, run) = (&head.rule, &shown.run);
        let evidence: Vec<String> = run.evidence.iter().map(|id| hex(id)).collect();
        let stages = head.stages.iter().zip(&run.stages).enumerate().map(|(n, (name, stage))| {
            let (event_id, host) = stage.first.as_ref().map(|(id, host)| (hex(id), &**host)).unzip();
            serde_json::json!({
                "stage": n + 1, "name": &**name, "rule": &*rule.name, "events": stage.count, "event_id": event_id, "host": host,
            })
        });
        let stages = serde_json::Value::Array(stages.collect()).to_string();
        let [hosts, regions] = [&run.hosts, &run.regions].map(|names| names.iter().map(|name| &**name).collect::<Vec<&str>>());
        encode(&AlertOfHits {
            id: alert_id(rule.id, *key, &run.first.1),
            revision: shown.revision,
            state: match (shown.withdrawn, shown.revision) {
                (true, _) => "withdrawn",
                (false, 1) => "open",
                _ => "updated",
            },
            rule,
            source: &run.source,
            times: (run.first.0, run.last),
            summary,
            evidence: &evidence,
            stages: &stages,
            hosts: &hosts,
            regions: &regions,
            changed: shown.changed,
            lost: run.lost,
        });
    }
}

/// Hosts that a summary names.
const HOSTS_NAMED: usize = 4;
