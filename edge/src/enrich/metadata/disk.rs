//! What container runtimes keep on disk about a container. Read softly: what is not there or is broken says nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::description::{Description, labels, mounts, text};
use super::pod::workload_by_labels;

/// The files below a root: `/`, or a folder of a test.
#[derive(Debug)]
pub(crate) struct Disk {
    root: PathBuf,
}

impl Disk {
    pub(crate) fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// What is written about container `id` now.
    pub(crate) fn read(&self, id: &str) -> Option<Description> {
        let read = |path: String| json(&self.root.join(path));
        let folder = format!("var/lib/docker/containers/{id}");
        if let Some(mut found) = read(format!("{folder}/config.v2.json")).and_then(|value| docker(&value)) {
            let host = read(format!("{folder}/hostconfig.json"));
            found.privileged = host.and_then(|host| host.get("Privileged")?.as_bool());
            return Some(found);
        }
        // containerd's bundles and cri-o's both hold an OCI spec with the pod in its annotations.
        ["k8s.io", "default"]
            .iter()
            .map(|namespace| format!("run/containerd/io.containerd.runtime.v2.task/{namespace}/{id}/config.json"))
            .chain([format!("run/containers/storage/overlay-containers/{id}/userdata/config.json")])
            .find_map(|path| read(path).and_then(|value| oci(&value)))
    }
}

fn json(path: &Path) -> Option<Value> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn docker(value: &Value) -> Option<Description> {
    let config = value.get("Config")?;
    let labels = string_map(config.get("Labels"));
    let mut found =
        kubernetes(&labels, ["io.kubernetes.container.name", "io.kubernetes.pod.name", "io.kubernetes.pod.namespace"]);
    if found.name.is_none() {
        found.name = value.get("Name").and_then(Value::as_str).and_then(|name| text(name.trim_start_matches('/')));
    }
    found.image = config.get("Image").and_then(Value::as_str).and_then(text);
    found.image_id = value.get("Image").and_then(Value::as_str).and_then(text);
    let points = value.get("MountPoints").and_then(Value::as_object).into_iter().flatten();
    found.mounts = mounts(points.filter_map(|(target, point)| {
        let source = point.get("Source")?.as_str()?;
        Some((source, target.as_str(), !point.get("RW")?.as_bool()?))
    }));
    found.labels = labels;
    Some(found)
}

fn oci(value: &Value) -> Option<Description> {
    let mut labels = string_map(value.get("annotations"));
    let crio = labels.contains_key("io.kubernetes.cri-o.ContainerID");
    let mut found = if crio {
        kubernetes(&labels, ["io.kubernetes.container.name", "io.kubernetes.pod.name", "io.kubernetes.pod.namespace"])
    } else {
        let names = ["container-name", "sandbox-name", "sandbox-namespace"];
        kubernetes(&labels, names.map(|name| ["io.kubernetes.cri.", name].concat()).each_ref().map(String::as_str))
    };
    let first = |names: [&str; 2]| names.iter().find_map(|name| labels.get(*name)).and_then(|value| text(value));
    found.image = first(["io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName"]);
    found.pod_uid = first(["io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid"]);
    let all = value.get("mounts").and_then(Value::as_array).into_iter().flatten();
    found.mounts = mounts(all.filter(|mount| mount.get("type").and_then(Value::as_str) == Some("bind")).filter_map(|mount| {
        let options = mount.get("options").and_then(Value::as_array).into_iter().flatten();
        let read_only = options.into_iter().any(|option| option == "ro");
        Some((mount.get("source")?.as_str()?, mount.get("destination")?.as_str()?, read_only))
    }));
    // cri-o keeps the pod's labels as JSON inside one annotation.
    if let Some(nested) = labels.get("io.kubernetes.cri-o.Labels").and_then(|text| serde_json::from_str::<Value>(text).ok()) {
        labels.extend(string_map(Some(&nested)));
    }
    found.labels = labels;
    Some(found)
}

