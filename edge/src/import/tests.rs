//! Importers on small texts, on recordings of others where they are at hand, and on hostile lines.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use weir_schema::{Kind, parse_line, write_line};

fn import(format: Format, text: &str) -> (Vec<JsonEvent>, u64, Vec<String>) {
    let mut importer = Importer::new(format, "unnamed");
    let (mut out, mut wrong) = (Vec::new(), Vec::new());
    for line in text.lines() {
        wrong.extend(importer.line(line.as_bytes(), &mut out).err().map(|why| why.to_string()));
    }
    wrong.extend(importer.finish(&mut out).err().map(|why| why.to_string()));
    (out, importer.passed_over(), wrong)
}

/// A file of the shared recordings, or nothing and a word of it.
fn shared(path: &str) -> Option<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data").join(path);
    let text = std::fs::read_to_string(&path).ok();
    if text.is_none() {
        eprintln!("SKIPPED: {} is not here", path.display());
    }
    text
}

fn kinds(events: &[JsonEvent]) -> Vec<&'static str> {
    events.iter().map(|event| event.event.kind.as_str()).collect()
}

#[test]
fn auditd_joins_the_records_of_a_call_though_others_stand_between() {
    let text = "\
node=web type=SYSCALL msg=audit(1604994496.155:7): arch=c000003e syscall=257 success=no exit=-13 a0=ffffff9c a1=55 a2=241 a3=1b6 items=1 ppid=1 pid=20 auid=4294967295 uid=33 euid=0 tty=(none) ses=4294967295 comm=\"sh\" exe=\"/bin/sh\" key=\"writes\"\u{1d}ARCH=x86_64 SYSCALL=openat UID=\"www-data\"
type=SYSCALL msg=audit(1604994496.2:8): arch=c000003e syscall=42 success=no exit=-111 a0=3 a1=7f a2=10 ppid=1 pid=21 uid=0 comm=6120622063 exe=\"/bin/nc\"
node=web type=CWD msg=audit(1604994496.155:7): cwd=\"/srv\"
type=SOCKADDR msg=audit(1604994496.2:8): saddr=02000050C0A800010000000000000000
node=web type=PATH msg=audit(1604994496.155:7): item=0 name=\"a file\" nametype=NORMAL
type=USER_LOGIN msg=audit(1604994496.3:9): pid=1 msg='op=login res=success'
type=SYSCALL msg=audit(1604994496.4:10): arch=c00000b7 syscall=221 success=yes exit=0 ppid=1 pid=22 uid=0 comm=\"x\" exe=\"/bin/x\"
type=EXECVE msg=audit(1604994496.4:10): argc=2 a0=\"x\" a1_len=6 a1[0]=6162 a1[1]=6320
type=EOE msg=audit(1604994496.4:10):
type=SYSCALL msg=audit(11/10/20 07:48:16.155:11): arch=x86_64
nonsense
";
    let (events, passed_over, wrong) = import(Format::Auditd, text);
    assert_eq!(kinds(&events), ["exec", "open", "connect"]);
    let exec = events[0].event.process.as_ref().unwrap();
    assert_eq!((exec.args.as_deref(), exec.cmdline.as_deref()), (Some(r#"["x","abc "]"#), Some("x abc ")));
    let open = &events[1].event.fields;
    assert_eq!(
        (open.path.as_deref(), open.result, open.flags, open.mode),
        (Some("/srv/a file"), Some(13), Some(0x241), Some(0o666))
    );
    let process = events[1].event.process.as_ref().unwrap();
    assert_eq!(
        (process.uid, process.login_uid, process.user_name.as_deref(), process.tty.as_deref()),
        (Some(33), None, Some("www-data"), None)
    );
    assert_eq!((&*events[1].host.host, &*events[2].host.host), ("web", "unnamed"));
    assert_eq!(events[1].event.time, 1_604_994_496_155_000_000);
    let connect = &events[2].event;
    assert_eq!(
        (connect.fields.dst_ip.as_deref(), connect.fields.dst_port, connect.fields.result),
        (Some("192.168.0.1"), Some(80), Some(111))
    );
    assert_eq!(connect.process.as_ref().unwrap().comm.as_deref(), Some("a b c"));
    assert_eq!((passed_over, wrong.len()), (1, 2), "{wrong:?}");
}

#[test]
fn the_shared_audit_logs_hold_arp_and_dd() {
    let Some(text) = shared("recordings/otrf/sh_arp_cache_2020-11-10074812.log") else { return };
    let (events, passed_over, wrong) = import(Format::Auditd, &text);
    assert_eq!((kinds(&events), passed_over, wrong.len()), (vec!["exec", "exec"], 0, 0));
    let arp = events[0].event.process.as_ref().unwrap();
    assert_eq!(
        (arp.exe.as_deref(), arp.args.as_deref(), arp.uid, arp.pid),
        (Some("/usr/sbin/arp"), Some(r#"["arp","-a"]"#), Some(1000), 1631)
    );
    assert_eq!((arp.login_uid, arp.tty.as_deref(), arp.cwd.as_deref()), (Some(1000), Some("pts0"), Some("/home/wardog")));
    let text = shared("recordings/otrf/sh_binary_padding_dd_2020-11-10081941.log").unwrap();
    let (events, _, _) = import(Format::Auditd, &text);
    let dd = events[0].event.process.as_ref().unwrap();
    assert_eq!(dd.cmdline.as_deref(), Some("dd if=/dev/zero bs=1 count=1"));
}

#[test]
fn zeek_is_read_from_json_and_from_tsv_alike() {
    let tsv = "#separator \\x09\n#set_separator\t,\n#empty_field\t(empty)\n#unset_field\t-\n#path\tconn\n\
        #fields\tts\tuid\tid.orig_h\tid.orig_p\tid.resp_h\tid.resp_p\tproto\tduration\torig_bytes\tresp_bytes\tconn_state\n\
        #types\ttime\tstring\taddr\tport\taddr\tport\tenum\tinterval\tcount\tcount\tstring\n\
        1588205199.827696\tC1\t10.0.1.6\t56880\t10.0.0.4\t445\ttcp\t1.5\t40\t16\tSF\n\
        1588205200.000000\tC2\t::ffff:10.0.1.6\t56881\t10.0.0.4\t446\ttcp\t-\t-\t-\tREJ\n\
        1588205201.000000\tC3\t10.0.1.6\t5\t10.0.0.4\t53\tudp\t0.1\t9\t8\tSF\n\
        too\tshort\n#close\t2020-04-30\n";
    let (events, _, wrong) = import(Format::Zeek, tsv);
    assert_eq!(kinds(&events), ["connect", "close", "connect", "send"]);
    assert_eq!(wrong, ["2 values below 11 fields"]);
    let close = &events[1].event;
    assert_eq!(
        (close.time, close.fields.bytes_sent, close.fields.duration_ms),
        (1_588_205_201_327_696_000, Some(40), Some(1500))
    );
    assert_eq!((events[2].event.fields.src_ip.as_deref(), events[2].event.fields.result), (Some("10.0.1.6"), Some(111)));
    let lines = r#"{"_path":"conn","ts":1588205199.827696,"uid":"C1","id.orig_h":"10.0.1.6","id.orig_p":56880,"id.resp_h":"10.0.0.4","id.resp_p":445,"proto":"tcp","duration":1.5,"orig_bytes":40,"resp_bytes":16,"conn_state":"SF"}
{"ts":"2020-04-30T00:06:39.5Z","uid":"C4","id":{"orig_h":"10.0.1.6","orig_p":9,"resp_h":"10.0.0.4","resp_p":53},"proto":"udp","query":"a.example","qtype":1,"qtype_name":"A","rcode":3,"rcode_name":"NXDOMAIN"}
{"_path":"ssl","ts":1.0}
{"_path":"conn","ts":1.0,"id.orig_h":"x"}"#;
    let (from_json, passed_over, wrong) = import(Format::Zeek, lines);
    assert_eq!((from_json[0].event.fields.isn_local, &from_json[1]), (None, &events[1]));
    assert_eq!(
        (kinds(&from_json), passed_over, wrong),
        (vec!["connect", "close", "dns"], 1, vec!["id_orig_h is no address".to_owned()])
    );
    let dns = &from_json[2].event.fields;
    assert_eq!((dns.dns_name.as_deref(), dns.result, dns.dst_port), (Some("a.example"), Some(3), Some(53)));
}

#[test]
fn sysmon_is_read_from_xml_and_from_json_alike() {
    let xml = r#"Sep 17 17:57:18 web sysmon: <Event><System><Provider Name="Linux-Sysmon"/><EventID>1</EventID><TimeCreated SystemTime="2021-09-17T17:57:18.2Z"/><Computer>web</Computer></System><EventData><Data Name="RuleName">-</Data><Data Name="UtcTime">2021-09-17 17:57:18.123</Data><Data Name="ProcessGuid">{g-1}</Data><Data Name="ProcessId">42</Data><Data Name="Image">/usr/bin/cat</Data><Data Name="CommandLine">cat a&amp;b &lt;c&#62;</Data><Data Name="User">root</Data><Data Name="ParentProcessGuid">{g-0}</Data><Data Name="ParentProcessId">41</Data></EventData></Event>
<Event>
<System><EventID>3</EventID><Computer>web</Computer></System>
<EventData><Data Name="UtcTime">2021-09-17 17:57:19.000</Data><Data Name="ProcessGuid">{g-1}</Data><Data Name="ProcessId">42</Data><Data Name="Protocol">tcp</Data><Data Name="Initiated">true</Data><Data Name="SourceIp">10.0.0.1</Data><Data Name="SourcePort">5000</Data><Data Name="DestinationIp">10.0.0.2</Data><Data Name="DestinationPort">443</Data></EventData>
</Event><Event><System><EventID>16</EventID></System></Event>
<Event><System><EventID>5</EventID>
"#;
    let (events, passed_over, wrong) = import(Format::Sysmon, xml);
    assert_eq!((kinds(&events), passed_over), (vec!["exec", "connect"], 1));
    assert_eq!(wrong, ["the file ends inside an <Event>"]);
    let process = events[0].event.process.as_ref().unwrap();
    assert_eq!((process.cmdline.as_deref(), process.comm.as_deref(), process.pid), (Some("cat a&b <c>"), Some("cat"), 42));
    assert_eq!((&*events[0].host.host, events[0].event.time), ("web", 1_631_901_438_123_000_000));
    assert_eq!(events[1].event.process.as_ref().unwrap().start_ns, process.start_ns);
    assert_eq!((events[1].event.fields.dst_port, events[1].event.fields.direction.as_deref()), (Some(443), Some("out")));
    let lines = r##"{"winlog":{"event_id":11,"computer_name":"web","event_data":{"UtcTime":"2021-09-17 17:57:18.123","ProcessId":"7","Image":"/bin/cp","TargetFilename":"/tmp/x"}}}
{"Event":{"System":{"EventID":23,"Computer":"web","TimeCreated":{"@SystemTime":"2021-09-17T17:57:18Z"}},"EventData":{"Data":[{"@Name":"TargetFilename","#text":"/tmp/x"},{"@Name":"ProcessId","#text":"7"}]}}}
{"EventID":5,"UtcTime":"2021-09-17 17:57:20.000","ProcessId":7,"Hostname":"x"}
{"EventID":5}"##;
    let (events, _, wrong) = import(Format::Sysmon, lines);
    assert_eq!(kinds(&events), ["open", "unlink", "exit"]);
    assert_eq!(
        (events[0].event.fields.path.as_deref(), events[1].event.fields.path.as_deref()),
        (Some("/tmp/x"), Some("/tmp/x"))
    );
    assert_eq!(wrong.len(), 1);
}

#[test]
fn falco_alerts_and_events_are_read() {
    let text = r#"{"hostname":"web","output":"…","priority":"Critical","rule":"Drop and execute","time":"2024-01-02T03:04:05.000000006Z","output_fields":{"evt.time":1704164645000000006,"evt.type":"execve","proc.name":"x","proc.exepath":"/tmp/x","proc.pid":9,"proc.ppid":8,"proc.pname":"sh","proc.aname[2]":"cron","container.id":"0123456789ab","container.image.repository":"docker.io/a","container.image.tag":"1","user.uid":0,"user.loginuid":-1,"proc.cmdline":null}}
{"evt.rawtime":"5","evt.type":"openat","evt.dir":"<","evt.res":"ENOENT","evt.args":"fd=-2(ENOENT) dirfd=-100(AT_FDCWD) name=/etc/x y flags=67(O_RDWR|O_CREAT) mode=0644","proc.pid":"3","fd.num":"-2"}
{"evt.rawtime":"5","evt.type":"openat","evt.dir":">"}
{"evt.rawtime":"5","evt.type":"read","evt.dir":"<"}
{"evt.rawtime":"5"}
{"evt.type":"open"}"#;
    let (events, passed_over, wrong) = import(Format::Falco, text);
    assert_eq!((kinds(&events), passed_over, wrong.len()), (vec!["exec", "open"], 2, 2));
    let (exec, open) = (&events[0], &events[1].event.fields);
    let (process, container) = (exec.event.process.as_ref().unwrap(), exec.event.container.as_ref().unwrap());
    assert_eq!(
        (&*exec.host.host, exec.event.time, process.ancestors.as_deref()),
        ("web", 1_704_164_645_000_000_006, Some(r#"["sh","cron"]"#))
    );
    assert_eq!((container.image.as_deref(), process.login_uid), (Some("docker.io/a:1"), None));
    assert!(exec.event.fields.detail.as_deref().unwrap().contains("Drop and execute"));
    assert_eq!((open.path.as_deref(), open.result, open.flags, open.mode), (Some("/etc/x y"), Some(2), Some(0o102), Some(0o644)));
}

#[test]
fn times_are_exact() {
    let cases = [
        ("1588205199.82437", Some(1_588_205_199_824_370_000)),
        ("5", Some(5_000_000_000)),
        ("1.0000000019", Some(1_000_000_001)),
    ];
    cases.iter().for_each(|(text, time)| assert_eq!(seconds(text), *time, "{text}"));
    ["", ".5", "-1.0", "1.x", "99999999999999", "1e5"].iter().for_each(|text| assert_eq!(seconds(text), None, "{text}"));
}

/// Bits of the formats, so that random lines get past the first check.
fn bits() -> impl Strategy<Value = String> {
    let words = [
        "type=SYSCALL msg=audit(1.2:3): arch=c000003e syscall=59 exit=0 pid=1 ",
        "type=EXECVE msg=audit(1.2:3): a0=\"x\" a1[0]=61 ",
        "type=SOCKADDR msg=audit(1.2:3): saddr=0A00",
        "type=PATH msg=audit(1.2:3): name=6",
        "=\"",
        "'",
        "a",
        "\u{1d}",
        "é",
        "<Event>",
        "</Event>",
        "<EventID>1",
        "<Data Name=\"ProcessId\">",
        "SystemTime='",
        "&#x",
        "&amp;",
        ";",
        "<",
        "#separator \\x",
        "#separator \\x09",
        "#fields\tts\tuid",
        "#path\tconn",
        "\t",
        "1.5",
        "-",
        "{\"evt.type\":\"execve\",\"evt.rawtime\":\"1\"",
        ",\"evt.args\":\"name=é res=-\"",
        "{\"output_fields\":{\"evt.type\":\"connect\"",
        "}",
        ":",
        ",",
        "{\"ts\":1e300,\"conn_state\":\"SF\"",
        "{\"EventID\":3,\"UtcTime\":\"",
        "{",
        "\"",
        "fd=4 tuple=::1:80->",
        "99999999999999999999",
    ];
    prop::collection::vec(prop::sample::select(words.to_vec()), 0..12).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn hostile_lines_never_panic_and_what_is_told_can_be_read(
        lines in prop::collection::vec(prop_oneof![bits(), any::<String>()], 0..12),
        raw in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        for format in [Format::Falco, Format::Sysmon, Format::Auditd, Format::Zeek] {
            let mut importer = Importer::new(format, "h");
            let mut out = Vec::new();
            for line in &lines {
                let _ = importer.line(line.as_bytes(), &mut out);
            }
            let _ = importer.line(&raw, &mut out);
            let _ = importer.finish(&mut out);
            for event in &out {
                let mut line = String::new();
                write_line(&mut line, event);
                prop_assert_eq!(&parse_line(&line).unwrap().event, &event.event);
            }
        }
    }
}

#[test]
fn what_waits_is_bounded() {
    let mut importer = Importer::new(Format::Auditd, "h");
    let mut out = Vec::new();
    for serial in 0..1000 {
        let line = format!("type=SYSCALL msg=audit(1.2:{serial}): arch=c000003e syscall=59 exit=0 pid=1");
        importer.line(line.as_bytes(), &mut out).unwrap();
    }
    assert_eq!(out.len(), 1000 - 64);
    importer.finish(&mut out).unwrap();
    assert_eq!((out.len(), out[0].event.kind), (1000, Kind::Exec));
    let mut importer = Importer::new(Format::Sysmon, "h");
    let part = format!("<Event>{}", "x".repeat(1 << 19));
    assert!((0..4).any(|_| importer.line(part.as_bytes(), &mut out).is_err()));
}
