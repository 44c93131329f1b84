//! The causal graph of the fleet: process → child, process → written file → process that executes it, process → connection → process
//! that accepted it, container and host → their processes.
//!
//! ```text
//! function.rs  blast_radius, attack_path, incidents: what may be asked, as tables that are made when they are read
//! answer.rs    from the alerts and facts of one snapshot to rows
//! incidents.rs alerts of one path are one incident
//! walk.rs      ways through the facts, forwards and backwards; no I/O
//! facts.rs     what is known, as a set; no I/O
//! lookup.rs    facts from the record, step by step
//! ```
//!
//! It is computed when it is asked, over one snapshot; nothing is kept between questions.

mod alert;
mod answer;
mod cells;
mod facts;
mod function;
mod incidents;
mod lookup;
#[cfg(test)]
mod tests;
mod walk;

pub(crate) use function::{ATTACK_PATH, BLAST_RADIUS, Causal, INCIDENTS, functions};
