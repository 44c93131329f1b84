//! The Kubernetes API: list in pages, watch, resume, 410 Gone, refusals; and what a hostile server can do.

use std::time::Duration;

use weir_edge::enrich::metadata::News;
use weir_edge::enrich::metadata::description::Description;

use crate::http::{Act, Fake, answer, ok, stream};
use crate::{Heard, config, eventually, id};

fn pod(name: &str, number: u32, version: u32, node: &str) -> String {
    let id = id(number);
    format!(
        r#"{{"metadata":{{"name":"{name}","namespace":"shop","uid":"u-{name}","resourceVersion":"{version}","labels":{{"app":"{name}",
        "pod-template-hash":"5d9"}},"ownerReferences":[{{"kind":"ReplicaSet","name":"{name}-5d9","controller":true}}]}},
        "spec":{{"nodeName":"{node}","containers":[{{"name":"c","image":"nginx:1"}}]}},
        "status":{{"containerStatuses":[{{"name":"c","containerID":"containerd://{id}"}}]}}}}"#
    )
    .replace('\n', "")
}

fn list(version: u32, more: &str, pods: &[String]) -> Vec<Act> {
    ok(&format!(
        r#"{{"kind":"PodList","metadata":{{"resourceVersion":"{version}","continue":"{more}"}},"items":[{}]}}"#,
        pods.join(",")
    ))
}

fn event(kind: &str, object: &str) -> Act {
    Act::Send(format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n").into_bytes())
}

fn watch(events: impl IntoIterator<Item = Act>) -> Vec<Act> {
    stream("").into_iter().chain(events).collect()
}

async fn start(fake: &Fake) -> (tempfile::TempDir, Heard) {
    start_at(&format!("server: \"http://{}\"", fake.tcp().await), "")
}

/// A kubeconfig beside the root `ca`.
fn start_at(server: &str, ca: &str) -> (tempfile::TempDir, Heard) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{{server}}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\nusers: [{{name: u, user: {{token: s3cret}}}}]\n"
    );
    std::fs::write(&file, text).unwrap();
    std::fs::write(folder.path().join("ca.pem"), ca).unwrap();
    let heard = Heard::start(&config(&format!("[metadata.kubernetes]\nkubeconfig = {file:?}\nnode = \"n1\"\n")));
    (folder, heard)
}

async fn told(heard: &mut Heard, wanted: &str) -> Description {
    heard
        .until(wanted, |news| match news {
            News::Pod { uid, description } if **uid == *wanted => Some(description.clone()),
            _ => None,
        })
        .await
}

