//! What container runtimes keep on disk about a container: name, image, pod, labels.
//!
//! Read softly and seldom: a file that is not there yet (a container's cgroup comes before its description) is asked for again
//! a few times, then never. No socket of a runtime is opened.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use weir_schema::Text;

/// What is known about a container beside its id.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Description {
    /// Name.
    pub name: Option<Text>,
    /// Image reference.
    pub image: Option<Text>,
    /// Kubernetes namespace.
    pub namespace: Option<Text>,
    /// Kubernetes pod.
    pub pod: Option<Text>,
    /// Kubernetes workload, where a label tells it.
    pub workload: Option<Text>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// Descriptions by container id.
#[derive(Debug)]
pub struct Runtimes {
    root: PathBuf,
    known: HashMap<Text, Known>,
}

#[derive(Debug)]
struct Known {
    description: Arc<Description>,
    tries_left: u32,
    asked_ns: u64,
}

impl Runtimes {
    /// Reads below `root`: `/`, or a folder of a test.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), known: HashMap::new() }
    }

    /// What is known now about container `id`; empty when nothing is.
    pub fn describe(&mut self, id: &Text, now_ns: u64) -> Arc<Description> {
        if let Some(known) = self.known.get(id)
            && (known.tries_left == 0 || now_ns < known.asked_ns + RETRY_NS)
        {
            return known.description.clone();
        }
        let tries_left = self.known.get(id).map_or(TRIES_MAX, |known| known.tries_left) - 1;
        let found = self.read(id);
        let tries_left = if found.is_some() { 0 } else { tries_left };
        let description = Arc::new(found.unwrap_or_default());
        if self.known.len() < KNOWN_MAX {
            let known = Known { description: description.clone(), tries_left, asked_ns: now_ns };
            self.known.insert(id.clone(), known);
        }
        description
    }

    /// Forgets what nobody asked for lately.
    pub fn expire(&mut self, _now_ns: u64) {
        if self.known.len() >= KNOWN_MAX {
            self.known.clear();
        }
    }

    fn read(&self, id: &str) -> Option<Description> {
        let text = |path: String| fs::read_to_string(self.root.join(path)).ok();
        if let Some(found) = text(format!("var/lib/docker/containers/{id}/config.v2.json")).and_then(|text| docker(&text)) {
            return Some(found);
        }
        // containerd's bundles and cri-o's both hold an OCI spec with the pod in its annotations.
        ["k8s.io", "default"]
            .iter()
            .map(|namespace| format!("run/containerd/io.containerd.runtime.v2.task/{namespace}/{id}/config.json"))
            .chain([format!("run/containers/storage/overlay-containers/{id}/userdata/config.json")])
            .find_map(|path| text(path).and_then(|text| oci(&text)))
    }
}

fn docker(text: &str) -> Option<Description> {
    let value: Value = serde_json::from_str(text).ok()?;
    let config = value.get("Config")?;
    let labels = string_map(config.get("Labels"));
    let mut found =
        kubernetes(&labels, ["io.kubernetes.container.name", "io.kubernetes.pod.name", "io.kubernetes.pod.namespace"]);
    if found.name.is_none() {
        found.name = value.get("Name").and_then(Value::as_str).map(|name| name.trim_start_matches('/').into());
    }
    found.image = config.get("Image").and_then(Value::as_str).map(Text::from);
    found.labels = labels;
    Some(found)
}

fn oci(text: &str) -> Option<Description> {
    let value: Value = serde_json::from_str(text).ok()?;
    let mut labels = string_map(value.get("annotations"));
    let crio = labels.contains_key("io.kubernetes.cri-o.ContainerID");
    let mut found = if crio {
        kubernetes(&labels, ["io.kubernetes.container.name", "io.kubernetes.pod.name", "io.kubernetes.pod.namespace"])
    } else {
        let names = ["container-name", "sandbox-name", "sandbox-namespace"];
        kubernetes(&labels, names.map(|name| ["io.kubernetes.cri.", name].concat()).each_ref().map(String::as_str))
    };
    let image = ["io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName"];
    found.image = image.iter().find_map(|name| labels.get(*name)).map(|image| image.as_str().into());
    // cri-o keeps the pod's labels as JSON inside one annotation.
    if let Some(nested) = labels.get("io.kubernetes.cri-o.Labels").and_then(|text| serde_json::from_str::<Value>(text).ok()) {
        labels.extend(string_map(Some(&nested)));
    }
    found.labels = labels;
    Some(found)
}

fn kubernetes(labels: &BTreeMap<String, String>, [name, pod, namespace]: [&str; 3]) -> Description {
    let text = |key: &str| labels.get(key).map(|value| Text::from(value.as_str()));
    Description {
        name: text(name),
        pod: text(pod),
        namespace: text(namespace),
        workload: text("app.kubernetes.io/name"),
        ..Description::default()
    }
}

fn string_map(value: Option<&Value>) -> BTreeMap<String, String> {
    let entries = value.and_then(Value::as_object).into_iter().flatten();
    entries.take(LABELS_MAX).filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}

/// Labels kept of one container.
const LABELS_MAX: usize = 64;
/// Containers remembered.
const KNOWN_MAX: usize = 8_192;
/// How often a missing description is asked for.
const TRIES_MAX: u32 = 5;
/// Pause between two tries.
const RETRY_NS: u64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &std::path::Path, path: &str, text: &str) {
        let file = root.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    #[test]
    fn docker_and_containerd_describe_their_containers() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            "var/lib/docker/containers/aa/config.v2.json",
            r#"{"Name":"/web","Config":{"Image":"nginx:1","Labels":{"app":"shop"}}}"#,
        );
        write(
            root.path(),
            "run/containerd/io.containerd.runtime.v2.task/k8s.io/bb/config.json",
            r#"{"annotations":{"io.kubernetes.cri.container-name":"c","io.kubernetes.cri.sandbox-name":"p",
                "io.kubernetes.cri.sandbox-namespace":"n","io.kubernetes.cri.image-name":"img:2"}}"#,
        );
        let mut runtimes = Runtimes::new(root.path());
        let docker = runtimes.describe(&"aa".into(), 0);
        assert_eq!((docker.name.as_deref(), docker.image.as_deref()), (Some("web"), Some("nginx:1")));
        assert_eq!(docker.labels.get("app").map(String::as_str), Some("shop"));
        let pod = runtimes.describe(&"bb".into(), 0);
        let all = (pod.name.as_deref(), pod.pod.as_deref(), pod.namespace.as_deref(), pod.image.as_deref());
        assert_eq!(all, (Some("c"), Some("p"), Some("n"), Some("img:2")));
    }

    #[test]
    fn a_late_description_is_found() {
        let root = tempfile::tempdir().unwrap();
        let mut runtimes = Runtimes::new(root.path());
        let id: Text = "cc".into();
        assert_eq!(*runtimes.describe(&id, 0), Description::default());
        write(root.path(), "var/lib/docker/containers/cc/config.v2.json", r#"{"Config":{"Image":"late"}}"#);
        assert_eq!(runtimes.describe(&id, 1).image, None);
        assert_eq!(runtimes.describe(&id, RETRY_NS).image.as_deref(), Some("late"));
    }

    #[test]
    fn broken_files_describe_nothing() {
        for text in ["", "{", "[]", r#"{"Config":7}"#, r#"{"annotations":[1]}"#] {
            assert!(docker(text).is_none_or(|found| found == Description::default()));
            assert!(oci(text).is_none_or(|found| found == Description::default()));
        }
    }
}
