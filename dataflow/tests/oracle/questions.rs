//! Random questions in SQL, of every kind that standing views support. The same text is asked of Weir, of DataFusion and of PostgreSQL.

use std::sync::Arc;

use arrow::datatypes::{DataType, Schema, SchemaRef};
use weir_plan::SchemaOf;

use super::rows::{Random, SOURCES, schema};

/// A question; where DataFusion's answer is known to be another, the same in words that it gets right.
pub struct Question {
    pub sql: String,
    pub reworded: Option<String>,
    /// PostgreSQL has no such function, or the answer depends on a choice that SQL leaves open.
    pub postgres: bool,
}

/// The sources, as tables.
pub struct Tables;

impl SchemaOf for Tables {
    fn schema_of(&self, relation: &str) -> Option<SchemaRef> {
        SOURCES.contains(&relation).then(|| Arc::new(Schema::new(schema().fields().clone())))
    }

    fn is_table(&self, relation: &str) -> bool {
        SOURCES.contains(&relation)
    }
}

/// The text for a tick: `now()` is a function of it.
pub fn at(sql: &str, now: &str) -> String {
    sql.replace("now()", now)
}

pub fn now_of_datafusion(tick: u64) -> String {
    format!("arrow_cast({}, 'Timestamp(ns, \"UTC\")')", tick * 1_000_000)
}

pub fn now_of_postgres(tick: u64) -> String {
    format!("(timestamptz 'epoch' + interval '{tick} milliseconds')")
}

/// A type as PostgreSQL calls it.
pub fn type_name(data_type: &DataType) -> &'static str {
    match data_type {
        DataType::Int64 => "bigint",
        DataType::Float64 => "double precision",
        DataType::Boolean => "boolean",
        DataType::Timestamp(..) => "timestamptz",
        _ => "text",
    }
}

const PREDICATES: [&str; 8] = [
    "int > 1",
    "flag",
    "NOT flag",
    "text IS NULL",
    "text <> 'a'",
    "float >= 0",
    "int IN (0, 1, 4)",
    "int BETWEEN 0 AND 3 OR flag",
];

const AGGREGATES: [&str; 22] = [
    "count(*)",
    "count(int)",
    "count(DISTINCT text)",
    "sum(int)",
    "min(text)",
    "max(time)",
    "floor(avg(int) * 1000 + 0.3)",
    "floor(stddev(int) * 1000 + 0.3)",
    "floor(stddev_pop(int) * 1000 + 0.3)",
    "floor(var_samp(int) * 1000 + 0.3)",
    "floor(var_pop(int) * 1000 + 0.3)",
    "bool_and(flag)",
    "bool_or(flag)",
    "string_agg(text, ',' ORDER BY text)",
    "string_agg(text, '-' ORDER BY text DESC)",
    "string_agg(DISTINCT text, ',' ORDER BY text)",
    "array_agg(int ORDER BY int)",
    "array_agg(int ORDER BY int DESC)",
    "sum(float)",
    "sum(DISTINCT int)",
    "floor(avg(float) * 1000 + 0.3)",
    "floor(corr(int, float) * 1000 + 0.3)",
];

const WINDOWS: [&str; 16] = [
    "row_number() OVER (PARTITION BY text ORDER BY int, time, float, flag)",
    "rank() OVER (PARTITION BY text ORDER BY int)",
    "dense_rank() OVER (PARTITION BY flag ORDER BY int DESC)",
    "lag(int) OVER (PARTITION BY text ORDER BY time, int, float, flag)",
    "lead(int, 2) OVER (PARTITION BY text ORDER BY time, int, float, flag)",
    "lag(text) OVER (PARTITION BY flag ORDER BY time DESC, int, text, float)",
    "first_value(int) OVER (PARTITION BY text ORDER BY time, int)",
    "last_value(int) OVER (PARTITION BY text ORDER BY time, int)",
    "sum(int) OVER (PARTITION BY text)",
    "sum(int) OVER (PARTITION BY text ORDER BY time, int)",
    "count(*) OVER (PARTITION BY flag ORDER BY int)",
    "min(int) OVER (PARTITION BY text ORDER BY time, int, float, flag ROWS BETWEEN 1 PRECEDING AND 1 FOLLOWING)",
    "sum(int) OVER (ORDER BY time, int, float, flag, text ROWS BETWEEN 2 PRECEDING AND CURRENT ROW)",
    "max(float) OVER (PARTITION BY text ORDER BY int RANGE BETWEEN 1 PRECEDING AND CURRENT ROW)",
    "ntile(3) OVER (PARTITION BY text ORDER BY int, time, float, flag)",
    "floor(percent_rank() OVER (PARTITION BY text ORDER BY int) * 1000 + 0.3)",
];

impl Question {
    fn plain(sql: String) -> Self {
        Self { sql, reworded: None, postgres: true }
    }

