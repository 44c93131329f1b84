//! containerd and CRI-O by the Container Runtime Interface: gRPC over their Unix socket.
//!
//! Whether a container is privileged is in the verbose `info` only, JSON of the runtime's own: containerd writes it as
//! `config.linux.security_context.privileged`, CRI-O as `privileged`; both name the sandbox as `sandboxID`, by which the pod's own labels
//! are asked for. What else is in it (environments with secrets) is skipped unread.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::Message;
use serde::Deserialize;
use tokio::sync::mpsc;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use weir_config::MetadataLimits;
use weir_schema::Text;

use super::cri_api::{
    All, ContainerEvent, ContainerStatus, ContainerStatusResponse, Listed, PodSandboxStatus, PodSandboxStatusResponse, Proto,
    StatusRequest,
};
use super::description::{Description, Origin, digest, is_plain_id, labels, mounts, text};
use super::failure::Failure;
use super::http::{knock, within};
use super::pod::workload_by_labels;
use super::source::{Notice, Runtime};

/// A runtime behind its socket.
#[derive(Debug)]
pub(crate) struct Cri {
    socket: PathBuf,
    channel: Channel,
    timeout: Duration,
    bytes_max: usize,
}

impl Cri {
    /// Connects when it is first asked, and again when the connection breaks.
    pub(crate) fn new(socket: &Path, limits: &MetadataLimits) -> Result<Self, Failure> {
        let timeout = Duration::from_millis(limits.request_timeout_ms);
        let uri = format!("unix://{}", socket.display());
        let endpoint = Endpoint::from_shared(uri).map_err(|error| Failure::of("socket", &error))?;
        let channel = endpoint.connect_timeout(timeout).connect_lazy();
        Ok(Self { socket: socket.to_owned(), channel, timeout, bytes_max: limits.answer_bytes_max })
    }

    fn grpc(&self) -> Grpc<Channel> {
        Grpc::new(self.channel.clone()).max_decoding_message_size(self.bytes_max)
    }

    async fn call<M, N>(&self, method: &'static str, message: M) -> Result<N, Failure>
    where
        M: Message + 'static,
        N: Message + Default + 'static,
    {
        within(self.timeout, async {
            let mut grpc = self.grpc();
            grpc.ready().await.map_err(|error| Failure::of("gRPC", &error))?;
            let answer = grpc.unary(Request::new(message), PathAndQuery::from_static(method), Proto::default()).await;
            answer.map(tonic::Response::into_inner).map_err(|status| failure(&status, self.bytes_max))
        })
        .await
    }

    async fn container(&self, id: &str) -> Result<Option<Description>, Failure> {
        let request = StatusRequest { id: id.to_owned(), verbose: true };
        let answer: ContainerStatusResponse = match self.call(CONTAINER_STATUS, request).await {
            Ok(answer) => answer,
            Err(Failure::Missing) => return Ok(None),
            Err(failure) => return Err(failure),
        };
        // Runtimes take beginnings of ids too: then it is another container's.
        let Some(status) = answer.status.filter(|status| status.id == id) else { return Ok(None) };
        let info = answer.info.get("info").and_then(|json| serde_json::from_str::<Info>(json).ok()).unwrap_or_default();
        let mut description = of_container(&status, &info);
        // The pod's labels are the sandbox's. Without them the container is described all the same.
        if let Some(sandbox) = info.sandbox_id.as_deref().filter(|id| is_plain_id(id))
            && let Ok(Some(pod)) = self.sandbox(sandbox).await
        {
            description = Description::merged(&[None, None, Some(&description), None], Some(&pod));
        }
        Ok(Some(description))
    }

    async fn sandbox(&self, id: &str) -> Result<Option<Description>, Failure> {
        let request = StatusRequest { id: id.to_owned(), verbose: false };
        match self.call::<_, PodSandboxStatusResponse>(SANDBOX_STATUS, request).await {
            Ok(answer) => Ok(answer.status.filter(|status| status.id == id).map(|status| of_sandbox(&status))),
            Err(Failure::Missing) => Ok(None),
            Err(failure) => Err(failure),
        }
    }
}

impl Runtime for Cri {
    const ORIGIN: Origin = Origin::Cri;

    async fn list(&self) -> Result<Vec<Text>, Failure> {
        knock(&self.socket, self.timeout).await?;
        let containers: Listed = self.call(LIST_CONTAINERS, All {}).await?;
        let sandboxes: Listed = self.call(LIST_SANDBOXES, All {}).await?;
        let all = containers.items.iter().chain(&sandboxes.items);
        Ok(all.filter(|item| is_plain_id(&item.id)).map(|item| item.id.as_str().into()).collect())
    }

    async fn describe(&self, id: &Text) -> Result<Option<Description>, Failure> {
        match self.container(id).await? {
            Some(container) => Ok(Some(container)),
            // A cgroup of a pod's first process is the sandbox's.
            None => self.sandbox(id).await,
        }
    }

