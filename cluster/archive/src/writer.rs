//! The writer: pieces in chain order become fresh files, and a manifest that says how far the archive is.
//!
//! A flush puts the state object, then the files, then the manifest. Killed anywhere before the manifest, nothing has happened: the
//! objects are orphans, and the next writer begins at the last manifest's position. A flush that failed is tried again as it is.

use bytes::Bytes;
use object_store::path::Path;

use crate::catalog::{Advance, Archive, Change};
use crate::error::Error;
use crate::layout::{Table, fresh_path, random_id, state_path};
use crate::manifest::{FileEntry, Position, StateRef, sha256_hex};
use crate::piece::{Convert, Piece};
use crate::properties::{Stage, outside_schema, properties};
use crate::seal::{Seal, Sealer};
use crate::sort::in_order;
use crate::sweep::{InFlight, Spared};

/// Writes what is chained. One per archive at a time; a second one is fenced by the manifests.
#[derive(Debug)]
pub struct Writer {
    archive: Archive,
    convert: Convert,
    pieces: Vec<Piece>,
    rows: usize,
    weight: usize,
    pending: Option<Pending>,
}

/// What a flush has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flush {
    /// Rows that are in the archive now.
    pub rows: u64,
    /// Bytes of their files.
    pub bytes: u64,
    /// Files.
    pub files: usize,
    /// Number of the manifest.
    pub manifest: u64,
}

/// A flush that is encoded and not committed.
#[derive(Debug)]
struct Pending {
    objects: Vec<(Path, Bytes)>,
    stored: usize,
    change: Change,
    /// Keeps the objects from being swept before the manifest names them.
    _spared: Spared,
}

impl Writer {
    /// Goes on with an archive.
    pub fn new(archive: Archive, convert: Convert) -> Self {
        Self { archive, convert, pieces: Vec::new(), rows: 0, weight: 0, pending: None }
    }

    /// Takes rows, in chain order.
    pub fn push(&mut self, pieces: Vec<Piece>) {
        self.rows += pieces.iter().map(Piece::len).sum::<usize>();
        self.weight += pieces.iter().map(Piece::weight).sum::<usize>();
        self.pieces.extend(pieces);
    }

    /// Rows that wait for a flush.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes that they take, about.
    pub fn bytes(&self) -> usize {
        self.weight
    }

    /// Makes what was pushed part of the archive: everything chained up to `to`. `state` is what a reader of the chain goes on from.
    ///
    /// After `Error::Store` call it again, with anything: what was encoded is kept and tried as it was, until it is committed.
    pub async fn flush(&mut self, to: Position, state: Vec<u8>, now_ms: u64) -> Result<Flush, Error> {
        if self.pending.is_none() {
            let from_tick = self.archive.catalog().position.tick;
            let (pieces, convert) = (std::mem::take(&mut self.pieces), self.convert);
            (self.rows, self.weight) = (0, 0);
            let in_flight = self.archive.in_flight().clone();
            let encoded =
                tokio::task::spawn_blocking(move || Pending::encode(&pieces, convert, from_tick, to, state, &in_flight));
            self.pending = Some(encoded.await.map_err(|died| Error::Refused(format!("encoding ended: {died}")))??);
        }
        let pending = self.pending.as_mut().expect("there is one now");
        while let Some((path, bytes)) = pending.objects.get(pending.stored) {
            self.archive.store().write(path, bytes.to_vec()).await?;
            pending.stored += 1;
        }
        let committed = self.archive.commit(&pending.change, now_ms).await;
        let added = &pending.change.added;
        let flush = |manifest| Flush {
            rows: added.iter().map(|file| file.rows).sum(),
            bytes: added.iter().map(|file| file.bytes).sum(),
            files: added.len(),
            manifest,
        };
        let flush = committed.map(|catalog| flush(catalog.number));
        // Fenced or damaged: it will never be committed.
        if !matches!(flush, Err(Error::Store { .. })) {
            self.pending = None;
        }
        flush
    }
}

impl Pending {
    fn encode(
        pieces: &[Piece],
        convert: Convert,
        from_tick: u64,
        to: Position,
        state: Vec<u8>,
        in_flight: &InFlight,
    ) -> Result<Self, Error> {
        let state_at = state_path(&random_id());
        let reference = StateRef { path: state_at.to_string(), bytes: state.len() as u64, sha256: sha256_hex(&state) };
        let mut objects = vec![(state_at, Bytes::from(state))];
        let mut added = Vec::new();
        for table in Table::ALL {
            let ours: Vec<Piece> = pieces.iter().filter(|piece| piece.table() == table).cloned().collect();
            if let Some((entry, bytes)) = fresh_file(table, &ours, convert)? {
                objects.push((Path::from(entry.path.as_str()), bytes));
                added.push(entry);
            }
        }
        let advance = Some(Advance { from_tick, to, state: reference });
        let spared = in_flight.enter(objects.iter().map(|(path, _)| path.to_string()));
        Ok(Self { objects, stored: 0, change: Change { advance, added, ..Change::default() }, _spared: spared })
    }
}

/// Encodes pieces of one relation as one file.
pub(crate) fn fresh_file(table: Table, pieces: &[Piece], convert: Convert) -> Result<Option<(FileEntry, Bytes)>, Error> {
    if pieces.iter().all(Piece::is_empty) {
        return Ok(None);
    }
    let path = fresh_path(table, &random_id()).to_string();
    let mut sealer = Sealer::new(&path, outside_schema(table), properties(Stage::Fresh))?;
    let mut bytes = Vec::new();
    in_order(pieces, convert, &mut |batch| {
        bytes.extend(sealer.write(batch)?.into_iter().flatten());
        Ok(())
    })?;
    let (rest, seal) = sealer.finish()?;
    bytes.extend(rest);
    let times = || pieces.iter().flat_map(times);
    let ticks = || pieces.iter().map(|piece| piece.tick);
    let span = Span {
        time_min: times().min().unwrap_or(0),
        time_max: times().max().unwrap_or(0),
        tick_min: ticks().min().unwrap_or(0),
        tick_max: ticks().max().unwrap_or(0),
    };
    Ok(Some((span.entry(path, table, seal), Bytes::from(bytes))))
}

fn times(piece: &Piece) -> impl Iterator<Item = i64> {
    let times = &piece.section().times;
    let all = piece.rows.is_none();
    let some = piece.rows.iter().flatten().map(|row| times[*row as usize]);
    times.iter().copied().filter(move |_| all).chain(some)
}

/// The spans of a file's rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub(crate) time_min: i64,
    pub(crate) time_max: i64,
    pub(crate) tick_min: u64,
    pub(crate) tick_max: u64,
}

impl Span {
    pub(crate) fn entry(self, path: String, table: Table, seal: Seal) -> FileEntry {
        let Seal { rows, bytes, sha256, footer_at, footer_sha256 } = seal;
        let Self { time_min, time_max, tick_min, tick_max } = self;
        FileEntry {
            path,
            table,
            partition: None,
            rows,
            bytes,
            sha256,
            footer_at,
            footer_sha256,
            time_min,
            time_max,
            tick_min,
            tick_max,
            imported: false,
        }
    }
}
