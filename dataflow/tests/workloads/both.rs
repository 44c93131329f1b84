//! The two sides: a plan kept by two workers, and DataFusion over the rows that are there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use arrow::datatypes::SchemaRef;
use datafusion::datasource::MemTable;
use datafusion::prelude::{SessionConfig, SessionContext};
use timely::dataflow::operators::vec::Input;
use timely::dataflow::operators::{Inspect, Probe, probe};
use weir_dataflow::delta::DeltaBatch;
use weir_dataflow::render::{Context, Relation, Sources, render};
use weir_plan::{Plan, SchemaOf};

use super::tables::{History, Table};
use crate::rows::{Bag, add, lines};

/// A workload's tables, for the planner.
pub struct Tables(pub &'static [Table]);

impl SchemaOf for Tables {
    fn schema_of(&self, relation: &str) -> Option<SchemaRef> {
        self.0.iter().find(|table| table.name == relation).map(Table::schema)
    }

    fn is_table(&self, relation: &str) -> bool {
        self.schema_of(relation).is_some()
    }
}

/// The answer after each tick, kept up to date by two workers.
pub fn maintained(plan: &Plan, tables: &'static [Table], history: &History) -> Vec<Bag> {
    let changes = Arc::new(Mutex::new(Vec::<(u64, String, i64)>::new()));
    let (plan, sink) = (plan.clone(), Arc::clone(&changes));
    let ticks = Arc::new(history.ticks.clone());
    let config =
        timely::Config { communication: timely::CommunicationConfig::Process(2), worker: timely::WorkerConfig::default() };
    let guards = timely::execute(config, move |worker| {
        let context = Context::default();
        let probe = probe::Handle::new();
        let sink = Arc::clone(&sink);
        let mut inputs = worker.dataflow::<u64, _, _>(|scope| {
            let mut sources = Sources::default();
            let mut inputs = HashMap::new();
            for table in tables {
                let (input, deltas) = scope.new_input::<DeltaBatch>();
                inputs.insert(table.name, input);
                sources.insert(table.name, Relation { schema: table.schema(), deltas });
            }
            let collect = move |batch: &DeltaBatch| {
                let mut sink = sink.lock().unwrap();
                sink.extend(lines(&batch.rows).into_iter().zip(&batch.diffs).map(|(line, diff)| (batch.tick, line, *diff)));
            };
            render(&plan, &sources, &context).unwrap().deltas.inspect(collect).probe_with(&probe);
            inputs
        });
        for (place, told) in ticks.iter().enumerate() {
            let tick = 1_000 + place as u64;
            inputs.values_mut().for_each(|input| input.advance_to(tick));
            for (table, changes) in tables.iter().zip(told) {
                let share = changes.iter().skip(worker.index()).step_by(worker.peers());
                let diffs: Vec<i64> = share.clone().map(|(_, diff)| *diff).collect();
                if !diffs.is_empty() {
                    let rows = table.batch(share.map(|(row, _)| row));
                    inputs.get_mut(table.name).unwrap().send(DeltaBatch::new(tick, rows, diffs));
                }
            }
            inputs.values_mut().for_each(|input| input.advance_to(tick + 1));
            worker.step_or_park_while(None, || probe.less_than(&(tick + 1)));
        }
    });
    guards.unwrap().join().into_iter().for_each(|guard| guard.unwrap());
    let changes = changes.lock().unwrap();
    let until = |place: usize| {
        let mut bag = Bag::new();
        changes
            .iter()
            .filter(|(at, ..)| *at <= 1_000 + place as u64)
            .for_each(|(_, line, diff)| add(&mut bag, line.clone(), *diff));
        bag
    };
    (0..history.ticks.len()).map(until).collect()
}

/// The answer after each tick, made anew.
pub fn recomputed(sql: &str, tables: &'static [Table], history: &History) -> Vec<Bag> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let at = |tick: usize| async move {
        let session = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
        for (place, table) in tables.iter().enumerate() {
            let rows = table.batch(history.present(place, tick).iter());
            session.register_table(table.name, Arc::new(MemTable::try_new(rows.schema(), vec![vec![rows]]).unwrap())).unwrap();
        }
        let frame = session.sql(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        let mut bag = Bag::new();
        for rows in frame.collect().await.unwrap_or_else(|error| panic!("{sql}: {error}")) {
            lines(&rows).into_iter().for_each(|line| add(&mut bag, line, 1));
        }
        bag
    };
    (0..history.ticks.len()).map(|tick| runtime.block_on(at(tick))).collect()
}
