//! What keeps the archive in shape beside the archivist: compaction, retention, and the removal of what nobody needs any more.
//!
//! One job at a time. A job that fails is tried again at the next turn; the objects that it left behind are swept. A file that is found
//! damaged is left where it is, and out of later jobs: it must not stop the others.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, error, info};
use weir_archive::compact::{Sizes, choose, compact};
use weir_archive::retention::{Rule, retain};
use weir_archive::sweep::Sweep;
use weir_archive::{Archive, Error, Table};
use weir_config::{ArchiveConfig, ArchiveLimits, RetentionRule};

use crate::metrics;

/// Keeps an archive until dropped.
pub(crate) async fn keep(archive: Archive, config: ArchiveConfig, wall_ms: fn() -> u64) {
    let (sizes, rules) = (sizes(&config.limits), rules(&config.retention));
    let mut sweep = Sweep::new(archive.clone(), config.limits.delete_after_ms);
    let mut turn = tokio::time::interval(TURN);
    turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut damaged = BTreeSet::new();
    for number in 0_u64.. {
        turn.tick().await;
        told(compact_all(&archive, &sizes, &mut damaged, wall_ms).await, "compaction");
        if number.is_multiple_of(RETENTION_TURNS) {
            told(retain_once(&archive, &rules, wall_ms()).await, "retention");
            told(sweep.run(wall_ms()).await.map(|swept| debug!(?swept, "archive swept")), "sweep");
        }
    }
}

async fn compact_all(
    archive: &Archive,
    sizes: &Sizes,
    damaged: &mut BTreeSet<String>,
    wall_ms: fn() -> u64,
) -> Result<(), Error> {
    loop {
        let mut catalog = archive.catalog();
        if !damaged.is_empty() {
            Arc::make_mut(&mut catalog).files.retain(|path, _| !damaged.contains(path));
        }
        let Some(job) = choose(&catalog, sizes, wall_ms()) else { return Ok(()) };
        match compact(archive, &job, sizes, wall_ms()).await {
            Ok(compacted) => metrics::archive_compacted(compacted.rows),
            Err(Error::Damaged { path, why }) if damaged.insert(path.clone()) => {
                metrics::archive_failed();
                error!(path, why, "a file of the archive is damaged: it is not compacted; restore it from a copy");
            }
            Err(failed) => return Err(failed),
        }
    }
}

async fn retain_once(archive: &Archive, rules: &[Rule], now_ms: u64) -> Result<(), Error> {
    let dropped = retain(archive, rules, now_ms).await?;
    let rows: u64 = dropped.iter().map(|file| file.rows).sum();
    if rows > 0 {
        info!(files = dropped.len(), rows, "retention dropped files of the archive");
        metrics::archive_dropped(rows);
    }
    Ok(())
}

fn told(done: Result<(), Error>, what: &'static str) {
    if let Err(failed) = done {
        metrics::archive_failed();
        error!(error = %failed, what, "upkeep of the archive failed; trying again");
    }
}

fn sizes(limits: &ArchiveLimits) -> Sizes {
    Sizes {
        file_bytes_min: limits.file_bytes_min,
        file_bytes_max: limits.file_bytes_max,
        fresh_files_max: limits.fresh_files_max,
        fresh_ms_max: limits.fresh_ms_max,
        ..Sizes::default()
    }
}

fn rules(rules: &[RetentionRule]) -> Vec<Rule> {
    let rule = |rule: &RetentionRule| Rule {
        table: rule.table.as_deref().and_then(Table::from_name),
        tenant: rule.tenant.clone(),
        region: rule.region.clone(),
        age_ms: rule.age_hours_max.map(|hours| hours * HOUR_MS),
        bytes: rule.bytes_max,
    };
    rules.iter().map(rule).collect()
}

const TURN: Duration = Duration::from_secs(5);
/// Retention and sweep are looked at once a minute.
const RETENTION_TURNS: u64 = 12;
const HOUR_MS: u64 = 3_600_000;
