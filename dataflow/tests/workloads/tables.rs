//! Random tables of a workload: few distinct values, so that questions find something; NULLs; rows that come and go.

use std::sync::Arc;

use arrow::array::{ArrayRef, Date32Array, Decimal128Array, Int64Array, StringArray, TimestampNanosecondArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use weir_plan::{text_type, time_type};

use crate::rows::Random;

/// A table and how many rows it begins with.
pub struct Table {
    pub name: &'static str,
    rows: usize,
    columns: &'static [(&'static str, Kind)],
}

/// What a column holds.
#[derive(Clone, Copy)]
enum Kind {
    /// 0, 1, 2 … in the order of the rows.
    Serial,
    /// A number from 0 up to this.
    Below(u64),
    /// DECIMAL(15, 2), cents.
    Money(i64, i64),
    /// A day of 1992 to 1998.
    Day,
    /// A time of the first minute of a day.
    Time,
    /// One of these.
    Word(&'static [&'static str]),
}

use Kind::{Below, Day, Money, Serial, Time, Word};

/// A value; days, cents, and milliseconds are whole numbers.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Null,
    Whole(i64),
    Text(&'static str),
}

pub type Row = Vec<Value>;

/// Rows with diffs, by table, tick by tick.
pub struct History {
    pub ticks: Vec<Vec<Vec<(Row, i64)>>>,
}

impl Table {
    pub fn schema(&self) -> SchemaRef {
        let field = |(name, kind): &(&str, Kind)| {
            let data_type = match kind {
                Serial | Below(_) => DataType::Int64,
                Money(..) => DataType::Decimal128(15, 2),
                Day => DataType::Date32,
                Time => time_type(),
                Word(_) => text_type(),
            };
            Field::new(*name, data_type, true)
        };
        Arc::new(Schema::new(self.columns.iter().map(field).collect::<Vec<_>>()))
    }

    pub fn batch<'r>(&self, rows: impl Iterator<Item = &'r Row> + Clone) -> RecordBatch {
        let column = |place: usize| -> ArrayRef {
            let whole = rows.clone().map(|row| match row[place] {
                Value::Whole(whole) => Some(whole),
                _ => None,
            });
            match self.columns[place].1 {
                Serial | Below(_) => Arc::new(whole.collect::<Int64Array>()),
                Money(..) => {
                    let cents = whole.map(|cents| cents.map(i128::from)).collect::<Decimal128Array>();
                    Arc::new(cents.with_precision_and_scale(15, 2).unwrap())
                }
                Day => Arc::new(whole.map(|day| day.map(|day| i32::try_from(day).unwrap())).collect::<Date32Array>()),
                Time => {
                    let nanos = whole.map(|ms| ms.map(|ms| ms * 1_000_000));
                    Arc::new(nanos.collect::<TimestampNanosecondArray>().with_timezone("UTC"))
                }
                Word(_) => {
                    let texts = rows.clone().map(|row| match row[place] {
                        Value::Text(text) => Some(text),
                        _ => None,
                    });
                    cast(&texts.collect::<StringArray>(), &text_type()).unwrap()
                }
            }
        };
        RecordBatch::try_new(self.schema(), (0..self.columns.len()).map(column).collect()).unwrap()
    }

    fn row(&self, serial: i64, random: &mut Random) -> Row {
        let value = |kind: Kind, random: &mut Random| match kind {
            Serial => Value::Whole(serial),
            _ if random.below(100) < 2 => Value::Null,
            Below(bound) => Value::Whole(random.below(bound).cast_signed()),
            Money(least, most) => Value::Whole(least + random.below((most - least + 1).unsigned_abs()).cast_signed()),
            Day => Value::Whole(8_580 + random.below(1_240).cast_signed()),
            Time => Value::Whole(1_700_000_000_000 + random.below(60_000).cast_signed()),
            Word(words) => Value::Text(random.pick::<&'static str>(words)),
        };
        self.columns.iter().map(|(_, kind)| value(*kind, random)).collect()
    }
}

