//! An object that grows: its bytes go to the store in parts while it is written; a small one goes in one put.
//!
//! In memory is at most one part that fills, what one `write` adds to it, and one part that travels. An upload that is given up is
//! aborted. One that is only dropped (its task was cancelled) may leave parts in a bucket: let the bucket's lifecycle rule end them.

use bytes::{Bytes, BytesMut};
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt as _, PutPayload};
use tokio::task::JoinSet;

use crate::error::Error;
use crate::store::Store;

/// One object that is being put.
#[derive(Debug)]
pub(crate) struct Upload {
    store: Store,
    path: Path,
    filling: BytesMut,
    parts: Option<Box<dyn MultipartUpload>>,
    travelling: JoinSet<object_store::Result<()>>,
}

impl Upload {
    /// Nothing is put yet.
    pub(crate) fn new(store: Store, path: Path) -> Self {
        Self { store, path, filling: BytesMut::new(), parts: None, travelling: JoinSet::new() }
    }

    /// Adds bytes at the end.
    pub(crate) async fn write(&mut self, bytes: &Bytes) -> Result<(), Error> {
        self.filling.extend_from_slice(bytes);
        while self.filling.len() >= PART_BYTES {
            let part = self.filling.split_to(PART_BYTES).freeze();
            self.part(part).await?;
        }
        Ok(())
    }

    /// Makes it an object. On an error `abort` it.
    pub(crate) async fn finish(&mut self) -> Result<(), Error> {
        let rest = self.filling.split().freeze();
        if self.parts.is_none() {
            return self.store.write(&self.path, rest.to_vec()).await;
        }
        if !rest.is_empty() {
            self.part(rest).await?;
        }
        self.arrived().await?;
        let parts = self.parts.as_mut().expect("checked above");
        parts.complete().await.map(drop).map_err(Error::store("write", &self.path))
    }

    /// Gives it up.
    pub(crate) async fn abort(&mut self) {
        self.travelling.shutdown().await;
        if let Some(mut parts) = self.parts.take()
            && let Err(why) = parts.abort().await
        {
            tracing::warn!(path = %self.path, %why, "parts of an upload that failed may be left in the store");
        }
    }

    async fn part(&mut self, bytes: Bytes) -> Result<(), Error> {
        self.arrived().await?;
        if self.parts.is_none() {
            let begun = self.store.objects().put_multipart(&self.path).await;
            self.parts = Some(begun.map_err(Error::store("write", &self.path))?);
        }
        let parts = self.parts.as_mut().expect("begun above");
        self.travelling.spawn(parts.put_part(PutPayload::from(bytes)));
        Ok(())
    }

    /// Waits for the part that travels.
    async fn arrived(&mut self) -> Result<(), Error> {
        while let Some(done) = self.travelling.join_next().await {
            let put = done.map_err(|source| object_store::Error::JoinError { source }).and_then(|put| put);
            put.map_err(Error::store("write", &self.path))?;
        }
        Ok(())
    }
}

/// Bytes of every part but the last: the least that every cloud takes. So few in tests that their files have parts.
const PART_BYTES: usize = if cfg!(test) { 8 << 10 } else { 5 << 20 };

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::TryStreamExt as _;
    use object_store::ObjectStore;
    use object_store::memory::InMemory;

    use super::*;
    use crate::store::LocalStore;

    async fn check(objects: Arc<dyn ObjectStore>) {
        let store = Store::new(objects, "test");
        for len in [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES * 5 / 2] {
            let bytes: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
            let path = Path::from(format!("events/{len}"));
            let mut upload = Upload::new(store.clone(), path.clone());
            for some in bytes.chunks(PART_BYTES / 3 * 2) {
                upload.write(&Bytes::copy_from_slice(some)).await.unwrap();
            }
            upload.finish().await.unwrap();
            assert_eq!(store.read(&path).await.unwrap(), bytes);
        }
        let mut given_up = Upload::new(store.clone(), Path::from("events/none"));
        given_up.write(&Bytes::from(vec![1; PART_BYTES * 3])).await.unwrap();
        given_up.abort().await;
        let listed: Vec<_> = store.objects().list(None).try_collect().await.unwrap();
        assert_eq!(listed.len(), 5, "{listed:?}");
    }

    #[tokio::test]
    async fn what_is_written_is_read_and_what_is_given_up_is_not_there() {
        check(Arc::new(InMemory::new())).await;
        let folder = tempfile::tempdir().unwrap();
        check(Arc::new(LocalStore::open(folder.path()).unwrap())).await;
    }
}
