//! The consumer's side of a batch: a frame's body, decoded and still columnar. Nothing is copied per row or per string.
//!
//! A text is a code into `Batch::strings`, 0 where there is none. What belongs to a process or a container stands once in its
//! table; `Batch::codes` and `Batch::ints` bring it to the rows of a section. Sections of unknown kinds and newer versions are
//! passed over, their events counted in `Batch::skipped`; the frame's bytes in the log still have them.

use std::borrow::Cow;
use std::sync::Arc;

use crate::cells::{Ints, bit};
use crate::column::{Column, Home};
use crate::error::Error;
use crate::event::{Cell, Container, Event, Host, Process, Text};
use crate::frame::{FrameHeader, limit};
use crate::ids::{BootId, ProcessId, Seq};
use crate::kind::Kind;
use crate::limits::TABLE_ROWS_MAX;
use crate::strings::Strings;
use crate::table::{Cells, Room, Table};
use crate::wire::{CONTAINERS, HOST, Head, HostV1, PROCESSES, STRINGS, VERSION};

/// A decoded frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Header of the frame it came in.
    pub header: FrameHeader,
    /// The host that saw its events.
    pub host: Host,
    /// The texts that codes name.
    pub strings: Strings,
    /// The processes of its events: columns of `Home::Process`, and `StartNs`, `ParentStartNs`.
    pub processes: Table,
    /// The containers of its events: columns of `Home::Container`.
    pub containers: Table,
    /// Its events by kind, in seq order.
    pub sections: Vec<Section>,
    /// What this binary did not understand.
    pub skipped: Vec<Skipped>,
}

/// The events of one kind. Row i has seq `first_seq + i`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// What happened.
    pub kind: Kind,
    /// Seq of the first row.
    pub first_seq: Seq,
    /// Time of each row, nanoseconds since the Unix epoch.
    pub times: Vec<i64>,
    /// Row number + 1 in `Batch::processes`, 0 for none. Empty: no row has one.
    pub process_rows: Vec<u32>,
    /// Row number + 1 in `Batch::containers`, 0 for none. Empty: no row has one.
    pub container_rows: Vec<u32>,
    /// The columns of `Home::Event`, but for time.
    pub table: Table,
}

impl Section {
    /// How many events it has.
    pub fn rows(&self) -> usize {
        self.times.len()
    }
}

/// Something that was passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Skipped {
    /// Kind number of the section.
    pub kind: u16,
    /// Version of the section.
    pub version: u16,
    /// Seq of its first event.
    pub first_seq: Seq,
    /// Its events. They are in the log, but not in this batch; with `Why::UnknownColumns` they are in the batch.
    pub rows: u32,
    /// Why it was passed over.
    pub why: Why,
}

/// Why something was passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// This binary does not know the kind of event.
    UnknownKind,
    /// The section is of a newer version than this binary knows.
    NewerVersion,
    /// So many columns of the section are unknown; the others were decoded.
    UnknownColumns(u32),
}

impl Batch {
    pub(crate) fn decode(header: FrameHeader, mut body: &[u8]) -> Result<Self, Error> {
        let body = &mut body;
        let host = decode_host(take(body, HOST)?.1)?;
        let (head, content) = take(body, STRINGS)?;
        let strings = Strings::decode(head.rows, content)?;
        let mut room = Room { code_max: strings.entries() as u32 - 1, ..Room::default() };
        let mut batch = Self {
            header,
            host,
            strings,
            processes: Table::default(),
            containers: Table::default(),
            sections: Vec::new(),
            skipped: Vec::new(),
        };
        let (head, content) = take(body, PROCESSES)?;
        batch.processes = batch.table(head, content, &mut room)?;
        room.process_max = head.rows;
        let (head, content) = take(body, CONTAINERS)?;
        batch.containers = batch.table(head, content, &mut room)?;
        room.container_max = head.rows;
        let mut events = 0u32;
        while !body.is_empty() {
            let (head, content) = Head::take(body)?;
            if head.rows == 0 || head.rows > header.count - events {
                return Err(Error::Body("the sections' rows do not add up to the frame's events"));
            }
            let first_seq = Seq(header.first_seq.0 + u64::from(events));
            events += head.rows;
            batch.section(head, content, first_seq, &mut room)?;
        }
        if events != header.count {
            return Err(Error::Body("the sections' rows do not add up to the frame's events"));
        }
        Ok(batch)
    }

    /// The table of processes or containers.
    fn table(&mut self, head: Head, content: &[u8], room: &mut Room) -> Result<Table, Error> {
        limit("number of processes or containers", head.rows as usize, TABLE_ROWS_MAX)?;
        let table = Table::decode(head.rows, content, room)?;
        let home = if head.kind == PROCESSES { Home::Process } else { Home::Container };
        if table.columns().any(|(column, _)| column.home() != home) {
            return Err(Error::Body("a column stands in a table where it does not belong"));
        }
        self.note_unknown_columns(head, self.header.first_seq, room);
        Ok(table)
    }

