//! The table of processes: who an event's pid is, who its parents are, where it runs.
//!
//! Kept by fork, exec and exit; filled from `/proc` at start and, within a budget, for what the kernel half names first. The
//! ended are kept for a while, so that late events still find them. Nothing here waits: what is unknown now stays absent until
//! a later event corrects it. Start times are cut to whole ticks (`enrich/proc.rs`).

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use weir_schema::limits::STRING_BYTES_MAX;
use weir_schema::{Container, Process, Text};

use crate::enrich::cgroup::V2_ROOT_ID;
use crate::enrich::host::Users;
use crate::enrich::place::{Place, Places};
use crate::enrich::proc::{Facts, Proc, whole_ticks};
use crate::probe::raw::{Exec, Fork, Who};

/// A process at the time of an event.
#[derive(Debug, Clone)]
pub struct Actor {
    /// Who.
    pub process: Arc<Process>,
    /// Where.
    pub container: Arc<Container>,
}

/// The table.
#[derive(Debug)]
pub struct Processes {
    proc: Proc,
    users: Users,
    live: HashMap<u32, Entry>,
    /// Ended processes whose pid has a new owner.
    replaced: HashMap<(u32, u64), Entry>,
    /// The ended, in order of their end: when, pid, start.
    ended: VecDeque<(u64, u32, u64)>,
    reads: Budget,
}

#[derive(Debug, Clone)]
struct Entry {
    /// Cgroup ids that `actor` was resolved by; zero when it came from `/proc`.
    cgroups: (u64, u64),
    actor: Actor,
    ended: bool,
}

impl Processes {
    /// An empty table that may look into `proc`.
    pub fn new(proc: Proc) -> Self {
        let mut users = Users::default();
        users.refresh();
        let (live, replaced, ended) = (HashMap::new(), HashMap::new(), VecDeque::new());
        Self { proc, users, live, replaced, ended, reads: Budget::default() }
    }

    /// Reads all processes there are. Parents come first, so that ancestors are whole.
    pub fn load(&mut self, places: &mut Places, now_ns: u64) {
        let mut facts: Vec<(u32, Facts)> =
            self.proc.pids().into_iter().filter_map(|pid| Some((pid, self.proc.facts(pid)?))).collect();
        facts.sort_by_key(|(pid, facts)| (facts.start_ns, *pid));
        for (pid, facts) in facts {
            self.insert_facts(pid, facts, places, now_ns);
        }
    }

    /// How many processes live.
    pub fn len(&self) -> usize {
        self.live.values().filter(|entry| !entry.ended).count()
    }

    /// True when none is known.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// The process of `pid`, whatever its start.
    pub fn by_pid(&self, pid: u32) -> Option<&Actor> {
        self.live.get(&pid).map(|entry| &entry.actor)
    }

    /// A process seen in `/proc` by the fallback collector: entered, and its actor returned.
    pub fn insert_facts(&mut self, pid: u32, facts: Facts, places: &mut Places, now_ns: u64) -> Actor {
        let place = places.of_text(&facts.cgroups, facts.exe.as_deref(), now_ns);
        let mut process = Process {
            pid,
            start_ns: facts.start_ns,
            ppid: Some(facts.ppid).filter(|ppid| *ppid != 0),
            comm: Some(facts.comm),
            exe: facts.exe,
            cwd: facts.cwd,
            uid: facts.uid,
            user_name: facts.uid.and_then(|uid| self.users.name(uid)),
            login_uid: facts.login_uid,
            tty: facts.tty,
            session_id: Some(facts.session_id),
            capabilities: facts.capabilities,
            cgroup: place.cgroup,
            pid_ns: facts.namespaces[0],
            mnt_ns: facts.namespaces[1],
            net_ns: facts.namespaces[2],
            ..Process::default()
        };
        set_argv(&mut process, &facts.argv);
        self.set_parent(&mut process, facts.ppid, None);
        self.put(process, place.container, (0, 0))
    }

