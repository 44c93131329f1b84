//! Where something runs: its cgroup path, its container and its application.
//!
//! One [`Container`] is shared by all processes of the same container and application. The application comes from the rules of the
//! config over label, image, unit, cgroup and exe; what no rule takes is `unassigned`.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use weir_config::{AppRule, AppSubject, app_of};
use weir_schema::{Container, Text};

use crate::enrich::cgroup::{Cgroup, Cgroups, Change, Mounts};
use crate::enrich::container::{Identity, identify};
use crate::enrich::metadata::News;
use crate::enrich::proc::cgroup_path;
use crate::enrich::runtime::{Correction, Description, Runtimes};

/// Cgroup path and container of one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Cgroup path.
    pub cgroup: Option<Text>,
    /// Container and application.
    pub container: Arc<Container>,
}

/// All that is known about places.
#[derive(Debug)]
pub struct Places {
    cgroups: Cgroups,
    rules: Vec<AppRule>,
    runtimes: Runtimes,
    containers: HashMap<(Option<Text>, Text), Arc<Container>>,
    apps: HashMap<String, Text>,
}

impl Places {
    /// Places over `mounts`, with the config's rules and what runtimes keep on disk.
    pub fn new(mounts: Mounts, rules: Vec<AppRule>, runtimes: Runtimes) -> Self {
        let cgroups = Cgroups::new(mounts);
        Self { cgroups, rules, runtimes, containers: HashMap::new(), apps: HashMap::new() }
    }

    /// The table of cgroups.
    pub fn cgroups(&mut self) -> &mut Cgroups {
        &mut self.cgroups
    }

    /// The table of cgroups, to read.
    pub fn cgroup_table(&self) -> &Cgroups {
        &self.cgroups
    }

    /// The place of a process by its kernel cgroup ids.
    pub fn of_ids(&mut self, v2_id: u64, v1_id: u64, exe: Option<&str>, now_ns: u64) -> Place {
        let found = self.cgroups.resolve(v2_id, v1_id, now_ns);
        self.place(found.map(|cgroup| (cgroup.path, cgroup.identity)), exe, now_ns)
    }

    /// The place of a process by the text of its `/proc/PID/cgroup`.
    pub fn of_text(&mut self, text: &str, exe: Option<&str>, now_ns: u64) -> Place {
        let v2 = cgroup_path(text, "").filter(|path| *path != "/");
        let v1 = ["memory", "pids", "cpuset"].iter().find_map(|name| cgroup_path(text, name)).filter(|path| *path != "/");
        let read = |path: &str| (Text::from(path), Arc::new(identify(path)));
        let (v2, v1) = (v2.map(read), v1.map(read));
        let is_container =
            |found: &Option<(Text, Arc<Identity>)>| found.as_ref().is_some_and(|(_, identity)| identity.container_id.is_some());
        let best = if is_container(&v2) || !is_container(&v1) { v2.or(v1) } else { v1 };
        self.place(best, exe, now_ns)
    }

    /// The container of a cgroup that starts or stops.
    pub fn of_change(&mut self, change: &Change, now_ns: u64) -> Place {
        let (Change::Started(cgroup) | Change::Stopped(cgroup)) = change;
        self.of_cgroup(cgroup, now_ns)
    }

    /// The container of a cgroup.
    pub fn of_cgroup(&mut self, cgroup: &Cgroup, now_ns: u64) -> Place {
        self.place(Some((cgroup.path.clone(), cgroup.identity.clone())), None, now_ns)
    }

    /// The container of a cgroup's path.
    pub fn of_path(&mut self, path: &Text, exe: Option<&str>, now_ns: u64) -> Place {
        self.place(Some((path.clone(), Arc::new(identify(path)))), exe, now_ns)
    }

    /// Takes in what sources say. Returns the containers that are known otherwise now.
    pub fn learn(&mut self, news: impl IntoIterator<Item = News>) -> BTreeSet<Text> {
        let mut changed = BTreeSet::new();
        news.into_iter().for_each(|news| self.runtimes.learn(news, &mut changed));
        changed
    }

    /// What is to be told of a container that is known otherwise now.
    pub fn correct(&mut self, id: &Text, now_ns: u64) -> Option<Correction> {
        let cgroup = self.runtimes.cgroup(id)?;
        let place = self.of_path(&cgroup, None, now_ns);
        self.runtimes.correct(id, &place.container)
    }

