//! Signs of life as objects: every node writes its own over and over, and reads those of all.
//!
//! ```text
//! members/<node>      version u8 | postcard of Beat
//! wanted/views/<id>   changes of views that are asked for, see views.rs
//! wanted/rules/<id>   changes of rules that are asked for, see rules.rs
//! wanted/sinks/<id>   changes of sinks that are asked for, see sinks.rs
//! wanted/workers      decimal: worker threads of each node, as people want them
//! ```
//!
//! They are small, and losing one is harmless: they decide nothing by themselves, see `membership.rs`. A beat that does not decode is
//! left out and told.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;
use weir_archive::{ObjectPath, Store};
use weir_schema::Name;

use crate::checkpoint;
use crate::error::Error;
use crate::membership::{Beat, Workers};
use crate::rules::{self, RulesRequest};
use crate::sinks::{self, SinkRequest};
use crate::views::{self, ViewRequest};

/// How this node's workers are, told by whoever keeps them.
#[derive(Debug, Clone)]
pub(crate) struct Status(Arc<Mutex<Workers>>);

impl Default for Status {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Workers::None)))
    }
}

impl Status {
    pub(crate) fn set(&self, workers: Workers) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = workers;
    }

    pub(crate) fn current(&self) -> Workers {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What was found when the store was looked at last.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// When.
    pub(crate) at: Instant,
    /// The beats of all nodes that ever were.
    pub(crate) beats: Vec<Beat>,
    /// Workers of each node that people want; none: nobody said.
    pub(crate) workers: Option<u32>,
    /// Ticks of the checkpoints that count, ascending.
    pub(crate) checkpoints: Vec<u64>,
    /// Changes of views that are asked for.
    pub(crate) requests: Vec<ViewRequest>,
    /// Changes of rules that are asked for.
    pub(crate) rules: Vec<RulesRequest>,
    /// Changes of sinks that are asked for.
    pub(crate) sinks: Vec<SinkRequest>,
}

/// What this node found last, shared with the holder.
#[derive(Debug, Clone, Default)]
pub(crate) struct Board(Arc<Mutex<Option<Seen>>>);

impl Board {
    /// The newest look that is not the one of `after`.
    pub(crate) fn newer(&self, after: Option<Instant>) -> Option<Seen> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.as_ref().filter(|seen| after.is_none_or(|after| seen.at > after)).cloned()
    }

    fn put(&self, seen: Seen) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
    }
}

/// Writes this node's beat and looks at all, as often as `every` says. Ends when dropped.
pub(crate) async fn run(store: Store, mut beat: Beat, status: Status, board: Board, every: Duration, wall_ms: fn() -> u64) {
    let mut interval = tokio::time::interval(every);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut failed = false;
    loop {
        interval.tick().await;
        beat.number += 1;
        beat.workers = status.current();
        beat.wall_ms = wall_ms();
        let looked = match write(&store, &beat).await {
            Ok(()) => look(&store).await,
            Err(error) => Err(error),
        };
        match looked {
            Ok(seen) => {
                failed = false;
                board.put(seen);
            }
            // Told once, not with every beat.
            Err(error) if !failed => {
                failed = true;
                warn!(%error, store = store.url(), "the store of the cluster is away: this node gives no sign of life");
            }
            Err(_) => {}
        }
    }
}

async fn write(store: &Store, beat: &Beat) -> Result<(), Error> {
    let bytes = postcard::to_extend(beat, vec![VERSION]).expect("a beat in memory serializes");
    Ok(store.write(&ObjectPath::from(MEMBERS).join(beat.node.as_str()), bytes).await?)
}