    /// The process that did something. Facts that changed since (user, namespaces, cgroup, name) are taken over.
    pub fn actor(&mut self, who: &Who, places: &mut Places, now_ns: u64) -> Actor {
        let start_ns = whole_ticks(who.start_ns);
        let cgroups = (who.cgroup_v2, who.cgroup_v1);
        match self.live.get(&who.pid).map(|entry| entry.actor.process.start_ns) {
            Some(known) if known == start_ns => {}
            Some(known) if known > start_ns => {
                // The pid has a new owner already: an ended process speaks late.
                if let Some(entry) = self.replaced.get(&(who.pid, start_ns)) {
                    return entry.actor.clone();
                }
                let place = places.of_ids(who.cgroup_v2, who.cgroup_v1, None, now_ns);
                return Actor { process: Arc::new(self.process_of(who, place.cgroup)), container: place.container };
            }
            _ => return self.discover(who, places, now_ns),
        }
        let entry = self.live.get(&who.pid).expect("found above");
        if entry.cgroups == cgroups && is_current(&entry.actor.process, who) {
            return entry.actor.clone();
        }
        let mut process = (*entry.actor.process).clone();
        let mut container = entry.actor.container.clone();
        let known_cgroups = entry.cgroups;
        if known_cgroups != cgroups {
            let Place { cgroup, container: found } = self.place(who, process.exe.as_deref(), places, now_ns);
            // An id that does not resolve (yet) is no reason to forget what `/proc` said.
            if cgroup.is_some() || known_cgroups != (0, 0) {
                (process.cgroup, container) = (cgroup, found);
            }
        }
        self.take_over(&mut process, who);
        self.put(process, container, cgroups)
    }

    /// A child was made: it is its parent until it executes something else.
    pub fn fork(&mut self, who: &Who, fork: &Fork, places: &mut Places, now_ns: u64) -> Actor {
        let parent = self.actor(who, places, now_ns);
        let mut child = (*parent.process).clone();
        child.pid = fork.child_pid;
        child.start_ns = whole_ticks(fork.child_start_ns);
        child.ppid = Some(fork.child_ppid).filter(|ppid| *ppid != 0);
        child.parent_start_ns = None;
        let parent_start_ns = (fork.child_ppid == who.pid).then_some(who.start_ns);
        self.set_parent(&mut child, fork.child_ppid, parent_start_ns);
        self.put(child, parent.container.clone(), (who.cgroup_v2, who.cgroup_v1));
        parent
    }

    /// A program was started: everything about the process is new but its pid, start and session. Also answers whether its
    /// argv is not whole.
    pub fn exec(&mut self, who: &Who, exec: &Exec, places: &mut Places, now_ns: u64) -> (Actor, bool) {
        let mut argv: Vec<String> = exec.args.iter().map(|arg| String::from_utf8_lossy(arg).into_owned()).collect();
        let mut truncated = exec.args_truncated;
        if truncated && self.reads.take(now_ns) {
            let whole = self.proc.argv(who.pid);
            let same = self.proc.stat(who.pid).is_some_and(|stat| stat.start_ns == whole_ticks(who.start_ns));
            if same && whole.len() >= argv.len() && whole.first() == argv.first() {
                (argv, truncated) = (whole, false);
            }
        }
        let path = |bytes: &[u8]| (!bytes.is_empty()).then(|| Text::from(String::from_utf8_lossy(bytes)));
        let exe = path(&exec.exe);
        let place = self.place(who, exe.as_deref(), places, now_ns);
        let mut process = self.process_of(who, place.cgroup);
        self.keep_maker(&mut process);
        process.exe = exe.or_else(|| path(&exec.filename));
        process.cwd = path(&exec.cwd);
        process.login_uid = exec.login_uid;
        process.session_id = Some(exec.session_id);
        process.tty = (!exec.tty.is_empty()).then(|| terminal(&exec.tty));
        process.capabilities = Some(format!("{:016x}", exec.capabilities).into());
        truncated |= set_argv(&mut process, &argv);
        (self.put(process, place.container, (who.cgroup_v2, who.cgroup_v1)), truncated)
    }

