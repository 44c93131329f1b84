//! The outbox's memory, in the store that all nodes share: numbered objects, each with what changed.
//!
//! ```text
//! outbox/<n, 20 digits>   version u8 | crc32c of the rest u32 le | postcard of Batch
//! ```
//!
//! A batch is all entries (`whole`) or those that changed. A number is created once: who finds the next one taken is no longer the one who
//! sends. A create whose answer is unclear is read back. Numbers are removed in ascending order and never the newest, and a create
//! counts only if the object before it is still there, so a number that is free again fools nobody.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::entry::Entry;
use crate::error::Error;
use crate::outbox::Outbox;

/// Where the objects are. Names are paths of plain characters; all errors are texts for people.
#[async_trait::async_trait]
pub trait Objects: Send + Sync {
    /// The names below a folder, with it.
    async fn list(&self, folder: &str) -> Result<Vec<String>, String>;
    /// An object, if it is there.
    async fn read(&self, name: &str) -> Result<Option<Vec<u8>>, String>;
    /// Creates an object; false: the name is taken.
    async fn create(&self, name: &str, bytes: Vec<u8>) -> Result<bool, String>;
    /// Writes an object, whether or not it is there: the last one who does so counts.
    async fn write(&self, name: &str, bytes: Vec<u8>) -> Result<(), String>;
    /// Removes an object, if it is there.
    async fn remove(&self, name: &str) -> Result<(), String>;
}

/// What became of one entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Whose.
    pub sink: String,
    /// Which.
    pub key: String,
    /// What it is now; none: forgotten.
    pub entry: Option<Entry>,
}

/// One object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Tells this writer's attempt from every other.
    pub nonce: u128,
    /// Who wrote it, for people.
    pub node: String,
    /// The closed tick that the outbox has taken up.
    pub tick: u64,
    /// All entries, or those that changed.
    pub whole: bool,
    /// In the order of sinks and keys.
    pub changes: Vec<Change>,
}

/// Writes the next object. One process has it at a time; two are told apart by the numbers.
pub struct Ledger {
    objects: Arc<dyn Objects>,
    node: String,
    next: u64,
    /// A batch whose create had no clear answer.
    unclear: Option<Batch>,
    /// Bytes since the last whole one.
    since_whole: usize,
    whole_bytes: usize,
    batches: usize,
}

/// What the objects say.
pub struct Memory {
    /// The tick.
    pub tick: u64,
    /// All entries.
    pub entries: BTreeMap<(String, String), Entry>,
    /// Who wrote the newest.
    pub node: Option<String>,
    next: u64,
}

/// Reads the outbox as it is in the store, without taking it.
pub async fn read_outbox(objects: &dyn Objects) -> Result<Memory, Error> {
    let mut failed = None;
    // The sender may remove what is being read: then there is a newer whole one.
    for _ in 0..READS_MAX {
        match read_once(objects).await {
            Ok(Some(memory)) => return Ok(memory),
            Ok(None) => {}
            Err(Error::Broken(object)) => failed = Some(Error::Broken(object)),
            Err(other) => return Err(other),
        }
    }
    Err(failed.unwrap_or_else(|| Error::Store {
        action: "read",
        object: OUTBOX.to_owned(),
        why: "it changes all the time: try again".to_owned(),
    }))
}

/// None: it changed meanwhile.
async fn read_once(objects: &dyn Objects) -> Result<Option<Memory>, Error> {
    let names = objects.list(OUTBOX).await.map_err(store("list", OUTBOX))?;
    let mut numbers: Vec<u64> =
        names.iter().filter_map(|name| name.strip_prefix(OUTBOX)?.strip_prefix('/')?.parse().ok()).collect();
    numbers.sort_unstable();
    let mut memory = Memory { tick: 0, entries: BTreeMap::new(), node: None, next: 1 };
    let Some(&newest) = numbers.last() else { return Ok(Some(memory)) };
    let mut batches = Vec::new();
    for number in (1..=newest).rev() {
        let Some(bytes) = read(objects, number).await? else { return Ok(None) };
        let batch = decode(&bytes).ok_or_else(|| Error::Broken(name(number)))?;
        let whole = batch.whole;
        batches.push(batch);
        if whole {
            break;
        }
    }
    for batch in batches.into_iter().rev() {
        memory.tick = memory.tick.max(batch.tick);
        memory.node = Some(batch.node);
        for Change { sink, key, entry } in batch.changes {
            match entry {
                Some(entry) => _ = memory.entries.insert((sink, key), entry),
                None => _ = memory.entries.remove(&(sink, key)),
            }
        }
    }
    memory.next = newest + 1;
    // What was added meanwhile is another's: whoever takes the outbox finds that out.
    Ok(Some(memory))
}

impl Ledger {
    /// Takes the outbox over: whoever had it can write no more.
    pub async fn take(objects: Arc<dyn Objects>, node: &str, nonce: u128) -> Result<(Self, Memory), Error> {
        let memory = read_outbox(&*objects).await?;
        let (node, next) = (node.to_owned(), memory.next);
        let mut ledger = Self { objects, node, next, unclear: None, since_whole: 0, whole_bytes: 0, batches: 0 };
        let changes = memory.entries.iter().map(|((sink, key), entry)| Change {
            sink: sink.clone(),
            key: key.clone(),
            entry: Some(entry.clone()),
        });
        let changes = changes.collect();
        ledger.write(Batch { nonce, node: ledger.node.clone(), tick: memory.tick, whole: true, changes }).await?;
        ledger.collect().await?;
        Ok((ledger, memory))
    }