    async fn watch(&self, changed: mpsc::Sender<Notice>) -> Failure {
        let mut grpc = self.grpc();
        if let Err(error) = grpc.ready().await {
            return Failure::of("gRPC", &error);
        }
        // Without a limit in time: a runtime answers with its first event only.
        let path = PathAndQuery::from_static(CONTAINER_EVENTS);
        let answer = grpc.server_streaming(Request::new(All {}), path, Proto::<All, ContainerEvent>::default()).await;
        let mut events = match answer {
            Ok(answer) => answer.into_inner(),
            Err(status) => return failure(&status, self.bytes_max),
        };
        loop {
            match events.message().await {
                Ok(Some(event)) if event.container_event_type <= STARTED && is_plain_id(&event.container_id) => {
                    if changed.send(Notice { id: event.container_id.into(), hint: None }).await.is_err() {
                        return Failure::broken("GetContainerEvents", "nobody listens");
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => return Failure::broken("GetContainerEvents", "the stream ended"),
                Err(status) => return failure(&status, self.bytes_max),
            }
        }
    }
}

/// What is read of the verbose `info`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Info {
    #[serde(rename = "sandboxID")]
    sandbox_id: Option<String>,
    privileged: Option<bool>,
    config: Option<Config>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    linux: Option<Linux>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Linux {
    security_context: Option<SecurityContext>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SecurityContext {
    privileged: Option<bool>,
}

fn of_container(status: &ContainerStatus, info: &Info) -> Description {
    let image = status.image.as_ref();
    let asked = image.and_then(|image| text(&image.user_specified_image).or_else(|| text(&image.image)));
    let context = info.config.as_ref().map(|config| config.linux.as_ref().and_then(|linux| linux.security_context.as_ref()));
    // containerd's JSON leaves out what is false.
    let of_config = context.map(|context| context.and_then(|context| context.privileged).unwrap_or(false));
    let pod = known(&status.labels, "io.kubernetes.pod.name");
    let all: BTreeMap<String, String> = labels(pairs(&status.labels));
    Description {
        name: status.metadata.as_ref().and_then(|metadata| text(&metadata.name)),
        image: asked,
        digest: digest(&status.image_ref),
        image_id: text(&status.image_id),
        namespace: known(&status.labels, "io.kubernetes.pod.namespace"),
        pod,
        pod_uid: known(&status.labels, "io.kubernetes.pod.uid"),
        labels: all,
        privileged: info.privileged.or(of_config),
        mounts: mounts(status.mounts.iter().map(|mount| (&*mount.host_path, &*mount.container_path, mount.readonly))),
        ..Description::default()
    }
}

fn of_sandbox(status: &PodSandboxStatus) -> Description {
    let all = labels(pairs(&status.labels));
    let pod = status.metadata.as_ref();
    let workload = pod.and_then(|pod| workload_by_labels(&pod.name, &all));
    let (workload_kind, workload) = workload.map(|(kind, name)| (text(kind), text(name))).unwrap_or_default();
    Description {
        namespace: pod.and_then(|pod| text(&pod.namespace)),
        pod: pod.and_then(|pod| text(&pod.name)),
        pod_uid: pod.and_then(|pod| text(&pod.uid)),
        workload: workload.or_else(|| known(&status.labels, "app.kubernetes.io/name")),
        workload_kind,
        labels: all,
        ..Description::default()
    }
}

fn pairs(map: &HashMap<String, String>) -> impl Iterator<Item = (&str, &str)> {
    // In order, so that what is cut of too many is the same each time.
    let ordered: BTreeMap<&str, &str> = map.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    ordered.into_iter()
}

fn known(map: &HashMap<String, String>, key: &str) -> Option<Text> {
    map.get(key).and_then(|value| text(value))
}

fn failure(status: &Status, bytes_max: usize) -> Failure {
    match status.code() {
        Code::NotFound => Failure::Missing,
        Code::Unimplemented => Failure::Unsupported,
        Code::PermissionDenied | Code::Unauthenticated => Failure::Denied,
        // The decoder's own word on a length beyond the limit.
        Code::OutOfRange => Failure::TooLong(bytes_max),
        _ => match Failure::of("gRPC", status) {
            known @ (Failure::Missing | Failure::Denied) => known,
            _ => Failure::broken("gRPC", format!("{}: {}", status.code(), status.message())),
        },
    }
}

const LIST_CONTAINERS: &str = "/runtime.v1.RuntimeService/ListContainers";
const LIST_SANDBOXES: &str = "/runtime.v1.RuntimeService/ListPodSandbox";
const CONTAINER_STATUS: &str = "/runtime.v1.RuntimeService/ContainerStatus";
const SANDBOX_STATUS: &str = "/runtime.v1.RuntimeService/PodSandboxStatus";
const CONTAINER_EVENTS: &str = "/runtime.v1.RuntimeService/GetContainerEvents";
/// `CONTAINER_STARTED_EVENT`; the one below it is `CREATED`.
const STARTED: i32 = 1;
