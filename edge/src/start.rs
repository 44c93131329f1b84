//! Which collector works here: the kernel's hooks, or polls of procfs; and what `host_start` says about it and about
//! the rights that are left.

use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::{Interval, MissedTickBehavior};
use weir_config::{AgentConfig, CallFilter, Collector, UdpFilter};

use crate::agent::RECORDS_PER_PASS_MAX;
use crate::confine::{self, Process};
use crate::enrich::cgroup::Mounts;
use crate::enrich::host::kernel_release;
use crate::enrich::proc::Proc;
use crate::loss::{Losses, Reason};
use crate::probe::procfs::{CANNOT_SEE, Poller};
use crate::probe::{CallPolicy, Dropped, HookSet, OpenPolicy, Options, Probe, RawEvent, Report, UdpPolicy};
use crate::record::RecordTo;

/// The collector that works.
pub(crate) enum Collecting {
    /// Hooks in the kernel.
    Kernel(Box<Probe>, Report),
    /// Polls, and why.
    Polls(Box<Poller>, Interval, String),
    /// Stopped.
    Ended,
}

impl Collecting {
    /// Attaches the hooks, or falls back to polling and says so.
    pub(crate) fn start(config: &Collector, proc: Proc, mounts: Mounts) -> Self {
        let why = if config.ebpf {
            match Probe::load(&options(config)) {
                Ok((probe, report)) => {
                    for hook in report.hooks.iter().filter(|hook| !hook.attached) {
                        tracing::warn!(hook = hook.name, why = hook.why.as_deref().unwrap_or(""), "hook not attached");
                    }
                    let attached = report.hooks.iter().filter(|hook| hook.attached).count();
                    tracing::info!(attached, hooks = report.hooks.len(), "kernel hooks attached");
                    return Self::Kernel(Box::new(probe), report);
                }
                Err(unavailable) => unavailable.to_string(),
            }
        } else {
            "collector.ebpf is false".to_owned()
        };
        tracing::warn!(%why, cannot_see = CANNOT_SEE.join("; "), "no eBPF: polling procfs");
        let mut interval = tokio::time::interval(Duration::from_millis(config.poll_interval_ms));
        interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
        Self::Polls(Box::new(Poller::new(proc, mounts)), interval, why)
    }

    pub(crate) fn is_kernel(&self) -> bool {
        matches!(self, Self::Kernel(..))
    }

    /// Connections and listeners that are older than the agent.
    pub(crate) fn state_at_start(&mut self) -> Vec<RawEvent> {
        let Self::Kernel(probe, _) = self else { return Vec::new() };
        probe.sockets().unwrap_or_else(|error| {
            tracing::warn!(%error, "connections older than the agent stay unknown");
            Vec::new()
        })
    }

    /// Waits until there may be something to collect.
    pub(crate) async fn wait(&mut self) {
        match self {
            Self::Kernel(probe, _) => probe.ring().wait().await,
            Self::Polls(_, interval, _) => {
                interval.tick().await;
            }
            Self::Ended => std::future::pending().await,
        }
    }

    /// Appends what there is, up to the limit of a pass; returns how much was read.
    pub(crate) fn collect(&mut self, now_ns: u64, out: &mut Vec<RawEvent>, losses: &mut Losses) -> usize {
        match self {
            Self::Kernel(probe, _) => probe.ring().drain(RECORDS_PER_PASS_MAX, |record| keep(record, out, losses)),
            Self::Polls(poller, interval, _) => {
                if poller.is_due(now_ns, interval.period()) {
                    poller.poll(now_ns, out);
                }
                0
            }
            Self::Ended => 0,
        }
    }

    /// The kernel's counters of records without room and of hooks skipped.
    pub(crate) fn dropped(&mut self) -> Option<Dropped> {
        let Self::Kernel(probe, _) = self else { return None };
        match probe.dropped() {
            Ok(dropped) => Some(dropped),
            Err(error) => {
                tracing::warn!(%error, "could not read the drop counters");
                None
            }
        }
    }

