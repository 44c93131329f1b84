//! Loads the committed object, attaches what the kernel allows, and says what it does not.
//!
//! Attaching is soft: a hook that is refused is a line in the `Report`, the others go on. Only when nothing can work (no BTF, no
//! permission) is the answer `Unavailable`, and the agent falls back to procfs. The host is not changed: nothing is mounted where
//! others see it, nothing is pinned, and dropping the `Probe` detaches everything.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{MapData, PerCpuArray, RingBuf};
use aya::programs::Program;
use aya::{Btf, Ebpf, EbpfLoader};

use super::call_hooks::CallHooks;
use super::call_table::{self, CallGroup, CallName};
use super::cgroup_hooks::{self, UdpPolicy};
use super::decode::{self, DecodeError};
use super::nested::{self, Nested};
use super::raw::{RawEvent, Who};
use super::ring::{Dropped, Ring};
use super::tracefs::Tracefs;

/// What to attach and how much memory it may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Which groups of hooks.
    pub hooks: HookSet,
    /// Which file opens leave the kernel.
    pub open: OpenPolicy,
    /// How many system calls a process may make that are told.
    pub calls: CallPolicy,
    /// Which UDP datagrams are told.
    pub udp: UdpPolicy,
    /// Size of the ring, a power of two and a multiple of the page size.
    pub ring_bytes: u32,
    /// Sockets whose owner and sequence numbers are kept (about 250 bytes of kernel memory each, taken at load). Of more, the
    /// longest unused are forgotten: their close comes without owner.
    pub sockets_max: u32,
    /// File opens of this process are left out: the agent's own, which would feed themselves.
    pub skip_pid: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            hooks: HookSet {
                exec: true,
                network: true,
                file: true,
                cgroup: true,
                security: true,
                changes: true,
                memory: true,
                absent_modules: true,
            },
            open: OpenPolicy::default(),
            calls: CallPolicy::default(),
            udp: UdpPolicy::default(),
            ring_bytes: 8 << 20,
            sockets_max: 65_536,
            skip_pid: Some(std::process::id()),
        }
    }
}

/// Groups of hooks that can be switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HookSet {
    /// exec, fork, exit.
    pub exec: bool,
    /// TCP.
    pub network: bool,
    /// File opens.
    pub file: bool,
    /// Cgroup mkdir, rmdir, attach.
    pub cgroup: bool,
    /// Sensitive system calls.
    pub security: bool,
    /// System calls that change files.
    pub changes: bool,
    /// Memory made writable and executable at once.
    pub memory: bool,
    /// Attempts to load modules where the kernel cannot: a look at every system call. Goes with `security`.
    pub absent_modules: bool,
}

/// How many system calls of one process and one name are told per second; more are counted. 0: all are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CallPolicy {
    /// Sensitive ones.
    pub per_second_max: u32,
    /// Changes of files. One that sets a set-user-id or set-group-id bit is told whatever the limit.
    pub changes_per_second_max: u32,
}

/// Which file opens leave the kernel: those that match any of these. Regular files and directories only.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OpenPolicy {
    /// Every open for writing.
    pub writes: bool,
    /// Opens of any mode of paths (as the kernel resolved them) that begin with one of these bytes. At most 64 of at most 64 bytes.
    pub prefixes: Vec<String>,
    /// The same process opening the same file in the same direction again within this time is left out. 0: nothing is left out.
    pub repeat_ms: u64,
}

/// What became of each hook.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// One per hook, in the order they are tried.
    pub hooks: Vec<HookState>,
}

/// What became of one hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookState {
    /// Kernel's name of it, such as `sched_process_exec`, or a system call's whose entry and exit are hooked; with the part in brackets where a second program serves it.
    pub name: &'static str,
    /// It delivers.
    pub attached: bool,
    /// Why not, and the cure where there is one.
    pub why: Option<String>,
}

impl Report {
    /// True when the hook delivers.
    pub fn attached(&self, name: &str) -> bool {
        self.hooks.iter().any(|h| h.name == name && h.attached)
    }

    fn refused(&self, name: &str) -> bool {
        self.hooks.iter().any(|h| h.name == name && !h.attached)
    }
}

