//! What is known of containers: the words of all sources, kept by container, and what of them was told.
//!
//! Asked on the way of every event, so nothing here waits: a container that is met first is read from the runtime's files, softly and
//! seldom (its cgroup comes before its description), and its id is said to the sources. What they answer is taken in by
//! [`Runtimes::learn`]. Bounded: beyond `containers_max` the longest unused are forgotten, and asked for again when they are met.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value};
use tokio::sync::mpsc;
use weir_config::{Glob, MetadataConfig};
use weir_schema::{Container, Text};

use crate::enrich::metadata::News;
pub use crate::enrich::metadata::description::Description;
use crate::enrich::metadata::description::Origin;
use crate::enrich::metadata::disk::Disk;

/// Descriptions by container id.
#[derive(Debug)]
pub struct Runtimes {
    disk: Disk,
    sources: Vec<mpsc::Sender<Text>>,
    labels: Vec<Glob>,
    max: usize,
    known: HashMap<Text, Known>,
    pods: HashMap<Text, (Arc<Description>, u64)>,
    /// Counts uses: what has the lowest was not used for the longest time.
    uses: u64,
}

/// One container.
#[derive(Debug, Default)]
struct Known {
    said: [Option<Arc<Description>>; Origin::COUNT],
    whole: Arc<Description>,
    /// By its cgroup's path.
    pod_uid: Option<Text>,
    /// Where it was met. Nothing: a source spoke of it, no event yet.
    cgroup: Option<Text>,
    told: Option<(Arc<Container>, Map<String, Value>)>,
    corrections: u32,
    tries_left: u32,
    asked_ns: u64,
    used: u64,
}

/// What is known too late for a container's first events.
#[derive(Debug, Clone, PartialEq)]
pub struct Correction {
    /// The columns.
    pub container: Arc<Container>,
    /// What has none.
    pub detail: Map<String, Value>,
}

impl Runtimes {
    /// Reads below `root` (`/`, or a folder of a test), and has no other source.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let MetadataConfig { labels, limits, .. } = MetadataConfig::default();
        let (known, pods) = (HashMap::new(), HashMap::new());
        Self { disk: Disk::new(root), sources: Vec::new(), labels, max: limits.containers_max, known, pods, uses: 0 }
    }

    /// The same with sources, to whom the ids that are met are said.
    pub fn with_sources(self, sources: Vec<mpsc::Sender<Text>>, config: &MetadataConfig) -> Self {
        Self { sources, labels: config.labels.clone(), max: config.limits.containers_max, ..self }
    }

    /// What is known now about container `id`, met in `cgroup` and by its path in the pod `pod_uid`; empty when nothing is.
    pub fn describe(&mut self, id: &Text, cgroup: Option<&Text>, pod_uid: Option<&Text>, now_ns: u64) -> Arc<Description> {
        self.uses += 1;
        let known = entry(&mut self.known, id, self.max);
        known.used = self.uses;
        let is_new = known.cgroup.is_none();
        if is_new {
            known.cgroup = Some(cgroup.cloned().unwrap_or_default());
            known.pod_uid = pod_uid.cloned();
            for source in &self.sources {
                if source.try_send(id.clone()).is_err() {
                    metrics::counter!(crate::metrics::METADATA_SKIPPED).increment(1);
                }
            }
        }
        let mut is_changed = is_new && known.pod_uid.is_some();
        if known.said[Origin::Disk as usize].is_none() && known.tries_left > 0 && (is_new || now_ns >= known.asked_ns + RETRY_NS)
        {
            (known.tries_left, known.asked_ns) = (known.tries_left - 1, now_ns);
            if let Some(found) = self.disk.read(id) {
                known.said[Origin::Disk as usize] = Some(Arc::new(found));
                is_changed = true;
            }
        }
        if is_changed {
            known.merge(&mut self.pods, self.uses);
        }
        known.whole.clone()
    }

    /// Takes in what a source says. Returns the containers that were met before and are known otherwise now.
    pub fn learn(&mut self, news: News, changed: &mut BTreeSet<Text>) {
        self.uses += 1;
        match news {
            News::Container { id, origin, description } => {
                let known = entry(&mut self.known, &id, self.max);
                known.used = self.uses;
                known.said[origin as usize] = Some(Arc::new(description));
                if known.merge(&mut self.pods, self.uses) && known.cgroup.is_some() {
                    changed.insert(id);
                }
            }
            News::Pod { uid, description } => {
                if self.pods.len() >= self.max && !self.pods.contains_key(&uid) {
                    evict(&mut self.pods, |(_, used)| *used);
                }
                self.pods.insert(uid.clone(), (Arc::new(description), self.uses));
                for (id, known) in &mut self.known {
                    if known.pod() == Some(&uid) && known.merge(&mut self.pods, self.uses) && known.cgroup.is_some() {
                        changed.insert(id.clone());
                    }
                }
            }
            News::Cloud(_) | News::State { .. } => {}
        }
    }

    /// The cgroup in which a container was met.
    pub fn cgroup(&self, id: &Text) -> Option<Text> {
        self.known.get(id)?.cgroup.clone().filter(|cgroup| !cgroup.is_empty())
    }

    /// Writes into `detail` what has no column, and remembers that it was told with `container`.
    pub fn tell(&mut self, id: &Text, container: &Arc<Container>, detail: &mut Map<String, Value>) {
        let Some(known) = self.known.get_mut(id) else { return };
        let mut told = Map::new();
        known.whole.tell(&self.labels, &mut told);
        detail.extend(told.clone());
        known.told = Some((container.clone(), told));
    }

    /// What is to be told of a container because it is known otherwise now. Nothing when the same was told already, or too much.
    pub fn correct(&mut self, id: &Text, container: &Arc<Container>) -> Option<Correction> {
        let known = self.known.get_mut(id)?;
        let mut detail = Map::new();
        known.whole.tell(&self.labels, &mut detail);
        if known.told.as_ref().is_some_and(|(told, told_detail)| told == container && *told_detail == detail) {
            return None;
        }
        if known.corrections >= CORRECTIONS_MAX {
            metrics::counter!(crate::metrics::METADATA_SKIPPED).increment(1);
            return None;
        }
        known.corrections += 1;
        known.told = Some((container.clone(), detail.clone()));
        Some(Correction { container: container.clone(), detail })
    }

    /// How many containers are remembered.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// True when none is.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