    /// Makes changes durable. After an error other than `Fenced` it may be called again, with these and more.
    pub async fn commit(&mut self, nonce: u128, outbox: &Outbox, changes: Vec<Change>) -> Result<(), Error> {
        if let Some(unclear) = self.unclear.take() {
            self.write(unclear).await?;
        }
        let whole = self.batches >= BATCHES_MAX && self.since_whole >= self.whole_bytes;
        let changes = if whole { outbox.all() } else { changes };
        self.write(Batch { nonce, node: self.node.clone(), tick: outbox.tick(), whole, changes }).await?;
        if whole {
            self.collect().await?;
        }
        Ok(())
    }

    /// An error if another one has taken the outbox.
    pub async fn confirm(&self) -> Result<(), Error> {
        // What others wrote may be removed again; then so is what stood before it.
        let ours = read(&*self.objects, self.next - 1).await?.is_some();
        match read(&*self.objects, self.next).await? {
            None if ours => Ok(()),
            _ => Err(Error::Fenced),
        }
    }

    async fn write(&mut self, batch: Batch) -> Result<(), Error> {
        let (object, bytes) = (name(self.next), encode(&batch));
        let length = bytes.len();
        match self.objects.create(&object, bytes).await {
            Ok(true) => {}
            Ok(false) => self.is_ours(&batch).await?,
            Err(why) => {
                self.unclear = Some(batch);
                return Err(Error::Store { action: "create", object, why });
            }
        }
        let before = if self.next == 1 { None } else { Some(self.next - 1) };
        let is_next = match before {
            Some(before) => read(&*self.objects, before).await,
            // The first: there is no other yet.
            None => self.objects.list(OUTBOX).await.map_err(store("list", OUTBOX)).map(|names| (names.len() == 1).then(Vec::new)),
        };
        match is_next {
            Ok(Some(_)) => {}
            Ok(None) => return Err(Error::Fenced),
            Err(failed) => {
                self.unclear = Some(batch);
                return Err(failed);
            }
        }
        self.next += 1;
        (self.batches, self.since_whole) = (self.batches + 1, self.since_whole + length);
        if batch.whole {
            (self.batches, self.since_whole, self.whole_bytes) = (0, 0, length);
        }
        Ok(())
    }

    /// A name that is taken may be by an attempt of ours.
    async fn is_ours(&mut self, batch: &Batch) -> Result<(), Error> {
        match read(&*self.objects, self.next).await {
            Ok(Some(bytes)) if decode(&bytes).is_some_and(|there| there.nonce == batch.nonce) => Ok(()),
            Ok(_) => Err(Error::Fenced),
            Err(failed) => {
                self.unclear = Some(batch.clone());
                Err(failed)
            }
        }
    }

    /// Removes what stands before the newest whole one, but not the object right before it.
    async fn collect(&self) -> Result<(), Error> {
        let newest = self.next - 1;
        let mut names = self.objects.list(OUTBOX).await.map_err(store("list", OUTBOX))?;
        names.sort_unstable();
        for object in names.into_iter().filter(|object| *object < name(newest)) {
            self.objects.remove(&object).await.map_err(store("remove", &object))?;
        }
        Ok(())
    }
}

async fn read(objects: &dyn Objects, number: u64) -> Result<Option<Vec<u8>>, Error> {
    objects.read(&name(number)).await.map_err(store("read", &name(number)))
}

fn store(action: &'static str, object: &str) -> impl FnOnce(String) -> Error + use<> {
    let object = object.to_owned();
    move |why| Error::Store { action, object, why }
}

fn name(number: u64) -> String {
    format!("{OUTBOX}/{number:020}")
}

fn encode(batch: &Batch) -> Vec<u8> {
    let body = postcard::to_stdvec(batch).expect("a batch in memory serialises");
    let mut bytes = Vec::with_capacity(body.len() + 5);
    bytes.push(VERSION);
    bytes.extend(crc32c::crc32c(&body).to_le_bytes());
    bytes.extend(body);
    bytes
}

/// None: not of this version, or damaged.
fn decode(bytes: &[u8]) -> Option<Batch> {
    let (sum, body) = bytes.strip_prefix(&[VERSION])?.split_first_chunk::<4>()?;
    let sound = crc32c::crc32c(body) == u32::from_le_bytes(*sum);
    sound.then(|| postcard::from_bytes(body).ok()).flatten()
}

const OUTBOX: &str = "outbox";
const VERSION: u8 = 1;
/// Batches after which all entries are written again, once they are no more bytes than what was written since.
const BATCHES_MAX: usize = 64;
/// Attempts to read what is being written.
const READS_MAX: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_objects_are_found() {
        let batch = Batch { nonce: 7, node: "n1".to_owned(), tick: 3, whole: true, changes: Vec::new() };
        let bytes = encode(&batch);
        assert_eq!(decode(&bytes), Some(batch));
        for place in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[place] ^= 1;
            assert_eq!(decode(&damaged), None, "byte {place}");
            assert_eq!(decode(&bytes[..place]), None, "cut at {place}");
        }
    }
}