impl History {
    /// Everything of a history comes from its seed.
    pub fn random(tables: &[Table], seed: u64) -> Self {
        let random = &mut Random::new(seed);
        let mut present: Vec<Vec<Row>> = tables.iter().map(|_| vec![]).collect();
        let mut serials = vec![0; tables.len()];
        let ticks = (0..5).map(|tick| {
            let one = |(place, table): (usize, &Table), random: &mut Random| {
                let present: &mut Vec<Row> = &mut present[place];
                let mut changes = vec![];
                let come = if tick == 0 { table.rows } else { usize::try_from(random.below(1 + table.rows as u64 / 8)).unwrap() };
                let go = if tick == 0 { 0 } else { usize::try_from(random.below(2 + table.rows as u64 / 8)).unwrap() };
                for _ in 0..come {
                    let row = table.row(serials[place], random);
                    serials[place] += 1;
                    present.push(row.clone());
                    changes.push((row, 1));
                }
                for _ in 0..go.min(present.len()) {
                    let at = usize::try_from(random.below(present.len() as u64)).unwrap();
                    changes.push((present.swap_remove(at), -1));
                }
                changes
            };
            let mut one = one;
            tables.iter().enumerate().map(|table| one(table, random)).collect()
        });
        Self { ticks: ticks.collect() }
    }

    /// The rows of a table that are there after a tick.
    pub fn present(&self, table: usize, tick: usize) -> Vec<Row> {
        let mut rows: Vec<Row> = vec![];
        for (row, diff) in self.ticks[..=tick].iter().flat_map(|tables| &tables[table]) {
            if *diff > 0 {
                rows.push(row.clone());
            } else {
                let at = rows.iter().position(|other| other == row).expect("only what is there goes");
                rows.swap_remove(at);
            }
        }
        rows
    }
}

const NATIONS: &[&str] = &["FRANCE", "GERMANY", "BRAZIL", "CANADA", "SAUDI ARABIA"];
const TYPES: &[&str] = &["ECONOMY ANODIZED STEEL", "PROMO BURNISHED BRASS", "MEDIUM POLISHED TIN", "LARGE BRUSHED BRASS"];
const BRANDS: &[&str] = &["Brand#12", "Brand#23", "Brand#34", "Brand#45"];
const CONTAINERS: &[&str] = &["SM BOX", "MED BOX", "MED BAG", "LG CASE", "JUMBO JAR"];
const PHONES: &[&str] = &["13-100-200-3000", "31-100-200-3000", "23-100-200-3001", "99-100-200-3000", "17-5"];
const NOTES: &[&str] = &["carefully", "special packages requests", "Customer slow Complaints", ""];
const NAMES: &[&str] = &["ann", "bob", "eve", "ida"];
const MODES: &[&str] = &["MAIL", "SHIP", "AIR", "AIR REG", "RAIL"];
const PRIORITIES: &[&str] = &["1-URGENT", "2-HIGH", "5-LOW"];

