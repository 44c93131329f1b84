//! Hosts whose events one rule takes for an attack: every hit is a container of its own, so every hit is an alert of its own.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::Instant;
use weir_schema::{Container, Event, Fields, Host, Kind, Process};

use crate::agents::{SimAgent, Target, random_epoch};
use crate::local::setup::Setup;
use crate::runner::now_ns;

/// The rule's name.
pub(crate) const RULE: &str = "Load test hit";

/// Writes the rule, and names it in the config of every node, with these lines besides.
pub(crate) fn write_rule(setup: &Setup, dir: &Path, more: &str) -> anyhow::Result<()> {
    let path = dir.join("hit.yaml");
    let rule = format!(
        "- rule: {RULE}\n  desc: What the load tester tells\n  condition: evt.type in (execve, execveat) and evt.failed=false and \
         proc.name=weir-hit\n  output: hit by %proc.cmdline\n  priority: WARNING\n"
    );
    std::fs::write(&path, rule).with_context(|| format!("could not write {}", path.display()))?;
    for config in &setup.node_configs {
        let mut text = std::fs::read_to_string(config).with_context(|| format!("could not read {}", config.display()))?;
        text += &format!("[rules]\npaths = [{path:?}]\n{more}");
        std::fs::write(config, text).with_context(|| format!("could not write {}", config.display()))?;
    }
    Ok(())
}

/// The hosts.
pub(crate) struct Hits {
    agents: Vec<SimAgent>,
    hosts: Vec<String>,
    /// When each was told, by container.
    pub(crate) told: BTreeMap<String, i64>,
    number: u64,
    salt: u64,
}

impl Hits {
    /// So many hosts; each begins at another node.
    pub(crate) fn start(target: &Target, hosts: usize) -> anyhow::Result<Self> {
        let (mut agents, mut names) = (Vec::new(), Vec::new());
        for number in 0..hosts {
            let name = format!("hit-{number}");
            let host = Arc::new(Host { host: name.as_str().into(), simulated: true, ..Host::default() });
            agents.push(SimAgent::start(target, "hits", host, random_epoch(), number)?);
            names.push(name);
        }
        Ok(Self { agents, hosts: names, told: BTreeMap::new(), number: 0, salt: random_epoch().0 })
    }

    /// Tells one hit; its batch leaves when it is old enough, as all do.
    pub(crate) async fn tell(&mut self) -> anyhow::Result<()> {
        let (number, now) = (self.number, now_ns());
        self.number += 1;
        let at = (number % self.agents.len() as u64) as usize;
        let container = format!("{:016x}{number:016x}", self.salt);
        let event = hit(now, number, &container, &self.hosts[at]);
        self.told.insert(container, now);
        self.agents[at].tell(&event, Instant::now()).await
    }

    /// For a while sends what is old enough.
    pub(crate) async fn rest(&mut self, lasts: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + lasts;
        loop {
            for agent in &mut self.agents {
                agent.due(Instant::now()).await?;
            }
            if Instant::now() >= until {
                return Ok(());
            }
            tokio::time::sleep(STEP.min(until.saturating_duration_since(Instant::now()))).await;
        }
    }

    /// Waits for the last acknowledgements.
    pub(crate) async fn finish(self) -> anyhow::Result<BTreeMap<String, i64>> {
        for agent in self.agents {
            agent.finish(FINISH_WITHIN).await.context("the last hits")?;
        }
        Ok(self.told)
    }
}

fn hit(time: i64, number: u64, container: &str, host: &str) -> Event {
    let process = Process {
        pid: 1_000 + (number % 1_000_000) as u32,
        start_ns: time as u64,
        ppid: Some(1),
        exe: Some("/tmp/weir-hit".into()),
        comm: Some("weir-hit".into()),
        cmdline: Some(format!("weir-hit {number}").into()),
        uid: Some(0),
        ..Process::default()
    };
    let container = Container {
        container_id: Some(container.into()),
        container_name: Some(format!("{host}-{number}").into()),
        ..Container::default()
    };
    let fields = Fields { path: Some("/tmp/weir-hit".into()), result: Some(0), ..Fields::default() };
    Event { time, kind: Kind::Exec, process: Some(Arc::new(process)), container: Some(Arc::new(container)), fields }
}

/// How often a batch's age is looked at.
const STEP: Duration = Duration::from_millis(10);
const FINISH_WITHIN: Duration = Duration::from_secs(60);
