//! Random inputs: rows that come and go, twice, with NULLs, late, and in the same tick.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, DictionaryArray, Float64Array, Int64Array, StringArray, TimestampNanosecondArray,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt32Type};
use arrow::record_batch::RecordBatch;
use arrow::util::display::array_value_to_string;
use weir_plan::{text_type, time_type};

/// SplitMix64: small, seeded, the same everywhere.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<'v, T>(&mut self, from: &'v [T]) -> &'v T {
        &from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }
}

/// A row of a source.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub text: Option<String>,
    pub int: Option<i64>,
    pub time_ms: Option<i64>,
    pub float: Option<f64>,
    pub flag: Option<bool>,
}

/// Columns of every source.
pub const COLUMNS: [&str; 5] = ["text", "int", "time", "float", "flag"];

/// Names of the sources.
pub const SOURCES: [&str; 2] = ["left", "right"];

/// What each source was given in one tick: rows with diffs.
pub type TickRows = BTreeMap<&'static str, Vec<(Row, i64)>>;

/// What every source was given, tick by tick.
pub struct History {
    pub ticks: Vec<(u64, TickRows)>,
}

impl History {
    pub fn random(random: &mut Random) -> Self {
        Self::made(random, 6, |_, _| true)
    }

    /// Longer, and no row is withdrawn later than this after its time.
    pub fn settling(random: &mut Random, settle_ms: i64) -> Self {
        Self::made(random, 16, |row, tick| row.time_ms.is_none_or(|time_ms| tick as i64 <= time_ms + settle_ms))
    }

    fn made(random: &mut Random, length: usize, may_go: impl Fn(&Row, u64) -> bool) -> Self {
        let mut present: BTreeMap<&str, Vec<Row>> = SOURCES.iter().map(|name| (*name, vec![])).collect();
        let mut tick = 1_000;
        let mut ticks = vec![];
        for _ in 0..length {
            let changes = SOURCES.iter().map(|name| {
                let present = present.get_mut(name).unwrap();
                (*name, changes(random, present, |row| may_go(row, tick)))
            });
            let changes = changes.collect();
            ticks.push((tick, changes));
            tick += 1 + random.below(600);
        }
        Self { ticks }
    }

    /// All rows of a source that are there at a tick, copies repeated.
    pub fn present(&self, source: &str, tick: u64) -> Vec<Row> {
        let mut rows: Vec<Row> = vec![];
        for (_, changes) in self.ticks.iter().filter(|(at, _)| *at <= tick) {
            for (row, diff) in &changes[source] {
                for _ in 0..diff.abs() {
                    if *diff > 0 {
                        rows.push(row.clone());
                    } else {
                        let at = rows.iter().position(|other| other == row).expect("only what is there is withdrawn");
                        rows.swap_remove(at);
                    }
                }
            }
        }
        rows
    }
}

fn changes(random: &mut Random, present: &mut Vec<Row>, may_go: impl Fn(&Row) -> bool) -> Vec<(Row, i64)> {
    let mut changes = vec![];
    for _ in 0..random.below(12) {
        let row = row(random);
        let copies = if random.chance(20) { 2 } else { 1 };
        present.extend(vec![row.clone(); copies]);
        changes.push((row, copies as i64));
    }
    for _ in 0..random.below(8) {
        if present.is_empty() {
            break;
        }
        let at = usize::try_from(random.below(present.len() as u64)).unwrap();
        if may_go(&present[at]) {
            changes.push((present.swap_remove(at), -1));
        }
    }
    changes
}

fn row(random: &mut Random) -> Row {
    Row {
        text: maybe(random, |random| (*random.pick(&["a", "b", "cc", "", "é"])).to_owned()),
        int: maybe(random, |random| random.below(8) as i64 - 2),
        time_ms: maybe(random, |random| 500 + random.below(4_000) as i64),
        float: maybe(random, |random| [-1.5, 0.0, 0.25, 1e9, 7.0][random.below(5) as usize]),
        flag: maybe(random, |random| random.chance(50)),
    }
}

fn maybe<T>(random: &mut Random, value: impl FnOnce(&mut Random) -> T) -> Option<T> {
    (!random.chance(15)).then(|| value(random))
}

pub fn schema() -> SchemaRef {
    let types = [text_type(), DataType::Int64, time_type(), DataType::Float64, DataType::Boolean];
    Arc::new(Schema::new(COLUMNS.iter().zip(types).map(|(name, ty)| Field::new(*name, ty, true)).collect::<Vec<_>>()))
}

/// Rows as a batch. The dictionary holds more than the rows need, unsorted, some of it twice.
pub fn batch(rows: &[Row]) -> RecordBatch {
    const WORDS: [&str; 8] = ["zz", "b", "a", "cc", "b", "", "é", "unused"];
    let code = |text: &Option<String>| text.as_ref().map(|text| WORDS.iter().rposition(|word| word == text).unwrap() as u32);
    let codes = rows.iter().map(|row| code(&row.text)).collect::<Vec<_>>();
    let text = DictionaryArray::<UInt32Type>::new(codes.into(), Arc::new(StringArray::from(WORDS.to_vec())));
    let nanos = rows.iter().map(|row| row.time_ms.map(|ms| ms * 1_000_000));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(text),
        Arc::new(rows.iter().map(|row| row.int).collect::<Int64Array>()),
        Arc::new(nanos.collect::<TimestampNanosecondArray>().with_timezone("UTC")),
        Arc::new(rows.iter().map(|row| row.float).collect::<Float64Array>()),
        Arc::new(rows.iter().map(|row| row.flag).collect::<BooleanArray>()),
    ];
    RecordBatch::try_new(schema(), columns).unwrap()
}

/// Rows of an answer as text, so that both sides compare whatever their string and time types.
pub fn lines(rows: &RecordBatch) -> Vec<String> {
    let plain = |column: &ArrayRef| match column.data_type() {
        DataType::Timestamp(..) => cast(column, &DataType::Int64).unwrap(),
        DataType::Dictionary(..) | DataType::Utf8View => cast(column, &DataType::Utf8).unwrap(),
        _ => Arc::clone(column),
    };
    let columns: Vec<_> = rows.columns().iter().map(plain).collect();
    let cell = |column: &ArrayRef, row| match column.is_null(row) {
        true => "NULL".to_owned(),
        false => format!("'{}'", array_value_to_string(column, row).unwrap()),
    };
    (0..rows.num_rows()).map(|row| columns.iter().map(|column| cell(column, row)).collect::<Vec<_>>().join(" ")).collect()
}

/// A multiset of rows.
pub type Bag = BTreeMap<String, i64>;

pub fn add(bag: &mut Bag, line: String, diff: i64) {
    let count = bag.entry(line.clone()).or_default();
    *count += diff;
    if *count == 0 {
        bag.remove(&line);
    }
}
