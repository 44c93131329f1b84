//! Every metric of a node, with unit and meaning. Counted per frame or per tick, never per event.

use std::time::Duration;

use metrics::{counter, gauge, histogram};
use weir_dataflow::handle::Stats;

/// `weir_ingest_frames_total`, `weir_ingest_bytes_total`, `weir_ingest_events_total`: frames appended to this node's log.
pub(crate) fn frame_received(bytes: usize, events: u32) {
    counter!("weir_ingest_frames_total").increment(1);
    counter!("weir_ingest_bytes_total").increment(bytes as u64);
    counter!("weir_ingest_events_total").increment(u64::from(events));
}

/// `weir_ingest_duplicate_frames_total`: frames that were in the log already.
pub(crate) fn frame_duplicate() {
    counter!("weir_ingest_duplicate_frames_total").increment(1);
}

/// `weir_ingest_refused_frames_total{reason}`: frames that were not accepted.
pub(crate) fn frame_refused(reason: &'static str) {
    counter!("weir_ingest_refused_frames_total", "reason" => reason).increment(1);
}

/// `weir_ingest_sync_seconds`: time of one group commit.
pub(crate) fn group_synced(took: Duration) {
    histogram!("weir_ingest_sync_seconds").record(took.as_secs_f64());
}

/// `weir_ingest_log_failures_total`: times that the log could not be written and was opened again.
pub(crate) fn log_failed() {
    counter!("weir_ingest_log_failures_total").increment(1);
}

/// `weir_ingest_log_lost_records_total`: records of this node's log that were found broken when it was opened.
pub(crate) fn log_records_lost(records: u64) {
    counter!("weir_ingest_log_lost_records_total").increment(records);
}

/// `weir_chain_tick_seconds`: the last tick this node wrote, in Unix seconds. Zero on nodes that do not hold the chain.
pub(crate) fn chain_tick(tick: u64) {
    gauge!("weir_chain_tick_seconds").set(tick as f64 / 1_000.0);
}

/// `weir_chain_failures_total`: records of the chain that could not be written.
pub(crate) fn chain_failed() {
    counter!("weir_chain_failures_total").increment(1);
}

/// `weir_engine_restarts_total`: times that the worker child ended.
pub(crate) fn engine_ended() {
    counter!("weir_engine_restarts_total").increment(1);
}

/// `weir_mesh_generation`, `weir_mesh_members`: which formation of the mesh this node's workers are in, and of how many nodes.
pub(crate) fn generation(number: u64, members: usize) {
    gauge!("weir_mesh_generation").set(number as f64);
    gauge!("weir_mesh_members").set(members as f64);
}

/// `weir_checkpoint_tick_seconds`: tick of the newest checkpoint that a worker of this node completed. Told by the worker child's log too.
pub(crate) fn checkpoint_done(tick: u64) {
    gauge!("weir_checkpoint_tick_seconds").set(tick as f64 / 1_000.0);
}

/// `weir_checkpoint_failures_total`: parts of checkpoints that could not be written.
pub(crate) fn checkpoint_failed() {
    counter!("weir_checkpoint_failures_total").increment(1);
}

/// `weir_engine_rows{relation}`, `weir_engine_bytes{relation}`, `weir_engine_total{what}`, `weir_engine_closed_tick_seconds`: what the
/// workers of the whole mesh hold and have done.
pub(crate) fn engine(stats: &Stats) {
    for held in &stats.relations {
        gauge!("weir_engine_rows", "relation" => held.relation.clone()).set(held.rows as f64);
        gauge!("weir_engine_bytes", "relation" => held.relation.clone()).set(held.bytes as f64);
    }
    for (what, count) in &stats.counters {
        counter!("weir_engine_total", "what" => what.trim_end_matches("_total").to_owned()).absolute(*count);
    }
    if let Some(closed) = stats.closed {
        gauge!("weir_engine_closed_tick_seconds").set(closed as f64 / 1_000.0);
    }
}