    /// A process whose parent died was given to another. Whose child it is stays with who made it.
    fn keep_maker(&self, process: &mut Process) {
        let known = self.live.get(&process.pid).map(|entry| &entry.actor.process);
        let Some(known) = known.filter(|known| known.start_ns == process.start_ns) else { return };
        if known.ppid.is_some() && known.ppid != process.ppid {
            (process.ppid, process.parent_start_ns) = (known.ppid, known.parent_start_ns);
            process.parent_exe = known.parent_exe.clone();
            process.parent_cmdline = known.parent_cmdline.clone();
            process.ancestors = known.ancestors.clone();
        }
    }

    /// A process ended: it stays for late events until its time is over.
    pub fn exit(&mut self, who: &Who, places: &mut Places, now_ns: u64) -> Actor {
        let actor = self.actor(who, places, now_ns);
        self.end(who.pid, actor.process.start_ns, now_ns);
        actor
    }

    /// Marks a process as ended.
    pub fn end(&mut self, pid: u32, start_ns: u64, now_ns: u64) {
        if let Some(entry) = self.live.get_mut(&pid)
            && entry.actor.process.start_ns == start_ns
            && !entry.ended
        {
            entry.ended = true;
            self.ended.push_back((now_ns, pid, start_ns));
        }
    }

    /// Forgets the ended whose time is over, or of whom there are too many, and notices new user names.
    pub fn expire(&mut self, now_ns: u64) {
        while let Some(&(ended_ns, pid, start_ns)) = self.ended.front() {
            if self.ended.len() <= ENDED_MAX && now_ns.saturating_sub(ended_ns) < ENDED_KEPT_NS {
                break;
            }
            self.ended.pop_front();
            self.replaced.remove(&(pid, start_ns));
            if self.live.get(&pid).is_some_and(|entry| entry.ended && entry.actor.process.start_ns == start_ns) {
                self.live.remove(&pid);
            }
        }
        self.users.refresh();
    }

    /// Gives the processes of containers that are known otherwise now what is known.
    pub fn relocate(&mut self, changed: &BTreeSet<Text>, places: &mut Places, now_ns: u64) {
        for entry in self.live.values_mut().chain(self.replaced.values_mut()) {
            let Actor { process, container } = &mut entry.actor;
            if let (Some(id), Some(cgroup)) = (&container.container_id, &process.cgroup)
                && changed.contains(id)
            {
                *container = places.of_path(cgroup, process.exe.as_deref(), now_ns).container;
            }
        }
    }

    /// Removes live processes that `/proc` no longer has: their exit record was lost.
    pub fn sweep(&mut self, now_ns: u64) {
        let pids: std::collections::HashSet<u32> = self.proc.pids().into_iter().collect();
        let gone: Vec<(u32, u64)> = self
            .live
            .iter()
            .filter(|(pid, entry)| !entry.ended && !pids.contains(pid))
            .map(|(pid, entry)| (*pid, entry.actor.process.start_ns))
            .collect();
        for (pid, start_ns) in gone {
            self.end(pid, start_ns, now_ns);
        }
    }

    /// A process whose fork was missed: from the record, and from `/proc` while it is there and the budget lasts.
    fn discover(&mut self, who: &Who, places: &mut Places, now_ns: u64) -> Actor {
        let start_ns = whole_ticks(who.start_ns);
        let facts = if self.reads.take(now_ns) { self.proc.facts(who.pid) } else { None };
        let facts = facts.filter(|facts| facts.start_ns == start_ns);
        let exe = facts.as_ref().and_then(|facts| facts.exe.clone());
        let place = self.place(who, exe.as_deref(), places, now_ns);
        let mut process = self.process_of(who, place.cgroup);
        if let Some(facts) = facts {
            process.exe = facts.exe;
            process.cwd = facts.cwd;
            process.login_uid = facts.login_uid;
            process.tty = facts.tty;
            process.session_id = Some(facts.session_id);
            process.capabilities = facts.capabilities;
            set_argv(&mut process, &facts.argv);
        }
        self.put(process, place.container, (who.cgroup_v2, who.cgroup_v1))
    }

