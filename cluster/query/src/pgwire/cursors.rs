//! The cursors of one connection: over a query's rows or over a subscription.
//!
//! A cursor lives until it is closed, until the end of the transaction, or until the connection ends. Unlike PostgreSQL's it may be made
//! outside a transaction.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use pgwire::api::ClientInfo;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::peer::Peer;
use crate::error::{self, SqlError};
use crate::session::{Answer, Engine, Planned};
use crate::streaming::{Declare, Fetch, Source};
use crate::subscription::Subscription;

/// The cursors of one connection.
#[derive(Default)]
pub(super) struct Cursors(Mutex<HashMap<String, Cursor>>);

struct Cursor {
    schema: SchemaRef,
    /// What is there and not fetched yet.
    ready: VecDeque<RecordBatch>,
    /// Where more comes from.
    more: Option<Subscription>,
}

/// The cursors of this client's connection.
pub(super) fn of<C: ClientInfo>(client: &C) -> Arc<Cursors> {
    client.session_extensions().get_or_insert_with(Cursors::default)
}

impl Cursors {
    /// DECLARE. A query is answered at `tick`, or at the newest; which it was is returned.
    pub(super) async fn declare(&self, engine: &Engine, declare: &Declare, tick: Option<u64>) -> Result<Option<u64>, SqlError> {
        let mut cursors = self.0.lock().await;
        if cursors.contains_key(&declare.cursor) {
            let message = format!("cursor \"{}\" already exists", declare.cursor);
            return Err(SqlError::new(error::CURSOR_EXISTS, message));
        }
        if cursors.len() >= CURSORS_MAX {
            let message = format!("this connection has {CURSORS_MAX} cursors already");
            return Err(SqlError::new(error::LIMIT, message).with_hint("close one"));
        }
        let mut read_at = None;
        let cursor = match &declare.source {
            Source::Subscribe(asked) => {
                let subscription = engine.subscribe(&engine.subscribable(asked).await?).await?;
                Cursor { schema: Arc::clone(&subscription.schema), ready: VecDeque::new(), more: Some(subscription) }
            }
            Source::Query(asked) => {
                let planned = engine.plan(asked).await?;
                let planned = Planned { as_of: planned.as_of.or(tick), ..planned };
                let Answer { schema, batches, tick, .. } = engine.run(&planned, None).await?;
                read_at = tick;
                Cursor { schema, ready: batches.into(), more: None }
            }
        };
        cursors.insert(declare.cursor.clone(), cursor);
        Ok(read_at)
    }

    /// The columns of a cursor.
    pub(super) async fn schema(&self, name: &str) -> Result<SchemaRef, SqlError> {
        let cursors = self.0.lock().await;
        cursors.get(name).map(|cursor| Arc::clone(&cursor.schema)).ok_or_else(|| unknown(name))
    }

    /// FETCH. Of a subscription: what is there, and what comes in time; without a time, until there is one row.
    pub(super) async fn fetch(&self, fetch: &Fetch, peer: &Peer) -> Result<Answer, SqlError> {
        let mut cursors = self.0.lock().await;
        let cursor = cursors.get_mut(&fetch.cursor).ok_or_else(|| unknown(&fetch.cursor))?;
        let wanted = fetch.rows.unwrap_or(usize::MAX);
        let deadline = fetch.within.map(|within| Instant::now() + within);
        while cursor.rows() < wanted.min(ROWS_AHEAD_MAX) {
            let Some(more) = &mut cursor.more else { break };
            if deadline.is_none() && cursor.ready.iter().any(|batch| batch.num_rows() > 0) {
                break;
            }
            let until = deadline.map(|deadline| deadline.max(Instant::now() + LOOK));
            match within(more.next(), until, peer).await? {
                None => break,
                Some(Ok(Some(delivery))) => cursor.ready.extend(delivery.batches),
                Some(Ok(None)) => cursor.more = None,
                // What came before the error is fetched first.
                Some(Err(failed)) if cursor.rows() == 0 => return Err(failed),
                Some(Err(_)) => break,
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                break;
            }
        }
        let schema = Arc::clone(&cursor.schema);
        Ok(Answer { schema, batches: cursor.take(wanted), tick: None, completeness: None, note: None })
    }

    /// CLOSE: one, or all.
    pub(super) async fn close(&self, name: Option<&str>) -> Result<(), SqlError> {
        let mut cursors = self.0.lock().await;
        match name {
            None => cursors.clear(),
            Some(name) => drop(cursors.remove(name).ok_or_else(|| unknown(name))?),
        }
        Ok(())
    }
}

impl Cursor {
    fn rows(&self) -> usize {
        self.ready.iter().map(RecordBatch::num_rows).sum()
    }

    fn take(&mut self, mut rows: usize) -> Vec<RecordBatch> {
        let mut taken = Vec::new();
        while let Some(batch) = self.ready.pop_front() {
            if batch.num_rows() > rows {
                taken.push(batch.slice(0, rows));
                self.ready.push_front(batch.slice(rows, batch.num_rows() - rows));
                break;
            }
            rows -= batch.num_rows();
            taken.push(batch);
        }
        taken
    }
}

/// What a future gives; nothing when it takes too long. An error when nobody waits for it any more.
async fn within<T>(work: impl Future<Output = T>, until: Option<Instant>, peer: &Peer) -> Result<Option<T>, SqlError> {
    let mut work = pin!(work);
    loop {
        let look = Instant::now() + LOOK_FOR_PEER;
        match tokio::time::timeout_at(until.map_or(look, |until| until.min(look)), &mut work).await {
            Ok(done) => return Ok(Some(done)),
            Err(_) if peer.has_left() => return Err(SqlError::new(error::GONE, "the client has left")),
            Err(_) if until.is_some_and(|until| Instant::now() >= until) => return Ok(None),
            Err(_) => {}
        }
    }
}

fn unknown(name: &str) -> SqlError {
    SqlError::new(error::UNKNOWN_CURSOR, format!("cursor \"{name}\" does not exist"))
}

/// Each may hold the rows of a query.
const CURSORS_MAX: usize = 16;
/// A FETCH asks for no more deliveries beyond so many rows; whoever wants more fetches again.
const ROWS_AHEAD_MAX: usize = 100_000;
/// Nobody may wait for a FETCH any more.
const LOOK_FOR_PEER: Duration = Duration::from_secs(2);
/// What is there needs a moment to be asked for.
const LOOK: Duration = Duration::from_millis(300);
