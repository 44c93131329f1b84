//! Where the agent asks whose something is: the sockets of container runtimes, the Kubernetes API, the cloud's metadata service.
//!
//! Everything here is asked beside the way of the events, softly: what does not answer is said once and asked again later.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;

use crate::apps::Glob;
use crate::document::Document;
use crate::error::Error;
use crate::section::numbers;

/// Who is asked about containers and about the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetadataConfig {
    /// Sockets that speak the CRI (`runtime.v1`). Those that are not there are looked for again. At most 8; empty: none is asked.
    ///
    /// Default containerd's and CRI-O's.
    pub cri_sockets: Vec<PathBuf>,
    /// Sockets that speak the Docker Engine API, Podman's too. At most 8; empty: none is asked. Default Docker's.
    pub docker_sockets: Vec<PathBuf>,
    /// Which labels of containers and pods are told to the cluster: globs over the label's name, at most 64. The rules of `apps` see all.
    ///
    /// Default `app`, `app.kubernetes.io/*` and the project and service of Compose: labels may hold anything, and each is told.
    pub labels: Vec<Glob>,
    /// How much may be asked and kept.
    pub limits: MetadataLimits,
    /// The Kubernetes API.
    pub kubernetes: KubernetesConfig,
    /// The cloud's metadata service.
    pub cloud: CloudConfig,
}

/// The Kubernetes API: pods of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubernetesConfig {
    /// Ask it. Default true; there must be a pod's service account, or `kubeconfig`, else nothing is asked.
    pub enabled: bool,
    /// A kubeconfig file, for an agent that runs outside of a pod. Default: the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// The node's name in Kubernetes. Default: the agent's `host`.
    pub node: Option<String>,
}

/// The cloud's metadata service. What the config says of `cloud` and `zone` wins over its word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudConfig {
    /// Whose service may be asked, in this order; a name in the firmware's tables goes first. Default: nobody's, nothing is contacted.
    pub providers: Vec<CloudProvider>,
    /// Where the service is: a link-local or loopback address and a port. Default `169.254.169.254:80`, the same for all three.
    pub address: SocketAddr,
    /// The instance's id. Default: what the service says.
    pub instance_id: Option<String>,
    /// The instance's type. Default: what the service says.
    pub instance_type: Option<String>,
}

/// A cloud whose metadata service is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CloudProvider {
    /// Amazon: IMDSv2 only.
    Aws,
    /// Google.
    Gcp,
    /// Microsoft.
    Azure,
}

impl CloudProvider {
    /// As it stands in `events.cloud`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Aws => "aws",
            Self::Gcp => "gcp",
            Self::Azure => "azure",
        }
    }
}

impl FromStr for CloudProvider {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "aws" => Ok(Self::Aws),
            "gcp" => Ok(Self::Gcp),
            "azure" => Ok(Self::Azure),
            _ => Err("no cloud with a known metadata service"),
        }
    }
}

numbers! {
    /// How much is asked and kept. Beyond it the longest unused is forgotten, and asked again when it is needed.
    MetadataLimits (RawMetadataLimits) in "metadata.limits" {
        /// Containers, and pods, of which something is remembered: about 1 KiB each.
        containers_max: usize = 8192 in 64 ..= 262144;
        /// Requests that one source has under way at once. A runtime at work should not notice them.
        requests_max: usize = 4 in 1 ..= 64;
        /// Milliseconds for one request, its whole answer included.
        request_timeout_ms: u64 = 2000 in 10 ..= 60000;
        /// Bytes of one answer; a longer one is refused unread. A list of 1,000 containers takes about 2 MB.
        answer_bytes_max: usize = 4194304 in 4096 ..= 67108864;
        /// Milliseconds between two lists of all containers, against notices that were missed.
        resync_ms: u64 = 60000 in 1000 ..= 3600000;
    }
}

impl Default for MetadataConfig {
    fn default() -> Self {
        Self {
            cri_sockets: CRI_SOCKETS.map(PathBuf::from).to_vec(),
            docker_sockets: DOCKER_SOCKETS.map(PathBuf::from).to_vec(),
            labels: LABELS.map(|label| label.parse().expect("the defaults are globs")).to_vec(),
            limits: MetadataLimits::default(),
            kubernetes: KubernetesConfig { enabled: true, kubeconfig: None, node: None },
            cloud: CloudConfig {
                providers: Vec::new(),
                address: SocketAddr::from(([169, 254, 169, 254], 80)),
                instance_id: None,
                instance_type: None,
            },
        }
    }
}

