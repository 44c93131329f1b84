//! `weir archive` as a person uses it: past events come in, are asked, held, exported, damaged and found out.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::process::Command;

struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

fn weir(folder: &Path, arguments: &[&str]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_weir")).arg("archive").args(arguments).current_dir(folder).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

fn done(folder: &Path, arguments: &[&str]) -> String {
    let ran = weir(folder, arguments);
    assert_eq!(ran.code, Some(0), "{arguments:?}: {}", ran.err);
    ran.out
}

fn failed(folder: &Path, arguments: &[&str], code: i32, why: &str) {
    let ran = weir(folder, arguments);
    assert!(ran.code == Some(code) && ran.err.contains(why), "{arguments:?}: {:?}, {}", ran.code, ran.err);
}

const PAST: &str = r#"{"kind":"exec","time":"2026-11-23T16:00:00Z","host":"web-7","pid":7,"exe":"/bin/sh","args":["sh","-c","id"]}
no event
{"kind":"connect","time":"2026-11-23T16:00:01.5Z","host":"web-7","pid":7,"dst_ip":"10.0.0.1","dst_port":443,"region":"eu"}
{"kind":"sample","time":"2026-11-23T16:00:02Z","host":"web-7","cpu_ms":12,"interval_ms":1000}
"#;

#[test]
fn past_events_become_evidence() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    std::fs::write(at.join("past.jsonl"), PAST).unwrap();
    let import = ["import", "--archive", "record", "past.jsonl", "--tenant", "bank"];
    let first = weir(at, &import);
    assert!(
        first.out.starts_with("2 events, 1 samples, 2 files, ") && first.err.contains("line 2: not an event"),
        "{}",
        first.out
    );
    assert!(done(at, &import).starts_with("0 events, 0 samples, 0 files, 0 bytes; passed over: 3 known, 1 no events"));
    let csv = done(
        at,
        &[
            "query",
            "record",
            "--csv",
            "-c",
            "SELECT kind, tenant, region, time, process_id IS NULL AS none, imported FROM events ORDER BY time",
        ],
    );
    let rows = "exec,bank,imported,2026-11-23 16:00:00+00,f,t\nconnect,bank,eu,2026-11-23 16:00:01.5+00,f,t\n";
    assert_eq!(csv, format!("kind,tenant,region,time,none,imported\n{rows}"));
    let verified = done(at, &["verify", "record"]);
    assert!(verified.starts_with("1 manifests, 2 files, 3 rows, "), "{verified}");
    let head = verified.trim().rsplit(' ').next().unwrap();

    done(at, &["hold", "--archive", "record", "case-17", "--host", "web-7", "--from", "2026-11-23T16:00:00Z", "--note", "audit"]);
    let files = done(at, &["files", "record"]);
    assert!(files.contains("bytes/row") && files.contains("\nholds:\n") && files.contains("case-17  web-7"), "{files}");
    failed(at, &["release", "--archive", "record", "case-18"], 1, "there is no hold \"case-18\": there are case-17");
    done(at, &["release", "--archive", "record", "case-17"]);
    assert!(!done(at, &["files", "record"]).contains("holds"));

    let exported = done(at, &["export", "--archive", "record", "--where", "dst_port = 443", "--out", "case-17"]);
    assert!(exported.starts_with("1 events, 0 samples, 1 files, "), "{exported}");
    done(at, &["verify", "case-17", "--head", exported.trim().rsplit(' ').next().unwrap()]);
    done(at, &["verify", "record", "--head", head]);
    assert!(done(at, &["import", "--archive", "another", "case-17"]).contains("manifest 1"));

    let file = std::fs::read_dir(at.join("record/events/fresh")).unwrap().next().unwrap().unwrap();
    let mut bytes = std::fs::read(file.path()).unwrap();
    bytes[99] ^= 1;
    std::fs::write(file.path(), bytes).unwrap();
    let found = weir(at, &["verify", "record"]);
    let named = format!("damaged: events/fresh/{}: the 32 KiB from byte 0 on", file.file_name().to_str().unwrap());
    assert!(found.code == Some(1) && found.out.starts_with(&named), "{}", found.out);
    assert!(found.out.lines().last().unwrap().starts_with("3 manifests, 2 files, 3 rows, "), "{}", found.out);
    failed(at, &["query", "record", "-c", "SELECT path FROM events"], 1, "is damaged: the 32 KiB from byte 0 on");
    failed(at, &["import", "--archive", "another", "record"], 1, "\"record\" is damaged and was not imported");
}

