//! JSON lines become events of an agent of their own.
//!
//! ```text
//! file ─► lines, some thousand at a time ─► parsed, by sender, host and lane ─► frames as an agent would send ─► columns ─► chunk
//! ```
//!
//! The file's SHA-256 names the agent (`import-<16 digits>`) and its epoch, and the line's number is the seq: so an event has the same
//! id whenever the same file is imported for the same tenant.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::compute::cast;
use sha2::{Digest as _, Sha256};
use weir_schema::{
    AgentIdentity, Batch, BatchBuilder, Column, Decoder, Epoch, Event, EventIds, Host, JsonEvent, Kind, LINE_BYTES_MAX, Lane,
    Name, Refused, Seq, parse_line,
};

use super::{Imported, Importer};
use crate::catalog::Archive;
use crate::chunk::with_column;
use crate::error::Error;
use crate::layout::Table;
use crate::manifest::hex;
use crate::piece::{Convert, Piece};
use crate::properties::outside_schema;

/// What lines that name no tenant or region are given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineDefaults {
    /// The tenant.
    pub tenant: Name,
    /// The region.
    pub region: Name,
}

impl Default for LineDefaults {
    fn default() -> Self {
        let name = |text| Name::new(text).expect("it is a name");
        Self { tenant: name("default"), region: name("imported") }
    }
}

/// A line that is no event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadLine {
    /// From 1.
    pub number: u64,
    /// What is wrong with it.
    pub why: String,
}

/// Imports a file of JSON lines (`weir_schema::parse_line`). Lines that are no events are passed over and reported.
pub async fn import_lines(
    target: &Archive,
    file: &Path,
    defaults: &LineDefaults,
    convert: Convert,
    now_ms: u64,
) -> Result<Imported, Error> {
    let mut importer = Importer::begin(target).await?;
    let stamp = Stamp { received_ms: now_ms, tick: importer.tick, convert };
    let (file, defaults) = (file.to_owned(), defaults.clone());
    let mut lines = blocking(move || Lines::open(file, defaults)).await??;
    loop {
        let (back, step) = blocking(move || {
            let step = lines.step(stamp);
            (lines, step)
        })
        .await?;
        lines = back;
        let step = step?;
        for (table, batch) in step.batches {
            importer.take(table, &batch).await?;
        }
        if step.is_last {
            break;
        }
    }
    importer.imported.bad_lines = lines.bad;
    importer.imported.bad_lines_first = lines.bad_first;
    importer.imported.texts_cut = lines.texts_cut;
    importer.commit(now_ms).await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|died| Error::Refused(format!("reading lines ended: {died}")))
}

/// What every imported row is stamped with, and how it becomes columns.
#[derive(Clone, Copy)]
struct Stamp {
    received_ms: u64,
    tick: u64,
    convert: Convert,
}

/// A file of lines that is being read.
struct Lines {
    path: PathBuf,
    reader: BufReader<Hashed<File>>,
    /// Of the whole file, before the first line was read.
    sha256: String,
    agent: Name,
    epoch: Epoch,
    defaults: LineDefaults,
    number: u64,
    bad: u64,
    bad_first: Vec<BadLine>,
    texts_cut: u64,
    decoder: Decoder,
}

/// Some lines, as rows.
struct Step {
    batches: Vec<(Table, RecordBatch)>,
    is_last: bool,
}

/// Who sent events, what host saw them, and in what lane: what a frame has one of.
type Sender = (Name, Name, Lane, HostKey);
/// What each has sent: its host, and its events with their line numbers.
type Senders = BTreeMap<Sender, (Host, Vec<(u64, Event)>)>;
type HostKey = (Arc<str>, Option<Arc<str>>, Option<Arc<str>>, [u8; 16], bool);

impl Lines {
    fn open(path: PathBuf, defaults: LineDefaults) -> Result<Self, Error> {
        let opened = || File::open(&path).map(Hashed::new).map_err(unread(&path));
        let mut whole = opened()?;
        std::io::copy(&mut whole, &mut std::io::sink()).map_err(unread(&path))?;
        let digest = whole.sha.finalize();
        let sha256 = hex(&digest);
        let agent = Name::new(format!("import-{}", &sha256[..16])).expect("hexadecimal digits make a name");
        let epoch = digest.iter().take(8).fold(0, |epoch, byte| epoch << 8 | u64::from(*byte));
        let reader = BufReader::with_capacity(READ_BYTES, opened()?);
        Ok(Self {
            reader,
            sha256,
            agent,
            epoch: Epoch(epoch),
            defaults,
            number: 0,
            bad: 0,
            bad_first: Vec::new(),
            texts_cut: 0,
            decoder: Decoder::new(),
            path,
        })
    }

