//! What people ask of a cluster as a whole: who is in it, and how many workers it shall have. Goes through the store that its nodes share.

use weir_config::NodeConfig;

use crate::beats;
use crate::error::Error;
use crate::membership::Workers;
use crate::node::cluster_store;

/// A node, as it last told of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    /// Its name.
    pub node: String,
    /// Where its workers are reached.
    pub address: String,
    /// What its workers do, in words.
    pub workers: String,
    /// Signs of life since it was started.
    pub beats: u64,
}

/// What is known of the whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Every node that ever was.
    pub nodes: Vec<NodeStatus>,
    /// Ticks of the checkpoints that count.
    pub checkpoints: Vec<u64>,
    /// Workers of each node that were asked for.
    pub workers_wanted: Option<u32>,
}

/// Looks at the store of the cluster that this node's config belongs to.
pub async fn status(config: &NodeConfig) -> Result<Status, Error> {
    let seen = beats::look(&cluster_store(config)?).await?;
    let node = |beat: crate::membership::Beat| NodeStatus {
        node: beat.node.to_string(),
        address: beat.address,
        workers: match beat.workers {
            Workers::None => "none".to_owned(),
            Workers::Starting { generation } => format!("starting in generation {generation}"),
            Workers::Running { generation } => format!("running in generation {generation}"),
            Workers::Ended { generation, .. } => format!("ended in generation {generation}"),
        },
        beats: beat.number,
    };
    let nodes = seen.beats.into_iter().map(node).collect();
    Ok(Status { nodes, checkpoints: seen.checkpoints, workers_wanted: seen.workers })
}

/// Asks for so many workers of each node, from 1 to 64. The holder forms the mesh anew; nothing is lost and ingest goes on.
pub async fn rescale(config: &NodeConfig, workers: u32) -> Result<(), Error> {
    beats::want_workers(&cluster_store(config)?, workers).await
}