/// eBPF cannot work here at all.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// The kernel tells no types.
    #[error(
        "the kernel has no BTF at /sys/kernel/btf/vmlinux ({0}); it needs CONFIG_DEBUG_INFO_BTF, as distributions since 2021 have"
    )]
    NoBtf(String),
    /// Maps or programs were refused.
    #[error("the kernel refused the programs ({0}); run as root, or with CAP_BPF, CAP_PERFMON and CAP_SYS_RESOURCE")]
    Refused(String),
    /// The options cannot be met.
    #[error("{0}")]
    Options(String),
}

/// An iterator or a counter could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The kernel refused.
    #[error("could not read {what}: {why}")]
    Refused {
        /// What was read.
        what: &'static str,
        /// What the kernel said.
        why: String,
    },
    /// It answered what is no record.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// The programs, attached. Dropping it stops and detaches them; for system calls the kernel takes seconds, in the background.
pub struct Probe {
    ebpf: Ebpf,
    calls: CallHooks,
    /// Perf events of the syscall tracepoints: closing them detaches.
    tracepoints: Vec<OwnedFd>,
    iterators: Vec<&'static str>,
    ring: Ring,
    /// Nothing only while loading.
    nested: Option<Nested>,
}

impl Probe {
    /// Loads and attaches. Must be called inside a tokio runtime (the ring is a readiness source).
    pub fn load(options: &Options) -> Result<(Self, Report), Unavailable> {
        check(options)?;
        // 46 MB of types, needed only while loading.
        let btf = Btf::from_sys_fs().map_err(|e| Unavailable::NoBtf(chain(&e)))?;
        let mut ebpf = object(options, &btf)?;
        let ring = ring(&mut ebpf)?;
        prefixes(&mut ebpf, &options.open)?;
        let calls = CallHooks::new(&mut ebpf).map_err(|e| Unavailable::Refused(chain(&e)))?;

        let mut probe = Self { ebpf, calls, tracepoints: Vec::new(), iterators: Vec::new(), ring, nested: None };
        let mut report = Report::default();
        let tracefs = Tracefs::open();
        for hook in HOOKS.iter().filter(|hook| wanted(hook, options)) {
            let why = probe.attach(hook, &btf, &tracefs).err();
            report.hooks.push(HookState { name: hook.label, attached: why.is_none(), why });
        }
        cgroup_hooks::attach(&mut probe.ebpf, &options.udp, &mut report);
        let calls: Vec<CallName> = CallName::ALL.iter().copied().filter(|name| call_wanted(name.group(), options)).collect();
        probe.calls.attach(&mut probe.ebpf, &tracefs, &calls, &mut report);
        if options.hooks.absent_modules
            && call_table::module_numbers().is_some()
            && call_table::MODULE_CALLS.iter().all(|name| report.refused(name.as_str()))
        {
            let why = probe.attach(&ABSENT, &btf, &tracefs).err();
            report.hooks.push(HookState { name: ABSENT.label, attached: why.is_none(), why });
        }
        if report.hooks.iter().all(|hook| !hook.attached) {
            let why = report.hooks.first().and_then(|hook| hook.why.clone());
            return Err(Unavailable::Refused(why.unwrap_or_else(|| "no hook is switched on".to_owned())));
        }
        probe.nested = Some(Nested::start(&mut probe.ebpf, &report).map_err(|e| Unavailable::Refused(chain(&e)))?);
        drop(btf);
        give_back();
        Ok((probe, report))
    }

    /// The ring to wait on and to drain.
    pub fn ring(&mut self) -> &mut Ring {
        &mut self.ring
    }

    /// Every process there is now, with exact start times.
    pub fn tasks(&mut self) -> Result<Vec<Who>, ReadError> {
        Ok(decode::tasks(&self.iterate("it_task")?)?)
    }

    /// Every TCP connection and listener of the agent's network namespace, with owners, as `TcpOp::Seen`. Their later `Close`
    /// then carries owner, role and sequence numbers although they are older than the agent.
    pub fn sockets(&mut self) -> Result<Vec<RawEvent>, ReadError> {
        self.iterate("it_tcp")?;
        self.iterate("it_file")?;
        Ok(decode::sockets(&self.iterate("it_tcp")?)?)
    }

    /// Everything lost until now: records that found no room and calls that were skipped and that no twin made good. Reads one
    /// small file per program.
    pub fn dropped(&self) -> Result<Dropped, ReadError> {
        let skipped = self.skipped()?;
        self.ring.dropped().map(|dropped| Dropped { skipped, ..dropped })
    }

