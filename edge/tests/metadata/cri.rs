//! The CRI: a gRPC server over a Unix socket, as containerd and CRI-O are; and what a hostile one can do.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt as _};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::UnixListener;
use tonic::body::Body;
use tonic::server::{Grpc, ServerStreamingService, UnaryService};
use tonic::{Request, Response, Status};
use weir_edge::enrich::metadata::cri_api::{
    All, ContainerEvent, ContainerMetadata, ContainerStatus, ContainerStatusResponse, ImageSpec, Item, Listed, Mount,
    PodSandboxMetadata, PodSandboxStatus, PodSandboxStatusResponse, Proto, StatusRequest,
};
use weir_edge::enrich::metadata::description;

use crate::{Heard, config, eventually, id};

/// Which runtime is played: they differ in their verbose info.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Containerd,
    Crio,
}

/// What goes wrong.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    Hangs,
    Refuses,
    HugeList,
    Garbage,
    WrongTypes,
    NoEvents,
}

#[derive(Clone)]
struct Fake {
    kind: Kind,
    fault: Fault,
    asked: Arc<Mutex<Vec<String>>>,
}

type Answer<T> = futures::future::BoxFuture<'static, Result<Response<T>, Status>>;

/// A method by its function.
struct Unary<F>(F);

impl<M, N, F: Fn(M) -> Result<N, Status>> UnaryService<M> for Unary<F>
where
    N: Send + 'static,
{
    type Response = N;
    type Future = Answer<N>;

    fn call(&mut self, request: Request<M>) -> Self::Future {
        let answer = (self.0)(request.into_inner()).map(Response::new);
        Box::pin(async { answer })
    }
}

struct Events(Fault);

impl ServerStreamingService<All> for Events {
    type Response = ContainerEvent;
    type ResponseStream = BoxStream<'static, Result<ContainerEvent, Status>>;
    type Future = Answer<Self::ResponseStream>;

    fn call(&mut self, _: Request<All>) -> Self::Future {
        let fault = self.0;
        Box::pin(async move {
            if fault == Fault::NoEvents {
                return Err(Status::unimplemented("not here"));
            }
            let event = |number: u32, container_event_type| Ok(ContainerEvent { container_id: id(number), container_event_type });
            // Stopped and deleted ones are of no interest.
            let events = stream::iter([event(4, 1), event(5, 2), event(6, 3)]).chain(stream::pending());
            Ok(Response::new(events.boxed()))
        })
    }
}

impl Fake {
    fn start(socket: &Path, kind: Kind, fault: Fault) -> Self {
        let fake = Self { kind, fault, asked: Arc::default() };
        let listener = UnixListener::bind(socket).unwrap();
        let serving = fake.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let fake = serving.clone();
                let service = service_fn(move |request| {
                    let fake = fake.clone();
                    async move { Ok::<_, Infallible>(fake.answer(request).await) }
                });
                let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
            }
        });
        fake
    }

    fn count(&self, method: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| asked.ends_with(method)).count()
    }

    async fn answer(self, request: hyper::Request<Incoming>) -> hyper::Response<Body> {
        let path = request.uri().path().to_owned();
        self.asked.lock().unwrap().push(path.clone());
        let (request, fake) = (request.map(Body::new), self.clone());
        match self.fault {
            Fault::Hangs => std::future::pending().await,
            Fault::Refuses => return Status::permission_denied("not for you").into_http(),
            Fault::Garbage => return garbage(&[0xff; 400]),
            // A container with a number where its id should be.
            Fault::WrongTypes => return garbage(&[10, 2, 8, 7]),
            Fault::None | Fault::HugeList | Fault::NoEvents => {}
        }
        match path.strip_prefix("/runtime.v1.RuntimeService/") {
            Some("ListContainers") => unary(request, |_: All| Ok(fake.containers())).await,
            Some("ListPodSandbox") => unary(request, |_: All| Ok(Listed { items: vec![Item { id: id(2) }] })).await,
            Some("ContainerStatus") => unary(request, |asked: StatusRequest| fake.status(&asked)).await,
            Some("PodSandboxStatus") => unary(request, |asked: StatusRequest| sandbox(&asked)).await,
            Some("GetContainerEvents") => {
                let mut grpc = Grpc::new(Proto::<ContainerEvent, All>::default());
                grpc.server_streaming(Events(self.fault), request).await
            }
            _ => Status::unimplemented(path).into_http(),
        }
    }

    fn containers(&self) -> Listed {
        match self.fault {
            Fault::HugeList => Listed { items: (0..10_000).map(|number| Item { id: id(number) }).collect() },
            _ => Listed { items: vec![Item { id: id(1) }, Item { id: "../x".into() }] },
        }
    }

    fn status(&self, asked: &StatusRequest) -> Result<ContainerStatusResponse, Status> {
        if asked.id == id(2) || asked.id.len() != 64 {
            return Err(Status::not_found("no such container"));
        }
        let labels = [("container.name", "web"), ("pod.name", "web-5d9-abcde"), ("pod.namespace", "shop"), ("pod.uid", "u-1")];
        let labels = labels.map(|(key, value)| (format!("io.kubernetes.{key}"), value.to_owned()));
        let sandbox = id(2);
        let info = match self.kind {
            Kind::Containerd => format!(
                r#"{{"sandboxID":"{sandbox}","config":{{"envs":[{{"key":"A"}}],"linux":{{"security_context":{{"privileged":true}}}}}}}}"#
            ),
            Kind::Crio => format!(r#"{{"sandboxID":"{sandbox}","pid":7,"privileged":false}}"#),
        };
        let image = ImageSpec { image: "docker.io/library/nginx:1".into(), user_specified_image: String::new() };
        let status = ContainerStatus {
            id: asked.id.clone(),
            metadata: Some(ContainerMetadata { name: "web".into() }),
            image: Some(image),
            image_ref: "docker.io/library/nginx@sha256:aa".into(),
            labels: labels.into(),
            annotations: HashMap::new(),
            mounts: vec![Mount { container_path: "/data".into(), host_path: "/srv".into(), readonly: true }],
            image_id: "sha256:1f".into(),
        };
        let info = if asked.verbose { [("info".to_owned(), info)].into() } else { HashMap::new() };
        Ok(ContainerStatusResponse { status: Some(status), info })
    }
}

