//! The writer's end: append, sync, forget.
//!
//! `append` only buffers. `sync` writes all that waits with one write, syncs once, and then publishes the watermark; at the
//! seam of two segments it does so once for each. What failed to be written waits for the next `sync`; after a failed *sync*
//! nobody knows what the disk holds (the kernel drops dirty pages once it has told), so the journal is poisoned until opened anew.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{Disk, DiskFile, LOCK_NAME};
use crate::error::Error;
use crate::mark::{self, Watermark};
use crate::record;
use crate::recovery::{Recovery, recover};
use crate::segment::{self, HEAD_BYTES, Name};
use crate::{Offset, Options};

/// The writer of a journal; there is one at a time, its lock sees to it.
pub struct Journal {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: Options,
    /// Every segment, the active one last when there is one.
    segments: Vec<Name>,
    active: Option<Active>,
    watermark: Watermark,
    first: Offset,
    next: Offset,
    durable: Offset,
    head: Option<Head>,
    pending: VecDeque<Group>,
    pending_bytes: usize,
    /// An emptied buffer, kept so that each sync need not take new memory.
    spare: Vec<u8>,
    poisoned: bool,
    // Last, so that it is dropped last.
    _lock: Box<dyn Send + Sync>,
}

/// The segment that is written.
pub(crate) struct Active {
    pub(crate) file: Box<dyn DiskFile>,
    pub(crate) path: PathBuf,
    pub(crate) salt: u64,
    /// Where the next write goes; everything before is durable.
    pub(crate) at: u64,
    /// Bytes reserved.
    pub(crate) size: u64,
}

/// Where the next record goes once all that waits is written.
struct Head {
    salt: u64,
    at: u64,
    size: u64,
}

/// Records that wait for one write: those of one segment.
struct Group {
    /// The segment that they begin; `None` when they go on with the active one.
    begins: Option<Begin>,
    bytes: Vec<u8>,
    /// The offset behind them.
    end: Offset,
}

/// A segment to be made.
#[derive(Clone, Copy)]
pub(crate) struct Begin {
    first: Offset,
    salt: u64,
    size: u64,
}

/// Why a group did not become durable, and whether anything can still be known.
pub(crate) struct Fault {
    error: Error,
    poisons: bool,
}

