//! Expressions over text, evaluated once per value of a dictionary instead of once per row.
//!
//! A subtree that reads one text column is a function of that column's value: it is evaluated over the dictionary, and each row takes its
//! result by its code. Two text columns are compared by codes that both dictionaries share. What was evaluated is kept for as long as
//! batches come with the same dictionary. Promise: the result, and which rows fail, are those of the expression itself.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, DictionaryArray, Int64Array, UInt32Array};
use arrow::buffer::{BooleanBuffer, NullBuffer};
use arrow::compute::take;
use arrow::datatypes::{DataType, Int64Type, Schema, SchemaRef, UInt32Type};
use arrow::record_batch::RecordBatch;
use datafusion_common::{Result, internal_err};
use datafusion_expr::{ColumnarValue, Operator};
use datafusion_physical_expr::PhysicalExpr;
use datafusion_physical_expr::expressions::{BinaryExpr, Column};
use hashbrown::HashMap;

/// The same expression, with its subtrees over text lifted.
pub(crate) fn lift(expr: Arc<dyn PhysicalExpr>, schema: &Schema) -> Result<Arc<dyn PhysicalExpr>> {
    if expr.children().is_empty() {
        return Ok(expr);
    }
    let mut columns = Vec::new();
    columns_of(&expr, &mut columns);
    if let [column] = columns.as_slice()
        && is_text(schema, *column)
    {
        let field = schema.field(*column).clone();
        let over_one = over(&expr, &column_at(field.name(), 0))?;
        let column = column_at(field.name(), *column);
        let schema = Arc::new(Schema::new(vec![field]));
        return Ok(Arc::new(Lifted { expr, over_one, column, schema, known: Mutex::default() }));
    }
    if let Some(compared) = Compared::of(&expr, schema) {
        return Ok(Arc::new(compared));
    }
    let children = expr.children().into_iter().map(|child| lift(Arc::clone(child), schema)).collect::<Result<Vec<_>>>()?;
    expr.with_new_children(children)
}

fn is_text(schema: &Schema, column: usize) -> bool {
    *schema.field(column).data_type() == weir_plan::text_type()
}

fn columns_of(expr: &Arc<dyn PhysicalExpr>, columns: &mut Vec<usize>) {
    if let Some(column) = expr.downcast_ref::<Column>()
        && !columns.contains(&column.index())
    {
        columns.push(column.index());
    }
    expr.children().into_iter().for_each(|child| columns_of(child, columns));
}

fn column_at(name: &str, index: usize) -> Arc<dyn PhysicalExpr> {
    Arc::new(Column::new(name, index))
}

fn index_of(column: &Arc<dyn PhysicalExpr>) -> Option<usize> {
    column.downcast_ref::<Column>().map(Column::index)
}

/// The expression, which reads one column, over another column instead.
fn over(expr: &Arc<dyn PhysicalExpr>, column: &Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>> {
    if expr.downcast_ref::<Column>().is_some() {
        return Ok(Arc::clone(column));
    }
    let children = expr.children().into_iter().map(|child| over(child, column)).collect::<Result<Vec<_>>>()?;
    if children.is_empty() { Ok(Arc::clone(expr)) } else { Arc::clone(expr).with_new_children(children) }
}

/// An expression over one text column.
struct Lifted {
    expr: Arc<dyn PhysicalExpr>,
    over_one: Arc<dyn PhysicalExpr>,
    /// Told as a child, because CASE gives its parts a batch of the columns that they name, and new places of them.
    column: Arc<dyn PhysicalExpr>,
    schema: SchemaRef,
    /// The last dictionary, and the result for each of its values; behind them the one for NULL.
    known: Mutex<Option<(ArrayRef, ArrayRef)>>,
}

impl Lifted {
    /// The result per value of a dictionary; none when one of them fails.
    fn per_value(&self, values: &ArrayRef) -> Option<ArrayRef> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, results)) = &*known
            && Arc::ptr_eq(of, values)
        {
            return Some(Arc::clone(results));
        }
        let len = u32::try_from(values.len()).ok()?;
        let keys: UInt32Array = (0..len).map(Some).chain([None]).collect();
        let column: ArrayRef = Arc::new(DictionaryArray::<UInt32Type>::new(keys, Arc::clone(values)));
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), vec![column]).ok()?;
        let results = self.over_one.evaluate(&batch).and_then(|found| found.into_array(batch.num_rows())).ok()?;
        *known = Some((Arc::clone(values), Arc::clone(&results)));
        Some(results)
    }
}

impl PhysicalExpr for Lifted {
    fn data_type(&self, schema: &Schema) -> Result<DataType> {
        self.expr.data_type(schema)
    }