impl Known {
    /// The pod: by the cgroup, else by what a source said.
    fn pod(&self) -> Option<&Text> {
        self.pod_uid.as_ref().or(self.whole.pod_uid.as_ref())
    }

    /// Makes one description of all that was said. True when it is another one.
    fn merge(&mut self, pods: &mut HashMap<Text, (Arc<Description>, u64)>, used: u64) -> bool {
        let said = self.said.each_ref().map(Option::as_deref);
        let mut whole = Description::merged(&said, None);
        let uid = self.pod_uid.as_ref().or(whole.pod_uid.as_ref());
        if let Some((pod, pod_used)) = uid.and_then(|uid| pods.get_mut(uid)) {
            *pod_used = used;
            whole = Description::merged(&said, Some(pod));
        }
        let is_changed = *self.whole != whole;
        if is_changed {
            self.whole = Arc::new(whole);
        }
        is_changed
    }
}

/// The entry of a container, made when there is none.
fn entry<'a>(known: &'a mut HashMap<Text, Known>, id: &Text, max: usize) -> &'a mut Known {
    if known.len() >= max && !known.contains_key(id) {
        evict(known, |known| known.used);
    }
    known.entry(id.clone()).or_insert_with(|| Known { tries_left: TRIES_MAX, ..Known::default() })
}

/// Forgets the sixteenth part that was not used for the longest time: so it is seldom looked for.
fn evict<V>(map: &mut HashMap<Text, V>, used: impl Fn(&V) -> u64) {
    let mut all: Vec<u64> = map.values().map(&used).collect();
    let part = all.len() / 16;
    let (_, last, _) = all.select_nth_unstable(part);
    let last = *last;
    map.retain(|_, value| used(value) > last);
}

/// How often a missing file is looked for.
const TRIES_MAX: u32 = 5;
/// Pause between two looks.
const RETRY_NS: u64 = 1_000_000_000;
/// Corrections told of one container: an object whose labels change all the time is not worth more.
const CORRECTIONS_MAX: u32 = 64;

#[cfg(test)]
#[path = "runtime_tests.rs"]
mod tests;
