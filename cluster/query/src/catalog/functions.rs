//! The functions that tools ask of a catalog. All answer row by row from texts; what a function cannot know of here is NULL, as PostgreSQL
//! answers for an object that does not exist.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _, BooleanArray, Int64Array, ListBuilder, StringArray, StringBuilder};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field};
use datafusion::common::{DataFusionError, Result};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};

use super::{Kind, System, columns, index_oid, key_name, quoted};
use crate::error::{self, SqlError};
use crate::tables::SCHEMA;

/// Those that need to know the relations of a query.
pub(crate) fn functions(system: &Arc<System>) -> Vec<Arc<ScalarUDF>> {
    FUNCTIONS.iter().map(|(name, body)| Arc::new(ScalarUDF::from(Asked::new(name, *body, Arc::clone(system))))).collect()
}

/// The values of one row of arguments.
type Arguments<'a> = [Option<&'a str>];

/// What a function does.
#[derive(Debug, Clone, Copy)]
enum Body {
    Text(fn(&System, &Arguments<'_>) -> Result<Option<String>>),
    Number(fn(&System, &Arguments<'_>) -> Result<Option<i64>>),
    /// The same truth for all.
    Truth(bool),
    /// NULL of a text.
    Nothing,
    /// A constant text.
    Always(&'static str),
    /// `current_schemas`.
    Schemas,
}

const FUNCTIONS: &[(&str, Body)] = &[
    ("pg_get_userbyid", Body::Always(crate::functions::USER)),
    ("pg_encoding_to_char", Body::Always("UTF8")),
    ("pg_client_encoding", Body::Always("UTF8")),
    ("pg_table_is_visible", Body::Truth(true)),
    ("pg_type_is_visible", Body::Truth(true)),
    ("pg_function_is_visible", Body::Truth(true)),
    ("pg_is_in_recovery", Body::Truth(false)),
    ("pg_is_other_temp_schema", Body::Truth(false)),
    ("pg_relation_is_publishable", Body::Truth(false)),
    ("has_schema_privilege", Body::Truth(true)),
    ("has_table_privilege", Body::Truth(true)),
    ("has_column_privilege", Body::Truth(true)),
    ("has_any_column_privilege", Body::Truth(true)),
    ("has_database_privilege", Body::Truth(true)),
    ("pg_has_role", Body::Truth(true)),
    ("obj_description", Body::Nothing),
    ("col_description", Body::Nothing),
    ("shobj_description", Body::Nothing),
    ("pg_get_expr", Body::Nothing),
    ("pg_get_partkeydef", Body::Nothing),
    ("pg_get_functiondef", Body::Nothing),
    ("pg_get_function_result", Body::Nothing),
    ("pg_get_function_arguments", Body::Nothing),
    ("pg_get_function_identity_arguments", Body::Nothing),
    ("pg_get_ruledef", Body::Nothing),
    ("pg_get_triggerdef", Body::Nothing),
    ("pg_get_statisticsobjdef_columns", Body::Nothing),
    ("pg_get_serial_sequence", Body::Nothing),
    ("pg_tablespace_location", Body::Nothing),
    ("pg_size_pretty", Body::Nothing),
    ("pg_table_size", Body::Nothing),
    ("pg_relation_size", Body::Nothing),
    ("pg_total_relation_size", Body::Nothing),
    ("pg_database_size", Body::Nothing),
    ("format_type", Body::Text(|_, values| Ok(number(values, 0).map(format_type)))),
    (
        "pg_get_viewdef",
        Body::Text(|system, values| {
            Ok(values
                .first()
                .copied()
                .flatten()
                .and_then(|name| oid(system, name))
                .and_then(|oid| system.relation(oid)?.sql.clone()))
        }),
    ),
    ("pg_get_indexdef", Body::Text(|system, values| Ok(number(values, 0).and_then(|oid| index_text(system, oid))))),
    ("pg_get_constraintdef", Body::Text(|system, values| Ok(number(values, 0).and_then(|oid| constraint_text(system, oid))))),
    ("quote_ident", Body::Text(|_, values| Ok(values.first().copied().flatten().map(quoted)))),
    (
        "quote_literal",
        Body::Text(|_, values| Ok(values.first().copied().flatten().map(|text| format!("'{}'", text.replace('\'', "''"))))),
    ),
    (
        "current_setting",
        Body::Text(|_, values| {
            let Some(name) = values.first().copied().flatten() else { return Ok(None) };
            match crate::settings::value(&name.to_lowercase()) {
                Ok(value) => Ok(Some(value.to_owned())),
                Err(_) if matches!(values.get(1), Some(Some("true"))) => Ok(None),
                Err(unknown) => Err(DataFusionError::External(Box::new(unknown))),
            }
        }),
    ),
    ("to_regclass", Body::Number(|system, values| Ok(values.first().copied().flatten().and_then(|name| oid(system, name))))),
    ("to_regtype", Body::Number(|_, values| Ok(values.first().copied().flatten().and_then(type_oid)))),
    // What casts to `regclass`, `regtype` and `regnamespace` become.
    (
        REGCLASS,
        Body::Number(|system, values| {
            let Some(name) = values.first().copied().flatten() else { return Ok(None) };
            oid(system, name).map(Some).ok_or_else(|| DataFusionError::External(Box::new(SqlError::unknown_relation(name))))
        }),
    ),
    (
        REGCLASS_NAME,
        Body::Text(|system, values| {
            Ok(number(values, 0)
                .map(|oid| if oid == 0 { "-".into() } else { system.name(oid).unwrap_or_else(|| oid.to_string()) }))
        }),
    ),
    (
        REGTYPE,
        Body::Number(|_, values| {
            let Some(name) = values.first().copied().flatten() else { return Ok(None) };
            let unknown = || SqlError::new(error::UNKNOWN_TYPE, format!("type \"{name}\" does not exist"));
            type_oid(name).map(Some).ok_or_else(|| DataFusionError::External(Box::new(unknown())))
        }),
    ),
    (REGTYPE_NAME, Body::Text(|_, values| Ok(number(values, 0).map(format_type)))),
    (
        REGNAMESPACE,
        Body::Number(|_, values| {
            let Some(name) = values.first().copied().flatten() else { return Ok(None) };
            let unknown = || SqlError::new(error::UNKNOWN_SCHEMA, format!("schema \"{name}\" does not exist"));
            let found = super::SCHEMAS.iter().find(|(_, schema)| *schema == name).map(|(oid, _)| *oid);
            found.map(Some).ok_or_else(|| DataFusionError::External(Box::new(unknown())))
        }),
    ),
    (
        REGNAMESPACE_NAME,
        Body::Text(|_, values| {
            let name = |oid| super::SCHEMAS.iter().find(|(known, _)| *known == oid).map(|(_, name)| (*name).to_owned());
            Ok(number(values, 0).map(|oid| name(oid).unwrap_or_else(|| oid.to_string())))
        }),
    ),
    ("current_schemas", Body::Schemas),
];

/// The name of a relation, to its object id: `'hosts'::regclass`.
pub(super) const REGCLASS: &str = "weir_regclass";
/// And back: `oid::regclass`.
pub(super) const REGCLASS_NAME: &str = "weir_regclass_name";
/// The name of a type to its object id.
pub(super) const REGTYPE: &str = "weir_regtype";
/// And back.
pub(super) const REGTYPE_NAME: &str = "weir_regtype_name";
/// The name of a schema to its object id.
pub(super) const REGNAMESPACE: &str = "weir_regnamespace";
/// And back.
pub(super) const REGNAMESPACE_NAME: &str = "weir_regnamespace_name";

fn number(values: &Arguments<'_>, place: usize) -> Option<i64> {
    values.get(place).copied().flatten()?.parse().ok()
}

/// An object id, or a name of a relation.
fn oid(system: &System, text: &str) -> Option<i64> {
    text.parse().ok().or_else(|| system.oid(text))
}

fn format_type(oid: i64) -> String {
    let plain = |oid| columns::TYPES.iter().find(|known| known.0 == oid).map(|known| known.2.to_owned());
    let array = |oid| columns::TYPES.iter().find(|known| known.5 == oid).map(|known| format!("{}[]", known.2));
    match oid {
        0 => "-".into(),
        oid => plain(oid).or_else(|| array(oid)).unwrap_or_else(|| "???".into()),
    }
}

fn type_oid(name: &str) -> Option<i64> {
    let name = name.trim().trim_start_matches("pg_catalog.").to_lowercase();
    let (name, is_array) = name.strip_suffix("[]").map_or((name.as_str(), false), |name| (name, true));
    let found = columns::TYPES.iter().find(|known| known.1 == name || known.2 == name);
    let array = || columns::TYPES.iter().find(|known| name.strip_prefix('_') == Some(known.1)).map(|known| known.5);
    found.map(|known| if is_array { known.5 } else { known.0 }).or_else(array)
}

/// The index that a primary key is, as a statement.
pub(super) fn index_text(system: &System, index: i64) -> Option<String> {
    let table = system.relation(index - (index_oid(0)))?;
    let columns = columns_of(table)?;
    Some(format!(
        "CREATE UNIQUE INDEX {} ON {SCHEMA}.{} USING btree ({columns})",
        quoted(&key_name(&table.name)),
        quoted(&table.name)
    ))
}

fn constraint_text(system: &System, constraint: i64) -> Option<String> {
    let table = system.relation(constraint - index_oid(0) - 1)?;
    Some(format!("PRIMARY KEY ({})", columns_of(table)?))
}

fn columns_of(table: &super::Described) -> Option<String> {
    if table.key.is_empty() || table.kind != Kind::Table {
        return None;
    }
    let names: Vec<_> = table.key.iter().map(|place| quoted(table.schema.field(*place).name())).collect();
    Some(names.join(", "))
}

/// A function over the relations of one query.
struct Asked {
    name: &'static str,
    body: Body,
    signature: Signature,
    system: Arc<System>,
}

impl Asked {
    fn new(name: &'static str, body: Body, system: Arc<System>) -> Self {
        let any = TypeSignature::OneOf(vec![TypeSignature::Nullary, TypeSignature::VariadicAny]);
        Self { name, body, signature: Signature::new(any, Volatility::Stable), system }
    }
}

impl fmt::Debug for Asked {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name)
    }
}

impl PartialEq for Asked {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && Arc::ptr_eq(&self.system, &other.system)
    }
}

impl Eq for Asked {}

impl Hash for Asked {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl ScalarUDFImpl for Asked {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(match self.body {
            Body::Text(_) | Body::Nothing | Body::Always(_) => DataType::Utf8,
            Body::Number(_) => DataType::Int64,
            Body::Truth(_) => DataType::Boolean,
            Body::Schemas => DataType::List(Arc::new(Field::new_list_field(DataType::Utf8, true))),
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = args.number_rows;
        let to_text = |value: &ColumnarValue| cast(&value.to_array(rows)?, &DataType::Utf8).map_err(DataFusionError::from);
        let texts = args.args.iter().map(to_text).collect::<Result<Vec<ArrayRef>>>()?;
        let of = |row: usize| -> Vec<Option<&str>> {
            texts
                .iter()
                .map(|array| array.as_string::<i32>())
                .map(|array| (!array.is_null(row)).then(|| array.value(row)))
                .collect()
        };
        let array: ArrayRef = match self.body {
            Body::Text(body) => Arc::new((0..rows).map(|row| body(&self.system, &of(row))).collect::<Result<StringArray>>()?),
            Body::Number(body) => Arc::new((0..rows).map(|row| body(&self.system, &of(row))).collect::<Result<Int64Array>>()?),
            Body::Truth(truth) => Arc::new(BooleanArray::from(vec![truth; rows])),
            Body::Nothing => Arc::new(StringArray::new_null(rows)),
            Body::Always(text) => Arc::new(StringArray::from(vec![text; rows])),
            Body::Schemas => {
                let mut built = ListBuilder::new(StringBuilder::new());
                for row in 0..rows {
                    let implied = of(row).first().copied().flatten() == Some("true");
                    built.append_value(implied.then_some(super::PG).into_iter().chain([SCHEMA]).map(Some));
                }
                Arc::new(built.finish())
            }
        };
        Ok(ColumnarValue::Array(array))
    }
}
