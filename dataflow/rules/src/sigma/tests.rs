//! Rules in, hits out: modifiers, conditions, values, log sources, and what is refused.

use std::sync::Arc;

use proptest::prelude::*;
use weir_schema::{Event, Fields, Kind, Process, parse_line};

use crate::error::Why;
use crate::event::EventFields;
use crate::matcher::Matcher;
use crate::set::{Matching, Rule, RuleSet};
use crate::sigma::Pipeline;

const PIPELINE: &str = "placeholders:\n  Admins: [root, 'adm*']\n  Hosts: web\n";

fn load(text: &str) -> RuleSet {
    let mut pipeline = Pipeline::default();
    pipeline.read("p.yml", PIPELINE).unwrap();
    RuleSet::load_with([("f.yml", text)], &pipeline)
}

/// A rule over every event of ours, from its detection.
fn rule(detection: &str) -> String {
    let indented: String = detection.lines().map(|line| format!("    {line}\n")).collect();
    format!("title: t\nlogsource:\n    service: weir\ndetection:\n{indented}")
}

fn fires(set: &RuleSet, event: &Event) -> bool {
    let mut hits = Vec::new();
    Matcher::default().matches(set, &EventFields::new(event, "h1"), Matching::First, &mut hits);
    !hits.is_empty()
}

fn event() -> Event {
    let line = r#"{"kind": "exec", "time": "2025-08-02T23:59:30Z", "pid": 42, "uid": 0, "exe": "/usr/bin/Curl", "comm": "curl",
        "cmdline": "Curl -s /X http://a.b/c?d=*", "parent_exe": "/usr/sbin/sshd", "parent_cmdline": "sshd -D", "user_name": "Root",
        "ancestors": ["/usr/sbin/sshd", "/sbin/init"], "args": ["Curl", "-s", "/X"], "dst_ip": "10.1.2.3", "dst_port": 443, "result": 0,
        "back": "a\\b", "empty": "", "same": "/USR/sbin/sshd", "enc": "xx aQBlAHgA yy L2Jpbi9iYXNo zz", "n": 7, "lines": "one\nTwo"}"#;
    parse_line(&line.replace('\n', " ")).unwrap().event
}

