//! A disk in memory that crashes on demand, for tests and for the simulator.
//!
//! It keeps exactly the promises of `disk.rs` and breaks whatever they leave open: at a crash each write that was not synced is
//! kept, lost or torn by sectors, each name that was not synced is kept or undone, all by the seed. Nothing here is random otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::disk::{Disk, DiskFile};

/// A simulated disk. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

/// What goes wrong at a step that changes something on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The power fails in the middle of this step; nothing works until `restart`.
    Crash,
    /// The disk is full: this step, or the next one that needs space, is refused; a write gets half of its bytes in.
    Full,
    /// This sync, or the next one, fails. What was waiting for it is dropped for good though it can still be read.
    SyncFails,
}

#[derive(Default)]
struct State {
    random: u64,
    /// Handles and locks of an older life are dead.
    life: u64,
    steps: u64,
    reads: u64,
    planned: Option<(u64, Failure)>,
    down: bool,
    files: Vec<File>,
    names: BTreeMap<PathBuf, usize>,
    names_durable: BTreeMap<PathBuf, usize>,
    names_pending: Vec<(PathBuf, Vec<NameChange>)>,
    dirs: BTreeSet<PathBuf>,
    locks: BTreeMap<PathBuf, u64>,
}

#[derive(Default)]
struct File {
    seen: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Grow(usize),
    Empty,
}

#[derive(Clone)]
enum NameChange {
    Set(PathBuf, usize),
    Unset(PathBuf),
}

/// What a step needs, to find the one that fails.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Space,
    Sync,
    Neither,
}

impl SimDisk {
    /// An empty disk; `seed` decides what crashes leave.
    pub fn new(seed: u64) -> Self {
        Self { state: Arc::new(Mutex::new(State { random: seed, ..State::default() })) }
    }

    /// Lets the `step`-th change from now (0 = the next) fail.
    pub fn fail_at(&self, step: u64, failure: Failure) {
        let mut state = self.state();
        state.planned = Some((state.steps + step, failure));
    }

    /// Takes back a planned failure that has not come.
    pub fn heal(&self) {
        self.state().planned = None;
    }

    /// How many changes were made or tried since the disk began.
    pub fn steps(&self) -> u64 {
        self.state().steps
    }

    /// How many reads were made since the disk began.
    pub fn reads(&self) -> u64 {
        self.state().reads
    }

    /// The power fails, if it has not yet, and comes back. All open files and locks are dead.
    pub fn restart(&self) {
        let state = &mut *self.state();
        for (_, changes) in std::mem::take(&mut state.names_pending) {
            if flip(&mut state.random) {
                apply_names(&mut state.names_durable, &changes);
            }
        }
        state.names = state.names_durable.clone();
        for file in &mut state.files {
            for change in std::mem::take(&mut file.pending) {
                keep_some(&mut file.durable, &change, &mut state.random);
            }
            file.seen = file.durable.clone();
        }
        state.next_life();
    }

    /// All processes die at once, the system lives on: nothing is lost but open files and locks.
    pub fn kill(&self) {
        self.state().next_life();
    }

    /// The files with their lengths.
    pub fn files(&self) -> Vec<(PathBuf, usize)> {
        let state = self.state();
        state.names.iter().map(|(path, file)| (path.clone(), state.files[*file].seen.len())).collect()
    }

    /// Turns one bit around, as a bad disk does.
    pub fn flip_bit(&self, path: &Path, bit: usize) {
        let mut state = self.state();
        let Some(file) = state.names.get(path).copied() else { return };
        let file = &mut state.files[file];
        for bytes in [&mut file.seen, &mut file.durable] {
            if let Some(byte) = bytes.get_mut(bit / 8) {
                *byte ^= 1 << (bit % 8);
            }
        }
    }

    /// Puts a durable file there, whatever was there before.
    pub fn put(&self, path: &Path, bytes: &[u8]) {
        let mut state = self.state();
        let file = state.files.len();
        state.files.push(File { seen: bytes.to_vec(), durable: bytes.to_vec(), pending: Vec::new() });
        state.names.insert(path.to_owned(), file);
        state.names_durable.insert(path.to_owned(), file);
        if let Some(dir) = path.parent() {
            state.dirs.insert(dir.to_owned());
        }
    }

