//! The producer's side of a batch: events in, a frame out.
//!
//! Promise: what `push` took fits into one frame that every decoder accepts. Events are grouped by kind, kinds in number order;
//! the event at position i of the frame has seq `first_seq + i`. So a seq exists only once the batch is finished.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use crate::column::Column;
use crate::error::{Error, Refused};
use crate::event::{Container, Event, Host, Process};
use crate::frame::{Frame, FrameHeader, HEADER_BYTES};
use crate::ids::{Epoch, Lane, Seq};
use crate::limits::{CELLS_MAX, EVENTS_MAX, FRAME_BYTES_MAX, STRING_BYTES_MAX, STRINGS_MAX, TABLE_ROWS_MAX};
use crate::strings::{Interner, Xx};
use crate::table::{GrowingTable, append, begin_section, end_section};
use crate::wire::{CONTAINERS, HOST, HostV1, PROCESSES, STRINGS};

/// Gathers events of one lane into a frame.
pub struct BatchBuilder {
    host: Arc<Host>,
    epoch: Epoch,
    lane: Lane,
    next_seq: Seq,
    len: usize,
    /// Values in all tables.
    values: usize,
    /// Cells that a decoder will make of all tables.
    cells: usize,
    strings: Interner,
    processes: Shared<Process>,
    containers: Shared<Container>,
    /// By kind number.
    kinds: Vec<Option<Box<GrowingTable>>>,
    compressor: zstd::bulk::Compressor<'static>,
    body: Vec<u8>,
    planes: Vec<u8>,
}

impl BatchBuilder {
    /// An empty batch whose first event will have seq `first_seq`.
    pub fn new(host: Arc<Host>, epoch: Epoch, lane: Lane, first_seq: Seq) -> Self {
        Self {
            host,
            epoch,
            lane,
            next_seq: first_seq,
            len: 0,
            values: 0,
            cells: 0,
            strings: Interner::default(),
            processes: Shared::default(),
            containers: Shared::default(),
            kinds: Vec::new(),
            compressor: zstd::bulk::Compressor::new(ZSTD_LEVEL).expect("zstd knows its own levels"),
            body: Vec::new(),
            planes: Vec::new(),
        }
    }

    /// Takes the event, or says why not; then nothing of it was taken.
    pub fn push(&mut self, event: &Event) -> Result<(), Refused> {
        if event.kind.lane() != self.lane {
            return Err(Refused::WrongLane);
        }
        if !self.has_room() {
            return Err(Refused::Full);
        }
        let (strings, grown) = (&mut self.strings, &mut Grown::default());
        let process = event.process.as_ref().map(|process| {
            self.processes.row(process, grown, |table, process| {
                table.int(Column::Pid, i64::from(process.pid));
                table.int(Column::StartNs, process.start_ns.cast_signed());
                process.each(|column, cell| table.put(strings, column, cell));
            })
        });
        let container = event.container.as_ref().map(|container| {
            self.containers
                .row(container, grown, |table, container| container.each(|column, cell| table.put(strings, column, cell)))
        });
        let at = event.kind as usize;
        if self.kinds.len() <= at {
            self.kinds.resize_with(at + 1, || None);
        }
        grown.row(self.kinds[at].get_or_insert_default(), |table| {
            table.int(Column::Time, event.time);
            if let Some(row) = process {
                table.int(Column::ProcessRow, row);
            }
            if let Some(row) = container {
                table.int(Column::ContainerRow, row);
            }
            event.fields.each(|column, cell| table.put(strings, column, cell));
        });
        self.values += grown.values;
        self.cells += grown.cells;
        self.len += 1;
        Ok(())
    }

    /// Events so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The seq of the next frame's first event.
    pub fn next_seq(&self) -> Seq {
        self.next_seq
    }

    /// Texts cut to the allowed length since the builder was made.
    pub fn texts_cut(&self) -> u64 {
        self.strings.cut
    }

    /// About how many bytes the frame would have now. In the bench, frames of 1,000 events have 0.6 to 0.75 of it, tiny ones all.
    pub fn bytes_estimate(&self) -> usize {
        HEADER_BYTES + self.strings.text_bytes() / 2 + 2 * self.values
    }

    /// Makes the frame. Afterwards the builder is empty and goes on with the seq after the frame's last.
    pub fn finish(&mut self) -> Result<Frame, Error> {
        if self.is_empty() {
            return Err(Error::Empty);
        }
        self.write_body();
        let header = FrameHeader {
            lane: self.lane,
            epoch: self.epoch,
            first_seq: self.next_seq,
            count: self.len as u32,
            ..FrameHeader::default()
        };
        let frame = Frame::build(header, &self.body, &mut self.compressor);
        self.next_seq = Seq(self.next_seq.0 + self.len as u64);
        (self.len, self.values, self.cells) = (0, 0, 0);
        self.strings.clear();
        self.processes.clear();
        self.containers.clear();
        self.kinds.iter_mut().flatten().for_each(|table| table.clear());
        Ok(frame)
    }

