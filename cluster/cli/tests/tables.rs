//! Tables that people write, over the SQL port of a cluster of two nodes: against a plain list, with a view over them, on both nodes, after a
//! restart, and what is refused.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use tokio_postgres::{Client, NoTls, SimpleQueryMessage};
use weir_loadtest::local::setup::Setup;
use weir_loadtest::local::{LocalCluster, on_free_ports};

const WEIR: &str = env!("CARGO_BIN_EXE_weir");
const SEED: u64 = 17;

async fn connect(cluster: &LocalCluster, node: usize) -> Client {
    let port = cluster.addresses[node].sql.port();
    let config = format!("host=127.0.0.1 port={port} user=weir dbname=weir");
    let (client, connection) = tokio_postgres::connect(&config, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

fn told(failed: &tokio_postgres::Error) -> String {
    let told = failed.as_db_error().unwrap_or_else(|| panic!("{failed}"));
    format!("{} {}", told.code().code(), told.message())
}

/// Rows, or how many were changed, or the error.
async fn ask(client: &Client, sql: &str) -> String {
    let messages = match client.simple_query(sql).await {
        Ok(messages) => messages,
        Err(failed) => return told(&failed),
    };
    let row = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|column| row.get(column).unwrap_or("NULL").to_owned()).collect::<Vec<_>>().join("|"))
        }
        SimpleQueryMessage::CommandComplete(rows) if !sql.starts_with("SELECT") && !sql.starts_with("SHOW") => {
            Some(rows.to_string())
        }
        _ => None,
    };
    messages.iter().filter_map(row).collect::<Vec<_>>().join("\n")
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

type List = BTreeMap<i64, (String, i64)>;

/// A statement at random, what it does to the list, and what is told of it.
fn step(random: &mut Random, list: &mut List) -> (String, String) {
    let (id, team, level) = (random.below(12) as i64, format!("team-{}", random.below(3)), random.below(5) as i64);
    match random.below(8) {
        0..=2 => {
            let sql = format!("INSERT INTO owners VALUES ({id}, '{team}', {level})");
            if list.contains_key(&id) {
                return (sql, "23505".to_owned());
            }
            list.insert(id, (team, level));
            (sql, "1".to_owned())
        }
        3 => {
            let fresh: Vec<i64> =
                (0..3).map(|n| 100 + n + 3 * random.below(1000) as i64).filter(|id| !list.contains_key(id)).collect();
            let rows: Vec<String> = fresh.iter().map(|id| format!("({level}, {id}, '{team}')")).collect();
            fresh.iter().for_each(|id| drop(list.insert(*id, (team.clone(), level))));
            (format!("INSERT INTO owners (level, id, team) VALUES {}", rows.join(", ")), fresh.len().to_string())
        }
        4 => {
            let mut changed = 0;
            for row in list.values_mut().filter(|row| row.0 == team) {
                row.1 += 1;
                changed += 1;
            }
            (format!("UPDATE owners SET level = level + 1 WHERE team = '{team}'"), changed.to_string())
        }
        5 => {
            // All ids move by one: each is another's old one.
            let moved = list.iter().map(|(id, row)| (id + 1, row.clone())).collect();
            *list = moved;
            ("UPDATE owners SET id = id + 1".to_owned(), list.len().to_string())
        }
        6 => {
            let before = list.len();
            list.retain(|_, row| row.1 != level);
            let sql = format!("DELETE FROM owners WHERE level IN (SELECT level FROM levels WHERE level = {level})");
            (sql, (before - list.len()).to_string())
        }
        _ => {
            let before = list.len();
            list.retain(|found, _| *found != id);
            (format!("DELETE FROM owners WHERE id = {id}"), (before - list.len()).to_string())
        }
    }
}

const JOIN: &str =
    "SELECT o.team, l.name, count(*) AS n FROM owners AS o JOIN levels AS l ON o.level = l.level GROUP BY o.team, l.name";