impl Journal {
    /// Opens the journal in `dir`, made when missing, and makes it sound. `Error::Locked` when it has a writer already.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, options: Options) -> Result<(Self, Recovery), Error> {
        disk.create_dir(dir).map_err(Error::io("create", dir))?;
        let lock_path = dir.join(LOCK_NAME);
        let lock = disk.try_lock(&lock_path).map_err(Error::io("lock", &lock_path))?;
        let lock = lock.ok_or_else(|| Error::Locked { dir: dir.to_owned() })?;
        let recovered = recover(&*disk, dir)?;
        let recovery = recovered.recovery;
        let journal = Self {
            disk,
            dir: dir.to_owned(),
            options,
            segments: recovered.segments,
            watermark: recovered.watermark,
            first: recovery.first,
            next: recovery.next,
            durable: recovery.next,
            head: recovered.active.as_ref().map(|active| Head { salt: active.salt, at: active.at, size: active.size }),
            active: recovered.active,
            pending: VecDeque::new(),
            pending_bytes: 0,
            spare: Vec::new(),
            poisoned: false,
            _lock: lock,
        };
        Ok((journal, recovery))
    }

    /// Takes a record and gives its offset. It waits in memory until `sync`.
    pub fn append(&mut self, bytes: &[u8]) -> Result<Offset, Error> {
        self.sound()?;
        if bytes.len() > self.options.record_bytes_max {
            return Err(Error::RecordTooLarge { bytes: bytes.len(), bytes_max: self.options.record_bytes_max });
        }
        let framed = record::framed_bytes(bytes.len());
        if self.pending_bytes > 0 && self.pending_bytes + framed > self.options.pending_bytes_max {
            return Err(Error::PendingFull { bytes_max: self.options.pending_bytes_max });
        }
        let (offset, floor) = (self.next, self.durable);
        let (salt, group) = self.group_for(framed);
        record::encode(&mut group.bytes, salt, offset.0, floor.0, bytes);
        group.end = offset.after(1);
        self.next = group.end;
        self.pending_bytes += framed;
        Ok(offset)
    }

    /// Makes everything appended durable, then tells readers. Everything before the returned offset is durable.
    pub fn sync(&mut self) -> Result<Offset, Error> {
        self.sound()?;
        while let Some(group) = self.pending.front() {
            let written = match (group.begins, &mut self.active) {
                (None, Some(active)) => active.write_on(&group.bytes),
                (None, None) => unreachable!("a group that begins no segment goes on with one"),
                (Some(begin), _) => Active::create(&*self.disk, &self.dir, begin, &group.bytes).map(|active| {
                    self.segments.push(Name::good(begin.first));
                    self.active = Some(active);
                }),
            };
            if let Err(fault) = written {
                self.poisoned |= fault.poisons;
                return Err(fault.error);
            }
            self.durable = group.end;
            self.pending_bytes -= group.bytes.len();
            self.spare = self.pending.pop_front().map(|group| group.bytes).unwrap_or_default();
            self.spare.clear();
        }
        self.watermark.publish(self.durable)?;
        Ok(self.durable)
    }

    /// The offset that the next record gets.
    pub fn next(&self) -> Offset {
        self.next
    }

    /// Everything before it is durable.
    pub fn durable(&self) -> Offset {
        self.durable
    }

    /// The first record that is kept.
    pub fn first(&self) -> Offset {
        self.first
    }

    /// Allows the records before `before` to go. Whole segments go, the active one never; what is not durable stays.
    /// The new first offset is durable before anything is removed. It is written only when a segment goes, so after a crash
    /// the journal may begin earlier than was allowed.
    pub fn forget(&mut self, before: Offset) -> Result<(), Error> {
        self.sound()?;
        let before = before.min(self.durable);
        if before <= self.first {
            return Ok(());
        }
        let gone = self.segments.windows(2).take_while(|pair| pair[1].first <= before).count();
        if gone > 0 {
            mark::write_first(&*self.disk, &self.dir, before)?;
        }
        self.first = before;
        for _ in 0..gone {
            let path = self.segments[0].path(&self.dir);
            self.disk.remove(&path).map_err(Error::io("remove", &path))?;
            self.segments.remove(0);
        }
        if gone > 0 { self.disk.sync_dir(&self.dir).map_err(Error::io("sync", &self.dir)) } else { Ok(()) }
    }

    /// Makes the first record that is kept durable at once, also when no segment can go yet: after a crash the journal does not
    /// begin earlier. Costs two syncs.
    pub fn mark_first(&mut self) -> Result<(), Error> {
        self.sound()?;
        mark::write_first(&*self.disk, &self.dir, self.first)
    }

    /// Where the oldest segment ends, if it is not the one that is written: forgetting up to there frees it.
    pub fn oldest_end(&self) -> Option<Offset> {
        self.segments.get(1).map(|next| next.first)
    }

    /// Bytes that the journal takes on the disk, those reserved in advance included.
    pub fn bytes(&self) -> Result<u64, Error> {
        let mut bytes = 0;
        for name in &self.segments {
            let path = name.path(&self.dir);
            let file = self.disk.open_read(&path).map_err(Error::io("open", &path))?;
            bytes += file.size().map_err(Error::io("measure", &path))?;
        }
        Ok(bytes)
    }

    /// A sync failed: nothing works any more until the journal is opened anew.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    fn sound(&self) -> Result<(), Error> {
        if self.poisoned { Err(Error::Poisoned { dir: self.dir.clone() }) } else { Ok(()) }
    }

    /// The group that a record of `framed` bytes joins, and the salt of its segment.
    fn group_for(&mut self, framed: usize) -> (u64, &mut Group) {
        let framed = framed as u64;
        // An empty segment takes a record of any size: it may have been made on a full disk, without a reserve.
        let fits = self.head.as_ref().is_some_and(|head| head.at == HEAD_BYTES || head.at + framed <= head.size);
        let begins =
            (!fits).then(|| Begin::fresh(&*self.disk, self.next, self.options.segment_bytes_max.max(HEAD_BYTES + framed)));
        let head = match begins {
            Some(begin) => self.head.insert(Head { salt: begin.salt, at: HEAD_BYTES, size: begin.size }),
            None => self.head.as_mut().expect("a record fits only where there is a head"),
        };
        head.at += framed;
        if begins.is_some() || self.pending.is_empty() {
            self.pending.push_back(Group { begins, bytes: std::mem::take(&mut self.spare), end: self.next });
        }
        (head.salt, self.pending.back_mut().expect("one was there or was pushed"))
    }
}

impl Begin {
    /// A segment that begins at `first`, with a salt of its own.
    pub(crate) fn fresh(disk: &dyn Disk, first: Offset, size: u64) -> Self {
        Self { first, salt: disk.salt(), size }
    }
}

impl Active {
    /// Makes a segment that begins with `records`, durably, its name included.
    pub(crate) fn create(disk: &dyn Disk, dir: &Path, begin: Begin, records: &[u8]) -> Result<Self, Fault> {
        let path = Name::good(begin.first).path(dir);
        // What an earlier attempt left is emptied.
        let file = disk.create(&path).map_err(Fault::write("create", &path))?;
        if let Err(error) = file.allocate(begin.size) {
            // Give back what was reserved: the disk is full, others need it. Should this fail too, the next attempt empties it.
            let _ = disk.remove(&path);
            return Err(Fault::write("reserve", &path)(error));
        }
        let head = segment::encode_head(begin.first, begin.salt);
        file.write_at(&head, 0).map_err(Fault::write("write", &path))?;
        let mut active = Self { file, path, salt: begin.salt, at: HEAD_BYTES, size: begin.size };
        active.write_on(records)?;
        disk.sync_dir(dir).map_err(Fault::sync(dir))?;
        Ok(active)
    }

    /// Writes `records` behind what is there and syncs. When the write fails the same bytes may be written again.
    fn write_on(&mut self, records: &[u8]) -> Result<(), Fault> {
        self.file.write_at(records, self.at).map_err(Fault::write("write", &self.path))?;
        self.file.sync_data().map_err(Fault::sync(&self.path))?;
        self.at += records.len() as u64;
        Ok(())
    }
}

impl Fault {
    /// Nothing is acknowledged and what is on the disk does not count: the same may be tried again.
    fn write(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let wrap = Error::io(action, path);
        move |source| Self { error: wrap(source), poisons: false }
    }

    fn sync(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let wrap = Error::io("sync", path);
        move |source| Self { error: wrap(source), poisons: true }
    }

    pub(crate) fn into_error(self) -> Error {
        self.error
    }
}
