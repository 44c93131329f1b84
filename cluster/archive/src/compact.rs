//! Which files are merged next.
//!
//! ```text
//! fresh files of a relation ─► files by tenant, region, kind, hour
//! small files of an hour    ─► one file
//! small files of a day      ─► one file over hours, once the day is over
//! ```
//!
//! A job takes fresh files away, or turns several files into fewer: so after finitely many jobs there is none. A merge takes no more
//! bytes than a file may have, so two small files that do not fit together stay two.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::catalog::Catalog;
use crate::layout::{HOUR_NS, Partition, Table, hour_of};
use crate::manifest::FileEntry;

pub use crate::merge::{Compacted, compact};

/// How large files should be, and how long fresh ones may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// A smaller file is merged with others of its hour or day. Default 64 MiB: a search opens few files.
    pub file_bytes_min: u64,
    /// A file ends when it has about so many bytes. Default 256 MiB: what one failed upload costs at most.
    pub file_bytes_max: u64,
    /// So many fresh files are taken apart. Default 16: each is opened by every query.
    pub fresh_files_max: usize,
    /// So many bytes of fresh files are taken apart. Default 64 MiB.
    pub fresh_bytes_max: u64,
    /// A fresh file with ticks older than this is taken apart. Default 10 minutes.
    pub fresh_ms_max: u64,
    /// So many small files of an hour that still goes on are merged. Default 4.
    pub small_files_max: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            file_bytes_min: 64 << 20,
            file_bytes_max: 256 << 20,
            fresh_files_max: 16,
            fresh_bytes_max: 64 << 20,
            fresh_ms_max: 600_000,
            small_files_max: 4,
        }
    }
}

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Takes fresh files apart, by tenant, region, kind and hour.
    Fresh,
    /// Merges files of one partition and hour.
    Hour,
    /// Merges files of one partition and day.
    Day,
}

/// Files to merge.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// How.
    pub work: Work,
    /// What they hold rows of.
    pub table: Table,
    /// The files: of one relation, and but for fresh ones of one partition.
    pub files: Vec<Arc<FileEntry>>,
}

/// The next job, if any is due. A pure function: the same catalog and time, the same job.
pub fn choose(catalog: &Catalog, sizes: &Sizes, now_ms: u64) -> Option<Job> {
    let fresh = || Table::ALL.into_iter().find_map(|table| choose_fresh(catalog, table, sizes, now_ms));
    let hour = || choose_small(catalog, sizes, now_ms, Span::HOUR);
    let day = || choose_small(catalog, sizes, now_ms, Span::DAY);
    fresh().or_else(hour).or_else(day)
}

fn choose_fresh(catalog: &Catalog, table: Table, sizes: &Sizes, now_ms: u64) -> Option<Job> {
    let mut fresh: Vec<&Arc<FileEntry>> = catalog.files_of(table).filter(|file| file.partition.is_none()).collect();
    fresh.sort_by_key(|file| (file.tick_min, &file.path));
    let oldest = fresh.first()?;
    let due = fresh.len() >= sizes.fresh_files_max
        || bytes_of(&fresh) >= sizes.fresh_bytes_max
        || oldest.tick_min < now_ms.saturating_sub(sizes.fresh_ms_max);
    if !due {
        return None;
    }
    let fitting = fitting(&fresh, FRESH_BYTES_MAX).max(1);
    Some(Job { work: Work::Fresh, table, files: fresh.into_iter().take(fitting).cloned().collect() })
}

/// The length of time whose files are merged.
#[derive(Debug, Clone, Copy)]
struct Span {
    work: Work,
    hours: i64,
}

impl Span {
    const HOUR: Self = Self { work: Work::Hour, hours: 1 };
    const DAY: Self = Self { work: Work::Day, hours: 24 };

    fn of(self, time_ns: i64) -> i64 {
        hour_of(time_ns).div_euclid(self.hours)
    }

    /// True when it is over, and late events of it are rare.
    fn is_over(self, number: i64, now_ms: u64) -> bool {
        let end_ms = number.saturating_add(1).saturating_mul(self.hours * (HOUR_NS / 1_000_000));
        i64::try_from(now_ms).is_ok_and(|now_ms| end_ms.saturating_add(LATE_MS) < now_ms)
    }
}

fn choose_small(catalog: &Catalog, sizes: &Sizes, now_ms: u64, span: Span) -> Option<Job> {
    let mut groups: BTreeMap<(Table, &Partition, i64), Vec<&Arc<FileEntry>>> = BTreeMap::new();
    for file in catalog.files.values().filter(|file| file.bytes < sizes.file_bytes_min) {
        let number = span.of(file.time_min);
        if let Some(partition) = file.partition.as_ref().filter(|_| number == span.of(file.time_max)) {
            groups.entry((file.table, partition, number)).or_default().push(file);
        }
    }
    groups.into_iter().find_map(|((table, _, number), mut files)| {
        files.sort_by_key(|file| (file.bytes, &file.path));
        if !span.is_over(number, now_ms) {
            if span.hours > 1 || files.len() < sizes.small_files_max {
                return None;
            }
            files.truncate(worth_it(&files));
        }
        let fitting = fitting(&files, sizes.file_bytes_max);
        let files: Vec<Arc<FileEntry>> = files.into_iter().take(fitting).cloned().collect();
        (fitting >= 2).then_some(Job { work: span.work, table, files })
    })
}