    fn skipped(&self) -> Result<u64, ReadError> {
        let (mut skipped, mut missed) = (0, 0);
        for program in self.programs().iter().filter(|program| !nested::is_spare(&program.program)) {
            let count = if program.program == nested::CHAIN[0] { &mut missed } else { &mut skipped };
            *count += program.skipped;
        }
        let made_good = self.nested.as_ref().map_or(Ok(0), Nested::count);
        let made_good = made_good.map_err(|e| ReadError::Refused { what: "nested calls", why: e.to_string() })?;
        Ok(skipped + nested::lost(missed, made_good))
    }

    /// Calls that the kernel skipped, whether a twin made them good or not, and calls and nanoseconds where
    /// `kernel.bpf_stats_enabled` is 1: one row per program.
    pub fn programs(&self) -> Vec<ProgramStats> {
        self.ebpf.programs().filter_map(|(name, program)| stats(name, program)).collect()
    }

    /// Detaches, hands out what is still on the ring, then counts what was dropped: after this nothing can come any more.
    pub fn finish(self, sink: impl FnMut(Result<RawEvent, DecodeError>)) -> Result<Dropped, ReadError> {
        let skipped = self.skipped()?;
        let Self { ebpf, calls, tracepoints, mut ring, .. } = self;
        drop(calls);
        drop(tracepoints);
        drop(ebpf);
        ring.drain(usize::MAX, sink);
        ring.dropped().map(|dropped| Dropped { skipped, ..dropped })
    }

    fn attach(&mut self, hook: &Hook, btf: &Btf, tracefs: &std::io::Result<Tracefs>) -> Result<(), String> {
        let program = self.ebpf.program_mut(hook.program).expect("the object holds every program of HOOKS: a test compares them");
        match program {
            Program::BtfTracePoint(p) => {
                p.load(hook.name, btf).map_err(|e| chain(&e))?;
                p.attach().map_err(|e| chain(&e))?;
            }
            Program::TracePoint(p) => {
                let tracefs =
                    tracefs.as_ref().map_err(|e| format!("tracefs: {e}; mount -t tracefs tracefs /sys/kernel/tracing"))?;
                if p.fd().is_err() {
                    p.load().map_err(|e| chain(&e))?;
                }
                let program = p.fd().map_err(|e| chain(&e))?;
                let event = tracefs.attach(hook.name, program.as_fd()).map_err(|e| format!("tracepoint {}: {e}", hook.name))?;
                self.tracepoints.push(event);
            }
            Program::Iter(p) => {
                let target = hook.name.trim_start_matches("iter/");
                p.load(target, btf).map_err(|e| chain(&e))?;
                self.iterators.push(hook.program);
            }
            _ => return Err("not a kind of program that we attach".to_owned()),
        }
        Ok(())
    }

    fn iterate(&mut self, program: &'static str) -> Result<Vec<u8>, ReadError> {
        let refused = |why: String| ReadError::Refused { what: program, why };
        if !self.iterators.contains(&program) {
            return Err(refused("it was not loaded".to_owned()));
        }
        let Some(Program::Iter(iterator)) = self.ebpf.program_mut(program) else {
            return Err(refused("it is no iterator".to_owned()));
        };
        let link = iterator.attach().and_then(|link| iterator.take_link(link)).map_err(|e| refused(chain(&e)))?;
        let mut rows = Vec::new();
        link.into_file().map_err(|e| refused(chain(&e)))?.read_to_end(&mut rows).map_err(|e| refused(e.to_string()))?;
        Ok(rows)
    }
}

/// What the kernel counts per program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramStats {
    /// Name in `edge.bpf.c`.
    pub program: String,
    /// Calls, when the kernel counts them.
    pub calls: u64,
    /// Nanoseconds in those calls.
    pub ns: u64,
    /// Calls that did not happen because the program was already at work on that cpu, or, on system calls, any was.
    pub skipped: u64,
}

fn stats(name: &str, program: &Program) -> Option<ProgramStats> {
    use std::os::fd::AsRawFd;
    let fd = program.fd().ok()?;
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd())).ok()?;
    let field = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok()).unwrap_or(0);
    Some(ProgramStats {
        program: name.to_owned(),
        calls: field("run_cnt:"),
        ns: field("run_time_ns:"),
        skipped: field("recursion_misses:"),
    })
}

