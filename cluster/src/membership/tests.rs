//! Nodes that beat, fall silent and come back, and a holder that looks at them.

use super::*;

const LIMITS: Limits = Limits { member_ms_max: 4_000, join_ms_min: 2_000 };

/// Nodes that beat five times in `member_ms_max`, and a holder that looks at them as often.
struct World {
    membership: Membership,
    now_ms: u64,
    nodes: BTreeMap<&'static str, Node>,
    made: Vec<(u64, Generation)>,
}

struct Node {
    run: u64,
    number: u64,
    silent: bool,
    workers: Workers,
    /// How far its clock is ahead.
    ahead_ms: u64,
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

impl World {
    fn new(nodes: &[&'static str]) -> Self {
        let mut world = Self { membership: Membership::new(LIMITS, None, 1, 0), now_ms: 0, nodes: BTreeMap::new(), made: vec![] };
        for node in nodes {
            world.start(node);
        }
        world
    }

    fn start(&mut self, node: &'static str) {
        let run = self.nodes.get(node).map_or(1, |node| node.run + 1);
        self.nodes.insert(node, Node { run, number: 0, silent: false, workers: Workers::None, ahead_ms: 0 });
    }

    fn end_workers(&mut self, node: &str, unreachable: &[&str]) {
        let generation = self.made.last().unwrap().1.number;
        let unreachable = unreachable.iter().map(|node| name(node)).collect();
        self.nodes.get_mut(node).unwrap().workers = Workers::Ended { generation, unreachable, bad_checkpoint: None };
    }

    /// Lets time pass; nodes start workers of a generation they are in within a second.
    fn pass(&mut self, ms: u64) {
        let until = self.now_ms + ms;
        while self.now_ms < until {
            self.now_ms += 200;
            for (node, state) in &mut self.nodes {
                if !state.silent && self.now_ms.is_multiple_of(800) {
                    state.number += 1;
                }
                let beat = Beat {
                    node: name(node),
                    run: state.run,
                    number: state.number,
                    address: format!("{node}:1"),
                    workers: state.workers.clone(),
                    wall_ms: state.ahead_ms + self.now_ms,
                    build: "b".to_owned(),
                };
                self.membership.observe(beat, self.now_ms);
            }
            if let Some(next) = self.membership.decide(self.now_ms) {
                for (node, state) in &mut self.nodes {
                    if next.generation.place(&name(node), state.run).is_some() && !state.silent {
                        state.workers = Workers::Running { generation: next.generation.number };
                    }
                }
                self.membership.chained(next.generation.clone(), self.now_ms);
                self.made.push((self.now_ms, next.generation));
            }
        }
    }

    fn members(&self) -> Vec<&str> {
        self.made.last().map_or(vec![], |(_, made)| made.members.iter().map(|member| member.node.as_str()).collect())
    }
}

#[test]
fn nodes_that_start_together_form_one_mesh_and_keep_it() {
    let mut world = World::new(&["a", "b", "c"]);
    world.pass(60_000);
    assert_eq!((world.members(), world.made.len()), (vec!["a", "b", "c"], 1));
    assert!(world.made[0].0 <= 4_000, "{}", world.made[0].0);
}

#[test]
fn a_dead_node_is_left_out_and_one_that_comes_back_joins() {
    let mut world = World::new(&["a", "b", "c"]);
    world.pass(20_000);
    // A killed node: its workers are gone, so those of the others end at once.
    world.nodes.get_mut("b").unwrap().silent = true;
    let died_ms = world.now_ms;
    world.end_workers("a", &[]);
    world.end_workers("c", &[]);
    world.pass(20_000);
    assert_eq!((world.members(), world.made.len()), (vec!["a", "c"], 2));
    assert!(world.made[1].0 - died_ms <= 5_000, "{}", world.made[1].0 - died_ms);
    world.start("b");
    world.pass(20_000);
    assert_eq!((world.members(), world.made.len()), (vec!["a", "b", "c"], 3));
}

#[test]
fn a_frozen_node_ends_the_generation_by_its_silence() {
    let mut world = World::new(&["a", "b", "c"]);
    world.pass(20_000);
    world.nodes.get_mut("c").unwrap().silent = true;
    let froze_ms = world.now_ms;
    world.pass(20_000);
    assert_eq!((world.members(), world.made.len()), (vec!["a", "b"], 2));
    assert!(world.made[1].0 - froze_ms <= 8_000, "{}", world.made[1].0 - froze_ms);
    // Thawed, the same run goes on: it is not a member, and joins.
    world.nodes.get_mut("c").unwrap().silent = false;
    world.pass(20_000);
    assert_eq!((world.members(), world.made.len()), (vec!["a", "b", "c"], 3));
}

#[test]
fn a_node_that_others_cannot_reach_is_left_out_for_a_while() {
    let mut world = World::new(&["a", "b", "c"]);
    world.pass(20_000);
    world.end_workers("a", &["c"]);
    world.end_workers("b", &["c"]);
    world.pass(10_000);
    assert_eq!(world.members(), ["a", "b"]);
    world.pass(30_000);
    assert_eq!(world.members(), ["a", "b", "c"], "reached again");
}

#[test]
fn a_restarted_member_is_another_one() {
    let mut world = World::new(&["a", "b"]);
    world.pass(20_000);
    world.start("b");
    world.pass(20_000);
    assert_eq!(world.made.len(), 2);
    assert_eq!(world.made[1].1.members[1].run, 2);
}

#[test]
fn other_numbers_of_workers_are_another_generation() {
    let mut world = World::new(&["a", "b"]);
    world.pass(10_000);
    world.membership.want_workers(3);
    world.pass(10_000);
    assert_eq!((world.made.len(), world.made[1].1.workers), (2, 3));
}

#[test]
fn the_last_word_of_a_dead_node_is_no_sign_of_life() {
    let mut world = World::new(&["a", "b"]);
    world.pass(20_000);
    let current = world.made[0].1.clone();
    // Another node takes over the chain; b died with the old holder, its beat lies in the store.
    world.nodes.get_mut("b").unwrap().silent = true;
    world.membership = Membership::new(LIMITS, Some(current), 1, world.now_ms + 200);
    world.pass(20_000);
    assert_eq!(world.members(), ["a"]);
}

#[test]
fn one_wrong_clock_is_outvoted() {
    let mut world = World::new(&["a", "b", "c"]);
    world.nodes.get_mut("a").unwrap().ahead_ms = 86_400_000;
    world.pass(1_000);
    assert_eq!(world.membership.median_clock(world.now_ms), None, "too early to tell");
    world.pass(4_000);
    let clock = world.membership.median_clock(world.now_ms).unwrap();
    assert!(clock.abs_diff(world.now_ms) <= 1_000, "{clock} at {}", world.now_ms);
    // Of two that disagree the earlier one counts; one that is silent has no vote.
    world.nodes.get_mut("c").unwrap().silent = true;
    world.pass(10_000);
    assert!(world.membership.median_clock(world.now_ms).unwrap().abs_diff(world.now_ms) <= 1_000);
}

#[test]
fn failing_generations_come_slower_and_slower() {
    let mut world = World::new(&["a", "b"]);
    world.pass(10_000);
    for _ in 0..200 {
        world.end_workers("a", &[]);
        world.nodes.get_mut("b").unwrap().workers = Workers::None;
        world.pass(600);
    }
    assert!(world.made.len() <= 20, "{} generations in two minutes", world.made.len());
}
