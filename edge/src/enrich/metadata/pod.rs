//! What a pod of the Kubernetes API says, and which workload it belongs to. Pure: JSON in, descriptions out.
//!
//! The workload is the first controller above the pod that people name: of a ReplicaSet that a Deployment made (its name ends with the
//! pod's `pod-template-hash`) the Deployment, of a Job that a CronJob made (its name ends with the scheduled minute) the CronJob, else
//! the controller itself. Only names are looked at: the objects above the pod are not asked for, so no right to read them is needed.

use std::collections::BTreeMap;

use serde::Deserialize;
use weir_schema::Text;

use super::description::{Description, digest, is_plain_id, labels, text};

/// A pod, as far as it is read.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Pod {
    pub(crate) metadata: Meta,
    spec: Spec,
    status: Status,
}

/// Its names.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Meta {
    name: String,
    namespace: String,
    uid: String,
    pub(crate) resource_version: String,
    labels: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<Owner>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Owner {
    kind: String,
    name: String,
    controller: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    node_name: Option<String>,
    containers: Option<Vec<Container>>,
    init_containers: Option<Vec<Container>>,
    ephemeral_containers: Option<Vec<Container>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Container {
    name: String,
    image: Option<String>,
    security_context: Option<Security>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Security {
    privileged: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    container_statuses: Option<Vec<State>>,
    init_container_statuses: Option<Vec<State>>,
    ephemeral_container_statuses: Option<Vec<State>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct State {
    name: String,
    image: Option<String>,
    #[serde(rename = "containerID")]
    container_id: Option<String>,
    #[serde(rename = "imageID")]
    image_id: Option<String>,
}

impl Pod {
    /// Its uid.
    pub(crate) fn uid(&self) -> Option<Text> {
        text(&self.metadata.uid).filter(|uid| is_plain_id(uid))
    }

    /// False of a pod that another node runs, or that none runs yet.
    pub(crate) fn is_on(&self, node: &str) -> bool {
        self.spec.node_name.as_deref() == Some(node)
    }

    /// What holds for all of its containers.
    pub(crate) fn description(&self) -> Description {
        let meta = &self.metadata;
        let all = meta.labels.iter().flatten().map(|(name, value)| (name.as_str(), value.as_str()));
        let workload = self.workload();
        Description {
            namespace: text(&meta.namespace),
            pod: text(&meta.name),
            pod_uid: self.uid(),
            workload: workload.and_then(|(_, name)| text(name)),
            workload_kind: workload.and_then(|(kind, _)| text(kind)),
            labels: labels(all),
            ..Description::default()
        }
    }

    /// Its containers that have an id by now.
    pub(crate) fn containers(&self) -> Vec<(Text, Description)> {
        let (status, spec) = (&self.status, &self.spec);
        let states = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
        let specs = || [&spec.containers, &spec.init_containers, &spec.ephemeral_containers].into_iter().flatten().flatten();
        let pod = self.description();
        let states = states.into_iter().flatten().flatten().take(CONTAINERS_MAX);
        let described = states.filter_map(|state| {
            // `containerd://<id>`, `cri-o://<id>`, `docker://<id>`.
            let id = state.container_id.as_deref()?.rsplit("://").next().filter(|id| is_plain_id(id))?;
            let asked = specs().find(|container| container.name == state.name);
            let image = asked.and_then(|asked| asked.image.as_deref()).or(state.image.as_deref());
            let security = asked.and_then(|asked| asked.security_context.as_ref());
            let description = Description {
                name: text(&state.name),
                image: image.and_then(text),
                digest: state.image_id.as_deref().and_then(digest),
                // Kubernetes leaves out what is not asked for.
                privileged: asked.map(|_| security.and_then(|security| security.privileged).unwrap_or(false)),
                ..pod.clone()
            };
            Some((id.into(), description))
        });
        described.collect()
    }

    /// Kind and name.
    fn workload(&self) -> Option<(&str, &str)> {
        let owners = || self.metadata.owner_references.iter().flatten();
        let owner = owners().find(|owner| owner.controller == Some(true)).or_else(|| owners().next())?;
        let label = |name: &str| self.metadata.labels.as_ref()?.get(name).map(String::as_str);
        match owner.kind.as_str() {
            // A static pod: the node is its owner, nobody's workload.
            "Node" => None,
            "ReplicaSet" => Some(of_replica_set(&owner.name, label("pod-template-hash"))),
            "Job" => Some(of_job(&owner.name)),
            kind => Some((kind, &owner.name)),
        }
    }
}

/// The workload by the labels that Kubernetes' own controllers put on pods, where its API is not asked: kind and name.
pub(crate) fn workload_by_labels<'a>(pod: &'a str, labels: &'a BTreeMap<String, String>) -> Option<(&'static str, &'a str)> {
    let label = |name: &str| labels.get(name).map(String::as_str);
    if let Some(hash) = label("pod-template-hash") {
        // `<deployment>-<hash>-<five letters>`.
        let replica_set = pod.rsplit_once('-')?.0;
        return replica_set.strip_suffix(hash)?.strip_suffix('-').map(|name| ("Deployment", name));
    }
    if let Some(job) = label("batch.kubernetes.io/job-name").or_else(|| label("job-name")) {
        return Some(of_job(job));
    }
    if label("statefulset.kubernetes.io/pod-name") == Some(pod) {
        return pod.rsplit_once('-').map(|(name, _)| ("StatefulSet", name));
    }
    // A DaemonSet's pods have a revision and five letters, and no number of their own.
    label("controller-revision-hash")?;
    pod.rsplit_once('-').filter(|(_, end)| end.len() == 5).map(|(name, _)| ("DaemonSet", name))
}

fn of_replica_set<'a>(name: &'a str, hash: Option<&str>) -> (&'static str, &'a str) {
    let deployment = hash.and_then(|hash| name.strip_suffix(hash)?.strip_suffix('-')).filter(|name| !name.is_empty());
    deployment.map_or(("ReplicaSet", name), |name| ("Deployment", name))
}

/// A CronJob's controller names its jobs by the minute since 1970, which has eight digits from 1989 to 2160.
fn of_job(name: &str) -> (&'static str, &str) {
    match name.rsplit_once('-') {
        Some((cron, minute)) if !cron.is_empty() && minute.len() == 8 && minute.bytes().all(|b| b.is_ascii_digit()) => {
            ("CronJob", cron)
        }
        _ => ("Job", name),
    }
}

/// Containers of one pod that are looked at.
const CONTAINERS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(owner: &str, labels: &str) -> Pod {
        let text = format!(
            r#"{{"metadata":{{"name":"p","namespace":"n","uid":"u","labels":{labels},"ownerReferences":[{owner}]}},"spec":{{}}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn workloads_by_their_owners() {
        for (owner, labels, expected) in [
            (r#"{"kind":"ReplicaSet","name":"web-5d9","controller":true}"#, r#"{"pod-template-hash":"5d9"}"#, "Deployment web"),
            (r#"{"kind":"ReplicaSet","name":"web-5d9"}"#, "null", "ReplicaSet web-5d9"),
            (r#"{"kind":"ReplicaSet","name":"-5d9"}"#, r#"{"pod-template-hash":"5d9"}"#, "ReplicaSet -5d9"),
            (r#"{"kind":"Job","name":"nightly-28012345"}"#, "{}", "CronJob nightly"),
            (r#"{"kind":"Job","name":"migrate-7"}"#, "{}", "Job migrate-7"),
            (r#"{"kind":"StatefulSet","name":"db"}"#, "{}", "StatefulSet db"),
            (r#"{"kind":"DaemonSet","name":"agent"}"#, "{}", "DaemonSet agent"),
            (r#"{"kind":"Rollout","name":"x"},{"kind":"ReplicaSet","name":"y","controller":true}"#, "{}", "ReplicaSet y"),
            (r#"{"kind":"Node","name":"n1"}"#, "{}", "-"),
            ("", "{}", "-"),
        ] {
            let pod = owned(owner, labels);
            let found = pod.workload().map_or_else(|| "-".to_owned(), |(kind, name)| format!("{kind} {name}"));
            assert_eq!(found, expected, "{owner}");
        }
    }

    #[test]
    fn workloads_by_labels_alone() {
        for (pod, label, expected) in [
            ("web-5d9-abcde", ("pod-template-hash", "5d9"), Some(("Deployment", "web"))),
            ("other", ("pod-template-hash", "5d9"), None),
            ("nightly-28012345-xx", ("job-name", "nightly-28012345"), Some(("CronJob", "nightly"))),
            ("db-0", ("statefulset.kubernetes.io/pod-name", "db-0"), Some(("StatefulSet", "db"))),
            ("agent-x7k2p", ("controller-revision-hash", "6f"), Some(("DaemonSet", "agent"))),
            ("plain", ("app", "x"), None),
        ] {
            let labels = [(label.0.to_owned(), label.1.to_owned())].into();
            assert_eq!(workload_by_labels(pod, &labels), expected, "{pod}");
        }
    }

    #[test]
    fn containers_of_all_sorts_have_their_ids() {
        let pod: Pod = serde_json::from_str(
            r#"{"metadata":{"name":"web-0","namespace":"shop","uid":"u-1","labels":{"app":"web"}},
            "spec":{"nodeName":"n1","containers":[{"name":"web","image":"nginx:1","securityContext":{"privileged":true}}],
                    "initContainers":[{"name":"init","image":"busybox"}]},
            "status":{"containerStatuses":[{"name":"web","containerID":"containerd://aa","image":"docker.io/library/nginx:1",
                        "imageID":"docker.io/library/nginx@sha256:11"},{"name":"late","containerID":""},{"name":"x"}],
                      "initContainerStatuses":[{"name":"init","containerID":"cri-o://bb"}],
                      "ephemeralContainerStatuses":[{"name":"debug","containerID":"docker://../etc","image":"i"}]}}"#,
        )
        .unwrap();
        assert!(pod.is_on("n1") && !pod.is_on("n2"));
        let containers = pod.containers();
        assert_eq!(containers.iter().map(|(id, _)| &**id).collect::<Vec<_>>(), ["aa", "bb"]);
        let web = &containers[0].1;
        assert_eq!((web.name.as_deref(), web.image.as_deref(), web.privileged), (Some("web"), Some("nginx:1"), Some(true)));
        assert_eq!((web.digest.as_deref(), web.pod.as_deref()), (Some("sha256:11"), Some("web-0")));
        assert_eq!(containers[1].1.privileged, Some(false));
    }
}
