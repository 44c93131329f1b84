//! What is known of containers: files that come late, sources in any order, limits.

use super::*;
use crate::enrich::metadata::description::{labels, text};

const FILE: &str = "var/lib/docker/containers/cc/config.v2.json";

fn write(root: &std::path::Path, path: &str, text: &str) {
    let file = root.join(path);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, text).unwrap();
}

fn said(id: &str, origin: Origin, description: Description) -> News {
    News::Container { id: id.into(), origin, description }
}

fn learn(runtimes: &mut Runtimes, news: News) -> Vec<Text> {
    let mut changed = BTreeSet::new();
    runtimes.learn(news, &mut changed);
    changed.into_iter().collect()
}

#[test]
fn a_late_file_is_found() {
    let root = tempfile::tempdir().unwrap();
    let mut runtimes = Runtimes::new(root.path());
    let id: Text = "cc".into();
    assert_eq!(*runtimes.describe(&id, None, None, 0), Description::default());
    write(root.path(), FILE, r#"{"Config":{"Image":"late"}}"#);
    assert_eq!(runtimes.describe(&id, None, None, 1).image, None);
    assert_eq!(runtimes.describe(&id, None, None, RETRY_NS).image.as_deref(), Some("late"));
}

#[test]
fn ids_that_are_met_are_said_to_the_sources_once() {
    let (sender, mut wanted) = mpsc::channel(1);
    let mut runtimes = Runtimes::new("/nowhere").with_sources(vec![sender], &MetadataConfig::default());
    let (a, b): (Text, Text) = ("aa".into(), "bb".into());
    for id in [&a, &a, &b] {
        runtimes.describe(id, None, None, 0);
    }
    // The queue was full at the second: nobody waits, the source's list has it.
    assert_eq!((wanted.try_recv().ok(), wanted.try_recv().ok()), (Some(a), None));
}

#[test]
fn what_is_said_of_containers_that_were_met_is_a_change_and_is_told_once() {
    let mut runtimes = Runtimes::new("/nowhere");
    let id: Text = "aa".into();
    let described = Description { name: text("web"), labels: labels([("app", "x"), ("secret", "y")]), ..Description::default() };
    assert!(learn(&mut runtimes, said("aa", Origin::Docker, described.clone())).is_empty(), "nobody met it");
    assert_eq!(runtimes.describe(&id, Some(&"/docker/aa".into()), None, 0).name.as_deref(), Some("web"), "known at once");
    assert!(learn(&mut runtimes, said("aa", Origin::Docker, described.clone())).is_empty(), "the same again");
    let privileged = Description { privileged: Some(true), ..described };
    assert_eq!(learn(&mut runtimes, said("aa", Origin::Docker, privileged)), ["aa".into()]);
    let container = Arc::new(Container::default());
    let correction = runtimes.correct(&id, &container).unwrap();
    assert_eq!(Value::Object(correction.detail).to_string(), r#"{"labels":{"app":"x"},"privileged":true}"#);
    assert_eq!(runtimes.correct(&id, &container), None, "told");
    let renamed = Arc::new(Container { container_name: Some("w2".into()), ..Container::default() });
    assert!(runtimes.correct(&id, &renamed).is_some());
    assert_eq!(runtimes.cgroup(&id).as_deref(), Some("/docker/aa"));
}

#[test]
fn a_pod_describes_its_containers_before_and_after() {
    let mut runtimes = Runtimes::new("/nowhere");
    let uid: Text = "u-1".into();
    let pod = |name: &str| News::Pod {
        uid: "u-1".into(),
        description: Description { pod: text(name), workload: text("w"), ..Description::default() },
    };
    runtimes.describe(&"aa".into(), None, Some(&uid), 0);
    assert_eq!(learn(&mut runtimes, pod("p1")), ["aa".into()]);
    assert_eq!(runtimes.describe(&"bb".into(), None, Some(&uid), 0).pod.as_deref(), Some("p1"), "met later");
    // Its cgroup does not name the pod, its runtime does.
    runtimes.describe(&"cc".into(), None, None, 0);
    let description = Description { pod_uid: text("u-1"), ..Description::default() };
    assert_eq!(learn(&mut runtimes, said("cc", Origin::Cri, description)), ["cc".into()]);
    assert_eq!(learn(&mut runtimes, pod("p2")), ["aa".into(), "bb".into(), "cc".into()]);
}

#[test]
fn it_never_holds_more_than_its_limit() {
    let mut config = MetadataConfig::default();
    config.limits.containers_max = 64;
    let mut runtimes = Runtimes::new("/nowhere").with_sources(Vec::new(), &config);
    let kept: Text = "kept".into();
    for number in 0..10_000 {
        runtimes.describe(&format!("c{number}").into(), None, None, 0);
        learn(&mut runtimes, said(&format!("d{number}"), Origin::Cri, Description::default()));
        learn(&mut runtimes, News::Pod { uid: format!("p{number}").into(), description: Description::default() });
        runtimes.describe(&kept, None, None, 0);
        assert!(runtimes.len() <= 64 && runtimes.pods.len() <= 64);
    }
    assert!(runtimes.known.contains_key(&kept), "what is used stays");
}

#[test]
fn one_that_changes_all_the_time_is_told_so_often() {
    let mut runtimes = Runtimes::new("/nowhere");
    let id: Text = "aa".into();
    runtimes.describe(&id, None, None, 0);
    let told = (0..500).filter(|number| {
        let name = Description { labels: labels([("app", number.to_string().as_str())]), ..Description::default() };
        learn(&mut runtimes, said("aa", Origin::Docker, name));
        runtimes.correct(&id, &Arc::new(Container::default())).is_some()
    });
    assert_eq!(told.count(), CORRECTIONS_MAX as usize);
}