fn check(options: &Options) -> Result<(), Unavailable> {
    if !options.ring_bytes.is_power_of_two() || options.ring_bytes < 4096 {
        return Err(Unavailable::Options(format!("ring_bytes is {}; a power of two from 4096 is needed", options.ring_bytes)));
    }
    if options.open.prefixes.len() > PREFIXES_MAX || options.open.prefixes.iter().any(|p| p.is_empty() || p.len() > PREFIX_BYTES)
    {
        return Err(Unavailable::Options(format!(
            "at most {PREFIXES_MAX} open prefixes of 1 to {PREFIX_BYTES} bytes fit the kernel filter"
        )));
    }
    Ok(())
}

fn wanted(hook: &Hook, options: &Options) -> bool {
    match hook.group {
        Group::Exec => options.hooks.exec,
        Group::Network => options.hooks.network,
        Group::File => options.hooks.file && (options.open.writes || !options.open.prefixes.is_empty()),
        Group::Cgroup => options.hooks.cgroup,
        Group::Signal => options.hooks.security,
        Group::Always => true,
    }
}

fn call_wanted(group: CallGroup, options: &Options) -> bool {
    match group {
        CallGroup::Security => options.hooks.security,
        CallGroup::Change => options.hooks.changes,
        CallGroup::Memory => options.hooks.memory,
    }
}

fn object(options: &Options, btf: &Btf) -> Result<Ebpf, Unavailable> {
    let skip = options.skip_pid.unwrap_or(0);
    let writes = u32::from(options.open.writes);
    let limit = u64::from(options.calls.per_second_max);
    let changes_limit = u64::from(options.calls.changes_per_second_max);
    let repeat_ns = options.open.repeat_ms.saturating_mul(1_000_000);
    let modules = call_table::module_numbers().unwrap_or_default();
    let UdpPolicy { sends, dns, repeat_ms: udp_repeat_ms, sends_per_second_max, dns_per_second_max } = options.udp;
    EbpfLoader::new()
        .btf(Some(btf))
        .override_global("SELF", &skip, true)
        .override_global("OPEN_WRITES", &writes, true)
        .override_global("OPEN_REPEAT_NS", &repeat_ns, true)
        .override_global("CALLS_PER_SECOND", &limit, true)
        .override_global("CHANGES_PER_SECOND", &changes_limit, true)
        .override_global("MODULE_CALLS", &modules, true)
        .override_global("UDP_SENDS", &u32::from(sends), true)
        .override_global("UDP_DNS", &u32::from(dns), true)
        .override_global("UDP_REPEAT_NS", &udp_repeat_ms.saturating_mul(1_000_000), true)
        .override_global("SENDS_PER_SECOND", &u64::from(sends_per_second_max), true)
        .override_global("DNS_PER_SECOND", &u64::from(dns_per_second_max), true)
        .map_max_entries("EVENTS", options.ring_bytes)
        .map_max_entries("SOCKETS", options.sockets_max)
        .load(OBJECT)
        .map_err(|e| Unavailable::Refused(chain(&e)))
}

fn ring(ebpf: &mut Ebpf) -> Result<Ring, Unavailable> {
    let refused = |e: &dyn std::error::Error| Unavailable::Refused(chain(e));
    let events = ebpf.take_map("EVENTS").expect("declared in edge.bpf.c");
    let drops = ebpf.take_map("DROPS").expect("declared in edge.bpf.c");
    let events: RingBuf<MapData> = RingBuf::try_from(events).map_err(|e| refused(&e))?;
    let drops: PerCpuArray<MapData, u64> = PerCpuArray::try_from(drops).map_err(|e| refused(&e))?;
    Ring::new(events, drops).map_err(|e| refused(&e))
}

fn prefixes(ebpf: &mut Ebpf, policy: &OpenPolicy) -> Result<(), Unavailable> {
    let map = ebpf.map_mut("OPEN_PREFIXES").expect("declared in edge.bpf.c");
    let mut trie: LpmTrie<_, [u8; PREFIX_BYTES], u32> = LpmTrie::try_from(map).map_err(|e| Unavailable::Refused(chain(&e)))?;
    for prefix in &policy.prefixes {
        let mut bytes = [0; PREFIX_BYTES];
        bytes[..prefix.len()].copy_from_slice(prefix.as_bytes());
        let key = Key::new(prefix.len() as u32 * 8, bytes);
        trie.insert(&key, 1, 0).map_err(|e| Unavailable::Refused(chain(&e)))?;
    }
    Ok(())
}

