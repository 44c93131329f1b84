//! Tables and sequence rules of people on one worker: their rows are kept in outputs that are in every checkpoint.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use super::Installed;
use crate::chains::ChainRule;
use crate::definition::ViewDefinition;
use crate::output::Output;
use crate::peek::Made;
use crate::relations::RelationInfo;
use crate::shipped::EXCEPTIONS;
use crate::table;

impl Installed {
    /// Makes a table. One that was there before has the rows of the checkpoint.
    pub(super) fn create_table(&mut self, tick: u64, definition: &ViewDefinition, restored: Option<u64>) {
        let output = self.standing.create_table(definition);
        let output = output.and_then(|info| Ok((self.output(tick, &info, restored)?, info)));
        if let Ok((_, info)) = output.as_ref()
            && definition.name == EXCEPTIONS
        {
            self.exceptions.borrow_mut().made(&info.schema);
        }
        self.show(tick, definition, output);
    }

    /// Puts a sequence rule in force, in the place of one of its name. One that was there before has the rows of the checkpoint.
    pub(super) fn create_rule(&mut self, tick: u64, definition: &ViewDefinition, restored: Option<u64>) {
        if self.tables.contains_key(&definition.name) {
            self.drop_kept(tick, &definition.name);
        }
        let counters = Arc::clone(&self.shelf.chain_counters);
        let compiled = self.standing.create_rule(definition).and_then(|(rule, info)| {
            let rule = ChainRule::compile(&rule, &definition.sql, tick, &counters).map_err(|why| why.to_string())?;
            let output = self.output(tick, &info, restored)?;
            self.relations.insert((rule.version, rule.since), Rc::clone(&output));
            self.rules.chains.add(tick, rule);
            Ok((output, info))
        });
        if restored.is_none() {
            self.tell_rules(tick);
        }
        self.show(tick, definition, compiled);
    }

    /// Tells the operators that other rules are in force from a tick on that is about to be fed.
    pub(super) fn tell_rules(&mut self, tick: u64) {
        self.rule_ticks.advance_to(tick);
        self.rule_ticks.send(tick);
    }

    /// Lets go of a table's or a sequence rule's rows.
    pub(super) fn drop_kept(&mut self, tick: u64, name: &str) {
        let Some(output) = self.tables.remove(name) else { return };
        self.keeper.forget(&table::state_of(name));
        if name == EXCEPTIONS {
            self.exceptions.borrow_mut().clear();
        }
        self.relations.remove(&output);
        if self.rules.chains.remove(tick, name) {
            self.tell_rules(tick);
        }
    }

    fn output(&self, tick: u64, info: &RelationInfo, restored: Option<u64>) -> Result<Rc<RefCell<Output>>, String> {
        let mut output = Output::new(info, self.changes).map_err(|error| error.to_string())?;
        output.begin(tick);
        let state = table::state_of(&info.name);
        let output = if restored.is_some() { self.keeper.keep(state, output) } else { self.keeper.keep_new(state, output) };
        Ok(output.shared())
    }

    fn show(&mut self, tick: u64, definition: &ViewDefinition, made: Result<(Rc<RefCell<Output>>, RelationInfo), String>) {
        let name = &definition.name;
        let (info, output) = match made {
            Ok((output, info)) => {
                self.tables.insert(name.clone(), Rc::clone(&output));
                (info, Ok(output))
            }
            // Whoever asked for it has read its statement, as all workers do.
            Err(why) => {
                tracing::error!(name, why, "a table or rule cannot be kept");
                let schema = Arc::new(arrow::datatypes::Schema::empty());
                (RelationInfo { name: name.clone().into(), schema, standing: true, sql: None }, Err(why))
            }
        };
        self.shelf.made.insert(name.clone(), Made { info, created: tick, output, counters: Arc::default() });
    }
}
