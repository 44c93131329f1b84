//! An object store for tests that dies at one operation, before or after its effect, or goes away and comes back.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};

#[derive(Debug)]
pub(crate) struct Flaky {
    inner: Arc<dyn ObjectStore>,
    left: AtomicU64,
    with_effect: bool,
    away: AtomicBool,
    /// Of a hundred operations so many are answered by an error, and where the next one is drawn from.
    lossy: (u64, AtomicU64),
}

impl Flaky {
    /// Dies at the `at`-th operation; its effect happens all the same with `with_effect`.
    pub(crate) fn new(inner: Arc<dyn ObjectStore>, at: u64, with_effect: bool) -> Self {
        let lossy = (0, AtomicU64::new(0));
        Self { inner, left: AtomicU64::new(at), with_effect, away: AtomicBool::new(false), lossy }
    }

    /// Answers so many of a hundred operations by an error; half of those happen all the same.
    pub(crate) fn lossy(inner: Arc<dyn ObjectStore>, seed: u64, percent: u64) -> Self {
        Self { lossy: (percent, AtomicU64::new(seed | 1)), ..Self::new(inner, u64::MAX, false) }
    }

    pub(crate) fn go_away(&self) {
        self.away.store(true, Ordering::Relaxed);
    }

    pub(crate) fn come_back(&self) {
        self.away.store(false, Ordering::Relaxed);
    }

    /// What comes of the next operation.
    fn next(&self) -> Fate {
        if self.away.load(Ordering::Relaxed) {
            return Fate::Dead;
        }
        let (percent, random) = &self.lossy;
        if *percent > 0 {
            let step = |x: u64| x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let drawn = random.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |x| Some(step(x))).unwrap_or_else(|x| x) >> 33;
            if drawn % 100 < *percent {
                return if drawn % 200 < 100 { Fate::Unheard } else { Fate::Dead };
            }
        }
        match self.left.load(Ordering::Relaxed) {
            u64::MAX => Fate::Alive,
            0 => {
                self.go_away();
                if self.with_effect { Fate::Unheard } else { Fate::Dead }
            }
            left => {
                self.left.store(left - 1, Ordering::Relaxed);
                Fate::Alive
            }
        }
    }
}

enum Fate {
    Alive,
    /// It happens, and nobody learns of it.
    Unheard,
    Dead,
}

fn dead<T>() -> Result<T> {
    Err(Error::Generic { store: "flaky", source: "the store is away".into() })
}

impl fmt::Display for Flaky {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Flaky")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Flaky {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        match self.next() {
            Fate::Alive => self.inner.put_opts(location, payload, options).await,
            Fate::Unheard => self.inner.put_opts(location, payload, options).await.and_then(|_| dead()),
            Fate::Dead => dead(),
        }
    }

    async fn put_multipart_opts(&self, location: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        match self.next() {
            Fate::Alive => self.inner.put_multipart_opts(location, options).await,
            _ => dead(),
        }
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        match self.next() {
            Fate::Alive => self.inner.get_opts(location, options).await,
            _ => dead(),
        }
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        match self.next() {
            Fate::Alive => self.inner.get_ranges(location, ranges).await,
            _ => dead(),
        }
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.next() {
            Fate::Alive => self.inner.delete_stream(locations),
            _ => futures::stream::once(async { dead() }).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.next() {
            Fate::Alive => self.inner.list(prefix),
            _ => futures::stream::once(async { dead() }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        match self.next() {
            Fate::Alive => self.inner.list_with_delimiter(prefix).await,
            _ => dead(),
        }
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        match self.next() {
            Fate::Alive => self.inner.copy_opts(from, to, options).await,
            _ => dead(),
        }
    }
}
