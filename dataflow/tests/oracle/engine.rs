//! The engine's side: a plan rendered over timely workers, fed in random batches.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use timely::dataflow::operators::vec::Input;
use timely::dataflow::operators::{Inspect, Probe, probe};
use weir_dataflow::delta::DeltaBatch;
use weir_dataflow::render::{Context, Relation, Sources, Ticks, render};
use weir_plan::Plan;

use super::rows::{Bag, History, Random, Row, SOURCES, add, batch, lines, schema};

/// Batches of one worker: tick, source, rows.
type Share = Vec<(u64, &'static str, Vec<(Row, i64)>)>;

/// The accumulated answer after each tick.
pub fn answers(plan: &Plan, history: &History, workers: usize, random: &mut Random) -> BTreeMap<u64, Bag> {
    let shares = Arc::new(cut(history, workers, random));
    let ticks: Vec<u64> = history.ticks.iter().map(|(tick, _)| *tick).collect();
    let noted = random.chance(50);
    let eager = random.chance(50);
    let changes = Arc::new(Mutex::new(Vec::<(u64, String, i64)>::new()));
    let (plan, all_ticks, sink) = (plan.clone(), ticks.clone(), Arc::clone(&changes));
    // Two workers exchange bytes, as processes do.
    let communication = match workers {
        2 => timely::CommunicationConfig::ProcessBinary(workers),
        _ => timely::CommunicationConfig::Process(workers),
    };
    let config = timely::Config { communication, worker: timely::WorkerConfig::default() };
    let guards = timely::execute(config, move |worker| {
        let context = Context { ticks: if noted { Ticks::noted() } else { Ticks::every_ms() }, ..Context::default() };
        let probe = probe::Handle::new();
        let sink = Arc::clone(&sink);
        let mut inputs = worker.dataflow::<u64, _, _>(|scope| {
            let mut sources = Sources::default();
            let mut inputs = HashMap::new();
            for name in SOURCES {
                let (input, deltas) = scope.new_input::<DeltaBatch>();
                inputs.insert(name, input);
                sources.insert(name, Relation { schema: schema(), deltas });
            }
            let answer = render(&plan, &sources, &context).unwrap();
            let collect = move |batch: &DeltaBatch| {
                let mut sink = sink.lock().unwrap();
                sink.extend(lines(&batch.rows).into_iter().zip(&batch.diffs).map(|(line, diff)| (batch.tick, line, *diff)));
            };
            answer.deltas.inspect(collect).probe_with(&probe);
            inputs
        });
        for &tick in &all_ticks {
            context.ticks.note(tick);
            inputs.values_mut().for_each(|input| input.advance_to(tick));
            for (_, source, rows) in shares[worker.index()].iter().filter(|(at, ..)| *at == tick) {
                let (rows, diffs): (Vec<_>, Vec<_>) = rows.iter().cloned().unzip();
                inputs.get_mut(source).unwrap().send(DeltaBatch::new(tick, batch(&rows), diffs));
            }
            inputs.values_mut().for_each(|input| input.advance_to(tick + 1));
            if eager {
                worker.step_or_park_while(None, || probe.less_than(&(tick + 1)));
            }
        }
    });
    for result in guards.unwrap().join() {
        result.unwrap();
    }
    let changes = Arc::try_unwrap(changes).unwrap().into_inner().unwrap();
    let until = |tick: u64| {
        let mut bag = Bag::new();
        changes.iter().filter(|(at, ..)| *at <= tick).for_each(|(_, line, diff)| add(&mut bag, line.clone(), *diff));
        (tick, bag)
    };
    ticks.into_iter().map(until).collect()
}

/// Every change to a random worker, in random batches.
fn cut(history: &History, workers: usize, random: &mut Random) -> Vec<Share> {
    let mut shares: Vec<Share> = vec![vec![]; workers];
    for (tick, changes) in &history.ticks {
        for (&source, changes) in changes {
            for change in changes {
                let share = &mut shares[usize::try_from(random.below(workers as u64)).unwrap()];
                match share.last_mut() {
                    Some((at, to, rows)) if at == tick && *to == source && random.chance(70) => rows.push(change.clone()),
                    _ => share.push((*tick, source, vec![change.clone()])),
                }
            }
        }
    }
    shares
}
