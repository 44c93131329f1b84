//! Writes what the agent collects as JSON lines to a file, beside shipping or in its place.
//!
//! ```text
//!  agent ──► queue of RECORD_QUEUE_EVENTS ──► thread ──► FILE          (newest, at most half of the bytes)
//!     full: counted, told as `loss`              └─────► FILE.1        (what was FILE before)
//! ```
//!
//! Promise: the agent never waits for the disk. What finds no room in the queue, or what the disk refused, is counted and told in the
//! recording itself as a `loss` line of reason `record_full` or `record_disk`; what rotation removes is counted and logged at the end. A recording
//! goes on where an earlier one ended. It is a copy to look at, never synced: the record of a cluster is its log.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use weir_schema::{Event, Fields, Host, JsonEvent, Kind, write_line};

use crate::error::Error;

/// Where a recording goes, and how large it may become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordTo {
    /// The file; the part before the newest is beside it, with `.1` behind the name.
    pub file: PathBuf,
    /// Bytes of both parts together.
    pub bytes_max: u64,
}

/// What became of a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recorded {
    /// Events written, those that rotation removed later included.
    pub events: u64,
    /// Events that found no room in the queue or that the disk refused.
    pub dropped: u64,
    /// Written events that rotation removed.
    pub rotated: u64,
}

/// The agent's end of a recording.
pub struct Recorder {
    to_thread: SyncSender<Event>,
    thread: JoinHandle<Recorded>,
    full: Arc<AtomicU64>,
    host: Arc<Mutex<Arc<Host>>>,
}

impl Recorder {
    /// Opens the file and starts the thread that writes it.
    pub fn start(to: &RecordTo, host: Arc<Host>) -> Result<Self, Error> {
        let refused = |source| Error::Record { file: to.file.clone(), source };
        let tape = Tape::open(to).map_err(refused)?;
        let (to_thread, events) = sync_channel(RECORD_QUEUE_EVENTS);
        let full = Arc::new(AtomicU64::new(0));
        let host = Arc::new(Mutex::new(host));
        let writer = Writer { tape, host: host.clone(), full: full.clone(), recorded: Recorded::default(), failed: false };
        let thread = std::thread::Builder::new().name("record".into()).spawn(move || writer.run(&events));
        Ok(Self { to_thread, thread: thread.map_err(refused)?, full, host })
    }

    /// Takes a copy of the event, or counts it when the queue is full.
    pub fn take(&self, event: &Event) {
        // A thread that ended would have told why: it ends only by a panic.
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.to_thread.try_send(event.clone()) {
            self.full.fetch_add(1, Ordering::Relaxed);
            metrics::counter!(crate::metrics::RECORD_DROPPED, "reason" => FULL).increment(1);
        }
    }

    /// What is written from now on is of this host, as something else of it became known.
    pub fn set_host(&self, host: Arc<Host>) {
        *self.host.lock().unwrap_or_else(PoisonError::into_inner) = host;
    }

    /// Writes what waits, and says what was written and what was not.
    pub fn finish(self) -> Recorded {
        let Self { to_thread, thread, .. } = self;
        drop(to_thread);
        thread.join().unwrap_or_default()
    }
}

struct Writer {
    tape: Tape,
    host: Arc<Mutex<Arc<Host>>>,
    full: Arc<AtomicU64>,
    recorded: Recorded,
    /// The disk refused last time: told once.
    failed: bool,
}

impl Writer {
    fn run(mut self, events: &Receiver<Event>) -> Recorded {
        let mut lines = String::new();
        let (mut refused, mut time) = (0, 0);
        while let Ok(first) = events.recv() {
            let mut count = 0;
            let more = std::iter::from_fn(|| events.try_recv().ok());
            for event in std::iter::once(first).chain(more.take(EVENTS_PER_WRITE - 1)) {
                (count, time) = (count + 1, event.time);
                self.line(&mut lines, event);
            }
            self.write(&mut lines, count, &mut refused, time);
        }
        let full = self.full.load(Ordering::Relaxed);
        if full + refused > 0 {
            self.write(&mut lines, 0, &mut refused, time);
        }
        self.recorded.rotated = self.tape.rotated;
        self.recorded
    }