    /// Reads some lines.
    fn step(&mut self, stamp: Stamp) -> Result<Step, Error> {
        let mut senders: Senders = BTreeMap::new();
        let (mut line, mut gathered, mut is_last) = (Vec::new(), 0, false);
        while gathered < GATHERED_BYTES {
            let Some(whole) = next_line(&mut self.reader, &mut line).map_err(unread(&self.path))? else {
                is_last = true;
                break;
            };
            self.number += 1;
            gathered += line.len() + EVENT_BYTES;
            if whole == Whole::Yes && line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            match parse(&line, whole) {
                Ok(parsed) => self.gather(parsed, &mut senders),
                Err(why) => self.pass_over(why),
            }
        }
        if is_last {
            self.refuse_if_changed()?;
        }
        let mut batches = Vec::new();
        for ((tenant, region, lane, _), (host, events)) in senders {
            let identity = Arc::new(AgentIdentity { tenant, region, agent: self.agent.clone() });
            self.encode(&identity, lane, host, &events, stamp, &mut batches)?;
        }
        Ok(Step { batches, is_last })
    }

    fn gather(&self, parsed: JsonEvent, senders: &mut Senders) {
        let JsonEvent { mut host, tenant, region, event, .. } = parsed;
        if host.host.is_empty() {
            host.host = UNNAMED_HOST.into();
        }
        let tenant = tenant.unwrap_or_else(|| self.defaults.tenant.clone());
        let region = region.unwrap_or_else(|| self.defaults.region.clone());
        let Host { host: name, cloud, zone, boot_id, simulated } = host.clone();
        let sender = (tenant, region, event.kind.lane(), (name, cloud, zone, boot_id.0, simulated));
        senders.entry(sender).or_insert_with(|| (host, Vec::new())).1.push((self.number, event));
    }

    fn pass_over(&mut self, why: String) {
        self.bad += 1;
        if self.bad_first.len() < BAD_SHOWN_MAX {
            self.bad_first.push(BadLine { number: self.number, why });
        }
    }

    /// The ids are made of what the file was when it was first read: it must still be that.
    fn refuse_if_changed(&self) -> Result<(), Error> {
        if hex(&self.reader.get_ref().sha.clone().finalize()) == self.sha256 {
            return Ok(());
        }
        Err(Error::Refused(format!("{} was changed while it was read: import it when nobody writes to it", self.path.display())))
    }

    /// Events of one sender, lane and host, as its agent would send them.
    fn encode(
        &mut self,
        identity: &Arc<AgentIdentity>,
        lane: Lane,
        host: Host,
        events: &[(u64, Event)],
        stamp: Stamp,
        out: &mut Vec<(Table, RecordBatch)>,
    ) -> Result<(), Error> {
        let mut builder = BatchBuilder::new(Arc::new(host), self.epoch, lane, Seq(0));
        // A frame has its events by kind, of a kind in the order they came.
        let mut numbers: BTreeMap<Kind, Vec<u64>> = BTreeMap::new();
        for (number, event) in events {
            let mut pushed = builder.push(event);
            if pushed == Err(Refused::Full) {
                self.flush(identity, &mut builder, &mut numbers, stamp, out)?;
                pushed = builder.push(event);
            }
            match pushed {
                Ok(()) => numbers.entry(event.kind).or_default().push(*number),
                Err(refused) => return Err(self.unfit(*number, &refused)),
            }
        }
        self.flush(identity, &mut builder, &mut numbers, stamp, out)?;
        self.texts_cut += builder.texts_cut();
        Ok(())
    }