    fn write_body(&mut self) {
        let Self { body, planes, host, .. } = self;
        body.clear();
        let head = begin_section(body);
        let wire = HostV1 {
            host: prefix(&host.host),
            cloud: host.cloud.as_deref().map(prefix),
            zone: host.zone.as_deref().map(prefix),
            boot_id: host.boot_id.0,
            simulated: host.simulated,
        };
        append(&wire, body);
        end_section(body, head, HOST, 1);
        let head = begin_section(body);
        let rows = self.strings.len();
        append(&self.strings.pack(planes), body);
        end_section(body, head, STRINGS, rows);
        self.processes.table.write(PROCESSES, planes, body);
        self.containers.table.write(CONTAINERS, planes, body);
        for (kind, table) in self.kinds.iter_mut().enumerate() {
            if let Some(table) = table.as_mut().filter(|table| table.rows > 0) {
                table.write(kind as u16, planes, body);
            }
        }
    }

    /// True while one more event of any size surely fits every limit.
    fn has_room(&self) -> bool {
        // At most 8 bytes a value and one bit a cell; the largest event has 40 texts of 4 KiB.
        let raw_most = self.strings.text_bytes() + 2 * self.strings.len() + 8 * self.values + self.cells / 8;
        let event_most = TEXTS_MAX * STRING_BYTES_MAX + 64 * 1024;
        self.len < EVENTS_MAX
            && raw_most + event_most < FRAME_BYTES_MAX
            && self.strings.len() + TEXTS_MAX < STRINGS_MAX
            && self.processes.table.rows < TABLE_ROWS_MAX
            && self.containers.table.rows < TABLE_ROWS_MAX
            && self.cells + COLUMNS_MAX * (self.len + 1) < CELLS_MAX
    }
}

/// By how much an event made the tables grow.
#[derive(Default)]
struct Grown {
    values: usize,
    cells: usize,
}

impl Grown {
    /// Adds one row, whose values `write` puts into the table.
    #[inline]
    fn row(&mut self, table: &mut GrowingTable, write: impl FnOnce(&mut GrowingTable)) {
        let (values, cells) = (table.values, table.cells());
        write(table);
        table.rows += 1;
        self.values += table.values - values;
        self.cells += table.cells() - cells;
    }
}

/// Processes or containers of a batch: each once, found by its pointer or else by its content.
struct Shared<T> {
    table: GrowingTable,
    by_pointer: HashMap<usize, i64, BuildHasherDefault<Xx>>,
    /// The latest one of each identity, with its row number + 1.
    by_identity: HashMap<u64, (Arc<T>, i64), BuildHasherDefault<Xx>>,
    /// Keeps every pointer in `by_pointer` alive, so that none is given to another process.
    kept: Vec<Arc<T>>,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self { table: GrowingTable::default(), by_pointer: HashMap::default(), by_identity: HashMap::default(), kept: Vec::new() }
    }
}

/// What tells two entities apart most of the time, at little cost.
trait Identity {
    fn identity(&self) -> u64;
}

impl Identity for Process {
    fn identity(&self) -> u64 {
        self.start_ns ^ u64::from(self.pid).rotate_left(40)
    }
}

impl Identity for Container {
    fn identity(&self) -> u64 {
        let name = self.container_id.as_ref().or(self.app.as_ref());
        name.map_or(0, |name| xxh3_64(name.as_bytes()))
    }
}

impl<T: Eq + Identity> Shared<T> {
    /// The row number + 1 of `entity`; `write` puts a new one's values into the table.
    #[inline]
    fn row(&mut self, entity: &Arc<T>, grown: &mut Grown, write: impl FnOnce(&mut GrowingTable, &T)) -> i64 {
        let pointer = Arc::as_ptr(entity) as usize;
        if let Some(row) = self.by_pointer.get(&pointer) {
            return *row;
        }
        let row = match self.by_identity.entry(entity.identity()) {
            Entry::Occupied(known) if known.get().0 == *entity => known.get().1,
            entry => {
                grown.row(&mut self.table, |table| write(table, entity));
                let row = self.table.rows as i64;
                entry.insert_entry((Arc::clone(entity), row));
                row
            }
        };
        self.by_pointer.insert(pointer, row);
        self.kept.push(Arc::clone(entity));
        row
    }

    fn clear(&mut self) {
        self.table.clear();
        self.by_pointer.clear();
        self.by_identity.clear();
        self.kept.clear();
    }
}

/// A host's text as far as it may go.
fn prefix(text: &str) -> &str {
    let mut end = text.len().min(STRING_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// More texts than one event with its process and container can have.
const TEXTS_MAX: usize = 48;
/// More columns than one event with its process and container can add to the tables.
const COLUMNS_MAX: usize = 80;
const ZSTD_LEVEL: i32 = 1;
