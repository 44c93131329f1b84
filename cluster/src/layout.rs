//! Where a cluster's files lie. One machine, one shared directory, several nodes:
//!
//! ```text
//! SHARED/chain/            journal: one record a tick, written by the holder of its lock
//! SHARED/logs/<node>/      journal: frames as sent, written by that node
//! SHARED/cluster/          objects: signs of life of the nodes, what people want of the mesh, checkpoints of the views,
//!                          tokens and revoked agents
//! SHARED/archivist/lock    held by the node that writes the archive
//! SHARED/alerts/lock       held by the node that sends alerts to sinks; the outbox is in `cluster/alerts/`
//! SHARED/archive/          the archive, unless the config puts it elsewhere
//! SHARED/object/           at log level `object`, unless the config puts it elsewhere: `chain/`, `logs/<node>/` and `cluster/` as objects
//! DATA/engine.sock         the Handle protocol between a node and its worker child
//! DATA/replay.sock         the same, of a replay that may run beside the node
//! ```

use std::path::{Path, PathBuf};

use weir_schema::Name;

/// The chain's journal.
pub fn chain_dir(shared: &Path) -> PathBuf {
    shared.join("chain")
}

/// The directory that holds one journal per node.
pub fn logs_dir(shared: &Path) -> PathBuf {
    shared.join("logs")
}

/// The journal of one node's log.
pub fn log_dir(shared: &Path, node: &Name) -> PathBuf {
    logs_dir(shared).join(node.as_str())
}

/// Where the objects lie by which nodes agree.
pub fn cluster_dir(shared: &Path) -> PathBuf {
    shared.join(CLUSTER)
}

/// Whoever has the lock of this directory writes the archive.
pub fn archivist_dir(shared: &Path) -> PathBuf {
    shared.join("archivist")
}

/// Whoever has the lock of this directory sends alerts.
pub fn alerts_dir(shared: &Path) -> PathBuf {
    shared.join("alerts")
}

/// The Unix socket on which a node's worker child answers.
pub fn engine_socket(data: &Path) -> PathBuf {
    data.join("engine.sock")
}

/// The Unix socket on which the workers of a replay answer.
pub fn replay_socket(data: &Path) -> PathBuf {
    data.join("replay.sock")
}

/// The folder of those objects, in a directory or in a store.
pub const CLUSTER: &str = "cluster";
