//! Sensitive system calls, done by a child and compared as the columns that are shipped.
//!
//! Text in, rows out: a case is a Python script and the events that it must cause, one line each: kind, then `column=value`. `-` is
//! absent, `$NAME` is what the script printed as `NAME=value`, `$D` its directory, `$PID` its pid. One probe serves all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::TcpListener;
use std::process::{Command, Stdio};

use weir_edge::clock::Clock;
use weir_edge::enrich::cgroup::Mounts;
use weir_edge::enrich::place::Places;
use weir_edge::enrich::proc::Proc;
use weir_edge::enrich::process::Processes;
use weir_edge::enrich::runtime::Runtimes;
use weir_edge::enrich::{Enricher, Source};
use weir_edge::probe::raw::What;
use weir_edge::probe::{CallPolicy, HookSet, Options, RawEvent};
use weir_schema::{Host, JsonEvent, write_line};

use super::{Lab, Skip, has, say};

/// Every hook, and this process's own calls as well.
pub(super) fn all() -> Options {
    Options { skip_pid: None, ..Options::default() }
}

pub(super) struct Case {
    pub(super) name: &'static str,
    /// The hook without which the case is skipped.
    pub(super) needs: &'static str,
    pub(super) script: &'static str,
    pub(super) told: &'static str,
}

const CASES: &[Case] = &[
    Case {
        name: "credentials",
        needs: "setuid",
        script: "
os.setgid(65534); os.setuid(65534)
try: os.setuid(0)
except PermissionError: pass",
        told: r#"
setgid | uid=0 result=0 detail.call=setgid detail.gid_from=0 detail.gid_to=65534 detail.egid_to=65534
setuid | uid=0 user_name=root result=0 pid=$PID detail.uid_from=0 detail.uid_to=65534 detail.euid_to=65534 detail.capabilities_to=0000000000000000
setuid | uid=65534 result=1 detail.uid_from=65534 detail.uid_to=65534
exit   | uid=65534 pid=$PID"#,
    },
    Case {
        name: "capset",
        needs: "capset",
        script: "
header = struct.pack('Ii', 0x20080522, 0); data = bytes(24)
assert libc.capset(header, data) == 0",
        told: "capset | result=0 uid=0 detail.capabilities_to=0000000000000000",
    },
    Case {
        name: "ptrace",
        needs: "ptrace",
        script: "
pid = os.fork()
if pid == 0: time.sleep(9); os._exit(0)
say(T=pid)
assert libc.ptrace(0x4206, pid, None, None) == 0
libc.ptrace(16, 0x3ffffff, None, None)
os.kill(pid, 9)",
        told: "
ptrace | result=0 target_pid=$T detail.call=ptrace detail.request=seize detail.target_exe=$EXE
ptrace | result=3 target_pid=67108863 detail.request=attach
kill   | result=0 signal=9 target_pid=$T detail.call=kill detail.target_exe=$EXE",
    },
    Case {
        name: "process_vm_readv",
        needs: "process_vm_readv",
        script: "
libc.process_vm_readv(os.getppid(), None, 0, None, 0, 0)",
        told: "ptrace | result=0 target_pid=$PARENT detail.call=process_vm_readv",
    },
    Case {
        name: "namespaces",
        needs: "setns",
        script: "
home = os.open('/proc/self/ns/mnt', 0); say(MNT=os.stat('/proc/self/ns/mnt').st_ino)
assert libc.unshare(0x20000 | 0x4000000) == 0
say(NEW=os.stat('/proc/self/ns/mnt').st_ino)
assert libc.setns(home, 0x20000) == 0
assert libc.setns(home, 0x40000000) == -1",
        told: r#"
unshare | flags=67239936 result=0 detail.namespaces=["mnt","uts"] detail.mnt_ns_from=$MNT mnt_ns=$NEW
setns   | flags=131072 result=0 detail.namespaces=["mnt"] detail.fd_inode=$MNT detail.mnt_ns_from=$NEW mnt_ns=$MNT
setns   | flags=1073741824 result=22 detail.namespaces=["net"]"#,
    },
    Case {
        name: "mounts",
        needs: "mount",
        script: "
os.mkdir('m')
assert libc.unshare(0x20000) == 0 and libc.mount(None, b'/', None, 0x44000, None) == 0
assert libc.mount(b'source', b'm', b'tmpfs', 2, None) == 0
assert libc.umount2(b'm', 2) == 0
libc.umount2(b'/nowhere', 0)",
        told: "
mount  | path=$D/m flags=2 result=0 detail.source=source detail.fstype=tmpfs detail.path_from=cwd detail.path_given=m
umount | path=$D/m flags=2 result=0 detail.call=umount
umount | path=/nowhere result=2 detail.path_from=-",
    },
    Case {
        name: "chroot",
        needs: "chroot",
        script: "
os.mkdir('root'); os.chroot('root')",
        told: "chroot | path=$D/root result=0 detail.call=chroot detail.path_given=root",
    },
    Case {
        name: "memfd",
        needs: "memfd_create",
        script: "
f = os.memfd_create('x'); os.write(f, open('/bin/true', 'rb').read())
os.execve('/proc/self/fd/%d' % f, ['lab-memfd'], {})",
        told: r#"
memfd | path=memfd:x flags=1 result=0 detail.call=memfd_create
exec  | path=memfd:x args=["lab-memfd"]"#,
    },
    Case {
        name: "bpf",
        needs: "bpf",
        script: "
attr = ctypes.create_string_buffer(struct.pack('IIII', 2, 4, 4, 1) + bytes(100))
assert libc.syscall(SYS_bpf, 0, attr, 72) >= 0
libc.syscall(SYS_bpf, 5, ctypes.create_string_buffer(struct.pack('I', 17) + bytes(44) + b'probe' + bytes(100)), 72); say(ERRNO=ctypes.get_errno())",
        told: "
bpf | result=0 detail.command=map_create detail.map_type=2
bpf | result=$ERRNO detail.command=prog_load detail.program_type=17 detail.name=probe",
    },
    Case {
        name: "module",
        needs: "init_module",
        script: "
libc.syscall(SYS_init_module, b'not-elf!', 8, b''); say(ERRNO=ctypes.get_errno())",
        told: "module | result=$ERRNO detail.call=init_module",
    },
    Case {
        name: "sockets",
        needs: "socket",
        script: "
assert libc.unshare(0x40000000) == 0
socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)
socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
os.setuid(65534)
try: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)
except PermissionError: pass",
        told: "
