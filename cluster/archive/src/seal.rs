//! Parquet files that can tell when they were changed.
//!
//! ```text
//! 0            footer_at                       bytes
//! | row groups | page index, footer, "PAR1"    |
//! ```
//!
//! The footer's key-value metadata holds, under `weir.sums`, one crc32c for each 32 KiB of what is before `footer_at` (8 hexadecimal
//! digits each, in order; the last block may be shorter). The manifest holds the SHA-256 of the rest, so a reader checks the footer, then every
//! block it reads, at the cost of one pass of crc32c. Any Parquet reader reads the file without knowing of this.

use std::fmt::Write as _;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::file::metadata::{KeyValue, ParquetMetaData};
use parquet::file::properties::WriterProperties;
use sha2::{Digest as _, Sha256};

use crate::error::Error;
use crate::manifest::{hex, sha256_hex};

/// Writes one sealed file. Does no I/O: bytes come out as they are ready, in order.
pub(crate) struct Sealer {
    writer: ArrowWriter<Vec<u8>>,
    sums: Sums,
    rows: u64,
    path: String,
}

/// What the manifest says of a sealed file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seal {
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
    pub(crate) footer_at: u64,
    pub(crate) footer_sha256: String,
}

impl Sealer {
    pub(crate) fn new(path: &str, schema: SchemaRef, properties: WriterProperties) -> Result<Self, Error> {
        // Without Arrow's own schema inside, every reader sees plain text and not our dictionaries.
        let options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true);
        let writer =
            ArrowWriter::try_new_with_options(Vec::new(), schema, options).map_err(Error::parquet(format!("writing {path}")))?;
        Ok(Self { writer, sums: Sums::default(), rows: 0, path: path.to_owned() })
    }

    /// Takes rows; returns bytes that are ready to be stored, often none.
    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<Option<Bytes>, Error> {
        let groups = self.writer.flushed_row_groups().len();
        self.writer.write(batch).map_err(Error::parquet(format!("writing {}", self.path)))?;
        self.rows += batch.num_rows() as u64;
        if self.writer.flushed_row_groups().len() > groups { self.take().map(Some) } else { Ok(None) }
    }

    /// Bytes of the file so far, about.
    pub(crate) fn bytes(&self) -> u64 {
        self.sums.bytes + self.writer.in_progress_size() as u64
    }

    /// Ends the file; returns its last bytes.
    pub(crate) fn finish(mut self) -> Result<(Bytes, Seal), Error> {
        let failed = |path: &str| Error::parquet(format!("writing {path}"));
        self.writer.flush().map_err(failed(&self.path))?;
        let rest = self.take()?;
        let footer_at = self.sums.bytes;
        let sums = KeyValue::new(SUMS_KEY.to_owned(), self.sums.text());
        self.writer.append_key_value_metadata(sums);
        self.writer.finish().map_err(failed(&self.path))?;
        let footer = std::mem::take(self.writer.inner_mut());
        self.sums.sha.update(&footer);
        let seal = Seal {
            rows: self.rows,
            bytes: footer_at + footer.len() as u64,
            sha256: hex(&self.sums.sha.finalize()),
            footer_at,
            footer_sha256: sha256_hex(&footer),
        };
        Ok((Bytes::from([&rest[..], &footer[..]].concat()), seal))
    }

    fn take(&mut self) -> Result<Bytes, Error> {
        // The writer buffers before it hands bytes on: without this the end of the row groups would count as footer.
        self.writer.sync().map_err(|error| Error::parquet(format!("writing {}", self.path))(error.into()))?;
        let bytes = std::mem::take(self.writer.inner_mut());
        self.sums.add(&bytes);
        Ok(Bytes::from(bytes))
    }
}

/// Checksums of what was written so far.
#[derive(Default)]
struct Sums {
    whole: Vec<u32>,
    /// crc of the block that is being filled, and its bytes.
    filling: (u32, usize),
    bytes: u64,
    sha: Sha256,
}

impl Sums {
    fn add(&mut self, mut bytes: &[u8]) {
        self.sha.update(bytes);
        self.bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(BLOCK_BYTES as usize - self.filling.1));
            self.filling = (crc32c::crc32c_append(self.filling.0, now), self.filling.1 + now.len());
            if self.filling.1 == BLOCK_BYTES as usize {
                self.whole.push(self.filling.0);
                self.filling = (0, 0);
            }
            bytes = rest;
        }
    }

    fn text(&self) -> String {
        let last = (self.filling.1 > 0).then_some(self.filling.0);
        self.whole.iter().copied().chain(last).fold(String::new(), |mut text, crc| {
            let _ = write!(text, "{crc:08x}");
            text
        })
    }
}

/// The checksums in a footer, one a block.
pub(crate) fn sums_of(metadata: &ParquetMetaData) -> Option<Vec<u32>> {
    let pairs = metadata.file_metadata().key_value_metadata()?;
    let text = pairs.iter().find(|pair| pair.key == SUMS_KEY)?.value.as_ref()?;
    let blocks = text.as_bytes().chunks(8).map(|digits| u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
    blocks.collect()
}

/// Checks whole blocks from the `first` on; returns the place of the first that is not what it was.
pub(crate) fn check_blocks(sums: &[u32], first: u64, bytes: &[u8]) -> Result<(), u64> {
    for (at, block) in bytes.chunks(BLOCK_BYTES as usize).enumerate() {
        let number = first + at as u64;
        let known = usize::try_from(number).ok().and_then(|number| sums.get(number));
        if known != Some(&crc32c::crc32c(block)) {
            return Err(number * BLOCK_BYTES);
        }
    }
    Ok(())
}

/// Bytes of a block: what is read at least, and checked.
pub(crate) const BLOCK_BYTES: u64 = 32 << 10;
const SUMS_KEY: &str = "weir.sums";
