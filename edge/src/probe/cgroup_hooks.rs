//! Attaches the two programs that see UDP datagrams to the root cgroup.
//!
//! A mount of our own is used that appears in no mount table and ends with its file descriptor, so it does not matter where cgroup v2
//! is mounted; where we may not mount, it must stand at one of the usual places. Other programs there go on as before: ours are one more link, and always let a datagram pass.

use std::fs::File;
use std::os::fd::OwnedFd;

use aya::Ebpf;
use aya::programs::{CgroupAttachMode, CgroupSkbAttachType, Program};

use super::load::{HookState, Report, chain};
use super::tracefs;

/// Which datagrams are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpPolicy {
    /// The first datagram of a socket to a peer, and sums of what follows.
    pub sends: bool,
    /// Questions and answers of DNS, port 53.
    pub dns: bool,
    /// What follows a told datagram is summed up and told with the first one after this time.
    pub repeat_ms: u64,
    /// Records of sends that one process may cause in a second; more are counted. 0: no limit.
    pub sends_per_second_max: u32,
    /// The same of questions, and of answers.
    pub dns_per_second_max: u32,
}

impl UdpPolicy {
    /// Nothing: the programs are not attached.
    pub const OFF: Self = Self { sends: false, dns: false, repeat_ms: 0, sends_per_second_max: 0, dns_per_second_max: 0 };
}

impl Default for UdpPolicy {
    fn default() -> Self {
        Self { sends: true, dns: true, repeat_ms: 60_000, sends_per_second_max: 0, dns_per_second_max: 0 }
    }
}

/// Attaches what the policy needs; a refusal is a line in the report.
pub(super) fn attach(ebpf: &mut Ebpf, policy: &UdpPolicy, report: &mut Report) {
    if !policy.sends && !policy.dns {
        return;
    }
    let root = root();
    for (program, name, _) in HOOKS.iter().filter(|(_, _, answers)| policy.dns || !answers) {
        let why = root.as_ref().map_err(Clone::clone).and_then(|root| one(ebpf, program, root)).err();
        report.hooks.push(HookState { name, attached: why.is_none(), why });
    }
}

fn root() -> Result<OwnedFd, String> {
    let why = match tracefs::private_mount(c"cgroup2") {
        Ok(root) => return Ok(root),
        Err(why) => why,
    };
    let is_v2 = |path: &&&str| rustix::fs::statfs(**path).is_ok_and(|fs| fs.f_type == CGROUP2_MAGIC);
    let mounted = MOUNTED.iter().find(is_v2).and_then(|path| File::open(path).ok());
    mounted.map(OwnedFd::from).ok_or_else(|| format!("no cgroup v2 at {}, and no mount of our own: {why}", MOUNTED.join(" or ")))
}

fn one(ebpf: &mut Ebpf, program: &str, root: &OwnedFd) -> Result<(), String> {
    let Program::CgroupSkb(p) = ebpf.program_mut(program).expect("the object holds it: a test looks") else {
        return Err("not a program of cgroups".to_owned());
    };
    let way = if program == HOOKS[0].0 { CgroupSkbAttachType::Egress } else { CgroupSkbAttachType::Ingress };
    p.load().map_err(|e| chain(&e))?;
    p.attach(root, way, CgroupAttachMode::Single).map_err(|e| chain(&e))?;
    Ok(())
}

/// On hybrid hosts the first, else the second.
const MOUNTED: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
const CGROUP2_MAGIC: rustix::fs::FsWord = 0x6367_7270;
/// Program, what the report calls it, whether it serves answers only.
pub(super) const HOOKS: [(&str, &str, bool); 2] =
    [("on_egress", "cgroup_skb/egress", false), ("on_ingress", "cgroup_skb/ingress", true)];
