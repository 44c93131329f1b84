//! Files of `../shared/data` for tests, and sysflow's recordings as events of ours.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::print_stdout, reason = "a test may print what it skips")]

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Map, Value as Json, json};
use weir_schema::{JsonEvent, parse_line};

/// A folder of `../shared/data` beside the repository, or beside the folder of its worktrees.
pub(crate) fn data(folder: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let found =
        ["../shared", "../../shared"].iter().map(|shared| root.join(shared).join("data").join(folder)).find(|path| path.is_dir());
    if found.is_none() {
        println!("SKIPPED: ../shared/data/{folder} is not there");
    }
    found
}

/// Every .yml and .yaml below a folder, by path, as name and text.
pub(crate) fn rule_files(folder: &Path) -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut todo = vec![folder.to_owned()];
    while let Some(next) = todo.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|ending| ending == "yml" || ending == "yaml") {
                files.push((path.display().to_string(), std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

/// A recording of sysflow: each line's number and the events that it stands for.
#[allow(dead_code, reason = "not every test file reads recordings")]
pub(crate) fn sysflow(path: &Path) -> Vec<(usize, JsonEvent)> {
    let mut gunzip = Command::new("gunzip").arg("-c").arg(path).stdout(Stdio::piped()).spawn().expect("gunzip runs");
    let mut text = String::new();
    gunzip.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(gunzip.wait().unwrap().success(), "gunzip {}", path.display());
    let mut events = Vec::new();
    // By pid: the executable and the parent's pid, as the lines so far tell them.
    let mut known: BTreeMap<u64, (String, u64)> = BTreeMap::new();
    for (at, line) in text.lines().enumerate() {
        let line: Json = serde_json::from_str(line).unwrap();
        let process = &line["proc"];
        let pid = |of: &Json| of["pid"].as_u64().unwrap_or(0);
        let exe = |of: &Json| of["exe"].as_str().unwrap_or("").to_owned();
        let parent = &process["parent"];
        known.insert(pid(process), (exe(process), pid(parent)));
        let mut ancestors = vec![exe(parent)];
        let mut above = known.get(&pid(parent)).map_or(0, |(_, above)| *above);
        while let Some((exe, next)) = known.get(&above).filter(|_| ancestors.len() < 8) {
            ancestors.push(exe.clone());
            above = *next;
        }
        for mut event in events_of(&line) {
            event.insert("ancestors".to_owned(), json!(ancestors));
            events.push((at, parse_line(&Json::Object(event).to_string()).unwrap()));
        }
    }
    events
}

fn events_of(line: &Json) -> Vec<Map<String, Json>> {
    let text = |value: &Json| value.as_str().filter(|text| !text.is_empty() && *text != "<NA>").map(str::to_owned);
    let process = &line["proc"];
    let command = |process: &Json| {
        format!("{} {}", process["exe"].as_str().unwrap_or(""), process["args"].as_str().unwrap_or("")).trim().to_owned()
    };
    let mut base = Map::new();
    let mut put = |key: &str, value: Json| _ = base.insert(key.to_owned(), value);
    put("time", line["ts"].clone());
    put("host", json!("recorded"));
    put("tid", line["tid"].clone());
    put("pid", process["pid"].clone());
    put("exe", json!(text(&process["exe"])));
    put("comm", json!(process["exe"].as_str().and_then(|exe| exe.rsplit('/').next())));
    put("cmdline", json!(command(process)));
    put("uid", json!(process["uid"].as_u64()));
    put("user_name", json!(text(&process["user"])));
    if process["parent"].is_object() {
        put("ppid", process["parent"]["pid"].clone());
        put("parent_exe", json!(text(&process["parent"]["exe"])));
        put("parent_cmdline", json!(command(&process["parent"])));
    }
    if line["container"].is_object() {
        put("container_id", line["container"]["id"].clone());
        put("container_name", line["container"]["name"].clone());
        put("image", line["container"]["image"].clone());
    }
    for (from, to) in [("sip", "src_ip"), ("sport", "src_port"), ("dip", "dst_ip"), ("dport", "dst_port")] {
        put(to, line[from].clone());
    }
    put("path", json!(text(&line["file"]["path"])));
    put("path_to", json!(text(&line["new_file"]["path"])));
    put("result", json!(line["ret"].as_i64().filter(|ret| *ret < 0).map_or(0, i64::abs)));
    let ops = line["ops"].as_array().unwrap().iter().filter_map(Json::as_str);
    ops.filter_map(|op| {
        let kind = match op {
            "EXEC" => "exec",
            "CLONE" => "fork",
            "EXIT" => "exit",
            "SETUID" => "setuid",
            // Flows of older recordings carry a bit that reads as SETNS now: every socket has it.
            "SETNS" if line["kind"] != "net_flow" => "setns",
            "CONNECT" => "connect",
            "ACCEPT" => "accept",
            "OPEN" if line["kind"] == "file_flow" => "open",
            "UNLINK" => "unlink",
            "RENAME" => "rename",
            "MKDIR" => "mkdir",
            "LINK" => "link",
            "SYMLINK" => "symlink",
            _ => return None,
        };
        let mut event = base.clone();
        event.insert("kind".to_owned(), json!(kind));
        if kind == "open" {
            event.insert("flags".to_owned(), json!(open_flags(line["open_flags"].as_u64().unwrap_or(0))));
        }
        if matches!(kind, "connect" | "accept") {
            event.insert("direction".to_owned(), json!(if kind == "connect" { "out" } else { "in" }));
            event.insert("proto".to_owned(), json!(if line["proto"] == 17 { "udp" } else { "tcp" }));
        }
        Some(event)
    })
    .collect()
}

/// The recorder's own numbers of open flags, as Linux has them.
fn open_flags(recorded: u64) -> u64 {
    let access = match recorded & 3 {
        2 => 1,
        3 => 2,
        _ => 0,
    };
    access | if recorded & 4 != 0 { 0o100 } else { 0 } | if recorded & 32 != 0 { 0o1_000 } else { 0 }
}
