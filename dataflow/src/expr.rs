//! Scalar expressions over batches: DataFusion's, compiled once per operator.
//!
//! Promise: a row for which an expression fails (1/0, a number that does not fit) never stops a view and never spoils other
//! rows. It is left out of the answer and counted with its diff, so the count falls again when the row goes.
//! Integer `+ - *` and negation raise on overflow, as in PostgreSQL; DataFusion's own plans would wrap.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, PrimitiveArray, new_empty_array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type, Schema, TimeUnit, TimestampNanosecondType};
use arrow::record_batch::RecordBatch;
use datafusion_common::DFSchema;
use datafusion_common::tree_node::{Transformed, TreeNode};
use datafusion_expr::execution_props::ExecutionProps;
use datafusion_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion_expr::{Expr, Operator};
use datafusion_physical_expr::expressions::{BinaryExpr, Column, NegativeExpr, lit};
use datafusion_physical_expr::{PhysicalExpr, create_physical_expr};
use weir_plan::resolve;

use crate::checkpoint::{Share, State, encode};
use crate::delta::{DeltaBatch, compact};
use crate::lift::lift;

/// What operators count. One per view; read from other threads.
#[derive(Debug, Default)]
pub struct Counters {
    bad_rows: AtomicI64,
    forgotten: AtomicU64,
    unmatched: AtomicU64,
    overflows: AtomicU64,
    last_error: Mutex<Option<String>>,
}

impl Counters {
    /// Rows left out at this moment because an expression fails for them.
    pub fn bad_rows(&self) -> i64 {
        self.bad_rows.load(Relaxed)
    }

    /// Rows ignored because their group is forgotten.
    pub fn forgotten(&self) -> u64 {
        self.forgotten.load(Relaxed)
    }

    /// Withdrawals of what was not there. Above 0 an operator upstream is wrong.
    pub fn unmatched(&self) -> u64 {
        self.unmatched.load(Relaxed)
    }

    /// Times that a sum did not fit 64 bits and was answered with NULL.
    pub fn overflows(&self) -> u64 {
        self.overflows.load(Relaxed)
    }

    /// Why a row was left out, most recently.
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Bad, forgotten and unmatched rows, and overflows.
    fn counts(&self) -> (i64, u64, u64, u64) {
        (self.bad_rows(), self.forgotten(), self.unmatched(), self.overflows())
    }

    pub(crate) fn add_bad(&self, diff: i64, error: &dyn std::fmt::Display) {
        self.bad_rows.fetch_add(diff, Relaxed);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
    }

    /// Notes whether what stands for several rows fails now: it counts as one bad row while it does.
    pub(crate) fn add_failed(&self, failed: &mut bool, error: Option<&datafusion_common::DataFusionError>) {
        match (*failed, error) {
            (false, Some(error)) => self.add_bad(1, error),
            (true, None) => drop(self.bad_rows.fetch_sub(1, Relaxed)),
            _ => {}
        }
        *failed = error.is_some();
    }

    pub(crate) fn add_forgotten(&self, rows: u64) {
        self.forgotten.fetch_add(rows, Relaxed);
    }

    pub(crate) fn add_unmatched(&self, rows: u64) {
        self.unmatched.fetch_add(rows, Relaxed);
    }

    pub(crate) fn add_overflow(&self) {
        self.overflows.fetch_add(1, Relaxed);
    }
}

/// The counters of a view in a checkpoint.
pub(crate) struct KeptCounters(pub(crate) Arc<Counters>);

impl State for KeptCounters {
    type Saved = (i64, u64, u64, u64);

    fn save(&self) -> Vec<u8> {
        encode(&self.0.counts())
    }

    fn load(&mut self, parts: Vec<Self::Saved>, share: Share) {
        for (bad, forgotten, unmatched, overflows) in parts.into_iter().filter(|_| share.is_first()) {
            self.0.bad_rows.fetch_add(bad, Relaxed);
            self.0.forgotten.fetch_add(forgotten, Relaxed);
            self.0.unmatched.fetch_add(unmatched, Relaxed);
            self.0.overflows.fetch_add(overflows, Relaxed);
        }
    }
}

/// Expressions of one operator, compiled.
#[derive(Debug, Clone)]
pub struct Exprs {
    exprs: Vec<Compiled>,
    counters: Arc<Counters>,
}

#[derive(Debug, Clone)]
struct Compiled {
    expr: Arc<dyn PhysicalExpr>,
    data_type: DataType,
    /// The expression is this column as it is.
    column: Option<usize>,
}

