//! `pg_catalog` and `information_schema`: what tools ask to find relations, columns and types.
//!
//! Tables of rows that are made from the relations when a query reads them. An object id follows from a name, so it is the same on every node
//! and after a restart. Comments, functions, triggers and the like do not exist here: their tables are empty.

mod cells;
mod columns;
mod functions;
mod rewrite;

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{SchemaProvider, TableProvider};
use datafusion::common::{DataFusionError, Result};
use datafusion::datasource::MemTable;
use weir_dataflow::RelationInfo;
use weir_plan::Table;

use self::cells::{Cell, Column, Row, id, row, text};
pub(crate) use self::columns::{INFORMATION, PG};
pub(crate) use self::functions::functions;
pub(crate) use self::rewrite::{MARK, as_postgresql};
use crate::encode;
use crate::tables::{CATALOG, SCHEMA};

/// A relation as tools see it.
#[derive(Debug, Clone)]
pub(crate) struct Described {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) schema: SchemaRef,
    /// The columns of its primary key by place.
    pub(crate) key: Vec<usize>,
    /// The SELECT of a view.
    pub(crate) sql: Option<String>,
}

impl Described {
    /// A relation; `table`: the statement that makes it, if it is a table that people made.
    pub(crate) fn of(info: &RelationInfo, table: Option<&str>) -> Self {
        let table = table.and_then(|sql| Table::parse(sql).ok());
        let kind = match (info.sql.is_some() && table.is_none(), info.standing) {
            (false, _) => Kind::Table,
            (true, true) => Kind::Materialized,
            (true, false) => Kind::View,
        };
        let sql = info.sql.as_deref().filter(|_| table.is_none()).map(select_of);
        let (schema, key) = table.map_or_else(|| (Arc::clone(&info.schema), vec![]), |table| (table.schema, table.key));
        Self { name: info.name.to_string(), kind, schema, key, sql }
    }
}

/// What stands behind CREATE VIEW … AS.
fn select_of(sql: &str) -> String {
    let behind = sql.split_once(" AS").filter(|_| sql.starts_with("CREATE"));
    behind.map_or(sql, |(_, select)| select).trim().to_owned()
}

/// What a relation is, to tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Rows that are written, or come from agents.
    Table,
    /// A name for a SELECT.
    View,
    /// A SELECT that is kept up to date.
    Materialized,
}

/// The relations of one query, and what follows from them.
#[derive(Debug, Default)]
pub(crate) struct System {
    relations: BTreeMap<i64, Described>,
    /// Names of those of the catalog itself.
    own: BTreeMap<i64, (&'static str, &'static str)>,
}

impl System {
    pub(crate) fn new(relations: impl IntoIterator<Item = Described>) -> Self {
        let mut system = Self::default();
        for (schema, table, _) in columns::TABLES {
            let oid = system.free(oid_of(&format!("{schema}.{table}")));
            system.own.insert(oid, (schema, table));
        }
        let mut relations: Vec<_> = relations.into_iter().collect();
        relations.sort_by(|a, b| a.name.cmp(&b.name));
        for relation in relations {
            let oid = system.free(oid_of(&relation.name));
            system.relations.insert(oid, relation);
        }
        system
    }

    fn free(&self, mut oid: i64) -> i64 {
        while self.relations.contains_key(&oid) || self.own.contains_key(&oid) {
            oid += 4;
        }
        oid
    }

    /// The object id of a relation.
    fn oid(&self, name: &str) -> Option<i64> {
        let (schema, name) = name.rsplit_once('.').unwrap_or(("", name));
        let (schema, name) = (unquoted(schema), unquoted(name));
        let own = || self.own.iter().find(|(_, own)| own.1 == name && (own.0 == schema || (schema.is_empty() && own.0 == PG)));
        let ours = || self.relations.iter().find(|(_, relation)| relation.name == name && matches!(&*schema, "" | SCHEMA));
        own().map(|(oid, _)| *oid).or_else(|| ours().map(|(oid, _)| *oid))
    }

    /// The name of a relation, as `regclass` writes it.
    fn name(&self, oid: i64) -> Option<String> {
        let own =
            || self.own.get(&oid).map(|(schema, name)| if *schema == PG { (*name).into() } else { format!("{schema}.{name}") });
        self.relations.get(&oid).map(|relation| quoted(&relation.name)).or_else(own)
    }

    fn relation(&self, oid: i64) -> Option<&Described> {
        self.relations.get(&oid)
    }

