//! Payloads against the real schemas: OCSF, ECS's field names, STIX by its own validator; syslog and CEF against servers and the
//! grammar; files.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod server;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use server::{Server, alert, dir_with_secrets, good, sinks};
use tokio::io::AsyncReadExt as _;
use weir_alert::{Alert, Outcome, State};

fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/schemas").join(name);
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../../shared/data/schemas").join(name);
    let found = [path, beside].into_iter().find(|path| path.exists());
    if found.is_none() {
        eprintln!("SKIPPED: ../shared/data/schemas/{name} is not there");
    }
    found
}

fn states() -> [Alert; 4] {
    let bare = Alert {
        cloud: None,
        app: None,
        container_id: None,
        process_id: None,
        tactics: vec![],
        techniques: vec![],
        evidence: vec![],
        ..alert()
    };
    let later = |state, revision| Alert { state, revision, ..alert() };
    [alert(), later(State::Updated, 2), later(State::Withdrawn, 3), bare]
}

/// What a sink of a file adds to it for these alerts.
async fn lines(format: &str, alerts: &[Alert]) -> Vec<String> {
    let dir = dir_with_secrets();
    let sinks = sinks(dir.path(), &[(format, "path = \"out\"")], 5_000);
    for alert in alerts {
        assert_eq!(sinks.deliver("sink", alert.clone()).await, Outcome::Delivered);
    }
    std::fs::read_to_string(dir.path().join("out")).unwrap().lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn findings_fit_ocsf() {
    let Some(path) = shared("ocsf_1.9.0-dev_compiled.json.gz") else { return };
    let unpacked = Command::new("gzip").arg("-dc").arg(path).output().unwrap();
    let schema: Value = serde_json::from_slice(&unpacked.stdout).unwrap();
    let class = &schema["classes"]["detection_finding"]["attributes"];
    for line in lines("ocsf", &states()).await {
        let finding: Value = serde_json::from_str(&line).unwrap();
        let profiles: Vec<&str> =
            finding["metadata"]["profiles"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        fits(&schema, class, &finding, &profiles, "finding");
        assert_eq!(finding["type_uid"].as_u64().unwrap(), 200_400 + finding["activity_id"].as_u64().unwrap());
    }
}

/// All fields known, all required there, types and enumerations kept.
fn fits(schema: &Value, attributes: &Value, object: &Value, profiles: &[&str], place: &str) {
    let attributes = attributes.as_object().unwrap_or_else(|| panic!("{place}: no such object"));
    let object = object.as_object().unwrap_or_else(|| panic!("{place}: not an object"));
    for (name, attribute) in attributes {
        let applies = attribute["profile"].as_str().is_none_or(|profile| profiles.contains(&profile));
        let required = attribute["requirement"] == "required" && applies;
        assert!(!required || object.contains_key(name), "{place} lacks {name}");
    }
    for (name, value) in object {
        let place = format!("{place}.{name}");
        let attribute = attributes.get(name).unwrap_or_else(|| panic!("{place} is not known"));
        let applies = attribute["profile"].as_str().is_none_or(|profile| profiles.contains(&profile));
        assert!(applies, "{place} is of a profile that is not named");
        let items = match value {
            Value::Array(items) if attribute["is_array"] == true => items.clone(),
            one => {
                assert!(attribute["is_array"] != true, "{place} is to be a list");
                vec![one.clone()]
            }
        };
        for item in &items {
            let kind = attribute["type"].as_str().unwrap();
            match kind {
                "integer_t" | "long_t" | "timestamp_t" => assert!(item.is_i64() || item.is_u64(), "{place} is to be a {kind}"),
                "boolean_t" => assert!(item.is_boolean(), "{place} is to be a {kind}"),
                "json_t" => {}
                _ if kind.ends_with("_t") => assert!(item.is_string(), "{place} is to be a {kind}"),
                object => fits(schema, &schema["objects"][object]["attributes"], item, profiles, &place),
            }
            if let Some(known) = attribute["enum"].as_object().filter(|known| !known.is_empty()) {
                let key = item.as_str().map_or_else(|| item.to_string(), str::to_owned);
                assert!(known.contains_key(&key), "{place} = {key} is not one of its values");
            }
        }
    }
}

#[tokio::test]
async fn documents_have_ecs_fields_only() {
    let Some(path) = shared("ecs_fields.csv") else { return };
    let text = std::fs::read_to_string(path).unwrap();
    let known: HashSet<&str> = text.lines().filter_map(|line| line.split(',').nth(3)).collect();
    let (dir, server) = (dir_with_secrets(), Server::start(good).await);
    let sinks = sinks(dir.path(), &[("elasticsearch", &format!("url = \"{}\"\nindex = \"i\"", server.url))], 5_000);
    for alert in states() {
        assert_eq!(sinks.deliver("sink", alert).await, Outcome::Delivered);
        let body = String::from_utf8(server.taken().remove(0).body).unwrap();
        let document: Value = serde_json::from_str(body.lines().nth(1).unwrap()).unwrap();
        let mut names = Vec::new();
        leaves(&document, String::new(), &mut names);
        for name in names {
            assert!(known.contains(&*name) || name.starts_with("labels."), "{name} is no field of ECS");
        }
        assert_eq!(document["event"]["kind"], "alert");
    }
}

fn leaves(value: &Value, place: String, names: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let place = if place.is_empty() { name.clone() } else { format!("{place}.{name}") };
                leaves(field, place, names);
            }
        }
        _ => names.push(place),
    }
}

