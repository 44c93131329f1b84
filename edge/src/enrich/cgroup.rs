//! The table of cgroups: kernel id → path and identity, for cgroup v2, v1 and both mounted at once (hybrid).
//!
//! Promise: what was seen once still resolves for minutes after its rmdir, so an event of a container that lived 50 ms finds its
//! name. The table is filled by a walk at start, by mkdir events before the first process joins, and on a miss by opening the
//! id as a file handle. Ids are unique per hierarchy only; v2's root has id 1 and means: ask v1.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weir_schema::Text;

use crate::enrich::container::{Identity, identify};
use crate::probe::system;

/// Which of the two hierarchies the collector names cgroups by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hierarchy {
    /// The unified hierarchy.
    V2,
    /// One v1 hierarchy: memory, else pids, else cpuset.
    V1,
}

/// One cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    /// Path below the hierarchy's mount, `/` at its root.
    pub path: Text,
    /// What the path says.
    pub identity: Arc<Identity>,
    /// When it was removed, in boot-clock nanoseconds.
    pub dead_ns: Option<u64>,
}

/// What a mkdir or rmdir means for containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The first cgroup of a container appeared.
    Started(Cgroup),
    /// The last cgroup of a container went.
    Stopped(Cgroup),
}

/// Where the hierarchies are mounted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mounts {
    /// The unified hierarchy.
    pub v2: Option<PathBuf>,
    /// v1 controllers by name.
    pub v1: HashMap<String, PathBuf>,
    /// The number of the v1 hierarchy that names cgroups, as `cgroup_mkdir` reports it.
    pub v1_number: Option<u32>,
}

impl Mounts {
    /// Finds the mounts in the text of `/proc/self/mountinfo` and `/proc/self/cgroup`.
    pub fn parse(mountinfo: &str, own_cgroups: &str) -> Self {
        let mut mounts = Self::default();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let (Some(point), Some(kind)) = (left.split(' ').nth(4), right.split(' ').next()) else { continue };
            let point = PathBuf::from(point.replace("\\040", " "));
            match kind {
                // The first mount wins: later ones are usually bind mounts inside containers.
                "cgroup2" => mounts.v2 = mounts.v2.or(Some(point)),
                "cgroup" => {
                    for controller in right.split(' ').nth(2).unwrap_or("").split(',') {
                        mounts.v1.entry(controller.to_owned()).or_insert_with(|| point.clone());
                    }
                }
                _ => {}
            }
        }
        let naming = NAMING_CONTROLLERS.iter().find(|name| mounts.v1.contains_key(**name));
        mounts.v1_number = naming.and_then(|name| {
            own_cgroups.lines().find_map(|line| {
                let mut parts = line.splitn(3, ':');
                let number = parts.next()?.parse().ok()?;
                parts.next()?.split(',').any(|controller| controller == *name).then_some(number)
            })
        });
        mounts
    }

    /// Reads the mounts of this process. Nothing mounted is no error: then every path stays unknown.
    pub fn read() -> Self {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        Self::parse(&text("/proc/self/mountinfo"), &text("/proc/self/cgroup"))
    }

    /// Only what is mounted below `root`: a container may see the host's hierarchies beside its own.
    pub fn below(mut self, root: &Path) -> Self {
        self.v2 = self.v2.filter(|point| point.starts_with(root));
        self.v1.retain(|_, point| point.starts_with(root));
        self
    }

    /// Directory of the hierarchy that names cgroups.
    pub fn root(&self, hierarchy: Hierarchy) -> Option<&Path> {
        match hierarchy {
            Hierarchy::V2 => self.v2.as_deref(),
            Hierarchy::V1 => NAMING_CONTROLLERS.iter().find_map(|name| self.v1.get(*name)).map(PathBuf::as_path),
        }
    }

    /// The hierarchy of a number in a `cgroup_mkdir` event; other v1 hierarchies are of no interest.
    pub fn hierarchy(&self, number: u32) -> Option<Hierarchy> {
        match number {
            0 => Some(Hierarchy::V2),
            _ if self.v1_number == Some(number) => Some(Hierarchy::V1),
            _ => None,
        }
    }
}