    fn nullable(&self, schema: &Schema) -> Result<bool> {
        self.expr.nullable(schema)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        // CASE asks what its conditions are of a batch without columns, and takes an error for an answer.
        let column = index_of(&self.column).and_then(|column| batch.columns().get(column));
        let text = column.and_then(|column| column.as_any().downcast_ref::<DictionaryArray<UInt32Type>>());
        let worth = text.filter(|text| text.values().len() <= text.len());
        // A value that no row uses may fail: then each row is asked, so that only rows that fail do.
        let Some((text, results)) = worth.and_then(|text| Some((text, self.per_value(text.values())?))) else {
            return self.expr.evaluate(batch);
        };
        Ok(ColumnarValue::Array(gather(text, &results)?))
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.column]
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        let [column] = children.as_slice() else { return internal_err!("a lifted expression is over one column") };
        let expr = over(&self.expr, column)?;
        if index_of(column).is_none() {
            return Ok(expr);
        }
        let (over_one, schema) = (Arc::clone(&self.over_one), Arc::clone(&self.schema));
        Ok(Arc::new(Self { expr, over_one, column: Arc::clone(column), schema, known: Mutex::default() }))
    }

    fn fmt_sql(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.expr.fmt_sql(out)
    }
}

/// Each row's result, by its code.
fn gather(text: &DictionaryArray<UInt32Type>, results: &ArrayRef) -> Result<ArrayRef> {
    let (codes, null) = (text.keys(), results.len() - 1);
    let place = |row: usize| if codes.is_valid(row) { codes.value(row) as usize } else { null };
    if results.null_count() == 0 {
        if let Some(results) = results.as_boolean_opt() {
            let per_value: Vec<bool> = results.values().iter().collect();
            let passes = if codes.null_count() == 0 {
                let codes = codes.values();
                BooleanBuffer::collect_bool(codes.len(), |row| per_value[codes[row] as usize])
            } else {
                BooleanBuffer::collect_bool(codes.len(), |row| per_value[place(row)])
            };
            return Ok(Arc::new(BooleanArray::new(passes, None)));
        }
        if let Some(results) = results.as_primitive_opt::<Int64Type>() {
            let per_value = results.values();
            return Ok(Arc::new(Int64Array::from_iter_values((0..codes.len()).map(|row| per_value[place(row)]))));
        }
    }
    let places = UInt32Array::from_iter_values((0..codes.len()).map(|row| u32::try_from(place(row)).unwrap_or(u32::MAX)));
    Ok(take(results, &places, None)?)
}

/// `a = b` or `a <> b` of two text columns.
struct Compared {
    expr: Arc<dyn PhysicalExpr>,
    columns: [usize; 2],
    equal: bool,
    known: Mutex<Option<Shared>>,
}

/// Two dictionaries, and for each of their values a number that equal values share.
struct Shared {
    values: [ArrayRef; 2],
    numbers: Arc<[Vec<u32>; 2]>,
}

impl Compared {
    fn of(expr: &Arc<dyn PhysicalExpr>, schema: &Schema) -> Option<Self> {
        let binary = expr.downcast_ref::<BinaryExpr>()?;
        let equal = match binary.op() {
            Operator::Eq => true,
            Operator::NotEq => false,
            _ => return None,
        };
        let columns = [binary.left(), binary.right()].map(|side| side.downcast_ref::<Column>().map(Column::index));
        let columns = [columns[0]?, columns[1]?];
        let texts = columns.iter().all(|&column| is_text(schema, column));
        texts.then(|| Self { expr: Arc::clone(expr), columns, equal, known: Mutex::default() })
    }

    fn numbers(&self, values: [&ArrayRef; 2]) -> Arc<[Vec<u32>; 2]> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = &*known
            && shared.values.iter().zip(values).all(|(of, values)| Arc::ptr_eq(of, values))
        {
            return Arc::clone(&shared.numbers);
        }
        let mut found: HashMap<String, u32> = HashMap::new();
        let numbers = values.map(|values| {
            let numbered = values.as_string::<i32>().iter().map(|text| {
                let next = u32::try_from(found.len()).unwrap_or(u32::MAX);
                text.map_or(u32::MAX, |text| *found.entry_ref(text).or_insert(next))
            });
            numbered.collect::<Vec<_>>()
        });
        let numbers = Arc::new(numbers);
        *known = Some(Shared { values: values.map(Arc::clone), numbers: Arc::clone(&numbers) });
        numbers
    }
}

impl PhysicalExpr for Compared {
    fn data_type(&self, _: &Schema) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    fn nullable(&self, schema: &Schema) -> Result<bool> {
        self.expr.nullable(schema)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        let text = |column: usize| batch.columns().get(column)?.as_any().downcast_ref::<DictionaryArray<UInt32Type>>();
        let (Some(left), Some(right)) = (text(self.columns[0]), text(self.columns[1])) else { return self.expr.evaluate(batch) };
        let plain =
            |text: &DictionaryArray<UInt32Type>| *text.values().data_type() == DataType::Utf8 && text.values().null_count() == 0;
        if left.values().len() + right.values().len() > batch.num_rows() || !plain(left) || !plain(right) {
            return self.expr.evaluate(batch);
        }
        let numbers = self.numbers([left.values(), right.values()]);
        let (over_left, over_right) = (left.keys().values(), right.keys().values());
        // The code of a NULL may be any.
        let number = |side: usize, code: u32| numbers[side].get(code as usize);
        let equal = BooleanBuffer::collect_bool(batch.num_rows(), |row| {
            (number(0, over_left[row]) == number(1, over_right[row])) == self.equal
        });
        let nulls = NullBuffer::union(left.keys().nulls(), right.keys().nulls());
        Ok(ColumnarValue::Array(Arc::new(BooleanArray::new(equal, nulls))))
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        self.expr.children()
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        let columns = [children.first().and_then(index_of), children.get(1).and_then(index_of)];
        let expr = Arc::clone(&self.expr).with_new_children(children)?;
        match columns {
            [Some(left), Some(right)] => {
                Ok(Arc::new(Self { expr, columns: [left, right], equal: self.equal, known: Mutex::default() }))
            }
            _ => Ok(expr),
        }
    }