#[test]
fn what_cannot_be_done_says_what_where_and_the_cure() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    std::fs::create_dir(at.join("empty")).unwrap();
    failed(at, &["verify", "nowhere"], 1, "there is no archive at \"nowhere\": it is no directory; check the path");
    failed(at, &["verify", "empty"], 1, "there is no archive at \"empty\": it has no manifest; check the location");
    failed(at, &["files", "empty"], 1, "there is no archive at \"empty\"");
    failed(at, &["query", "empty", "-c", "SELECT 1"], 1, "there is no archive at \"empty\"");
    failed(at, &["hold", "--archive", "empty", "case"], 1, "there is no archive at \"empty\"");
    failed(at, &["import", "--archive", "record", "nowhere"], 1, "could not import nowhere");
    failed(at, &["import", "--archive", "record", "empty", "--tenant", "bank"], 1, "are for JSON lines");
    failed(at, &["verify", "empty", "--head", "abc"], 2, "give the 64 hexadecimal digits");
    failed(at, &["hold", "--archive", "empty", "case", "--from", "noon"], 2, "write a time as");
    failed(at, &["export", "--archive", "empty"], 2, "--out");
    assert!(!at.join("record").exists() && !at.join("nowhere").exists());
    std::fs::write(at.join("past.jsonl"), PAST).unwrap();
    done(at, &["import", "--archive", "record", "past.jsonl"]);
    failed(at, &["query", "record", "-c", "DROP TABLE events"], 1, "DDL not supported");
    failed(at, &["query", "record", "-c", "SELECT nothing FROM events"], 1, "No field named nothing");
    failed(at, &["export", "--archive", "record", "--where", "hst = 'a'", "--out", "case"], 1, "Did you mean 'events.host'?");
    failed(at, &["export", "--archive", "record", "--out", "record"], 1, "it is not empty");
    let help = done(at, &["verify", "--help"]);
    assert!(help.contains("Example") && help.contains("--head <HASH>"), "{help}");
}

const RULES: &str = r#"
- list: shells
  items: [bash, sh, dash]
- macro: spawned
  condition: (evt.type in (execve, execveat))
- rule: Shell of a web server
  desc: A server's worker starts a shell
  condition: spawned and proc.name in (shells) and proc.pname = nginx and proc.aname[2] = systemd
  output: shell %proc.cmdline of %proc.pname as %user.name in %container.name (%container.image.repository)
  priority: WARNING
  tags: [T1190]
- rule: Secret read
  desc: A file of secrets is read
  condition: evt.type in (open, openat, openat2) and fd.name startswith /etc/shadow
  output: "%fd.name read by %proc.exepath %proc.pid at %evt.time.iso8601"
  priority: ERROR
- rule: Metadata asked
  desc: The metadata service of a cloud is asked
  condition: evt.type = connect and fd.sip = "169.254.169.254" and container.id != host
  output: "%fd.name by %proc.name of %container.id"
  priority: NOTICE
"#;

/// The events of a container's life, of `seed`: names, times and results vary.
fn a_life(seed: u64) -> String {
    let at = |ms: u64| format!("2026-11-23T16:{:02}:{:02}.{:03}Z", seed % 60, ms / 1000, ms % 1000);
    let (shell, up) = (["sh", "bash", "perl"][seed as usize % 3], ["systemd", "init"][(seed / 3) as usize % 2]);
    let common = format!(
        r#""host":"web-{}","container_id":"{seed:012x}","container_name":"shop","image":"registry/shop:1","uid":33,"user_name":"www""#,
        seed % 4
    );
    let process = format!(r#""pid":{},"exe":"/bin/{shell}","comm":"{shell}""#, 100 + seed);
    let ancestors = format!(r#"["/usr/sbin/nginx","/usr/lib/{up}"]"#);
    [
        format!(
            r#"{{"kind":"exec","time":"{}",{common},{process},"args":["{shell}","-c","id; \"{seed}\""],"parent_exe":"/usr/sbin/nginx","ancestors":{ancestors}}}"#,
            at(1)
        ),
        format!(r#"{{"kind":"open","time":"{}",{common},{process},"path":"/etc/shadow","result":{}}}"#, at(20), seed % 2),
        format!(
            r#"{{"kind":"connect","time":"{}",{common},{process},"dst_ip":"169.254.169.254","dst_port":80,"proto":"tcp"}}"#,
            at(31_007)
        ),
    ]
    .join("\n")
}

/// What the rules say of a recording, whatever the order of its lines.
fn alerts(folder: &Path, events: &str) -> Vec<String> {
    let arguments = ["rules", "run", "--events", events, "rules.yaml"];
    let output = Command::new(env!("CARGO_BIN_EXE_weir")).args(arguments).current_dir(folder).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let without_line = |line: &str| {
        let mut alert: serde_json::Value = serde_json::from_str(line).unwrap();
        alert.as_object_mut().unwrap().remove("line").unwrap();
        alert.to_string()
    };
    let mut alerts: Vec<_> = said.lines().map(without_line).collect();
    alerts.sort();
    alerts
}

#[test]
fn rules_say_the_same_of_a_bundle_as_of_the_events_it_was_made_of() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    std::fs::write(at.join("rules.yaml"), RULES).unwrap();
    let lines: Vec<String> = (0..60).map(a_life).collect();
    std::fs::write(at.join("past.jsonl"), lines.join("\n")).unwrap();
    let before = alerts(at, "past.jsonl");
    assert_eq!(before.len(), 20 + 60 + 60, "{before:#?}");

    done(at, &["import", "--archive", "record", "past.jsonl", "--tenant", "bank"]);
    done(at, &["export", "--archive", "record", "--out", "all"]);
    assert_eq!(alerts(at, "all/events.jsonl"), before);

    // A case has its host's part of it, also after it went through another archive.
    let of_host: Vec<_> = before.iter().filter(|alert| alert.contains(r#""host":"web-2""#)).cloned().collect();
    done(at, &["export", "--archive", "record", "--where", "host = 'web-2'", "--out", "case"]);
    assert_eq!(alerts(at, "case/events.jsonl"), of_host);
    done(at, &["import", "--archive", "elsewhere", "case"]);
    done(at, &["export", "--archive", "elsewhere", "--out", "again"]);
    assert_eq!(alerts(at, "again/events.jsonl"), of_host);
}