    /// Removes a file durably, as a careless hand does.
    pub fn lose(&self, path: &Path) {
        let mut state = self.state();
        state.names.remove(path);
        state.names_durable.remove(path);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn file(&self, state: &State, file: usize) -> Box<dyn DiskFile> {
        Box::new(SimFile { disk: self.clone(), life: state.life, file })
    }
}

impl State {
    fn next_life(&mut self) {
        self.life += 1;
        self.down = false;
        self.planned = None;
        self.locks.clear();
    }

    fn alive(&self) -> io::Result<()> {
        if self.down { Err(io::Error::other("the simulated machine is down")) } else { Ok(()) }
    }

    /// Counts a change. Gives the failure that it meets.
    fn step(&mut self, need: Need) -> io::Result<Option<Failure>> {
        self.alive()?;
        let step = self.steps;
        self.steps += 1;
        let Some((at, failure)) = self.planned else { return Ok(None) };
        let meets = match failure {
            Failure::Crash => true,
            Failure::Full => need == Need::Space,
            Failure::SyncFails => need == Need::Sync,
        };
        if step < at || !meets {
            return Ok(None);
        }
        self.planned = None;
        self.down = failure == Failure::Crash;
        Ok(Some(failure))
    }

    /// Changes names at once for all to see; durable after the folder's sync.
    fn change_names(&mut self, path: &Path, changes: Vec<NameChange>, failure: Option<Failure>) -> io::Result<()> {
        if failure != Some(Failure::Full) {
            apply_names(&mut self.names, &changes);
            self.names_pending.push((path.parent().unwrap_or_else(|| Path::new("")).to_owned(), changes));
        }
        outcome(failure)
    }

    fn change(&mut self, file: usize, change: Change, failure: Option<Failure>) -> io::Result<()> {
        let file = &mut self.files[file];
        let change = match (change, failure) {
            (Change::Write { at, mut bytes }, Some(Failure::Full)) => {
                bytes.truncate(bytes.len() / 2);
                Change::Write { at, bytes }
            }
            (_, Some(Failure::Full)) => return outcome(failure),
            (change, _) => change,
        };
        apply(&mut file.seen, &change);
        file.pending.push(change);
        outcome(failure)
    }