/// The eight tables of TPC-H.
pub const TPCH: &[Table] = &[
    Table {
        name: "region",
        rows: 5,
        columns: &[("r_regionkey", Serial), ("r_name", Word(&["EUROPE", "ASIA", "AMERICA"])), ("r_comment", Word(NOTES))],
    },
    Table {
        name: "nation",
        rows: 12,
        columns: &[("n_nationkey", Serial), ("n_name", Word(NATIONS)), ("n_regionkey", Below(3)), ("n_comment", Word(NOTES))],
    },
    Table {
        name: "supplier",
        rows: 16,
        columns: &[
            ("s_suppkey", Serial),
            ("s_name", Word(NAMES)),
            ("s_address", Word(NAMES)),
            ("s_nationkey", Below(6)),
            ("s_phone", Word(PHONES)),
            ("s_acctbal", Money(-50_000, 900_000)),
            ("s_comment", Word(NOTES)),
        ],
    },
    Table {
        name: "part",
        rows: 40,
        columns: &[
            ("p_partkey", Serial),
            ("p_name", Word(&["forest green", "green lace", "linen red"])),
            ("p_mfgr", Word(NAMES)),
            ("p_brand", Word(BRANDS)),
            ("p_type", Word(TYPES)),
            ("p_size", Below(16)),
            ("p_container", Word(CONTAINERS)),
            ("p_retailprice", Money(100, 200_000)),
            ("p_comment", Word(NOTES)),
        ],
    },
    Table {
        name: "partsupp",
        rows: 160,
        columns: &[
            ("ps_partkey", Below(24)),
            ("ps_suppkey", Below(16)),
            ("ps_availqty", Below(1_000)),
            ("ps_supplycost", Money(100, 100_000)),
            ("ps_comment", Word(NOTES)),
        ],
    },
    Table {
        name: "customer",
        rows: 80,
        columns: &[
            ("c_custkey", Serial),
            ("c_name", Word(NAMES)),
            ("c_address", Word(NAMES)),
            ("c_nationkey", Below(6)),
            ("c_phone", Word(PHONES)),
            ("c_acctbal", Money(-50_000, 900_000)),
            ("c_mktsegment", Word(&["BUILDING", "MACHINERY"])),
            ("c_comment", Word(NOTES)),
        ],
    },
    Table {
        name: "orders",
        rows: 160,
        columns: &[
            ("o_orderkey", Serial),
            ("o_custkey", Below(70)),
            ("o_orderstatus", Word(&["F", "O", "P"])),
            ("o_totalprice", Money(1_000, 9_000_000)),
            ("o_orderdate", Day),
            ("o_orderpriority", Word(PRIORITIES)),
            ("o_clerk", Word(NAMES)),
            ("o_shippriority", Below(2)),
            ("o_comment", Word(NOTES)),
        ],
    },
    Table {
        name: "lineitem",
        rows: 700,
        columns: &[
            ("l_orderkey", Below(170)),
            ("l_partkey", Below(24)),
            ("l_suppkey", Below(16)),
            ("l_linenumber", Below(7)),
            ("l_quantity", Money(100, 5_000)),
            ("l_extendedprice", Money(10_000, 9_000_000)),
            ("l_discount", Money(0, 10)),
            ("l_tax", Money(0, 8)),
            ("l_returnflag", Word(&["R", "A", "N"])),
            ("l_linestatus", Word(&["O", "F"])),
            ("l_shipdate", Day),
            ("l_commitdate", Day),
            ("l_receiptdate", Day),
            ("l_shipinstruct", Word(&["DELIVER IN PERSON", "NONE"])),
            ("l_shipmode", Word(MODES)),
            ("l_comment", Word(NOTES)),
        ],
    },
];

const URLS: &[&str] =
    &["https://a.example/x/y/z?channel_id=7", "https://b.example/q", "https://c.example/k/l/m/n?channel_id=12&p=1"];
const CHANNELS: &[&str] = &["apple", "Google", "facebook", "channel-7", "channel-9"];

/// The three streams of Nexmark.
pub const NEXMARK: &[Table] = &[
    Table {
        name: "person",
        rows: 30,
        columns: &[
            ("id", Below(12)),
            ("name", Word(NAMES)),
            ("city", Word(&["Boise", "Bend"])),
            ("state", Word(&["OR", "ID", "CA", "WA"])),
            ("date_time", Time),
        ],
    },
    Table {
        name: "auction",
        rows: 60,
        columns: &[
            ("id", Below(40)),
            ("item_name", Word(NAMES)),
            ("initial_bid", Below(1_000)),
            ("reserve", Below(2_000)),
            ("date_time", Time),
            ("expires", Time),
            ("seller", Below(12)),
            ("category", Below(12)),
        ],
    },
    Table {
        name: "bid",
        rows: 400,
        columns: &[
            ("auction", Below(40)),
            ("bidder", Below(12)),
            ("price", Below(2_000_000)),
            ("channel", Word(CHANNELS)),
            ("url", Word(URLS)),
            ("date_time", Time),
            ("extra", Word(&["cccab", "xyz", "c"])),
        ],
    },
];
