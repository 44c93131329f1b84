//! Rows per second through one worker: groups over dictionary codes, alone and behind a filter and a window.

use std::sync::Arc;

use arrow::array::{ArrayRef, DictionaryArray, Int64Array, StringArray, TimestampNanosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt32Type};
use arrow::record_batch::RecordBatch;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use timely::dataflow::operators::vec::Input;
use timely::dataflow::operators::{Probe, probe};
use weir_dataflow::delta::DeltaBatch;
use weir_dataflow::render::{Context, Relation, Sources, render};
use weir_plan::{AggregateCall, JoinKind, Plan, col, lit, text_type, time_type};

const TICKS: u64 = 10;
const ROWS_PER_TICK: usize = 20_000;
const ROWS_PER_BATCH: usize = 2_000;

fn operators(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("operators");
    group.sample_size(10).throughput(Throughput::Elements(TICKS * ROWS_PER_TICK as u64));
    let keys = || [(col("region"), "region"), (col("app"), "app")];
    let calls =
        || [AggregateCall::count("n"), AggregateCall::sum(col("bytes"), "bytes"), AggregateCall::max(col("bytes"), "max")];
    let sums = || [AggregateCall::count("n"), AggregateCall::sum(col("bytes"), "bytes")];
    let other = || Plan::source("rows").aggregate([(col("app"), "other")], []);
    let plans = [
        ("filter", Plan::source("rows").filter(col("bytes").gt(lit(500)).and(col("region").eq(lit("name-3"))))),
        ("aggregate", Plan::source("rows").aggregate(keys(), sums())),
        ("aggregate_max", Plan::source("rows").aggregate(keys(), calls())),
        (
            "tumble_aggregate",
            Plan::source("rows")
                .tumble(col("time"), 1_000)
                .aggregate([(col("region"), "region"), (col("window_end"), "end")], sums()),
        ),
        ("calendar", Plan::source("rows").until(col("time"))),
        ("join", Plan::source("rows").join(other(), JoinKind::Left, [(col("app"), col("other"))])),
    ];
    let ticks: Vec<Vec<RecordBatch>> =
        (0..TICKS).map(|tick| (0..ROWS_PER_TICK / ROWS_PER_BATCH).map(|part| batch(tick, part)).collect()).collect();
    let ticks = Arc::new(ticks);
    for (name, plan) in plans {
        group.bench_function(name, |bencher| bencher.iter(|| run(plan.clone(), Arc::clone(&ticks))));
    }
    group.finish();
}

fn run(plan: Plan, ticks: Arc<Vec<Vec<RecordBatch>>>) {
    timely::execute_directly(move |worker| {
        let probe = probe::Handle::new();
        let mut input = worker.dataflow::<u64, _, _>(|scope| {
            let (input, deltas) = scope.new_input::<DeltaBatch>();
            let mut sources = Sources::default();
            sources.insert("rows", Relation { schema: schema(), deltas });
            render(&plan, &sources, &Context::default()).expect("the plan is right").deltas.probe_with(&probe);
            input
        });
        for (tick, batches) in ticks.iter().enumerate() {
            let tick = tick as u64 * 100;
            input.advance_to(tick);
            batches.iter().for_each(|rows| input.send(DeltaBatch::inserted(tick, rows.clone())));
            input.advance_to(tick + 1);
            while probe.less_than(&(tick + 1)) {
                worker.step();
            }
        }
    });
}

fn schema() -> SchemaRef {
    let columns = [("region", text_type()), ("app", text_type()), ("bytes", DataType::Int64), ("time", time_type())];
    Arc::new(Schema::new(columns.map(|(name, data_type)| Field::new(name, data_type, true)).to_vec()))
}

fn batch(tick: u64, part: usize) -> RecordBatch {
    let mut state = (tick << 32) | part as u64;
    let mut below = |n: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    let names = |count: u64| Arc::new((0..count).map(|name| Some(format!("name-{name}"))).collect::<StringArray>());
    let mut text = |count: u64| {
        let codes: Vec<Option<u32>> = (0..ROWS_PER_BATCH).map(|_| u32::try_from(below(count)).ok()).collect();
        Arc::new(DictionaryArray::<UInt32Type>::new(codes.into(), names(count))) as ArrayRef
    };
    let (region, app) = (text(16), text(500));
    let bytes = (0..ROWS_PER_BATCH).map(|_| i64::try_from(below(100_000)).ok()).collect::<Int64Array>();
    let times = (0..ROWS_PER_BATCH).map(|_| i64::try_from((tick * 100 + below(2_000)) * 1_000_000).ok());
    let times = times.collect::<TimestampNanosecondArray>().with_timezone("UTC");
    RecordBatch::try_new(schema(), vec![region, app, Arc::new(bytes), Arc::new(times)]).expect("columns fit the schema")
}

criterion_group!(benches, operators);
criterion_main!(benches);
