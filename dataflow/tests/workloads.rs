//! TPC-H and Nexmark as maintained views: their questions over small random tables whose rows come and go, at every tick against
//! DataFusion over the rows that are there. What is refused is refused by name; the run ends with a table of both.
//!
//! `WEIR_ORACLE_CASES` asks for more histories, `WEIR_ORACLE_SEED` for another start. A failure names its seed and question.

#![allow(clippy::unwrap_used, unreachable_pub, dead_code, reason = "a test that cannot go on fails; its modules are its own")]

#[path = "oracle/rows.rs"]
mod rows;
mod workloads {
    pub mod both;
    pub mod question;
    pub mod tables;
}

use workloads::both::{Tables, maintained, recomputed};
use workloads::question::{Question, questions};
use workloads::tables::{History, NEXMARK, TPCH, Table};

#[test]
fn tpch() {
    check("TPC-H", TPCH, &questions(include_str!("workloads/tpch.sql")));
}

#[test]
fn nexmark() {
    check("Nexmark", NEXMARK, &questions(include_str!("workloads/nexmark.sql")));
}

fn check(workload: &str, tables: &'static [Table], questions: &[Question]) {
    let setting = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let first = setting("WEIR_ORACLE_SEED").unwrap_or(1);
    let seeds = first..first + setting("WEIR_ORACLE_CASES").unwrap_or(2);
    let mut report = format!("{workload}: question, rows of the last answer by seed\n");
    for question in questions {
        let mut told = vec![];
        for seed in seeds.clone() {
            told.push(check_one(question, tables, seed));
        }
        report.push_str(&format!("  {:<4} {}\n", question.name, told.join("  ")));
    }
    eprintln!("{report}");
}

/// Holds for every tick of one history. What became of it, for people.
fn check_one(question: &Question, tables: &'static [Table], seed: u64) -> String {
    let plan = match (weir_plan::compile(&question.sql, &Tables(tables)), &question.refused) {
        (Ok(plan), None) => plan,
        (Err(error), Some(name)) => {
            assert!(error.to_string().to_lowercase().contains(name.as_str()), "{}: {error}", question.name);
            return format!("refused: {error}");
        }
        (Ok(plan), Some(name)) => panic!("{} is to be refused for {name:?}, and is not:\n{plan}", question.name),
        (Err(error), None) => panic!("{}: {error}", question.name),
    };
    let history = History::random(tables, seed);
    let answers = maintained(&plan, tables, &history);
    let expected = recomputed(question.reference.as_ref().unwrap_or(&question.sql), tables, &history);
    for (tick, (answer, expected)) in answers.iter().zip(&expected).enumerate() {
        assert_eq!(answer, expected, "seed {seed}, tick {tick}, {}:\n{}\n{plan}", question.name, question.sql);
    }
    expected.last().unwrap().values().sum::<i64>().to_string()
}