#[tokio::test]
async fn bundles_are_stix() {
    let lines = lines("stix", &states()).await;
    for line in &lines {
        let bundle: Value = serde_json::from_str(line).unwrap();
        let objects = bundle["objects"].as_array().unwrap();
        let ids: HashSet<&str> = objects.iter().map(|object| object["id"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), objects.len(), "an id stands twice");
        for object in objects {
            let (kind, id) = (object["type"].as_str().unwrap(), object["id"].as_str().unwrap());
            assert!(id.starts_with(&format!("{kind}--")) && id.len() == kind.len() + 38, "{id}");
            assert!(object["created"].as_str().unwrap() <= object["modified"].as_str().unwrap());
            let refs = object.as_object().unwrap().iter().filter(|(name, _)| name.ends_with("_ref"));
            for (name, target) in refs {
                assert!(ids.contains(target.as_str().unwrap()), "{kind}.{name} points nowhere");
            }
        }
    }
    let has_validator =
        Command::new("python3").args(["-c", "import stix2validator"]).output().is_ok_and(|ran| ran.status.success());
    if !has_validator {
        eprintln!("SKIPPED: python3 has no stix2-validator; only the structure was checked");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let script = "import sys\nfrom stix2validator import validate_file, ValidationOptions\n\
                  bad = False\nfor path in sys.argv[1:]:\n    r = validate_file(path, ValidationOptions(version='2.1', disabled='all'))\n    \
                  bad |= not r.is_valid\n    [print(e) for o in r.object_results for e in o.errors]\nsys.exit(bad)";
    let files: Vec<PathBuf> = lines
        .iter()
        .enumerate()
        .map(|(place, line)| {
            let path = dir.path().join(format!("{place}.json"));
            std::fs::write(&path, line).unwrap();
            path
        })
        .collect();
    let checked = Command::new("python3").arg("-c").arg(script).args(files).output().unwrap();
    let said = String::from_utf8_lossy(&checked.stdout).into_owned() + &String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success(), "{said}");
    eprintln!("{} bundles passed stix2-validator", lines.len());
}

fn hostile() -> Alert {
    Alert { summary: "a|b\\c=d]\"e\"\nf\u{1f980}".to_owned(), rule: "r|\\]\"\n".to_owned(), ..alert() }
}

