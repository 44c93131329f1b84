//! The chain behind the archive, for queries: decoded as it is read, so that it takes no memory however far the archive is behind.

use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use weir_archive::{Position, Table, Tail, TailRequest, outside_schema};
use weir_dataflow::{Taken, gather};

use super::cursor::Cursor;
use crate::chain::ChainRecord;
use crate::error::Error;
use crate::log::{LogError, Logs, Pace};

/// Reads the chain and the logs of a cluster.
pub struct ChainTail {
    logs: Arc<dyn Logs>,
}

impl ChainTail {
    /// Behind the archive of the cluster with these.
    pub(crate) fn new(logs: Arc<dyn Logs>) -> Self {
        Self { logs }
    }

    fn rows(&self, request: &TailRequest, out: &mut dyn FnMut(RecordBatch) -> bool) -> Result<(), Error> {
        let state = request.state.as_ref().map(|state| state.as_slice());
        let mut cursor = Cursor::open(self.logs.clone(), Pace::UpToNow, &request.position, state)?;
        let all = outside_schema(request.table);
        let fields: Vec<_> =
            request.columns.iter().filter_map(|column| all.field_with_name(column.name()).ok().cloned()).collect();
        let schema = Arc::new(Schema::new(fields));
        let (mut waiting, mut rows): (Vec<Taken>, usize) = (Vec::new(), 0);
        let mut hand_out = |waiting: &mut Vec<Taken>| {
            let parts: Vec<_> = waiting.iter().map(|taken| (taken, None)).collect();
            let more = parts.is_empty() || out(gather(&parts, &request.columns, &schema));
            waiting.clear();
            more
        };
        while let Some(step) = cursor.next(request.until_tick)? {
            for taken in step.taken.into_iter().filter(|taken| Table::of(taken.section().kind) == request.table) {
                rows += taken.len();
                waiting.push(taken);
                if rows >= ROWS_TOGETHER {
                    rows = 0;
                    if !hand_out(&mut waiting) {
                        return Ok(());
                    }
                }
            }
        }
        hand_out(&mut waiting);
        Ok(())
    }
}

impl fmt::Debug for ChainTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChainTail({})", self.logs.place())
    }
}

impl Tail for ChainTail {
    fn read(&self, request: &TailRequest, out: &mut dyn FnMut(RecordBatch) -> bool) -> Result<(), weir_archive::Error> {
        self.rows(request, out).map_err(|failed| match failed {
            Error::Log { why: LogError::Forgotten { .. }, .. } => weir_archive::Error::Behind { number: request.number },
            other => weir_archive::Error::Tail(other.to_string()),
        })
    }

    fn last_tick(&self, position: &Position) -> Result<u64, weir_archive::Error> {
        let failed = |why: LogError| weir_archive::Error::Tail(format!("reading the chain: {why}"));
        let mut chain = match self.logs.read_chain(position.chain, Pace::UpToNow) {
            Ok(chain) => chain,
            Err(LogError::Missing { .. }) => return Ok(position.tick),
            Err(why) => return Err(failed(why)),
        };
        let mut last = position.tick;
        while let Some((_, bytes)) = chain.next().map_err(failed)? {
            last = ChainRecord::decode(&bytes).map_err(|wrong| weir_archive::Error::Tail(wrong.to_string()))?.tick;
        }
        Ok(last)
    }
}

/// What DataFusion likes to be handed.
const ROWS_TOGETHER: usize = 8_192;