/// The table.
#[derive(Debug)]
pub struct Cgroups {
    mounts: Mounts,
    table: HashMap<(Hierarchy, u64), Cgroup>,
    /// Removed cgroups in order of removal, to be forgotten when their time is over.
    dead: VecDeque<(u64, (Hierarchy, u64))>,
    /// Live cgroups per container: a hybrid host makes one in each hierarchy.
    alive: HashMap<Text, u32>,
    /// Ids that could not be opened and until when nobody asks again.
    unknown: HashMap<(Hierarchy, u64), u64>,
}

impl Cgroups {
    /// An empty table over `mounts`.
    pub fn new(mounts: Mounts) -> Self {
        Self { mounts, table: HashMap::new(), dead: VecDeque::new(), alive: HashMap::new(), unknown: HashMap::new() }
    }

    /// Walks both hierarchies and returns the containers that already run.
    pub fn walk(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        for hierarchy in [Hierarchy::V2, Hierarchy::V1] {
            let Some(root) = self.mounts.root(hierarchy).map(Path::to_path_buf) else { continue };
            let mut todo = vec![(root.clone(), 0)];
            while let Some((directory, depth)) = todo.pop() {
                if self.table.len() >= CGROUPS_MAX {
                    tracing::warn!(cgroups = CGROUPS_MAX, "more cgroups than the table holds: the rest resolves on demand");
                    return changes;
                }
                if let Ok(meta) = fs::metadata(&directory) {
                    let path = below(&root, &directory);
                    changes.extend(self.on_mkdir(hierarchy, meta.ino(), &path));
                }
                if depth < DEPTH_MAX
                    && let Ok(entries) = fs::read_dir(&directory)
                {
                    let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
                    todo.extend(folders.map(|entry| (entry.path(), depth + 1)));
                }
            }
        }
        changes
    }

    /// A cgroup was made. A second report of the same one changes nothing.
    pub fn on_mkdir(&mut self, hierarchy: Hierarchy, id: u64, path: &str) -> Option<Change> {
        let key = (hierarchy, id);
        self.unknown.remove(&key);
        if self.table.get(&key).is_some_and(|known| known.dead_ns.is_none() && &*known.path == path) {
            return None;
        }
        let identity = Arc::new(identify(path));
        let cgroup = Cgroup { path: path.into(), identity, dead_ns: None };
        if self.table.len() < CGROUPS_MAX {
            self.table.insert(key, cgroup.clone());
        } else {
            metrics::counter!(crate::metrics::CGROUPS_REFUSED).increment(1);
        }
        let container = cgroup.identity.container_id.clone().filter(|_| cgroup.identity.is_container)?;
        let alive = self.alive.entry(container).or_insert(0);
        *alive += 1;
        (*alive == 1).then_some(Change::Started(cgroup))
    }

    /// A cgroup was removed; it resolves for a while yet.
    pub fn on_rmdir(&mut self, hierarchy: Hierarchy, id: u64, path: &str, now_ns: u64) -> Option<Change> {
        let key = (hierarchy, id);
        if !self.table.contains_key(&key) {
            // Made before we looked and gone before we resolved it: its path is still worth keeping.
            self.on_mkdir(hierarchy, id, path);
        }
        let cgroup = self.table.get_mut(&key).filter(|cgroup| cgroup.dead_ns.is_none())?;
        cgroup.dead_ns = Some(now_ns);
        let cgroup = cgroup.clone();
        self.dead.push_back((now_ns, key));
        let container = cgroup.identity.container_id.clone().filter(|_| cgroup.identity.is_container)?;
        let alive = self.alive.get_mut(&container)?;
        *alive = alive.saturating_sub(1);
        if *alive > 0 {
            return None;
        }
        self.alive.remove(&container);
        Some(Change::Stopped(cgroup))
    }