    /// Writes `count` events, and before them what was lost since the last time that something was written.
    fn write(&mut self, lines: &mut String, count: u64, refused: &mut u64, time: i64) {
        let full = self.full.swap(0, Ordering::Relaxed);
        self.recorded.dropped += full;
        let mut all = String::new();
        for (lost, reason) in [(full, FULL), (*refused, DISK)] {
            if lost > 0 {
                let fields = Fields {
                    loss_class: Some("any".into()),
                    loss_count: Some(lost),
                    loss_reason: Some(reason.into()),
                    ..Fields::default()
                };
                self.line(&mut all, Event { time, kind: Kind::Loss, process: None, container: None, fields });
            }
        }
        all.push_str(lines);
        lines.clear();
        match self.tape.write(all.as_bytes(), count) {
            Ok(()) => {
                self.recorded.events += count;
                (*refused, self.failed) = (0, false);
            }
            Err(error) => {
                // What was to be told of the queue is told with what the disk refused.
                *refused += full + count;
                self.recorded.dropped += count;
                metrics::counter!(crate::metrics::RECORD_DROPPED, "reason" => DISK).increment(count);
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::warn!(%error, file = %self.tape.path.display(), "the recording cannot be written: its events are dropped and counted");
                }
            }
        }
    }

    fn line(&self, lines: &mut String, event: Event) {
        let host = Host::clone(&self.host.lock().unwrap_or_else(PoisonError::into_inner));
        write_line(lines, &JsonEvent { host, tenant: None, region: None, agent: None, event });
    }
}

/// The two files.
struct Tape {
    path: PathBuf,
    file: File,
    bytes: u64,
    half: u64,
    /// Events of this run in `file` and in the part before it.
    events: u64,
    older: u64,
    rotated: u64,
    /// The last write ended inside a line.
    torn: bool,
}

impl Tape {
    fn open(to: &RecordTo) -> std::io::Result<Self> {
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(&to.file)?;
        let bytes = file.seek(SeekFrom::End(0))?;
        let mut last = [b'\n'];
        if bytes > 0 {
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
        }
        let (path, half) = (to.file.clone(), (to.bytes_max / 2).max(1));
        Ok(Self { path, file, bytes, half, events: 0, older: 0, rotated: 0, torn: last != [b'\n'] })
    }

    fn write(&mut self, lines: &[u8], events: u64) -> std::io::Result<()> {
        if self.bytes > 0 && self.bytes + lines.len() as u64 > self.half {
            self.rotate()?;
        }
        if self.torn {
            self.file.write_all(b"\n")?;
            (self.torn, self.bytes) = (false, self.bytes + 1);
        }
        if let Err(error) = self.file.write_all(lines) {
            self.torn = true;
            self.bytes = self.file.metadata().map_or(self.bytes, |of| of.len());
            return Err(error);
        }
        self.bytes += lines.len() as u64;
        self.events += events;
        Ok(())
    }

    fn rotate(&mut self) -> std::io::Result<()> {
        std::fs::rename(&self.path, older(&self.path))?;
        self.file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        self.rotated += std::mem::replace(&mut self.older, std::mem::take(&mut self.events));
        (self.bytes, self.torn) = (0, false);
        Ok(())
    }
}

/// The name of the part before the newest.
fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// Bytes of a recording unless others are asked for: half an hour of 2,000 events a second is about this.
pub const RECORD_BYTES_MAX: u64 = 1 << 30;
/// Fewest bytes that may be asked for: a write of the thread must fit a half.
pub const RECORD_BYTES_LEAST: u64 = 1 << 20;
/// Events that wait for the disk: about 16 MiB of them, a second of a busy host.
const RECORD_QUEUE_EVENTS: usize = 16_384;
/// Events of one write.
const EVENTS_PER_WRITE: usize = 256;
const FULL: &str = "record_full";
const DISK: &str = "record_disk";

#[cfg(test)]
mod tests {
    use super::*;
    use weir_schema::parse_line;