    /// By the record's ids; when they name nothing that we know or may open, by what `/proc` says while the process lives.
    fn place(&mut self, who: &Who, exe: Option<&str>, places: &mut Places, now_ns: u64) -> Place {
        let place = places.of_ids(who.cgroup_v2, who.cgroup_v1, exe, now_ns);
        let is_named = who.cgroup_v2 > V2_ROOT_ID || who.cgroup_v1 > V2_ROOT_ID;
        if place.cgroup.is_some() || !is_named || !self.reads.take(now_ns) {
            return place;
        }
        match self.proc.cgroups(who.pid) {
            Some(text) if self.proc.stat(who.pid).is_some_and(|stat| stat.start_ns == whole_ticks(who.start_ns)) => {
                places.of_text(&text, exe, now_ns)
            }
            _ => place,
        }
    }

    fn process_of(&self, who: &Who, cgroup: Option<Text>) -> Process {
        let mut process = Process { pid: who.pid, start_ns: whole_ticks(who.start_ns), cgroup, ..Process::default() };
        if !who.comm.is_empty() {
            process.comm = Some(who.comm.as_str().into());
        }
        self.take_over(&mut process, who);
        process.ppid = Some(who.ppid).filter(|ppid| *ppid != 0);
        self.set_parent(&mut process, who.ppid, Some(who.parent_start_ns));
        process
    }

    fn take_over(&self, process: &mut Process, who: &Who) {
        if process.uid != Some(who.uid) {
            process.uid = Some(who.uid);
            process.user_name = self.users.name(who.uid);
        }
        if is_leader(who) && !who.comm.is_empty() && process.comm.as_deref() != Some(&who.comm) {
            process.comm = Some(who.comm.as_str().into());
        }
        process.pid_ns = known(who.pid_ns).or(process.pid_ns);
        process.mnt_ns = known(who.mnt_ns).or(process.mnt_ns);
        process.net_ns = known(who.net_ns).or(process.net_ns);
    }

    /// Fills what the parent is known to be. `start_ns` absent: any parent of that pid that is older than the child.
    fn set_parent(&self, process: &mut Process, ppid: u32, start_ns: Option<u64>) {
        (process.parent_exe, process.parent_cmdline, process.ancestors) = (None, None, None);
        let start_ns = start_ns.filter(|start_ns| *start_ns != 0).map(whole_ticks);
        process.parent_start_ns = start_ns;
        let parent = self.live.get(&ppid).map(|entry| &entry.actor.process);
        let parent = parent.filter(|parent| match start_ns {
            Some(start_ns) => parent.start_ns == start_ns,
            None => parent.start_ns <= process.start_ns,
        });
        let parent = parent.or_else(|| Some(&self.replaced.get(&(ppid, start_ns?))?.actor.process));
        let Some(parent) = parent.filter(|_| ppid != 0) else { return };
        process.parent_start_ns = Some(parent.start_ns);
        process.parent_exe = parent.exe.clone();
        process.parent_cmdline = parent.cmdline.clone();
        process.ancestors = Some(ancestors(parent));
    }

    fn put(&mut self, process: Process, container: Arc<Container>, cgroups: (u64, u64)) -> Actor {
        let pid = process.pid;
        let start_ns = process.start_ns;
        let actor = Actor { process: Arc::new(process), container };
        let was_ended = self.live.get(&pid).is_some_and(|old| old.ended && old.actor.process.start_ns == start_ns);
        let entry = Entry { cgroups, actor: actor.clone(), ended: was_ended };
        if self.live.len() >= LIVE_MAX && !self.live.contains_key(&pid) {
            // Still told, only not remembered.
            return actor;
        }
        if let Some(old) = self.live.insert(pid, entry)
            && old.actor.process.start_ns != start_ns
        {
            let key = (pid, old.actor.process.start_ns);
            if !old.ended {
                // Its exit record was lost; it cannot live, since its pid has a new owner.
                self.ended.push_back((self.ended.back().map_or(0, |last| last.0), key.0, key.1));
            }
            self.replaced.insert(key, Entry { ended: true, ..old });
        }
        actor
    }
}

