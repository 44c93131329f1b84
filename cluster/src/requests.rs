//! What is asked of the chain: one object a request, in a folder of the shared store, until the chain has it.
//!
//! An object is one byte of version and the request in postcard. One of another version is left out, and said.

use serde::de::DeserializeOwned;
use tracing::warn;
use weir_archive::{ObjectPath, Store};

use crate::error::Error;

/// What is asked for and not yet removed, at most `most` of it: the rest waits for the next look.
pub(crate) async fn read<T: DeserializeOwned>(store: &Store, folder: &str, version: u8, most: usize) -> Result<Vec<T>, Error> {
    let mut requests = Vec::new();
    for path in store.list(&ObjectPath::from(folder)).await?.into_iter().take(most) {
        let Some(bytes) = store.read_if_there(&path).await? else { continue };
        match bytes.strip_prefix(&[version]).and_then(|body| postcard::from_bytes(body).ok()) {
            Some(request) => requests.push(request),
            None => warn!(%path, "no request of this version: left out"),
        }
    }
    Ok(requests)
}

/// Removes a request that the chain has.
pub(crate) async fn settle(store: &Store, folder: &str, id: u128) -> Result<(), Error> {
    Ok(store.remove(&place(folder, id)).await?)
}

/// Where a request waits.
pub(crate) fn place(folder: &str, id: u128) -> ObjectPath {
    ObjectPath::from(folder).join(format!("{id:032x}"))
}
