//! The first rows per partition, in order, with their rank.
//!
//! All rows are kept, since any may come first when others go. One ranking over all is made in two steps: each worker ranks
//! its own share, and only its first rows go to the one worker that merges.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array};
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use hashbrown::HashMap;
use weir_plan::Expr;

use super::exchange::{exchange, owner};
use super::keyed::at_close;
use super::rows::{Bytes, RowCodec};
use super::{Context, Relation};
use crate::checkpoint::{Share, State, encode};
use crate::delta::{DeltaBatch, Deltas, options};
use crate::expr::Exprs;

/// What is asked of the order.
pub(super) struct Question<'p> {
    pub(super) partition: &'p [Expr],
    pub(super) order: &'p [(Expr, bool)],
    pub(super) limit: u64,
}

pub(super) fn top_k<'s>(
    input: &Relation<'s>,
    question: &Question<'_>,
    schema: &SchemaRef,
    context: &Context,
) -> Result<Deltas<'s>, weir_plan::Error> {
    let keys = Exprs::new(question.partition, &input.schema, "top-k, partition", &context.counters)?;
    let mut input = input.clone();
    let name = context.state_name("top_k");
    let spread = question.partition.is_empty() && input.deltas.scope().peers() > 1;
    if spread {
        let columns: Vec<_> = input.schema.fields().iter().map(|field| datafusion_expr::ident(field.name())).collect();
        let whole_row = Exprs::new(&columns, &input.schema, "top-k", &context.counters)?;
        let share = Ranking { spread: true, ..Ranking::new(question, &input, &input.schema, context)? };
        let share = context.keeper.keep(name.clone(), share);
        let spread = exchange(&input.deltas, whole_row);
        input.deltas = at_close(&spread, "TopKShare", None, move |tick, batches| share.borrow_mut().close(tick, batches));
    }
    let mut ranking = Ranking { ranked: true, ..Ranking::new(question, &input, schema, context)? };
    let exchanged = exchange(&input.deltas, keys);
    if spread {
        ranking.merge(context.keeper.saved(&name), context.keeper.share());
        return Ok(at_close(&exchanged, "TopK", None, move |tick, batches| ranking.close(tick, batches)));
    }
    let ranking = context.keeper.keep(name, ranking);
    Ok(at_close(&exchanged, "TopK", None, move |tick, batches| ranking.borrow_mut().close(tick, batches)))
}

/// All rows of each partition, however they are spread: what is shown follows from them.
type Saved = Vec<(Bytes, Vec<(Bytes, i64)>)>;

impl State for Ranking {
    type Saved = Saved;

    fn save(&self) -> Vec<u8> {
        let rows = |partition: &Partition| partition.rows.iter().map(|(row, count)| (row.clone(), *count)).collect();
        let partitions: Saved = self.partitions.iter().map(|(key, partition)| (key.clone(), rows(partition))).collect();
        encode(&partitions)
    }

    fn load(&mut self, parts: Vec<Saved>, share: Share) {
        for (key, rows) in parts.into_iter().flatten() {
            let owners = self.spread.then(|| self.owners(&rows, share.peers));
            for (place, (row, count)) in rows.into_iter().enumerate() {
                let is_ours = owners.as_ref().map_or_else(|| share.owns(&key), |owners| owners[place] == share.index);
                if is_ours {
                    self.partitions.entry(key.clone()).or_default().add(&row, count);
                }
            }
        }
        for partition in self.partitions.values_mut() {
            partition.shown = partition.first(self.limit);
        }
    }
}

struct Ranking {
    /// The partition's expressions, then the order's.
    exprs: Exprs,
    partition: usize,
    order: usize,
    partition_codec: RowCodec,
    /// The order's columns, then the whole row: its bytes compare as rows are ranked.
    codec: RowCodec,
    limit: usize,
    /// Whether the rank is put out as the last column.
    ranked: bool,
    /// Whether rows come to the owner of the whole row, and not to that of their partition.
    spread: bool,
    schema: SchemaRef,
    partitions: HashMap<Bytes, Partition, foldhash::fast::FixedState>,
}

#[derive(Default)]
struct Partition {
    rows: BTreeMap<Bytes, i64>,
    /// What was put out last, best first, copies repeated.
    shown: Vec<Bytes>,
}

/// A row of the ranking that came or went: its bytes, its rank, its diff.
type Move = (Bytes, i64, i64);

impl Ranking {
    fn new(
        question: &Question<'_>,
        input: &Relation<'_>,
        schema: &SchemaRef,
        context: &Context,
    ) -> Result<Self, weir_plan::Error> {
        let exprs = question.partition.iter().chain(question.order.iter().map(|(expr, _)| expr));
        let exprs = Exprs::new(exprs, &input.schema, "top-k", &context.counters)?;
        let types: Vec<_> = exprs.types().cloned().collect();
        let (partition, order) = types.split_at(question.partition.len());
        let order = order.iter().zip(question.order.iter().map(|(_, descending)| *descending));
        let row = input.schema.fields().iter().map(|field| (field.data_type(), false));
        Ok(Self {
            partition: partition.len(),
            order: order.len(),
            partition_codec: RowCodec::new(partition),
            codec: RowCodec::ordered(order.chain(row)),
            limit: usize::try_from(question.limit).unwrap_or(usize::MAX),
            ranked: false,
            spread: false,
            schema: Arc::clone(schema),
            partitions: HashMap::default(),
            exprs,
        })
    }

