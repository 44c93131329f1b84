//! `TUMBLE(relation, time, size)` and `HOP(relation, time, hop, size)` in FROM: the relation's rows, once per window that holds them.
//!
//! The two columns `window_start` and `window_end` are added. `time` is a timestamp, or milliseconds since 1970 as BIGINT; the window's
//! bounds are of its type. Windows are aligned to 1970. What is asked of the relation's own columns is asked before the windows are made.

use std::any::Any;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion_common::{DFSchema, Result, ScalarValue, plan_err};
use datafusion_expr::logical_plan::TableScan;
use datafusion_expr::{Expr, LogicalPlan, TableSource};

use crate::lower::{Lowered, node, over};
use crate::{Error, resolve};

/// Rows in windows, as the planner sees them.
#[derive(Debug)]
pub(crate) struct Windowed {
    pub(crate) schema: SchemaRef,
    pub(crate) input: LogicalPlan,
    time: Expr,
    hop_ms: u64,
    size_ms: u64,
}

impl TableSource for Windowed {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}

impl Windowed {
    /// The arguments after the relation.
    pub(crate) fn new(function: &str, input: LogicalPlan, args: &[Expr]) -> Result<Self> {
        let (time, hop_ms, size_ms) = match (function, args) {
            (TUMBLE, [time, size]) => (time, milliseconds(size)?, milliseconds(size)?),
            (HOP, [time, hop, size]) => (time, milliseconds(hop)?, milliseconds(size)?),
            _ => return plan_err!("{USAGE}"),
        };
        let columns = Schema::new(input.schema().fields().iter().cloned().collect::<Vec<_>>());
        let bound = match resolve(time, &columns, "window") {
            Ok(found) => found.data_type,
            Err(why) => return plan_err!("{why}"),
        };
        let mut fields: Vec<Arc<Field>> = columns.fields().iter().cloned().collect();
        for name in [START, END] {
            if columns.field_with_name(name).is_ok() {
                return plan_err!("{function}: the relation has a column \"{name}\" already: rename it in a subquery");
            }
            fields.push(Arc::new(Field::new(name, bound.clone(), true)));
        }
        Ok(Self { schema: Arc::new(Schema::new(fields)), input, time: time.clone(), hop_ms, size_ms })
    }

    /// The windows of a scan, if it is one of windows.
    pub(crate) fn of(scan: &TableScan) -> Option<&Self> {
        let source: &dyn Any = scan.source.as_ref();
        source.downcast_ref()
    }

    /// Lowers the windows of rows that must also pass all of `passing`, which are over the scan's columns.
    pub(crate) fn lower(&self, scanned: &DFSchema, passing: Vec<Expr>) -> std::result::Result<Lowered, Error> {
        let on_bounds = |expr: &Expr| expr.column_refs().iter().any(|column| column.name == START || column.name == END);
        let (above, below): (Vec<_>, Vec<_>) = passing.into_iter().partition(on_bounds);
        let input = node(&self.input, Vec::new())?;
        let mut names = input.names.clone();
        let below = below.iter().map(|expr| over(expr, scanned, &names)).collect::<std::result::Result<Vec<_>, _>>()?;
        let time = over(&self.time, self.input.schema(), &names)?;
        let rows = match below.into_iter().reduce(Expr::and) {
            Some(predicate) => input.plan.filter(predicate),
            None => input.plan,
        };
        let plan = rows.hop(time, self.hop_ms, self.size_ms);
        names.extend([START.to_owned(), END.to_owned()]);
        let above = above.iter().map(|expr| over(expr, scanned, &names)).collect::<std::result::Result<Vec<_>, _>>()?;
        let plan = match above.into_iter().reduce(Expr::and) {
            Some(predicate) => plan.filter(predicate),
            None => plan,
        };
        Ok(Lowered { plan, names })
    }
}

/// The relation that a first argument names.
pub(crate) fn relation_of(args: &[Expr]) -> Result<(&str, &[Expr])> {
    match args.split_first() {
        Some((Expr::Column(column), rest)) => Ok((&column.name, rest)),
        _ => plan_err!("{USAGE}"),
    }
}

/// Whether a function in FROM makes windows.
pub(crate) fn is_window(function: &str) -> bool {
    [TUMBLE, HOP].contains(&function)
}

/// An interval of fixed length.
pub(crate) fn milliseconds(expr: &Expr) -> Result<u64> {
    let literal = match expr {
        Expr::Literal(value, _) => value.clone(),
        _ => return plan_err!("an interval is needed, such as INTERVAL '10 seconds', not {expr}"),
    };
    if let ScalarValue::IntervalMonthDayNano(Some(interval)) = literal {
        let millis = i64::from(interval.days) * MS_PER_DAY + interval.nanoseconds / NANOS_PER_MS;
        let whole = interval.months == 0 && interval.nanoseconds % NANOS_PER_MS == 0;
        return match u64::try_from(millis) {
            Ok(millis) if whole && millis > 0 => Ok(millis),
            _ => plan_err!("an interval of whole milliseconds and without months is needed, not {expr}"),
        };
    }
    match literal.cast_to(&DataType::Utf8) {
        Ok(found) => plan_err!("an interval is needed, such as INTERVAL '10 seconds', not {found}"),
        Err(_) => plan_err!("an interval is needed, such as INTERVAL '10 seconds'"),
    }
}

pub(crate) const START: &str = "window_start";
pub(crate) const END: &str = "window_end";
const TUMBLE: &str = "tumble";
const HOP: &str = "hop";
const USAGE: &str = "windows are TUMBLE(relation, time, INTERVAL 'size') or HOP(relation, time, INTERVAL 'hop', INTERVAL 'size')";
const MS_PER_DAY: i64 = 86_400_000;
const NANOS_PER_MS: i64 = 1_000_000;