fn sandbox(asked: &StatusRequest) -> Result<PodSandboxStatusResponse, Status> {
    if asked.id != id(2) {
        return Err(Status::not_found("no such sandbox"));
    }
    let metadata = PodSandboxMetadata { name: "web-5d9-abcde".into(), uid: "u-1".into(), namespace: "shop".into() };
    let labels = [("app".to_owned(), "web".to_owned()), ("pod-template-hash".to_owned(), "5d9".to_owned())];
    let status = PodSandboxStatus { id: asked.id.clone(), metadata: Some(metadata), labels: labels.into() };
    Ok(PodSandboxStatusResponse { status: Some(status) })
}

async fn unary<M, N>(request: hyper::Request<Body>, answer: impl Fn(M) -> Result<N, Status>) -> hyper::Response<Body>
where
    M: Message + Default + 'static,
    N: Message + 'static,
{
    Grpc::new(Proto::<N, M>::default()).unary(Unary(answer), request).await
}

/// A message of these bytes, as gRPC frames it.
fn garbage(bytes: &[u8]) -> hyper::Response<Body> {
    let frame = [&[0][..], &u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat();
    let body = Body::new(http_body_util::Full::new(hyper::body::Bytes::from(frame)));
    hyper::Response::builder().header("content-type", "application/grpc").body(body).unwrap()
}

fn start(kind: Kind, fault: Fault) -> (tempfile::TempDir, Fake, Heard) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("cri.sock");
    let fake = Fake::start(&socket, kind, fault);
    let heard = Heard::start(&config(&format!("cri_sockets = [{socket:?}]")));
    (folder, fake, heard)
}

#[tokio::test]
async fn a_container_has_its_pod_its_image_and_its_flag() {
    for (kind, privileged) in [(Kind::Containerd, true), (Kind::Crio, false)] {
        let (_folder, fake, mut heard) = start(kind, Fault::None);
        let listed = heard.container(&id(1), |_| true).await;
        assert_eq!((listed.name.as_deref(), listed.image.as_deref()), (Some("web"), Some("docker.io/library/nginx:1")));
        assert_eq!((listed.digest.as_deref(), listed.image_id.as_deref()), (Some("sha256:aa"), Some("sha256:1f")));
        assert_eq!((listed.pod.as_deref(), listed.namespace.as_deref()), (Some("web-5d9-abcde"), Some("shop")));
        assert_eq!((listed.pod_uid.as_deref(), listed.privileged), (Some("u-1"), Some(privileged)));
        assert_eq!((listed.workload.as_deref(), listed.workload_kind.as_deref()), (Some("web"), Some("Deployment")));
        assert_eq!(listed.labels.get("app").map(String::as_str), Some("web"), "the pod's own label");
        let mount = description::Mount { source: "/srv".into(), target: "/data".into(), read_only: true };
        assert_eq!(listed.mounts, [mount]);
        // The sandbox is no container, and is described by its pod.
        let pause = heard.container(&id(2), |_| true).await;
        assert_eq!((pause.name, pause.pod.as_deref()), (None, Some("web-5d9-abcde")));
        // One that started, and one that was met.
        heard.container(&id(4), |_| true).await;
        heard.wanted[0].send(id(8).as_str().into()).await.unwrap();
        heard.container(&id(8), |_| true).await;
        assert_eq!(heard.says_of(&id(5)), 0, "it stopped");
        assert_eq!(fake.count("GetContainerEvents"), 1);
    }
}

#[tokio::test]
async fn a_runtime_without_notices_is_listed_again() {
    let (_folder, fake, mut heard) = start(Kind::Containerd, Fault::NoEvents);
    heard.container(&id(1), |_| true).await;
    eventually("a second list", || fake.count("ListContainers") >= 2).await;
    assert_eq!(fake.count("GetContainerEvents"), 1, "it was told once that there are none");
}

#[tokio::test]
async fn hostile_answers_cost_what_the_limits_allow() {
    for (fault, expected) in [
        (Fault::Hangs, "within 1000 ms"),
        (Fault::Refuses, "permission denied"),
        (Fault::HugeList, "more than 262144 bytes"),
        (Fault::Garbage, "gRPC"),
        (Fault::WrongTypes, "gRPC"),
    ] {
        let (_folder, _fake, mut heard) = start(Kind::Containerd, fault);
        let state = heard.state("").await;
        assert!(state.contains(expected), "{expected}: {state}");
    }
}

#[tokio::test]
async fn a_runtime_that_comes_later_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("cri.sock");
    let mut heard = Heard::start(&config(&format!("cri_sockets = [{socket:?}]")));
    heard.wanted[0].send(id(9).as_str().into()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    Fake::start(&socket, Kind::Crio, Fault::None);
    heard.container(&id(9), |_| true).await;
}