    fn event(time: i64) -> Event {
        Event {
            time,
            kind: Kind::Exec,
            fields: Fields { path: Some("/bin/true".into()), ..Fields::default() },
            ..Event::default()
        }
    }

    fn start(file: &Path, bytes_max: u64) -> Recorder {
        let host = Host { host: "h".into(), ..Host::default() };
        Recorder::start(&RecordTo { file: file.to_owned(), bytes_max }, Arc::new(host)).unwrap()
    }

    fn read(file: &Path) -> Vec<JsonEvent> {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        text.lines().filter(|line| !line.is_empty()).filter_map(|line| parse_line(line).ok()).collect()
    }

    #[test]
    fn what_is_taken_is_read_back_equal_and_a_recording_goes_on_after_a_torn_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("r.jsonl");
        for run in 0..2 {
            let recorder = start(&file, RECORD_BYTES_MAX);
            (0..100).for_each(|time| recorder.take(&event(run * 100 + time)));
            assert_eq!(recorder.finish(), Recorded { events: 100, dropped: 0, rotated: 0 });
            OpenOptions::new().append(true).open(&file).unwrap().write_all(b"{\"kind\":\"ex").unwrap();
        }
        let found = read(&file);
        assert_eq!(found.iter().map(|line| line.event.time).collect::<Vec<_>>(), (0..200).collect::<Vec<_>>());
        assert_eq!((&*found[0].host.host, &found[7].event), ("h", &event(7)));
    }

    #[test]
    fn both_parts_stay_within_the_limit_and_what_goes_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("r.jsonl");
        let recorder = start(&file, RECORD_BYTES_LEAST);
        for time in 0..40_000 {
            recorder.take(&event(time));
            if time % 1_000 == 0 {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
        let recorded = recorder.finish();
        let (newest, before) = (read(&file), read(&older(&file)));
        let bytes: u64 = [file.clone(), older(&file)].iter().map(|file| file.metadata().unwrap().len()).sum();
        assert!(bytes <= RECORD_BYTES_LEAST, "{bytes}");
        let kept = newest.iter().chain(&before).filter(|line| line.event.kind == Kind::Exec).count() as u64;
        assert!(recorded.rotated > 0 && kept > 0);
        assert_eq!(recorded.events, recorded.rotated + kept);
        assert_eq!(recorded.events + recorded.dropped, 40_000);
    }

    #[test]
    fn a_full_queue_and_a_refusing_disk_are_counted_and_told() {
        // A disk that is always full, and no thread that empties the queue.
        let tape = Tape::open(&RecordTo { file: "/dev/full".into(), bytes_max: RECORD_BYTES_MAX });
        let Ok(tape) = tape else {
            eprintln!("SKIPPED: no /dev/full");
            return;
        };
        let folder = tempfile::tempdir().unwrap();
        let (to_thread, events) = sync_channel(2);
        let full = Arc::new(AtomicU64::new(0));
        let recorder =
            Recorder { to_thread, thread: std::thread::spawn(Recorded::default), full: full.clone(), host: Arc::default() };
        (0..5).for_each(|time| recorder.take(&event(time)));
        assert_eq!(full.load(Ordering::Relaxed), 3);
        drop(recorder.to_thread);

        let mut writer = Writer { tape, host: Arc::default(), full, recorded: Recorded::default(), failed: false };
        let (mut refused, mut lines) = (0, String::new());
        events.iter().for_each(|event| writer.line(&mut lines, event));
        writer.write(&mut lines, 2, &mut refused, 9);
        assert_eq!((refused, writer.recorded.dropped), (5, 5));
        let file = folder.path().join("r.jsonl");
        writer.tape = Tape::open(&RecordTo { file: file.clone(), bytes_max: RECORD_BYTES_MAX }).unwrap();
        writer.line(&mut lines, event(10));
        writer.write(&mut lines, 1, &mut refused, 10);
        assert_eq!((refused, writer.recorded), (0, Recorded { events: 1, dropped: 5, rotated: 0 }));
        let found = read(&file);
        let told = &found[0].event.fields;
        assert_eq!((told.loss_count, told.loss_reason.as_deref(), found.len()), (Some(5), Some(DISK), 2));
    }
}