    fn section(&mut self, head: Head, content: &[u8], first_seq: Seq, room: &mut Room) -> Result<(), Error> {
        let Head { kind, version, rows, .. } = head;
        let known = Kind::from_u16(kind);
        let why = if known.is_none() { Why::UnknownKind } else { Why::NewerVersion };
        let Some(kind) = known.filter(|_| version == VERSION) else {
            self.skipped.push(Skipped { kind, version, first_seq, rows, why });
            return Ok(());
        };
        if kind.lane() != self.header.lane {
            return Err(Error::Body("an event travels in a lane where it does not belong"));
        }
        if self.sections.last().is_some_and(|last| last.kind >= kind) {
            return Err(Error::Body("kinds are out of order"));
        }
        let mut table = Table::decode(rows, content, room)?;
        if table.columns().any(|(column, _)| column.home() != Home::Event) {
            return Err(Error::Body("a column stands in a section where it does not belong"));
        }
        let Some(Cells::Ints(Ints { values: times, valid: None })) = table.take(Column::Time) else {
            return Err(Error::Body("an event has no time"));
        };
        let process_rows = rows_of(&mut table, Column::ProcessRow);
        let container_rows = rows_of(&mut table, Column::ContainerRow);
        self.note_unknown_columns(head, first_seq, room);
        self.sections.push(Section { kind, first_seq, times, process_rows, container_rows, table });
        Ok(())
    }

    fn note_unknown_columns(&mut self, head: Head, first_seq: Seq, room: &mut Room) {
        let unknown = std::mem::take(&mut room.unknown_columns);
        if unknown > 0 {
            let Head { kind, version, rows, .. } = head;
            self.skipped.push(Skipped { kind, version, first_seq, rows, why: Why::UnknownColumns(unknown) });
        }
    }

    /// Tells the events of these rows of `containers` under one name: id and app become `name`, everything else of them is unknown.
    pub fn rename_containers(&mut self, rows: &[u32], name: &str) {
        if rows.is_empty() {
            return;
        }
        let code = self.strings.push(name);
        self.containers.rewrite_codes(rows, |column, known| {
            let is_name = matches!(column, Column::ContainerId | Column::App) && known != 0;
            if is_name { code } else { 0 }
        });
    }

    /// Events that this binary understood.
    pub fn rows(&self) -> usize {
        self.sections.iter().map(Section::rows).sum()
    }

    /// Events that were passed over because of their kind or version.
    pub fn rows_skipped(&self) -> u64 {
        let passed = self.skipped.iter().filter(|skipped| !matches!(skipped.why, Why::UnknownColumns(_)));
        passed.map(|skipped| u64::from(skipped.rows)).sum()
    }

    /// A text column of a section, wherever it is stored: one code a row, 0 for none. `None` when no row has a value, and for
    /// columns that are not text or not sent.
    pub fn codes<'a>(&'a self, section: &'a Section, column: Column) -> Option<Cow<'a, [u32]>> {
        let (table, index) = match column.home() {
            Home::Event => return section.table.codes(column).map(Cow::Borrowed),
            Home::Process => (&self.processes, &section.process_rows),
            Home::Container => (&self.containers, &section.container_rows),
            Home::Host | Home::Key => return None,
        };
        let stored = table.codes(column).filter(|_| !index.is_empty())?;
        Some(Cow::Owned(index.iter().map(|row| (*row as usize).checked_sub(1).map_or(0, |row| stored[row])).collect()))
    }

    /// A column of integers of a section, wherever it is stored. `None` when no row has a value, and for other columns.
    pub fn ints<'a>(&'a self, section: &'a Section, column: Column) -> Option<Cow<'a, Ints>> {
        let (table, index) = match column.home() {
            Home::Event => return section.table.ints(column).map(Cow::Borrowed),
            Home::Process => (&self.processes, &section.process_rows),
            Home::Container => (&self.containers, &section.container_rows),
            Home::Host | Home::Key => return None,
        };
        let stored = table.ints(column).filter(|_| !index.is_empty())?;
        if stored.valid.is_none() && !index.contains(&0) {
            let values = index.iter().map(|row| stored.values[*row as usize - 1]).collect();
            return Some(Cow::Owned(Ints { values, valid: None }));
        }
        let mut values = Vec::with_capacity(index.len());
        let mut valid = vec![0u8; index.len().div_ceil(8)];
        for (at, row) in index.iter().enumerate() {
            let known = (*row as usize).checked_sub(1).and_then(|row| stored.get(row));
            values.push(known.unwrap_or(0));
            valid[at / 8] |= u8::from(known.is_some()) << (at % 8);
        }
        Some(Cow::Owned(Ints { values, valid: Some(valid) }))
    }

