//! Window functions: what they say of each row among the rows of its partition.
//!
//! A partition that changes is answered anew, as a whole, by DataFusion's own window expressions over its rows in order; what differs from
//! what was put out before is put out. Ties are put in order by the whole row, so the answer is a function of the rows that are there.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::compute::{SortOptions, cast};
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion_common::DataFusionError;
use datafusion_expr::expr::NullTreatment;
use datafusion_physical_expr::PhysicalSortExpr;
use datafusion_physical_expr::window::WindowExpr;
use datafusion_physical_plan::windows::create_window_expr;
use hashbrown::HashMap;
use weir_plan::Expr;

use super::exchange::exchange;
use super::keyed::{at_close, consolidate};
use super::rows::{Bytes, RowCodec};
use super::{Context, Relation};
use crate::checkpoint::{Share, State, encode};
use crate::delta::{DeltaBatch, Deltas, options};
use crate::expr::{Counters, Exprs, physical};

/// What is asked of the partitions.
pub(super) struct Question<'p> {
    pub(super) partition: &'p [Expr],
    pub(super) order: &'p [(Expr, bool)],
    pub(super) calls: &'p [(Expr, String)],
}

pub(super) fn over<'s>(
    input: &Relation<'s>,
    question: &Question<'_>,
    schema: &SchemaRef,
    context: &Context,
) -> Result<Deltas<'s>, weir_plan::Error> {
    let keys = Exprs::new(question.partition, &input.schema, "over, partition", &context.counters)?;
    let partitions = Partitions::new(question, input, schema, context)?;
    let partitions = context.keeper.keep(context.state_name("over"), partitions);
    let exchanged = exchange(&input.deltas, keys);
    Ok(at_close(&exchanged, "Over", None, move |tick, batches| partitions.borrow_mut().close(tick, batches)))
}

struct Partitions {
    /// The partition's expressions, then the order's.
    exprs: Exprs,
    partition: usize,
    order: usize,
    partition_codec: RowCodec,
    /// The order's columns, then the whole row: its bytes compare as rows are ordered.
    codec: RowCodec,
    input: SchemaRef,
    calls: Vec<Arc<dyn WindowExpr>>,
    schema: SchemaRef,
    /// Rows that are put out.
    shown_codec: RowCodec,
    counters: Arc<Counters>,
    partitions: HashMap<Bytes, Partition, foldhash::fast::FixedState>,
}

#[derive(Default)]
struct Partition {
    rows: BTreeMap<Bytes, i64>,
    /// What was put out last, copies repeated.
    shown: Vec<Bytes>,
    /// A function fails over its rows, so it has none.
    failed: bool,
}

/// The rows of each partition: what is shown follows from them.
type Saved = Vec<(Bytes, Vec<(Bytes, i64)>)>;

impl State for Partitions {
    type Saved = Saved;

    fn save(&self) -> Vec<u8> {
        let rows = |partition: &Partition| partition.rows.iter().map(|(row, count)| (row.clone(), *count)).collect();
        let partitions: Saved = self.partitions.iter().map(|(key, partition)| (key.clone(), rows(partition))).collect();
        encode(&partitions)
    }

    fn load(&mut self, parts: Vec<Saved>, share: Share) {
        for (key, rows) in parts.into_iter().flatten().filter(|(key, _)| share.owns(key)) {
            let mut partition = Partition { rows: rows.into_iter().collect(), ..Partition::default() };
            match self.answered(&partition) {
                Ok(shown) => partition.shown = shown,
                Err(_) => partition.failed = true,
            }
            self.partitions.insert(key, partition);
        }
    }
}

impl Partitions {
    fn new(
        question: &Question<'_>,
        input: &Relation<'_>,
        schema: &SchemaRef,
        context: &Context,
    ) -> Result<Self, weir_plan::Error> {
        let exprs = question.partition.iter().chain(question.order.iter().map(|(expr, _)| expr));
        let exprs = Exprs::new(exprs, &input.schema, "over", &context.counters)?;
        let types: Vec<_> = exprs.types().cloned().collect();
        let (partition, order) = types.split_at(question.partition.len());
        let order = order.iter().zip(question.order.iter().map(|(_, descending)| *descending));
        let row = input.schema.fields().iter().map(|field| (field.data_type(), false));
        let calls = question.calls.iter().map(|(call, name)| window_expr(call, name, &input.schema));
        Ok(Self {
            partition: partition.len(),
            order: order.len(),
            partition_codec: RowCodec::new(partition),
            codec: RowCodec::ordered(order.chain(row)),
            input: Arc::clone(&input.schema),
            calls: calls.collect::<Result<_, _>>()?,
            shown_codec: RowCodec::of(schema),
            schema: Arc::clone(schema),
            counters: Arc::clone(&context.counters),
            partitions: HashMap::default(),
            exprs,
        })
    }

