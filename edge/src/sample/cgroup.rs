//! A container's counters, from the files of cgroup v2 or v1: readers, and the parsers they use as pure functions over text.

use std::fs;
use std::path::{Path, PathBuf};

use crate::enrich::cgroup::Mounts;
use crate::sample::{Counters, Gauges, Reading};

/// Where one container's cgroup is, below the mounts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Paths {
    /// In the unified hierarchy.
    pub v2: Option<String>,
    /// In the v1 hierarchies: runtimes use one path for all controllers.
    pub v1: Option<String>,
}

/// Reads what there is. On a hybrid host a controller lives in one hierarchy only, so each file is looked for in both.
pub fn read(mounts: &Mounts, paths: &Paths) -> Reading {
    let v2 = |file: &str| text(mounts.v2.as_deref()?, paths.v2.as_deref()?, file);
    let v1 = |controller: &str, file: &str| text(mounts.v1.get(controller)?, paths.v1.as_deref()?, file);
    let v2_cpu = v2("cpu.stat");
    let v1_cpu = v1("cpu", "cpu.stat");
    let field = |text: &Option<String>, name: &str| keyed(text.as_deref()?, name);
    let io = v2("io.stat").map(|text| io_v2(&text)).or_else(|| {
        let best = v1("blkio", "blkio.throttle.io_service_bytes_recursive");
        Some(io_v1(&best.or_else(|| v1("blkio", "blkio.throttle.io_service_bytes"))?))
    });
    let cpu_ns = v1("cpuacct", "cpuacct.usage").and_then(|text| number(&text));
    let oom_v1 = || keyed(&v1("memory", "memory.oom_control")?, "oom_kill");
    let counters = Counters {
        cpu_ns: cpu_ns.or_else(|| Some(field(&v2_cpu, "usage_usec")?.saturating_mul(1000))),
        throttled_ns: match field(&v1_cpu, "throttled_time") {
            Some(ns) => Some(ns),
            None => field(&v2_cpu, "throttled_usec").map(|usec| usec.saturating_mul(1000)),
        },
        io_read_bytes: io.map(|(read, _)| read),
        io_write_bytes: io.map(|(_, written)| written),
        oom_kills: v2("memory.events").and_then(|text| keyed(&text, "oom_kill")).or_else(oom_v1),
        ..Counters::default()
    };
    let quota_v1 = || {
        let (quota, period) = (v1("cpu", "cpu.cfs_quota_us")?, v1("cpu", "cpu.cfs_period_us")?);
        quota_us(quota.trim(), period.trim())
    };
    let memory = v2("memory.current").or_else(|| v1("memory", "memory.usage_in_bytes"));
    let limit = v2("memory.max").or_else(|| v1("memory", "memory.limit_in_bytes"));
    let folder = [(mounts.v2.as_deref(), &paths.v2), (v1_naming(mounts), &paths.v1)];
    let members: Vec<Members> =
        folder.iter().filter_map(|(root, path)| Some(members(&below((*root)?, path.as_deref()?), DEPTH_MAX))).collect();
    // A hybrid host counts the same processes in both hierarchies.
    let members = members.into_iter().max_by_key(|members| members.count).unwrap_or_default();
    let gauges = Gauges {
        mem_bytes: memory.and_then(|text| number(&text)),
        mem_limit_bytes: limit.and_then(|text| memory_limit(&text)),
        cpu_limit: v2("cpu.max").and_then(|text| cpu_max(&text)).or_else(quota_v1),
        processes: Some(members.count),
    };
    Reading { counters, gauges, member: members.first }
}

/// Processes of a cgroup and of those below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Members {
    count: u64,
    first: Option<u32>,
}

fn members(folder: &Path, depth: u32) -> Members {
    let mut all = fs::read_to_string(folder.join("cgroup.procs")).map(|text| member_pids(&text)).unwrap_or_default();
    if depth > 0
        && let Ok(entries) = fs::read_dir(folder)
    {
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            let inner = members(&entry.path(), depth - 1);
            all.count += inner.count;
            all.first = all.first.or(inner.first);
        }
    }
    all
}

