//! The only way to a disk. `RealDisk` is the system's, `SimDisk` (see `sim.rs`) one that crashes on demand.
//!
//! The journal relies on exactly this of a disk:
//! - What `write_at` wrote is read back at once, by all processes; after a crash of the machine any part of it may be missing,
//!   in pieces of a sector, until `sync_data` of that file returned Ok.
//! - A created, renamed or removed name may be undone by a crash until `sync_dir` of its folder returned Ok. A rename is whole.
//! - `allocate` gives zeros.
//! - After a failed `sync_data` nothing is known about what was written since the last good one.

use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, FlockOperation};

use crate::error::Error;

/// A disk: folders of named files.
pub trait Disk: Send + Sync {
    /// Makes `dir` and its parents, durably. Fine when it exists.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// The names in `dir`, in any order.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Opens a file for reading.
    fn open_read(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Opens a file for reading and writing.
    fn open_write(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Makes an empty file for reading and writing, or empties the one that is there.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Gives a file another name in the same folder; a file of that name is replaced.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes the lock of `path` (made when missing), held until the guard is dropped; `None` when somebody else holds it.
    fn try_lock(&self, path: &Path) -> io::Result<Option<Box<dyn Send + Sync>>>;
    /// A number that nobody can guess who only sends records.
    fn salt(&self) -> u64;
}

/// An open file.
pub trait DiskFile: Send + Sync {
    /// Reads at a position; fewer bytes than asked for only at the end of the file.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize>;
    /// Writes all bytes at a position.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Makes the file at least `len` bytes long and reserves the space. New bytes are zero.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Makes content and length durable.
    fn sync_data(&self) -> io::Result<()>;
    /// The file's length.
    fn size(&self) -> io::Result<u64>;
}

/// The system's disk.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        if dir.parent().is_some() {
            self.create_dir(parent)?;
        }
        match fs::create_dir(dir) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
            _ => self.sync_dir(parent),
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn open_read(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(File::open(path)?))
    }

    fn open_write(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(OpenOptions::new().read(true).write(true).open(path)?))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn try_lock(&self, path: &Path) -> io::Result<Option<Box<dyn Send + Sync>>> {
        Ok(flock(path)?.map(|file| Box::new(file) as Box<dyn Send + Sync>))
    }

    fn salt(&self) -> u64 {
        // The standard library seeds each of these from the system's randomness.
        RandomState::new().build_hasher().finish()
    }
}

impl DiskFile for File {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match FileExt::read_at(self, &mut buffer[filled..], at + filled as u64) {
                Ok(0) => break,
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, at)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        match rustix::fs::fallocate(self, FallocateFlags::empty(), 0, len) {
            // Some network file systems cannot reserve; then a full disk shows at the write.
            Err(rustix::io::Errno::OPNOTSUPP) if self.metadata()?.len() < len => self.set_len(len),
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            outcome => Ok(outcome?),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        Self::sync_data(self)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

/// The lock of a folder, held as long as this lives: `flock` on `DIR/lock`. The kernel gives it back when the holder dies,
/// however it dies. A journal takes it by itself; alone it serves whoever elects one process of a machine.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of `dir`, which must exist; `None` when somebody else holds it.
    pub fn try_acquire(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join(LOCK_NAME);
        let file = flock(&path).map_err(Error::io("lock", &path))?;
        Ok(file.map(|file| Self { _file: file }))
    }
}

fn flock(path: &Path) -> io::Result<Option<File>> {
    // Not truncated and never removed: the lock is the inode, and all must meet at the same one.
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The lock's name in a folder.
pub(crate) const LOCK_NAME: &str = "lock";
