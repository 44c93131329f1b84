//! Rows to the worker that owns their key.
//!
//! Owner = a stable hash of the key's bytes modulo the number of workers. A batch is split once, into at most as many parts
//! as there are workers; no row travels alone.

use arrow::datatypes::DataType;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::generic::operator::Operator;
use weir_plan::Expr;
use xxhash_rust::xxh3::xxh3_64;

use super::rows::{Encoded, RowCodec};
use super::{Context, Relation};
use crate::delta::{DeltaBatch, Deltas};
use crate::expr::Exprs;

/// Each row to the worker that owns the values of `keys`. `construct` names the asker in errors.
pub fn exchange_by_key<'s>(
    input: &Relation<'s>,
    keys: &[Expr],
    construct: &str,
    context: &Context,
) -> Result<Deltas<'s>, weir_plan::Error> {
    let keys = Exprs::new(keys, &input.schema, construct, &context.counters)?;
    Ok(exchange(&input.deltas, keys))
}

/// The same, for compiled keys. One worker owns everything: nothing is split, nothing is hashed.
pub(crate) fn exchange<'s>(deltas: &Deltas<'s>, keys: Exprs) -> Deltas<'s> {
    let peers = deltas.scope().peers();
    if peers == 1 {
        return deltas.clone();
    }
    let codec = RowCodec::new(keys.types().cloned().collect::<Vec<DataType>>().iter());
    let routed =
        deltas.clone().unary::<CapacityContainerBuilder<Vec<(u64, DeltaBatch)>>, _, _, _>(Pipeline, "Split", move |_, _| {
            move |input, output| {
                input.for_each_stamp(|cap, batches| {
                    if cap.least().is_none() {
                        return;
                    }
                    let mut out = output.session(&cap);
                    for batch in batches.flat_map(|batches| batches.drain(..)) {
                        let (batch, columns) = keys.evaluate(batch);
                        for part in split(batch, &codec.encode(&columns, columns.first().map_or(0, |column| column.len())), peers)
                        {
                            out.give(part);
                        }
                    }
                });
            }
        });
    let arrived = Exchange::new(|routed: &(u64, DeltaBatch)| routed.0);
    routed.unary::<CapacityContainerBuilder<Vec<DeltaBatch>>, _, _, _>(arrived, "Arrive", move |_, _| {
        move |input, output| {
            input.for_each_stamp(|cap, batches| {
                if cap.least().is_none() {
                    return;
                }
                let mut out = output.session(&cap);
                batches.flat_map(|batches| batches.drain(..)).for_each(|(_, batch)| out.give(batch));
            });
        }
    })
}

/// Parts of a batch, each with the worker that owns its keys.
fn split(batch: DeltaBatch, keys: &Encoded, peers: usize) -> Vec<(u64, DeltaBatch)> {
    if batch.is_empty() {
        return vec![];
    }
    let mut parts = vec![Vec::new(); peers];
    for row in 0..batch.len() {
        let key = if keys.is_empty() { &[][..] } else { keys.row(row) };
        parts[owner(key, peers)].push(u32::try_from(row).expect("a batch has fewer than 2^32 rows"));
    }
    let all = batch.len();
    let parts = parts.into_iter().enumerate().filter(|(_, rows)| !rows.is_empty());
    parts.map(|(owner, rows)| (owner as u64, if rows.len() == all { batch.clone() } else { batch.take(&rows) })).collect()
}

/// The worker that owns a key. The same in every process of a mesh; never written to disk.
pub(crate) fn owner(key: &[u8], peers: usize) -> usize {
    usize::try_from(xxh3_64(key) % peers as u64).expect("below the number of workers")
}
