//! A table of columns: while a batch grows, on the wire (`SectionV1`), and decoded.

use crate::cells::{Growing, Ints};
use crate::column::{Column, ColumnType, SENT_NUMBERS};
use crate::error::Error;
use crate::event::Cell;
use crate::limits::CELLS_MAX;
use crate::strings::Interner;
use crate::wire::{ColumnV1, HEAD_BYTES, Head, VERSION};

/// A decoded table or section: columns of equal length, by column number.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    rows: usize,
    columns: Vec<(Column, Cells)>,
}

/// The values of one decoded column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cells {
    /// Codes into the batch's strings, 0 where a row has none.
    Codes(Vec<u32>),
    /// Integers and times.
    Ints(Ints),
}

impl Table {
    /// Rows of every column.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The column as stored here; `None` when no row has a value.
    pub fn cells(&self, column: Column) -> Option<&Cells> {
        self.columns.iter().find(|(known, _)| *known == column).map(|(_, cells)| cells)
    }

    /// The codes of a text column.
    pub fn codes(&self, column: Column) -> Option<&[u32]> {
        if let Some(Cells::Codes(codes)) = self.cells(column) { Some(codes) } else { None }
    }

    /// The values of a column of integers or times.
    pub fn ints(&self, column: Column) -> Option<&Ints> {
        if let Some(Cells::Ints(ints)) = self.cells(column) { Some(ints) } else { None }
    }

    /// All columns that have a value.
    pub fn columns(&self) -> impl Iterator<Item = (Column, &Cells)> {
        self.columns.iter().map(|(column, cells)| (*column, cells))
    }

    /// Puts other codes into these rows of every text column.
    pub(crate) fn rewrite_codes(&mut self, rows: &[u32], code: impl Fn(Column, u32) -> u32) {
        for (column, cells) in &mut self.columns {
            let Cells::Codes(codes) = cells else { continue };
            for row in rows {
                let known = &mut codes[*row as usize];
                *known = code(*column, *known);
            }
        }
    }

    pub(crate) fn take(&mut self, column: Column) -> Option<Cells> {
        let at = self.columns.iter().position(|(known, _)| *known == column)?;
        Some(self.columns.remove(at).1)
    }

    /// Reads a `SectionV1`. Columns that this binary does not know are passed over and counted in `room.unknown_columns`.
    pub(crate) fn decode(rows: u32, content: &[u8], room: &mut Room) -> Result<Self, Error> {
        let malformed = |_| Error::Body("a section is malformed");
        let rows = rows as usize;
        let (count, mut rest) = postcard::take_from_bytes::<u16>(content).map_err(malformed)?;
        let mut table = Self { rows, columns: Vec::with_capacity(usize::from(count).min(SENT_NUMBERS)) };
        let mut last = 0;
        for _ in 0..count {
            let (wire, after) = postcard::take_from_bytes::<ColumnV1<'_>>(rest).map_err(malformed)?;
            rest = after;
            if wire.number <= last {
                return Err(Error::Body("columns are out of order"));
            }
            last = wire.number;
            let sent = usize::from(wire.number) < SENT_NUMBERS;
            let Some(column) = Column::from_number(wire.number).filter(|_| sent) else {
                room.unknown_columns += 1;
                continue;
            };
            room.cells += rows;
            if room.cells > CELLS_MAX {
                return Err(Error::Limit { what: "number of cells", found: room.cells as u64, max: CELLS_MAX as u64 });
            }
            let cells = match (column, column.ty()) {
                (_, ColumnType::Text) => Cells::Codes(wire.codes(rows, room.code_max)?),
                (Column::ProcessRow, _) => Cells::Codes(wire.codes(rows, room.process_max)?),
                (Column::ContainerRow, _) => Cells::Codes(wire.codes(rows, room.container_max)?),
                _ => Cells::Ints(wire.ints(rows)?),
            };
            table.columns.push((column, cells));
        }
        if rest.is_empty() { Ok(table) } else { Err(Error::Body("a section is longer than its columns")) }
    }
}