#[tokio::test]
async fn syslog_goes_by_udp() {
    let (dir, socket) = (dir_with_secrets(), tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let section = format!("address = \"{}\"\nprotocol = \"udp\"", socket.local_addr().unwrap());
    for format in ["syslog", "cef"] {
        assert_eq!(sinks(dir.path(), &[(format, &section)], 5_000).deliver("sink", hostile()).await, Outcome::Delivered);
        let mut bytes = [0; 65_536];
        let length = socket.recv(&mut bytes).await.unwrap();
        let line = std::str::from_utf8(&bytes[..length]).unwrap();
        assert!(line.starts_with("<106>1 2026-11-23T16:25:34.5Z n1 weir - "), "{line}");
        assert!(!line.contains('\n'));
        if format == "syslog" {
            assert!(line.contains(" alert [weir@32473 alertId=\"a1\" revision=\"1\" rule=\"r|\\\\\\]\\\" \""), "{line}");
            assert!(line.ends_with("] \u{feff}a|b\\c=d]\"e\" f\u{1f980}"), "{line}");
        } else {
            assert!(
                line.contains(&format!(
                    " cef - CEF:0|Weir|weir|{}|00c0ffee00c0ffee|r\\|\\\\]\" |8|externalId=a1 ",
                    env!("CARGO_PKG_VERSION")
                )),
                "{line}"
            );
            assert!(line.ends_with("msg=a|b\\\\c\\=d]\"e\"\\nf\u{1f980}"), "{line}");
        }
    }
}

#[tokio::test]
async fn syslog_goes_by_tcp_and_connects_anew() {
    let (dir, listener) = (dir_with_secrets(), tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap());
    let section = format!("address = \"{}\"", listener.local_addr().unwrap());
    let sinks = sinks(dir.path(), &[("syslog", &section)], 2_000);
    for _ in 0..2 {
        let (first, mut stream) = tokio::join!(sinks.deliver("sink", alert()), async { listener.accept().await.unwrap().0 });
        assert_eq!((first, sinks.deliver("sink", alert()).await), (Outcome::Delivered, Outcome::Delivered));
        for _ in 0..2 {
            read_frame(&mut stream).await;
        }
        // The server goes: the next line takes a new connection.
        drop(stream);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    drop(listener);
    assert!(matches!(sinks.deliver("sink", alert()).await, Outcome::Retry { .. }));
}

async fn read_frame(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut length = String::new();
    loop {
        let byte = stream.read_u8().await.unwrap();
        if byte == b' ' {
            break;
        }
        length.push(char::from(byte));
    }
    let mut line = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut line).await.unwrap();
    String::from_utf8(line).unwrap()
}

#[tokio::test]
async fn syslog_goes_by_tls_to_who_has_the_certificate() {
    let dir = dir_with_secrets();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(dir.path().join("ca.pem"), made.cert.pem()).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let server = server.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(server));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let section = |ca: &str| format!("address = \"localhost:{port}\"\nprotocol = \"tls\"\n{ca}");
    let serving = tokio::spawn(async move {
        loop {
            let stream = listener.accept().await.unwrap().0;
            if let Ok(mut stream) = acceptor.accept(stream).await {
                return read_frame(&mut stream).await;
            }
        }
    });
    let strange = sinks(dir.path(), &[("cef", &section(""))], 2_000).deliver("sink", alert()).await;
    assert!(matches!(&strange, Outcome::Retry { why, .. } if why.contains("certificate")), "{strange:?}");
    let known = sinks(dir.path(), &[("cef", &section("ca = \"ca.pem\""))], 2_000).deliver("sink", alert()).await;
    assert_eq!(known, Outcome::Delivered);
    assert!(serving.await.unwrap().contains("CEF:0|"));
}

#[tokio::test]
async fn a_torn_line_is_ended_before_the_next() {
    let dir = dir_with_secrets();
    let sinks = sinks(dir.path(), &[("ocsf", "path = \"out\"")], 2_000);
    sinks.deliver("sink", alert()).await;
    let path = dir.path().join("out");
    let mut text = std::fs::read_to_string(&path).unwrap();
    text.push_str("{\"torn");
    std::fs::write(&path, &text).unwrap();
    sinks.deliver("sink", alert()).await;
    let read = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = read.lines().collect();
    assert_eq!((lines.len(), lines[1]), (3, "{\"torn"));
    assert_eq!(lines[0], lines[2], "a resend is the same line");
    // Renamed away: a new file is begun. No folder: it is tried again.
    std::fs::rename(&path, dir.path().join("old")).unwrap();
    assert_eq!(sinks.deliver("sink", alert()).await, Outcome::Delivered);
    assert!(path.exists());
    let nowhere = server::sinks(dir.path(), &[("ocsf", "path = \"not/there\"")], 2_000).deliver("sink", alert()).await;
    assert!(matches!(nowhere, Outcome::Retry { .. }));
}