socket | result=0 detail.family=inet detail.type=raw detail.protocol=1
socket | result=0 detail.family=packet detail.type=dgram detail.protocol=3
socket | result=1 uid=65534 detail.family=inet detail.type=raw",
    },
    Case {
        name: "dup",
        needs: "dup3",
        script: "
s = socket.create_connection(('127.0.0.1', int(os.environ['PORT']))); say(LOCAL=s.getsockname()[1], S=s.fileno())
os.dup2(s.fileno(), 1); os.dup2(s.fileno(), 0, False)",
        told: "
dup | result=0 proto=tcp direction=out src_ip=127.0.0.1 src_port=$LOCAL dst_ip=127.0.0.1 dst_port=$PORT detail.fd=1 detail.old_fd=$S
dup | result=0 detail.fd=0 detail.old_fd=$S detail.call=dup3",
    },
    Case {
        name: "memory",
        needs: "mprotect",
        script: "
m = mmap.mmap(-1, 8192, prot=7); f = open('f', 'wb+'); f.truncate(4096); g = mmap.mmap(f.fileno(), 4096, prot=7)
page = libc.mmap(None, 4096, 3, 0x22, -1, 0); libc.mprotect(ctypes.c_void_p(page), 4096, 7)",
        told: "
mprotect | flags=7 result=0 path=- detail.call=mmap detail.bytes=8192
mprotect | flags=7 result=0 path=$D/f detail.call=mmap detail.bytes=4096
mprotect | flags=7 result=0 detail.call=mprotect detail.bytes=4096",
    },
    Case {
        name: "userfaultfd",
        needs: "userfaultfd",
        script: "
r = libc.syscall(SYS_userfaultfd, 1); say(ERRNO=0 if r >= 0 else ctypes.get_errno())",
        told: "userfaultfd | flags=1 result=$ERRNO",
    },
    Case {
        name: "io_uring",
        needs: "io_uring_setup",
        script: "
p = ctypes.create_string_buffer(struct.pack('III', 0, 0, 64) + bytes(108))
r = libc.syscall(SYS_io_uring_setup, 4, p); say(ERRNO=0 if r >= 0 else ctypes.get_errno())",
        told: "io_uring | flags=64 result=$ERRNO detail.entries=4",
    },
    Case {
        name: "changes by path",
        needs: "unlinkat",
        script: "
os.mkdir('d', 0o750); open('f', 'w').close(); os.chmod('d/../f', 0o4755); os.chown('f', 1001, -1)
os.rename('f', 'd/g'); os.link('d/g', 'h'); os.symlink('/etc/shadow', 's'); os.truncate('h', 5)
os.chdir('d'); os.unlink('../h'); os.unlink(os.environ['D'] + '/s'); os.unlink('g'); os.chdir('..'); os.rmdir('d')
try: os.unlink('f')
except FileNotFoundError: pass",
        told: "
mkdir    | path=$D/d mode=488 result=0 detail.path_from=cwd detail.path_given=d
chmod    | path=$D/d/../f mode=2541 result=0 detail.path_given=d/../f
chown    | path=$D/f result=0 detail.owner=1001 detail.group=-
rename   | path=$D/f path_to=$D/d/g result=0
link     | path=$D/d/g path_to=$D/h result=0
symlink  | path=/etc/shadow path_to=$D/s result=0 detail.path_from=- detail.path_to_from=cwd
truncate | path=$D/h result=0 detail.bytes=5
unlink   | path=$D/h result=0 detail.path_given=../h
unlink   | path=$D/s result=0 detail.path_from=-
unlink   | path=$D/d/g result=0
unlink   | path=$D/d result=0 detail.directory=true
unlink   | path=$D/f result=2",
    },
    Case {
        name: "changes by descriptor",
        needs: "unlinkat",
        script: "
os.mkdir('d'); d = os.open('d', os.O_RDONLY); os.chdir('/')
os.mkdir('e', dir_fd=d); f = os.open('f', os.O_CREAT | os.O_RDWR, dir_fd=d)
os.fchmod(f, 0o2700); os.chmod('f', 0o600, dir_fd=d); os.fchown(f, -1, 1002); os.chown('f', 7, 8, dir_fd=d); os.ftruncate(f, 3)
os.rename('f', 'g', src_dir_fd=d, dst_dir_fd=d); os.link('g', 'h', src_dir_fd=d, dst_dir_fd=d)
os.symlink('x', 's', dir_fd=d); os.unlink('s', dir_fd=d); os.rmdir('e', dir_fd=d)",
        told: "
mkdir    | path=$D/d/e result=0 detail.path_from=dirfd detail.call=mkdirat
chmod    | path=$D/d/f mode=1472 result=0 detail.path_from=fd detail.path_given=-
chmod    | path=$D/d/f mode=384 result=0 detail.path_from=dirfd
chown    | path=$D/d/f result=0 detail.owner=- detail.group=1002 detail.path_from=fd
chown    | path=$D/d/f result=0 detail.owner=7 detail.group=8 detail.call=fchownat
truncate | path=$D/d/f result=0 detail.bytes=3 detail.call=ftruncate
rename   | path=$D/d/f path_to=$D/d/g result=0
link     | path=$D/d/g path_to=$D/d/h result=0 detail.path_to_from=dirfd
symlink  | path=x path_to=$D/d/s result=0 detail.call=symlinkat
unlink   | path=$D/d/s result=0 flags=0
unlink   | path=$D/d/e result=0 flags=512 detail.directory=true",
    },
];

