//! Every operator against DataFusion: after each tick, what an operator has put out must be what DataFusion computes from
//! the same rows, all at once. Plans and inputs are random; each runs with 1, 2 and 3 workers and with different batches.
//!
//! `WEIR_ORACLE_CASES` asks for more cases, `WEIR_ORACLE_SEED` for another start. A failure names its seed.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test that cannot go on fails; its modules are its own")]

mod oracle {
    pub mod engine;
    pub mod plans;
    pub mod postgres;
    pub mod questions;
    pub mod reference;
    pub mod rows;
}

use oracle::engine;
use oracle::plans::{self, Operator};
use oracle::postgres::Postgres;
use oracle::questions::{Question, Tables};
use oracle::reference;
use oracle::rows::{History, Random};
use weir_plan::Plan;

#[test]
fn filter() {
    check(Operator::Filter);
}

#[test]
fn project() {
    check(Operator::Project);
}

#[test]
fn aggregate() {
    check(Operator::Aggregate);
}

#[test]
fn join() {
    check(Operator::Join);
}

#[test]
fn temporal() {
    check(Operator::Temporal);
}

#[test]
fn windows() {
    check(Operator::Windows);
}

#[test]
fn top_k() {
    check(Operator::TopK);
}

#[test]
fn union() {
    check(Operator::Union);
}

#[test]
fn composed() {
    for seed in seeds(8) {
        let mut random = Random::new(seed);
        let plan = plans::composed(&mut random, 3);
        check_plan(seed, &plan, &mut random);
    }
}

/// Questions in SQL, at every tick against DataFusion and PostgreSQL.
#[test]
fn questions() {
    let postgres = Postgres::start("questions");
    let mut steps = 0;
    for seed in seeds(QUESTIONS) {
        let mut random = Random::new(seed);
        let (question, history) = (Question::random(&mut random), History::random(&mut random));
        eprintln!("seed {seed}: {}", question.sql);
        let plan =
            weir_plan::compile(&question.sql, &Tables).unwrap_or_else(|error| panic!("seed {seed}, {}: {error}", question.sql));
        let expected = reference::told(question.reworded.as_ref().unwrap_or(&question.sql), &history);
        let schema = plan.schema(&Tables).unwrap();
        let third =
            postgres.as_ref().filter(|_| question.postgres).map(|postgres| postgres.answers(&question.sql, &schema, &history));
        let workers = 1 + usize::try_from(seed % 3).unwrap();
        let answers = engine::answers(&plan, &history, workers, &mut random);
        for (place, (tick, expected)) in expected.iter().enumerate() {
            let place_of = || format!("seed {seed}, {workers} workers, tick {tick}: {}\n{plan}", question.sql);
            if let Some(third) = &third {
                assert_eq!(&answers[tick], &third[place], "not as PostgreSQL: {}", place_of());
            }
            assert_eq!(&answers[tick], expected, "not as DataFusion: {}", place_of());
            steps += 1;
        }
    }
    eprintln!("{steps} steps of questions, PostgreSQL: {}", postgres.is_some());
}

/// Six ticks each: at least 500 steps.
const QUESTIONS: u64 = 90;

/// Windows are made from panes.
#[test]
fn windows_that_add_up() {
    for seed in seeds(4) {
        let mut random = Random::new(seed);
        let plan = plans::adding_up(&mut random);
        check_plan(seed, &plan, &mut random);
    }
}

/// State that is bounded must not change an answer: values that have settled are folded, groups that are forgotten have left.
#[test]
fn bounded_state() {
    for seed in seeds(2) {
        let mut random = Random::new(seed);
        let history = History::settling(&mut random, plans::SETTLE_MS);
        for plan in [plans::settling(&mut random), plans::forgetting(&mut random)] {
            check_history(seed, &plan, &history, &mut random);
        }
    }
}

/// The operator alone, over sources.
fn check(operator: Operator) {
    for seed in seeds(4) {
        let mut random = Random::new(seed);
        let plan = plans::alone(&mut random, operator);
        check_plan(seed, &plan, &mut random);
    }
}

fn check_plan(seed: u64, plan: &Plan, random: &mut Random) {
    let history = History::random(random);
    check_history(seed, plan, &history, random);
}

fn check_history(seed: u64, plan: &Plan, history: &History, random: &mut Random) {
    eprintln!("seed {seed}\n{plan}");
    let expected = reference::answers(plan, history);
    for workers in 1..=3 {
        let answers = engine::answers(plan, history, workers, random);
        for (tick, expected) in &expected {
            let answer = &answers[tick];
            assert_eq!(answer, expected, "seed {seed}, {workers} workers, tick {tick}\n{plan}");
        }
    }
}

fn seeds(default: u64) -> impl Iterator<Item = u64> {
    let setting = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let first = setting("WEIR_ORACLE_SEED").unwrap_or(1);
    first..first + setting("WEIR_ORACLE_CASES").unwrap_or(default)
}
