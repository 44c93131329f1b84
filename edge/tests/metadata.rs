//! Each source of metadata against a fake that speaks the real protocol over a Unix socket or loopback, the hostile ones included.

#![allow(clippy::unwrap_used, reason = "a test: helpers may fail like the cases that call them")]

#[path = "metadata/agent.rs"]
mod agent;
#[path = "metadata/cloud.rs"]
mod cloud;
#[path = "metadata/cri.rs"]
mod cri;
#[path = "metadata/docker.rs"]
mod docker;
#[path = "metadata/http.rs"]
mod http;
#[path = "metadata/kubernetes.rs"]
mod kubernetes;

use std::time::Duration;

use weir_config::{AgentConfig, MetadataConfig};
use weir_edge::enrich::metadata::description::Description;
use weir_edge::enrich::metadata::{Metadata, News};
use weir_schema::Text;

/// A container's id of 64 digits.
fn id(number: u32) -> String {
    format!("{number:064x}")
}

/// No source at all, to which a case adds its own; with short limits, so that hostile answers end soon.
fn config(more: &str) -> MetadataConfig {
    let (section, rest) = more.split_once("\n[").map_or((more, String::new()), |(section, rest)| (section, format!("\n[{rest}")));
    let sockets = |key: &str| if section.contains(key) { String::new() } else { format!("{key} = []\n") };
    let text = format!(
        "data_dir = \"data\"\n[metadata]\n{}{}{section}\n[metadata.limits]\nrequest_timeout_ms = 1000\nresync_ms = 1000\n\
         answer_bytes_max = 262144\n{rest}",
        sockets("cri_sockets"),
        sockets("docker_sockets"),
    );
    AgentConfig::parse_for_recording("/agent.toml".as_ref(), &text, Vec::new())
        .unwrap_or_else(|error| panic!("{error}\n{text}"))
        .metadata
}

/// Looks until something holds, for at most a minute.
async fn eventually(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..6_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not in a minute: {what}");
}

/// Sources at work, and what they said.
struct Heard {
    metadata: Metadata,
    wanted: Vec<tokio::sync::mpsc::Sender<Text>>,
    news: Vec<News>,
}

impl Heard {
    fn start(config: &MetadataConfig) -> Self {
        let (metadata, wanted) = Metadata::start(config, "n1");
        Self { metadata, wanted, news: Vec::new() }
    }

    /// Listens until something fits, for at most a minute. What came before counts.
    async fn until<T>(&mut self, what: &str, fits: impl Fn(&News) -> Option<T>) -> T {
        let found = tokio::time::timeout(Duration::from_secs(60), async {
            let mut looked = 0;
            loop {
                if let Some(found) = self.news[looked..].iter().find_map(&fits) {
                    return found;
                }
                looked = self.news.len();
                self.metadata.next(&mut self.news).await;
            }
        })
        .await;
        found.unwrap_or_else(|_| panic!("not heard: {what}; heard {:#?}", self.news))
    }

    /// The description of a container that fits.
    async fn container(&mut self, wanted: &str, fits: impl Fn(&Description) -> bool) -> Description {
        self.until("a container", |news| match news {
            News::Container { id, description, .. } if **id == *wanted && fits(description) => Some(description.clone()),
            _ => None,
        })
        .await
    }

    /// A state of a source.
    async fn state(&mut self, wanted: &str) -> String {
        self.until(wanted, |news| match news {
            News::State { state, .. } if state.contains(wanted) => Some(state.clone()),
            _ => None,
        })
        .await
    }

    fn says_of(&self, wanted: &str) -> usize {
        self.news.iter().filter(|news| matches!(news, News::Container { id, .. } if **id == *wanted)).count()
    }
}
