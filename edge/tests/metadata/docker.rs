//! The Docker Engine API: inspect, events, lists; and what a hostile one can do.

use std::time::Duration;

use proptest::prelude::*;
use weir_edge::enrich::metadata::description::Mount;

use crate::http::{Act, Asked, Fake, answer, ok, stream};
use crate::{Heard, config, eventually, id};

fn inspected(id: &str) -> String {
    format!(
        r#"{{"Id":"{id}","Name":"/web","Image":"sha256:1f","Config":{{"Image":"nginx:1","Labels":{{"app":"shop"}},
        "Env":["SECRET=1"]}},"HostConfig":{{"Privileged":true}},
        "Mounts":[{{"Type":"bind","Source":"/srv","Destination":"/data","RW":false}},{{"Type":"tmpfs","Source":""}}]}}"#
    )
}

/// An engine with the container 1, and events that `events` gives.
fn engine(asked: &Asked, events: Vec<Act>) -> Vec<Act> {
    let one = id(1);
    match asked.line.split_once(' ').unwrap().1 {
        "/containers/json?all=1" => ok(&format!(r#"[{{"Id":"{one}"}}]"#)),
        path if path.starts_with("/events?") => events,
        "/images/sha256:1f/json" => ok(r#"{"RepoDigests":["nginx@sha256:aa"]}"#),
        path => match path.strip_prefix("/containers/").and_then(|rest| rest.strip_suffix("/json")) {
            Some(known) if known.len() == 64 => ok(&inspected(known)),
            _ => answer(404, "", "{}"),
        },
    }
}

fn serve(fake: &Fake) -> (tempfile::TempDir, Heard) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("docker.sock");
    fake.unix(&socket);
    let heard = Heard::start(&config(&format!("docker_sockets = [{socket:?}]")));
    (folder, heard)
}

#[tokio::test]
async fn a_container_is_listed_asked_for_and_noticed() {
    let event = format!(r#"{{"Type":"container","Action":"start","Actor":{{"ID":"{}"}}}}"#, id(2));
    let fake = Fake::new(move |asked, _| {
        let events = [stream(""), vec![Act::Send(format!("{event}\nnonsense\n\n").into_bytes()), Act::Hang]].concat();
        engine(asked, events)
    });
    let (_folder, mut heard) = serve(&fake);
    let listed = heard.container(&id(1), |_| true).await;
    assert_eq!((listed.name.as_deref(), listed.image.as_deref()), (Some("web"), Some("nginx:1")));
    assert_eq!((listed.digest.as_deref(), listed.image_id.as_deref()), (Some("sha256:aa"), Some("sha256:1f")));
    assert_eq!((listed.privileged, listed.labels.get("app").map(String::as_str)), (Some(true), Some("shop")));
    assert_eq!(listed.mounts, [Mount { source: "/srv".into(), target: "/data".into(), read_only: true }]);
    heard.container(&id(2), |_| true).await;
    heard.wanted[0].send(id(3).as_str().into()).await.unwrap();
    heard.container(&id(3), |_| true).await;
    assert_eq!(heard.state("ok").await, "ok");
    assert_eq!(fake.count("/images/"), 1, "once per image");
    assert!(fake.asked.lock().unwrap().iter().all(|asked| asked.head.contains("host: docker")));
}

#[tokio::test]
async fn a_container_that_is_gone_before_it_is_asked_for_has_what_its_notice_says() {
    let event = format!(
        r#"{{"Type":"container","Action":"create","Actor":{{"ID":"{}","Attributes":{{"name":"short","image":"busybox:1","app":"x"}}}}}}"#,
        id(2)
    );
    let fake = Fake::new(move |asked, _| match asked.line.contains(&id(2)) {
        true => answer(404, "", "{}"),
        false => engine(asked, [stream(""), vec![Act::Send(format!("{event}\n").into_bytes()), Act::Hang]].concat()),
    });
    let (_folder, mut heard) = serve(&fake);
    let short = heard.container(&id(2), |_| true).await;
    assert_eq!((short.name.as_deref(), short.image.as_deref()), (Some("short"), Some("busybox:1")));
    assert_eq!(short.labels.into_iter().collect::<Vec<_>>(), [("app".to_owned(), "x".to_owned())]);
}

#[tokio::test]
async fn an_engine_that_comes_later_and_breaks_off_is_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("docker.sock");
    let mut heard = Heard::start(&config(&format!("docker_sockets = [{socket:?}]")));
    heard.wanted[0].send(id(9).as_str().into()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    // Its events end at once, each time: it is asked for them again, ever later.
    let fake = Fake::new(|asked, _| engine(asked, stream("")));
    fake.unix(&socket);
    heard.container(&id(9), |_| true).await;
    eventually("a second watch", || fake.count("/events") >= 2).await;
}

#[tokio::test]
async fn names_are_no_ids_and_unknown_ones_are_given_up() {
    let fake = Fake::new(|asked, _| match asked.line.contains("/containers/web/") {
        // As an engine answers to a name.
        true => ok(&inspected(&id(7))),
        false => engine(asked, [stream(""), vec![Act::Hang]].concat()),
    });
    let (_folder, mut heard) = serve(&fake);
    for wanted in ["web", "unknown", "../../etc/passwd", "a b\r\nx: y"] {
        heard.wanted[0].send(wanted.into()).await.unwrap();
    }
    eventually("five tries", || fake.count("/unknown/") >= 5).await;
    heard.container(&id(1), |_| true).await;
    assert_eq!((heard.says_of("web"), heard.says_of(&id(7))), (0, 0));
    assert_eq!(fake.count("passwd"), 0, "never in a path");
}

#[tokio::test]
async fn hostile_answers_cost_what_the_limits_allow() {
    let huge = format!("[{}]", vec![format!(r#"{{"Id":"{}"}}"#, id(5)); 10_000].join(","));
    for (what, acts, expected) in [
        ("garbage", ok("\u{0}\u{1}garbage"), "list of containers"),
        ("wrong types", ok(r#"[{"Id":7}]"#), "list of containers"),
        ("another shape", ok(r#"{"message":"no"}"#), "list of containers"),
        ("a huge list", ok(&huge), "more than 262144 bytes"),
        ("no end", [stream(&"[".repeat(300_000)), vec![Act::Hang]].concat(), "more than 262144 bytes"),
        ("no HTTP", vec![Act::Send(b"SSH-2.0-x\r\n\r\n".to_vec())], "HTTP"),
        ("silence", vec![Act::Hang], "within 1000 ms"),
        ("hangs up", Vec::new(), "HTTP"),
        ("refuses", answer(500, "", "{}"), "status 500"),
        ("forbids", answer(403, "", "{}"), "permission denied"),
        (
            "a slow drip",
            std::iter::once(Act::Send(b"HTTP/1.1 200 X\r\ncontent-length: 1000\r\n\r\n".to_vec()))
                .chain((0..1_000).flat_map(|_| [Act::Send(b" ".to_vec()), Act::Pause(Duration::from_millis(50))]))
                .collect(),
            "within 1000 ms",
        ),
    ] {
        let fake = Fake::new(move |_, _| acts.clone());
        let (_folder, mut heard) = serve(&fake);
        // A source that was never there is silent only when it is missing.
        let state = heard.state("").await;
        assert!(state.contains(expected), "{what}: {state}");
        assert!(!state.is_empty() && state.len() < 300, "{what}: {state}");
    }
}

#[tokio::test]
async fn a_hostile_stream_of_events_harms_nothing_else() {
    let line = "x".repeat(400_000);
    let fake = Fake::new(move |asked, _| engine(asked, stream(&line)));
    let (_folder, mut heard) = serve(&fake);
    heard.container(&id(1), |_| true).await;
    eventually("a second watch", || fake.count("/events") >= 2).await;
    heard.wanted[0].send(id(4).as_str().into()).await.unwrap();
    heard.container(&id(4), |_| true).await;
    // A flood: each is asked for once at a time.
    let flood = (0..20_000).map(|_| format!("{{\"id\":\"{}\"}}\n", id(6))).collect::<String>();
    let fake = Fake::new(move |asked, _| engine(asked, [stream(&flood), vec![Act::Hang]].concat()));
    let (_folder, mut heard) = serve(&fake);
    heard.container(&id(6), |_| true).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400), is_http in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let head = if is_http { "HTTP/1.1 200 X\r\nconnection: close\r\n\r\n" } else { "" };
            let all = [head.as_bytes(), &bytes].concat();
            let fake = Fake::new(move |_, _| vec![Act::Send(all.clone())]);
            let (_folder, mut heard) = serve(&fake);
            let state = heard.until("a state", |news| match news {
                weir_edge::enrich::metadata::News::State { state, .. } => Some(state.clone()),
                _ => None,
            });
            let state = state.await;
            assert_ne!(state, "");
        });
    }
}