/// How many of the smallest files are worth a merge while more are to come: without those that are larger than all smaller ones
/// together, so that a row is written again only as often as its file has doubled. All, when hardly any would be left.
fn worth_it(files: &[&Arc<FileEntry>]) -> usize {
    let alone = |count: &usize| bytes_of(&files[..*count - 1]) < files[*count - 1].bytes;
    let left = (1..=files.len()).rev().find(|count| !alone(count)).unwrap_or(0);
    if left >= 2 { left } else { files.len() }
}

/// How many of the files, from the first on, one job takes.
fn fitting(files: &[&Arc<FileEntry>], bytes_max: u64) -> usize {
    let mut bytes = 0u64;
    let fits = |file: &&&Arc<FileEntry>| {
        bytes = bytes.saturating_add(file.bytes);
        bytes <= bytes_max
    };
    files.iter().take(JOB_FILES_MAX).take_while(fits).count()
}

fn bytes_of(files: &[&Arc<FileEntry>]) -> u64 {
    files.iter().map(|file| file.bytes).sum()
}

/// Files of one job: all are open at once.
pub(crate) const JOB_FILES_MAX: usize = 32;
/// Bytes of one job's fresh files: what is done again when it is killed.
const FRESH_BYTES_MAX: u64 = 1 << 30;
/// How long after its end an hour or day is left alone: the time that late events take.
const LATE_MS: i64 = 20 * 60_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::layout::random_id;

    const MIB: u64 = 1 << 20;
    const HOUR_MS: u64 = 3_600_000;
    const NOW_MS: u64 = 480_000 * HOUR_MS;

    /// A file whose rows are of one hour, so many hours ago. Fresh ones have no kind.
    fn file(kind: Option<&str>, hours_back: i64, bytes: u64) -> FileEntry {
        let time = NOW_MS as i64 * 1_000_000 - hours_back * HOUR_NS;
        let partition = kind.map(|kind| Partition { tenant: "acme".into(), region: "eu".into(), kind: kind.to_owned() });
        FileEntry {
            path: random_id(),
            table: Table::Events,
            partition,
            rows: 1,
            bytes,
            sha256: String::new(),
            footer_at: 0,
            footer_sha256: String::new(),
            time_min: time,
            time_max: time + 1,
            tick_min: (NOW_MS as i64 - hours_back * HOUR_MS as i64) as u64,
            tick_max: NOW_MS,
            imported: false,
        }
    }

    fn catalog(files: Vec<FileEntry>) -> Catalog {
        let files = files.into_iter().map(|file| (file.path.clone(), Arc::new(file))).collect();
        Catalog { files, ..Catalog::default() }
    }

    fn check(files: Vec<FileEntry>, expected: Option<(Work, Vec<u64>)>) {
        check_at(NOW_MS, files, expected);
    }

    fn check_at(now_ms: u64, files: Vec<FileEntry>, expected: Option<(Work, Vec<u64>)>) {
        let told = format!("{files:?}");
        let job = choose(&catalog(files), &Sizes::default(), now_ms);
        let found = job.map(|job| (job.work, job.files.iter().map(|file| file.bytes).collect::<Vec<_>>()));
        assert_eq!(found, expected, "{told}");
    }

    #[test]
    fn fresh_files_are_due_when_there_are_many_or_large_or_old_ones() {
        let fresh = |bytes| file(None, 0, bytes);
        check(vec![fresh(MIB)], None);
        check((0..15).map(|_| fresh(MIB)).collect(), None);
        check((0..16).map(|_| fresh(MIB)).collect(), Some((Work::Fresh, vec![MIB; 16])));
        check(vec![fresh(32 * MIB), fresh(31 * MIB)], None);
        check(vec![fresh(64 * MIB)], Some((Work::Fresh, vec![64 * MIB])));
        check(vec![fresh(MIB), file(None, 1, 2 * MIB)], Some((Work::Fresh, vec![2 * MIB, MIB])));
        check((0..40).map(|_| fresh(MIB)).collect(), Some((Work::Fresh, vec![MIB; JOB_FILES_MAX])));
        check((0..9).map(|_| fresh(200 * MIB)).collect(), Some((Work::Fresh, vec![200 * MIB; 5])));
        check(vec![fresh(2 * FRESH_BYTES_MAX)], Some((Work::Fresh, vec![2 * FRESH_BYTES_MAX])));
        let samples = FileEntry { table: Table::Samples, ..file(None, 1, 3) };
        check(vec![fresh(MIB), samples], Some((Work::Fresh, vec![3])));
    }

    #[test]
    fn small_files_of_an_hour_and_then_of_a_day() {
        let check = |files, expected| check_at(NOW_MS + 40 * 60_000, files, expected);
        let exec = |hours_back, mib| file(Some("exec"), hours_back, mib * MIB);
        let hour = |mib: &[u64]| Some((Work::Hour, mib.iter().map(|mib| mib * MIB).collect()));
        let day = |mib: &[u64]| Some((Work::Day, mib.iter().map(|mib| mib * MIB).collect()));
        // The hour goes on.
        check(vec![exec(0, 1), exec(0, 1), exec(0, 1)], None);
        check(vec![exec(0, 1), exec(0, 1), exec(0, 1), file(Some("open"), 0, 1)], None);
        check(vec![exec(0, 1), exec(0, 1), exec(0, 1), exec(0, 2)], hour(&[1, 1, 1, 2]));
        check(vec![exec(0, 50), exec(0, 1), exec(0, 1), exec(0, 1)], hour(&[1, 1, 1]));
        check(vec![exec(0, 1), exec(0, 2), exec(0, 4), exec(0, 8)], hour(&[1, 2, 4, 8]));
        // It is over.
        check(vec![exec(2, 1), exec(2, 50)], hour(&[1, 50]));
        check(vec![exec(2, 1), exec(2, 64)], None);
        check(vec![exec(2, 1)], None);
        check((0..6).map(|_| exec(2, 60)).collect(), hour(&[60; 4]));
        check((0..40).map(|_| exec(2, 1)).collect(), hour(&[1; JOB_FILES_MAX]));
        // Other hours of a day that goes on, then of one that is over: 480,000 hours are whole days.
        check(vec![exec(0, 1), exec(-1, 1)], None);
        check(vec![exec(2, 1), exec(3, 2), exec(4, 3)], day(&[1, 2, 3]));
        check(vec![exec(24, 1), exec(25, 2)], None);
        let over_two_days = FileEntry { time_max: i64::MAX, ..exec(3, 1) };
        check(vec![exec(2, 1), over_two_days], None);
    }

    #[test]
    fn an_hour_is_left_alone_for_twenty_minutes_after_its_end() {
        let files = catalog(vec![file(Some("exec"), 1, 1), file(Some("exec"), 1, 1)]);
        let at = |minutes: u64| choose(&files, &Sizes::default(), NOW_MS + minutes * 60_000).is_some();
        assert_eq!((at(20), at(21)), (false, true));
    }

    /// What a job would do to the catalog; `grown` percent is how large what it writes becomes.
    fn apply(catalog: &mut Catalog, job: &Job, sizes: &Sizes, grown: u64) {
        for file in &job.files {
            assert!(catalog.files.remove(&file.path).is_some());
        }
        let bytes: u64 = job.files.iter().map(|file| file.bytes).sum();
        let first = FileEntry::clone(&job.files[0]);
        let mut add = |file: FileEntry| assert!(catalog.files.insert(file.path.clone(), Arc::new(file)).is_none());
        if job.work == Work::Fresh {
            let hours = 1 + job.files.len() as i64 % 3;
            (0..hours).for_each(|hour| add(file(Some("exec"), hour * 5, (bytes / hours as u64).max(1))));
            return;
        }
        assert!(job.files.len() >= 2 && bytes <= sizes.file_bytes_max);
        let mut left = bytes * grown / 100;
        for rolled in (0..job.files.len() - 1).rev() {
            let now = if rolled == 0 { left } else { left.min(sizes.file_bytes_max) };
            left -= now;
            let time_max = job.files.iter().map(|file| file.time_max).max().unwrap_or(0);
            add(FileEntry { path: random_id(), bytes: now, time_max, ..first.clone() });
            if left == 0 {
                return;
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn jobs_come_to_an_end(
            files in proptest::collection::vec((proptest::option::of(0..2usize), 0..60i64, 1..200u64), 0..60),
            (min, max, fresh_files_max, small_files_max) in (1..150u64, 1..300u64, 0..5usize, 0..6usize),
            grown in 50..300u64,
        ) {
            let kinds = ["exec", "open"];
            let mut catalog =
                catalog(files.into_iter().map(|(kind, back, bytes)| file(kind.map(|kind| kinds[kind]), back, bytes)).collect());
            let sizes = Sizes { file_bytes_min: min, file_bytes_max: max, fresh_files_max, small_files_max, ..Sizes::default() };
            let jobs_max = 2 * catalog.files.len() + 10;
            for _ in 0..jobs_max {
                if let Some(job) = choose(&catalog, &sizes, NOW_MS) {
                    apply(&mut catalog, &job, &sizes, grown);
                }
            }
            prop_assert_eq!(choose(&catalog, &sizes, NOW_MS), None);
        }
    }
}