impl Exprs {
    /// Compiles expressions over rows of `schema`. `construct` names the operator in errors.
    pub fn new<'e>(
        exprs: impl IntoIterator<Item = &'e Expr>,
        schema: &Schema,
        construct: &str,
        counters: &Arc<Counters>,
    ) -> Result<Self, weir_plan::Error> {
        let exprs = exprs.into_iter().map(|expr| compile(expr, schema, construct)).collect::<Result<_, _>>()?;
        Ok(Self { exprs, counters: Arc::clone(counters) })
    }

    /// Their types, in order.
    pub fn types(&self) -> impl Iterator<Item = &DataType> {
        self.exprs.iter().map(|compiled| &compiled.data_type)
    }

    /// Each expression's column, and the batch without the rows for which one fails.
    pub fn evaluate(&self, batch: DeltaBatch) -> (DeltaBatch, Vec<ArrayRef>) {
        match self.columns(&batch.rows) {
            Ok(columns) => (batch, columns),
            Err(_) => self.evaluate_good(&batch),
        }
    }

    /// Whether each row passes the one predicate; a row for which it fails does not.
    pub fn passes(&self, batch: &DeltaBatch) -> Vec<bool> {
        let verdict =
            |columns: &[ArrayRef]| columns[0].as_boolean().iter().map(|passes| passes == Some(true)).collect::<Vec<_>>();
        if let Ok(columns) = self.columns(&batch.rows) {
            return verdict(&columns);
        }
        let mut passes = self.good_rows(batch);
        if !passes.contains(&true) {
            return passes;
        }
        let good = batch.filter(&BooleanArray::from(passes.clone())).compact();
        let columns = self.columns(&good.rows).expect("scalar expressions that hold for each row hold for all");
        let mut verdicts = verdict(&columns).into_iter();
        passes.iter_mut().filter(|good| **good).for_each(|good| *good = verdicts.next() == Some(true));
        passes
    }

    fn evaluate_good(&self, batch: &DeltaBatch) -> (DeltaBatch, Vec<ArrayRef>) {
        let good = batch.filter(&BooleanArray::from(self.good_rows(batch))).compact();
        // What fails whatever the row, as 1/0 does, fails over no rows, too.
        if good.is_empty() {
            return (good, self.types().map(new_empty_array).collect());
        }
        let columns = self.columns(&good.rows).expect("scalar expressions that hold for each row hold for all");
        (good, columns)
    }

    /// The bisection: halves of the batch, down to the single rows that fail. Counts those. Dictionaries are compacted first: a cast goes over
    /// all of their values, and one that no row at hand uses must not fail them.
    fn good_rows(&self, batch: &DeltaBatch) -> Vec<bool> {
        let mut good = vec![false; batch.len()];
        let mut parts = vec![(0, batch.len())];
        while let Some((start, len)) = parts.pop() {
            match self.columns(&compact(&batch.rows.slice(start, len))) {
                Ok(_) => good[start..start + len].fill(true),
                Err(error) if len == 1 => self.counters.add_bad(batch.diffs[start], &error),
                Err(_) => parts.extend([(start, len / 2), (start + len / 2, len - len / 2)]),
            }
        }
        good
    }

    fn columns(&self, rows: &RecordBatch) -> Result<Vec<ArrayRef>, datafusion_common::DataFusionError> {
        self.exprs.iter().map(|compiled| compiled.column(rows)).collect()
    }
}

impl Compiled {
    fn column(&self, rows: &RecordBatch) -> Result<ArrayRef, datafusion_common::DataFusionError> {
        if let Some(index) = self.column {
            return Ok(Arc::clone(rows.column(index)));
        }
        let column = self.expr.evaluate(rows)?.into_array(rows.num_rows())?;
        if column.data_type() == &self.data_type {
            return Ok(column);
        }
        Ok(cast(&column, &self.data_type)?)
    }
}

fn compile(expr: &Expr, schema: &Schema, construct: &str) -> Result<Compiled, weir_plan::Error> {
    let scalar = resolve(expr, schema, construct)?;
    let failed = |source| weir_plan::Error::Expression { construct: format!("{construct} ({expr})"), source: Box::new(source) };
    let context = DFSchema::try_from(schema.clone()).map_err(failed)?;
    let props = ExecutionProps::new();
    let plain = create_physical_expr(&scalar.expr, &context, &props, &PhysicalPlanningContext::default()).map_err(failed)?;
    let expr = checked(plain, schema).and_then(|expr| lift(expr, schema)).map_err(failed)?;
    let column = expr.downcast_ref::<Column>().map(Column::index);
    let column = column.filter(|&index| schema.field(index).data_type() == &scalar.data_type);
    Ok(Compiled { expr, data_type: scalar.data_type, column })
}

/// An expression that is resolved already, as operators evaluate it.
pub(crate) fn physical(expr: &Expr, schema: &Schema) -> Result<Arc<dyn PhysicalExpr>, datafusion_common::DataFusionError> {
    let context = DFSchema::try_from(schema.clone())?;
    let plain = create_physical_expr(expr, &context, &ExecutionProps::new(), &PhysicalPlanningContext::default())?;
    checked(plain, schema)
}

