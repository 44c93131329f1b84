//! Reads the chain and the logs as a stranger, recounts, and holds them to one history.

use std::sync::Arc;

use weir_dataflow::ViewSettings;
use weir_journal::SimDisk;

use super::books::Recount;
use super::logs_of;
use crate::chain::{ChainRecord, ChainState};
use crate::log::{LogError, Logs, Pace, Reader};

/// What was read so far.
pub(super) struct Audit {
    all: Arc<dyn Logs>,
    chain: Option<Box<dyn Reader>>,
    pub(super) state: ChainState,
    logs: Vec<Option<Box<dyn Reader>>>,
    /// Every record of the chain ever read.
    history: Vec<Vec<u8>>,
    pub(super) recount: Recount,
    /// A damaged disk took what comes next.
    pub(super) blocked: Option<String>,
}

impl Audit {
    pub(super) fn new(disk: &SimDisk, settings: ViewSettings) -> Self {
        Self {
            all: logs_of(disk.clone()),
            chain: None,
            state: ChainState::default(),
            logs: Vec::new(),
            history: Vec::new(),
            recount: Recount::new(settings),
            blocked: None,
        }
    }

    /// All open files are dead: go on with new ones.
    pub(super) fn reopen(&mut self) {
        self.chain = None;
        self.logs.iter_mut().for_each(|log| *log = None);
    }

    /// Reads on. With `damaged` a lost piece only ends the reading.
    pub(super) fn read_on(&mut self, damaged: bool) -> Result<(), String> {
        while self.blocked.is_none() {
            match self.next() {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(why) if damaged => self.blocked = Some(why),
                Err(why) => return Err(why),
            }
        }
        Ok(())
    }

    fn next(&mut self) -> Result<bool, String> {
        let number = self.history.len() as u64;
        let chain = match &mut self.chain {
            Some(chain) => chain,
            slot => match self.all.read_chain(number, Pace::Polling) {
                Ok(chain) => slot.insert(chain),
                Err(_) => return Ok(false),
            },
        };
        let Some((_, bytes)) = chain.next().map_err(|error| format!("the chain: {error}"))? else { return Ok(false) };
        let record = ChainRecord::decode(&bytes).map_err(|error| error.to_string())?;
        let mut state = self.state.clone();
        state.apply(&record).map_err(|error| format!("record {number}: {error}"))?;
        self.logs.resize_with(state.logs.len(), || None);
        let mut records = Vec::new();
        for (index, name) in state.logs.iter().enumerate() {
            let (from, until) = (self.state.offsets.get(index).copied().unwrap_or(0), state.offsets[index]);
            if from == until {
                continue;
            }
            let open = || self.all.read_log(name, from);
            let reader = match &mut self.logs[index] {
                Some(reader) => reader,
                slot => slot.insert(open().map_err(|error| format!("log {name}: {error}"))?),
            };
            reader.seek(from);
            reader.proven(until);
            for offset in from..until {
                let record = reader.next().map_err(|error| format!("log {name}: {error}"))?;
                let lost = || format!("record {offset} of log {name} is named by tick {} and cannot be read", state.tick);
                records.push(record.ok_or_else(lost)?.1);
            }
        }
        self.state = state;
        self.history.push(bytes);
        self.recount.advance(self.state.tick, &records)?;
        Ok(true)
    }

    /// What the chain holds now is what it held when it was first read.
    pub(super) fn check_history(&self) -> Result<(), String> {
        let Ok(mut chain) = self.all.read_chain(0, Pace::UpToNow) else { return Ok(()) };
        let mut at = 0;
        loop {
            match chain.next() {
                Ok(Some((number, bytes))) => {
                    if self.history.get(number as usize).is_some_and(|known| *known != bytes) {
                        return Err(format!("record {number} of the chain was another one before"));
                    }
                    at = number + 1;
                }
                Ok(None) => break,
                Err(LogError::Forgotten { first, .. }) => chain.seek(first),
                Err(error) => return Err(format!("the chain: {error}")),
            }
        }
        let known = self.history.len() as u64;
        if at < known { Err(format!("the chain ends at {at}, and had {known} records before")) } else { Ok(()) }
    }
}
