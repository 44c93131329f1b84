//! One offset in a file of its own: the watermark, and the first offset that is kept.
//!
//! ```text
//!  0          8        12
//!  | offset   | crc32c |        little-endian
//! ```
//!
//! **Watermark.** Written in place after a good sync of the records, so every value that this file ever held was durable when it
//! was written. That is why it needs no sync of its own: a crash may bring back an older value or a torn one, and an older
//! value is smaller, while a torn one fails its checksum; the next writer publishes anew what it finds. Readers in other
//! processes never go beyond it.
//!
//! **First.** Written to a new file, synced, renamed, and the folder synced, before a segment is removed: whoever misses a
//! segment can tell that it was forgotten and not lost.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::Offset;
use crate::disk::{Disk, DiskFile};
use crate::error::Error;
use crate::record::{u32_at, u64_at};

/// The writer's side of the watermark.
pub(crate) struct Watermark {
    file: Box<dyn DiskFile>,
    path: PathBuf,
    published: Offset,
}

impl Watermark {
    /// What the last writer published, when it can be read.
    pub(crate) fn last(disk: &dyn Disk, dir: &Path) -> Result<Option<Offset>, Error> {
        read_file(disk, &dir.join(WATERMARK_NAME))
    }

    /// Publishes `durable` and makes the file's name durable.
    pub(crate) fn create(disk: &dyn Disk, dir: &Path, durable: Offset) -> Result<Self, Error> {
        let path = dir.join(WATERMARK_NAME);
        let file = match disk.open_write(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => disk.create(&path).map_err(Error::io("create", &path))?,
            outcome => outcome.map_err(Error::io("open", &path))?,
        };
        file.write_at(&encode(durable), 0).map_err(Error::io("write", &path))?;
        disk.sync_dir(dir).map_err(Error::io("sync", dir))?;
        Ok(Self { file, path, published: durable })
    }

    /// Tells readers that everything before `durable` may be read. Call it after the sync only.
    pub(crate) fn publish(&mut self, durable: Offset) -> Result<(), Error> {
        if self.published != durable {
            self.file.write_at(&encode(durable), 0).map_err(Error::io("write", &self.path))?;
            self.published = durable;
        }
        Ok(())
    }
}

/// The reader's side of the watermark: one small read each time.
pub(crate) struct WatermarkReader {
    file: Box<dyn DiskFile>,
    path: PathBuf,
}

impl WatermarkReader {
    pub(crate) fn open(disk: &dyn Disk, dir: &Path) -> Result<Self, Error> {
        let path = dir.join(WATERMARK_NAME);
        match disk.open_read(&path) {
            Ok(file) => Ok(Self { file, path }),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(Error::Missing { dir: dir.to_owned() }),
            Err(error) => Err(Error::io("open", &path)(error)),
        }
    }

    /// The watermark; `None` when it cannot be read whole, be it that a write is under way or that a crash tore it.
    pub(crate) fn read(&self) -> Result<Option<Offset>, Error> {
        for _ in 0..READS_MAX {
            let mark = read(&*self.file).map_err(Error::io("read", &self.path))?;
            if mark.is_some() {
                return Ok(mark);
            }
        }
        Ok(None)
    }
}

/// The first offset that is kept, as last written; `None` when nothing was forgotten yet or the file is broken.
pub(crate) fn read_first(disk: &dyn Disk, dir: &Path) -> Result<Option<Offset>, Error> {
    read_file(disk, &dir.join(FIRST_NAME))
}

/// Writes the first offset that is kept; durable when this returns.
pub(crate) fn write_first(disk: &dyn Disk, dir: &Path, first: Offset) -> Result<(), Error> {
    let (fresh, path) = (dir.join(FIRST_FRESH_NAME), dir.join(FIRST_NAME));
    let file = disk.create(&fresh).map_err(Error::io("create", &fresh))?;
    file.write_at(&encode(first), 0).map_err(Error::io("write", &fresh))?;
    file.sync_data().map_err(Error::io("sync", &fresh))?;
    disk.rename(&fresh, &path).map_err(Error::io("rename", &fresh))?;
    disk.sync_dir(dir).map_err(Error::io("sync", dir))
}

fn read_file(disk: &dyn Disk, path: &Path) -> Result<Option<Offset>, Error> {
    match disk.open_read(path) {
        Ok(file) => read(&*file).map_err(Error::io("read", path)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("open", path)(error)),
    }
}

fn read(file: &dyn DiskFile) -> io::Result<Option<Offset>> {
    let mut bytes = [0; MARK_BYTES];
    let filled = file.read_at(&mut bytes, 0)?;
    let whole = filled == MARK_BYTES && u32_at(&bytes, 8) == checksum(&bytes[..8]);
    Ok(whole.then(|| Offset(u64_at(&bytes, 0))))
}

fn encode(offset: Offset) -> [u8; MARK_BYTES] {
    let mut bytes = [0; MARK_BYTES];
    bytes[..8].copy_from_slice(&offset.0.to_le_bytes());
    let crc = checksum(&bytes[..8]);
    bytes[8..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(CHECKSUM_SEED, bytes)
}

const WATERMARK_NAME: &str = "watermark";
const FIRST_NAME: &str = "first";
const FIRST_FRESH_NAME: &str = "first.tmp";
const MARK_BYTES: usize = 12;
/// So that a file of zeros is no mark.
const CHECKSUM_SEED: u32 = 0x7765_6972;
/// A write of twelve bytes takes well below a microsecond: whoever meets it twice meets a torn one.
const READS_MAX: usize = 16;
