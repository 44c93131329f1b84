//! The inventory's history against a plain recomputation, on random stories split between files and tail; and what the README shows.

#![allow(clippy::unwrap_used)]

mod past;
#[path = "../../../dataflow/tests/world/mod.rs"]
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;

use past::plain::{self, APPS, CONTAINERS, HOSTS, PROCESSES, TREE};
use past::story::story;
use past::{Agent, Chain, Node, Rows, Told, event, record, tick_of, told};
use weir_archive::{Rule, Sizes, choose, compact, retain};
use weir_schema::{Container, Event, Fields, Kind, Process};
use world::Random;

fn seed() -> u64 {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = std::env::var("WEIR_SEED").map_or(clock.as_nanos() as u64, |seed| seed.parse().unwrap());
    eprintln!("WEIR_SEED={seed}");
    seed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_retention_dropped_is_among_the_losses() {
    let chain = story(seed(), TICKS);
    let record = record(&chain, &[TICKS - 1]).await;
    let archive = record.archive().clone();
    let node = Node::start("dropped", &chain, Some(record)).await;
    let lost =
        "select reason, class, region, sum(lost) from losses where reason like 'retention%' group by 1, 2, 3 order by 1, 2, 3";
    assert!(node.ask(lost).await.is_empty());
    let rows = node.ask("select kind, region, count(*) from events where not imported group by 1, 2 order by 1, 2").await;
    // Compaction gives files by kind and region; those of events go, because no byte is left for them.
    let sizes = Sizes { fresh_ms_max: 0, ..Sizes::default() };
    while let Some(job) = choose(&archive.catalog(), &sizes, tick_of(TICKS)) {
        compact(&archive, &job, &sizes, tick_of(TICKS)).await.unwrap();
    }
    let rule = Rule { table: Some(weir_archive::Table::Events), bytes: Some(0), ..Rule::default() };
    assert!(!retain(&archive, &[rule], tick_of(TICKS)).await.unwrap().is_empty());
    let expected: Rows = rows.into_iter().map(|row| [vec![Some("retention_bytes".to_owned())], row].concat()).collect();
    assert_eq!(node.ask(lost).await, expected);
    let (status, body) = node.http("/v1/views/losses").await;
    assert!(status == 200 && body.contains("retention_bytes"), "{status} {body}");
    assert_eq!(node.lines("select count(*) from events").await, ["0"]);
}

fn until(told: &[Told], tick: u64) -> Vec<Told> {
    told.iter().filter(|told| told.tick <= tick).cloned().collect()
}

fn sorted(mut rows: Rows) -> Rows {
    rows.sort();
    rows
}

/// Places of a chain after which its record has a file.
fn flushes(random: &mut Random, ticks: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..random.below(4)).map(|_| random.below(ticks as u64) as usize).collect();
    places.sort_unstable();
    places.dedup();
    places
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_views_are_the_recomputation_at_any_tick() {
    let seed = seed();
    let mut random = Random(seed | 1);
    let chain = story(seed, TICKS);
    let events = told(&chain);
    assert!(events.iter().any(|told| told.late), "nothing is late");
    let node = Node::start("views", &chain, Some(record(&chain, &flushes(&mut random, TICKS)).await)).await;
    let views: [(&str, Plain); 4] =
        [(CONTAINERS, plain::containers), (PROCESSES, plain::processes), (APPS, plain::apps), (HOSTS, plain::hosts)];
    let last = TICKS - 1;
    // The workers hold the last ticks alone: there `hosts` is theirs, before it is the record's.
    for place in [random.below(20) as usize, 20 + random.below(20) as usize, 60 + random.below(30) as usize, last] {
        let tick = tick_of(place);
        let events = until(&events, tick);
        for (sql, plain) in views {
            let rows = node.ask(&format!("{sql} as of {tick}")).await;
            assert_eq!(sorted(rows), sorted(plain(&events)), "{sql} at place {place}, seed {seed}");
        }
    }
    let newest = node.ask(PROCESSES).await;
    assert_eq!(sorted(newest), sorted(plain::processes(&events)), "without AS OF, seed {seed}");
    let one = &plain::processes(&events)[0];
    let id = one[4].clone().unwrap();
    assert_eq!(node.ask(&format!("{PROCESSES} where process_id = '{id}'")).await, std::slice::from_ref(one));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_of_the_record_are_those_of_the_workers() {
    let seed = seed();
    let chain = story(seed, TICKS);
    let node = Node::start("hosts", &chain, Some(record(&chain, &[5, 40]).await)).await;
    for place in [15, 33] {
        let then = Node::start(&format!("hosts-{place}"), &chain[..=place].to_vec(), None).await;
        let question = format!("select * from hosts order by tenant, host as of {}", tick_of(place));
        let (past, live) = (node.lines(&question).await, then.lines("select * from hosts order by tenant, host").await);
        assert!(past.len() == 3, "{past:?}");
        assert_eq!(past, live, "at place {place}, seed {seed}");
    }
    // Live relations without a definition over the record are still forgotten, and one tick is one tick.
    let told = node.lines(&format!("select * from agents as of {}", tick_of(15))).await;
    assert!(told[0].starts_with("72000"), "{told:?}");
    let both = format!(
        "select count(*) from hosts h join containers c on c.host = h.host and c.tenant = h.tenant as of {}",
        tick_of(15)
    );
    assert!(node.lines(&both).await[0].parse::<u64>().unwrap() > 0);
    let future = node.lines(&format!("select * from processes as of {}", tick_of(TICKS) + 1)).await;
    assert!(future[0].starts_with("57P03"), "{future:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_is_the_recomputation() {
    let seed = seed();
    let mut random = Random(seed | 1);
    let chain = story(seed, 60);
    let events = told(&chain);
    let node = Node::start("tree", &chain, Some(record(&chain, &flushes(&mut random, 60)).await)).await;
    let parents: BTreeMap<String, usize> = events.iter().filter_map(Told::parent_process_id).map(|id| (id, 0)).collect();
    let known: Vec<String> = events.iter().filter_map(Told::process_id).collect();
    let unknown: Vec<&String> = parents.keys().filter(|id| !known.contains(id)).collect();
    let own = events.iter().find(|told| told.process_id().is_some() && told.process_id() == told.parent_process_id()).unwrap();
    let mut roots = vec![(unknown[0].clone(), 59), (own.process_id().unwrap(), 59), ("nobody".to_owned(), 59)];
    roots.extend((0..2).map(|_| {
        let id = known[random.below(known.len() as u64) as usize].clone();
        (id, 30 + random.below(30) as usize)
    }));
    for (root, place) in roots {
        let tick = tick_of(place);
        let rows = node.ask(&format!("{TREE}('{root}') as of {tick}")).await;
        assert_eq!(rows, plain::tree(&until(&events, tick), &root, 64), "{root} at place {place}, seed {seed}");
        assert!(root != "nobody" || rows.is_empty());
    }
    // In the company of other relations, at the same tick.
    let root = &known[0];
    let joined =
        format!("select count(*) from process_tree('{root}') t join processes p on p.process_id = t.process_id where depth = 0");
    assert_eq!(node.lines(&joined).await, ["1"]);
    for (wrong, expected) in [
        ("select * from process_tree(7)", "42601 process_tree takes one process_id, written out as a text"),
        ("select * from process_tree('a', 'b')", "42601 process_tree takes one process_id"),
        ("select * from process_tree", "42"),
        ("select t.* from processes p, process_tree(p.process_id) t", "42"),
    ] {
        let told = node.lines(wrong).await;
        assert!(told[0].starts_with(expected), "{wrong}: {told:?}");
    }
    assert!(node.sql.prepare("select * from process_tree($1)").await.is_err());
}

/// One process, by its pid and its parent's.
fn started(pid: u32, ppid: u32) -> Event {
    let process = Process { pid, start_ns: 5, ppid: Some(ppid), parent_start_ns: Some(5), ..Process::default() };
    event(Kind::Exec, tick_of(0), Some(&Arc::new(process)), None)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_has_64_levels_each_way() {
    let mut agent = Agent::new("acme", "eu", "web-1", 1);
    let line: Vec<Event> = (1..=150).map(|pid| started(pid, pid - 1)).collect();
    let chain: Chain = line.chunks(75).zip(0..).map(|(part, place)| (tick_of(place), agent.frames(part, tick_of(0)))).collect();
    let node = Node::start("levels", &chain, Some(record(&chain, &[0]).await)).await;
    let span = format!("select min(depth), max(depth), count(*) from process_tree('{}')", agent.process_id(75, 5));
    assert_eq!(node.lines(&span).await, ["-64|64|129"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_has_10_000_rows() {
    let mut agent = Agent::new("acme", "eu", "web-1", 1);
    let brood: Vec<Event> = (0..10_500).map(|child| started(1_000 + child, 7)).collect();
    let chain: Chain =
        brood.chunks(3_500).zip(0..).map(|(part, place)| (tick_of(place), agent.frames(part, tick_of(0)))).collect();
    let node = Node::start("rows", &chain, Some(record(&chain, &[1]).await)).await;
    let mother = agent.process_id(7, 5);
    let count = format!("select count(*), count(distinct process_id), max(depth) from process_tree('{mother}')");
    assert_eq!(node.lines(&count).await, ["10000|10000|1"]);
}

/// What one host told: a container that lived 50 ms, on a host that has stopped since.
fn short_life() -> (Agent, Chain) {
    let mut agent = Agent::new("acme", "eu-west-1", "web-1", 9);
    let container = Arc::new(Container {
        app: Some("shop".into()),
        container_id: Some(CONTAINER.into()),
        image: Some("registry/shop:7".into()),
        ..Container::default()
    });
    let shell = Arc::new(Process {
        pid: 4_000,
        start_ns: 70,
        ppid: Some(1),
        parent_start_ns: Some(1),
        exe: Some("/bin/sh".into()),
        cmdline: Some("sh -c fetch".into()),
        parent_exe: Some("/usr/bin/containerd-shim".into()),
        parent_cmdline: Some("containerd-shim -namespace k8s".into()),
        ..Process::default()
    });
    let fetch = Arc::new(Process {
        pid: 4_001,
        start_ns: 71,
        ppid: Some(4_000),
        parent_start_ns: Some(70),
        exe: Some("/usr/bin/curl".into()),
        cmdline: Some("curl https://203.0.113.9/x".into()),
        ..Process::default()
    });
    let at = tick_of(2);
    let of =
        |kind, ms, process: Option<&Arc<Process>>, fields| Event { fields, ..event(kind, at + ms, process, Some(&container)) };
    let first = [
        of(Kind::ContainerStart, 0, None, Fields::default()),
        of(Kind::Exec, 3, Some(&shell), Fields::default()),
        of(Kind::Fork, 9, Some(&shell), Fields { target_pid: Some(4_001), ..Fields::default() }),
        of(Kind::Exec, 10, Some(&fetch), Fields::default()),
    ];
    let connect = Fields {
        dst_ip: Some("203.0.113.9".into()),
        dst_port: Some(443),
        proto: Some("tcp".into()),
        result: Some(0),
        ..Fields::default()
    };
    let then = [
        of(Kind::Open, 12, Some(&fetch), Fields { path: Some("/etc/passwd".into()), ..Fields::default() }),
        of(Kind::Connect, 20, Some(&fetch), connect),
        of(Kind::Exit, 44, Some(&fetch), Fields { exit_code: Some(0), ..Fields::default() }),
        of(Kind::Exit, 47, Some(&shell), Fields { exit_code: Some(0), ..Fields::default() }),
        of(Kind::ContainerStop, 50, None, Fields::default()),
    ];
    let ended = [event(Kind::HostStop, tick_of(5), None, None)];
    let mut chain: Chain = (0..60).map(|place| (tick_of(place), vec![])).collect();
    // What came first is told last.
    for (place, events) in [(3, &then[..]), (5, &ended[..]), (6, &first[..])] {
        chain[place].1 = agent.frames(events, tick_of(place));
    }
    (agent, chain)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_life_is_told_in_order_and_the_readme_is_true() {
    let (agent, chain) = short_life();
    println!("the shell is {}, curl is {}", agent.process_id(4_000, 70), agent.process_id(4_001, 71));
    let node = Node::start("short", &chain, Some(record(&chain, &[4]).await)).await;
    let question = format!(
        "select to_char(time, '%S%.3f'), kind, cmdline, path, dst_ip, dst_port from events where container_id = '{CONTAINER}' \
         order by time, event_id"
    );
    let story = [
        "41.000|container_start|NULL|NULL|NULL|NULL",
        "41.003|exec|sh -c fetch|NULL|NULL|NULL",
        "41.009|fork|sh -c fetch|NULL|NULL|NULL",
        "41.010|exec|curl https://203.0.113.9/x|NULL|NULL|NULL",
        "41.012|open|curl https://203.0.113.9/x|/etc/passwd|NULL|NULL",
        "41.020|connect|curl https://203.0.113.9/x|NULL|203.0.113.9|443",
        "41.044|exit|curl https://203.0.113.9/x|NULL|NULL|NULL",
        "41.047|exit|sh -c fetch|NULL|NULL|NULL",
        "41.050|container_stop|NULL|NULL|NULL|NULL",
    ];
    assert_eq!(node.lines(&question).await, story);
    let ended = "select ended = last_seen from hosts where host = 'web-1'";
    assert_eq!(node.lines(&format!("{ended} as of {}", tick_of(5))).await, node.lines(ended).await);
    let tree = format!("select depth, exe, cmdline from process_tree('{}')", agent.process_id(4_001, 71));
    let family = [
        "-2|/usr/bin/containerd-shim|containerd-shim -namespace k8s",
        "-1|/bin/sh|sh -c fetch",
        "0|/usr/bin/curl|curl https://203.0.113.9/x",
    ];
    assert_eq!(node.lines(&tree).await, family);
    let (_, section) = README.split_once("## Looking into the past").unwrap();
    let (_, block) = section.split_once("```sql\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    assert!(block.matches(';').count() >= 5, "{block}");
    for statement in block.split_inclusive(';').filter(|statement| !statement.trim().is_empty()) {
        let rows = node.lines(statement).await;
        assert!(!rows.is_empty() && !rows[0].contains("not"), "{statement}: {rows:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conditions_reach_the_files_and_the_relations_are_shown() {
    let (agent, chain) = short_life();
    let node = Node::start("explain", &chain, Some(record(&chain, &[8]).await)).await;
    let id = agent.process_id(4_001, 71);
    let many = (0..25).map(|number| format!("'{number}'")).collect::<Vec<_>>().join(", ");
    for (question, expected) in [
        (
            format!("select * from containers where tenant = 'acme' and host = 'web-1' and container_id = '{CONTAINER}'"),
            vec!["tenant@", "host@", "container_id@", "container_id in (c0ffee12)"],
        ),
        (
            format!("select * from processes where tenant = 'acme' and host = 'web-1' and process_id = '{id}' and pid = 4001"),
            vec!["tenant@", "host@", "process_id@", "pid@", "process_id in ("],
        ),
        ("select * from apps where tenant = 'acme' and app = 'shop'".to_owned(), vec!["tenant@", "app@"]),
        (
            format!("select * from hosts where tenant = 'acme' and host = 'web-1' as of {}", tick_of(8)),
            vec!["tenant@", "host@", "late@"],
        ),
        // As the tree looks up its levels.
        (
            format!("select distinct process_id from events where parent_process_id in ({many}) order by process_id limit 9"),
            vec!["parent_process_id in ("],
        ),
    ] {
        let plan = node.lines(&format!("explain {question}")).await.join("\n");
        let scans: Vec<&str> = plan.lines().filter(|line| line.contains("DataSourceExec")).collect();
        assert!(!scans.is_empty(), "{plan}");
        for scan in scans {
            let (_, predicate) = scan.split_once("predicate=").unwrap_or_else(|| panic!("{question}: {plan}"));
            assert!(expected.iter().all(|part| predicate.contains(part)), "{question}: {predicate}");
        }
    }
    let shown = node.lines("show tables").await;
    assert!(
        ["containers|view", "processes|view", "apps|view"].iter().all(|view| shown.contains(&(*view).to_owned())),
        "{shown:?}"
    );
    assert!(node.lines("show views").await.contains(&"apps".to_owned()));
    let columns = node.lines("show columns from apps").await;
    assert_eq!(columns[..3], ["tenant|text", "app|text", "first_seen|timestamp with time zone"]);
    let (status, body) = node.http("/v1/views/containers?limit=1").await;
    assert!(status == 200 && body.contains("\"relation\":\"containers\"") && body.contains(CONTAINER), "{body}");
    let (status, body) = node.http("/v1/views/nothing").await;
    assert!(status == 404 && body.contains("\"processes\""), "{body}");
    let definition = node.lines("show create view processes").await;
    assert!(definition[0].starts_with("processes|CREATE VIEW processes AS\nSELECT tenant"), "{definition:?}");
    // What is shown is what is executed.
    let (_, query) = definition[0].split_once(" AS\n").unwrap();
    let both = [format!("{query} order by process_id"), "select * from processes order by process_id".to_owned()];
    assert_eq!(node.lines(&both[0]).await, node.lines(&both[1]).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_record_the_config_key_is_named() {
    let node = Node::start("none", &story(1, 3), None).await;
    for question in ["select * from processes", "select * from process_tree('x')", "show columns from apps"] {
        let told = node.lines(question).await;
        assert!(told[0].starts_with("42P01") && told[0].contains("archive.enabled"), "{question}: {told:?}");
    }
    assert!(node.lines("show tables").await.iter().all(|line| !line.ends_with("|view")));
}

/// A plain recomputation of a view.
type Plain = fn(&[Told]) -> Rows;

const TICKS: usize = 100;
const CONTAINER: &str = "c0ffee12";
const README: &str = include_str!("../../../README.md");
