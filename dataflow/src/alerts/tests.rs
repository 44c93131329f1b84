//! Alerts against a plain recount: hits in any order and in any parts, exceptions that come and go, and late identities come to the same
//! alerts, also over a save and a load.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use weir_rules::{ExceptionRow, Exceptions};
use weir_schema::{BootId, Container, Event, Kind, Process, Text};

use super::compiled::Compiled;
use super::group::{Group, HostHits, Moment};
use super::groups::{Groups, Law};
use super::hit::{Hit, pack};
use super::identity::{ContainerTold, asks};
use super::{EVIDENCE_MAX, HITS_PER_HOST_MAX, KEEP_MS, WINDOW_MS};
use crate::checkpoint::{Share, State};
use crate::connections::Place;
use crate::rulebook::{FORMAT, RuleFile, RuleMatching, RuleOrigin, Rules};

const RETENTION_MS: u64 = 600_000;
const BASE_MS: u64 = 1_795_000_000_000;
const NAMES: [&str; 3] = ["shell", "unknown image", "any"];
const CONDITIONS: [&str; 3] = ["proc.name in (sh, bash)", "not container.image.repository = img1", "evt.type = execve"];
const COMMS: [&str; 3] = ["sh", "bash", "curl"];

fn compiled(matching: RuleMatching, conditions: &[(&str, &str)]) -> Compiled {
    let rule = |(name, condition): &(&str, &str)| {
        let output = "\"%proc.name in %container.image.repository\"";
        format!(
            "- rule: {name}\n  desc: d\n  condition: evt.type=execve and {condition}\n  output: {output}\n  priority: ERROR\n"
        )
    };
    let text = conditions.iter().map(rule).collect::<String>();
    let file = RuleFile { name: "f".into(), text: text.as_str().into(), origin: RuleOrigin::Loaded };
    Compiled::new(&Rules { format: FORMAT, matching, files: vec![file] })
}

fn the_three(matching: RuleMatching) -> Compiled {
    compiled(matching, &[0, 1, 2].map(|at| (NAMES[at], CONDITIONS[at])))
}

#[derive(Debug, Clone, Copy)]
struct Exec {
    id: u8,
    at_ms: u64,
    container: u8,
    comm: usize,
    /// As it was told; 0: not.
    image: u8,
}

impl Exec {
    fn moment(&self) -> Moment {
        (((BASE_MS + self.at_ms) * 1_000_000) as i64, [self.id; 16])
    }

    fn container_id(&self) -> Text {
        format!("c{}", self.container).into()
    }

    fn hit(&self, rules: &Compiled) -> HostHits {
        let process = Process { comm: Some(COMMS[self.comm].into()), pid: 7, ..Process::default() };
        let image = (self.image > 0).then(|| format!("img{}", self.image).into());
        let named = (self.image > 0).then(|| Text::from("x"));
        let [container_name, namespace, pod, workload] = [(); 4].map(|()| named.clone());
        let container_id = Some(self.container_id());
        let container = Container { container_id, image, container_name, namespace, pod, workload, app: None };
        let (process, container) = (Some(Arc::new(process)), Some(Arc::new(container)));
        let event = Event { time: self.moment().0, kind: Kind::Exec, process, container, ..Event::default() };
        let place = Arc::new(Place::new("t".into(), "r".into(), format!("h{}", self.container % 2).into()));
        let told = [0, 1, 2].map(|rule| holds(rule, self, self.image));
        let claims = (0..rules.heads.len()).filter(|rule| told[*rule]).filter_map(|rule| rules.claim(rule)).collect();
        let (moment, subject) = (self.moment(), u128::from(self.container));
        let host_key = place.host_key;
        let (asks, event, boot) = (asks(&event), pack(&event), BootId([1; 16]));
        HostHits {
            host_key,
            hits: vec![Hit { moment, place, boot, subject, lost: 0, claims, asks, event }],
            containers: self.told(),
        }
    }

    /// What its row says of its container.
    fn told(&self) -> Vec<ContainerTold> {
        if self.image == 0 {
            return Vec::new();
        }
        let columns =
            [Some("x".into()), Some(format!("img{}", self.image).into()), Some("x".into()), Some("x".into()), Some("x".into())];
        vec![ContainerTold { id: self.container_id(), moment: self.moment(), columns }]
    }
}

/// A rule's condition over an event whose image is this.
fn holds(rule: usize, exec: &Exec, image: u8) -> bool {
    match rule {
        0 => exec.comm < 2,
        1 => image != 1,
        _ => true,
    }
}