async fn check(client: &Client, list: &List, what: &str) {
    let expected: Vec<String> = list.iter().map(|(id, (team, level))| format!("{id}|{team}|{level}")).collect();
    assert_eq!(ask(client, "SELECT * FROM owners ORDER BY id").await, expected.join("\n"), "{what}");
    let mut counts: BTreeMap<(String, i64), u64> = BTreeMap::new();
    list.values().filter(|row| row.1 < 5).for_each(|row| *counts.entry(row.clone()).or_default() += 1);
    let expected: Vec<String> = counts.iter().map(|((team, level), n)| format!("{team}|level {level}|{n}")).collect();
    assert_eq!(ask(client, "SELECT * FROM by_level ORDER BY team, name").await, expected.join("\n"), "{what}");
    assert_eq!(ask(client, &format!("SELECT * FROM ({JOIN}) AS x ORDER BY team, name")).await, expected.join("\n"), "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_are_written_read_and_kept() {
    println!("seed {SEED}");
    let scratch = tempfile::tempdir().unwrap();
    let setup = Setup::write(&on_free_ports(2, 1), scratch.path()).unwrap();
    for config in &setup.node_configs {
        let mut file = std::fs::OpenOptions::new().append(true).open(config).unwrap();
        let query = "[query]\ntables_max = 4\ntable_bytes_max = 20000\nwrite_rows_max = 200";
        writeln!(file, "[checkpoint]\nevery_ms = 1500\n{query}").unwrap();
    }
    let cluster = LocalCluster::start(Path::new(WEIR), &setup).await.unwrap();
    let (one, two) = (connect(&cluster, 0).await, connect(&cluster, 1).await);
    let owners = "CREATE TABLE owners (id bigint PRIMARY KEY, team text NOT NULL, level int)";
    assert_eq!(ask(&one, owners).await, "0");
    assert_eq!(ask(&one, "CREATE TABLE levels (level int, name varchar)").await, "0");
    assert_eq!(ask(&one, &format!("CREATE MATERIALIZED VIEW by_level AS {JOIN}")).await, "0");
    assert_eq!(
        ask(&one, "INSERT INTO levels SELECT level, 'level ' || level FROM (VALUES (0), (1), (2), (3), (4)) AS v (level)").await,
        "5"
    );
    let (mut random, mut list) = (Random(SEED), List::new());
    for number in 0..30 {
        let before = list.clone();
        let (sql, expected) = step(&mut random, &mut list);
        let told = ask(&one, &sql).await;
        if expected == "23505" {
            assert!(told.starts_with("23505 duplicate key value"), "{sql}: {told}");
            assert_eq!(before, list);
        } else {
            assert_eq!(told, expected, "{number}: {sql}");
        }
        // What was written is read at once, by the same node.
        check(&one, &list, &sql).await;
    }
    types(&one).await;
    wrong_statements(&one).await;
    check(&one, &list, "what was refused changed nothing").await;
    race(&one, &two).await;
    // With the other node, with parameters, with a subscription.
    let tick: u64 = ask(&two, "SHOW weir.tick").await.parse().unwrap();
    let insert = two.prepare("INSERT INTO owners (id, team, level) VALUES ($1, $2, $3)").await.unwrap();
    assert_eq!(two.execute(&insert, &[&5_000_i64, &"team-9", &1_i32]).await.unwrap(), 1);
    assert_eq!(told(&two.execute(&insert, &[&5_000_i64, &"team-9", &1_i32]).await.unwrap_err())[..5], *"23505");
    let update = two.prepare("UPDATE owners SET level = $1 WHERE id = $2").await.unwrap();
    assert_eq!(two.execute(&update, &[&2_i32, &5_000_i64]).await.unwrap(), 1);
    list.insert(5_000, ("team-9".to_owned(), 2));
    check(&two, &list, "by parameters").await;
    let upto: u64 = ask(&two, "SHOW weir.tick").await.parse().unwrap();
    let changes = ask(&two, &format!("SUBSCRIBE TO owners WITH (SNAPSHOT = false) AS OF {tick} UP TO {}", upto + 1)).await;
    let changes: Vec<&str> = changes.lines().filter_map(|line| Some(line.split_once('|')?.1)).collect();
    assert_eq!(changes[0], "1|5000|team-9|1");
    assert_eq!(
        {
            let mut rest = changes[1..].to_vec();
            rest.sort_unstable();
            rest
        },
        ["-1|5000|team-9|1", "1|5000|team-9|2"]
    );
    let tables = ask(&two, "SHOW TABLES").await;
    assert!(tables.lines().any(|line| line == "owners|table") && !ask(&two, "SHOW VIEWS").await.contains("owners"), "{tables}");
    assert!(ask(&two, "SHOW CREATE TABLE owners").await.contains("PRIMARY KEY (\"id\")"));
    let shown = "SELECT table_type FROM information_schema.tables WHERE table_name = 'owners'";
    assert_eq!(ask(&two, shown).await, "BASE TABLE");
    // A checkpoint with the tables in it, and then everything anew.
    tokio::time::sleep(Duration::from_secs(4)).await;
    drop((one, two));
    cluster.stop().await;
    let cluster = LocalCluster::start(Path::new(WEIR), &setup).await.unwrap();
    let (one, two) = (connect(&cluster, 0).await, connect(&cluster, 1).await);
    let logs = std::fs::read_dir(setup.logs()).unwrap().map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap());
    assert!(logs.into_iter().any(|log| log.contains("begins from a checkpoint")), "nobody began from a checkpoint");
    check(&two, &list, "after a restart").await;
    check(&one, &list, "after a restart").await;
    assert_eq!(ask(&one, "INSERT INTO owners VALUES (1, 'x', 1), (5000, 'x', 1)").await[..5], *"23505");
    assert!(ask(&one, "DROP TABLE owners").await.starts_with("2BP01 cannot drop table \"owners\" because view \"by_level\""));
    assert_eq!(ask(&one, "TRUNCATE owners").await, "0");
    check(&one, &List::new(), "truncated").await;
    assert_eq!(ask(&one, "DROP TABLE owners CASCADE").await, "0");
    assert!(ask(&one, "SELECT * FROM by_level").await.starts_with("42P01"));
    assert_eq!(ask(&one, "CREATE TABLE owners (other text)").await, "0");
    assert_eq!(ask(&one, "SELECT count(*) FROM owners").await, "0");
    cluster.stop().await;
}

