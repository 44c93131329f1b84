//! The host's counters, from procfs: parsers as pure functions over text.

use std::fs;
use std::path::Path;

use crate::sample::{Counters, Gauges, Reading};

/// Reads the host's counters below `proc_root`. The number of processes is known elsewhere.
pub fn read(proc_root: &Path) -> Reading {
    let text = |name: &str| fs::read_to_string(proc_root.join(name)).unwrap_or_default();
    let stat = text("stat");
    let memory = text("meminfo");
    let disks = disks(&text("diskstats"));
    let network = network(&text("net/dev"), Links::Physical);
    let counters = Counters {
        cpu_ns: cpu_ns(&stat),
        io_read_bytes: disks.map(|(read, _)| read),
        io_write_bytes: disks.map(|(_, written)| written),
        net_sent_bytes: network.map(|(sent, _)| sent),
        net_received_bytes: network.map(|(_, received)| received),
        oom_kills: crate::sample::cgroup::keyed(&text("vmstat"), "oom_kill"),
        throttled_ns: None,
    };
    let total = meminfo(&memory, "MemTotal");
    let gauges = Gauges {
        mem_bytes: total.zip(meminfo(&memory, "MemAvailable")).map(|(total, free)| total.saturating_sub(free)),
        mem_limit_bytes: total,
        cpu_limit: cpus(&stat).map(|cpus| cpus * 1000),
        processes: None,
    };
    Reading { counters, gauges, member: None }
}

/// CPU time used by anything, in nanoseconds: user, nice, system, irq, softirq and steal. Guests are inside user; idle and
/// waiting for disks is no use.
pub fn cpu_ns(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_ascii_whitespace().map_while(|word| word.parse().ok()).collect();
    let used = [0, 1, 2, 5, 6, 7].iter().filter_map(|at| ticks.get(*at));
    (ticks.len() >= 4).then(|| used.sum::<u64>().saturating_mul(NS_PER_TICK))
}

/// Number of CPUs that are on.
pub fn cpus(stat: &str) -> Option<u64> {
    let is_cpu = |line: &&str| line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    Some(stat.lines().filter(is_cpu).count() as u64).filter(|count| *count > 0)
}

/// A value of meminfo in bytes.
pub fn meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_ascii_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Bytes read from and written to whole disks. Partitions, loops, RAM disks and mapped devices would count the same bytes again.
pub fn disks(text: &str) -> Option<(u64, u64)> {
    if text.is_empty() {
        return None;
    }
    let mut sum = (0_u64, 0_u64);
    for line in text.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let sectors = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok());
        let (Some(name), Some(read), Some(written)) = (words.get(2), sectors(5), sectors(9)) else { continue };
        if is_whole_disk(name) {
            sum.0 = sum.0.saturating_add(read.saturating_mul(SECTOR_BYTES));
            sum.1 = sum.1.saturating_add(written.saturating_mul(SECTOR_BYTES));
        }
    }
    Some(sum)
}

fn is_whole_disk(name: &str) -> bool {
    if ["loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd"].iter().any(|prefix| name.starts_with(prefix)) {
        return false;
    }
    // sda1, vda1: a letter before the number; nvme0n1p1, mmcblk0p1: a `p` between two numbers.
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    if stem.len() == name.len() {
        return true;
    }
    if name.starts_with("nvme") || name.starts_with("mmcblk") {
        return !stem.ends_with('p');
    }
    false
}

/// Which interfaces of a network namespace are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// The host's: without loopback, bridges and the host's ends of containers, which carry the same bytes again.
    Physical,
    /// A container's: all but loopback.
    All,
}

/// Bytes sent and received, out of `/proc/net/dev`.
pub fn network(text: &str, links: Links) -> Option<(u64, u64)> {
    let mut sum: Option<(u64, u64)> = None;
    for line in text.lines().skip(2) {
        let Some((name, rest)) = line.split_once(':') else { continue };
        let numbers: Vec<u64> = rest.split_ascii_whitespace().map_while(|word| word.parse().ok()).collect();
        let (Some(received), Some(sent)) = (numbers.first(), numbers.get(8)) else { continue };
        let name = name.trim();
        let virtual_link = VIRTUAL_LINKS.iter().any(|prefix| name.starts_with(prefix));
        if name != "lo" && (links == Links::All || !virtual_link) {
            let (all_sent, all_received) = sum.unwrap_or_default();
            sum = Some((all_sent.saturating_add(*sent), all_received.saturating_add(*received)));
        }
    }
    sum
}

/// Beginnings of names that container networks give to links which carry what a physical link carries too.
const VIRTUAL_LINKS: [&str; 12] =
    ["veth", "br-", "docker", "cni", "cali", "flannel", "cilium", "lxc", "virbr", "podman", "ifb", "vxlan"];
/// One tick of `/proc/stat`.
const NS_PER_TICK: u64 = 10_000_000;
/// Sectors of diskstats are 512 bytes, whatever the disk's are.
const SECTOR_BYTES: u64 = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lines() {
        let stat = "cpu  100 1 10 5000 600 2 3 4 50 0\ncpu0 50 0 5 0\ncpu1 50 1 5 0\nintr 1\n";
        assert_eq!(cpu_ns(stat), Some(120 * NS_PER_TICK));
        assert_eq!(cpus(stat), Some(2));
        assert_eq!((cpu_ns(""), cpus("")), (None, None));
    }

    #[test]
    fn memory_lines() {
        let text = "MemTotal:       24683544 kB\nMemFree: 1 kB\nMemAvailable:   24000000 kB\n";
        assert_eq!(meminfo(text, "MemTotal"), Some(24_683_544 * 1024));
        assert_eq!(meminfo(text, "Mem"), None);
    }

    #[test]
    fn whole_disks_only() {
        let line = |name: &str| format!("   8 0 {name} 1 0 10 0 1 0 20 0 0 0 0\n");
        for (name, whole) in [
            ("sda", true),
            ("sda1", false),
            ("vda", true),
            ("nvme0n1", true),
            ("nvme0n1p2", false),
            ("mmcblk0", true),
            ("mmcblk0p1", false),
            ("loop3", false),
            ("dm-0", false),
            ("zram0", false),
        ] {
            let expected = if whole { (5120, 10240) } else { (0, 0) };
            assert_eq!(disks(&line(name)), Some(expected), "{name}");
        }
        assert_eq!(disks(""), None);
    }

    #[test]
    fn links() {
        let text = "Inter-| Receive | Transmit\n face |bytes\n    lo: 5 0 0 0 0 0 0 0 5 0\n  eth0: 100 0 0 0 0 0 0 0 7 0\nvethab:9 0 0 0 0 0 0 0 9 0\n";
        assert_eq!(network(text, Links::Physical), Some((7, 100)));
        assert_eq!(network(text, Links::All), Some((16, 109)));
        assert_eq!(network("", Links::All), None);
    }

    #[test]
    fn this_host_can_be_read() {
        let reading = read(Path::new("/proc"));
        assert!(reading.counters.cpu_ns.is_some() && reading.gauges.mem_bytes.is_some());
    }
}
