//! The messages of the Container Runtime Interface that are asked and read, with the fields that are used.
//!
//! Source: `api.proto` of the CRI, package `runtime.v1`, as containerd and CRI-O serve it. A field's number stands in its `tag`; fields
//! that are not named here are skipped on the way in, as Protocol Buffers have it. Numbers by message:
//!
//! ```text
//! ListContainersResponse    containers 1            Container          id 1
//! ListPodSandboxResponse    items 1                 PodSandbox         id 1
//! ContainerStatusRequest    container_id 1, verbose 2
//! ContainerStatusResponse   status 1, info 2 (map of JSON texts, when verbose)
//! ContainerStatus           id 1, metadata 2, image 8, image_ref 9, labels 12, annotations 13, mounts 14, image_id 17
//! ContainerMetadata         name 1                  ImageSpec          image 1, user_specified_image 18
//! Mount                     container_path 1, host_path 2, readonly 3
//! PodSandboxStatusRequest   pod_sandbox_id 1, verbose 2
//! PodSandboxStatusResponse  status 1                PodSandboxStatus   id 1, metadata 2, labels 7
//! PodSandboxMetadata        name 1, uid 2, namespace 3
//! GetEventsRequest          -                       ContainerEventResponse  container_id 1, container_event_type 2
//! ```

use std::collections::HashMap;
use std::marker::PhantomData;

use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// `ListContainersRequest`, `ListPodSandboxRequest`: without a filter both are empty, as `GetEventsRequest` always is.
#[derive(Clone, PartialEq, Message)]
pub struct All {}

/// `ListContainersResponse`, and by the same numbers `ListPodSandboxResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct Listed {
    /// Containers, or sandboxes.
    #[prost(message, repeated, tag = "1")]
    pub items: Vec<Item>,
}

/// `Container`, `PodSandbox`.
#[derive(Clone, PartialEq, Message)]
pub struct Item {
    /// Id.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// `ContainerStatusRequest`, `PodSandboxStatusRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct StatusRequest {
    /// Id of the container or sandbox.
    #[prost(string, tag = "1")]
    pub id: String,
    /// With `info`.
    #[prost(bool, tag = "2")]
    pub verbose: bool,
}

/// `ContainerStatusResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct ContainerStatusResponse {
    /// The status.
    #[prost(message, optional, tag = "1")]
    pub status: Option<ContainerStatus>,
    /// JSON by key; runtimes use the key `info`.
    #[prost(map = "string, string", tag = "2")]
    pub info: HashMap<String, String>,
}

/// `ContainerStatus`.
#[derive(Clone, PartialEq, Message)]
pub struct ContainerStatus {
    /// Id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Name.
    #[prost(message, optional, tag = "2")]
    pub metadata: Option<ContainerMetadata>,
    /// Image as it was asked for.
    #[prost(message, optional, tag = "8")]
    pub image: Option<ImageSpec>,
    /// Image with its digest, where the runtime knows the registry.
    #[prost(string, tag = "9")]
    pub image_ref: String,
    /// Labels.
    #[prost(map = "string, string", tag = "12")]
    pub labels: HashMap<String, String>,
    /// Annotations.
    #[prost(map = "string, string", tag = "13")]
    pub annotations: HashMap<String, String>,
    /// Mounts.
    #[prost(message, repeated, tag = "14")]
    pub mounts: Vec<Mount>,
    /// Image id on this host.
    #[prost(string, tag = "17")]
    pub image_id: String,
}

/// `ContainerMetadata`.
#[derive(Clone, PartialEq, Message)]
pub struct ContainerMetadata {
    /// Name in the pod.
    #[prost(string, tag = "1")]
    pub name: String,
}

/// `ImageSpec`.
#[derive(Clone, PartialEq, Message)]
pub struct ImageSpec {
    /// Reference or id.
    #[prost(string, tag = "1")]
    pub image: String,
    /// Reference as the user wrote it, where the runtime knows it.
    #[prost(string, tag = "18")]
    pub user_specified_image: String,
}

/// `Mount`.
#[derive(Clone, PartialEq, Message)]
pub struct Mount {
    /// In the container.
    #[prost(string, tag = "1")]
    pub container_path: String,
    /// On the host.
    #[prost(string, tag = "2")]
    pub host_path: String,
    /// Not to be written.
    #[prost(bool, tag = "3")]
    pub readonly: bool,
}

/// `PodSandboxStatusResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxStatusResponse {
    /// The status.
    #[prost(message, optional, tag = "1")]
    pub status: Option<PodSandboxStatus>,
}

/// `PodSandboxStatus`.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxStatus {
    /// Id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The pod.
    #[prost(message, optional, tag = "2")]
    pub metadata: Option<PodSandboxMetadata>,
    /// The pod's labels.
    #[prost(map = "string, string", tag = "7")]
    pub labels: HashMap<String, String>,
}

/// `PodSandboxMetadata`.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxMetadata {
    /// Pod.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Pod uid.
    #[prost(string, tag = "2")]
    pub uid: String,
    /// Namespace.
    #[prost(string, tag = "3")]
    pub namespace: String,
}

/// `ContainerEventResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct ContainerEvent {
    /// Id.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// 0 created, 1 started, 2 stopped, 3 deleted.
    #[prost(int32, tag = "2")]
    pub container_event_type: i32,
}

/// Protocol Buffers as gRPC carries them.
#[derive(Debug)]
pub struct Proto<M, N>(PhantomData<fn(M) -> N>);

impl<M, N> Default for Proto<M, N> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<M: Message + 'static, N: Message + Default + 'static> Codec for Proto<M, N> {
    type Encode = M;
    type Decode = N;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self::Encoder {
        Self::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        Self::default()
    }
}

impl<M: Message + 'static, N> Encoder for Proto<M, N> {
    type Item = M;
    type Error = Status;

    fn encode(&mut self, item: M, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(into).map_err(|error| Status::internal(error.to_string()))
    }
}

impl<M, N: Message + Default + 'static> Decoder for Proto<M, N> {
    type Item = N;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<N>, Status> {
        N::decode(from).map(Some).map_err(|error| Status::data_loss(error.to_string()))
    }
}