#[test]
fn fields_and_modifiers() {
    let event = event();
    let cases = [
        ("comm: CURL", true),
        ("comm: curl2", false),
        ("comm|cased: CURL", false),
        ("exe|endswith: /curl", true),
        ("exe|endswith|cased: /curl", false),
        ("exe|cased|endswith: /Curl", true),
        ("exe|startswith: [/opt, /usr/BIN/]", true),
        ("exe: '/usr/*/c?rl'", true),
        ("exe: '/usr/*/c?url'", false),
        ("exe: curl", false),
        ("cmdline|contains: 'd=\\*'", true),
        ("cmdline|contains: 'c\\?d'", true),
        ("comm|contains: 'u\\*'", false),
        ("cmdline|contains|all: [' -s', 'HTTP://']", true),
        ("cmdline|contains|all: [' -s', 'ftp://']", false),
        ("cmdline|contains|windash: ' -X '", true),
        ("cmdline|contains|windash: ' /S '", true),
        ("cmdline|windash|contains: ' -y '", false),
        ("cmdline|re: 'h..p://[a-z.]+/'", true),
        ("cmdline|re: '^curl'", false),
        ("cmdline|re|i: '^curl'", true),
        ("detail.lines|re: '^Two$'", false),
        ("detail.lines|re|m: '^Two$'", true),
        ("detail.lines|re: 'one.Two'", false),
        ("detail.lines|re|s: 'one.Two'", true),
        ("detail.lines|re|i|m|s: '^two$'", true),
        ("dst_ip|cidr: 10.0.0.0/8", true),
        ("dst_ip|cidr: ['192.168.0.0/16', '10.1.2.3']", true),
        ("dst_ip|cidr: 192.168.0.0/16", false),
        ("detail.enc|wide|base64|contains: iex", true),
        ("detail.enc|utf16le|base64offset|contains: iex", true),
        ("detail.enc|utf16be|base64offset|contains: iex", false),
        ("detail.enc|base64offset|contains: /bin/bash", true),
        ("detail.enc|base64offset|contains: /bin/zsh", false),
        ("detail.enc|base64|contains: /bin/bash", true),
        ("exe|exists: true", true),
        ("path|exists: false", true),
        ("path|exists: true", false),
        ("nobody|exists: false", false),
        ("nobody: null", false),
        ("path: null", true),
        ("exe: null", false),
        ("detail.empty: ''", true),
        ("exe: ''", false),
        ("path: ''", false),
        ("detail.back: 'a\\b'", true),
        ("detail.back: 'a\\\\b'", true),
        ("detail.same|fieldref: parent_exe", true),
        ("detail.same|fieldref|cased: parent_exe", false),
        ("cmdline|fieldref|startswith: comm", true),
        ("exe|fieldref: path", false),
        ("exe|fieldref|neq: path", false),
        ("exe|fieldref|neq: parent_exe", true),
        ("detail.same|fieldref|neq: parent_exe", false),
        ("dst_port|gt: 442", true),
        ("dst_port|gte: 443", true),
        ("dst_port|lt: 443", false),
        ("dst_port|lte: 443", true),
        ("dst_port|gt: 442.5", true),
        ("dst_port|lt: 443.5", true),
        ("detail.n|gte: 7", true),
        ("comm|gt: 1", false),
        ("dst_port: 443", true),
        ("dst_port: '44*'", true),
        ("dst_port|neq: 443", false),
        ("dst_port|neq: [1, 2]", true),
        ("path|neq: x", false),
        ("nobody|neq: x", false),
        ("exe|endswith|neq: /curl", false),
        ("ancestors|endswith: /INIT", true),
        ("ancestors|endswith|neq: /init", false),
        ("args: -S", true),
        ("weir.arg[1]: -s", true),
        ("time|minute: 59", true),
        ("time|hour|gte: 23", true),
        ("time|day: 2", true),
        ("time|week: 31", true),
        ("time|month: [7, 8]", true),
        ("time|year|lt: 2025", false),
        ("user_name|expand: '%Admins%'", true),
        ("user_name|expand: 'x%Admins%'", false),
        ("user_name: '%Admins%'", false),
        ("user_name|expand: '\\%Admins%'", false),
        ("cmdline|expand|contains: ['%Hosts%', 'a.b']", true),
    ];
    for (detection, wanted) in cases {
        let set = load(&rule(&format!("s:\n    {detection}\ncondition: s")));
        assert_eq!(set.errors, [], "{detection}");
        assert_eq!(fires(&set, &event), wanted, "{detection}");
    }
}

#[test]
fn conditions_lists_and_keywords() {
    let event = event();
    let cases = [
        ("a:\n    comm: curl\nb:\n    comm: wget\ncondition: a and not b", true),
        ("a:\n    comm: curl\nb:\n    comm: wget\ncondition: a and b", false),
        ("a:\n    comm: curl\nb:\n    comm: wget\ncondition: 1 of them", true),
        ("a:\n    comm: curl\nb:\n    comm: wget\ncondition: all of them", false),
        ("sel_a:\n    comm: curl\nsel_b:\n    uid: 0\nfilter:\n    uid: 0\ncondition: all of sel_* and not filter", false),
        ("_a:\n    comm: wget\nb:\n    comm: curl\ncondition: all of them", true),
        ("a:\n    - comm: wget\n    - comm: curl\n      uid: 0\ncondition: a", true),
        ("a:\n    - comm: wget\n    - comm: curl\n      uid: 1\ncondition: a", false),
        ("a:\n    - comm: wget\n    - 'HTTP://A.B'\ncondition: a", true),
        ("k:\n    - nothing\n    - SSHD\ncondition: k", true),
        ("k:\n    '|all':\n        - sshd\n        - 'curl*http'\ncondition: k", true),
        ("k:\n    '|all':\n        - sshd\n        - wget\ncondition: k", false),
        ("k:\n    '|re': 'h(t|x)tp'\ncondition: k", true),
        ("k: sshd\ncondition: k", true),
        ("a:\n    comm: wget\nb:\n    comm: curl\ncondition: [a, b]", true),
        ("a:\n    comm: [wget, null]\ncondition: a", false),
        ("a:\n    path: [wget, null]\ncondition: a", true),
    ];
    for (detection, wanted) in cases {
        let set = load(&rule(detection));
        assert_eq!(set.errors, [], "{detection}");
        assert_eq!(fires(&set, &event), wanted, "{detection}");
    }
}

