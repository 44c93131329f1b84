//! What `/proc/PID` says about one process: read softly, since it may be gone before or between the reads.
//!
//! Start times: `/proc/PID/stat` gives the start in ticks of 10 ms of the boot clock, the kernel gives nanoseconds. Both are
//! cut to whole ticks by [`whole_ticks`], so a process has the same id whoever saw it first.

use std::fs;
use std::path::{Path, PathBuf};

use weir_schema::Text;

/// Facts of one process. Absent is what could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// Start in boot-clock nanoseconds, whole ticks.
    pub start_ns: u64,
    /// The kernel's task name.
    pub comm: Text,
    /// Parent's pid.
    pub ppid: u32,
    /// Session id.
    pub session_id: u32,
    /// Controlling terminal.
    pub tty: Option<Text>,
    /// Real user id.
    pub uid: Option<u32>,
    /// Effective capabilities, hexadecimal.
    pub capabilities: Option<Text>,
    /// argv.
    pub argv: Vec<String>,
    /// Resolved executable.
    pub exe: Option<Text>,
    /// Working directory.
    pub cwd: Option<Text>,
    /// Login user id; absent when never logged in.
    pub login_uid: Option<u32>,
    /// The text of `/proc/PID/cgroup`.
    pub cgroups: String,
    /// Pid, mount and network namespaces.
    pub namespaces: [Option<u32>; 3],
}

/// A place to read processes from: `/proc`, or a folder of a test.
#[derive(Debug, Clone)]
pub struct Proc {
    root: PathBuf,
}

impl Proc {
    /// Reads below `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where it reads.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The pids of all processes.
    pub fn pids(&self) -> Vec<u32> {
        let Ok(entries) = fs::read_dir(&self.root) else { return Vec::new() };
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    /// All facts of `pid`; nothing when it is gone. A process that ends between two reads gives what was read before.
    pub fn facts(&self, pid: u32) -> Option<Facts> {
        let folder = self.root.join(pid.to_string());
        let stat = parse_stat(&fs::read(folder.join("stat")).ok()?)?;
        let text = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
        let status = parse_status(&text("status"));
        Some(Facts {
            start_ns: stat.start_ns,
            comm: stat.comm,
            ppid: stat.ppid,
            session_id: stat.session_id,
            tty: tty_name(stat.tty_number).map(Text::from),
            uid: status.uid,
            capabilities: status.capabilities,
            argv: self.argv(pid),
            exe: self.exe(pid),
            cwd: self.cwd(pid),
            login_uid: parse_login_uid(&text("loginuid")),
            cgroups: text("cgroup"),
            namespaces: ["pid", "mnt", "net"].map(|name| namespace(&folder.join("ns").join(name))),
        })
    }

    /// argv of `pid`, empty when unknown.
    pub fn argv(&self, pid: u32) -> Vec<String> {
        fs::read(self.root.join(pid.to_string()).join("cmdline")).map(|bytes| split_argv(&bytes)).unwrap_or_default()
    }

    /// Resolved executable of `pid`.
    pub fn exe(&self, pid: u32) -> Option<Text> {
        link(&self.root.join(pid.to_string()).join("exe"))
    }

    /// Working directory of `pid`.
    pub fn cwd(&self, pid: u32) -> Option<Text> {
        link(&self.root.join(pid.to_string()).join("cwd"))
    }

    /// Start of `pid` in whole ticks: tells whether a pid still names the same process.
    pub fn stat(&self, pid: u32) -> Option<Stat> {
        parse_stat(&fs::read(self.root.join(pid.to_string()).join("stat")).ok()?)
    }

    /// The text of `/proc/PID/cgroup`.
    pub fn cgroups(&self, pid: u32) -> Option<String> {
        fs::read_to_string(self.root.join(pid.to_string()).join("cgroup")).ok()
    }

    /// Network namespace of `pid`.
    pub fn net_ns(&self, pid: u32) -> Option<u32> {
        namespace(&self.root.join(pid.to_string()).join("ns/net"))
    }
}

/// The fields of `/proc/PID/stat` that are of use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// The kernel's task name.
    pub comm: Text,
    /// One letter: `Z` is a zombie.
    pub state: char,
    /// Parent's pid.
    pub ppid: u32,
    /// Session id.
    pub session_id: u32,
    /// Device number of the controlling terminal, 0 for none.
    pub tty_number: u32,
    /// Start in boot-clock nanoseconds, whole ticks.
    pub start_ns: u64,
}

/// Parses `/proc/PID/stat`. The name may hold blanks, brackets and bytes that are no UTF-8.
pub fn parse_stat(bytes: &[u8]) -> Option<Stat> {
    let open = bytes.iter().position(|b| *b == b'(')?;
    let close = bytes.iter().rposition(|b| *b == b')')?;
    let comm = String::from_utf8_lossy(bytes.get(open + 1..close)?).into_owned();
    let rest = std::str::from_utf8(bytes.get(close + 1..)?).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<i64>().ok();
    Some(Stat {
        comm: comm.into(),
        state: fields.first()?.chars().next()?,
        ppid: u32::try_from(number(1)?).ok()?,
        session_id: u32::try_from(number(3)?).unwrap_or(0),
        tty_number: number(4)? as u32,
        start_ns: u64::try_from(number(19)?).ok()?.checked_mul(TICK_NS)?,
    })
}

