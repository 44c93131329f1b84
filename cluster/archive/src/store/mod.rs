//! Where the archive's objects lie: a directory of this machine, or a bucket of S3, GCS or Azure, by URL.
//!
//! Everything in it is written once under a name of its own; manifests by create-if-absent. Nothing is ever changed in place.

mod local;

use std::fmt;
use std::sync::Arc;

use futures::TryStreamExt as _;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt as _, ObjectStoreScheme, PutMode, PutOptions, PutPayload};

use crate::error::Error;

pub use local::LocalStore;

/// An object store, and the folder in it that is the archive's.
#[derive(Clone)]
pub struct Store {
    inner: Arc<dyn ObjectStore>,
    url: String,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.url)
    }
}

/// What came of a create-if-absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// It is ours.
    Yes,
    /// The name is taken.
    Taken,
}

impl Store {
    /// Opens `location`: a path, or a URL such as `s3://bucket/folder`, `gs://…`, `az://…`, `file:///…`.
    ///
    /// Credentials and endpoints come from the environment, under the names that the clouds' own tools use (`AWS_…`, `GOOGLE_…`,
    /// `AZURE_…`). A directory is made when it is missing.
    pub fn open(location: &str) -> Result<Self, Error> {
        Self::open_with(location, std::env::vars().map(|(key, value)| (key.to_ascii_lowercase(), value)))
    }

    /// The same with other variables than the environment's, in lower case.
    pub fn open_with(location: &str, variables: impl IntoIterator<Item = (String, String)>) -> Result<Self, Error> {
        let wrong = |why: String| Error::Location { url: location.to_owned(), why };
        let Some((scheme, rest)) = location.split_once("://") else {
            return Ok(Self::new(Arc::new(LocalStore::open(location.as_ref())?), location));
        };
        if scheme == "file" {
            return Ok(Self::new(Arc::new(LocalStore::open(rest.as_ref())?), location));
        }
        let url = url::Url::parse(location).map_err(|error| wrong(format!("{error}: write a path or scheme://bucket/folder")))?;
        let (known, path) = ObjectStoreScheme::parse(&url).map_err(|error| wrong(error.to_string()))?;
        if matches!(known, ObjectStoreScheme::Http | ObjectStoreScheme::Memory | ObjectStoreScheme::Local) {
            return Err(wrong("write a path, s3://, gs:// or az://".to_owned()));
        }
        let (inner, _) =
            object_store::parse_url_opts(&url, variables).map_err(|error| wrong(format!("{error}: see the credentials")))?;
        Ok(Self::new(Arc::new(PrefixStore::new(inner, path)), location))
    }

    /// An archive in a store that is open already.
    pub fn new(inner: Arc<dyn ObjectStore>, url: &str) -> Self {
        Self { inner, url: url.to_owned() }
    }

    /// A folder of this store as a store of its own.
    pub fn below(&self, folder: &str) -> Self {
        let inner = PrefixStore::new(Arc::clone(&self.inner), Path::from(folder));
        Self { inner: Arc::new(inner), url: format!("{}/{folder}", self.url.trim_end_matches('/')) }
    }

    /// As configured.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The store itself, below which the archive's folder is the root.
    pub fn objects(&self) -> &Arc<dyn ObjectStore> {
        &self.inner
    }

    /// Reads a whole object.
    pub async fn read(&self, path: &Path) -> Result<Vec<u8>, Error> {
        let got = self.inner.get(path).await.map_err(Error::store("read", path))?;
        Ok(got.bytes().await.map_err(Error::store("read", path))?.to_vec())
    }

    /// Reads a whole object, or says that it is not there.
    pub async fn read_if_there(&self, path: &Path) -> Result<Option<Vec<u8>>, Error> {
        match self.inner.get(path).await {
            Ok(got) => Ok(Some(got.bytes().await.map_err(Error::store("read", path))?.to_vec())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(why) => Err(Error::store("read", path)(why)),
        }
    }

    /// Reads the first bytes of an object that has at least so many, or says that it is not there.
    pub async fn read_start(&self, path: &Path, bytes: usize) -> Result<Option<Vec<u8>>, Error> {
        match self.inner.get_range(path, 0..bytes as u64).await {
            Ok(got) => Ok(Some(got.to_vec())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(why) => Err(Error::store("read", path)(why)),
        }
    }

    pub(crate) async fn is_there(&self, path: &Path) -> Result<bool, Error> {
        match self.inner.head(path).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(why) => Err(Error::store("look for", path)(why)),
        }
    }

    /// Writes an object whose name is nobody else's.
    pub async fn write(&self, path: &Path, bytes: Vec<u8>) -> Result<(), Error> {
        self.inner.put(path, PutPayload::from(bytes)).await.map(drop).map_err(Error::store("write", path))
    }

    /// Writes an object unless one of that name is there.
    pub async fn create(&self, path: &Path, bytes: Vec<u8>) -> Result<Created, Error> {
        let options = PutOptions::from(PutMode::Create);
        match self.inner.put_opts(path, PutPayload::from(bytes), options).await {
            Ok(_) => Ok(Created::Yes),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => Ok(Created::Taken),
            Err(why) => Err(Error::store("create", path)(why)),
        }
    }

    /// The paths of all objects below a folder, sorted.
    pub async fn list(&self, folder: &Path) -> Result<Vec<Path>, Error> {
        let found = self.inner.list(Some(folder)).map_ok(|object| object.location).try_collect().await;
        let mut found: Vec<Path> = found.map_err(Error::store("list", folder))?;
        found.sort();
        Ok(found)
    }

    /// The names of the folders in a folder, sorted.
    pub async fn folders(&self, folder: &Path) -> Result<Vec<String>, Error> {
        let listed = self.inner.list_with_delimiter(Some(folder)).await.map_err(Error::store("list", folder))?;
        let mut names: Vec<String> =
            listed.common_prefixes.iter().filter_map(|path| path.filename().map(str::to_owned)).collect();
        names.sort();
        Ok(names)
    }

    /// Removes an object; fine when it is gone already.
    pub async fn remove(&self, path: &Path) -> Result<(), Error> {
        match self.inner.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(why) => Err(Error::store("remove", path)(why)),
        }
    }
}