fn verdict(text: &str) -> String {
    let set = load(text);
    assert_eq!(set.errors, [], "{text}");
    set.rules.first().map(Rule::verdict).unwrap_or_default()
}

#[test]
fn what_is_not_supplied_is_named() {
    let of = |source: &str, detection: &str| {
        verdict(&format!("title: t\nlogsource:\n    product: linux\n    {source}\ndetection:\n    {detection}\n"))
    };
    let cases = [
        ("category: process_creation", "s: {Image: a}\n    condition: s", "ok"),
        ("category: process_creation", "s: {Hashes: a}\n    condition: s", "partly: field Hashes is not supplied"),
        (
            "category: process_creation",
            "s: {Image: a}\n    f: {Company: b}\n    condition: s and not f",
            "partly: field Company is not supplied (an exclusion needs it)",
        ),
        (
            "service: sshd",
            "k: [x]\n    condition: k",
            "partly: events of logsource product linux, service sshd are not collected",
        ),
        ("service: auditd", "s: {type: SERVICE_STOP}\n    condition: s", "partly: events of type SERVICE_STOP are not collected"),
        ("service: auditd", "s: {type: execve, a1: x}\n    condition: s", "ok"),
        ("service: auditd", "s: {SYSCALL: sysinfo}\n    condition: s", "partly: events of type sysinfo are not collected"),
        (
            "service: auditd",
            "s: {SYSCALL: connect, a0: '2'}\n    condition: s",
            "partly: field a0 of a system call is not supplied",
        ),
    ];
    for (source, detection, wanted) in cases {
        assert_eq!(of(source, detection), wanted, "{source} {detection}");
    }
}

#[test]
fn log_sources_are_kinds_of_events() {
    let process = Process { pid: 1, exe: Some("/bin/sh".into()), cmdline: Some("sh -c id".into()), ..Process::default() };
    let event =
        |kind: Kind, fields: Fields| Event { time: 1, kind, process: Some(Arc::new(process.clone())), container: None, fields };
    let file =
        |path: &str, flags: u32| Fields { path: Some(path.into()), flags: Some(flags), result: Some(0), ..Fields::default() };
    let moved = Fields { path_to: Some("/etc/cron.d/x".into()), ..file("/tmp/x", 0) };
    let net = Fields { dst_ip: Some("1.2.3.4".into()), dst_port: Some(22), direction: Some("out".into()), ..Fields::default() };
    let failed = Fields { result: Some(13), ..file("/etc/cron.d/x", 0o101) };
    let cases = [
        ("category: file_event", "TargetFilename|startswith: /etc/cron", Kind::Open, file("/etc/cron.d/x", 0o101), true),
        ("category: file_event", "TargetFilename|startswith: /etc/cron", Kind::Open, file("/etc/cron.d/x", 0), false),
        ("category: file_event", "TargetFilename|startswith: /etc/cron", Kind::Open, failed, false),
        ("category: file_event", "TargetFilename|startswith: /etc/cron", Kind::Rename, moved, true),
        ("category: file_event", "TargetFilename|startswith: /etc/cron", Kind::Unlink, file("/etc/cron.d/x", 0), false),
        ("category: file_access", "TargetFilename: /etc/shadow", Kind::Open, file("/etc/shadow", 0), true),
        ("category: network_connection", "{DestinationPort: 22, Initiated: 'true'}", Kind::Connect, net.clone(), true),
        ("category: network_connection", "Initiated: 'false'", Kind::Connect, net, false),
        (
            "category: process_creation",
            "CommandLine|contains: id",
            Kind::Exec,
            Fields { result: Some(0), ..Fields::default() },
            true,
        ),
        (
            "category: process_creation",
            "CommandLine|contains: id",
            Kind::Exec,
            Fields { result: Some(2), ..Fields::default() },
            false,
        ),
        ("category: process_creation", "CommandLine|contains: id", Kind::Exit, Fields::default(), false),
        ("service: auditd", "{type: EXECVE, a1: -c}", Kind::Exec, Fields::default(), true),
        ("service: auditd", "{type: PATH, name: /etc/shadow}", Kind::Open, file("/etc/shadow", 0), true),
        ("service: auditd", "SYSCALL: [fchmod, foo]", Kind::Chmod, file("/etc/shadow", 0), true),
        ("service: auditd", "{SYSCALL: openat, success: 'no'}", Kind::Open, Fields { result: Some(13), ..file("/x", 0) }, true),
    ];
    for (source, selection, kind, fields, wanted) in cases {
        let text = format!(
            "title: t\nlogsource:\n    product: linux\n    {source}\ndetection:\n    s:\n        {selection}\n    condition: s\n"
        );
        let text = if selection.starts_with('{') { text.replace("s:\n        {", "s: {") } else { text };
        let set = load(&text);
        assert_eq!(set.errors, [], "{text}");
        assert_eq!(fires(&set, &event(kind, fields)), wanted, "{text}");
    }
}