fn kubernetes(labels: &BTreeMap<String, String>, [name, pod, namespace]: [&str; 3]) -> Description {
    let known = |key: &str| labels.get(key).and_then(|value| text(value));
    let workload = labels.get(pod).and_then(|pod| workload_by_labels(pod, labels));
    let (workload_kind, workload) = workload.map(|(kind, name)| (text(kind), text(name))).unwrap_or_default();
    Description {
        name: known(name),
        pod: known(pod),
        namespace: known(namespace),
        workload: workload.or_else(|| known("app.kubernetes.io/name")),
        workload_kind,
        ..Description::default()
    }
}

fn string_map(value: Option<&Value>) -> BTreeMap<String, String> {
    let entries = value.and_then(Value::as_object).into_iter().flatten();
    labels(entries.filter_map(|(name, value)| Some((name.as_str(), value.as_str()?))))
}

/// Longest file read: a spec with a thousand mounts is below it.
const FILE_BYTES_MAX: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let file = root.join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }

    #[test]
    fn docker_and_containerd_describe_their_containers() {
        let root = tempfile::tempdir().unwrap();
        let folder = "var/lib/docker/containers/aa";
        write(
            root.path(),
            &format!("{folder}/config.v2.json"),
            r#"{"Name":"/web","Image":"sha256:1f","Config":{"Image":"nginx:1","Labels":{"app":"shop"}},
                "MountPoints":{"/data":{"Source":"/srv/data","RW":false}}}"#,
        );
        write(root.path(), &format!("{folder}/hostconfig.json"), r#"{"Privileged":true}"#);
        write(
            root.path(),
            "run/containerd/io.containerd.runtime.v2.task/k8s.io/bb/config.json",
            r#"{"annotations":{"io.kubernetes.cri.container-name":"c","io.kubernetes.cri.sandbox-name":"p",
                "io.kubernetes.cri.sandbox-namespace":"n","io.kubernetes.cri.image-name":"img:2",
                "io.kubernetes.cri.sandbox-uid":"u"},
                "mounts":[{"type":"proc","source":"proc","destination":"/proc"},
                {"type":"bind","source":"/etc","destination":"/host","options":["rbind","ro"]}]}"#,
        );
        let disk = Disk::new(root.path());
        let docker = disk.read("aa").unwrap();
        assert_eq!((docker.name.as_deref(), docker.image.as_deref()), (Some("web"), Some("nginx:1")));
        assert_eq!((docker.image_id.as_deref(), docker.privileged), (Some("sha256:1f"), Some(true)));
        assert_eq!(docker.mounts, mounts([("/srv/data", "/data", true)]));
        assert_eq!(docker.labels.get("app").map(String::as_str), Some("shop"));
        let pod = disk.read("bb").unwrap();
        let all = (pod.name.as_deref(), pod.pod.as_deref(), pod.namespace.as_deref(), pod.image.as_deref());
        assert_eq!(all, (Some("c"), Some("p"), Some("n"), Some("img:2")));
        assert_eq!((pod.pod_uid.as_deref(), pod.mounts), (Some("u"), mounts([("/etc", "/host", true)])));
        assert_eq!(disk.read("cc"), None);
    }

    #[test]
    fn broken_files_describe_nothing() {
        for text in
            ["null", "7", "[]", r#"{"Config":7}"#, r#"{"annotations":[1],"mounts":{"a":1}}"#, r#"{"Config":{"Labels":3}}"#]
        {
            let value: Value = serde_json::from_str(text).unwrap();
            assert!(docker(&value).is_none_or(|found| found == Description::default()), "{text}");
            assert!(oci(&value).is_none_or(|found| found == Description::default()), "{text}");
        }
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "var/lib/docker/containers/aa/config.v2.json", "{");
        assert_eq!(Disk::new(root.path()).read("aa"), None);
    }
}