    fn named(&self, path: &Path) -> io::Result<usize> {
        self.alive()?;
        self.names.get(path).copied().ok_or_else(|| ErrorKind::NotFound.into())
    }
}

impl Disk for SimDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.alive()?;
        state.dirs.extend(dir.ancestors().map(Path::to_owned));
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        state.alive()?;
        if !state.dirs.contains(dir) {
            return Err(ErrorKind::NotFound.into());
        }
        let here = state.names.keys().chain(&state.dirs).filter(|path| path.parent() == Some(dir));
        Ok(here.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect())
    }

    fn open_read(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let state = self.state();
        Ok(self.file(&state, state.named(path)?))
    }

    fn open_write(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.open_read(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        let failure = state.step(Need::Space)?;
        if let Ok(file) = state.named(path) {
            state.change(file, Change::Empty, failure)?;
            return Ok(self.file(&state, file));
        }
        let file = state.files.len();
        state.files.push(File::default());
        state.change_names(path, vec![NameChange::Set(path.to_owned(), file)], failure)?;
        Ok(self.file(&state, file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        let file = state.named(from)?;
        let failure = state.step(Need::Neither)?;
        state.change_names(to, vec![NameChange::Unset(from.to_owned()), NameChange::Set(to.to_owned(), file)], failure)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.named(path)?;
        let failure = state.step(Need::Neither)?;
        state.change_names(path, vec![NameChange::Unset(path.to_owned())], failure)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let state = &mut *self.state();
        let failure = state.step(Need::Sync)?;
        if failure.is_none() {
            let (here, elsewhere) = std::mem::take(&mut state.names_pending).into_iter().partition(|(place, _)| place == dir);
            state.names_pending = elsewhere;
            let here: Vec<(PathBuf, Vec<NameChange>)> = here;
            here.iter().for_each(|(_, changes)| apply_names(&mut state.names_durable, changes));
        }
        outcome(failure)
    }

    fn try_lock(&self, path: &Path) -> io::Result<Option<Box<dyn Send + Sync>>> {
        let mut state = self.state();
        state.alive()?;
        let life = state.life;
        if state.locks.contains_key(path) {
            return Ok(None);
        }
        state.locks.insert(path.to_owned(), life);
        Ok(Some(Box::new(SimLock { disk: self.clone(), path: path.to_owned(), life })))
    }

    fn salt(&self) -> u64 {
        next_random(&mut self.state().random)
    }
}

/// A held lock; it does not outlive its life.
struct SimLock {
    disk: SimDisk,
    path: PathBuf,
    life: u64,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        if state.locks.get(&self.path) == Some(&self.life) {
            state.locks.remove(&self.path);
        }
    }
}

/// An open file of one life.
struct SimFile {
    disk: SimDisk,
    life: u64,
    file: usize,
}

impl SimFile {
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.state();
        state.alive()?;
        if state.life == self.life { Ok(state) } else { Err(io::Error::other("opened before the crash")) }
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let mut state = self.state()?;
        state.reads += 1;
        let rest = state.files[self.file].seen.get(at as usize..).unwrap_or_default();
        let filled = rest.len().min(buffer.len());
        buffer[..filled].copy_from_slice(&rest[..filled]);
        Ok(filled)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut state = self.state()?;
        let failure = state.step(Need::Space)?;
        state.change(self.file, Change::Write { at: at as usize, bytes: bytes.to_vec() }, failure)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let mut state = self.state()?;
        let failure = state.step(Need::Space)?;
        state.change(self.file, Change::Grow(len as usize), failure)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state()?;
        let failure = state.step(Need::Sync)?;
        let file = &mut state.files[self.file];
        match failure {
            // The machine stops in the middle: what waits is for `restart` to decide.
            Some(Failure::Crash) => {}
            // The kernel has told once and takes the pages for clean now.
            Some(_) => file.pending.clear(),
            None => {
                let pending = std::mem::take(&mut file.pending);
                pending.iter().for_each(|change| apply(&mut file.durable, change));
            }
        }
        outcome(failure)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.state()?.files[self.file].seen.len() as u64)
    }
}

fn outcome(failure: Option<Failure>) -> io::Result<()> {
    match failure {
        None => Ok(()),
        Some(Failure::Crash) => Err(io::Error::other("the simulated machine went down")),
        Some(Failure::Full) => Err(ErrorKind::StorageFull.into()),
        Some(Failure::SyncFails) => Err(io::Error::other("simulated EIO")),
    }
}

fn apply_names(names: &mut BTreeMap<PathBuf, usize>, changes: &[NameChange]) {
    for change in changes {
        match change {
            NameChange::Set(path, file) => names.insert(path.clone(), *file),
            NameChange::Unset(path) => names.remove(path),
        };
    }
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write { at, bytes: written } => {
            grow(bytes, at + written.len());
            bytes[*at..at + written.len()].copy_from_slice(written);
        }
        Change::Grow(len) => grow(bytes, *len),
        Change::Empty => bytes.clear(),
    }
}

/// Makes it so long at least. Not `resize`: where nothing is optimised that takes a step for each byte.
fn grow(bytes: &mut Vec<u8>, len: usize) {
    if bytes.len() < len {
        let mut grown = vec![0; len];
        grown[..bytes.len()].copy_from_slice(bytes);
        *bytes = grown;
    }
}

/// What a crash leaves of a change that was not synced: all, nothing, or some sectors.
fn keep_some(bytes: &mut Vec<u8>, change: &Change, random: &mut u64) {
    match (next_random(random) % 3, change) {
        (0, _) => {}
        (1, Change::Write { at, bytes: written }) => {
            let mut from = 0;
            while from < written.len() {
                let to = written.len().min((at + from + 1).next_multiple_of(SECTOR_BYTES) - at);
                if flip(random) {
                    apply(bytes, &Change::Write { at: at + from, bytes: written[from..to].to_vec() });
                }
                from = to;
            }
        }
        _ => apply(bytes, change),
    }
}

fn flip(random: &mut u64) -> bool {
    next_random(random) & 1 == 1
}

/// SplitMix64.
fn next_random(random: &mut u64) -> u64 {
    *random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *random;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The unit that a disk writes whole.
const SECTOR_BYTES: usize = 512;