    /// The worker that each row comes to when they are spread.
    fn owners(&self, rows: &[(Bytes, i64)], peers: usize) -> Vec<usize> {
        let columns = self.codec.decode(rows.iter().map(|(row, _)| &**row)).split_off(self.order);
        let codec = RowCodec::new(columns.iter().map(|column| column.data_type()));
        let bytes = codec.encode(&columns, rows.len());
        (0..rows.len()).map(|row| owner(bytes.row(row), peers)).collect()
    }

    /// Takes up what the shares of all workers show: the first of the rows that come to each.
    fn merge(&mut self, parts: Vec<Saved>, share: Share) {
        for (key, rows) in parts.into_iter().flatten().filter(|(key, _)| share.owns(key)) {
            let owners = self.owners(&rows, share.peers);
            let mut shares: Vec<Partition> = (0..share.peers).map(|_| Partition::default()).collect();
            for ((row, count), owner) in rows.iter().zip(owners) {
                shares[owner].add(row, *count);
            }
            let merged = self.partitions.entry(key).or_default();
            for row in shares.iter().flat_map(|share| share.first(self.limit)) {
                merged.add(&row, 1);
            }
        }
        for partition in self.partitions.values_mut() {
            partition.shown = partition.first(self.limit);
        }
    }

    fn close(&mut self, tick: u64, batches: Vec<DeltaBatch>) -> Option<DeltaBatch> {
        let mut touched: Vec<Bytes> = batches.into_iter().flat_map(|batch| self.add(batch)).collect();
        touched.sort_unstable();
        touched.dedup();
        let mut moves: Vec<Move> = vec![];
        for key in touched {
            let Some(partition) = self.partitions.get_mut(&key) else { continue };
            partition.rank(self.limit, self.ranked, &mut moves);
            if partition.rows.is_empty() {
                self.partitions.remove(&key);
            }
        }
        (!moves.is_empty()).then(|| self.batch(tick, &moves))
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
            let key = partitions.row(row);
            if !self.partitions.contains_key(key) {
                self.partitions.insert(key.into(), Partition::default());
            }
            if let Some(partition) = self.partitions.get_mut(key) {
                partition.add(rows.row(row), diff);
            }
            if touched.last().is_none_or(|last: &Bytes| &**last != key) {
                touched.push(key.into());
            }
        }
        touched
    }

    fn batch(&self, tick: u64, moves: &[Move]) -> DeltaBatch {
        let mut columns = self.codec.decode(moves.iter().map(|(row, _, _)| &**row)).split_off(self.order);
        if self.ranked {
            columns.push(Arc::new(Int64Array::from_iter_values(moves.iter().map(|(_, rank, _)| *rank))));
        }
        let rows = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options(moves.len()));
        let diffs = moves.iter().map(|(_, _, diff)| *diff).collect();
        DeltaBatch::new(tick, rows.expect("the codec holds the input's columns"), diffs)
    }
}

impl Partition {
    fn add(&mut self, row: &[u8], diff: i64) {
        match self.rows.get_mut(row) {
            Some(count) if *count + diff == 0 => drop(self.rows.remove(row)),
            Some(count) => *count += diff,
            None => drop(self.rows.insert(row.into(), diff)),
        }
    }

    /// The first rows, best first, copies repeated.
    fn first(&self, limit: usize) -> Vec<Bytes> {
        let copies =
            |(row, &count): (&Bytes, &i64)| std::iter::repeat_n(row.clone(), usize::try_from(count).unwrap_or(0).min(limit));
        self.rows.iter().flat_map(copies).take(limit).collect()
    }

    /// What has to be put out so that the ranking is right again.
    fn rank(&mut self, limit: usize, ranked: bool, moves: &mut Vec<Move>) {
        let now = self.first(limit);
        let before = std::mem::take(&mut self.shown);
        if ranked {
            moved_ranks(&before, &now, moves);
        } else {
            moved_rows(&before, &now, moves);
        }
        self.shown = now;
    }
}

/// Row and rank are one: a row at another rank is another row.
fn moved_ranks(before: &[Bytes], now: &[Bytes], moves: &mut Vec<Move>) {
    for place in 0..before.len().max(now.len()) {
        let (old, new) = (before.get(place), now.get(place));
        if old == new {
            continue;
        }
        let rank = i64::try_from(place + 1).expect("ranks are few");
        moves.extend(old.map(|old| (old.clone(), rank, -1)));
        moves.extend(new.map(|new| (new.clone(), rank, 1)));
    }
}

/// The difference of two sorted lists.
fn moved_rows(mut before: &[Bytes], mut now: &[Bytes], moves: &mut Vec<Move>) {
    loop {
        match (before.split_first(), now.split_first()) {
            (None, None) => return,
            (Some((old, rest)), None) => {
                moves.push((old.clone(), 0, -1));
                before = rest;
            }
            (None, Some((new, rest))) => {
                moves.push((new.clone(), 0, 1));
                now = rest;
            }
            (Some((old, old_rest)), Some((new, new_rest))) => match old.cmp(new) {
                std::cmp::Ordering::Equal => (before, now) = (old_rest, new_rest),
                std::cmp::Ordering::Less => {
                    moves.push((old.clone(), 0, -1));
                    before = old_rest;
                }
                std::cmp::Ordering::Greater => {
                    moves.push((new.clone(), 0, 1));
                    now = new_rest;
                }
            },
        }
    }
}