/// What people write.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawMetadata {
    cri_sockets: Option<Vec<PathBuf>>,
    docker_sockets: Option<Vec<PathBuf>>,
    labels: Option<Vec<String>>,
    limits: RawMetadataLimits,
    kubernetes: RawKubernetes,
    cloud: RawCloud,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawKubernetes {
    enabled: Option<bool>,
    kubeconfig: Option<PathBuf>,
    node: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawCloud {
    providers: Option<Vec<String>>,
    address: Option<String>,
    instance_id: Option<String>,
    instance_type: Option<String>,
}

impl RawMetadata {
    pub(crate) fn check(self, document: &Document) -> Result<MetadataConfig, Error> {
        let default = MetadataConfig::default();
        Ok(MetadataConfig {
            cri_sockets: sockets(document, "metadata.cri_sockets", self.cri_sockets, default.cri_sockets)?,
            docker_sockets: sockets(document, "metadata.docker_sockets", self.docker_sockets, default.docker_sockets)?,
            labels: match self.labels {
                Some(labels) => globs(document, "metadata.labels", &labels)?,
                None => default.labels,
            },
            limits: self.limits.check(document)?,
            kubernetes: self.kubernetes.check(document)?,
            cloud: self.cloud.check(document, default.cloud)?,
        })
    }
}

impl RawKubernetes {
    fn check(self, document: &Document) -> Result<KubernetesConfig, Error> {
        let file = |raw: PathBuf| document.path("metadata.kubernetes.kubeconfig", &raw);
        Ok(KubernetesConfig {
            enabled: self.enabled.unwrap_or(true),
            kubeconfig: self.kubeconfig.map(file).transpose()?,
            node: self.node.map(|raw| document.name("metadata.kubernetes.node", raw)).transpose()?,
        })
    }
}

impl RawCloud {
    fn check(self, document: &Document, default: CloudConfig) -> Result<CloudConfig, Error> {
        let name = |key: &str, raw: Option<String>| raw.map(|raw| document.name(key, raw)).transpose();
        let key = "metadata.cloud.providers";
        let raw = self.providers.unwrap_or_default();
        let mut providers = Vec::new();
        for (index, raw) in raw.iter().enumerate() {
            let key = format!("{key}[{index}]");
            let provider = document.parsed(&key, raw, "write \"aws\", \"gcp\" or \"azure\"")?;
            if providers.contains(&provider) {
                return Err(document.wrong(&key, "named twice", "name each provider once"));
            }
            providers.push(provider);
        }
        let key = "metadata.cloud.address";
        let address = match self.address {
            Some(raw) => document.parsed(key, &raw, "write an address and a port, such as \"169.254.169.254:80\"")?,
            None => default.address,
        };
        if !is_near(address.ip()) {
            let cure = "write the service's link-local address, such as \"169.254.169.254:80\"";
            return Err(document.wrong(key, "neither link-local nor loopback", cure));
        }
        Ok(CloudConfig {
            providers,
            address,
            instance_id: name("metadata.cloud.instance_id", self.instance_id)?,
            instance_type: name("metadata.cloud.instance_type", self.instance_type)?,
        })
    }
}

fn sockets(document: &Document, key: &str, raw: Option<Vec<PathBuf>>, default: Vec<PathBuf>) -> Result<Vec<PathBuf>, Error> {
    let Some(raw) = raw else { return Ok(default) };
    if raw.len() > SOCKETS_MAX {
        return Err(document.wrong(key, format!("{} sockets", raw.len()), format!("name at most {SOCKETS_MAX}")));
    }
    raw.iter().enumerate().map(|(index, path)| document.path(&format!("{key}[{index}]"), path)).collect()
}

fn globs(document: &Document, key: &str, raw: &[String]) -> Result<Vec<Glob>, Error> {
    if raw.len() > LABELS_MAX {
        return Err(document.wrong(key, format!("{} globs", raw.len()), format!("name at most {LABELS_MAX}")));
    }
    let cure = "write a label's name or a glob over names, such as \"app.kubernetes.io/*\"";
    raw.iter().enumerate().map(|(index, glob)| document.parsed(&format!("{key}[{index}]"), glob, cure)).collect()
}

/// What no router carries on: the host itself, its link, and Amazon's unique local address of the service.
fn is_near(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => {
            ip.is_loopback() || ip.is_unicast_link_local() || ip.segments() == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]
        }
    }
}

const CRI_SOCKETS: [&str; 2] = ["/run/containerd/containerd.sock", "/run/crio/crio.sock"];
const DOCKER_SOCKETS: [&str; 1] = ["/run/docker.sock"];
const LABELS: [&str; 4] = ["app", "app.kubernetes.io/*", "com.docker.compose.project", "com.docker.compose.service"];
/// Each is a task of its own, which looks for its socket for ever.
const SOCKETS_MAX: usize = 8;
/// Each label of a container is held against all of them.
const LABELS_MAX: usize = 64;