/// Hands the freed types back to the system: glibc keeps what it has freed, and the agent should stay small.
fn give_back() {
    // SAFETY: malloc_trim takes no pointer and may be called at any time.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// An error with its causes, but for the verifier's log, which is pages long.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    let line = text.lines().next().unwrap_or_default();
    line.chars().take(300).collect()
}

enum Group {
    Exec,
    Network,
    File,
    Cgroup,
    Signal,
    Always,
}

struct Hook {
    program: &'static str,
    name: &'static str,
    label: &'static str,
    group: Group,
}

const fn hook(program: &'static str, name: &'static str, group: Group) -> Hook {
    Hook { program, name, label: name, group }
}

const fn spare(program: &'static str, name: &'static str, label: &'static str) -> Hook {
    Hook { program, name, label, group: Group::Network }
}

/// What is attached where; some programs serve several system calls. The state of sockets is hooked first: a connect must find its owner kept.
/// Programs on one tracepoint run in the order in which they are attached.
const HOOKS: &[Hook] = &[
    hook(nested::CHAIN[0], "inet_sock_set_state", Group::Network),
    spare(nested::CHAIN[1], "inet_sock_set_state", nested::LABELS[0]),
    spare(nested::CHAIN[2], "inet_sock_set_state", nested::LABELS[1]),
    hook("x_accept", "sys_exit_accept", Group::Network),
    hook("x_accept", "sys_exit_accept4", Group::Network),
    hook("e_connect", "sys_enter_connect", Group::Network),
    hook("x_connect", "sys_exit_connect", Group::Network),
    hook("on_exec", "sched_process_exec", Group::Exec),
    hook("on_fork", "sched_process_fork", Group::Exec),
    hook("on_exit", "sched_process_exit", Group::Exec),
    hook("on_cgroup_mkdir", "cgroup_mkdir", Group::Cgroup),
    hook("on_cgroup_rmdir", "cgroup_rmdir", Group::Cgroup),
    hook("on_cgroup_attach", "cgroup_attach_task", Group::Cgroup),
    hook("x_open", "sys_exit_openat", Group::File),
    hook("x_open", "sys_exit_openat2", Group::File),
    hook("x_open", "sys_exit_open", Group::File),
    hook("on_signal", "signal_generate", Group::Signal),
    hook("it_task", "iter/task", Group::Always),
    hook("it_tcp", "iter/tcp", Group::Network),
    hook("it_file", "iter/task_file", Group::Network),
];

/// Sees the calls for modules where the kernel has none: it looks at every call, so it is attached there only.
const ABSENT: Hook = Hook { program: "e_absent", name: "sys_enter", label: "sys_enter (absent modules)", group: Group::Always };
const PREFIXES_MAX: usize = 64;
const PREFIX_BYTES: usize = 64;

static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/edge.bpf.o");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hook_finds_its_program() {
        let object = aya::include_bytes_aligned!("../../bpf/edge.bpf.o");
        let others = crate::probe::call_hooks::PROGRAMS.into_iter().chain(cgroup_hooks::HOOKS.map(|hook| hook.0));
        for program in HOOKS.iter().chain([&ABSENT]).map(|hook| hook.program).chain(others) {
            let name = program.as_bytes();
            assert!(object.windows(name.len()).any(|w| w == name), "{program} is not in edge.bpf.o");
        }
    }

    #[test]
    fn options_that_cannot_be_met_are_refused_with_a_cure() {
        let check = |options: Options, expected: &str| assert_eq!(check(&options).unwrap_err().to_string(), expected);
        check(Options { ring_bytes: 5000, ..Options::default() }, "ring_bytes is 5000; a power of two from 4096 is needed");
        let open = OpenPolicy { prefixes: vec!["x".repeat(65)], ..OpenPolicy::default() };
        check(Options { open, ..Options::default() }, "at most 64 open prefixes of 1 to 64 bytes fit the kernel filter");
    }
}
