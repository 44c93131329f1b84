//! Searches of the record run apart from everything else: on few threads of low priority, a few at once.
//!
//! So a search over months of files takes what the views and ingest leave over, and never their turn.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::error::{self, SqlError};

/// Where searches run. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Searches(Arc<Inner>);

struct Inner {
    /// None only while it is being dropped.
    runtime: Option<Runtime>,
    places: Semaphore,
}

impl Searches {
    /// Threads for `at_once` searches.
    pub(crate) fn start(at_once: usize) -> std::io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("search")
            .on_thread_start(lower_priority)
            .enable_all()
            .build()?;
        Ok(Self(Arc::new(Inner { runtime: Some(runtime), places: Semaphore::new(at_once) })))
    }

    /// Runs one there, once there is a place. Dropped, it is given up.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        search: impl Future<Output = Result<T, SqlError>> + Send + 'static,
    ) -> Result<T, SqlError> {
        let _place = self.0.places.acquire().await;
        let runtime = self.0.runtime.as_ref().expect("present until dropped");
        let mut task = GivenUp(runtime.spawn(search));
        (&mut task.0).await.unwrap_or_else(|died| Err(SqlError::new(error::INTERNAL, format!("the search ended: {died}"))))
    }
}

impl fmt::Debug for Searches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Searches")
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A runtime must not wait for its threads inside another one.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct GivenUp<T>(JoinHandle<T>);

impl<T> Drop for GivenUp<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// On Linux the priority is the calling thread's own.
fn lower_priority() {
    if let Err(refused) = rustix::process::setpriority_process(None, NICE) {
        tracing::warn!(error = %refused, "the priority of searches could not be lowered");
    }
}

const THREADS: usize = 2;
const NICE: i32 = 10;
