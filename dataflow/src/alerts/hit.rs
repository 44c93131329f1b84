//! A hit: one event and the rules that hold for it, kept so that it can be judged again when exceptions, lists or what is known of its
//! container change.
//!
//! ```text
//! packed event = postcard of (kind u16, process?, container?, fields)     process = (pid, start_ns, cells)
//! cells        = [(column's wire number, text or integer)]                what is unknown is absent
//! ```

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weir_schema::{BootId, Cell, Column, Container, Event, Fields, Kind, Process, Text};

use super::group::Moment;
use crate::checkpoint::shared;
use crate::connections::Place;

/// One hit. The fields but `claims` never change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hit {
    pub(crate) moment: Moment,
    #[serde(with = "shared")]
    pub(crate) place: Arc<Place>,
    pub(crate) boot: BootId,
    /// The container, or the session of processes: what repeats are grouped by.
    pub(crate) subject: u128,
    /// Events that its agent had reported as lost when it told of this.
    pub(crate) lost: u64,
    /// The rules that held for the event as it was told, in the order of the set.
    pub(crate) claims: Vec<Claim>,
    /// Its container, if something of that is unknown.
    pub(crate) asks: Option<Text>,
    pub(crate) event: Box<[u8]>,
}

/// A rule that holds for an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claim {
    /// The rule's id and version.
    pub(crate) rule: (u64, u64),
    /// Of the rules that say so, the first that stands has the event.
    pub(crate) one_only: bool,
    /// Whether the hit counts for the rule's alerts: no exception silences it, and no earlier rule has the event.
    pub(crate) stands: bool,
}

impl Hit {
    /// The claim of a rule.
    pub(crate) fn stands_for(&self, rule: (u64, u64)) -> bool {
        self.claims.iter().any(|claim| claim.stands && claim.rule == rule)
    }

    /// About what it costs.
    pub(crate) fn bytes(&self) -> usize {
        self.event.len() + self.claims.len() * size_of::<Claim>() + size_of::<Self>()
    }

    /// The event as it was told.
    pub(crate) fn told(&self) -> Event {
        unpack(self.moment.0, &self.event).expect("what was packed here can be unpacked")
    }
}

#[derive(Serialize, Deserialize)]
enum PackedCell {
    Text(Text),
    Int(i64),
}

type Cells = Vec<(u16, PackedCell)>;

#[derive(Serialize, Deserialize)]
struct Packed {
    kind: Kind,
    process: Option<(u32, u64, Cells)>,
    container: Option<Cells>,
    fields: Cells,
}

/// An event as bytes, but for its time.
pub(crate) fn pack(event: &Event) -> Box<[u8]> {
    let process = event.process.as_deref().map(|process| {
        let mut cells = Cells::new();
        process.each(|column, cell| add(&mut cells, column, cell));
        (process.pid, process.start_ns, cells)
    });
    let container = event.container.as_deref().map(|container| {
        let mut cells = Cells::new();
        container.each(|column, cell| add(&mut cells, column, cell));
        cells
    });
    let mut fields = Cells::new();
    event.fields.each(|column, cell| add(&mut fields, column, cell));
    let packed = Packed { kind: event.kind, process, container, fields };
    postcard::to_stdvec(&packed).expect("numbers and texts always serialise").into()
}

fn add(cells: &mut Cells, column: Column, cell: Cell<'_>) {
    let cell = match cell {
        Cell::Text(text) => PackedCell::Text(Text::clone(text)),
        Cell::Int(int) => PackedCell::Int(int),
    };
    cells.push((column.number(), cell));
}

fn unpack(time: i64, bytes: &[u8]) -> Option<Event> {
    let Packed { kind, process, container, fields } = postcard::from_bytes(bytes).ok()?;
    let process = process.map(|(pid, start_ns, cells)| {
        let mut process = Process { pid, start_ns, ..Process::default() };
        each(&cells, |column, cell| _ = process.set(column, cell));
        Arc::new(process)
    });
    let container = container.map(|cells| {
        let mut container = Container::default();
        each(&cells, |column, cell| _ = container.set(column, cell));
        Arc::new(container)
    });
    let mut known = Fields::default();
    each(&fields, |column, cell| _ = known.set(column, cell));
    Some(Event { time, kind, process, container, fields: known })
}

fn each(cells: &Cells, mut set: impl FnMut(Column, Cell<'_>)) {
    for (number, cell) in cells {
        let Some(column) = Column::from_number(*number) else { continue };
        match cell {
            PackedCell::Text(text) => set(column, Cell::Text(text)),
            PackedCell::Int(int) => set(column, Cell::Int(*int)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_the_same_when_it_was_packed() {
        let process = Process { pid: 7, start_ns: 9, ppid: Some(1), exe: Some("/bin/sh".into()), ..Process::default() };
        let container = Container { container_id: Some("c".into()), app: Some("a".into()), ..Container::default() };
        let fields = Fields { result: Some(-5), socket_id: Some(u64::MAX), path: Some("/x".into()), ..Fields::default() };
        let (process, container) = (Some(Arc::new(process)), Some(Arc::new(container)));
        let event = Event { time: 5, kind: Kind::Connect, process, container, fields };
        assert_eq!(unpack(5, &pack(&event)), Some(event));
        let bare = Event { time: -1, kind: Kind::Exec, ..Event::default() };
        assert_eq!(unpack(-1, &pack(&bare)), Some(bare));
    }
}