pub(super) fn are_told_field_by_field() -> Result<(), Skip> {
    let mut lab = Lab::new(all())?;
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let port = listener.local_addr().expect("bound").port();
    for case in CASES.iter().chain(super::datagrams::CASES) {
        // A kernel without modules tells of them by another hook.
        let by_number = case.name == "module" && lab.report.attached("sys_enter (absent modules)");
        if !(lab.report.attached(case.needs) || by_number) {
            say(&format!("     {} ... SKIPPED: {} is not hooked here", case.name, case.needs));
            continue;
        }
        lab.events.clear();
        let done = Done::run(case.script, port)?;
        lab.until(|events| has(events, done.pid, |what| matches!(what, What::Exit(_))));
        lab.settle();
        let rows = rows(&lab.events, done.pid);
        for line in case.told.lines().filter(|line| !line.is_empty()) {
            let line = done.fill(line);
            assert!(rows.iter().any(|row| fits(row, &line)), "{}: no event fits\n{line}\nof\n{}", case.name, told(&rows));
        }
        say(&format!("     {} ... ok", case.name));
    }
    Ok(())
}

pub(super) fn what_harms_nobody_is_not_told() -> Result<(), Skip> {
    let mut lab = Lab::new(all())?;
    let script = "
import signal
signal.signal(10, lambda *_: None); os.kill(os.getpid(), 10); os.kill(os.getppid(), 0)
m = mmap.mmap(-1, 8192, prot=3); libc.ptrace(3, 1, None, None)
socket.socket(); socket.socket(socket.AF_INET, socket.SOCK_DGRAM); socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
a, b = socket.socketpair(); os.dup2(os.open('/dev/null', 0), 0); os.dup2(a.fileno(), 1)
libc.syscall(SYS_bpf, 1, ctypes.create_string_buffer(100), 72)
os.mkdir('last')";
    let done = Done::run(script, 0)?;
    lab.until(|events| has(events, done.pid, |what| matches!(what, What::Exit(_))));
    let rows = rows(&lab.events, done.pid);
    let calls: Vec<_> = rows.iter().filter_map(|row| row["detail"].as_str().filter(|d| d.contains("\"call\""))).collect();
    assert_eq!(calls.len(), 1, "{calls:?}");
    assert!(calls[0].contains("\"mkdir\""), "{calls:?}");
    Ok(())
}

