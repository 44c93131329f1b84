//! What the agent's process gives up: capabilities, the way to get others, system calls that it has no use for.
//!
//! In two steps, because a capability is a thread's: [`begin`] while there is one thread, and `settle` once the hooks are attached. Threads that
//! begin later have no more than the one that begins them. What cannot be given up is said and is no reason not to run: less is seen
//! without an agent than with one that may too much.

mod calls;

use std::path::Path;

use caps::{CapSet, Capability, CapsHashSet};
use serde_json::{Value, json};
use weir_config::{ProcessConfig, SeccompMode};

/// Who runs the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// A process that is nothing but the agent: it may be confined.
    Own,
    /// A part of another program, whose rights are not the agent's to give up.
    Shared,
}

/// Before any thread is started: only what attaching the hooks takes is left, and nothing can be gained any more.
pub fn begin() {
    let mut refused = Vec::new();
    let mut tried = |what: &str, done: Result<(), String>| {
        if let Err(why) = done {
            refused.push(format!("{what}: {why}"));
        }
    };
    tried("no_new_privs", crate::probe::system::no_new_privileges().map_err(|error| error.to_string()));
    for set in [CapSet::Ambient, CapSet::Inheritable] {
        tried("capabilities", caps::clear(None, set).map_err(|error| error.to_string()));
    }
    // Without CAP_SETPCAP the set cannot be made smaller; without a program that is executed it is of no use either.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).unwrap_or(false) {
        for capability in caps::read(None, CapSet::Bounding).unwrap_or_default() {
            if !WHILE_LOADING.contains(&capability) {
                tried("bounding set", caps::drop(None, CapSet::Bounding, capability).map_err(|error| error.to_string()));
            }
        }
    }
    tried("capabilities", keep(WHILE_LOADING).map_err(|error| error.to_string()));
    if !refused.is_empty() {
        tracing::warn!(refused = refused.join("; "), "some rights could not be given up");
    }
}

/// With the hooks attached: gives up what only they needed, and says what is left, for `host_start`. `is_kernel`: there are hooks.
/// `folders`: where the agent writes; folders of other users' take `CAP_DAC_OVERRIDE`.
pub(crate) fn settle(config: &ProcessConfig, is_kernel: bool, folders: &[&Path]) -> Value {
    let own = folders.iter().all(|folder| crate::probe::system::is_own(folder));
    let kept: Vec<Capability> = AFTER_LOADING
        .iter()
        .copied()
        .filter(|capability| is_kernel || *capability != Capability::CAP_BPF)
        .chain((!own).then_some(Capability::CAP_DAC_OVERRIDE))
        .collect();
    if let Err(error) = keep(&kept) {
        tracing::warn!(%error, "capabilities that are not needed any more could not be given up");
    }
    let mut seccomp = config.seccomp;
    if let Err(why) = calls::filter(config.seccomp) {
        tracing::warn!(why, "the kernel took no filter of system calls");
        seccomp = SeccompMode::Off;
    }
    let mut left: Vec<String> = caps::read(None, CapSet::Permitted).unwrap_or_default().iter().map(ToString::to_string).collect();
    left.sort();
    tracing::info!(capabilities = left.join(" "), seccomp = seccomp.as_str(), "rights given up");
    json!({ "capabilities": left, "seccomp": seccomp.as_str() })
}

/// Gives up all capabilities of this thread but those of `wanted` that it has.
fn keep(wanted: &[Capability]) -> Result<(), caps::errors::CapsError> {
    let held = caps::read(None, CapSet::Permitted)?;
    let left: CapsHashSet = held.into_iter().filter(|capability| wanted.contains(capability)).collect();
    // The effective set first: it may never hold more than the permitted one.
    caps::set(None, CapSet::Effective, &left)?;
    caps::set(None, CapSet::Permitted, &left)
}

/// What the agent needs while it runs: reading maps where unprivileged bpf is off, `/proc/PID` of other users'
/// processes, cgroups by their kernel id and files below `/proc`.
const AFTER_LOADING: &[Capability] = &[Capability::CAP_BPF, Capability::CAP_SYS_PTRACE, Capability::CAP_DAC_READ_SEARCH];

/// The same, and what loading takes: tracing programs, those at the cgroup, a tracefs of its own where none is mounted, locked memory on
/// kernels before 5.11; and to open a recording or `data_dir` in another user's folder.
const WHILE_LOADING: &[Capability] = &[
    Capability::CAP_BPF,
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_PERFMON,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_RESOURCE,
    Capability::CAP_DAC_OVERRIDE,
];
