//! Kubernetes: the pods of this node, listed once and watched from there on.
//!
//! ```text
//!  list, in pages ──► watch from the list's version ──► the stream ends: watch from the last version seen
//!       ▲                          │
//!       └──── 410 Gone: too old ◄──┘
//! ```
//!
//! The `kube` crate makes the client (service account or kubeconfig, TLS, tokens that change); lists and watches are read here, because
//! an answer is bounded in bytes and time, and because only some fields of a pod are wanted. Needed right: get, list and watch on pods.

use std::time::Duration;

use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::sleep;
use weir_config::{KubernetesConfig, MetadataLimits};

use super::News;
use super::description::Origin;
use super::failure::Failure;
use super::http::{Lines, status, whole, within};
use super::pod::Pod;
use super::source::{Backoff, Teller};

/// The pods of one node, and who is asked for them.
pub(crate) struct Kubernetes {
    config: KubernetesConfig,
    node: String,
    timeout: Duration,
    bytes_max: usize,
    pause_max: Duration,
}

impl Kubernetes {
    /// Pods of the node `host`, unless the config names another.
    pub(crate) fn new(config: &KubernetesConfig, limits: &MetadataLimits, host: &str) -> Self {
        Self {
            node: config.node.clone().unwrap_or_else(|| host.to_owned()),
            config: config.clone(),
            timeout: Duration::from_millis(limits.request_timeout_ms),
            bytes_max: limits.answer_bytes_max,
            pause_max: Duration::from_millis(limits.resync_ms),
        }
    }

    /// True where there is somebody to be asked: a service account, or a file that says who.
    pub(crate) fn is_near(&self) -> bool {
        self.config.enabled && (self.config.kubeconfig.is_some() || std::env::var_os(IN_A_POD).is_some())
    }

    /// Follows the pods for ever.
    pub(crate) async fn follow(self, mut teller: Teller) {
        let mut backoff = Backoff::new(self.pause_max);
        loop {
            let failure = match self.client().await {
                Ok(client) => Box::pin(self.session(&client, &mut teller, &mut backoff)).await,
                Err(failure) => failure,
            };
            teller.failed(&failure).await;
            sleep(backoff.pause()).await;
        }
    }

    async fn client(&self) -> Result<Client, Failure> {
        let mut config = match &self.config.kubeconfig {
            Some(file) => {
                let file = Kubeconfig::read_from(file).map_err(|error| Failure::of("kubeconfig", &error))?;
                let read = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
                read.map_err(|error| Failure::of("kubeconfig", &error))?
            }
            None => Config::incluster().map_err(|error| Failure::of("service account", &error))?,
        };
        config.connect_timeout = Some(self.timeout);
        // Both are watched here: a watch may be silent for long, and what is asked again has its pauses.
        config.read_timeout = None;
        config.default_retry = false;
        Client::try_from(config).map_err(|error| Failure::of("client", &error))
    }

    /// Lists, then watches until something fails that another list does not cure.
    async fn session(&self, client: &Client, teller: &mut Teller, backoff: &mut Backoff) -> Failure {
        loop {
            let mut version = match self.list(client, teller).await {
                Ok(version) => version,
                Err(failure) => return failure,
            };
            teller.ok().await;
            loop {
                match self.watch(client, &mut version, teller, backoff).await {
                    Ok(()) => {}
                    // Too old: what happened since is in a new list.
                    Err(Failure::Status(GONE)) => break,
                    Err(failure @ (Failure::Denied | Failure::Missing)) => return failure,
                    Err(failure) => teller.failed(&failure).await,
                }
                sleep(backoff.pause()).await;
            }
            sleep(backoff.pause()).await;
        }
    }

