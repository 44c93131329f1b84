//! Docker, and Podman's socket that speaks the same, by the Docker Engine API: HTTP over a Unix socket.
//!
//! Paths without a version: the engine answers in its newest one, and the fields that are read are in all of them. The digest is not
//! the container's but its image's (`RepoDigests`), asked for once per image.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use hyper::Request;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use weir_config::MetadataLimits;
use weir_schema::Text;

use super::description::{Description, Origin, digest, is_plain_id, labels, mounts, text};
use super::failure::Failure;
use super::http::{Address, Service};
use super::pod::workload_by_labels;
use super::source::{Notice, Runtime};

/// An engine behind its socket.
#[derive(Debug)]
pub(crate) struct Docker {
    service: Service,
    /// Digests by image id.
    digests: Mutex<HashMap<Text, Option<Text>>>,
}

impl Docker {
    pub(crate) fn new(socket: &Path, limits: &MetadataLimits) -> Self {
        let service = Service {
            address: Address::Unix(socket.to_owned()),
            timeout: Duration::from_millis(limits.request_timeout_ms),
            bytes_max: limits.answer_bytes_max,
        };
        Self { service, digests: Mutex::default() }
    }

    async fn get<T: DeserializeOwned>(&self, what: &'static str, path: &str) -> Result<T, Failure> {
        let body = self.service.ask(request(path)?).await?.success()?;
        serde_json::from_slice(&body).map_err(|error| Failure::broken(what, error))
    }

    /// The digest of an image; nothing when it was built here, or cannot be asked for.
    async fn digest(&self, image: &Text) -> Option<Text> {
        if let Some(known) = self.digests.lock().expect("no holder panics").get(image) {
            return known.clone();
        }
        if !image.bytes().all(|b| b.is_ascii_alphanumeric() || b == b':') {
            return None;
        }
        let image_json: Image = self.get("image", &format!("/images/{image}/json")).await.ok()?;
        let found = image_json.repo_digests.into_iter().flatten().find_map(|reference| digest(&reference));
        let mut digests = self.digests.lock().expect("no holder panics");
        if digests.len() >= DIGESTS_MAX {
            digests.clear();
        }
        digests.insert(image.clone(), found.clone());
        found
    }
}

impl Runtime for Docker {
    const ORIGIN: Origin = Origin::Docker;

    async fn list(&self) -> Result<Vec<Text>, Failure> {
        let all: Vec<Listed> = self.get("list of containers", "/containers/json?all=1").await?;
        Ok(all.into_iter().filter(|item| is_plain_id(&item.id)).map(|item| item.id.into()).collect())
    }

    async fn describe(&self, id: &Text) -> Result<Option<Description>, Failure> {
        if !is_plain_id(id) {
            return Ok(None);
        }
        let inspected: Inspected = match self.get("container", &format!("/containers/{id}/json")).await {
            Ok(inspected) => inspected,
            Err(Failure::Missing) => return Ok(None),
            Err(failure) => return Err(failure),
        };
        if inspected.id != **id {
            // The engine takes names and beginnings of ids too: it knows another container by this text.
            return Ok(None);
        }
        let mut description = inspected.describe();
        if let Some(image) = description.image_id.clone() {
            description.digest = self.digest(&image).await;
        }
        Ok(Some(description))
    }

    async fn watch(&self, changed: mpsc::Sender<Notice>) -> Failure {
        let request = match request(EVENTS) {
            Ok(request) => request,
            Err(failure) => return failure,
        };
        let (mut lines, _connection) = match self.service.follow(request).await {
            Ok(following) => following,
            Err(failure) => return failure,
        };
        loop {
            let line = match lines.next().await {
                Ok(Some(line)) => line,
                Ok(None) => return Failure::broken("events", "the stream ended"),
                Err(failure) => return failure,
            };
            // A line that is no event is passed over: what it told is in the next list.
            let Ok(event) = serde_json::from_slice::<Event>(&line) else { continue };
            if let Some(notice) = event.notice()
                && changed.send(notice).await.is_err()
            {
                return Failure::broken("events", "nobody listens");
            }
        }
    }
}

