//! The reader's end: any number of readers, in any process, tail a journal that somebody else writes.
//!
//! A reader never goes beyond the watermark, so what it gives was durable before. An idle `next` costs one read of twelve
//! bytes. What was durable and cannot be read any more is an `Error::Gap`, again and again until the caller seeks behind it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Offset;
use crate::disk::Disk;
use crate::error::Error;
use crate::mark::{self, WatermarkReader};
use crate::segment::{self, Cursor, Step};

/// Reads a journal, from one record to the next.
pub struct Reader {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    watermark: WatermarkReader,
    /// The record that comes next.
    at: Offset,
    /// The watermark as last read. The cursor's read-ahead is not older than it.
    durable: Offset,
    /// Where `at` stands; `None` until the first read and after a seek.
    cursor: Option<Cursor>,
}

impl Reader {
    /// Opens the journal in `dir` to read from the record `from` on. `Error::Missing` until its writer has made it.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, from: Offset) -> Result<Self, Error> {
        let watermark = WatermarkReader::open(&*disk, dir)?;
        let durable = watermark.read()?.unwrap_or_default();
        Ok(Self { disk, dir: dir.to_owned(), watermark, at: from, durable, cursor: None })
    }

    /// The next record, or `None` when all that is durable was read.
    #[expect(clippy::should_implement_trait, reason = "a tail never ends, `for` over it would only stop too early")]
    pub fn next(&mut self) -> Result<Option<(Offset, Vec<u8>)>, Error> {
        if self.at >= self.durable {
            let durable = self.durable()?;
            if durable <= self.at {
                return Ok(None);
            }
            self.durable = durable;
            // Read ahead before these records were written, perhaps.
            if let Some(cursor) = &mut self.cursor {
                cursor.reread();
            }
        }
        loop {
            let at = self.at;
            if let Some(bytes) = self.read()? {
                self.at = at.after(1);
                return Ok(Some((at, bytes)));
            }
            self.cursor = Some(self.find()?);
        }
    }

    /// Everything before it can be read: the writer's watermark, now.
    pub fn durable(&self) -> Result<Offset, Error> {
        // A mark that a crash tore is published anew by the next writer; until then what was known holds.
        Ok(self.watermark.read()?.unwrap_or(self.durable).max(self.durable))
    }

    /// Takes somebody's word that everything before `durable` was durable once. After a crash of the machine the watermark may be older
    /// than that, until the writer opens the journal again.
    pub fn proven(&mut self, durable: Offset) {
        if durable > self.durable {
            self.durable = durable;
            if let Some(cursor) = &mut self.cursor {
                cursor.reread();
            }
        }
    }

    /// The record that comes next.
    pub fn at(&self) -> Offset {
        self.at
    }

    /// Goes on with the record `to`, wherever that is.
    pub fn seek(&mut self, to: Offset) {
        if to != self.at {
            self.at = to;
            self.cursor = None;
        }
    }

    /// The record at `self.at`, if the cursor stands before it.
    fn read(&mut self) -> Result<Option<Vec<u8>>, Error> {
        let at = self.at;
        let Some(cursor) = self.cursor.as_mut().filter(|cursor| cursor.place().0 == at) else { return Ok(None) };
        match cursor.next().map_err(Error::io("read", &self.dir))? {
            Step::Record { bytes, .. } => Ok(Some(bytes.to_vec())),
            Step::End | Step::Broken => Ok(None),
        }
    }

    /// A cursor that stands before `self.at`, which is durable and can be read there; else says how far it cannot.
    fn find(&self) -> Result<Cursor, Error> {
        for _ in 0..LISTS_MAX {
            let names = segment::list(&*self.disk, &self.dir).map_err(Error::io("list", &self.dir))?;
            let behind = names.partition_point(|name| name.first <= self.at);
            let lost = || Error::Gap { from: self.at, to: names.get(behind).map_or(self.durable, |name| name.first) };
            let Some(index) = behind.checked_sub(1) else {
                let first = mark::read_first(&*self.disk, &self.dir)?.unwrap_or_default();
                return Err(if self.at < first { Error::Forgotten { asked: self.at, first } } else { lost() });
            };
            let path = names[index].path(&self.dir);
            let file = match self.disk.open_read(&path) {
                // The writer has just forgotten or renamed it: look again.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                outcome => outcome.map_err(Error::io("open", &path))?,
            };
            let cursor = Cursor::open(file, names[index].first).map_err(Error::io("read", &path))?;
            let Some(mut cursor) = cursor else { return Err(lost()) };
            loop {
                let place = cursor.place();
                let Step::Record { offset, .. } = cursor.next().map_err(Error::io("read", &path))? else { return Err(lost()) };
                if offset == self.at {
                    cursor.back_to(place);
                    return Ok(cursor);
                }
            }
        }
        Err(Error::Missing { dir: self.dir.clone() })
    }
}

/// A file may vanish between being listed and being opened; more often than this, somebody else removes them.
const LISTS_MAX: usize = 16;
