//! Whose it is: what container runtimes, Kubernetes and the cloud say, asked for beside the way of the events.
//!
//! ```text
//!  events ──► runtime.rs (what is known) ── ids met first ──► one task per source: CRI, Docker
//!                  ▲                                          Kubernetes, cloud: of their own accord
//!                  └───────────── News, a bounded queue ◄───────────┘
//! ```
//!
//! Promise: an event never waits for a source. A source that is slow, hostile or gone costs what its limits allow, is said once with its
//! cure, and is asked again ever later. What it says late is told as a `container_update`, and is on the events from then on.

pub mod cloud;
mod cri;
pub mod cri_api;
pub mod description;
pub(crate) mod disk;
mod docker;
pub mod failure;
mod http;
mod kubernetes;
mod pod;
mod source;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use weir_config::MetadataConfig;
use weir_schema::Text;

use cloud::Instance;
use cri::Cri;
use description::{Description, Origin};
use docker::Docker;
use kubernetes::Kubernetes;
use source::{Teller, follow};

/// What a source says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// Of a container.
    Container {
        /// Its id.
        id: Text,
        /// Who says it.
        origin: Origin,
        /// All that this source knows.
        description: Description,
    },
    /// Of all containers of a pod.
    Pod {
        /// Its uid.
        uid: Text,
        /// What they have in common.
        description: Description,
    },
    /// Of the host.
    Cloud(Instance),
    /// Of itself: `ok`, or why it does not answer.
    State {
        /// The source.
        source: Text,
        /// How it is.
        state: String,
    },
}

/// The sources at work. They end when this is dropped.
#[derive(Debug)]
pub struct Metadata {
    news: mpsc::Receiver<News>,
    /// Held, so that the queue is never closed: without sources nothing is ever heard.
    _open: mpsc::Sender<News>,
    tasks: JoinSet<()>,
}

impl Metadata {
    /// Starts a task per source. Returns also where ids that were met are to be said. Needs a tokio runtime.
    pub fn start(config: &MetadataConfig, host: &str) -> (Self, Vec<mpsc::Sender<Text>>) {
        let (sender, news) = mpsc::channel(NEWS_MAX);
        let mut started = Self { news, _open: sender.clone(), tasks: JoinSet::new() };
        let mut wanted = Vec::new();
        let mut asked = || {
            let (sender, receiver) = mpsc::channel(WANTED_MAX);
            wanted.push(sender);
            receiver
        };
        for socket in &config.cri_sockets {
            let (name, cure) = (format!("cri {}", socket.display()), cure("metadata.cri_sockets"));
            let teller = Teller::new(&name, &cure, sender.clone());
            match Cri::new(socket, &config.limits) {
                Ok(cri) => drop(started.tasks.spawn(follow(cri, config.limits.clone(), asked(), teller))),
                Err(failure) => tracing::warn!(source = %name, why = %failure, %cure, "metadata: not asked"),
            }
        }
        for socket in &config.docker_sockets {
            let name = format!("docker {}", socket.display());
            let teller = Teller::new(&name, &cure("metadata.docker_sockets"), sender.clone());
            let docker = Docker::new(socket, &config.limits);
            started.tasks.spawn(follow(docker, config.limits.clone(), asked(), teller));
        }
        let kubernetes = Kubernetes::new(&config.kubernetes, &config.limits, host);
        if kubernetes.is_near() {
            let teller = Teller::new("kubernetes", KUBERNETES_CURE, sender.clone());
            started.tasks.spawn(kubernetes.follow(teller));
        }
        if !config.cloud.providers.is_empty() {
            let teller = Teller::new("cloud", CLOUD_CURE, sender);
            started.tasks.spawn(cloud::ask(config.cloud.clone(), config.limits.clone(), teller));
        }
        (started, wanted)
    }

    /// Waits for news and takes what there is, up to a limit. May be dropped and asked again.
    pub async fn next(&mut self, into: &mut Vec<News>) {
        self.news.recv_many(into, NEWS_PER_PASS_MAX).await;
    }
}

fn cure(key: &str) -> String {
    format!("let the agent's user read and write the socket, or leave it out of {key}")
}

const KUBERNETES_CURE: &str =
    "grant get, list and watch on pods to the agent's service account, or set metadata.kubernetes.enabled to false";
const CLOUD_CURE: &str =
    "let the agent reach the metadata service (IMDSv2: a hop limit that pods can pass), or set cloud and zone";
/// News that wait before their sources do.
const NEWS_MAX: usize = 256;
/// News taken between two passes over the events.
const NEWS_PER_PASS_MAX: usize = 64;
/// Ids that wait for one source: beyond them an id is left to the source's next list, and counted.
const WANTED_MAX: usize = 1_024;