fn member_pids(text: &str) -> Members {
    let mut pids = text.lines().filter_map(|line| line.trim().parse::<u32>().ok());
    let first = pids.next();
    Members { count: u64::from(first.is_some()) + pids.count() as u64, first: first.filter(|pid| *pid != 0) }
}

fn v1_naming(mounts: &Mounts) -> Option<&Path> {
    mounts.root(crate::enrich::cgroup::Hierarchy::V1)
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn text(root: &Path, path: &str, file: &str) -> Option<String> {
    fs::read_to_string(below(root, path).join(file)).ok()
}

/// The number of a file that holds one.
pub fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The number behind `name` in lines of `name number`.
pub fn keyed(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once([' ', '\t'])?;
        (key == name).then(|| number(value)).flatten()
    })
}

/// Bytes read and written over all devices of `io.stat`.
pub fn io_v2(text: &str) -> (u64, u64) {
    let sum = |name: &str| -> u64 {
        let words = text.split_ascii_whitespace();
        let values = words.filter_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse::<u64>().ok());
        values.fold(0, u64::saturating_add)
    };
    (sum("rbytes"), sum("wbytes"))
}

/// Bytes read and written over all devices of `blkio.throttle.io_service_bytes`.
pub fn io_v1(text: &str) -> (u64, u64) {
    let sum = |operation: &str| -> u64 {
        let lines = text.lines().filter_map(|line| {
            let mut words = line.split_ascii_whitespace().skip(1);
            (words.next()? == operation).then(|| words.next()?.parse::<u64>().ok()).flatten()
        });
        lines.fold(0, u64::saturating_add)
    };
    (sum("Read"), sum("Write"))
}

/// CPU time per wall time in thousandths of a CPU, from `cpu.max`; nothing when unlimited.
pub fn cpu_max(text: &str) -> Option<u64> {
    let (quota, period) = text.trim().split_once(' ')?;
    quota_us(quota, period)
}

/// The same from v1's two files; -1 is unlimited.
pub fn quota_us(quota: &str, period: &str) -> Option<u64> {
    let (quota, period) = (quota.parse::<u64>().ok()?, period.parse::<u64>().ok()?);
    quota.checked_mul(1000)?.checked_div(period)
}

/// A memory limit; `max` and v1's largest page-aligned number mean none.
pub fn memory_limit(text: &str) -> Option<u64> {
    number(text).filter(|bytes| *bytes < UNLIMITED_BYTES)
}