    /// The table of this name.
    pub(crate) fn table(&self, schema: &str, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let Some((_, _, spec)) = columns::TABLES.iter().find(|(of, table, _)| *of == schema && *table == name) else {
            return Ok(None);
        };
        let columns: Vec<Column> = spec.split_whitespace().map(Column::of).collect();
        let fields: Vec<Field> = columns.iter().map(|column| Field::new(column.name, column.data_type(), true)).collect();
        let schema = Arc::new(Schema::new(fields));
        let rows = self.rows(name);
        let arrays: Vec<ArrayRef> = columns.iter().map(|column| column.array(&rows)).collect();
        let batch = RecordBatch::try_new(Arc::clone(&schema), arrays).map_err(DataFusionError::from)?;
        Ok(Some(Arc::new(MemTable::try_new(schema, vec![vec![batch]])?)))
    }

    fn rows(&self, table: &str) -> Vec<Row> {
        match table {
            "pg_class" => self.classes(),
            "pg_namespace" | "schemata" => SCHEMAS
                .iter()
                .map(|(oid, name)| row([("oid", id(*oid)), ("nspname", text(*name)), ("schema_name", text(*name))]))
                .collect(),
            "pg_attribute" => self.attributes(),
            "pg_type" => types(),
            "pg_database" => vec![row([("oid", id(DATABASE_OID)), ("datname", text(CATALOG))])],
            "pg_roles" | "pg_user" => {
                let user = crate::functions::USER;
                vec![row([("oid", id(OWNER_OID)), ("rolname", text(user)), ("usename", text(user)), ("usesysid", id(OWNER_OID))])]
            }
            "pg_settings" => crate::settings::all()
                .map(|(name, value)| {
                    row([("name", text(name)), ("setting", text(value)), ("boot_val", text(value)), ("reset_val", text(value))])
                })
                .collect(),
            "pg_index" | "pg_constraint" | "table_constraints" | "pg_indexes" => {
                self.keys().map(|(oid, relation)| key_row(self, oid, relation)).collect()
            }
            "key_column_usage" => self
                .keys()
                .flat_map(|(_, relation)| {
                    relation
                        .key
                        .iter()
                        .enumerate()
                        .map(|(place, column)| {
                            row([
                                ("constraint_name", text(key_name(&relation.name))),
                                ("table_name", text(&*relation.name)),
                                ("column_name", text(relation.schema.field(*column).name())),
                                ("ordinal_position", id(place as i64 + 1)),
                            ])
                        })
                        .collect::<Vec<_>>()
                })
                .collect(),
            "pg_am" => vec![row([
                ("oid", id(2)),
                ("amname", text("heap")),
                ("amhandler", text("heap_tableam_handler")),
                ("amtype", text("t")),
            ])],
            "pg_get_keywords" => columns::KEYWORDS
                .split_whitespace()
                .map(|word| row([("word", text(word)), ("catcode", text("R")), ("catdesc", text("reserved"))]))
                .collect(),
            "pg_tables" => self.of(Kind::Table, "tablename"),
            "pg_views" => self.of(Kind::View, "viewname"),
            "pg_matviews" => self.of(Kind::Materialized, "matviewname"),
            "pg_tablespace" => vec![row([("oid", id(1663)), ("spcname", text("pg_default"))])],
            "tables" => self.information_tables(),
            "columns" => self.information_columns(),
            "views" => {
                let views = self.relations.values().filter(|relation| relation.kind != Kind::Table);
                views
                    .map(|view| {
                        row([
                            ("table_name", text(&*view.name)),
                            ("view_definition", view.sql.as_deref().map_or(Cell::Null, text)),
                        ])
                    })
                    .collect()
            }
            _ => vec![],
        }
    }

    fn of(&self, kind: Kind, column: &'static str) -> Vec<Row> {
        let found = self.relations.values().filter(|relation| relation.kind == kind);
        found
            .map(|found| row([(column, text(&*found.name)), ("definition", found.sql.as_deref().map_or(Cell::Null, text))]))
            .collect()
    }

    fn keys(&self) -> impl Iterator<Item = (i64, &Described)> {
        self.relations.iter().filter(|(_, relation)| !relation.key.is_empty()).map(|(oid, relation)| (*oid, relation))
    }

