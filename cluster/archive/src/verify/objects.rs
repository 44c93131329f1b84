//! One object: its bytes against what is said of it.

use std::io::Read as _;

use futures::StreamExt as _;
use object_store::path::Path;
use object_store::{GetResultPayload, ObjectStoreExt as _};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::statistics::Statistics;
use sha2::{Digest as _, Sha256};
use weir_schema::Column;

use crate::error::Error;
use crate::manifest::{FileEntry, hex};
use crate::read::Footer;
use crate::seal::{BLOCK_BYTES, check_blocks};
use crate::store::Store;

/// What an object is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Digest {
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

/// What came of a file's check.
#[derive(Debug)]
pub(super) enum Found {
    /// It is what was written.
    Whole,
    /// It is not there.
    Missing,
    /// It is not what was written.
    Changed(String),
    /// It is what was written, but not as the manifest describes it.
    Misdescribed(String),
}

/// Reads a whole object, a little at a time. None: it is not there.
pub(super) async fn digest(store: &Store, path: &str) -> Result<Option<Digest>, Error> {
    let at = Path::from(path);
    let got = match store.objects().get(&at).await {
        Ok(got) => got,
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        Err(why) => return Err(Error::store("read", path)(why)),
    };
    match got.payload {
        GetResultPayload::File(file, _) => {
            let read = tokio::task::spawn_blocking(move || digest_of_file(file)).await;
            let read = read.map_err(|source| object_store::Error::JoinError { source });
            read.and_then(|read| read.map_err(local)).map(Some).map_err(Error::store("read", path))
        }
        GetResultPayload::Stream(mut stream) => {
            let (mut sha, mut bytes) = (Sha256::new(), 0);
            while let Some(part) = stream.next().await {
                let part = part.map_err(Error::store("read", path))?;
                sha.update(&part);
                bytes += part.len() as u64;
            }
            Ok(Some(Digest { bytes, sha256: hex(&sha.finalize()) }))
        }
    }
}

fn digest_of_file(mut file: std::fs::File) -> std::io::Result<Digest> {
    let (mut sha, mut bytes, mut part) = (Sha256::new(), 0, vec![0; READ_BYTES]);
    loop {
        let read = file.read(&mut part)?;
        if read == 0 {
            return Ok(Digest { bytes, sha256: hex(&sha.finalize()) });
        }
        sha.update(&part[..read]);
        bytes += read as u64;
    }
}

fn local(error: std::io::Error) -> object_store::Error {
    object_store::Error::Generic { store: LOCAL, source: Box::new(error) }
}

/// The fault that an object is whose own disk cannot give it. Any other error: the store is away, which is no fault of the object.
pub(super) fn unreadable(error: Error) -> Result<String, Error> {
    match error {
        Error::Store { why: object_store::Error::Generic { store, source }, .. } if store == LOCAL => {
            Ok(format!("it could not be read: {source}"))
        }
        Error::Damaged { why, .. } => Ok(why),
        other => Err(other),
    }
}

/// Checks a file against its entry.
pub(super) async fn check(store: &Store, file: &FileEntry) -> Result<Found, Error> {
    let found = match digest(store, &file.path).await {
        Ok(Some(found)) => found,
        Ok(None) => return Ok(Found::Missing),
        Err(error) => return unreadable(error).map(Found::Changed),
    };
    if found.sha256 == file.sha256 {
        return Ok(described(store, file, &found).await?.map_or(Found::Whole, Found::Misdescribed));
    }
    if found.bytes != file.bytes {
        return Ok(Found::Changed(format!("it is {} bytes long, {} were written", found.bytes, file.bytes)));
    }
    Ok(match first_change(store, file).await? {
        Some(why) => Found::Changed(why),
        None => {
            Found::Misdescribed("the manifest has another SHA-256 for it, though its blocks and its footer are intact".to_owned())
        }
    })
}

/// What the entry of a whole file says wrongly.
async fn described(store: &Store, file: &FileEntry, found: &Digest) -> Result<Option<String>, Error> {
    if found.bytes != file.bytes {
        return Ok(Some(format!("the manifest says {} bytes, it has {}", file.bytes, found.bytes)));
    }
    let footer = match Footer::read(store, file).await {
        Ok(footer) => footer,
        Err(Error::Damaged { why, .. }) => return Ok(Some(format!("as the manifest describes it, {why}"))),
        Err(error) => return unreadable(error).map(Some),
    };
    let rows = footer.metadata.file_metadata().num_rows();
    if u64::try_from(rows).ok() != Some(file.rows) {
        return Ok(Some(format!("the manifest says {} rows, it has {rows}", file.rows)));
    }
    let ticks = i64::try_from(file.tick_min).ok().zip(i64::try_from(file.tick_max).ok());
    let spans = [(Column::Time, Some((file.time_min, file.time_max))), (Column::Tick, ticks)];
    for (column, said) in spans {
        let has = span(&footer.metadata, column);
        if has.is_some() && has != said {
            return Ok(Some(format!("the manifest says another span of {} than it has", column.name())));
        }
    }
    Ok(None)
}

/// Least and greatest value of a column, by the file's own statistics.
fn span(metadata: &ParquetMetaData, column: Column) -> Option<(i64, i64)> {
    let columns = metadata.file_metadata().schema_descr().columns();
    let place = columns.iter().position(|known| known.name() == column.name())?;
    let mut all: Option<(i64, i64)> = None;
    for group in metadata.row_groups() {
        let Statistics::Int64(known) = group.column(place).statistics()? else { return None };
        let (min, max) = (*known.min_opt()?, *known.max_opt()?);
        all = Some(all.map_or((min, max), |(least, most)| (least.min(min), most.max(max))));
    }
    all
}

/// Where a file of the right length first differs from what was written, by the checksums inside it. None: nowhere.
async fn first_change(store: &Store, file: &FileEntry) -> Result<Option<String>, Error> {
    let footer = match Footer::read(store, file).await {
        Ok(footer) => footer,
        Err(error) => return unreadable(error).map(Some),
    };
    let path = Path::from(file.path.as_str());
    let mut at = 0;
    while at < file.footer_at {
        let end = (at + BLOCKS_AT_ONCE * BLOCK_BYTES).min(file.footer_at);
        let bytes = match store.objects().get_range(&path, at..end).await.map_err(Error::store("read", &path)) {
            Ok(bytes) => bytes,
            Err(error) => return unreadable(error).map(Some),
        };
        if let Err(block) = check_blocks(&footer.sums, at / BLOCK_BYTES, &bytes) {
            return Ok(Some(format!("the 32 KiB from byte {block} on are not what was written")));
        }
        at = end;
    }
    Ok(None)
}

/// True when two hashes differ though half of their digits or more agree. Hashes of different bytes share 4 of 64 by chance: so it
/// is the text of one hash that was changed, not what it is the hash of.
pub(super) fn near(a: &str, b: &str) -> bool {
    let equal = a.bytes().zip(b.bytes()).filter(|(a, b)| a == b).count();
    a != b && a.len() == b.len() && equal * 2 >= a.len()
}

/// As `object_store` names a directory of this machine.
const LOCAL: &str = "LocalFileSystem";
const READ_BYTES: usize = 256 << 10;
const BLOCKS_AT_ONCE: u64 = 32;