    /// Tells all pods; returns the version to watch from.
    async fn list(&self, client: &Client, teller: &Teller) -> Result<String, Failure> {
        let mut more = String::new();
        for _ in 0..PAGES_MAX {
            let path = format!("{}&limit={PODS_PER_PAGE}{more}", self.path()?);
            let answer = within(self.timeout, async {
                let response = send(client, &path).await?;
                whole(response.into_body(), self.bytes_max).await
            });
            let bytes = answer.await?;
            let page: Page = serde_json::from_slice(&bytes).map_err(|error| Failure::broken("list of pods", error))?;
            for pod in &page.items {
                self.tell(pod, teller).await;
            }
            match page.metadata.more.filter(|more| !more.is_empty()) {
                Some(token) => more = format!("&continue={}", escaped(&token)),
                None => return Ok(page.metadata.resource_version),
            }
        }
        Err(Failure::broken("list of pods", format!("more than {PAGES_MAX} pages")))
    }

    /// Tells what changes after `version`, until the server ends the stream, as it does every few minutes.
    async fn watch(
        &self,
        client: &Client,
        version: &mut String,
        teller: &mut Teller,
        backoff: &mut Backoff,
    ) -> Result<(), Failure> {
        let seconds = WATCH.as_secs();
        let path = format!(
            "{}&watch=1&allowWatchBookmarks=true&timeoutSeconds={seconds}&resourceVersion={}",
            self.path()?,
            escaped(version)
        );
        let response = within(self.timeout, send(client, &path)).await?;
        let mut lines = Lines::new(response.into_body(), self.bytes_max);
        // Longer than the server was asked to take: a connection that died says nothing.
        while let Some(line) = within(WATCH + self.timeout, lines.next()).await? {
            if line.is_empty() {
                continue;
            }
            let event: Event = serde_json::from_slice(&line).map_err(|error| Failure::broken("watch of pods", error))?;
            if event.kind == "ERROR" {
                let code = event.object.get("code").and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok());
                return Err(Failure::Status(code.unwrap_or(0)));
            }
            let pod: Pod = serde_json::from_value(event.object).map_err(|error| Failure::broken("watch of pods", error))?;
            if !pod.metadata.resource_version.is_empty() {
                version.clone_from(&pod.metadata.resource_version);
            }
            backoff.reset();
            teller.ok().await;
            // What is deleted stays known for those of its events that come late; the longest unused is forgotten.
            if event.kind == "ADDED" || event.kind == "MODIFIED" {
                self.tell(&pod, teller).await;
            }
        }
        Ok(())
    }

    async fn tell(&self, pod: &Pod, teller: &Teller) {
        let Some(uid) = pod.uid().filter(|_| pod.is_on(&self.node)) else { return };
        teller.tell(News::Pod { uid, description: pod.description() }).await;
        for (id, description) in pod.containers() {
            teller.tell(News::Container { id, origin: Origin::Kubernetes, description }).await;
        }
    }

    fn path(&self) -> Result<String, Failure> {
        if self.node.is_empty() {
            return Err(Failure::broken("node", "this host has no name"));
        }
        Ok(format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{}", escaped(&self.node)))
    }
}

async fn send(client: &Client, path: &str) -> Result<hyper::Response<kube::client::Body>, Failure> {
    let request = Request::get(path).header("accept", "application/json").body(Bytes::new().into());
    let request = request.map_err(|error| Failure::broken("request", error))?;
    let response = client.send(request).await.map_err(|error| Failure::of("request", &error))?;
    match response.status() {
        StatusCode::GONE => Err(Failure::Status(GONE)),
        other => status(other).map(|()| response),
    }
}

#[derive(Deserialize)]
struct Page {
    metadata: PageMeta,
    #[serde(default)]
    items: Vec<Pod>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMeta {
    #[serde(default)]
    resource_version: String,
    #[serde(rename = "continue")]
    more: Option<String>,
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: Value,
}

/// A value of a query.
fn escaped(text: &str) -> String {
    let mut query = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => query.push(char::from(byte)),
            _ => query.push_str(&format!("%{byte:02X}")),
        }
    }
    query
}

/// Set by Kubernetes in every pod.
const IN_A_POD: &str = "KUBERNETES_SERVICE_HOST";
const GONE: u16 = 410;
/// How long a watch is asked to take.
const WATCH: Duration = Duration::from_secs(240);
/// A node has 110 pods, as Kubernetes advises.
const PODS_PER_PAGE: usize = 100;
/// Pages of one list.
const PAGES_MAX: usize = 100;