    /// Detaches, takes what is left, and returns the final counters.
    pub(crate) fn finish(self, out: &mut Vec<RawEvent>, losses: &mut Losses) -> Option<Dropped> {
        let Self::Kernel(probe, _) = self else { return None };
        match probe.finish(|record| keep(record, out, losses)) {
            Ok(dropped) => Some(dropped),
            Err(error) => {
                tracing::warn!(%error, "could not read the last drop counters");
                None
            }
        }
    }
}

fn keep<E>(record: Result<RawEvent, E>, out: &mut Vec<RawEvent>, losses: &mut Losses) {
    match record {
        Ok(raw) => out.push(raw),
        Err(_) => {
            metrics::counter!(crate::metrics::UNDECODED).increment(1);
            losses.add("any", Reason::Undecoded, 1);
        }
    }
}

fn options(config: &Collector) -> Options {
    let Collector { exec, network, file, cgroup, open, calls, udp, ring_bytes, .. } = config;
    let UdpFilter { sends, dns, repeat_ms, sends_per_second_max, dns_per_second_max } = *udp;
    let CallFilter { security, changes, memory, absent_modules, per_second_max, changes_per_second_max } = *calls;
    Options {
        hooks: HookSet {
            exec: *exec,
            network: *network,
            file: *file,
            cgroup: *cgroup,
            security,
            changes,
            memory,
            absent_modules,
        },
        calls: CallPolicy { per_second_max, changes_per_second_max },
        udp: UdpPolicy { sends, dns, repeat_ms, sends_per_second_max, dns_per_second_max },
        open: OpenPolicy { writes: open.writes, prefixes: open.prefixes.clone(), repeat_ms: OPEN_REPEAT_MS },
        ring_bytes: *ring_bytes,
        ..Options::default()
    }
}

/// What `host_start.detail` says: versions, which hooks hold, why others do not, what cannot be seen.
pub(crate) fn start_detail(collecting: &Collecting) -> Map<String, Value> {
    let mut detail = Map::new();
    detail.insert("agent_version".into(), env!("CARGO_PKG_VERSION").into());
    detail.insert("kernel".into(), kernel_release().into());
    match collecting {
        Collecting::Kernel(_, report) => {
            let attached: Vec<&str> = report.hooks.iter().filter(|hook| hook.attached).map(|hook| hook.name).collect();
            let refused: Map<String, Value> = report
                .hooks
                .iter()
                .filter(|hook| !hook.attached)
                .map(|hook| {
                    let why = hook.why.as_deref().unwrap_or("");
                    (hook.name.to_owned(), why[..why.floor_char_boundary(WHY_BYTES_MAX)].into())
                })
                .collect();
            detail.insert("mode".into(), "ebpf".into());
            detail.insert("hooks".into(), attached.into());
            detail.insert("hooks_refused".into(), refused.into());
        }
        Collecting::Polls(_, _, why) => {
            detail.insert("mode".into(), "procfs".into());
            detail.insert("why".into(), why[..why.floor_char_boundary(2 * WHY_BYTES_MAX)].into());
            detail.insert("cannot_see".into(), CANNOT_SEE.to_vec().into());
        }
        Collecting::Ended => {}
    }
    detail
}

/// Gives up what is not needed any more, where that is ours to give up; says what is left.
pub(crate) fn rights(
    process: Process,
    config: &AgentConfig,
    collecting: &Collecting,
    record: Option<&RecordTo>,
) -> Option<Value> {
    if process == Process::Shared || !config.process.drop_privileges {
        return None;
    }
    let recording = record.and_then(|to| to.file.parent());
    let folders: Vec<_> = [Some(config.data_dir.as_path()), recording].into_iter().flatten().collect();
    Some(confine::settle(&config.process, collecting.is_kernel(), &folders))
}

/// Longest reason shipped for a hook: all of them fit into one `detail`.
const WHY_BYTES_MAX: usize = 120;
/// The same process opening the same file again is told once in this time.
const OPEN_REPEAT_MS: u64 = 1_000;
