//! Tables that Weir ships: made like anybody's, by a node that does not find them, but read by the engine itself.

use arrow::array::{AsArray as _, RecordBatch, StringArray};
use weir_rules::{ExceptionRow, RowError};

use crate::definition::{ViewDefinition, ViewKind};

/// The table of exceptions: what rules shall not fire on. Rows of one (rule, name) hold together, names are alternatives; see
/// `dataflow/rules/src/exception_rows.rs` for what the columns may say. A change counts from its tick on for all hits that are kept.
pub const EXCEPTIONS: &str = "rule_exceptions";
/// Its columns, in order; all of text.
pub const EXCEPTION_COLUMNS: [&str; 5] = ["rule", "name", "field", "comparator", "value"];

/// The tables, in the order in which they are made.
pub fn shipped_tables() -> Vec<ViewDefinition> {
    let table = |name: &str, columns: &[&str]| {
        let columns: Vec<String> = columns.iter().map(|column| format!("{column} TEXT NOT NULL")).collect();
        let sql = format!("CREATE TABLE {name} ({})", columns.join(", "));
        ViewDefinition { name: name.to_owned(), sql, kind: ViewKind::Table, reads: vec![] }
    };
    vec![table(EXCEPTIONS, &EXCEPTION_COLUMNS)]
}

/// Whether rows may come into a table: what cannot be meant is refused before it is chained. Tables that people made take all.
pub fn check_rows(table: &str, rows: &RecordBatch) -> Result<(), RowError> {
    if table != EXCEPTIONS {
        return Ok(());
    }
    exception_rows(rows).into_iter().flatten().try_for_each(|row| row.check())
}

/// Rows of the exceptions' table; none: it has other columns.
pub(crate) fn exception_rows(rows: &RecordBatch) -> Option<Vec<ExceptionRow>> {
    let texts: Vec<_> = rows.columns().iter().map(|column| column.as_string_opt::<i32>()).collect::<Option<_>>()?;
    let [rule, name, field, comparator, value] = texts.try_into().ok()?;
    let row = |row: usize| {
        let [rule, name, field, comparator, value] =
            [rule, name, field, comparator, value].map(|texts: &StringArray| texts.value(row).to_owned());
        ExceptionRow { rule, name, field, comparator, value }
    };
    Some((0..rows.num_rows()).map(row).collect())
}

/// Whether a table of this name is one of them.
pub fn is_shipped(name: &str) -> bool {
    name == EXCEPTIONS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::{Definitions, Known, ViewChange, ViewOutcome};

    #[test]
    fn they_can_be_made() {
        for definition in shipped_tables() {
            let info = Known::default().add_table(&definition).unwrap();
            assert!(is_shipped(&info.name) && info.schema.fields().len() > 1);
        }
    }

    #[test]
    fn they_do_not_count_against_what_people_may_make() {
        let mut definitions = Definitions::default();
        let mut make = |definition: ViewDefinition| definitions.change(&ViewChange::Create { definition, views_max: 1 });
        for definition in shipped_tables() {
            assert!(matches!(make(definition), ViewOutcome::Created(_)));
        }
        let of_people = |name: &str| ViewDefinition { name: name.to_owned(), ..shipped_tables().remove(0) };
        assert!(matches!(make(of_people("mine")), ViewOutcome::Created(_)));
        assert_eq!(make(of_people("another")), ViewOutcome::TooMany(1));
    }
}