/// `weir_archive_rows_total`, `weir_archive_bytes_total`, `weir_archive_flush_seconds`, `weir_archive_tick_seconds`: what was flushed, how long
/// it took from the first attempt on, and up to which tick the archive holds everything (Unix time).
pub(crate) fn archive_flushed(flush: &weir_archive::Flush, tick: u64, took: Duration) {
    counter!("weir_archive_rows_total").increment(flush.rows);
    counter!("weir_archive_bytes_total").increment(flush.bytes);
    histogram!("weir_archive_flush_seconds").record(took.as_secs_f64());
    gauge!("weir_archive_tick_seconds").set(tick as f64 / 1_000.0);
}

/// `weir_archive_compacted_rows_total`: rows that compactions have rewritten.
pub(crate) fn archive_compacted(rows: u64) {
    counter!("weir_archive_compacted_rows_total").increment(rows);
}

/// `weir_archive_dropped_rows_total`: rows that retention has dropped.
pub(crate) fn archive_dropped(rows: u64) {
    counter!("weir_archive_dropped_rows_total").increment(rows);
}

/// `weir_archive_failures_total`: attempts to write or keep the archive that failed.
pub(crate) fn archive_failed() {
    counter!("weir_archive_failures_total").increment(1);
}

/// Names, units and help of all of them, so that `/metrics` shows each from the start.
pub(crate) fn describe() {
    weir_transport::metrics::describe();
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    describe_counter!("weir_ingest_frames_total", "Frames appended to this node's log.");
    describe_counter!("weir_ingest_bytes_total", Unit::Bytes, "Bytes of frames appended to this node's log.");
    describe_counter!("weir_ingest_events_total", "Events in frames appended to this node's log.");
    describe_counter!("weir_ingest_duplicate_frames_total", "Frames that were in the log already.");
    describe_counter!("weir_ingest_refused_frames_total", "Frames that were not accepted, by reason.");
    describe_histogram!("weir_ingest_sync_seconds", Unit::Seconds, "Time of one group commit.");
    describe_counter!("weir_ingest_log_failures_total", "Times that the log could not be written and was opened again.");
    describe_counter!("weir_ingest_log_lost_records_total", "Records of this node's log found broken when it was opened.");
    describe_gauge!("weir_chain_tick_seconds", Unit::Seconds, "Last tick written by this node, Unix time.");
    describe_counter!("weir_chain_failures_total", "Records of the chain that could not be written.");
    describe_gauge!("weir_engine_rows", "Rows held in memory by the workers of the mesh, by relation.");
    describe_gauge!("weir_engine_bytes", Unit::Bytes, "Bytes of rows held in memory by the workers of the mesh, by relation.");
    describe_counter!("weir_engine_total", "What the workers of the mesh have done since they started, by what.");
    describe_gauge!("weir_engine_closed_tick_seconds", Unit::Seconds, "Newest closed tick, Unix time.");
    describe_counter!("weir_archive_rows_total", "Rows written to the archive.");
    describe_counter!("weir_archive_bytes_total", Unit::Bytes, "Bytes of fresh files written to the archive.");
    describe_histogram!("weir_archive_flush_seconds", Unit::Seconds, "Time of one flush to the archive, retries included.");
    describe_gauge!("weir_archive_tick_seconds", Unit::Seconds, "Up to here the archive holds everything, Unix time.");
    describe_counter!("weir_archive_compacted_rows_total", "Rows that compactions of the archive have rewritten.");
    describe_counter!("weir_archive_dropped_rows_total", "Rows of the archive that retention has dropped.");
    describe_counter!("weir_archive_failures_total", "Attempts to write or keep the archive that failed.");
    describe_gauge!("weir_mesh_generation", "Formation of the mesh that this node's workers are in.");
    describe_gauge!("weir_mesh_members", "Nodes of that formation.");
    describe_counter!("weir_engine_restarts_total", "Times that the worker child ended.");
}