async fn types(client: &Client) {
    let sql =
        "CREATE TABLE typed (a bool, b int2, c int4, d int8, e float4, f float8, g text, h date, i timestamp, j timestamptz)";
    assert_eq!(ask(client, sql).await, "0");
    let values = "true, 1.5, '-2', 3, 0.25, 0.5, 'it''s', '2026-02-03', '2026-02-03 04:05:06', '2026-02-03T04:05:06+02:00'";
    assert_eq!(ask(client, &format!("INSERT INTO typed VALUES ({values})")).await, "1");
    assert_eq!(ask(client, "INSERT INTO typed (g) VALUES (NULL)").await, "1");
    let row = "t|2|-2|3|0.25|0.5|it's|2026-02-03|2026-02-03 04:05:06|2026-02-03 02:05:06+00";
    assert_eq!(ask(client, "SELECT * FROM typed WHERE a").await, row);
    assert_eq!(ask(client, "SELECT * FROM typed WHERE a IS NULL").await, ["NULL"; 10].join("|"));
    // The same row many times over: one DELETE takes them all.
    assert_eq!(ask(client, "INSERT INTO typed SELECT * FROM typed").await, "2");
    assert_eq!(ask(client, "UPDATE typed SET c = 7.5, d = c WHERE a").await, "2");
    assert_eq!(ask(client, "SELECT DISTINCT c, d FROM typed WHERE a").await, "8|-2");
    assert_eq!(ask(client, "DELETE FROM typed").await, "4");
    assert_eq!(ask(client, "DROP TABLE typed").await, "0");
}

