//! What stands on the disk when a journal is opened, and how it is made sound again.
//!
//! Only the last segment can end in the middle of a write: the next one is made after the last sync of the one before.
//! So, with `proven` = the watermark or, if higher, what the floors of records that can be read prove to have been durable:
//!
//! | found | meaning | done |
//! |---|---|---|
//! | last segment ends at or behind `proven`, rubbish behind | torn tail, never acknowledged | wiped, `torn_bytes` |
//! | last segment ends before `proven` | durable records are broken | renamed `.bad`, a new segment begins at `proven` |
//! | another segment ends before the next begins | the same | renamed `.bad` |
//! | a segment is missing that was not forgotten | the same | reported |
//! | last segment without a whole header, nothing in it proven | a crash while it was made | removed |
//!
//! Nothing broken is deleted or papered over: `Recovery::quarantined` names each lost range, and readers report it as a gap.
//! Offsets that were ever durable are never used again.

use std::path::{Path, PathBuf};

use crate::Offset;
use crate::disk::{Disk, DiskFile};
use crate::error::Error;
use crate::mark::{self, Watermark};
use crate::segment::{self, Cursor, HEAD_BYTES, Name, Step};
use crate::writer::{Active, Begin, Fault};

/// What was found when a journal was opened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recovery {
    /// The first record that is kept. May be less than what was asked to be forgotten: whole segments go.
    pub first: Offset,
    /// The offset of the next record.
    pub next: Offset,
    /// Bytes behind the last whole record, never acknowledged, now wiped.
    pub torn_bytes: u64,
    /// Records that were durable once and cannot be read any more. Told at each opening until they are forgotten.
    pub quarantined: Vec<Quarantined>,
}

/// A range of lost records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// The broken segment, kept for a person to look at; `None` when the file is missing altogether.
    pub file: Option<PathBuf>,
    /// First lost record.
    pub from: Offset,
    /// First record behind the loss.
    pub to: Offset,
}

/// A folder made sound: what the writer goes on with.
pub(crate) struct Recovered {
    pub(crate) recovery: Recovery,
    /// Every segment, the active one last when there is one.
    pub(crate) segments: Vec<Name>,
    pub(crate) active: Option<Active>,
    pub(crate) watermark: Watermark,
}

/// Makes the journal in `dir` sound. The caller holds its lock.
pub(crate) fn recover(disk: &dyn Disk, dir: &Path) -> Result<Recovered, Error> {
    let published = Watermark::last(disk, dir)?.unwrap_or_default();
    let kept = mark::read_first(disk, dir)?;
    let mut segments = segment::list(disk, dir).map_err(Error::io("list", dir))?;
    remove_forgotten(disk, dir, &mut segments, kept)?;
    let mut recovery = Recovery::default();
    let begin = kept.unwrap_or_default();
    if let Some(lowest) = segments.first().filter(|lowest| lowest.first > begin) {
        recovery.quarantined.push(Quarantined { file: None, from: begin, to: lowest.first });
    }
    for index in 0..segments.len().saturating_sub(1) {
        let end = scan(disk, dir, segments[index], Offset(0))?.end;
        let next = segments[index + 1].first;
        if end < next {
            let file = set_aside(disk, dir, &mut segments[index])?;
            recovery.quarantined.push(Quarantined { file: Some(file), from: end, to: next });
        }
    }
    let active = recover_last(disk, dir, published, begin, &mut segments, &mut recovery)?;
    recovery.first = begin.max(segments.first().map_or(recovery.next, |lowest| lowest.first));
    disk.sync_dir(dir).map_err(Error::io("sync", dir))?;
    let watermark = Watermark::create(disk, dir, recovery.next)?;
    Ok(Recovered { recovery, segments, active, watermark })
}

/// Finishes a `forget` that a crash cut off: removes segments that lie wholly below the first kept record.
fn remove_forgotten(disk: &dyn Disk, dir: &Path, segments: &mut Vec<Name>, kept: Option<Offset>) -> Result<(), Error> {
    let Some(kept) = kept else { return Ok(()) };
    while segments.get(1).is_some_and(|next| next.first <= kept) {
        let path = segments.remove(0).path(dir);
        disk.remove(&path).map_err(Error::io("remove", &path))?;
    }
    Ok(())
}

