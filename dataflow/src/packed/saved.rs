//! Packed rows in a checkpoint: with the texts they share, so that saving them is a copy.

use serde::{Deserialize, Serialize};

use super::{Bytes, Packer, spread};
use crate::checkpoint::{Share, encode};

/// Rows as a checkpoint has them, each with what its holder says of it.
#[derive(Debug, Deserialize)]
pub(crate) struct SavedRows<T> {
    texts: Vec<Option<Bytes>>,
    rows: Vec<(Bytes, T)>,
}

impl Packer {
    /// The postcard of these rows as [`SavedRows`].
    pub(crate) fn save<'b, T: Serialize>(&self, rows: impl Iterator<Item = (&'b [u8], T)>) -> Vec<u8> {
        let texts: Vec<_> = self.texts().iter().map(|text| text.as_deref().map(Raw)).collect();
        encode(&(texts, rows.map(|(row, what)| (Raw(row), what)).collect::<Vec<_>>()))
    }

    /// Of saved rows those that come to this worker.
    pub(crate) fn load<T>(&mut self, saved: SavedRows<T>, share: Share) -> Vec<(Bytes, T)> {
        let mut portable = Vec::new();
        let SavedRows { texts, rows } = saved;
        let mut ours = Vec::new();
        for (row, what) in rows {
            portable.clear();
            // A checkpoint is checked by its checksum, and of this build.
            if spread(&self.columns, &row, &texts, &mut portable).is_some()
                && share.owns(&portable)
                && let Some(row) = self.packed(&row, &texts)
            {
                ours.push((row, what));
            }
        }
        ours
    }
}

/// Bytes written at once; postcard reads them back as a sequence of bytes.
struct Raw<'a>(&'a [u8]);

impl Serialize for Raw<'_> {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(self.0)
    }
}