    pub fn random(random: &mut Random) -> Self {
        match random.below(12) {
            0 => Self::plain(exists(random)),
            1 => is_in(random),
            2 => Self::plain(scalar(random)),
            3 | 4 => Self::plain(grouped(random)),
            5 => Self::plain(sets(random)),
            6 | 7 => Self::plain(over(random)),
            8 => Self::plain(join(random)),
            9 => set_operation(random),
            10 => Self::plain(timed(random)),
            _ => Self::plain(composed(random)),
        }
    }
}

fn predicate(random: &mut Random) -> &'static str {
    random.pick::<&'static str>(&PREDICATES)
}

/// A predicate whose columns are of this alias.
fn of(alias: &str, random: &mut Random) -> String {
    let mut text = format!(" {} ", predicate(random).replace('(', "( "));
    for column in ["int", "flag", "text", "float"] {
        text = text.replace(&format!(" {column} "), &format!(" {alias}.{column} "));
    }
    text.trim().to_owned()
}

fn matching(random: &mut Random) -> &'static str {
    random.pick::<&'static str>(&[
        "r.text = l.text",
        "r.int = l.int",
        "r.text = l.text AND r.int > l.int",
        "r.int = l.int + 1",
        "r.flag = l.flag AND r.float <> l.float",
    ])
}

fn exists(random: &mut Random) -> String {
    let not = random.pick(&["", "NOT "]);
    let inner = format!("{not}EXISTS (SELECT 1 FROM \"right\" AS r WHERE {} AND {})", matching(random), of("r", random));
    let condition = match random.below(3) {
        0 => inner,
        1 => format!("{} AND {inner}", of("l", random).replace(" OR ", " AND ")),
        _ => format!("l.int > 2 OR {inner}"),
    };
    format!("SELECT l.text, l.int, l.flag FROM \"left\" AS l WHERE {condition}")
}

fn is_in(random: &mut Random) -> Question {
    let not = *random.pick(&["", "NOT "]);
    let filter = match random.below(4) {
        0 => String::new(),
        1 => " WHERE r.int IS NOT NULL".to_owned(),
        2 => format!(" WHERE {}", of("r", random)),
        _ => " WHERE r.text = l.text".to_owned(),
    };
    let condition = format!("l.int {not}IN (SELECT r.int FROM \"right\" AS r{filter})");
    let condition = if not.is_empty() && random.chance(30) { format!("l.flag OR {condition}") } else { condition };
    let question = Question::plain(format!("SELECT l.text, l.int FROM \"left\" AS l WHERE {condition}"));
    if not.is_empty() || !filter.contains("l.text") {
        return question;
    }
    // DataFusion has no NOT IN with a second condition over both sides.
    let reworded = "SELECT l.text, l.int FROM \"left\" AS l WHERE NOT EXISTS (
        SELECT 1 FROM \"right\" AS r WHERE r.text = l.text AND (r.int = l.int) IS NOT FALSE)";
    Question { reworded: Some(reworded.to_owned()), ..question }
}

fn scalar(random: &mut Random) -> String {
    let of_all = random.pick(&["max(r.int)", "min(r.int)", "count(*)", "sum(r.int)"]);
    match random.below(4) {
        0 => format!("SELECT l.text, l.int, (SELECT {of_all} FROM \"right\" AS r WHERE r.text = l.text) AS n FROM \"left\" AS l"),
        1 => format!(
            "SELECT l.text, l.int FROM \"left\" AS l WHERE l.int >= (SELECT {of_all} FROM \"right\" AS r WHERE {})",
            of("r", random)
        ),
        2 => format!(
            "SELECT l.text, l.int FROM \"left\" AS l WHERE l.int < (SELECT {of_all} FROM \"right\" AS r WHERE r.int = l.int)"
        ),
        _ => format!(
            "SELECT l.text, (SELECT {of_all} FROM \"right\" AS r) - l.int AS n FROM \"left\" AS l WHERE {}",
            of("l", random)
        ),
    }
}

fn calls(random: &mut Random) -> String {
    let one = |random: &mut Random, name: usize| {
        let call = *random.pick(&AGGREGATES);
        let plain = !call.starts_with("floor");
        let filter = if plain && random.chance(30) { format!(" FILTER (WHERE {})", predicate(random)) } else { String::new() };
        format!("{call}{filter} AS c{name}")
    };
    (0..=random.below(3) as usize).map(|name| one(random, name)).collect::<Vec<_>>().join(", ")
}

fn grouped(random: &mut Random) -> String {
    let source = *random.pick(&SOURCES);
    let calls = calls(random);
    match random.below(3) {
        0 => format!("SELECT {calls} FROM \"{source}\" WHERE {}", predicate(random)),
        1 => format!("SELECT text, {calls} FROM \"{source}\" GROUP BY text HAVING count(*) > 1"),
        _ => format!("SELECT text, flag, {calls} FROM \"{source}\" GROUP BY text, flag"),
    }
}