    fn classes(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for (oid, relation) in &self.relations {
            rows.push(row([
                ("oid", id(*oid)),
                ("relname", text(&*relation.name)),
                (
                    "relkind",
                    text(match relation.kind {
                        Kind::Table => "r",
                        Kind::View => "v",
                        Kind::Materialized => "m",
                    }),
                ),
                ("relam", id(if relation.kind == Kind::View { 0 } else { 2 })),
                ("relnatts", id(relation.schema.fields().len() as i64)),
                ("relhasindex", Cell::Bool(!relation.key.is_empty())),
            ]));
            if !relation.key.is_empty() {
                rows.push(row([
                    ("oid", id(index_oid(*oid))),
                    ("relname", text(key_name(&relation.name))),
                    ("relkind", text("i")),
                    ("relnatts", id(relation.key.len() as i64)),
                ]));
            }
        }
        for (oid, (schema, name)) in &self.own {
            let namespace = SCHEMAS.iter().find(|(_, other)| other == schema).map_or(0, |(oid, _)| *oid);
            let columns = columns::TABLES.iter().find(|(of, table, _)| of == schema && table == name).map_or("", |found| found.2);
            rows.push(row([
                ("oid", id(*oid)),
                ("relname", text(*name)),
                ("relnamespace", id(namespace)),
                ("relkind", text(if *schema == PG { "r" } else { "v" })),
                ("relnatts", id(columns.split_whitespace().count() as i64)),
            ]));
        }
        rows
    }

    /// Every relation's columns: of what, the place from 1, the name, the type, whether it is never null.
    fn every_column(&self) -> impl Iterator<Item = (i64, usize, String, DataType, bool)> {
        let ours = self.relations.iter().flat_map(|(oid, relation)| {
            let fields = relation.schema.fields().iter().enumerate();
            fields.map(|(place, field)| {
                let never_null = relation.key.contains(&place) || (relation.kind == Kind::Table && !field.is_nullable());
                (*oid, place + 1, field.name().clone(), field.data_type().clone(), never_null)
            })
        });
        let own = self.own.iter().flat_map(|(oid, (schema, name))| {
            let spec = columns::TABLES.iter().find(|(of, table, _)| of == schema && table == name).map_or("", |found| found.2);
            let columns = spec.split_whitespace().map(Column::of).enumerate();
            columns.map(|(place, column)| (*oid, place + 1, column.name.to_owned(), column.data_type(), false))
        });
        ours.chain(own)
    }

    fn attributes(&self) -> Vec<Row> {
        let one = |(oid, place, name, data_type, never_null): (i64, usize, String, DataType, bool)| {
            let ty = encode::pg_type(&data_type).oid();
            let bytes = columns::TYPES.iter().find(|known| known.0 == i64::from(ty)).map_or(-1, |known| known.3);
            row([
                ("attrelid", id(oid)),
                ("attname", text(name)),
                ("atttypid", id(i64::from(ty))),
                ("attlen", id(bytes)),
                ("attnum", id(place as i64)),
                ("attnotnull", Cell::Bool(never_null)),
            ])
        };
        self.every_column().map(one).collect()
    }

    fn information_tables(&self) -> Vec<Row> {
        let one = |schema: &str, name: &str, kind, insertable: bool| {
            let kind = text(if kind == Kind::Table { "BASE TABLE" } else { "VIEW" });
            row([
                ("table_schema", text(schema)),
                ("table_name", text(name)),
                ("table_type", kind),
                ("is_insertable_into", text(if insertable { "YES" } else { "NO" })),
            ])
        };
        let ours = self.relations.values().map(|found| one(SCHEMA, &found.name, found.kind, found.sql.is_none()));
        let own = self
            .own
            .values()
            .map(|(schema, name)| one(schema, name, if *schema == PG { Kind::Table } else { Kind::View }, false));
        ours.chain(own).collect()
    }

    fn information_columns(&self) -> Vec<Row> {
        let one = |(oid, place, name, data_type, never_null): (i64, usize, String, DataType, bool)| {
            let (schema, table) = match self.relations.get(&oid) {
                Some(ours) => (SCHEMA, ours.name.as_str()),
                None => self.own.get(&oid).copied().unwrap_or_default(),
            };
            let ty = encode::pg_type(&data_type);
            row([
                ("table_schema", text(schema)),
                ("table_name", text(table)),
                ("column_name", text(name)),
                ("ordinal_position", id(place as i64)),
                ("is_nullable", text(if never_null { "NO" } else { "YES" })),
                ("data_type", text(encode::type_name(&data_type))),
                ("udt_name", text(ty.name())),
                ("dtd_identifier", text(place.to_string())),
                ("is_updatable", text("NO")),
            ])
        };
        self.every_column().map(one).collect()
    }
}