/// v1 says "unlimited" with a number near 2^63.
const UNLIMITED_BYTES: u64 = 1 << 60;
/// How deep below a container its processes are counted.
const DEPTH_MAX: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn parsers() {
        let cpu = "usage_usec 1500\nuser_usec 1000\nnr_throttled 2\nthrottled_usec 77\n";
        assert_eq!((keyed(cpu, "usage_usec"), keyed(cpu, "throttled_usec"), keyed(cpu, "usage")), (Some(1500), Some(77), None));
        let events = "low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\n";
        assert_eq!((keyed(events, "oom_kill"), keyed(events, "oom")), (Some(1), Some(2)));
        let io = "254:0 rbytes=100 wbytes=20 rios=1 wios=2 dbytes=9 dios=0\n8:0 rbytes=5 wbytes=7 rios=1 wios=1\n";
        assert_eq!(io_v2(io), (105, 27));
        assert_eq!(io_v2(""), (0, 0));
        let v1 = "254:0 Read 100\n254:0 Write 20\n254:0 Sync 120\n254:0 Total 120\n8:0 Read 1\nTotal 121\n";
        assert_eq!(io_v1(v1), (101, 20));
        assert_eq!(io_v1("Total 0\n"), (0, 0));
    }

    #[test]
    fn limits() {
        let table =
            [("max 100000", None), ("50000 100000", Some(500)), ("250000 100000\n", Some(2500)), ("", None), ("1 0", None)];
        for (text, expected) in table {
            assert_eq!(cpu_max(text), expected, "{text}");
        }
        assert_eq!(quota_us("-1", "100000"), None);
        assert_eq!(quota_us("150000", "100000"), Some(1500));
        assert_eq!(memory_limit("max\n"), None);
        assert_eq!(memory_limit("9223372036854771712\n"), None);
        assert_eq!(memory_limit("1073741824\n"), Some(1 << 30));
    }

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let file = root.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        root
    }

    #[test]
    fn a_unified_container() {
        let root = folder(&[
            ("c/cpu.stat", "usage_usec 1500\nthrottled_usec 5\n"),
            ("c/cpu.max", "50000 100000\n"),
            ("c/memory.current", "4096\n"),
            ("c/memory.max", "max\n"),
            ("c/memory.events", "oom_kill 2\n"),
            ("c/io.stat", "8:0 rbytes=1 wbytes=2\n"),
            ("c/cgroup.procs", ""),
            ("c/inner/cgroup.procs", "10\n11\n"),
        ]);
        let mounts = Mounts { v2: Some(root.path().into()), ..Mounts::default() };
        let reading = read(&mounts, &Paths { v2: Some("/c".into()), v1: None });
        let counters = Counters {
            cpu_ns: Some(1_500_000),
            throttled_ns: Some(5_000),
            io_read_bytes: Some(1),
            io_write_bytes: Some(2),
            oom_kills: Some(2),
            ..Counters::default()
        };
        let gauges = Gauges { mem_bytes: Some(4096), mem_limit_bytes: None, cpu_limit: Some(500), processes: Some(2) };
        assert_eq!(reading, Reading { counters, gauges, member: Some(10) });
    }

    #[test]
    fn a_v1_container_on_a_hybrid_host() {
        let root = folder(&[
            ("cpuacct/c/cpuacct.usage", "777\n"),
            ("cpu/c/cpu.stat", "nr_periods 1\nthrottled_time 9\n"),
            ("cpu/c/cpu.cfs_quota_us", "200000\n"),
            ("cpu/c/cpu.cfs_period_us", "100000\n"),
            ("memory/c/memory.usage_in_bytes", "123\n"),
            ("memory/c/memory.limit_in_bytes", "456\n"),
            ("memory/c/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
            ("memory/c/cgroup.procs", "7\n"),
            ("blkio/c/blkio.throttle.io_service_bytes", "8:0 Read 4\n8:0 Write 5\nTotal 9\n"),
            ("v2/c/cpu.stat", "usage_usec 999\n"),
            ("v2/c/cgroup.procs", ""),
        ]);
        let v1 = ["cpuacct", "cpu", "memory", "blkio"].map(|name| (name.to_owned(), root.path().join(name)));
        let mounts = Mounts { v2: Some(root.path().join("v2")), v1: HashMap::from(v1), v1_number: Some(4) };
        let reading = read(&mounts, &Paths { v2: Some("/c".into()), v1: Some("/c".into()) });
        assert_eq!(
            (reading.counters.cpu_ns, reading.counters.throttled_ns, reading.counters.oom_kills),
            (Some(777), Some(9), Some(3))
        );
        assert_eq!((reading.counters.io_read_bytes, reading.counters.io_write_bytes), (Some(4), Some(5)));
        assert_eq!((reading.gauges.mem_bytes, reading.gauges.mem_limit_bytes), (Some(123), Some(456)));
        assert_eq!((reading.gauges.cpu_limit, reading.gauges.processes, reading.member), (Some(2000), Some(1), Some(7)));
    }

    #[test]
    fn a_container_that_is_gone_has_nothing() {
        let mounts = Mounts { v2: Some("/nowhere".into()), ..Mounts::default() };
        let reading = read(&mounts, &Paths { v2: Some("/c".into()), v1: None });
        assert_eq!(reading.counters, Counters::default());
    }
}