    fn flush(
        &mut self,
        identity: &Arc<AgentIdentity>,
        builder: &mut BatchBuilder,
        numbers: &mut BTreeMap<Kind, Vec<u64>>,
        stamp: Stamp,
        out: &mut Vec<(Table, RecordBatch)>,
    ) -> Result<(), Error> {
        let frame = builder.finish().and_then(|frame| frame.decode(&mut self.decoder));
        let batch: Arc<Batch> = Arc::new(frame.map_err(|why| self.unfit(self.number, &why))?);
        for (section, content) in batch.sections.iter().enumerate() {
            let table = Table::of(content.kind);
            let piece = Piece {
                identity: Arc::clone(identity),
                received_ms: stamp.received_ms,
                tick: stamp.tick,
                late: false,
                batch: Arc::clone(&batch),
                section,
                rows: None,
            };
            let mut rows = as_text(table, &(stamp.convert)(&[(&piece, None)]))?;
            if table == Table::Events {
                let numbers = numbers.get(&content.kind).map_or(&[][..], Vec::as_slice);
                let mut ids = EventIds::new(identity, self.epoch, batch.header.lane);
                let ids: StringArray = numbers.iter().map(|number| Some(ids.id(Seq(*number)).to_string())).collect();
                rows = with_column(table, &rows, Column::EventId, Arc::new(ids))?;
            }
            out.push((table, rows));
        }
        numbers.clear();
        Ok(())
    }

    fn unfit(&self, number: u64, why: &dyn std::fmt::Display) -> Error {
        Error::Refused(format!("the events around line {number} of {} fit no frame: {why}", self.path.display()))
    }
}

/// The columns as they are read: text plain.
fn as_text(table: Table, rows: &RecordBatch) -> Result<RecordBatch, Error> {
    let schema = outside_schema(table);
    let columns = schema.fields().iter().zip(rows.columns()).map(|(field, array)| cast(array, field.data_type()));
    let cast =
        columns.collect::<Result<Vec<ArrayRef>, _>>().and_then(|columns| RecordBatch::try_new(Arc::clone(&schema), columns));
    cast.map_err(|error| Error::Parquet { what: format!("taking rows of {}", table.name()), why: error.to_string() })
}

/// Whether all of a line was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whole {
    Yes,
    TooLong,
}

/// The next line, without its end; of one that is too long, its beginning. None: there is no more.
fn next_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> std::io::Result<Option<Whole>> {
    line.clear();
    let mut whole = Whole::Yes;
    let mut any = false;
    loop {
        let read = reader.fill_buf()?;
        if read.is_empty() {
            return Ok(any.then_some(whole));
        }
        any = true;
        let end = read.iter().position(|byte| *byte == b'\n');
        let part = &read[..end.unwrap_or(read.len())];
        let room = (LINE_BYTES_MAX + 1).saturating_sub(line.len());
        if part.len() > room {
            whole = Whole::TooLong;
        }
        line.extend_from_slice(&part[..part.len().min(room)]);
        let used = end.map_or(read.len(), |end| end + 1);
        reader.consume(used);
        if end.is_some() {
            return Ok(Some(whole));
        }
    }
}

fn parse(line: &[u8], whole: Whole) -> Result<JsonEvent, String> {
    if whole == Whole::TooLong {
        return Err(format!("not an event: the line is longer than the {LINE_BYTES_MAX} bytes that are read"));
    }
    let text = std::str::from_utf8(line).map_err(|_| "not an event: the line is not UTF-8".to_owned())?;
    parse_line(text).map_err(|error| error.to_string())
}

fn unread(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.display().to_string();
    move |error| Error::Refused(format!("could not read {path}: {error}"))
}

/// A reader that remembers the hash of what was read.
struct Hashed<R> {
    inner: R,
    sha: Sha256,
}

impl<R> Hashed<R> {
    fn new(inner: R) -> Self {
        Self { inner, sha: Sha256::new() }
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(out)?;
        self.sha.update(&out[..read]);
        Ok(read)
    }
}

/// A host that a line does not name.
const UNNAMED_HOST: &str = "unnamed";
/// Bad lines that are told one by one.
const BAD_SHOWN_MAX: usize = 20;
const READ_BYTES: usize = 256 << 10;
/// What is parsed at once, in bytes of memory; an event is some columns beside its line.
const GATHERED_BYTES: usize = 64 << 20;
const EVENT_BYTES: usize = 2 << 10;
