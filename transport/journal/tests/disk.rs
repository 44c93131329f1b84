//! The journal on the system's disk and between processes: a writer killed again and again, read from outside meanwhile.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use weir_journal::{Error, Journal, Lock, Offset, Options, Reader, RealDisk};

#[test]
fn a_killed_writer_loses_nothing_that_it_told() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("new/log");
    let mut read = 0;
    for round in 0..8 {
        let mut writer = Writer::start(&dir);
        // The child prints what is durable; the kill comes somewhere behind that line.
        let told = writer.line_number(3 + round * 2);
        if round > 0 {
            assert!(matches!(Journal::open(Arc::new(RealDisk), &dir, options()), Err(Error::Locked { .. })));
            assert!(Lock::try_acquire(&dir).unwrap().is_none());
        }
        let mut reader = Reader::open(Arc::new(RealDisk), &dir, Offset(read)).unwrap();
        while read < told {
            let (offset, bytes) = reader.next().unwrap().expect("told as durable");
            assert_eq!((offset.0, bytes), (read, content(read)));
            read += 1;
        }
        writer.kill();
        let (journal, recovery) = Journal::open(Arc::new(RealDisk), &dir, options()).unwrap();
        assert!(recovery.next.0 >= told && recovery.quarantined.is_empty(), "{recovery:?}");
        drop(journal);
        // The reader that was open all the time goes on.
        while let Some((offset, bytes)) = reader.next().unwrap() {
            assert_eq!((offset.0, bytes), (read, content(read)));
            read += 1;
        }
        assert_eq!(read, recovery.next.0);
    }
}

#[test]
fn forgetting_frees_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let (mut journal, _) = Journal::open(Arc::new(RealDisk), folder.path(), options()).unwrap();
    for serial in 0..300 {
        journal.append(&content(serial)).unwrap();
        journal.sync().unwrap();
    }
    let before = journal.bytes().unwrap();
    journal.forget(Offset(290)).unwrap();
    assert!(journal.bytes().unwrap() < before / 2);
    assert_eq!(journal.first(), Offset(290));
    drop(journal);
    let (_journal, recovery) = Journal::open(Arc::new(RealDisk), folder.path(), options()).unwrap();
    assert_eq!((recovery.first, recovery.next, recovery.quarantined.len()), (Offset(290), Offset(300), 0));
    let mut reader = Reader::open(Arc::new(RealDisk), folder.path(), Offset(3)).unwrap();
    assert!(matches!(reader.next(), Err(Error::Forgotten { asked: Offset(3), first: Offset(290) })));
}

#[test]
fn a_reader_without_a_journal_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(Reader::open(Arc::new(RealDisk), folder.path(), Offset(0)), Err(Error::Missing { .. })));
}

/// Not a test by itself: the process that gets killed. It runs when the folder is named in the environment.
#[test]
fn writer_process() {
    let Some(dir) = std::env::var_os("JOURNAL_TEST_DIR").map(PathBuf::from) else { return };
    let (mut journal, _) = Journal::open(Arc::new(RealDisk), &dir, options()).unwrap();
    loop {
        for _ in 0..3 {
            let serial = journal.next().0;
            journal.append(&content(serial)).unwrap();
        }
        let durable = journal.sync().unwrap();
        // Not println: the harness would capture it. When the parent is gone, so is the pipe, and this process ends.
        if writeln!(std::io::stdout(), "durable {durable}").is_err() {
            return;
        }
    }
}

/// The child process.
struct Writer {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Writer {
    fn start(dir: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writer_process", "--nocapture", "--test-threads", "1"])
            .env("JOURNAL_TEST_DIR", dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Waits for so many lines and gives the offset that the last one tells.
    fn line_number(&mut self, count: usize) -> u64 {
        let told =
            self.lines.by_ref().filter_map(|line| line.unwrap().strip_prefix("durable ").map(|told| told.parse().unwrap()));
        told.take(count).last().unwrap()
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn content(serial: u64) -> Vec<u8> {
    (0..2000 + serial % 700).map(|index| (serial * 31 + index * 7) as u8).collect()
}

fn options() -> Options {
    Options { segment_bytes_max: 64 << 10, ..Options::default() }
}