    fn fmt_sql(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.expr.fmt_sql(out)
    }
}

/// Both are the expression that they stand for.
macro_rules! stands_for_its_expression {
    ($($lifted:ident)*) => {$(
        impl PartialEq for $lifted {
            fn eq(&self, other: &Self) -> bool {
                self.expr.eq(&other.expr)
            }
        }

        impl Eq for $lifted {}

        impl Hash for $lifted {
            fn hash<H: Hasher>(&self, state: &mut H) {
                self.expr.hash(state);
            }
        }

        impl fmt::Debug for $lifted {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(out, "per value: {:?}", self.expr)
            }
        }

        impl fmt::Display for $lifted {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.expr.fmt(out)
            }
        }
    )*};
}

stands_for_its_expression!(Lifted Compared);

#[cfg(test)]
mod tests {
    use arrow::array::StringArray;
    use arrow::datatypes::Field;
    use proptest::prelude::*;
    use weir_plan::{Expr, col, lit};

    use super::*;
    use crate::delta::DeltaBatch;
    use crate::expr::{Counters, Exprs};

    /// A text column whose dictionary may hold a value twice, and values that no row uses.
    fn text(codes: &[Option<u8>]) -> ArrayRef {
        let values = ["a", "b", "7", "", "a", "12", "x"];
        let keys: UInt32Array = codes.iter().map(|code| code.map(|code| u32::from(code) % 6)).collect();
        Arc::new(DictionaryArray::<UInt32Type>::new(keys, Arc::new(StringArray::from(values.to_vec()))))
    }

    fn number(text: &str) -> Expr {
        weir_plan::cast(col(text), DataType::Int64)
    }

    proptest! {
        // Compiling the expressions is what takes long.
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn lifted_expressions_answer_as_plain_ones(
            rows in prop::collection::vec((prop::option::of(0_u8..6), prop::option::of(0_u8..6), 0_i64..3), 0..24)
        ) {
            let (left, right): (Vec<_>, Vec<_>) = rows.iter().map(|(left, right, _)| (*left, *right)).unzip();
            let number_of_row = Int64Array::from_iter_values(rows.iter().map(|(_, _, n)| *n));
            let fields = [("s", weir_plan::text_type()), ("t", weir_plan::text_type()), ("n", DataType::Int64)];
            let schema = Arc::new(Schema::new(fields.map(|(name, ty)| Field::new(name, ty, true)).to_vec()));
            let columns: Vec<ArrayRef> = vec![text(&left), text(&right), Arc::new(number_of_row)];
            let batch = RecordBatch::try_new(Arc::clone(&schema), columns).unwrap();
            for expr in [
                col("s").in_list(vec![lit("a"), lit("7")], false),
                col("s").eq(col("t")),
                col("s").not_eq(col("t")).and(col("n").gt(lit(0_i64)).or(col("t").is_null())),
                weir_plan::when(col("s").eq(lit("a")), lit(1_i64)).otherwise(lit(-1_i64)).unwrap(),
                // CASE gives its parts a batch of only the columns that they name.
                weir_plan::when(col("t").eq(lit("a")), col("n")).when(col("t").eq(col("s")), lit(7_i64)).end().unwrap(),
                weir_plan::when(col("t").like(lit("%a%")), lit(1_i64)).when(col("n").gt(lit(1_i64)), lit(2_i64)).end().unwrap(),
                number("s") + col("n"),
                col("t").like(lit("%a%")),
            ] {
                let counters = Arc::new(Counters::default());
                let exprs = Exprs::new([&expr], &schema, "test", &counters).unwrap();
                // Row by row there is nothing to lift: the dictionary is longer than the batch.
                let plain: String = (0..batch.num_rows()).map(|row| answer(&exprs, &batch.slice(row, 1))).collect();
                let bad = counters.bad_rows();
                prop_assert_eq!(answer(&exprs, &batch), plain, "{}", expr);
                prop_assert_eq!(counters.bad_rows(), bad * 2, "{}", expr);
            }
        }
    }

    fn answer(exprs: &Exprs, rows: &RecordBatch) -> String {
        let (_, columns) = exprs.evaluate(DeltaBatch::inserted(0, rows.clone()));
        let shown = arrow::compute::cast(&columns[0], &DataType::Utf8).unwrap();
        shown.as_string::<i32>().iter().map(|value| format!("{value:?} ")).collect()
    }
}