    /// The id of each process of `processes`, in its order.
    pub fn process_ids(&self, tenant: &str) -> Vec<Option<ProcessId>> {
        self.ids_of(tenant, Column::Pid, Column::StartNs)
    }

    /// The id of the parent of each process of `processes`; `None` where the parent's pid or start is unknown.
    pub fn parent_ids(&self, tenant: &str) -> Vec<Option<ProcessId>> {
        self.ids_of(tenant, Column::Ppid, Column::ParentStartNs)
    }

    fn ids_of(&self, tenant: &str, pid: Column, start: Column) -> Vec<Option<ProcessId>> {
        let (pids, starts) = (self.processes.ints(pid), self.processes.ints(start));
        let id = |row: usize| {
            let pid = u32::try_from(pids?.get(row)?).ok()?;
            Some(ProcessId::new(tenant, &self.host.host, &self.host.boot_id, pid, starts?.get(row)?.cast_unsigned()))
        };
        (0..self.processes.rows()).map(id).collect()
    }

    /// Its events one by one, in seq order without those passed over. For tests, tools and JSON: it builds every row.
    pub fn events(&self) -> Vec<Event> {
        let texts: Vec<Text> = self.strings.iter().map(Text::from).collect();
        let fill = |table: &Table, row: usize, set: &mut dyn FnMut(Column, Cell<'_>)| {
            for (column, cells) in table.columns() {
                match cells {
                    Cells::Codes(codes) if codes[row] != 0 => set(column, Cell::Text(&texts[codes[row] as usize])),
                    Cells::Ints(ints) if ints.valid.as_ref().is_none_or(|bits| bit(bits, row)) => {
                        set(column, Cell::Int(ints.values[row]));
                    }
                    _ => {}
                }
            }
        };
        let processes: Vec<Arc<Process>> = (0..self.processes.rows())
            .map(|row| {
                let mut process = Process::default();
                fill(&self.processes, row, &mut |column, cell| match (column, cell) {
                    (Column::Pid, Cell::Int(pid)) => process.pid = u32::try_from(pid).unwrap_or(0),
                    (Column::StartNs, Cell::Int(start)) => process.start_ns = start.cast_unsigned(),
                    _ => _ = process.set(column, cell),
                });
                Arc::new(process)
            })
            .collect();
        let containers: Vec<Arc<Container>> = (0..self.containers.rows())
            .map(|row| {
                let mut container = Container::default();
                fill(&self.containers, row, &mut |column, cell| _ = container.set(column, cell));
                Arc::new(container)
            })
            .collect();
        let mut events = Vec::with_capacity(self.rows());
        for section in &self.sections {
            for (row, time) in section.times.iter().enumerate() {
                let mut event = Event { time: *time, kind: section.kind, ..Event::default() };
                event.process = one_of(&processes, &section.process_rows, row);
                event.container = one_of(&containers, &section.container_rows, row);
                fill(&section.table, row, &mut |column, cell| _ = event.fields.set(column, cell));
                events.push(event);
            }
        }
        events
    }
}

/// The entity of a section's row.
fn one_of<T>(entities: &[Arc<T>], rows: &[u32], row: usize) -> Option<Arc<T>> {
    let number = rows.get(row).and_then(|row| (*row as usize).checked_sub(1))?;
    entities.get(number).cloned()
}

/// Takes a column of row numbers out of a section; decoding has checked them against their table.
fn rows_of(table: &mut Table, column: Column) -> Vec<u32> {
    if let Some(Cells::Codes(rows)) = table.take(column) { rows } else { Vec::new() }
}

/// Takes one of the four sections that every batch begins with.
fn take<'a>(body: &mut &'a [u8], kind: u16) -> Result<(Head, &'a [u8]), Error> {
    let (head, content) = Head::take(body)?;
    if head.kind != kind {
        return Err(Error::Body("host, strings, processes and containers do not come first"));
    }
    if head.version != VERSION {
        return Err(Error::Version { what: "table of a batch", found: head.version, known: VERSION });
    }
    Ok((head, content))
}

fn decode_host(content: &[u8]) -> Result<Host, Error> {
    let wire = postcard::from_bytes::<HostV1<'_>>(content).map_err(|_| Error::Body("the host is malformed"))?;
    let text_max = crate::limits::STRING_BYTES_MAX;
    for text in [Some(wire.host), wire.cloud, wire.zone].into_iter().flatten() {
        limit("length of a string", text.len(), text_max)?;
    }
    Ok(Host {
        host: wire.host.into(),
        cloud: wire.cloud.map(Text::from),
        zone: wire.zone.map(Text::from),
        boot_id: BootId(wire.boot_id),
        simulated: wire.simulated,
    })
}