async fn wrong_statements(client: &Client) {
    let many: Vec<String> = (0..201).map(|number| format!("({number})")).collect();
    let long = format!("INSERT INTO levels VALUES (1, '{}')", "x".repeat(25_000));
    for (sql, expected) in [
        ("CREATE TABLE owners (a int)", "42P07 relation \"owners\" already exists"),
        ("CREATE TABLE hosts (a int)", "42P07"),
        ("CREATE TABLE IF NOT EXISTS owners (a int)", "0"),
        ("CREATE TABLE t (a money)", "0A000 type money of column"),
        ("CREATE TABLE t (a int DEFAULT 3)", "0A000 DEFAULT"),
        ("CREATE TABLE t (a int, a int)", "42"),
        ("INSERT INTO hosts (host) VALUES ('x')", "42809 cannot change \"hosts\""),
        ("INSERT INTO nowhere VALUES (1)", "42P01"),
        ("INSERT INTO by_level VALUES ('a', 'b', 1)", "42809"),
        ("INSERT INTO owners VALUES (1)", "42601"),
        ("INSERT INTO owners (id, nothing) VALUES (1, 2)", "42703"),
        ("INSERT INTO owners (team) VALUES ('x')", "23502 null value in column \"id\""),
        ("INSERT INTO owners (id) VALUES (77777)", "23502 null value in column \"team\""),
        ("INSERT INTO owners VALUES (77777, 'x', 3000000000)", "22003"),
        ("INSERT INTO owners VALUES (77777, 'x', 'abc')", "22P02"),
        ("INSERT INTO owners VALUES (77777, 'x', 1), (77777, 'y', 1)", "23505"),
        ("INSERT INTO owners VALUES (77777, 'x', 1) ON CONFLICT DO NOTHING", "0A000 ON CONFLICT"),
        ("INSERT INTO owners VALUES (77777, 'x', 1) RETURNING id", "0A000 RETURNING"),
        ("UPDATE owners SET nothing = 1", "42703"),
        ("UPDATE owners SET level = 1, level = 2", "42601 multiple assignments"),
        ("UPDATE owners SET level = 1 / 0 WHERE id = (SELECT max(id) FROM owners)", "22012"),
        ("UPDATE owners SET team = NULL", "23502"),
        ("UPDATE owners SET level = l.level FROM levels AS l", "0A000 UPDATE … FROM"),
        ("DELETE FROM owners USING levels WHERE levels.level = owners.level", "0A000 DELETE … USING"),
        ("DELETE FROM hosts", "42809"),
        ("DELETE FROM owners WHERE nothing = 1", "42703"),
        ("TRUNCATE hosts", "42809"),
        ("TRUNCATE nowhere", "42P01"),
        ("DROP TABLE by_level", "42809 \"by_level\" is not a table"),
        ("DROP VIEW owners", "42809 \"owners\" is not a view"),
        ("DROP TABLE nowhere", "42P01 table \"nowhere\" does not exist"),
        ("DROP TABLE IF EXISTS nowhere", "0"),
        ("DROP TABLE hosts", "0A000"),
        (&long, "54000 table \"levels\" would hold more than 20000 bytes"),
        (&format!("INSERT INTO levels (level) VALUES {}", many.join(", ")), "54000 the statement changes 201 rows"),
        ("BEGIN; INSERT INTO owners VALUES (77777, 'x', 1)", "25001"),
        ("ROLLBACK", "0"),
    ] {
        let told = ask(client, sql).await;
        assert!(told.starts_with(expected), "{sql}: {told}");
    }
    for name in ["x", "y"] {
        assert_eq!(ask(client, &format!("CREATE TABLE {name} (a int)")).await, "0");
    }
    assert!(ask(client, "CREATE TABLE z (a int)").await.starts_with("54000 there are 4 tables already"));
    assert_eq!(ask(client, "DROP TABLE x, y").await, "0");
}

/// Two nodes take the same key at once: one of them has it.
async fn race(one: &Client, two: &Client) {
    assert_eq!(ask(one, "CREATE TABLE raced (id int PRIMARY KEY, n int)").await, "0");
    assert_eq!(ask(one, "INSERT INTO raced VALUES (0, 0)").await, "1");
    for id in 1..4 {
        let insert = format!("INSERT INTO raced VALUES ({id}, {id})");
        let (left, right) = tokio::join!(ask(one, &insert), ask(two, &insert));
        let done = [&left, &right].iter().filter(|told| **told == "1").count();
        let refused = [&left, &right].iter().filter(|told| told.starts_with("23505")).count();
        assert_eq!((done, refused), (1, 1), "{left}; {right}");
    }
    for _ in 0..3 {
        let add = "UPDATE raced SET n = n + 1 WHERE id = 0";
        assert_eq!(tokio::join!(ask(one, add), ask(two, add)), ("1".to_owned(), "1".to_owned()));
    }
    assert_eq!(ask(one, "SELECT n FROM raced WHERE id = 0").await, "6", "no change was lost");
    assert_eq!(ask(one, "DROP TABLE raced").await, "0");
}