/// The same expression, with arithmetic that raises where it would wrap. −x becomes 0 − x.
fn checked(expr: Arc<dyn PhysicalExpr>, schema: &Schema) -> Result<Arc<dyn PhysicalExpr>, datafusion_common::DataFusionError> {
    let rewritten = expr.transform_up(|node| {
        if let Some(binary) = node.downcast_ref::<BinaryExpr>() {
            let (left, right) = (Arc::clone(binary.left()), Arc::clone(binary.right()));
            return Ok(Transformed::yes(raising(left, *binary.op(), right)));
        }
        if let Some(negative) = node.downcast_ref::<NegativeExpr>() {
            let zero = match negative.arg().data_type(schema)? {
                integer if integer.is_integer() => datafusion_common::ScalarValue::new_zero(&integer)?,
                _ => return Ok(Transformed::no(node)),
            };
            return Ok(Transformed::yes(raising(lit(zero), Operator::Minus, Arc::clone(negative.arg()))));
        }
        Ok(Transformed::no(node))
    });
    Ok(rewritten?.data)
}

fn raising(left: Arc<dyn PhysicalExpr>, op: Operator, right: Arc<dyn PhysicalExpr>) -> Arc<dyn PhysicalExpr> {
    let arithmetic = matches!(op, Operator::Plus | Operator::Minus | Operator::Multiply);
    Arc::new(BinaryExpr::new(left, op, right).with_fail_on_overflow(arithmetic))
}

/// A moment as the first whole millisecond that is not before it; None where NULL.
pub(crate) fn moments(column: &ArrayRef) -> PrimitiveArray<Int64Type> {
    match column.data_type() {
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            let nanos = column.as_primitive::<TimestampNanosecondType>();
            nanos.unary(|nanos| nanos.div_euclid(NANOS_PER_MS) + i64::from(nanos.rem_euclid(NANOS_PER_MS) != 0))
        }
        DataType::Timestamp(..) => {
            let nanos =
                cast(column, &DataType::Timestamp(TimeUnit::Nanosecond, None)).expect("a timestamp casts to its finest unit");
            moments(&nanos)
        }
        _ => {
            column.as_any().downcast_ref::<Int64Array>().expect("the plan was checked: a moment is a timestamp or BIGINT").clone()
        }
    }
}

/// A tick from milliseconds; what lies before 1970 is tick 0.
pub(crate) fn tick_of(ms: i64) -> u64 {
    u64::try_from(ms).unwrap_or(0)
}

const NANOS_PER_MS: i64 = 1_000_000;

#[cfg(test)]
mod tests {
    use arrow::datatypes::Field;
    use weir_plan::{col, lit};

    use super::*;
    use crate::delta::integers;

    fn run(expr: &Expr, values: Vec<i64>) -> (Vec<Option<i64>>, Vec<i64>, i64) {
        let schema = Arc::new(Schema::new(vec![Field::new("x", DataType::Int64, true)]));
        let rows = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(Int64Array::from(values.clone()))]).unwrap();
        let counters = Arc::new(Counters::default());
        let exprs = Exprs::new([expr], &schema, "test", &counters).unwrap();
        let diffs = (1..).take(values.len()).collect();
        let (batch, columns) = exprs.evaluate(DeltaBatch::new(0, rows, diffs));
        (integers(&columns[0]), batch.diffs, counters.bad_rows())
    }

    #[test]
    fn bad_rows_are_left_out_and_counted_with_their_diff() {
        assert_eq!(
            run(&(lit(60_i64) / col("x")), vec![1, 0, 2, 0, 3]),
            (vec![Some(60), Some(30), Some(20)], vec![1, 3, 5], 2 + 4)
        );
        assert_eq!(run(&(lit(60_i64) / col("x")), vec![0]), (vec![], vec![], 1));
        assert_eq!(run(&(lit(60_i64) / col("x")), vec![]), (vec![], vec![], 0));
    }

    #[test]
    fn integers_raise_instead_of_wrapping() {
        for expr in [
            col("x") + lit(1_i64),
            col("x") * lit(2_i64),
            lit(-2_i64) - col("x"),
            Expr::Negative(Box::new(-col("x") - lit(1_i64))),
        ] {
            let (values, diffs, bad) = run(&expr, vec![i64::MAX, 1]);
            assert_eq!((values.len(), diffs, bad), (1, vec![2], 1), "{expr}");
        }
        assert_eq!(run(&-col("x"), vec![i64::MIN, 5]), (vec![Some(-5)], vec![2], 1));
    }

    #[test]
    fn the_clock_and_chance_are_refused() {
        let schema = Schema::new(vec![Field::new("x", DataType::Int64, true)]);
        for (expr, name) in
            [(datafusion_functions::math::expr_fn::random(), "random"), (datafusion_functions::datetime::expr_fn::now(), "now")]
        {
            let error = Exprs::new([&expr], &schema, "filter", &Arc::default()).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("not supported"), "{error}");
        }
    }
}