    fn close(&mut self, tick: u64, batches: Vec<DeltaBatch>) -> Option<DeltaBatch> {
        let mut touched: Vec<Bytes> = batches.into_iter().flat_map(|batch| self.add(batch)).collect();
        touched.sort_unstable();
        touched.dedup();
        let mut moves: Vec<(Bytes, i64)> = vec![];
        for key in touched {
            let Some(mut partition) = self.partitions.remove(&key) else { continue };
            let before = std::mem::take(&mut partition.shown);
            let answered = self.answered(&partition);
            self.counters.add_failed(&mut partition.failed, answered.as_ref().err());
            partition.shown = answered.unwrap_or_default();
            moves.extend(before.into_iter().map(|row| (row, -1)));
            moves.extend(partition.shown.iter().map(|row| (row.clone(), 1)));
            if !partition.rows.is_empty() {
                self.partitions.insert(key, partition);
            }
        }
        consolidate(&mut moves);
        let diffs = moves.iter().map(|(_, diff)| *diff).collect();
        (!moves.is_empty()).then(|| self.shown_codec.batch(&self.schema, tick, moves.iter().map(|(row, _)| &**row), diffs))
    }

    /// Adds a batch's rows; returns the partitions they are in.
    fn add(&mut self, batch: DeltaBatch) -> Vec<Bytes> {
        let (batch, mut columns) = self.exprs.evaluate(batch);
        let order: Vec<ArrayRef> = columns.split_off(self.partition);
        let partitions = self.partition_codec.encode(&columns, batch.len());
        let all: Vec<_> = order.iter().chain(batch.rows.columns()).cloned().collect();
        let rows = self.codec.encode(&all, batch.len());
        let mut touched = vec![];
        for (row, &diff) in batch.diffs.iter().enumerate() {
            let key: Bytes = partitions.row(row).into();
            let partition = self.partitions.entry(key.clone()).or_default();
            let count = partition.rows.entry(rows.row(row).into()).or_default();
            *count += diff;
            if *count == 0 {
                partition.rows.remove(rows.row(row));
            }
            touched.push(key);
        }
        touched
    }

    /// The rows of a partition with what the functions say of them.
    fn answered(&self, partition: &Partition) -> Result<Vec<Bytes>, DataFusionError> {
        let copies = |(row, &count): (&'_ Bytes, &i64)| (row.clone(), usize::try_from(count).unwrap_or(0));
        let rows = partition.rows.iter().map(copies).flat_map(|(row, count)| std::iter::repeat_n(row, count)).collect::<Vec<_>>();
        if rows.is_empty() {
            return Ok(vec![]);
        }
        let mut columns = self.codec.decode(rows.iter().map(|row| &**row)).split_off(self.order);
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.input), columns.clone(), &options(rows.len()))?;
        for (call, field) in self.calls.iter().zip(self.schema.fields().iter().skip(columns.len())) {
            let made = call.evaluate(&batch)?;
            columns.push(if made.data_type() == field.data_type() { made } else { cast(&made, field.data_type())? });
        }
        let encoded = self.shown_codec.encode(&columns, rows.len());
        Ok((0..rows.len()).map(|row| encoded.row(row).into()).collect())
    }
}

fn window_expr(call: &Expr, name: &str, schema: &SchemaRef) -> Result<Arc<dyn WindowExpr>, weir_plan::Error> {
    let (coerced, _) = weir_plan::over_call(call, schema)?;
    let construct = format!("over ({call})");
    let failed = |source| weir_plan::Error::Expression { construct: construct.clone(), source: Box::new(source) };
    let Expr::WindowFunction(function) = coerced else { unreachable!("a call that is coerced is a call") };
    let params = &function.params;
    let args = params.args.iter().map(|arg| physical(arg, schema)).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let order = params.order_by.iter().map(|by| {
        let options = SortOptions { descending: !by.asc, nulls_first: by.nulls_first };
        Ok(PhysicalSortExpr { expr: physical(&by.expr, schema)?, options })
    });
    let order = order.collect::<Result<Vec<_>, DataFusionError>>().map_err(failed)?;
    let filter = params.filter.as_deref().map(|filter| physical(filter, schema)).transpose().map_err(failed)?;
    let (frame, nulls) = (Arc::new(params.window_frame.clone()), params.null_treatment == Some(NullTreatment::IgnoreNulls));
    create_window_expr(
        &function.fun,
        name.to_owned(),
        &args,
        &[],
        &order,
        frame,
        Arc::clone(schema),
        nulls,
        params.distinct,
        filter,
    )
    .map_err(failed)
}