fn sets(random: &mut Random) -> String {
    let by = random.pick(&[
        "ROLLUP (text, flag)",
        "CUBE (text, flag)",
        "GROUPING SETS ((text), (flag), ())",
        "GROUPING SETS ((text, flag), (flag))",
    ]);
    let grouping = random.pick(&["", ", grouping(text) AS g", ", grouping(flag) AS g"]);
    format!("SELECT text, flag, {}{grouping} FROM \"left\" GROUP BY {by}", calls(random))
}

fn over(random: &mut Random) -> String {
    // One: which of several equal rows is the first is open, and two functions may differ in it.
    let calls = format!("{} AS w0", random.pick(&WINDOWS));
    let filter = if random.chance(40) { format!(" WHERE {}", predicate(random)) } else { String::new() };
    match random.below(4) {
        0 => format!(
            "SELECT q.text, sum(q.w) AS s FROM (SELECT text, rank() OVER (PARTITION BY text ORDER BY int) AS w FROM \"left\"{filter}) AS q GROUP BY q.text"
        ),
        1 => format!("SELECT * FROM (SELECT text, int, {calls} FROM \"right\"{filter}) AS q WHERE q.w0 IS NOT NULL"),
        _ => format!("SELECT text, int, time, {calls} FROM \"left\"{filter}"),
    }
}

fn join(random: &mut Random) -> String {
    let kind = *random.pick(&["JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"]);
    match random.below(4) {
        0 if kind != "FULL JOIN" => format!(
            "SELECT l.int, r.int AS other, r.text FROM \"left\" AS l {kind} \"right\" AS r ON l.int < r.int AND {}",
            of("r", random).replace(" OR ", " AND ")
        ),
        1 => "SELECT l.text, t.n FROM \"left\" AS l CROSS JOIN (SELECT count(*) AS n FROM \"right\") AS t WHERE l.int < t.n"
            .to_owned(),
        2 => {
            "SELECT DISTINCT ON (l.text) l.text, l.int, l.time FROM \"left\" AS l ORDER BY l.text, l.int DESC, l.time".to_owned()
        }
        _ => format!(
            "SELECT l.text, l.int, r.int AS other, r.flag FROM \"left\" AS l {kind} \"right\" AS r ON l.text = r.text AND l.int <> r.int"
        ),
    }
}

fn set_operation(random: &mut Random) -> Question {
    let side = |random: &mut Random, source: &str| format!("SELECT text, int FROM \"{source}\" WHERE {}", predicate(random));
    let (left, right) = (side(random, "left"), side(random, "right"));
    let op = *random.pick(&["UNION", "UNION ALL", "EXCEPT", "INTERSECT", "EXCEPT ALL", "INTERSECT ALL"]);
    let sql = format!("{left} {op} {right}");
    if !op.starts_with("EXCEPT A") && !op.starts_with("INTERSECT A") {
        return Question::plain(sql);
    }
    // Copies are numbered: the bags differ as the sets of numbered rows do.
    let numbered = |side: &str| {
        format!("SELECT text, int, row_number() OVER (PARTITION BY text, int ORDER BY text) AS copy FROM ({side}) AS q")
    };
    let set = op.replace(" ALL", "");
    let reworded = format!("SELECT text, int FROM ({} {set} {}) AS q", numbered(&left), numbered(&right));
    Question { reworded: Some(reworded), ..Question::plain(sql) }
}

fn timed(random: &mut Random) -> String {
    let condition = random.pick(&[
        "time > now() - interval '1 second'",
        "time >= now() - interval '300 milliseconds'",
        "time <= now()",
        "now() - interval '2 seconds' < time AND time < now()",
        "time BETWEEN now() - interval '1500 milliseconds' AND now()",
        "now() < time + interval '1 second'",
    ]);
    match random.below(3) {
        0 => format!("SELECT text, int, time FROM \"left\" WHERE {condition} AND {}", predicate(random).replace(" OR ", " AND ")),
        1 => format!("SELECT text, count(*) AS n, max(int) AS m FROM \"left\" WHERE {condition} GROUP BY text"),
        _ => format!(
            "SELECT q.text, r.int FROM (SELECT * FROM \"left\" WHERE {condition}) AS q JOIN \"right\" AS r ON q.text = r.text"
        ),
    }
}

fn composed(random: &mut Random) -> String {
    match random.below(4) {
        0 => "WITH g AS (SELECT text, sum(int) AS s FROM \"left\" GROUP BY text) SELECT g.text, g.s FROM g WHERE g.s > (SELECT avg(s) FROM g)".to_owned(),
        1 => format!("SELECT flag, count(*) AS n FROM ({}) AS q GROUP BY flag", exists(random)),
        2 => format!(
            "SELECT l.text, count(*) AS n FROM \"left\" AS l GROUP BY l.text HAVING count(*) >= (SELECT count(*) FROM \"right\" AS r WHERE {})",
            of("r", random)
        ),
        _ => format!(
            "SELECT q.text, rank() OVER (ORDER BY q.n DESC) AS place FROM (SELECT text, count(*) AS n FROM \"left\" WHERE {} GROUP BY text) AS q",
            predicate(random)
        ),
    }
}