/// A primary key, as an index and as a constraint.
fn key_row(system: &System, oid: i64, relation: &Described) -> Row {
    let places: Vec<String> = relation.key.iter().map(|place| (place + 1).to_string()).collect();
    let index = index_oid(oid);
    row([
        ("oid", id(index + 1)),
        ("indexrelid", id(index)),
        ("indrelid", id(oid)),
        ("indnatts", id(places.len() as i64)),
        ("indnkeyatts", id(places.len() as i64)),
        ("indkey", text(places.join(" "))),
        ("conname", text(key_name(&relation.name))),
        ("contype", text("p")),
        ("conrelid", id(oid)),
        ("conindid", id(index)),
        ("conkey", Cell::List(places)),
        ("constraint_name", text(key_name(&relation.name))),
        ("constraint_type", text("PRIMARY KEY")),
        ("table_name", text(&*relation.name)),
        ("schemaname", text(SCHEMA)),
        ("tablename", text(&*relation.name)),
        ("indexname", text(key_name(&relation.name))),
        ("indexdef", functions::index_text(system, index).map_or(Cell::Null, text)),
    ])
}

fn types() -> Vec<Row> {
    let mut rows = Vec::new();
    for (oid, name, _, bytes, category, array) in columns::TYPES {
        rows.push(row([
            ("oid", id(*oid)),
            ("typname", text(*name)),
            ("typlen", id(*bytes)),
            ("typcategory", text(*category)),
            ("typarray", id(*array)),
            ("typinput", text(format!("{name}in"))),
            ("typoutput", text(format!("{name}out"))),
            ("typreceive", text(format!("{name}recv"))),
            ("typsend", text(format!("{name}send"))),
        ]));
        if *array != 0 {
            rows.push(row([
                ("oid", id(*array)),
                ("typname", text(format!("_{name}"))),
                ("typlen", id(-1)),
                ("typcategory", text("A")),
                ("typelem", id(*oid)),
                ("typinput", text("array_in")),
                ("typoutput", text("array_out")),
                ("typreceive", text("array_recv")),
                ("typsend", text("array_send")),
            ]));
        }
    }
    rows
}

/// One of the two schemas, for DataFusion.
#[derive(Debug)]
pub(crate) struct Catalog {
    pub(crate) schema: &'static str,
    pub(crate) system: Arc<System>,
}

#[async_trait]
impl SchemaProvider for Catalog {
    fn table_names(&self) -> Vec<String> {
        columns::TABLES.iter().filter(|(schema, ..)| *schema == self.schema).map(|(_, table, _)| (*table).into()).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        self.system.table(self.schema, name)
    }

    fn table_exist(&self, name: &str) -> bool {
        is_table(self.schema, name)
    }
}

/// Whether a catalog has a table of this name.
pub(crate) fn is_table(schema: &str, name: &str) -> bool {
    columns::TABLES.iter().any(|(of, table, _)| *of == schema && *table == name)
}

/// Whether a table never has rows.
fn is_always_empty(schema: &str, name: &str) -> bool {
    static EMPTY: LazyLock<Vec<(&str, &str)>> = LazyLock::new(|| {
        let key = Schema::new(vec![Field::new("k", DataType::Utf8, false)]);
        let one =
            |kind| Described { name: "a".into(), kind, schema: Arc::new(key.clone()), key: vec![0], sql: Some(String::new()) };
        let all = [Kind::Table, Kind::View, Kind::Materialized].map(one);
        let full = System::new(all);
        let tables = columns::TABLES.iter().filter(|(_, table, _)| full.rows(table).is_empty());
        tables.map(|(schema, table, _)| (*schema, *table)).collect()
    });
    EMPTY.contains(&(schema, name))
}

/// An object id that follows from a name (FNV-1a), in the range that PostgreSQL gives to what users make. Even, and every fourth: a key has two more.
fn oid_of(name: &str) -> i64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    FIRST_OID + (i64::try_from(hash >> 36).unwrap_or(0) << 2)
}

/// The index of a table's primary key; the constraint is the next.
fn index_oid(table: i64) -> i64 {
    table + 1
}

fn key_name(table: &str) -> String {
    format!("{table}_pkey")
}

fn quoted(name: &str) -> String {
    let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    let starts = name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
    let word = columns::KEYWORDS.split_whitespace().any(|word| word == name);
    if plain && starts && !word { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

fn unquoted(name: &str) -> String {
    match name.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(inner) => inner.replace("\"\"", "\""),
        None => name.to_lowercase(),
    }
}

/// The schemas there are.
const SCHEMAS: [(i64, &str); 3] = [(11, PG), (2200, SCHEMA), (13_000, INFORMATION)];
/// Of the database.
const DATABASE_OID: i64 = 5;
/// Of the role that owns all.
const OWNER_OID: i64 = 10;
/// As in PostgreSQL.
const FIRST_OID: i64 = 16_384;