#[test]
fn what_is_wrong_is_refused_with_line_and_cure() {
    let cases = [
        ("title: t\nlogsource: {product: linux}\n", Why::Shape, 1, "no detection"),
        ("detection: {s: {a: b}, condition: s}\nlogsource: {product: linux}\n", Why::Shape, 1, "no title"),
        ("title: t\ndetection: {s: {a: b}, condition: s}\n", Why::Shape, 1, "no logsource"),
        (&rule("s: {comm: a}\ncondition: x"), Why::Syntax, 6, "names \"x\""),
        (&rule("s: {comm: a}\ncondition: 1 of x*"), Why::Syntax, 6, "called like"),
        (&rule("s: {comm|what: a}\ncondition: s"), Why::Syntax, 5, "modifier \"what\""),
        (&rule("s: {comm|i: a}\ncondition: s"), Why::Syntax, 5, "without re"),
        (&rule("s: {comm|re|cidr: a}\ncondition: s"), Why::Syntax, 5, "do not go together"),
        (&rule("s:\n    comm|re: '(?=x)'\ncondition: s"), Why::Regex, 6, "regular expression"),
        (&rule("s:\n    dst_ip|cidr: x/8\ncondition: s"), Why::Value, 6, "no network"),
        (&rule("s:\n    dst_port|gt: many\ncondition: s"), Why::Value, 6, "no number"),
        (&rule("s:\n    comm|base64: 'a*'\ncondition: s"), Why::Value, 6, "wildcards"),
        (&rule("s:\n    comm|expand: '%nobody%'\ncondition: s"), Why::Unsupported, 6, "placeholder"),
        (&rule("s:\n    comm: []\ncondition: s"), Why::Shape, 6, "empty list"),
        (&rule("s:\n    comm: {a: b}\ncondition: s"), Why::Shape, 6, "mapping"),
        (&rule("s: {}\ncondition: s"), Why::Shape, 5, "empty"),
        (&rule("s: {comm: a}"), Why::Shape, 1, "no condition"),
        (&rule("s: {comm: a}\ncondition: s | count() > 3"), Why::Unsupported, 6, "aggregation"),
        ("title: c\nfilter: {rules: [x]}\n", Why::Unsupported, 1, "filters are not built yet"),
        ("title: c\naction: global\n", Why::Unsupported, 1, "collections"),
        (&format!("{}level: huge\n", rule("s: {comm: a}\ncondition: s")), Why::Shape, 7, "level"),
    ];
    for (text, why, line, part) in cases {
        let set = load(text);
        assert_eq!(set.errors.len(), 1, "{text}: {:?}", set.errors);
        let error = &set.errors[0];
        assert_eq!((error.why, error.place.line), (why, line), "{error}");
        assert!(error.to_string().contains(part) && !error.cure.is_empty(), "{error}");
    }
}

