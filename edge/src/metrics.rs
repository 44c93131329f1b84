//! Every metric of the agent: name, unit, meaning. They go through the `metrics` facade; who embeds the agent installs a recorder.

/// Events made, label `lane`. Counted when an event enters its batch.
pub const EVENTS: &str = "agent_events_total";
/// Events lost before they were shipped, labels `class` and `reason`. Each is also shipped inside a `loss` event.
pub const LOST: &str = "agent_lost_events_total";
/// Frames handed to the transport, label `lane`.
pub const FRAMES: &str = "agent_frames_total";
/// Bytes of those frames.
pub const FRAME_BYTES: &str = "agent_frame_bytes_total";
/// Bytes of frames not yet acknowledged (gauge).
pub const UNACKED_BYTES: &str = "agent_unacked_bytes";
/// Kernel records that could not be decoded.
pub const UNDECODED: &str = "agent_undecoded_records_total";
/// Processes in the table (gauge).
pub const PROCESSES: &str = "agent_processes";
/// Cgroups that found no room in the table.
pub const CGROUPS_REFUSED: &str = "agent_cgroups_refused_total";
/// Reads of `/proc/PID` left out because the second's budget was spent.
pub const PROC_READS_SKIPPED: &str = "agent_proc_reads_skipped_total";
/// Connections to a node that were lost and made again.
pub const RECONNECTS: &str = "agent_reconnects_total";
/// Events too large for any batch.
pub const REFUSED: &str = "agent_refused_events_total";
/// Bytes of the spool on the disk (gauge).
pub const SPOOL_BYTES: &str = "agent_spool_bytes";
/// Events in the spool (gauge).
pub const SPOOL_EVENTS: &str = "agent_spool_events";
/// Events that a recording has not, label `reason`.
pub const RECORD_DROPPED: &str = "agent_record_dropped_events_total";
/// Questions to a source of metadata that it did not answer, label `source`.
pub const METADATA_FAILURES: &str = "agent_metadata_failures_total";
/// Containers that were not asked for, or whose change was not told, because a limit was reached.
pub const METADATA_SKIPPED: &str = "agent_metadata_skipped_total";
