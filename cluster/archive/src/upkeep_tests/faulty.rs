//! An object store that fails at one operation, and then for good or never again.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions,
    PutPayload, PutResult, Result, UploadPart,
};

/// When an operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is not done.
    Before,
    /// It is done, and yet an error is told.
    After,
}

/// A store whose `at`-th operation fails, and all after it when it is `dead` then.
#[derive(Debug)]
pub(crate) struct Faulty {
    inner: Arc<dyn ObjectStore>,
    gate: Arc<Gate>,
}

#[derive(Debug)]
pub(crate) struct Gate {
    done: AtomicUsize,
    at: usize,
    fault: Fault,
    dead: bool,
    /// What was asked for, for messages.
    pub(crate) asked: Mutex<Vec<String>>,
}

impl Faulty {
    pub(crate) fn new(inner: Arc<dyn ObjectStore>, at: usize, fault: Fault, dead: bool) -> (Self, Arc<Gate>) {
        let gate = Arc::new(Gate { done: AtomicUsize::new(0), at, fault, dead, asked: Mutex::default() });
        (Self { inner, gate: Arc::clone(&gate) }, gate)
    }
}

impl Gate {
    /// Operations so far.
    pub(crate) fn operations(&self) -> usize {
        self.done.load(Ordering::SeqCst)
    }

    async fn pass<T>(&self, what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        let number = self.done.fetch_add(1, Ordering::SeqCst);
        self.asked.lock().unwrap().push(what.to_owned());
        let broken = || Err(object_store::Error::Generic { store: "faulty", source: "it was made to fail".into() });
        if number < self.at || (number > self.at && !self.dead) {
            return work.await;
        }
        if number == self.at && self.fault == Fault::After {
            work.await?;
        }
        broken()
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faulty({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.gate.pass(&format!("put {location}"), self.inner.put_opts(location, payload, options)).await
    }

    async fn put_multipart_opts(&self, location: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let begun = self.gate.pass(&format!("begin {location}"), self.inner.put_multipart_opts(location, options)).await?;
        Ok(Box::new(FaultyUpload { inner: begun, gate: Arc::clone(&self.gate) }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.gate.pass(&format!("get {location}"), self.inner.get_opts(location, options)).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.gate.pass(&format!("get {location}"), self.inner.get_ranges(location, ranges)).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (inner, gate) = (Arc::clone(&self.inner), Arc::clone(&self.gate));
        let delete = move |location: Result<Path>| {
            let (inner, gate) = (Arc::clone(&inner), Arc::clone(&gate));
            async move {
                let location = location?;
                let one = futures::stream::iter([Ok(location.clone())]).boxed();
                let work = async { inner.delete_stream(one).next().await.unwrap() };
                gate.pass(&format!("delete {location}"), work).await
            }
        };
        locations.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (inner, gate) = (self.inner.list(prefix), Arc::clone(&self.gate));
        let begin = async move { gate.pass("list", async { Ok(()) }).await };
        let rest = futures::stream::once(begin).flat_map(|passed| match passed {
            Ok(()) => futures::stream::empty().boxed(),
            Err(why) => futures::stream::iter([Err(why)]).boxed(),
        });
        rest.chain(inner).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.gate.pass("list", self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.gate.pass("copy", self.inner.copy_opts(from, to, options)).await
    }
}

#[derive(Debug)]
struct FaultyUpload {
    inner: Box<dyn MultipartUpload>,
    gate: Arc<Gate>,
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, payload: PutPayload) -> UploadPart {
        let (part, gate) = (self.inner.put_part(payload), Arc::clone(&self.gate));
        Box::pin(async move { gate.pass("part", part).await })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.gate.pass("complete", self.inner.complete()).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.gate.pass("abort", self.inner.abort()).await
    }
}