    /// The cgroup that names a task best: one that is a container, else v2's unless that is the root, else v1's.
    pub fn resolve(&mut self, v2_id: u64, v1_id: u64, now_ns: u64) -> Option<Cgroup> {
        let v2 = if v2_id > V2_ROOT_ID { self.lookup(Hierarchy::V2, v2_id, now_ns) } else { None };
        if v2.as_ref().is_some_and(|cgroup| cgroup.identity.container_id.is_some()) || v1_id == 0 {
            return v2;
        }
        // Without a v1 memory hierarchy the second id is v2's as well.
        let hierarchy = if self.mounts.root(Hierarchy::V1).is_some() { Hierarchy::V1 } else { Hierarchy::V2 };
        let v1 = self.lookup(hierarchy, v1_id, now_ns);
        match (v2, v1) {
            (Some(_), Some(v1)) if v1.identity.container_id.is_some() => Some(v1),
            (Some(v2), _) => Some(v2),
            (None, v1) => v1,
        }
    }

    /// Live containers with their paths, one entry per container and hierarchy.
    pub fn containers(&self) -> impl Iterator<Item = (Hierarchy, &Cgroup)> {
        self.table
            .iter()
            .filter(|(_, cgroup)| cgroup.dead_ns.is_none() && cgroup.identity.is_container)
            .map(|((hierarchy, _), cgroup)| (*hierarchy, cgroup))
    }

    /// Where the hierarchies are mounted.
    pub fn mounts(&self) -> &Mounts {
        &self.mounts
    }

    /// Forgets what has been dead long enough, and more when too many are dead.
    pub fn expire(&mut self, now_ns: u64) {
        while let Some(&(dead_ns, key)) = self.dead.front() {
            if self.dead.len() <= DEAD_MAX && now_ns.saturating_sub(dead_ns) < DEAD_KEPT_NS {
                break;
            }
            self.dead.pop_front();
            // The id may live again under the same key: kernfs reuses none, but a restart of the walk may have seen it.
            if self.table.get(&key).is_some_and(|cgroup| cgroup.dead_ns == Some(dead_ns)) {
                self.table.remove(&key);
            }
        }
        self.unknown.retain(|_, until_ns| *until_ns > now_ns);
    }

    fn lookup(&mut self, hierarchy: Hierarchy, id: u64, now_ns: u64) -> Option<Cgroup> {
        let key = (hierarchy, id);
        if let Some(cgroup) = self.table.get(&key) {
            return Some(cgroup.clone());
        }
        if self.unknown.get(&key).is_some_and(|until_ns| *until_ns > now_ns) {
            return None;
        }
        let root = self.mounts.root(hierarchy)?.to_path_buf();
        match system::cgroup_directory(&root, id) {
            Some(directory) => {
                // Seen first through an event: its start was missed, so no start is told.
                self.on_mkdir(hierarchy, id, &below(&root, &directory));
                self.table.get(&key).cloned()
            }
            None => {
                if self.unknown.len() < DEAD_MAX {
                    self.unknown.insert(key, now_ns + UNKNOWN_KEPT_NS);
                }
                None
            }
        }
    }
}

fn below(root: &Path, directory: &Path) -> String {
    let rest = directory.strip_prefix(root).unwrap_or(directory).to_string_lossy();
    format!("/{}", rest.trim_start_matches('/'))
}

