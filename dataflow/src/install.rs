//! The dataflow of all views on one worker, built when the chain's first command says how they look.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use arrow::array::RecordBatch;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::InputHandle;
use timely::dataflow::operators::probe::Handle as Probe;
use timely::dataflow::operators::{Input as _, Probe as _};
use timely::worker::Worker;

use crate::feed::Arrived;
use crate::handle::{Completeness, Held};
use crate::output::Output;
use crate::peek::{Shelf, Tail};
use crate::relations::relations;
use crate::run::Error;
use crate::settings::ViewSettings;

/// What a worker has of the views.
#[derive(Default)]
pub(crate) struct Installed {
    settings: ViewSettings,
    input: Option<InputHandle<u64, CapacityContainerBuilder<Vec<Arrived>>>>,
    probe: Probe<u64>,
    outputs: HashMap<&'static str, Rc<RefCell<Output>>>,
}

impl Installed {
    /// Before there are views: nothing, of which counters can still be asked.
    pub(crate) fn none() -> Self {
        Self::default()
    }

    /// Builds the dataflow. Every worker does so before it feeds the same tick.
    pub(crate) fn install(worker: &mut Worker, settings: ViewSettings) -> Result<Self, Error> {
        let probe = Probe::new();
        let mut outputs = HashMap::new();
        for info in relations().iter().filter(|info| info.standing) {
            let failed = |error: arrow::error::ArrowError| Error::View { view: info.name.into(), why: error.to_string() };
            outputs.insert(info.name, Rc::new(RefCell::new(Output::new(info).map_err(failed)?)));
        }
        let input = worker.dataflow_named("Views", |scope| {
            let (input, arrived) = scope.new_input::<Vec<Arrived>>();
            arrived.probe_with(&probe);
            input
        });
        Ok(Self { settings, input: Some(input), probe, outputs })
    }

    /// What the views were built for.
    pub(crate) fn settings(&self) -> &ViewSettings {
        &self.settings
    }

    /// Feeds one tick's frames, and says that there will be no more of it.
    pub(crate) fn feed(&mut self, tick: u64, mut frames: Vec<Arrived>) {
        let Some(input) = &mut self.input else { return };
        input.advance_to(tick);
        input.send_batch(&mut frames);
        input.advance_to(tick + 1);
        input.flush();
    }

    /// Whether every worker has done this tick.
    pub(crate) fn is_closed(&self, tick: u64) -> bool {
        !self.probe.less_than(&(tick + 1))
    }

    /// Forgets what only reads before `since` need.
    pub(crate) fn compact(&mut self, since: u64) {
        for output in self.outputs.values() {
            output.borrow_mut().compact(since);
        }
    }
}

impl Shelf for Installed {
    fn output(&self, relation: &str) -> Option<Rc<RefCell<Output>>> {
        self.outputs.get(relation).cloned()
    }

    fn tail(&self, _tail: &Tail<'_>) -> Result<Vec<RecordBatch>, String> {
        Ok(vec![])
    }

    fn completeness(&self) -> Completeness {
        Completeness::default()
    }

    fn tails_held(&self) -> Vec<Held> {
        vec![]
    }

    fn counters(&self) -> Vec<(String, u64)> {
        vec![]
    }
}