/// Everything that nodes and people say there.
pub(crate) async fn look(store: &Store) -> Result<Seen, Error> {
    let mut beats = Vec::new();
    for path in store.list(&ObjectPath::from(MEMBERS)).await? {
        let Some(bytes) = store.read_if_there(&path).await? else { continue };
        match decode(&bytes) {
            Some(beat) => beats.push(beat),
            None => warn!(%path, "no sign of life of this version: left out"),
        }
    }
    let workers = store.read_if_there(&ObjectPath::from(WANTED_WORKERS)).await?;
    let workers =
        workers.and_then(|text| String::from_utf8(text).ok()?.trim().parse().ok()).filter(|n| (1..=WORKERS_MAX).contains(n));
    let (checkpoints, requests) = (checkpoint::list(store).await?, views::requests(store).await?);
    let (rules, sinks) = (rules::requests(store).await?, sinks::requests(store).await?);
    Ok(Seen { at: Instant::now(), beats, workers, checkpoints, requests, rules, sinks })
}

/// Whether another process gives signs of life under this name: two looks, so far apart that it gives one between them.
pub(crate) async fn is_alive(store: &Store, node: &Name, apart: Duration) -> Result<bool, Error> {
    let path = ObjectPath::from(MEMBERS).join(node.as_str());
    let Some(before) = store.read_if_there(&path).await? else { return Ok(false) };
    tokio::time::sleep(apart).await;
    Ok(store.read_if_there(&path).await?.is_some_and(|now| now != before))
}

/// Says how many workers each node shall have.
pub(crate) async fn want_workers(store: &Store, workers: u32) -> Result<(), Error> {
    Ok(store.write(&ObjectPath::from(WANTED_WORKERS), workers.to_string().into_bytes()).await?)
}

fn decode(bytes: &[u8]) -> Option<Beat> {
    let body = bytes.strip_prefix(&[VERSION])?;
    postcard::from_bytes(body).ok()
}

/// Most workers of a node.
pub(crate) const WORKERS_MAX: u32 = 64;
const VERSION: u8 = 1;
const MEMBERS: &str = "members";
const WANTED_WORKERS: &str = "wanted/workers";

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(node: &str, number: u64) -> Beat {
        let node = Name::new(node).unwrap();
        Beat {
            node,
            run: 1,
            number,
            address: "a:1".into(),
            workers: Workers::Running { generation: 2 },
            wall_ms: 7,
            build: "b".into(),
        }
    }

    #[tokio::test]
    async fn what_nodes_say_is_found_and_what_is_no_beat_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().to_str().unwrap()).unwrap();
        assert_eq!(look(&store).await.unwrap().beats, []);
        write(&store, &beat("n2", 1)).await.unwrap();
        write(&store, &beat("n1", 1)).await.unwrap();
        write(&store, &beat("n2", 2)).await.unwrap();
        std::fs::write(dir.path().join("members/n3"), [9, 9, 9]).unwrap();
        want_workers(&store, 3).await.unwrap();
        let seen = look(&store).await.unwrap();
        assert_eq!((seen.beats, seen.workers), (vec![beat("n1", 1), beat("n2", 2)], Some(3)));
        std::fs::write(dir.path().join("wanted/workers"), "many").unwrap();
        assert_eq!(look(&store).await.unwrap().workers, None);
    }

    #[tokio::test]
    async fn a_name_is_taken_while_its_beats_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().to_str().unwrap()).unwrap();
        let alive = async |apart_ms| is_alive(&store, &Name::new("n1").unwrap(), Duration::from_millis(apart_ms)).await.unwrap();
        assert!(!alive(0).await, "nobody ever was");
        write(&store, &beat("n1", 1)).await.unwrap();
        assert!(!alive(0).await, "the last word of a dead node");
        let goes_on = async {
            for number in 2.. {
                write(&store, &beat("n1", number)).await.unwrap();
            }
        };
        tokio::select! {
            () = goes_on => unreachable!("it never ends"),
            alive = alive(100) => assert!(alive),
        }
    }

    #[test]
    fn hostile_bytes_are_no_beat() {
        let mut whole = postcard::to_extend(&beat("n1", 1), vec![VERSION]).unwrap();
        assert!(decode(&whole).is_some());
        for len in 0..whole.len() {
            assert_eq!(decode(&whole[..len]), None);
        }
        whole[0] = 9;
        assert_eq!(decode(&whole), None);
    }
}
