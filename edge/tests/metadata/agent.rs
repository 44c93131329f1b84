//! From a source to the events: what is learnt late is told as a correction, and is on what comes after it.

use std::collections::BTreeMap;
use std::sync::Arc;

use weir_config::AppRule;
use weir_edge::clock::Clock;
use weir_edge::enrich::cgroup::{Hierarchy, Mounts};
use weir_edge::enrich::metadata::News;
use weir_edge::enrich::metadata::description::{Description, Origin};
use weir_edge::enrich::place::Places;
use weir_edge::enrich::proc::Proc;
use weir_edge::enrich::process::Processes;
use weir_edge::enrich::runtime::Runtimes;
use weir_edge::enrich::{Enricher, Source};
use weir_edge::probe::raw::{Exit, Fork, RawEvent, What, Who};
use weir_schema::{Container, Event, Kind};

use crate::id;

const CGROUP: u64 = 4_242;

fn who(pid: u32) -> Who {
    Who { pid, tid: pid, start_ns: 10_000_000, cgroup_v2: CGROUP, comm: "sh".into(), ..Who::default() }
}

fn enricher(app: &str) -> Enricher {
    let rule =
        AppRule { label: Some(app.parse().unwrap()), image: None, unit: None, cgroup: None, exe: None, app: "shop".into() };
    let mut places = Places::new(Mounts::default(), vec![rule], Runtimes::new("/nowhere"));
    places.cgroups().on_mkdir(Hierarchy::V2, CGROUP, &format!("/docker/{}", id(1)));
    Enricher::new(Clock::new(0, 0), Processes::new(Proc::new("/nowhere")), places, Source::Kernel)
}

fn record(enricher: &mut Enricher, now_ns: u64, what: What) -> Event {
    let mut out = Vec::new();
    enricher.enrich(&RawEvent { boot_ns: now_ns, who: Some(who(77)), what }, &mut out);
    out.pop().unwrap()
}

fn fork() -> What {
    What::Fork(Fork { child_pid: 78, child_ppid: 77, child_start_ns: 20_000_000 })
}

fn described() -> News {
    let description = Description {
        name: Some("web".into()),
        image: Some("nginx:1".into()),
        digest: Some("sha256:aa".into()),
        pod: Some("web-0".into()),
        labels: BTreeMap::from([("app".into(), "web".into())]),
        privileged: Some(true),
        ..Description::default()
    };
    News::Container { id: id(1).as_str().into(), origin: Origin::Docker, description }
}

fn container(event: &Event) -> Arc<Container> {
    event.container.clone().unwrap()
}

#[test]
fn a_name_that_comes_late_corrects_and_stays() {
    let mut enricher = enricher("app=web");
    let before = record(&mut enricher, 1_000, fork());
    assert_eq!((container(&before).container_name.as_deref(), container(&before).app.as_deref()), (None, Some("unassigned")));
    let mut out = Vec::new();
    enricher.learn([described()], 2_000, &mut out);
    assert_eq!(out.len(), 1);
    let correction = &out[0];
    assert_eq!((correction.kind, correction.process.is_none()), (Kind::ContainerUpdate, true));
    let known = container(correction);
    assert_eq!(known.container_id, container(&before).container_id);
    assert_eq!((known.container_name.as_deref(), known.image.as_deref()), (Some("web"), Some("nginx:1")));
    assert_eq!((known.pod.as_deref(), known.app.as_deref()), (Some("web-0"), Some("shop")));
    let detail = correction.fields.detail.as_deref().unwrap();
    assert_eq!(detail, r#"{"image_digest":"sha256:aa","labels":{"app":"web"},"privileged":true}"#);
    // Of the process that was there, of its child, and of its end.
    let after = record(&mut enricher, 3_000, What::Exit(Exit::default()));
    assert_eq!(container(&after), known);
    let mut again = Vec::new();
    enricher.learn([described()], 4_000, &mut again);
    assert!(again.is_empty(), "told once");
}

#[test]
fn what_is_known_before_the_container_is_met_needs_no_correction() {
    let mut enricher = enricher("app=web");
    let mut out = Vec::new();
    enricher.learn([described()], 1_000, &mut out);
    assert!(out.is_empty());
    let first = record(&mut enricher, 2_000, fork());
    assert_eq!(container(&first).container_name.as_deref(), Some("web"));
}