    /// What is known of containers.
    pub fn runtimes(&mut self) -> &mut Runtimes {
        &mut self.runtimes
    }

    /// Forgets the dead.
    pub fn expire(&mut self, now_ns: u64) {
        self.cgroups.expire(now_ns);
        if self.containers.len() > CONTAINERS_MAX {
            // Only sharing is lost: whoever holds one keeps it.
            self.containers.clear();
        }
    }

    fn place(&mut self, found: Option<(Text, Arc<Identity>)>, exe: Option<&str>, now_ns: u64) -> Place {
        let (cgroup, identity) = found.unzip();
        let identity = identity.unwrap_or_default();
        let description = match &identity.container_id {
            Some(id) => self.runtimes.describe(id, cgroup.as_ref(), identity.pod_uid.as_ref(), now_ns),
            None => Arc::new(Description::default()),
        };
        let labels: Vec<(&str, &str)> = description.labels.iter().map(|(name, value)| (&**name, &**value)).collect();
        let subject = AppSubject {
            labels: &labels,
            image: description.image.as_deref(),
            unit: identity.unit.as_deref(),
            cgroup: cgroup.as_deref(),
            exe,
        };
        let app = app_of(&self.rules, &subject);
        let app = match self.apps.get(app) {
            Some(app) => app.clone(),
            None => self.apps.entry(app.to_owned()).or_insert_with(|| app.into()).clone(),
        };
        let key = (identity.container_id.clone(), app.clone());
        let found = Container {
            app: Some(app),
            container_id: identity.container_id.clone(),
            container_name: description.name.clone(),
            image: description.image.clone(),
            namespace: description.namespace.clone(),
            pod: description.pod.clone(),
            workload: description.workload.clone(),
        };
        if let Some(container) = self.containers.get(&key)
            && **container == found
        {
            return Place { cgroup, container: container.clone() };
        }
        let container = Arc::new(found);
        self.containers.insert(key, container.clone());
        Place { cgroup, container }
    }
}

/// Shared containers held.
const CONTAINERS_MAX: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn rule(exe: Option<&str>, cgroup: Option<&str>, app: &str) -> AppRule {
        AppRule {
            label: None,
            image: None,
            unit: None,
            cgroup: cgroup.map(|glob| glob.parse().unwrap()),
            exe: exe.map(|glob| glob.parse().unwrap()),
            app: app.into(),
        }
    }

    fn places() -> Places {
        let rules = vec![rule(None, Some("/kubepods/*"), "shop"), rule(Some("*/nginx"), None, "web")];
        Places::new(Mounts::default(), rules, Runtimes::new("/nowhere"))
    }

    #[test]
    fn containers_are_shared_and_have_their_app() {
        let mut places = places();
        let text = format!("4:memory:/kubepods/burstable/pod1/{ID}\n0::/\n");
        let one = places.of_text(&text, Some("/a"), 0);
        let two = places.of_text(&text, Some("/b"), 0);
        assert!(Arc::ptr_eq(&one.container, &two.container));
        assert_eq!(one.container.app.as_deref(), Some("shop"));
        assert_eq!(one.container.container_id.as_deref(), Some(ID));
    }

    #[test]
    fn bare_processes_have_an_app_and_no_container() {
        let mut places = places();
        let bare = places.of_text("0::/\n", Some("/usr/sbin/nginx"), 0);
        assert_eq!((bare.container.app.as_deref(), bare.container.container_id.as_deref()), (Some("web"), None));
        assert_eq!(bare.cgroup, None);
        let unknown = places.of_ids(77, 78, None, 0);
        assert_eq!(unknown.container.app.as_deref(), Some("unassigned"));
    }

    #[test]
    fn ids_of_a_cgroup_seen_once() {
        let mut places = places();
        let path = format!("/docker/{ID}");
        places.cgroups().on_mkdir(crate::enrich::cgroup::Hierarchy::V2, 40, &path);
        let place = places.of_ids(40, 0, None, 0);
        assert_eq!((place.cgroup.as_deref(), place.container.container_id.as_deref()), (Some(&*path), Some(ID)));
    }
}