/// What decoding a batch has used up so far, and what it may refer to.
#[derive(Debug, Default)]
pub(crate) struct Room {
    pub(crate) cells: usize,
    pub(crate) code_max: u32,
    pub(crate) process_max: u32,
    pub(crate) container_max: u32,
    pub(crate) unknown_columns: u32,
}

/// A table while a batch grows.
#[derive(Debug)]
pub(crate) struct GrowingTable {
    pub(crate) rows: usize,
    /// Where a column's values are in `columns`; `NONE` for a column without any so far.
    slots: [u8; SENT_NUMBERS],
    columns: Vec<Growing>,
    used: usize,
    /// Values so far, for the size estimate.
    pub(crate) values: usize,
}

const NONE: u8 = u8::MAX;

impl Default for GrowingTable {
    fn default() -> Self {
        Self { rows: 0, slots: [NONE; SENT_NUMBERS], columns: Vec::new(), used: 0, values: 0 }
    }
}

impl GrowingTable {
    /// Gives the row that is being made a value.
    #[inline]
    pub(crate) fn int(&mut self, column: Column, value: i64) {
        let slot = &mut self.slots[usize::from(column.number())];
        if *slot == NONE {
            *slot = self.used as u8;
            self.used += 1;
            if self.columns.len() < self.used {
                self.columns.push(Growing::default());
            }
        }
        self.columns[usize::from(*slot)].push(self.rows, value);
        self.values += 1;
    }

    /// Gives the row that is being made a value.
    #[inline]
    pub(crate) fn put(&mut self, strings: &mut Interner, column: Column, cell: Cell<'_>) {
        match cell {
            Cell::Text(text) => self.int(column, i64::from(strings.code(text))),
            Cell::Int(int) => self.int(column, int),
        }
    }

    /// Cells that a decoder will make of this table.
    pub(crate) fn cells(&self) -> usize {
        self.rows * self.used
    }

    pub(crate) fn clear(&mut self) {
        self.columns[..self.used].iter_mut().for_each(Growing::clear);
        self.slots = [NONE; SENT_NUMBERS];
        (self.rows, self.used, self.values) = (0, 0, 0);
    }

    /// Appends the table as a section.
    pub(crate) fn write(&mut self, kind: u16, planes: &mut Vec<u8>, body: &mut Vec<u8>) {
        let head = begin_section(body);
        append(&(self.used as u16), body);
        for number in 0..SENT_NUMBERS {
            if self.slots[number] == NONE {
                continue;
            }
            let number = number as u16;
            let text = Column::from_number(number).is_some_and(|column| column.ty() == ColumnType::Text);
            let growing = &mut self.columns[usize::from(self.slots[usize::from(number)])];
            let rows = self.rows;
            let is_row = number == Column::ProcessRow.number() || number == Column::ContainerRow.number();
            let column =
                if text || is_row { growing.pack_plain(number, rows, planes) } else { growing.pack(number, rows, planes) };
            append(&column, body);
        }
        end_section(body, head, kind, self.rows);
    }
}

/// Leaves room for a section's head; returns where it stands.
pub(crate) fn begin_section(body: &mut Vec<u8>) -> usize {
    let at = body.len();
    body.resize(at + HEAD_BYTES, 0);
    at
}

/// Fills in the head of the section that began at `at` and ends here.
pub(crate) fn end_section(body: &mut [u8], at: usize, kind: u16, rows: usize) {
    let bytes = (body.len() - at - HEAD_BYTES) as u32;
    let head = Head { kind, version: VERSION, rows: rows as u32, bytes };
    body[at..at + HEAD_BYTES].copy_from_slice(&head.to_bytes());
}

/// Appends a serde value in postcard.
pub(crate) fn append(value: &impl serde::Serialize, body: &mut Vec<u8>) {
    let whole = postcard::to_extend(value, std::mem::take(body)).expect("plain structs of numbers and bytes always serialise");
    *body = whole;
}