/// v1 hierarchies that can name a cgroup, best first: runtimes always make a memory cgroup.
const NAMING_CONTROLLERS: [&str; 3] = ["memory", "pids", "cpuset"];
/// Id of v2's root directory.
pub(crate) const V2_ROOT_ID: u64 = 1;
/// Cgroups held: a large host has a few thousand; beyond it new ones resolve on demand only.
const CGROUPS_MAX: usize = 32_768;
/// Dead cgroups held.
const DEAD_MAX: usize = 8_192;
/// A dead cgroup resolves for five minutes.
const DEAD_KEPT_NS: u64 = 300_000_000_000;
/// An id that could not be opened is asked for again after ten seconds.
const UNKNOWN_KEPT_NS: u64 = 10_000_000_000;
/// Deepest folder the walk enters.
const DEPTH_MAX: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
25 20 0:22 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
26 25 0:23 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
29 25 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
34 25 0:31 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const OWN: &str = "9:name=systemd:/\n4:memory:/process_api/x\n1:cpu:/\n0::/\n";

    fn kubepod(id: char) -> String {
        let id: String = std::iter::repeat_n(id, 64).collect();
        format!("/kubepods/burstable/pod2c48913c-b29f-11e7-9350-020968147796/{id}")
    }

    #[test]
    fn mounts_of_a_hybrid_host() {
        let mounts = Mounts::parse(HYBRID, OWN);
        assert_eq!(mounts.root(Hierarchy::V2), Some(Path::new("/sys/fs/cgroup/unified")));
        assert_eq!(mounts.root(Hierarchy::V1), Some(Path::new("/sys/fs/cgroup/memory")));
        assert_eq!(mounts.hierarchy(4), Some(Hierarchy::V1));
        assert_eq!(mounts.hierarchy(0), Some(Hierarchy::V2));
        assert_eq!(mounts.hierarchy(1), None);
    }

    #[test]
    fn mounts_of_a_unified_and_of_no_host() {
        let unified = Mounts::parse("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n", "0::/\n");
        assert_eq!(unified.root(Hierarchy::V2), Some(Path::new("/sys/fs/cgroup")));
        assert_eq!(unified.root(Hierarchy::V1), None);
        assert_eq!(Mounts::parse("garbage", ""), Mounts::default());
    }

    #[test]
    fn a_container_starts_once_and_stops_once_on_a_hybrid_host() {
        let mut table = Cgroups::new(Mounts::default());
        let path = kubepod('a');
        assert!(matches!(table.on_mkdir(Hierarchy::V2, 10, &path), Some(Change::Started(_))));
        assert_eq!(table.on_mkdir(Hierarchy::V2, 10, &path), None);
        assert_eq!(table.on_mkdir(Hierarchy::V1, 20, &path), None);
        assert_eq!(table.on_mkdir(Hierarchy::V1, 21, &format!("{path}/leaf")), None);
        assert_eq!(table.on_rmdir(Hierarchy::V1, 20, &path, 5), None);
        assert!(matches!(table.on_rmdir(Hierarchy::V2, 10, &path, 6), Some(Change::Stopped(_))));
        assert_eq!(table.on_rmdir(Hierarchy::V2, 10, &path, 7), None);
    }

    #[test]
    fn the_dead_resolve_for_minutes() {
        let mut table = Cgroups::new(Mounts::default());
        let path = kubepod('b');
        table.on_mkdir(Hierarchy::V2, 10, &path);
        table.on_rmdir(Hierarchy::V2, 10, &path, 1);
        table.expire(DEAD_KEPT_NS);
        let found = table.resolve(10, 0, DEAD_KEPT_NS).unwrap();
        assert_eq!(&*found.path, path);
        table.expire(DEAD_KEPT_NS + 1);
        assert_eq!(table.resolve(10, 0, DEAD_KEPT_NS + 1), None);
    }

    #[test]
    fn a_container_wins_over_a_path_and_a_path_over_the_root() {
        let mut table = Cgroups::new(Mounts { v1: HashMap::from([("memory".into(), "/none".into())]), ..Mounts::default() });
        table.on_mkdir(Hierarchy::V2, 2, "/system.slice/x.service");
        table.on_mkdir(Hierarchy::V1, 3, &kubepod('c'));
        table.on_mkdir(Hierarchy::V1, 4, "/other");
        let path = |table: &mut Cgroups, v2, v1| table.resolve(v2, v1, 0).map(|cgroup| cgroup.path.to_string());
        assert_eq!(path(&mut table, 2, 3), Some(kubepod('c')));
        assert_eq!(path(&mut table, 2, 4), Some("/system.slice/x.service".into()));
        assert_eq!(path(&mut table, 1, 4), Some("/other".into()));
        assert_eq!(path(&mut table, 1, 0), None);
    }

    #[test]
    fn the_number_of_dead_is_bounded() {
        let mut table = Cgroups::new(Mounts::default());
        for id in 0..(DEAD_MAX as u64 + 100) {
            table.on_mkdir(Hierarchy::V2, 10 + id, "/x");
            table.on_rmdir(Hierarchy::V2, 10 + id, "/x", id);
        }
        table.expire(1);
        assert_eq!(table.table.len(), DEAD_MAX);
    }
}
