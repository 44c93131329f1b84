//! A generation: which nodes' workers are one mesh, how many each has, and which checkpoint they begin from.
//!
//! The chain names each generation by a command, so that every node learns of the same ones in the same order. The newest counts: workers
//! of an older one are ended by their own node, and refused by everybody else's.

use serde::{Deserialize, Serialize};
use weir_schema::Name;

/// One formation of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// Strictly increasing along the chain, from 1.
    pub number: u64,
    /// Worker threads of each member.
    pub workers: u32,
    /// The nodes, by name. A member's place is its process number in the mesh.
    pub members: Vec<Member>,
    /// The checkpoint to begin from; none: the chain's beginning.
    pub from: Option<u64>,
}

/// A node whose workers take part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The node.
    pub node: Name,
    /// Where its workers are reached, `address:port`.
    pub address: String,
    /// Which run of the node: one that was started again is another member.
    pub run: u64,
}

impl Generation {
    /// The place of a node's run.
    pub fn place(&self, node: &Name, run: u64) -> Option<usize> {
        self.members.iter().position(|member| member.node == *node && member.run == run)
    }

    /// Workers of the whole mesh.
    pub fn workers_total(&self) -> usize {
        self.workers as usize * self.members.len()
    }
}