/// Rule, and the image or comm that it shall not fire on.
type Exception = (usize, Option<u8>, Option<usize>);

fn rows(exceptions: &BTreeSet<Exception>) -> Exceptions {
    let mut rows = Vec::new();
    for (number, (rule, image, comm)) in exceptions.iter().enumerate() {
        let mut row = |field: &str, value: String| {
            let [rule, name, field, comparator] = [NAMES[*rule], &format!("n{number}"), field, "="].map(str::to_owned);
            rows.push(ExceptionRow { rule, name, field, comparator, value });
        };
        image.iter().for_each(|image| row("container.image.repository", format!("img{image}")));
        comm.iter().for_each(|comm| row("proc.name", COMMS[*comm].to_owned()));
    }
    let compiled = Exceptions::compile(&rows);
    assert_eq!(compiled.refused, []);
    compiled
}

/// Rule, subject, first, last, count, evidence, summary.
type Plain = (String, u128, Moment, i64, u64, Vec<Moment>, String);

/// Sorts the hits of each rule and subject and cuts where the gap is too long.
fn recount(execs: &[Exec], exceptions: &BTreeSet<Exception>, matching: RuleMatching) -> Vec<Plain> {
    let image_of = |exec: &Exec| {
        let first =
            execs.iter().filter(|other| other.container == exec.container && other.image > 0).min_by_key(|other| other.moment());
        if exec.image > 0 { exec.image } else { first.map_or(0, |first| first.image) }
    };
    let mut by_key: BTreeMap<(usize, u128), Vec<&Exec>> = BTreeMap::new();
    for exec in execs {
        let image = image_of(exec);
        for rule in 0..3 {
            let silent = |(of, is, comm): &Exception| {
                *of == rule && is.is_none_or(|is| is == image) && comm.is_none_or(|comm| comm == exec.comm)
            };
            if holds(rule, exec, exec.image) && holds(rule, exec, image) && !exceptions.iter().any(silent) {
                by_key.entry((rule, u128::from(exec.container))).or_default().push(exec);
                if matching == RuleMatching::First {
                    break;
                }
            }
        }
    }
    let mut alerts = Vec::new();
    for ((rule, subject), mut hits) in by_key {
        hits.sort_by_key(|hit| hit.moment());
        for run in hits.chunk_by(|a, b| b.at_ms - a.at_ms <= WINDOW_MS) {
            let moments: Vec<Moment> = run.iter().map(|hit| hit.moment()).collect();
            let evidence = moments.iter().take(EVIDENCE_MAX).copied().collect();
            let last = moments[moments.len() - 1].0;
            let image = match image_of(run[0]) {
                0 => "<NA>".to_owned(),
                image => format!("img{image}"),
            };
            let summary = format!("{} in {image}", COMMS[run[0].comm]);
            alerts.push((NAMES[rule].to_owned(), subject, moments[0], last, moments.len() as u64, evidence, summary));
        }
    }
    alerts.sort();
    alerts
}

fn held(groups: &Groups) -> Vec<Plain> {
    let all = groups.hosts.values().flat_map(|host| host.groups.values().flatten());
    let mut held: Vec<Plain> = all
        .filter(|group| !group.withdrawn)
        .map(|group| {
            let Group { rule, subject, first, last, count, evidence, .. } = group.clone();
            (rule.name.to_string(), subject.key, first, last, count, evidence, subject.summary.to_string())
        })
        .collect();
    held.sort();
    held
}

/// Rows by all their columns, each with how often it is shown.
#[derive(Default)]
struct Shown(BTreeMap<String, i64>);

impl Shown {
    fn take(&mut self, delta: Option<crate::delta::DeltaBatch>) {
        let Some(delta) = delta else { return };
        let text = arrow::util::pretty::pretty_format_batches(std::slice::from_ref(&delta.rows)).unwrap().to_string();
        let lines = text.lines().filter(|line| line.starts_with('|')).skip(1);
        // How wide a column is differs from batch to batch.
        let squeeze = |line: &str| line.split('|').map(str::trim).collect::<Vec<_>>().join("|");
        lines.zip(&delta.diffs).for_each(|(line, diff)| *self.0.entry(squeeze(line)).or_default() += diff);
        self.0.retain(|_, count| *count != 0);
    }

    /// How many are not withdrawn, and how many are.
    fn count(&self) -> (usize, usize) {
        assert!(self.0.values().all(|count| *count == 1), "{:?}", self.0);
        let withdrawn = self.0.keys().filter(|row| row.contains("|withdrawn|")).count();
        (self.0.len() - withdrawn, withdrawn)
    }
}

