//! `CREATE TABLE`: which columns a table has, read from the statement's text and written back in one form.
//!
//! Promise: the same text is the same table in every process; what a table cannot have is refused by name.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion_common::DataFusionError;
use datafusion_sql::parser::{DFParser, Statement};
use datafusion_sql::sqlparser::ast::{
    ColumnOption, CreateTable, CreateTableOptions, DataType as SqlType, ExactNumberInfo, Expr, HiveDistributionStyle, Ident,
    PrimaryKeyConstraint, Statement as Ast, TableConstraint, TimezoneInfo,
};
use datafusion_sql::sqlparser::dialect::PostgreSqlDialect;

use crate::Error;
use crate::inet::is_inet;

/// The columns of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Names and types; what is NOT NULL is not nullable.
    pub schema: SchemaRef,
    /// The columns of the primary key by place; empty: there is none.
    pub key: Vec<usize>,
}

impl Table {
    /// Reads the text of a CREATE TABLE.
    pub fn parse(sql: &str) -> Result<Self, Error> {
        let parsed = DFParser::parse_sql_with_dialect(sql, &PostgreSqlDialect {}).map_err(|error| Error::Sql(Box::new(error)))?;
        match parsed.front() {
            Some(Statement::Statement(ast)) if parsed.len() == 1 => match ast.as_ref() {
                Ast::CreateTable(create) => Self::of(create),
                _ => Err(no_table()),
            },
            _ => Err(no_table()),
        }
    }