pub(super) fn a_kill_inside_a_container_names_the_target_of_the_host() -> Result<(), Skip> {
    let mut lab = Lab::new(all())?;
    let mut child = Command::new("unshare")
        .args(["-p", "--fork", "sh", "-c", "sleep 9 & kill -9 $!; wait"])
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| Skip(format!("unshare: {e}")))?;
    let pid = child.id();
    child.wait().expect("our child");
    lab.until(|events| has(events, pid, |what| matches!(what, What::Exit(_))));
    let rows = rows(&lab.events, pid);
    let killed = rows.iter().find(|row| row["kind"] == "exit" && row["signal"] == 9).expect("sleep is killed");
    let kill = rows.iter().find(|row| row["kind"] == "kill" && row["signal"] == 9).expect("the kill is told");
    assert_eq!(kill["target_pid"], killed["pid"], "{kill}");
    assert_ne!(kill["pid_ns"].as_u64(), Some(u64::from(super::namespace("pid"))));
    Ok(())
}

fn changes_only() -> Options {
    let hooks = HookSet {
        exec: false,
        network: false,
        file: false,
        cgroup: false,
        security: false,
        changes: true,
        memory: false,
        absent_modules: false,
    };
    Options { hooks, ..all() }
}

fn made_by_us(events: &[RawEvent], kind: &str) -> u64 {
    let ours = |e: &&RawEvent| e.who.as_ref().is_some_and(|who| who.pid == std::process::id());
    let of = |e: &&RawEvent| matches!(&e.what, What::Call(call) if call.name.kind().as_str() == kind);
    events.iter().filter(ours).filter(of).count() as u64
}

pub(super) fn beyond_the_limit_are_counted_exactly() -> Result<(), Skip> {
    const MADE: u64 = 5_000;
    let calls = CallPolicy { per_second_max: 1_000_000, changes_per_second_max: 10 };
    let lab = Lab::new(Options { calls, ..changes_only() })?;
    let dir = tempfile::tempdir().expect("a temporary directory");
    for i in 0..MADE {
        std::fs::create_dir(dir.path().join(i.to_string())).expect("ours");
    }
    for i in 0..100 {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o4755);
        std::fs::set_permissions(dir.path().join(i.to_string()), mode).expect("ours");
    }
    let (events, dropped) = lab.finish();
    let told = made_by_us(&events, "mkdir");
    assert!((10..MADE / 2).contains(&told), "{told} told, 10 a second allowed");
    // The counter is the machine's: others may have passed their limits as well.
    assert!(told + dropped.change_limited >= MADE - dropped.skipped, "{told} told, {dropped:?}");
    assert!(dropped.change == 0, "{dropped:?}");
    assert_eq!(made_by_us(&events, "chmod"), 100, "set-id bits are told whatever the limit");
    Ok(())
}

pub(super) fn without_room_are_counted_exactly() -> Result<(), Skip> {
    const MADE: u64 = 2_000;
    let lab = Lab::new(Options { ring_bytes: 4096, ..changes_only() })?;
    let dir = tempfile::tempdir().expect("a temporary directory");
    for i in 0..MADE {
        std::fs::create_dir(dir.path().join(i.to_string())).expect("ours");
    }
    let (events, dropped) = lab.finish();
    assert!(dropped.change > 0, "a ring of 4 KiB overflows");
    // The counter is the machine's: it may hold changes of others as well, never fewer than are missing of ours.
    let all = made_by_us(&events, "mkdir") + dropped.change + dropped.skipped;
    assert!(all >= MADE, "{all} of {MADE}, {dropped:?}");
    Ok(())
}

// ---- a child that does it ----

struct Done {
    pid: u32,
    values: BTreeMap<String, String>,
    _dir: tempfile::TempDir,
}

