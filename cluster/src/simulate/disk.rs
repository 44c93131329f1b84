//! The disk as one node's process sees it: the shared [`SimDisk`], until the process is killed at one of its writes.
//!
//! The power failing kills everybody and is the [`SimDisk`]'s own; `kill -9` takes one process, in the middle of what it writes, and the
//! system keeps what it was given. A full disk refuses what needs space and lets pass what was reserved.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use weir_journal::{Disk, DiskFile, SimDisk};

/// One process's way to the disk.
#[derive(Clone)]
pub(super) struct NodeDisk {
    inner: SimDisk,
    fate: Arc<Fate>,
}

struct Fate {
    /// Changes until the process is killed.
    left: AtomicU64,
    killed: AtomicBool,
    full: Arc<AtomicBool>,
}

/// What comes of a change.
enum Change {
    Done,
    /// The process is killed before it.
    Undone,
    /// The process is killed in the middle of it.
    Half,
    /// The process is killed after it, and never learns that it was done.
    Unheard,
}

impl NodeDisk {
    pub(super) fn new(inner: SimDisk, full: Arc<AtomicBool>) -> Self {
        let fate = Fate { left: AtomicU64::new(u64::MAX), killed: AtomicBool::new(false), full };
        Self { inner, fate: Arc::new(fate) }
    }

    /// Kills the process at its `changes`-th change from now (0 = the next).
    pub(super) fn kill_at(&self, changes: u64) {
        self.fate.left.store(changes, Ordering::Relaxed);
    }

    pub(super) fn is_killed(&self) -> bool {
        self.fate.killed.load(Ordering::Relaxed)
    }

    fn alive(&self) -> io::Result<()> {
        if self.is_killed() { Err(killed()) } else { Ok(()) }
    }

    fn change(&self) -> io::Result<Change> {
        self.alive()?;
        let left = self.fate.left.load(Ordering::Relaxed);
        if left > 0 {
            self.fate.left.store(left.saturating_sub(u64::from(left != u64::MAX)), Ordering::Relaxed);
            return Ok(Change::Done);
        }
        self.fate.killed.store(true, Ordering::Relaxed);
        Ok([Change::Undone, Change::Half, Change::Unheard].into_iter().nth((self.inner.steps() % 3) as usize).expect("of three"))
    }

    /// A change that is done or not.
    fn whole<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match self.change()? {
            Change::Done => work(),
            Change::Unheard => work().and_then(|_| Err(killed())),
            Change::Undone | Change::Half => Err(killed()),
        }
    }

    fn has_space(&self) -> io::Result<()> {
        if self.fate.full.load(Ordering::Relaxed) { Err(ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn file(&self, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(NodeFile { inner: file, disk: self.clone() })
    }
}

fn killed() -> io::Error {
    io::Error::other("the simulated process is killed")
}

impl Disk for NodeDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.alive()?;
        self.inner.create_dir(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.alive()?;
        self.inner.list(dir)
    }

    fn open_read(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.alive()?;
        Ok(self.file(self.inner.open_read(path)?))
    }

    fn open_write(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.alive()?;
        Ok(self.file(self.inner.open_write(path)?))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.has_space()?;
        self.whole(|| Ok(self.file(self.inner.create(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.whole(|| self.inner.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.whole(|| self.inner.remove(path))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.whole(|| self.inner.sync_dir(dir))
    }

    fn try_lock(&self, path: &Path) -> io::Result<Option<Box<dyn Send + Sync>>> {
        self.alive()?;
        self.inner.try_lock(path)
    }

    fn salt(&self) -> u64 {
        self.inner.salt()
    }
}

/// A file that one process has open.
struct NodeFile {
    inner: Box<dyn DiskFile>,
    disk: NodeDisk,
}

impl DiskFile for NodeFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.disk.alive()?;
        self.inner.read_at(buffer, at)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        if at + bytes.len() as u64 > self.inner.size()? {
            self.disk.has_space()?;
        }
        match self.disk.change()? {
            Change::Done => self.inner.write_at(bytes, at),
            Change::Undone => Err(killed()),
            Change::Half => self.inner.write_at(&bytes[..bytes.len() / 2], at).and_then(|()| Err(killed())),
            Change::Unheard => self.inner.write_at(bytes, at).and_then(|()| Err(killed())),
        }
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        if len > self.inner.size()? {
            self.disk.has_space()?;
        }
        self.disk.whole(|| self.inner.allocate(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.whole(|| self.inner.sync_data())
    }

    fn size(&self) -> io::Result<u64> {
        self.disk.alive()?;
        self.inner.size()
    }
}
