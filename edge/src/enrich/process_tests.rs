//! The process table against made-up records: no `/proc` behind it.

use super::*;
use crate::enrich::cgroup::Mounts;
use crate::enrich::runtime::Runtimes;

const TICK: u64 = 10_000_000;

fn tables() -> (Processes, Places) {
    (Processes::new(Proc::new("/nowhere")), Places::new(Mounts::default(), Vec::new(), Runtimes::new("/nowhere")))
}

fn who(pid: u32, start_ns: u64, ppid: u32, parent_start_ns: u64) -> Who {
    Who { pid, tid: pid, start_ns, ppid, parent_start_ns, comm: "task".into(), uid: 4_000_000_000, ..Who::default() }
}

fn exec_of(exe: &str, args: &[&str]) -> Exec {
    Exec {
        exe: exe.as_bytes().to_vec(),
        filename: exe.as_bytes().to_vec(),
        args: args.iter().map(|arg| arg.as_bytes().to_vec()).collect(),
        cwd: b"/work".to_vec(),
        session_id: 9,
        tty: "pts3".into(),
        capabilities: 0x1ff,
        ..Exec::default()
    }
}

#[test]
fn parents_and_ancestors() {
    let (mut table, mut places) = tables();
    let init = who(1, TICK, 0, 0);
    table.exec(&init, &exec_of("/sbin/init", &["init"]), &mut places, 0);
    let mut parent = init;
    for (depth, name) in ["/bin/a", "/bin/b", "/bin/c"].into_iter().enumerate() {
        let child_start_ns = parent.start_ns + 7 * TICK + 123;
        let fork = Fork { child_pid: 100 + depth as u32, child_start_ns, child_ppid: parent.pid };
        table.fork(&parent, &fork, &mut places, 0);
        let child = who(fork.child_pid, child_start_ns, parent.pid, parent.start_ns);
        table.exec(&child, &exec_of(name, &[name, "x y"]), &mut places, 0);
        parent = child;
    }
    let last = &table.by_pid(102).unwrap().process;
    assert_eq!(last.ancestors.as_deref(), Some(r#"["/bin/b","/bin/a","/sbin/init"]"#));
    assert_eq!(last.parent_exe.as_deref(), Some("/bin/b"));
    assert_eq!(last.parent_cmdline.as_deref(), Some("/bin/b x y"));
    assert_eq!(last.args.as_deref(), Some(r#"["/bin/c","x y"]"#));
    assert_eq!(last.tty.as_deref(), Some("pts/3"));
    assert_eq!(last.capabilities.as_deref(), Some("00000000000001ff"));
    assert_eq!(last.start_ns % TICK, 0);
    assert_eq!(last.parent_start_ns, Some(table.by_pid(101).unwrap().process.start_ns));
}

#[test]
fn a_child_is_its_parent_until_it_executes() {
    let (mut table, mut places) = tables();
    let parent = who(5, TICK, 1, 0);
    table.exec(&parent, &exec_of("/bin/sh", &["sh", "-c", ""]), &mut places, 0);
    let fork = Fork { child_pid: 6, child_start_ns: 2 * TICK, child_ppid: 5 };
    table.fork(&parent, &fork, &mut places, 0);
    let child = table.actor(&who(6, 2 * TICK, 5, TICK), &mut places, 0).process;
    assert_eq!((child.exe.as_deref(), child.ppid), (Some("/bin/sh"), Some(5)));
    assert_eq!(child.parent_exe.as_deref(), Some("/bin/sh"));
}

#[test]
fn an_orphan_keeps_who_made_it() {
    let (mut table, mut places) = tables();
    table.exec(&who(1, TICK, 0, 0), &exec_of("/sbin/init", &["init"]), &mut places, 0);
    let maker = who(5, 2 * TICK, 1, TICK);
    table.exec(&maker, &exec_of("/bin/sh", &["sh", "-c", "x"]), &mut places, 0);
    table.fork(&maker, &Fork { child_pid: 6, child_start_ns: 3 * TICK, child_ppid: 5 }, &mut places, 0);
    table.exit(&maker, &mut places, 0);
    for exe in ["/bin/echo", "/bin/again"] {
        let (actor, _) = table.exec(&who(6, 3 * TICK, 1, TICK), &exec_of(exe, &[exe]), &mut places, 0);
        assert_eq!(actor.process.ancestors.as_deref(), Some(r#"["/bin/sh","/sbin/init"]"#));
        assert_eq!((actor.process.ppid, actor.process.parent_cmdline.as_deref()), (Some(5), Some("sh -c x")));
        assert_eq!(actor.process.parent_start_ns, Some(2 * TICK));
    }
    // The same pid again is another process.
    let (actor, _) = table.exec(&who(6, 9 * TICK, 1, TICK), &exec_of("/bin/new", &["new"]), &mut places, 0);
    assert_eq!((actor.process.ppid, actor.process.parent_exe.as_deref()), (Some(1), Some("/sbin/init")));
}

#[test]
fn the_same_facts_share_one_process() {
    let (mut table, mut places) = tables();
    let one = table.actor(&who(5, TICK, 1, 0), &mut places, 0).process;
    let two = table.actor(&who(5, TICK, 1, 0), &mut places, 0).process;
    assert!(Arc::ptr_eq(&one, &two));
    let mut thread = who(5, TICK, 1, 0);
    (thread.tid, thread.comm) = (77, "worker-1".into());
    assert!(Arc::ptr_eq(&one, &table.actor(&thread, &mut places, 0).process));
    let mut other_user = who(5, TICK, 1, 0);
    other_user.uid = 33;
    assert_eq!(table.actor(&other_user, &mut places, 0).process.uid, Some(33));
}

#[test]
fn late_events_of_the_ended_resolve() {
    let (mut table, mut places) = tables();
    let old = who(5, TICK, 1, 0);
    table.exec(&old, &exec_of("/bin/old", &["old"]), &mut places, 0);
    table.exit(&old, &mut places, 1);
    assert_eq!(table.actor(&old, &mut places, 2).process.exe.as_deref(), Some("/bin/old"));
    // The pid is used again; both can be told.
    let new = who(5, 9 * TICK, 1, 0);
    table.exec(&new, &exec_of("/bin/new", &["new"]), &mut places, 3);
    assert_eq!(table.actor(&old, &mut places, 4).process.exe.as_deref(), Some("/bin/old"));
    assert_eq!(table.actor(&new, &mut places, 4).process.exe.as_deref(), Some("/bin/new"));
    table.expire(1 + ENDED_KEPT_NS);
    assert_eq!(table.actor(&old, &mut places, 4).process.exe, None);
    assert_eq!(table.actor(&new, &mut places, 4).process.exe.as_deref(), Some("/bin/new"));
}

#[test]
fn an_id_that_nobody_knows_is_looked_up_while_the_process_lives() {
    let proc = tempfile::tempdir().unwrap();
    let id = "a".repeat(64);
    std::fs::create_dir_all(proc.path().join("7")).unwrap();
    std::fs::write(proc.path().join("7/stat"), "7 (x) S 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 5 0 0").unwrap();
    std::fs::write(proc.path().join("7/cgroup"), format!("0::/docker/{id}\n")).unwrap();
    let (_, mut places) = tables();
    let mut table = Processes::new(Proc::new(proc.path()));
    let mut record = who(7, 5 * TICK, 1, 0);
    record.cgroup_v2 = 999;
    let actor = table.exec(&record, &exec_of("/bin/x", &["x"]), &mut places, 0).0;
    assert_eq!(actor.container.container_id.as_deref(), Some(&*id));
    // Another process of that pid is not asked for its cgroup.
    record.start_ns = 6 * TICK;
    let other = table.exec(&record, &exec_of("/bin/x", &["x"]), &mut places, 0).0;
    assert_eq!(other.container.container_id, None);
}

#[test]
fn the_number_of_ended_is_bounded() {
    let (mut table, mut places) = tables();
    for pid in 0..(ENDED_MAX as u32 + 50) {
        let one = who(10 + pid, TICK * u64::from(pid + 1), 1, 0);
        table.actor(&one, &mut places, 0);
        table.exit(&one, &mut places, 0);
    }
    table.expire(1);
    assert_eq!(table.live.len(), ENDED_MAX);
    assert_eq!(table.len(), 0);
}

#[test]
fn long_arguments_are_cut_and_stay_json() {
    let table = [vec!["ä".repeat(9_000), "more".into()], vec!["\u{1}".repeat(3_000)], vec!["x".into(); 4_000]];
    for argv in table {
        let mut process = Process::default();
        assert!(set_argv(&mut process, &argv));
        assert!(process.cmdline.unwrap().len() <= STRING_BYTES_MAX);
        let args = process.args.unwrap();
        assert!(args.len() <= STRING_BYTES_MAX);
        let parsed: Vec<String> = serde_json::from_str(&args).unwrap();
        assert!(argv[0].starts_with(&parsed[0]) && !parsed[0].is_empty());
    }
    let mut process = Process::default();
    assert!(!set_argv(&mut process, &["a".into(), String::new()]));
    assert_eq!(process.args.as_deref(), Some(r#"["a",""]"#));
}

#[test]
fn this_process_is_the_same_from_proc_and_from_a_record() {
    let (_, mut places) = tables();
    let mut table = Processes::new(Proc::new("/proc"));
    table.load(&mut places, 0);
    let pid = std::process::id();
    let seen = table.by_pid(pid).unwrap().process.clone();
    assert!(seen.exe.is_some() && seen.parent_exe.is_some() && seen.ancestors.is_some());
    // A kernel record has the nanoseconds that `/proc` cut off.
    let mut record = who(pid, seen.start_ns + 4_321, seen.ppid.unwrap(), seen.parent_start_ns.unwrap());
    record.uid = seen.uid.unwrap();
    record.comm = seen.comm.as_deref().unwrap().into();
    let again = table.actor(&record, &mut places, 0).process;
    assert_eq!((again.start_ns, &again.exe), (seen.start_ns, &seen.exe));
}