fn request(path: &str) -> Result<Request<()>, Failure> {
    // A Unix socket has no name; HTTP/1.1 wants one.
    Request::get(path).header("host", "docker").body(()).map_err(|error| Failure::broken("request", error))
}

#[derive(Deserialize)]
struct Listed {
    #[serde(rename = "Id")]
    id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    image: String,
    config: Option<Config>,
    host_config: Option<HostConfig>,
    mounts: Option<Vec<Point>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    #[serde(default)]
    image: String,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HostConfig {
    privileged: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Point {
    #[serde(default)]
    source: String,
    #[serde(default)]
    destination: String,
    #[serde(rename = "RW", default)]
    writable: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    repo_digests: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Event {
    /// Of old engines.
    id: Option<String>,
    #[serde(rename = "Action", default)]
    action: String,
    #[serde(rename = "Actor")]
    actor: Option<Actor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Actor {
    #[serde(rename = "ID")]
    id: String,
    attributes: Option<BTreeMap<String, String>>,
}

impl Event {
    /// Whose it is. Of a new container also what the event says: while the engine starts a container it answers no question about it, and
    /// a short one may be gone by then.
    fn notice(self) -> Option<Notice> {
        let Some(Actor { id, attributes }) = self.actor else {
            return self.id.filter(|id| is_plain_id(id)).map(|id| Notice { id: id.into(), hint: None });
        };
        let hint = attributes.filter(|_| self.action == "create").map(|mut all| {
            // The container's labels, and these two among them.
            let (name, image) = (all.remove("name"), all.remove("image"));
            Description {
                name: name.as_deref().and_then(text),
                image: image.as_deref().and_then(text),
                labels: labels(all.iter().map(|(name, value)| (name.as_str(), value.as_str()))),
                ..Description::default()
            }
        });
        is_plain_id(&id).then(|| Notice { id: id.into(), hint })
    }
}

impl Inspected {
    fn describe(&self) -> Description {
        let empty = BTreeMap::new();
        let config = self.config.as_ref();
        let all = config.and_then(|config| config.labels.as_ref()).unwrap_or(&empty);
        let label = |name: &str| all.get(name).and_then(|value| text(value));
        // Where Kubernetes starts its containers by Docker, their labels say so.
        let pod = all.get("io.kubernetes.pod.name");
        let workload = pod.and_then(|pod| workload_by_labels(pod, all));
        let points = self.mounts.iter().flatten();
        Description {
            name: label("io.kubernetes.container.name").or_else(|| text(self.name.trim_start_matches('/'))),
            image: config.and_then(|config| text(&config.image)),
            image_id: text(&self.image),
            namespace: label("io.kubernetes.pod.namespace"),
            pod: pod.and_then(|pod| text(pod)),
            pod_uid: label("io.kubernetes.pod.uid"),
            workload: workload.and_then(|(_, name)| text(name)),
            workload_kind: workload.and_then(|(kind, _)| text(kind)),
            labels: labels(all.iter().map(|(name, value)| (name.as_str(), value.as_str()))),
            privileged: self.host_config.as_ref().and_then(|host| host.privileged),
            mounts: mounts(points.map(|point| (&*point.source, &*point.destination, !point.writable))),
            ..Description::default()
        }
    }
}

/// `{"type":["container"],"event":["create","start","rename","update"]}`, as a query has it.
const EVENTS: &str = "/events?filters=%7B%22type%22%3A%5B%22container%22%5D%2C%22event%22%3A%5B%22create%22%2C%22start%22%2C\
                      %22rename%22%2C%22update%22%5D%7D";
/// Images remembered.
const DIGESTS_MAX: usize = 1_024;
