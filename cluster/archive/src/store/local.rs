//! A directory as an object store whose writes are durable: content synced before its name appears, then the folders.
//!
//! `object_store`'s own local store stages and links in one call without a sync. Reading, listing and deleting are left to it.
//! A staging file is `.stage-<process>-<n>` in the root, whose n no other store counts: the sweep removes what a crash left there.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher as _, RandomState};
use std::io::{ErrorKind, Write as _};
use std::ops::Range;
use std::path::{Path as OsPath, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result, UploadPart,
};

use crate::error::Error;

/// A directory of this machine.
#[derive(Debug, Clone)]
pub struct LocalStore {
    root: Arc<PathBuf>,
    inner: Arc<LocalFileSystem>,
    staged: Arc<AtomicU64>,
}

impl LocalStore {
    /// Opens the directory, which is made when it is missing.
    pub fn open(root: &OsPath) -> Result<Self, Error> {
        let wrong = |why: String| Error::Location { url: root.display().to_string(), why };
        let made = fs::create_dir_all(root).and_then(|()| root.canonicalize());
        let root = made.map_err(|error| wrong(format!("the directory cannot be made: {error}")))?;
        // Several stores of one process, and processes of one number in several containers, share a directory: each counts from elsewhere.
        let first = RandomState::new().hash_one(std::process::id());
        let inner = LocalFileSystem::new_with_prefix(&root).map_err(|error| wrong(error.to_string()))?;
        Ok(Self { root: Arc::new(root), inner: Arc::new(inner), staged: Arc::new(AtomicU64::new(first)) })
    }

    fn place(&self, location: &Path) -> PathBuf {
        location.parts().fold(self.root.as_ref().clone(), |path, part| path.join(part.as_ref()))
    }

    fn stage(&self) -> Result<Staged> {
        loop {
            let number = self.staged.fetch_add(1, Ordering::Relaxed);
            let path = self.root.join(format!(".stage-{}-{number}", std::process::id()));
            // Should two meet all the same: a file that the other is about to publish must not be written over.
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => return Ok(Staged { path, file: Some(file) }),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(generic("stage", &path)(error)),
            }
        }
    }

    /// Syncs the content, gives it its name, syncs the folders up to the root.
    fn publish(&self, mut staged: Staged, location: &Path, mode: &PutMode) -> Result<()> {
        let target = self.place(location);
        let file = staged.file.take().expect("taken once");
        file.sync_data().map_err(generic("sync", &staged.path))?;
        drop(file);
        let parent = target.parent().unwrap_or(&self.root).to_owned();
        let new_folders = !parent.is_dir();
        if new_folders {
            fs::create_dir_all(&parent).map_err(generic("make", &parent))?;
        }
        match mode {
            PutMode::Overwrite => fs::rename(&staged.path, &target).map_err(generic("name", &target))?,
            PutMode::Create => match fs::hard_link(&staged.path, &target) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    // The one who was first may not have come to sync it; whoever builds on it must not lose it.
                    sync_dir(&parent)?;
                    return Err(object_store::Error::AlreadyExists { path: location.to_string(), source: Box::new(error) });
                }
                Err(error) => return Err(generic("name", &target)(error)),
            },
            PutMode::Update(_) => {
                return Err(object_store::Error::NotImplemented {
                    operation: "put of an update".into(),
                    implementer: self.to_string(),
                });
            }
        }
        let mut folder = parent.as_path();
        loop {
            sync_dir(folder)?;
            match folder.parent() {
                Some(above) if new_folders && folder != self.root.as_path() => folder = above,
                _ => return Ok(()),
            }
        }
    }
}

/// A file without a name yet. Dropped, its staging name goes.
#[derive(Debug)]
struct Staged {
    path: PathBuf,
    file: Option<File>,
}

impl Staged {
    fn write(&mut self, payload: &PutPayload) -> Result<()> {
        let file = self.file.as_mut().expect("present until published");
        payload.iter().try_for_each(|bytes| file.write_all(bytes)).map_err(generic("write", &self.path))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // A rename has taken it away; a link has left it.
        let _ = fs::remove_file(&self.path);
    }
}

impl fmt::Display for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalStore({})", self.root.display())
    }
}

#[async_trait]
impl ObjectStore for LocalStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let (store, location) = (self.clone(), location.clone());
        blocking(move || {
            let mut staged = store.stage()?;
            staged.write(&payload)?;
            store.publish(staged, &location, &options.mode)
        })
        .await?;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn put_multipart_opts(&self, location: &Path, _options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let staged = Some(self.stage()?);
        Ok(Box::new(Parts { store: self.clone(), location: location.clone(), staged: Arc::new(std::sync::Mutex::new(staged)) }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// An object that comes in parts, in order.
#[derive(Debug)]
struct Parts {
    store: LocalStore,
    location: Path,
    staged: Arc<std::sync::Mutex<Option<Staged>>>,
}

#[async_trait]
impl MultipartUpload for Parts {
    fn put_part(&mut self, payload: PutPayload) -> UploadPart {
        // Written at once: parts may be waited for in any order, and must not land in another.
        let mut staged = self.staged.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let written = staged.as_mut().map_or_else(|| Err(ended()), |staged| staged.write(&payload));
        Box::pin(futures::future::ready(written))
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let staged = self.staged.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take().ok_or_else(ended)?;
        let (store, location) = (self.store.clone(), self.location.clone());
        blocking(move || store.publish(staged, &location, &PutMode::Overwrite)).await?;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn abort(&mut self) -> Result<()> {
        self.staged.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        Ok(())
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|source| object_store::Error::JoinError { source })?
}

fn sync_dir(dir: &OsPath) -> Result<()> {
    File::open(dir).and_then(|folder| folder.sync_all()).map_err(generic("sync", dir))
}

fn generic(what: &'static str, path: &OsPath) -> impl FnOnce(std::io::Error) -> object_store::Error {
    let source = format!("could not {what} {}", path.display());
    move |error| object_store::Error::Generic { store: "local directory", source: format!("{source}: {error}").into() }
}

fn ended() -> object_store::Error {
    object_store::Error::Generic { store: "local directory", source: "the upload has ended".into() }
}