/// Looks at the last segment and says where writing goes on. Sets `recovery.next`.
fn recover_last(
    disk: &dyn Disk,
    dir: &Path,
    published: Offset,
    begin: Offset,
    segments: &mut Vec<Name>,
    recovery: &mut Recovery,
) -> Result<Option<Active>, Error> {
    let Some(last) = segments.last().copied() else {
        recovery.next = published.max(begin);
        if recovery.next > begin {
            recovery.quarantined.push(Quarantined { file: None, from: begin, to: recovery.next });
        }
        return Ok(None);
    };
    let scan = scan(disk, dir, last, published)?;
    let path = last.path(dir);
    let behind = scan.cursor.as_ref().map(Cursor::behind).transpose().map_err(Error::io("read", &path))?;
    // What was forgotten was durable before.
    let proven = published.max(begin).max(behind.as_ref().and_then(|behind| behind.proven).unwrap_or_default());
    if scan.end < proven {
        // The new segment stands before the old one is renamed: a crash between must not let offsets be used again. It reserves
        // nothing, so that a full disk cannot keep the journal closed.
        let fresh = Begin::fresh(disk, proven, HEAD_BYTES);
        let active = Active::create(disk, dir, fresh, &[]).map_err(Fault::into_error)?;
        let file = set_aside(disk, dir, segments.last_mut().expect("there is a last one"))?;
        recovery.quarantined.push(Quarantined { file: Some(file), from: scan.end, to: proven });
        recovery.next = proven;
        segments.push(Name::good(proven));
        return Ok(Some(active));
    }
    recovery.next = scan.end;
    let Some((cursor, behind)) = scan.cursor.zip(behind) else {
        disk.remove(&path).map_err(Error::io("remove", &path))?;
        segments.pop();
        return Ok(None);
    };
    if last.bad {
        return Ok(None);
    }
    recovery.torn_bytes = behind.bytes;
    let file = disk.open_write(&path).map_err(Error::io("open", &path))?;
    let (_, at) = cursor.place();
    let fault = |action| Error::io(action, &path);
    // Wiped for good: a later record of the same size must not make the old one behind it look like its successor.
    wipe(&*file, at, at + behind.bytes).map_err(fault("wipe"))?;
    rewrite(&*file, scan.unsure_at, at).map_err(fault("rewrite"))?;
    file.sync_data().map_err(fault("sync"))?;
    let size = file.size().map_err(fault("measure"))?;
    Ok(Some(Active { file, path, salt: cursor.salt(), at, size }))
}

/// Writes zeros. The space is there already, so this works on a full disk too.
fn wipe(file: &dyn DiskFile, from: u64, to: u64) -> std::io::Result<()> {
    let zeros = vec![0; PIECE_BYTES.min((to - from) as usize)];
    let mut at = from;
    while at < to {
        let bytes = zeros.len().min((to - at) as usize);
        file.write_at(&zeros[..bytes], at)?;
        at += bytes as u64;
    }
    Ok(())
}

/// Writes what lies in `from..to` once more. It was read, but it may be in the page cache only: after a failed sync the kernel
/// takes such pages for clean, and a sync alone would not write them.
fn rewrite(file: &dyn DiskFile, from: u64, to: u64) -> std::io::Result<()> {
    let mut at = from;
    let mut piece = vec![0; PIECE_BYTES];
    while at < to {
        let bytes = PIECE_BYTES.min((to - at) as usize);
        let filled = file.read_at(&mut piece[..bytes], at)?;
        file.write_at(&piece[..filled], at)?;
        at += bytes as u64;
    }
    Ok(())
}

/// What a walk over one segment found.
struct Scan {
    /// `None` when no header is whole.
    cursor: Option<Cursor>,
    /// The first record that is not there.
    end: Offset,
    /// Where the first record that was not yet published stands, or the segment's beginning.
    unsure_at: u64,
}

fn scan(disk: &dyn Disk, dir: &Path, name: Name, published: Offset) -> Result<Scan, Error> {
    let path = name.path(dir);
    let fault = |action| Error::io(action, &path);
    let file = disk.open_read(&path).map_err(fault("open"))?;
    let Some(mut cursor) = Cursor::open(file, name.first).map_err(fault("read"))? else {
        return Ok(Scan { cursor: None, end: name.first, unsure_at: 0 });
    };
    let mut unsure_at = 0;
    while let Step::Record { offset, .. } = cursor.next().map_err(fault("read"))? {
        if offset < published {
            unsure_at = cursor.place().1;
        }
    }
    let (end, at) = cursor.place();
    debug_assert!(unsure_at <= at && at >= HEAD_BYTES);
    Ok(Scan { cursor: Some(cursor), end, unsure_at })
}

/// Renames a segment so that nobody writes it again. Its whole records stay readable.
fn set_aside(disk: &dyn Disk, dir: &Path, name: &mut Name) -> Result<PathBuf, Error> {
    let from = name.path(dir);
    name.bad = true;
    let to = name.path(dir);
    if from != to {
        disk.rename(&from, &to).map_err(Error::io("rename", &from))?;
    }
    Ok(to)
}

/// How much is wiped or rewritten at once.
const PIECE_BYTES: usize = 1 << 20;
