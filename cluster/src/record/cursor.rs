//! Reads the chain tick by tick, with the rows of all logs, from where an archive ends.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weir_archive::Position;
use weir_dataflow::{Admission, Arrived, Command as EngineCommand, Intake, Taken, ViewSettings};
use weir_schema::Name;

use crate::chain::{ChainRecord, Command};
use crate::error::Error;
use crate::feed::read_named;
use crate::log::{Logs, Pace, Reader};

/// A reader of the whole chain.
pub(crate) struct Cursor {
    all: Arc<dyn Logs>,
    chain: Box<dyn Reader>,
    logs: Vec<(Name, Box<dyn Reader>)>,
    tick: u64,
    settings: Option<ViewSettings>,
    /// Known from the chain's first record on.
    intake: Option<Intake>,
}

/// One tick.
pub(crate) struct Step {
    /// Rows that became readable at it.
    pub(crate) taken: Vec<Taken>,
}

/// What is kept beside an archive's manifest: the version, then this in postcard.
#[derive(Serialize, Deserialize)]
struct StateV1<'a> {
    settings: ViewSettings,
    #[serde(borrow)]
    intake: &'a [u8],
}

impl Cursor {
    /// Stands behind `position`. `state` is what [`Cursor::state`] gave there; none: at the chain's beginning.
    pub(crate) fn open(all: Arc<dyn Logs>, pace: Pace, position: &Position, state: Option<&[u8]>) -> Result<Self, Error> {
        let chain = all.read_chain(position.chain, pace).map_err(Error::log("opening the chain"))?;
        let (settings, intake) = state.map(decode).transpose()?.unzip();
        let mut cursor = Self { all, chain, logs: Vec::new(), tick: position.tick, settings, intake };
        for (name, from) in &position.logs {
            let name =
                Name::new(name).map_err(|wrong| Error::ChainRecord(format!("of the archive names log {name:?}: {wrong}")))?;
            let reader = cursor.open_log(&name, *from)?;
            cursor.logs.push((name, reader));
        }
        Ok(cursor)
    }

    /// The next tick, if the chain has it and it is not after `until`. After one that is, the cursor is at its end.
    pub(crate) fn next(&mut self, until: u64) -> Result<Option<Step>, Error> {
        let Some((_, bytes)) = self.chain.next().map_err(Error::log("reading the chain"))? else { return Ok(None) };
        let record = ChainRecord::decode(&bytes)?;
        if record.tick > until {
            return Ok(None);
        }
        for command in &record.commands {
            match command {
                Command::RegisterLog { name, .. } => {
                    let reader = self.open_log(name, 0)?;
                    self.logs.push((name.clone(), reader));
                }
                Command::Engine(EngineCommand::Configure(settings)) => {
                    self.settings = Some(*settings);
                    self.intake.get_or_insert_with(|| Intake::new(admission(settings)));
                }
                Command::Engine(_) | Command::Form(_) | Command::Views(_) | Command::Rules(_) | Command::Sinks(_) => {}
            }
        }
        let mut frames: Vec<Arrived> = Vec::new();
        for (index, offset) in &record.logs {
            let log = self.logs.get_mut(*index as usize);
            let (name, reader) = log.ok_or_else(|| Error::ChainRecord(format!("names log {index}, which is not registered")))?;
            let from = reader.at();
            read_named(&mut **reader, *index, from, *offset, &mut frames).map_err(|failed| failed.in_log(name.as_str()))?;
        }
        self.tick = record.tick;
        let intake = self.intake.as_mut().ok_or_else(|| Error::ChainRecord("comes before the views' settings".to_owned()))?;
        Ok(Some(Step { taken: intake.advance(record.tick, frames) }))
    }

    /// Behind which tick, record and frames it stands.
    pub(crate) fn position(&self) -> Position {
        let logs = self.logs.iter().map(|(name, reader)| (name.as_str().to_owned(), reader.at()));
        Position { tick: self.tick, chain: self.chain.at(), logs: logs.collect() }
    }

    /// What to go on from at [`Cursor::position`].
    pub(crate) fn state(&self) -> Result<Option<Vec<u8>>, Error> {
        let (Some(settings), Some(intake)) = (self.settings, &self.intake) else { return Ok(None) };
        let intake = intake.save().map_err(|error| Error::Archive(format!("the writer's state cannot be saved: {error}")))?;
        let state = StateV1 { settings, intake: &intake };
        Ok(Some(postcard::to_extend(&state, vec![STATE_VERSION]).expect("numbers and bytes always serialise")))
    }

    fn open_log(&self, name: &Name, from: u64) -> Result<Box<dyn Reader>, Error> {
        self.all.read_log(name, from).map_err(Error::log(format!("opening log {name}")))
    }
}

fn decode(bytes: &[u8]) -> Result<(ViewSettings, Intake), Error> {
    let wrong = |why: String| Error::Archive(format!("the writer's state cannot be read: {why}"));
    let (&version, body) = bytes.split_first().ok_or_else(|| wrong("it is empty".to_owned()))?;
    if version != STATE_VERSION {
        return Err(wrong(format!("it has version {version}, this build reads {STATE_VERSION}")));
    }
    let state: StateV1<'_> = postcard::from_bytes(body).map_err(|error| wrong(error.to_string()))?;
    let intake = Intake::restore(admission(&state.settings), state.intake).map_err(|error| wrong(error.to_string()))?;
    Ok((state.settings, intake))
}

pub(crate) fn admission(settings: &ViewSettings) -> Admission {
    Admission { retention_ms: settings.retention_ms, skew_ms: settings.skew_ms }
}

const STATE_VERSION: u8 = 1;