#[derive(Debug, Clone)]
enum Step {
    Hits(usize),
    Except(Exception),
    Allow(usize),
    Save,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let exception = (0..3_usize, prop::option::of(1..4_u8), prop::option::of(0..3_usize));
    let exception = exception.prop_filter("it excepts something", |(_, image, comm)| image.is_some() || comm.is_some());
    let step = prop_oneof![
        5 => (1..12_usize).prop_map(Step::Hits),
        3 => exception.prop_map(Step::Except),
        2 => (0..8_usize).prop_map(Step::Allow),
        1 => Just(Step::Save),
    ];
    prop::collection::vec(step, 4..40)
}

fn execs() -> impl Strategy<Value = Vec<Exec>> {
    let one = (0..4_000_u64, 0..4_u8, 0..3_usize, 0..4_u8);
    prop::collection::vec(one, 1..120).prop_map(|all| {
        let exec = |(id, (at, container, comm, image)): (usize, (u64, u8, usize, u8))| {
            // Half of them do not know their image.
            let image = if id % 2 == 0 { 0 } else { image };
            Exec { id: id as u8, at_ms: at * 1_000, container, comm, image }
        };
        all.into_iter().enumerate().map(exec).collect()
    })
}

/// Groups as they are saved and taken up again.
fn again(groups: &Groups) -> Groups {
    let saved = postcard::from_bytes(&groups.save()).unwrap();
    let mut groups = Groups::new(RETENTION_MS);
    groups.load(vec![saved], Share { index: 0, peers: 1 });
    groups
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn alerts_are_a_plain_recount_of_the_events_and_the_exceptions(execs in execs(), steps in steps(), all in any::<bool>()) {
        let matching = if all { RuleMatching::All } else { RuleMatching::First };
        let rules = the_three(matching);
        let (mut groups, mut shown) = (Groups::new(RETENTION_MS), Shown::default());
        let mut exceptions = BTreeSet::new();
        let mut before = rows(&exceptions);
        let mut given = 0;
        for (number, step) in steps.iter().enumerate() {
            let mut told = Vec::new();
            match step {
                Step::Hits(count) => {
                    let part = &execs[given..execs.len().min(given + count)];
                    told.extend(part.iter().map(|exec| exec.hit(&rules)));
                    given += part.len();
                }
                Step::Except(exception) => _ = exceptions.insert(*exception),
                Step::Allow(place) => {
                    let goes = exceptions.iter().nth(*place).copied();
                    goes.iter().for_each(|exception| _ = exceptions.remove(exception));
                }
                Step::Save => groups = again(&groups),
            }
            let now = rows(&exceptions);
            let is_new = matches!(step, Step::Except(_) | Step::Allow(_));
            let law = Law { rules: Some(&rules), exceptions: [&now, &before], is_new };
            shown.take(groups.advance(BASE_MS + 4_000_000 + number as u64, told, law));
            before = now;
            let expected = recount(&execs[..given], &exceptions, matching);
            prop_assert_eq!(held(&groups), expected.clone(), "step {}", number);
            prop_assert_eq!(shown.count().0, expected.len());
        }
        // After their time nothing is left, and nothing is shown.
        while let Some(due) = groups.next_due() {
            prop_assert!(due >= BASE_MS + KEEP_MS);
            let law = Law { rules: Some(&rules), exceptions: [&before, &before], is_new: false };
            shown.take(groups.advance(due, vec![], law));
        }
        prop_assert_eq!(groups.len(), 0);
        prop_assert!(groups.hosts.is_empty());
        prop_assert_eq!(shown.count(), (0, 0));
    }
}

const NONE: BTreeSet<Exception> = BTreeSet::new();

fn exec(id: u8, at_ms: u64, image: u8) -> Exec {
    Exec { id, at_ms, container: 0, comm: 0, image }
}