/// Cuts a boot-clock time to whole ticks, as `/proc/PID/stat` shows it.
pub fn whole_ticks(start_ns: u64) -> u64 {
    start_ns / TICK_NS * TICK_NS
}

/// Real uid and effective capabilities out of `/proc/PID/status`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// Real user id.
    pub uid: Option<u32>,
    /// Effective capabilities, hexadecimal.
    pub capabilities: Option<Text>,
}

/// Parses `/proc/PID/status`.
pub fn parse_status(text: &str) -> Status {
    let mut status = Status::default();
    for line in text.lines() {
        if let Some(ids) = line.strip_prefix("Uid:") {
            status.uid = ids.split_ascii_whitespace().next().and_then(|id| id.parse().ok());
        } else if let Some(bits) = line.strip_prefix("CapEff:") {
            status.capabilities = Some(bits.trim().into());
        }
    }
    status
}

/// Splits NUL-terminated arguments; empty ones are kept, the last terminator is not one.
pub fn split_argv(bytes: &[u8]) -> Vec<String> {
    if bytes.is_empty() {
        return Vec::new();
    }
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    bytes.split(|b| *b == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}

/// Name of a terminal by its device number; nothing for 0.
pub fn tty_name(number: u32) -> Option<String> {
    let major = (number >> 8) & 0xfff;
    let minor = (number & 0xff) | ((number >> 12) & 0xfff00);
    match (major, minor) {
        (0, 0) => None,
        (4, 0..=63) => Some(format!("tty{minor}")),
        (4, _) => Some(format!("ttyS{}", minor - 64)),
        (5, 1) => Some("console".into()),
        (136..=143, _) => Some(format!("pts/{}", (major - 136) * 256 + minor)),
        (229, _) => Some(format!("hvc{minor}")),
        _ => Some(format!("tty{major}:{minor}")),
    }
}

/// The path of `/proc/PID/cgroup` in one hierarchy: v2's line has no controller.
pub fn cgroup_path<'a>(text: &'a str, controller: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        controllers.split(',').any(|name| name == controller).then_some(path)
    })
}

fn parse_login_uid(text: &str) -> Option<u32> {
    text.trim().parse().ok().filter(|uid| *uid != u32::MAX)
}

fn link(path: &Path) -> Option<Text> {
    let target = fs::read_link(path).ok()?;
    let target = target.to_string_lossy();
    Some(target.strip_suffix(" (deleted)").unwrap_or(&target).into())
}

fn namespace(path: &Path) -> Option<u32> {
    let target = fs::read_link(path).ok()?;
    let target = target.to_str()?;
    target.split_once('[')?.1.strip_suffix(']')?.parse().ok()
}

/// One tick of `/proc`: USER_HZ is 100 on every architecture we run on.
const TICK_NS: u64 = 10_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_a_hostile_name() {
        let line = b"4242 (a) R (b \xff) S 17 4242 4000 34816 4242 4194304 1 2 3 4 5 6 7 8 20 0 1 0 123456 9 9 9";
        let stat = parse_stat(line).unwrap();
        assert_eq!(&*stat.comm, "a) R (b \u{fffd}");
        assert_eq!((stat.ppid, stat.session_id, stat.tty_number), (17, 4000, 34816));
        assert_eq!(stat.start_ns, 1_234_560_000_000);
        assert_eq!(stat.state, 'S');
        for cut in 0..line.len() {
            let _ = parse_stat(&line[..cut]);
        }
        assert_eq!(parse_stat(b""), None);
        assert_eq!(parse_stat(b")("), None);
    }

    #[test]
    fn kernel_and_procfs_agree_on_the_start() {
        assert_eq!(whole_ticks(1_234_567_891_234), 1_234_560_000_000);
        assert_eq!(whole_ticks(1_234_560_000_000), 1_234_560_000_000);
    }

    #[test]
    fn terminals() {
        let table = [(0, None), (34816, Some("pts/0")), (34822, Some("pts/6")), (1025, Some("tty1")), (1088, Some("ttyS0"))];
        for (number, name) in table {
            assert_eq!(tty_name(number).as_deref(), name);
        }
        assert_eq!(tty_name(5 << 8 | 1).as_deref(), Some("console"));
    }

    #[test]
    fn arguments_keep_the_empty_ones() {
        assert_eq!(split_argv(b"/bin/echo\0LABMARK-01\0two words\0\0"), ["/bin/echo", "LABMARK-01", "two words", ""]);
        assert_eq!(split_argv(b"title without end"), ["title without end"]);
        assert!(split_argv(b"").is_empty());
    }

    #[test]
    fn status_and_cgroup_lines() {
        let status = parse_status("Name:\tx\nUid:\t1000\t0\t0\t0\nCapEff:\t000001ffffffffff\n");
        assert_eq!((status.uid, status.capabilities.as_deref()), (Some(1000), Some("000001ffffffffff")));
        assert_eq!(parse_status("Uid: x"), Status::default());
        let text = "4:cpu,memory:/a:b\n0::/c\n";
        assert_eq!(cgroup_path(text, "memory"), Some("/a:b"));
        assert_eq!(cgroup_path(text, ""), Some("/c"));
        assert_eq!(cgroup_path(text, "pids"), None);
    }

    #[test]
    fn this_process_has_facts() {
        let facts = Proc::new("/proc").facts(std::process::id()).unwrap();
        assert!(facts.start_ns > 0 && facts.exe.is_some() && !facts.argv.is_empty());
        assert_eq!(Proc::new("/nowhere").facts(1), None);
    }
}
