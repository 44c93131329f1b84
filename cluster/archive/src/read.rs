//! Reading sealed files: every byte that a query sees was checked.

use std::collections::HashMap;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::ParquetFileReaderFactory;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use object_store::ObjectStoreExt as _;
use object_store::path::Path;
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};

use crate::error::Error;
use crate::manifest::{FileEntry, sha256_hex};
use crate::seal::{BLOCK_BYTES, check_blocks, sums_of};
use crate::store::Store;

/// The checked footer of a file.
#[derive(Debug)]
pub(crate) struct Footer {
    pub(crate) metadata: Arc<ParquetMetaData>,
    pub(crate) sums: Vec<u32>,
    bytes: Bytes,
}

/// Footers that were read lately, so that a search does not fetch them again.
#[derive(Debug, Default)]
pub(crate) struct Footers(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    footers: HashMap<String, (Arc<Footer>, u64)>,
    bytes: usize,
    clock: u64,
}

impl Footers {
    fn get(&self, path: &str) -> Option<Arc<Footer>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.clock += 1;
        let clock = kept.clock;
        let (footer, used) = kept.footers.get_mut(path)?;
        *used = clock;
        Some(Arc::clone(footer))
    }

    fn keep(&self, path: &str, footer: Arc<Footer>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let clock = kept.clock;
        kept.bytes += footer.weight();
        if let Some((old, _)) = kept.footers.insert(path.to_owned(), (footer, clock)) {
            kept.bytes -= old.weight();
        }
        while kept.bytes > FOOTER_BYTES_MAX && kept.footers.len() > 1 {
            let oldest = kept.footers.iter().min_by_key(|(_, (_, used))| *used).map(|(path, _)| path.clone());
            let Some((gone, _)) = oldest.and_then(|path| kept.footers.remove(&path)) else { break };
            kept.bytes -= gone.weight();
        }
    }
}

impl Footer {
    /// Reads the footer of a file and checks it against the manifest.
    pub(crate) async fn read(store: &Store, file: &FileEntry) -> Result<Self, Error> {
        let path = Path::from(file.path.as_str());
        let damaged = |why: String| Error::damaged(&file.path, why);
        if file.footer_at > file.bytes {
            return Err(damaged("its manifest entry makes no sense".to_owned()));
        }
        let bytes = store.objects().get_range(&path, file.footer_at..file.bytes).await;
        let bytes = bytes.map_err(Error::store("read", &path))?;
        if sha256_hex(&bytes) != file.footer_sha256 {
            return Err(damaged(format!("its footer, from byte {} on, is not what was written", file.footer_at)));
        }
        let mut reader = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Optional);
        reader.try_parse_sized(&bytes, file.bytes).map_err(|error| damaged(error.to_string()))?;
        let metadata = reader.finish().map_err(|error| damaged(error.to_string()))?;
        let sums = sums_of(&metadata).ok_or_else(|| damaged("its footer has no checksums".to_owned()))?;
        Ok(Self { metadata: Arc::new(metadata), sums, bytes })
    }

    fn weight(&self) -> usize {
        self.metadata.memory_size() + self.sums.len() * 4 + self.bytes.len()
    }
}

/// Gives DataFusion readers of sealed files. A `PartitionedFile` must carry its `FileEntry` as an extension.
#[derive(Debug)]
pub(crate) struct SealedReaders {
    pub(crate) store: Store,
    pub(crate) footers: Arc<Footers>,
}

impl ParquetFileReaderFactory for SealedReaders {
    fn create_reader(
        &self,
        _partition: usize,
        file: PartitionedFile,
        _hint: Option<usize>,
        _metrics: &ExecutionPlanMetricsSet,
    ) -> datafusion::error::Result<Box<dyn AsyncFileReader + Send>> {
        let entry = file.extension::<Arc<FileEntry>>().cloned();
        let entry = entry.ok_or_else(|| Error::Refused(format!("{} is no file of the archive", file.path())))?;
        Ok(Box::new(SealedReader { store: self.store.clone(), footers: Arc::clone(&self.footers), file: entry, footer: None }))
    }
}

/// Reads one sealed file.
pub(crate) struct SealedReader {
    pub(crate) store: Store,
    pub(crate) footers: Arc<Footers>,
    pub(crate) file: Arc<FileEntry>,
    pub(crate) footer: Option<Arc<Footer>>,
}

impl SealedReader {
    async fn footer(&mut self) -> Result<Arc<Footer>, Error> {
        if let Some(footer) = &self.footer {
            return Ok(Arc::clone(footer));
        }
        let footer = match self.footers.get(&self.file.path) {
            Some(footer) => footer,
            None => {
                let footer = Arc::new(Footer::read(&self.store, &self.file).await?);
                self.footers.keep(&self.file.path, Arc::clone(&footer));
                footer
            }
        };
        self.footer = Some(Arc::clone(&footer));
        Ok(footer)
    }

    async fn ranges(&mut self, wanted: &[Range<u64>]) -> Result<Vec<Bytes>, Error> {
        let footer = self.footer().await?;
        let end = self.file.footer_at;
        let widened: Vec<Range<u64>> = wanted
            .iter()
            .filter(|range| range.start < end)
            .map(|range| range.start / BLOCK_BYTES * BLOCK_BYTES..range.end.next_multiple_of(BLOCK_BYTES).min(end))
            .collect();
        let path = Path::from(self.file.path.as_str());
        let fetched = self.store.objects().get_ranges(&path, &widened).await.map_err(Error::store("read", &path))?;
        for (range, bytes) in widened.iter().zip(&fetched) {
            let damaged =
                |at: u64| Error::damaged(&self.file.path, format!("the 32 KiB from byte {at} on are not what was written"));
            if bytes.len() as u64 != range.end - range.start {
                return Err(damaged(range.start));
            }
            check_blocks(&footer.sums, range.start / BLOCK_BYTES, bytes).map_err(damaged)?;
        }
        let mut fetched = widened.iter().zip(fetched);
        let mut slices = Vec::with_capacity(wanted.len());
        for range in wanted {
            let mut slice = Bytes::new();
            if range.start < end {
                let (whole, bytes) = fetched.next().expect("one was fetched for each");
                let from = (range.start - whole.start) as usize;
                slice = bytes.slice(from..from + (range.end.min(end) - range.start) as usize);
            }
            if range.end > end {
                let inside = (range.start.max(end) - end) as usize..(range.end - end) as usize;
                let inside = footer.bytes.get(inside).unwrap_or_default();
                slice = Bytes::from([&slice[..], inside].concat());
            }
            slices.push(slice);
        }
        Ok(slices)
    }
}

impl AsyncFileReader for SealedReader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, parquet::errors::Result<Bytes>> {
        async move { Ok(self.ranges(&[range]).await.map_err(external)?.pop().expect("one for one")) }.boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, parquet::errors::Result<Vec<Bytes>>> {
        async move { self.ranges(&ranges).await.map_err(external) }.boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        _options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, parquet::errors::Result<Arc<ParquetMetaData>>> {
        async move { Ok(Arc::clone(&self.footer().await.map_err(external)?.metadata)) }.boxed()
    }
}

fn external(error: Error) -> ParquetError {
    ParquetError::External(Box::new(error))
}

/// Bytes of footers that are kept in memory.
const FOOTER_BYTES_MAX: usize = 64 << 20;