/// Looks into `/proc` allowed per second, so that a storm of short processes costs no more than it must.
#[derive(Debug, Default)]
struct Budget {
    second: u64,
    used: u32,
}

impl Budget {
    fn take(&mut self, now_ns: u64) -> bool {
        let second = now_ns / 1_000_000_000;
        if second != self.second {
            (self.second, self.used) = (second, 0);
        }
        self.used += 1;
        if self.used > READS_PER_SECOND_MAX {
            metrics::counter!(crate::metrics::PROC_READS_SKIPPED).increment(1);
        }
        self.used <= READS_PER_SECOND_MAX
    }
}

fn is_current(process: &Process, who: &Who) -> bool {
    let same = |have: Option<u32>, now: u32| now == 0 || have == Some(now);
    let named = !is_leader(who) || who.comm.is_empty() || process.comm.as_deref() == Some(&who.comm);
    named
        && process.uid == Some(who.uid)
        && same(process.pid_ns, who.pid_ns)
        && same(process.mnt_ns, who.mnt_ns)
        && same(process.net_ns, who.net_ns)
}

/// Threads name themselves; the process's name is its leader's.
fn is_leader(who: &Who) -> bool {
    who.tid == who.pid
}

fn known(inode: u32) -> Option<u32> {
    Some(inode).filter(|inode| *inode != 0)
}

/// `pts0` is `/dev/pts/0`.
fn terminal(name: &str) -> Text {
    match name.strip_prefix("pts") {
        Some(number) if number.bytes().all(|b| b.is_ascii_digit()) => format!("pts/{number}").into(),
        _ => name.into(),
    }
}

/// Sets args and cmdline, cut so that both fit the wire and args stay JSON. Returns true when something was cut.
fn set_argv(process: &mut Process, argv: &[String]) -> bool {
    if argv.is_empty() {
        return false;
    }
    let mut args = String::from("[");
    let mut cut = false;
    for arg in argv {
        let comma = if args.len() > 1 { "," } else { "" };
        let mut end = arg.len();
        let mut text = serde_json::to_string(arg).unwrap_or_default();
        while args.len() + comma.len() + text.len() + 1 > STRING_BYTES_MAX && end > 0 {
            // Escapes make JSON longer than the text: halve until it fits.
            end = arg.floor_char_boundary(end.min(STRING_BYTES_MAX) / 2);
            text = serde_json::to_string(&arg[..end]).unwrap_or_default();
        }
        cut |= end < arg.len();
        if args.len() + comma.len() + text.len() + 1 > STRING_BYTES_MAX {
            cut = true;
            break;
        }
        args.push_str(comma);
        args.push_str(&text);
    }
    args.push(']');
    let mut cmdline = argv.join(" ");
    cut |= cmdline.len() > STRING_BYTES_MAX;
    cmdline.truncate(cmdline.floor_char_boundary(STRING_BYTES_MAX));
    process.args = Some(args.into());
    process.cmdline = Some(cmdline.into());
    cut
}

/// Executables from `parent` upwards: its own before those it has.
fn ancestors(parent: &Process) -> Text {
    let above: Vec<String> = parent.ancestors.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let own = parent.exe.as_deref().or(parent.comm.as_deref()).unwrap_or("").to_owned();
    let all: Vec<String> = std::iter::once(own).chain(above).take(ANCESTORS_MAX).collect();
    serde_json::to_string(&all).unwrap_or_default().into()
}

/// Processes held: beyond it an event still tells its process, the table only forgets it.
const LIVE_MAX: usize = 65_536;
/// Ended processes held.
const ENDED_MAX: usize = 8_192;
/// An ended process is remembered for a minute.
const ENDED_KEPT_NS: u64 = 60_000_000_000;
/// Ancestors told.
const ANCESTORS_MAX: usize = 16;
/// Looks into `/proc` per second.
const READS_PER_SECOND_MAX: u32 = 500;

#[cfg(test)]
#[path = "process_tests.rs"]
mod tests;