#[test]
fn a_late_identity_and_an_exception_take_an_alert_back_and_it_returns_as_a_later_revision() {
    let rules = the_three(RuleMatching::First);
    let (mut groups, mut shown) = (Groups::new(RETENTION_MS), Shown::default());
    let (none, excepted) = (rows(&NONE), rows(&BTreeSet::from([(0, Some(2), None), (1, Some(2), None), (2, Some(2), None)])));
    let mut advance = |ms: u64, told: Vec<HostHits>, [now, before]: [&Exceptions; 2]| {
        let law = Law { rules: Some(&rules), exceptions: [now, before], is_new: !std::ptr::eq(now, before) };
        shown.take(groups.advance(BASE_MS + ms, told, law));
        let revision = groups.hosts.values().flat_map(|host| host.groups.values().flatten()).map(Group::revision).max();
        (shown.count(), revision)
    };
    assert_eq!(advance(0, vec![exec(1, 0, 0).hit(&rules)], [&excepted, &excepted]), ((1, 0), Some(1)));
    // The image comes five seconds later, with something that is no hit.
    let later = HostHits { hits: vec![], ..exec(2, 5_000, 2).hit(&rules) };
    assert_eq!(advance(5_000, vec![later], [&excepted, &excepted]), ((0, 1), Some(2)));
    assert_eq!(advance(6_000, vec![], [&none, &excepted]), ((1, 0), Some(3)));
    assert_eq!(advance(7_000, vec![], [&excepted, &none]), ((0, 1), Some(4)));
}

#[test]
fn rules_that_are_gone_have_their_alerts_withdrawn_and_give_their_events_to_nobody() {
    let (rules, fewer) = (the_three(RuleMatching::First), compiled(RuleMatching::First, &[(NAMES[2], CONDITIONS[2])]));
    let (mut groups, none) = (Groups::new(RETENTION_MS), rows(&NONE));
    let law = |rules, is_new| Law { rules: Some(rules), exceptions: [&none, &none], is_new };
    let curl = Exec { comm: 2, ..exec(2, 1, 1) };
    groups.advance(BASE_MS + 1, vec![exec(1, 0, 0).hit(&rules), curl.hit(&rules)], law(&rules, false));
    assert_eq!((held(&groups).len(), groups.hits()), (2, 2));
    groups.advance(BASE_MS + 2, vec![], law(&fewer, true));
    assert_eq!((held(&groups).len(), groups.len(), groups.hits()), (1, 2, 1));
}

#[test]
fn hits_beyond_the_limit_stay_in_their_alerts_as_they_were_judged() {
    let rules = the_three(RuleMatching::First);
    let (mut groups, none) = (Groups::new(RETENTION_MS), rows(&NONE));
    let many = HITS_PER_HOST_MAX as u64 + 10;
    let told = |number: u64| {
        let mut told = exec(0, 0, 2).hit(&rules);
        told.hits[0].moment = ((BASE_MS * 1_000_000 + number) as i64, [1; 16]);
        told
    };
    let law = |exceptions, is_new| Law { rules: Some(&rules), exceptions, is_new };
    groups.advance(BASE_MS, (0..many).map(told).collect(), law([&none, &none], false));
    assert_eq!((groups.hits(), groups.fixed(), held(&groups)[0].4), (HITS_PER_HOST_MAX, 10, many));
    let excepted = rows(&BTreeSet::from([(0, Some(2), None), (2, Some(2), None), (1, Some(2), None)]));
    groups.advance(BASE_MS + 1, vec![], law([&excepted, &none], true));
    assert_eq!(held(&groups)[0].4, 10);
    groups = again(&groups);
    groups.advance(BASE_MS + 2, vec![], law([&none, &excepted], true));
    assert_eq!(held(&groups)[0].4, many);
}

#[test]
fn a_host_with_too_many_alerts_lets_the_settled_go_first() {
    let rules = compiled(RuleMatching::First, &[(NAMES[2], CONDITIONS[2])]);
    let (mut groups, none) = (Groups::new(RETENTION_MS), rows(&NONE));
    let law = Law { rules: Some(&rules), exceptions: [&none, &none], is_new: false };
    let many = super::PER_HOST_MAX as u64;
    let hit = |number: u64, at_ms: u64| {
        let mut told = exec(1, at_ms, 2).hit(&rules);
        let mut id = [0; 16];
        id[..8].copy_from_slice(&number.to_be_bytes());
        let hit = &mut told.hits[0];
        (hit.subject, hit.moment.1) = (number.into(), id);
        hit.claims = rules.claim(0).into_iter().collect();
        told
    };
    groups.advance(BASE_MS, (0..many).map(|number| hit(number, 0)).collect(), law);
    assert_eq!((groups.len() as u64, groups.evicted()), (many, 0));
    // Nothing is settled: the new one finds no room. Later it does.
    groups.advance(BASE_MS + 1, vec![hit(many, 1)], law);
    assert_eq!((groups.len() as u64, groups.evicted()), (many, 1));
    let later = RETENTION_MS + WINDOW_MS + 1;
    groups.advance(BASE_MS + later, vec![hit(many, later)], law);
    assert_eq!((groups.len() as u64, groups.evicted()), (many, 2));
    assert!(held(&groups).iter().any(|alert| alert.1 == u128::from(many)));
}