impl Done {
    fn run(script: &str, port: u16) -> Result<Self, Skip> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let real = std::fs::canonicalize(dir.path()).expect("it exists").display().to_string();
        let numbers = [
            ("SYS_bpf", libc::SYS_bpf),
            ("SYS_init_module", libc::SYS_init_module),
            ("SYS_userfaultfd", libc::SYS_userfaultfd),
            ("SYS_io_uring_setup", libc::SYS_io_uring_setup),
        ];
        let mut whole = PRELUDE.to_owned();
        whole.extend(numbers.map(|(name, number)| format!("{name} = {number}\n")));
        whole.push_str(script);
        let mut child = Command::new("/usr/bin/python3")
            .args(["-c", &whole])
            .current_dir(&real)
            .env("D", &real)
            .env("PORT", port.to_string())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| Skip(format!("python3: {e}")))?;
        let pid = child.id();
        let mut said = String::new();
        child.stdout.take().expect("piped").read_to_string(&mut said).expect("text");
        let status = child.wait().expect("our child");
        assert!(status.success(), "{status}: {script}");
        let mut values: BTreeMap<String, String> =
            said.lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        let exe = std::fs::canonicalize("/usr/bin/python3").expect("it ran").display().to_string();
        let known = [
            ("D", real),
            ("PID", pid.to_string()),
            ("PORT", port.to_string()),
            ("PARENT", std::process::id().to_string()),
            ("EXE", exe),
        ];
        values.extend(known.map(|(name, value)| (name.to_owned(), value)));
        Ok(Self { pid, values, _dir: dir })
    }

    fn fill(&self, line: &str) -> String {
        // Longer names first: `$D` begins none of the others but would.
        let mut names: Vec<_> = self.values.iter().collect();
        names.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        names.iter().fold(line.to_owned(), |line, (name, value)| line.replace(&format!("${name}"), value))
    }
}

const PRELUDE: &str = "
import ctypes, mmap, os, socket, struct, time
libc = ctypes.CDLL(None, use_errno=True); libc.mmap.restype = ctypes.c_void_p
def say(**values):
    os.write(1, ''.join('%s=%s\\n' % pair for pair in values.items()).encode())
";

// ---- what was told ----

/// The events of a process and its descendants, as they are shipped.
fn rows(events: &[RawEvent], pid: u32) -> Vec<serde_json::Value> {
    let places = Places::new(Mounts::default(), Vec::new(), Runtimes::new("/nowhere"));
    let mut enricher = Enricher::new(Clock::new(0, 0), Processes::new(Proc::new("/nowhere")), places, Source::Kernel);
    let host = Host { host: "h".into(), ..Host::default() };
    let (mut family, mut rows) = (BTreeSet::from([pid]), Vec::new());
    for raw in events {
        if raw.who.as_ref().is_none_or(|who| !family.contains(&who.pid)) {
            continue;
        }
        if let What::Fork(fork) = &raw.what {
            family.insert(fork.child_pid);
        }
        let mut out = Vec::new();
        enricher.enrich(raw, &mut out);
        for event in out {
            let mut text = String::new();
            write_line(&mut text, &JsonEvent { host: host.clone(), tenant: None, region: None, agent: None, event });
            rows.push(serde_json::from_str(&text).expect("our own JSON"));
        }
    }
    rows
}

fn fits(row: &serde_json::Value, line: &str) -> bool {
    let (kind, wanted) = line.split_once('|').expect("kind | columns");
    row["kind"] == kind.trim()
        && wanted.split_whitespace().all(|pair| {
            let (column, value) = pair.split_once('=').expect("column=value");
            self::column(row, column) == value
        })
}

/// A column, or `detail.KEY`, as text; `-` where it is absent.
pub(super) fn column(row: &serde_json::Value, column: &str) -> String {
    let found = match column.strip_prefix("detail.") {
        Some(key) => {
            let detail = row["detail"].as_str().unwrap_or("{}");
            serde_json::from_str::<serde_json::Value>(detail).expect("JSON")[key].clone()
        }
        None => row[column].clone(),
    };
    match found {
        serde_json::Value::Null => "-".to_owned(),
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    }
}

pub(super) fn told(rows: &[serde_json::Value]) -> String {
    let columns = ["result", "uid", "target_pid", "signal", "path", "path_to", "flags", "mode", "proto", "dst_port", "detail"];
    let row = |row: &serde_json::Value| {
        let known = columns.iter().filter(|column| !row[**column].is_null());
        let cells: Vec<_> = known.map(|column| format!("{column}={}", row[*column])).collect();
        format!("{} | {}\n", row["kind"], cells.join(" "))
    };
    rows.iter().filter(|row| row["kind"] != "fork").map(row).collect()
}