    /// The table that a statement makes.
    pub fn of(create: &CreateTable) -> Result<Self, Error> {
        refuse_options(create)?;
        let mut fields: Vec<Field> = Vec::new();
        let mut key: Option<Vec<String>> = None;
        let mut keyed = |names: Vec<String>| match key.replace(names) {
            None => Ok(()),
            Some(_) => Err(Error::wrong_type("PRIMARY KEY", "there is more than one")),
        };
        for column in &create.columns {
            let name = name_of(&column.name);
            let mut nullable = true;
            for option in &column.options {
                match &option.option {
                    ColumnOption::Null => {}
                    ColumnOption::NotNull => nullable = false,
                    ColumnOption::PrimaryKey(key) => {
                        plain_key(key)?;
                        keyed(vec![name.clone()])?;
                    }
                    other => {
                        return Err(unsupported(
                            format!("{other} of column \"{name}\""),
                            "a column may be NOT NULL or PRIMARY KEY",
                        ));
                    }
                }
            }
            fields.push(Field::new(&name, type_of(&name, &column.data_type)?, nullable));
        }
        for constraint in &create.constraints {
            let TableConstraint::PrimaryKey(key) = constraint else {
                return Err(unsupported(constraint.to_string(), "of constraints a table may have a PRIMARY KEY"));
            };
            plain_key(key)?;
            let columns = key.columns.iter().map(|column| match &column.column.expr {
                Expr::Identifier(ident) => Ok(name_of(ident)),
                other => Err(unsupported(format!("{other} in a PRIMARY KEY"), "it is a list of columns")),
            });
            keyed(columns.collect::<Result<_, _>>()?)?;
        }
        if fields.is_empty() || fields.len() > COLUMNS_MAX {
            return Err(unsupported(format!("a table of {} columns", fields.len()), &format!("it has 1 to {COLUMNS_MAX}")));
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = fields.iter().find(|field| !seen.insert(field.name().clone())) {
            return Err(Error::wrong_type(format!("column \"{}\"", twice.name()), "it is specified more than once"));
        }
        let mut places = Vec::new();
        for name in key.unwrap_or_default() {
            let place = fields.iter().position(|field| *field.name() == name);
            let place = place.ok_or_else(|| Error::wrong_type("PRIMARY KEY", format!("there is no column \"{name}\"")))?;
            if matches!(fields[place].data_type(), DataType::Float32 | DataType::Float64) {
                return Err(unsupported(format!("column \"{name}\" in a PRIMARY KEY"), "floating-point numbers are no key"));
            }
            if places.contains(&place) {
                return Err(Error::wrong_type("PRIMARY KEY", format!("column \"{name}\" is in it twice")));
            }
            fields[place] = fields[place].clone().with_nullable(false);
            places.push(place);
        }
        Ok(Self { schema: Arc::new(Schema::new(fields)), key: places })
    }

    /// The statement that makes it, in one form.
    pub fn statement(&self, name: &str) -> String {
        let column = |field: &Arc<Field>| {
            let not_null = if field.is_nullable() { "" } else { " NOT NULL" };
            format!("  {} {}{not_null}", quoted(field.name()), sql_type(field.data_type()))
        };
        let mut lines: Vec<_> = self.schema.fields().iter().map(column).collect();
        if !self.key.is_empty() {
            let names: Vec<_> = self.key.iter().map(|place| quoted(self.schema.field(*place).name())).collect();
            lines.push(format!("  PRIMARY KEY ({})", names.join(", ")));
        }
        format!("CREATE TABLE {} (\n{}\n)", quoted(name), lines.join(",\n"))
    }
}

fn refuse_options(create: &CreateTable) -> Result<(), Error> {
    for (given, construct) in [
        (create.or_replace, "CREATE OR REPLACE TABLE"),
        (create.temporary || create.global.is_some() || create.on_commit.is_some(), "CREATE TEMPORARY TABLE"),
        (create.external || create.location.is_some() || create.file_format.is_some(), "CREATE EXTERNAL TABLE"),
        (create.query.is_some(), "CREATE TABLE … AS"),
        (create.like.is_some() || create.clone.is_some(), "CREATE TABLE … LIKE"),
        (create.inherits.is_some() || create.partition_of.is_some() || create.partition_by.is_some(), "a part of a table"),
        (!matches!(create.table_options, CreateTableOptions::None), "an option of CREATE TABLE"),
        (
            !matches!(create.hive_distribution, HiveDistributionStyle::NONE)
                || create.primary_key.is_some()
                || create.order_by.is_some()
                || create.cluster_by.is_some()
                || create.clustered_by.is_some()
                || create.strict
                || create.without_rowid
                || create.comment.is_some(),
            "this form of CREATE TABLE",
        ),
    ] {
        if given {
            return Err(unsupported(construct, "a table is a list of columns"));
        }
    }
    Ok(())
}

fn plain_key(key: &PrimaryKeyConstraint) -> Result<(), Error> {
    let plain = key.index_type.is_none() && key.index_options.is_empty() && key.characteristics.is_none();
    if plain { Ok(()) } else { Err(unsupported(key.to_string(), "it is a list of columns")) }
}

fn type_of(column: &str, ty: &SqlType) -> Result<DataType, Error> {
    Ok(match ty {
        SqlType::Bool | SqlType::Boolean => DataType::Boolean,
        SqlType::SmallInt(None) | SqlType::Int2(None) => DataType::Int16,
        SqlType::Int(None) | SqlType::Integer(None) | SqlType::Int4(None) => DataType::Int32,
        SqlType::BigInt(None) | SqlType::Int8(None) => DataType::Int64,
        SqlType::Real | SqlType::Float4 => DataType::Float32,
        SqlType::DoublePrecision | SqlType::Float8 => DataType::Float64,
        SqlType::Text | SqlType::Varchar(None) | SqlType::CharacterVarying(None) => DataType::Utf8,
        // Addresses are text with operators of their own.
        ty if is_inet(ty) => DataType::Utf8,
        SqlType::Numeric(size) | SqlType::Decimal(size) | SqlType::Dec(size) => decimal(column, size)?,
        SqlType::Date => DataType::Date32,
        SqlType::Timestamp(None, zone) => {
            let utc = matches!(zone, TimezoneInfo::WithTimeZone | TimezoneInfo::Tz).then(|| "UTC".into());
            DataType::Timestamp(TimeUnit::Nanosecond, utc)
        }
        other => {
            let why = "types are bool, smallint, int, bigint, real, double precision, numeric(p, s), text, inet, date, timestamp, timestamptz";
            return Err(unsupported(format!("type {other} of column \"{column}\""), why));
        }
    })
}

/// NUMERIC without a size is of 38 digits, 10 of them behind the point.
fn decimal(column: &str, size: &ExactNumberInfo) -> Result<DataType, Error> {
    let (precision, scale) = match size {
        ExactNumberInfo::None => (38, 10),
        ExactNumberInfo::Precision(precision) => (*precision, 0),
        ExactNumberInfo::PrecisionAndScale(precision, scale) => (*precision, *scale),
    };
    match (u8::try_from(precision), i8::try_from(scale)) {
        (Ok(precision @ 1..=38), Ok(scale)) if (0..=precision.cast_signed()).contains(&scale) => {
            Ok(DataType::Decimal128(precision, scale))
        }
        _ => Err(unsupported(
            format!("numeric({precision}, {scale}) of column \"{column}\""),
            "it has 1 to 38 digits, of which none to all are behind the point",
        )),
    }
}

fn sql_type(ty: &DataType) -> String {
    let name = match ty {
        DataType::Decimal128(precision, scale) => return format!("numeric({precision},{scale})"),
        DataType::Boolean => "boolean",
        DataType::Int16 => "smallint",
        DataType::Int32 => "integer",
        DataType::Int64 => "bigint",
        DataType::Float32 => "real",
        DataType::Float64 => "double precision",
        DataType::Date32 => "date",
        DataType::Timestamp(_, Some(_)) => "timestamp with time zone",
        DataType::Timestamp(_, None) => "timestamp without time zone",
        _ => "text",
    };
    name.to_owned()
}

fn name_of(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn no_table() -> Error {
    Error::Sql(Box::new(DataFusionError::Plan("a table is made by one CREATE TABLE".into())))
}

fn unsupported(construct: impl Into<String>, why: &str) -> Error {
    Error::unsupported(construct, why)
}

/// As many as a person would write down; PostgreSQL has 1,600.
const COLUMNS_MAX: usize = 250;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_reads_back_from_the_statement() {
        let sql = "create table T (a bool, b int2 not null, c int, d bigint, e real, f float8, \"G\" text, h varchar, i date, \
                   j timestamp, k timestamptz, primary key (d, \"G\"))";
        let table = Table::parse(sql).unwrap();
        assert_eq!(table.schema.fields().len(), 11);
        assert_eq!(table.key, [3, 6]);
        assert!(
            !table.schema.field(1).is_nullable() && !table.schema.field(6).is_nullable() && table.schema.field(0).is_nullable()
        );
        assert_eq!(Table::parse(&table.statement("we\"ird")).unwrap(), table);
        assert_eq!(Table::parse("CREATE TABLE t (a int PRIMARY KEY)").unwrap().key, [0]);
    }

    #[test]
    fn what_a_table_cannot_have_is_named() {
        for (sql, expected) in [
            ("CREATE TABLE t (a numeric(39, 2))", "numeric(39, 2) of column \"a\""),
            ("CREATE TABLE t (a numeric(4, 5))", "numeric(4, 5) of column \"a\""),
            ("CREATE TABLE t (a money)", "type money of column \"a\""),
            ("CREATE TABLE t (a varchar(3))", "type VARCHAR(3)"),
            ("CREATE TABLE t (a int DEFAULT 1)", "DEFAULT 1 of column \"a\""),
            ("CREATE TABLE t (a int UNIQUE)", "UNIQUE"),
            ("CREATE TABLE t (a int CHECK (a > 1))", "CHECK"),
            ("CREATE TABLE t (a int REFERENCES u (a))", "REFERENCES"),
            ("CREATE TABLE t (a int, UNIQUE (a))", "UNIQUE"),
            ("CREATE TABLE t (a int, a text)", "more than once"),
            ("CREATE TABLE t (a int PRIMARY KEY, b int PRIMARY KEY)", "more than one"),
            ("CREATE TABLE t (a int, PRIMARY KEY (b))", "no column \"b\""),
            ("CREATE TABLE t (a real PRIMARY KEY)", "floating-point"),
            ("CREATE TABLE t AS SELECT 1", "CREATE TABLE … AS"),
            ("CREATE TEMPORARY TABLE t (a int)", "CREATE TEMPORARY TABLE"),
            ("CREATE TABLE t (LIKE u)", ""),
            ("CREATE TABLE t ()", ""),
            ("SELECT 1", "one CREATE TABLE"),
        ] {
            let told = Table::parse(sql).unwrap_err().to_string();
            assert!(told.contains(expected), "{sql}: {told}");
        }
    }
}