#[test]
fn documents_of_both_languages_load_together() {
    let falco = "- rule: f\n  desc: d\n  condition: proc.name = curl\n  output: o\n  priority: INFO\n";
    let sigma = rule("s: {comm: curl}\ncondition: s").replace("title: t", "title: t\nid: i1");
    let twice = format!("{sigma}---\n{sigma}");
    let set = RuleSet::load([("a.yml", twice.as_str()), ("b.yaml", falco), ("c.yml", "title: x\nfilter: {}\n")]);
    assert_eq!(set.errors.iter().map(|error| error.why).collect::<Vec<_>>(), [Why::Shape, Why::Unsupported], "{:?}", set.errors);
    let mut hits = Vec::new();
    Matcher::default().matches(&set, &EventFields::new(&event(), "h"), Matching::First, &mut hits);
    let names: Vec<&str> = hits.iter().map(|hit| set.rules[*hit].name.as_str()).collect();
    assert_eq!(names, ["f", "t"]);
}

#[test]
fn a_pipeline_maps_fields_and_kinds() {
    let mut pipeline = Pipeline::default();
    let text = "pipeline: own\nlogsources:\n  - product: shop\n    category: orders\n    kinds: [exec]\n    fields:\n      Buyer: user_name\n      Back: detail.back\n";
    pipeline.read("p.yml", text).unwrap();
    let rule = "title: t\nlogsource: {product: shop, category: orders}\ndetection:\n    s: {Buyer: root, Back: 'a\\b'}\n    condition: s\n";
    let set = RuleSet::load_with([("f.yml", rule)], &pipeline);
    assert_eq!((set.errors.len(), set.rules[0].verdict().as_str()), (0, "ok"));
    assert!(fires(&set, &event()));
    let wrong = [
        ("x: 1\n", "unknown"),
        ("logsources: [{fields: {a: b}}]\n", "neither a column"),
        ("logsources: [{product: x, kinds: [zzz]}]\n", "no kind"),
        ("logsources: [{fields: {a: exe}}]\n", "neither product"),
        ("placeholders: {a: []}\n", "placeholder"),
        ("- a\n", "mapping"),
    ];
    for (text, part) in wrong {
        let error = pipeline.read("w.yml", text).unwrap_err();
        assert!(error.to_string().contains(part) && error.to_string().contains("w.yml:1"), "{error}");
    }
}

/// Literals in a list, tried by a matcher written the plain way.
fn like_plainly(pattern: &[char], text: &[char]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some(('*', rest)) => (0..=text.len()).any(|at| like_plainly(rest, &text[at..])),
        Some(('?', rest)) => !text.is_empty() && like_plainly(rest, &text[1..]),
        Some((c, rest)) => {
            text.first().is_some_and(|first| first.to_lowercase().eq(c.to_lowercase())) && like_plainly(rest, &text[1..])
        }
    }
}

proptest! {
    #[test]
    fn wildcards_are_the_plain_ones(patterns in proptest::collection::vec("[abÄ*?]{0,6}", 1..4), text in "[abAäBÄ]{0,8}") {
        let list: Vec<String> = patterns.iter().map(|pattern| format!("'{pattern}'")).collect();
        let set = load(&rule(&format!("s:\n    comm: [{}]\ncondition: s", list.join(", "))));
        let event = Event {
            kind: Kind::Exec,
            process: Some(Arc::new(Process { comm: Some(text.as_str().into()), ..Process::default() })),
            ..Event::default()
        };
        let chars: Vec<char> = text.chars().collect();
        let wanted = patterns.iter().any(|pattern| like_plainly(&pattern.chars().collect::<Vec<_>>(), &chars));
        prop_assert_eq!(fires(&set, &event), wanted);
    }

    #[test]
    fn hostile_documents_never_panic(
        lines in proptest::collection::vec(
            "(title|detection|condition|logsource|s|x|level|tags|'\\|all'|comm\\|re|comm\\|base64offset|a\\|fieldref|&a|\\*a|- )?(: )?(\\[a, null\\]|\\{s: \\*a\\}|s and not x|1 of s\\*|'%a%'|-1e999|\\PC{0,8})",
            0..12,
        ),
        indents in proptest::collection::vec(0usize..4, 12),
    ) {
        let text: String = lines.iter().zip(&indents).map(|(line, indent)| format!("{}{line}\n", "    ".repeat(*indent))).collect();
        let _ = load(&text);
        let _ = load(&format!("title: t\nlogsource: {{service: weir}}\ndetection:\n    condition: s\n    s:\n        {}\n", text.replace('\n', "\n        ")));
        let _ = Pipeline::default().read("p", &text);
    }
}