#[tokio::test]
async fn pods_of_this_node_are_listed_in_pages_and_watched() {
    let fake = Fake::new(|asked, _| match asked.line.as_str() {
        line if line.contains("watch=1") => match line.contains("resourceVersion=7") {
            true => watch([
                event("ADDED", &pod("db", 3, 8, "n1")),
                event("BOOKMARK", r#"{"metadata":{"resourceVersion":"20"}}"#),
                event("DELETED", &pod("gone", 4, 21, "n1")),
            ]),
            false => watch([event("MODIFIED", &pod("late", 5, 30, "n1")), Act::Hang]),
        },
        line if line.contains("continue=to%2Fken%3D") => list(7, "", &[pod("cart", 2, 6, "n1"), pod("far", 9, 6, "n2")]),
        _ => list(6, "to/ken=", &[pod("web", 1, 5, "n1")]),
    });
    let (_folder, mut heard) = start(&fake).await;
    let web = told(&mut heard, "u-web").await;
    assert_eq!((web.pod.as_deref(), web.namespace.as_deref()), (Some("web"), Some("shop")));
    assert_eq!((web.workload.as_deref(), web.workload_kind.as_deref()), (Some("web"), Some("Deployment")));
    let container = heard.container(&id(1), |_| true).await;
    assert_eq!((container.name.as_deref(), container.image.as_deref()), (Some("c"), Some("nginx:1")));
    for uid in ["u-cart", "u-db", "u-late"] {
        told(&mut heard, uid).await;
    }
    assert!(!heard.news.iter().any(|news| matches!(news, News::Pod { uid, .. } if &**uid == "u-far" || &**uid == "u-gone")));
    let asked = fake.asked.lock().unwrap().clone();
    assert!(asked.iter().all(|asked| asked.line.contains("fieldSelector=spec.nodeName%3Dn1")), "{asked:?}");
    assert!(asked.iter().all(|asked| asked.head.contains("authorization: bearer s3cret")));
    assert!(asked.iter().any(|asked| asked.line.contains("resourceVersion=21")), "it goes on where it was");
    assert_eq!(fake.count("limit="), 2, "listed once");
}

#[tokio::test]
async fn a_server_is_known_by_its_certificate() {
    let fake = Fake::new(|asked, _| match asked.line.contains("watch=1") {
        false => list(5, "", &[pod("web", 1, 5, "n1")]),
        true => watch([Act::Hang]),
    });
    let (at, ca) = fake.tls().await;
    let (_folder, mut heard) = start_at(&format!("server: \"https://{at}\", certificate-authority: ca.pem"), &ca);
    told(&mut heard, "u-web").await;
    let (_folder, mut heard) = start_at(&format!("server: \"https://{at}\""), "");
    let state = heard.state("").await;
    assert!(state.contains("ertificate"), "{state}");
    assert!(fake.asked.lock().unwrap().iter().all(|asked| asked.head.contains("bearer s3cret")));
}

#[tokio::test]
async fn what_is_too_old_is_listed_anew() {
    for in_stream in [true, false] {
        let fake = Fake::new(move |asked, before| match (asked.line.contains("watch=1"), before) {
            (false, 0) => list(5, "", &[pod("web", 1, 5, "n1")]),
            (false, _) => list(50, "", &[pod("new", 2, 40, "n1")]),
            (true, 1) if in_stream => watch([event("ERROR", r#"{"kind":"Status","code":410,"reason":"Expired"}"#), Act::Hang]),
            (true, 1) => answer(410, "", r#"{"kind":"Status","code":410}"#),
            (true, _) => watch([Act::Hang]),
        });
        let (_folder, mut heard) = start(&fake).await;
        told(&mut heard, "u-new").await;
        eventually("a watch from the new list", || fake.count("resourceVersion=50") == 1).await;
    }
}

#[tokio::test]
async fn a_server_that_breaks_off_is_asked_again_from_there() {
    let fake = Fake::new(|asked, before| match (asked.line.contains("watch=1"), before) {
        (false, _) => list(5, "", &[]),
        (true, 1) => watch([event("ADDED", &pod("web", 1, 6, "n1")), Act::Send(b"{\"type\":\"ADD".to_vec())]),
        (true, 2) => Vec::new(),
        (true, 3) => answer(500, "", ""),
        (true, 4) => answer(429, "", ""),
        (true, _) => watch([event("ADDED", &pod("db", 2, 7, "n1")), Act::Hang]),
    });
    let (_folder, mut heard) = start(&fake).await;
    told(&mut heard, "u-db").await;
    assert_eq!((fake.count("limit="), fake.count("resourceVersion=6")), (1, 4));
}

#[tokio::test]
async fn without_the_right_it_says_what_to_grant_and_asks_again() {
    let fake = Fake::new(|_, before| match before {
        0 | 1 => answer(403, "", r#"{"kind":"Status","code":403}"#),
        _ => list(5, "", &[pod("web", 1, 5, "n1")]),
    });
    let (_folder, mut heard) = start(&fake).await;
    assert_eq!(heard.state("denied").await, "permission denied");
    told(&mut heard, "u-web").await;
    assert_eq!(heard.state("ok").await, "ok");
}

#[tokio::test]
async fn hostile_answers_cost_what_the_limits_allow() {
    let long = format!(r#"{{"type":"ADDED","object":"{}"#, "x".repeat(400_000));
    for (what, acts, expected) in [
        ("garbage", ok("\u{0}<html>"), "list of pods"),
        ("wrong types", ok(r#"{"metadata":{"resourceVersion":"1"},"items":[{"metadata":{"name":7}}]}"#), "list of pods"),
        ("no end", [stream(&long), vec![Act::Hang]].concat(), "more than 262144 bytes"),
        ("silence", vec![Act::Hang], "within 1000 ms"),
        (
            "a slow drip",
            std::iter::once(Act::Send(b"HTTP/1.1 200 X\r\ncontent-length: 9999\r\n\r\n".to_vec()))
                .chain((0..1_000).flat_map(|_| [Act::Send(b" ".to_vec()), Act::Pause(Duration::from_millis(50))]))
                .collect(),
            "within 1000 ms",
        ),
        ("pages for ever", list(1, "again", &[]), "more than 100 pages"),
    ] {
        let fake = Fake::new(move |_, _| acts.clone());
        let (_folder, mut heard) = start(&fake).await;
        let state = heard.state("").await;
        assert!(state.contains(expected), "{what}: {state}");
    }
    let line = long.clone();
    let fake = Fake::new(move |asked, _| match asked.line.contains("watch=1") {
        true => [stream(&line), vec![Act::Hang]].concat(),
        false => list(5, "", &[]),
    });
    let (_folder, mut heard) = start(&fake).await;
    heard.state("more than 262144 bytes").await;
}
