//! Whatever is changed, removed or exchanged is named, and nothing else.

use super::fixture::{Place, ROWS};
use crate::error::Error;
use crate::layout::manifest_path;
use crate::manifest::{Manifest, sha256_hex};
use crate::query::query;
use crate::read::Footer;

#[tokio::test]
async fn the_footer_begins_where_the_row_groups_end() {
    let place = Place::filled().await;
    for file in place.archive().await.catalog().files.values() {
        let footer = Footer::read(&place.store(), file).await.unwrap();
        let columns = footer.metadata.row_groups().iter().flat_map(|group| group.columns());
        let ends = columns.flat_map(|column| {
            let (start, bytes) = column.byte_range();
            let bloom = column.bloom_filter_offset().zip(column.bloom_filter_length());
            [Some(start + bytes), bloom.map(|(start, bytes)| start as u64 + bytes as u64)]
        });
        assert_eq!(ends.flatten().max(), Some(file.footer_at));
    }
}

#[tokio::test]
async fn a_whole_archive_has_no_faults() {
    let place = Place::filled().await;
    place.write("events/fresh/left-behind.parquet", b"by a writer that died");
    let verified = place.verify(None).await;
    assert_eq!(verified.faults, []);
    assert_eq!((verified.manifests, verified.files, verified.rows), (3, 4, 12 * ROWS));
    // The state that the first flush went on from, and what was left behind.
    assert_eq!(verified.unreferenced, 2);
    assert_eq!(verified.head, sha256_hex(&place.read("manifest/00000000000000000003.json")));
    // An archive goes on: what was its head once is still in its chain.
    place.hold(&place.archive().await, "case-2").await;
    assert_eq!(place.verify(Some(&verified.head)).await.faults, []);
    let empty = Place::new();
    let nothing = crate::verify(empty.store(), None, &mut |_| {}).await.unwrap_err().to_string();
    assert!(nothing.contains("there is no archive"), "{nothing}");
}

#[tokio::test]
async fn a_flipped_bit_is_named_by_its_object_and_by_no_other() {
    let place = Place::filled().await;
    let head = place.verify(None).await.head;
    let current = place.archive().await.catalog().state.clone().unwrap().path;
    let rows = place.query(EVERYTHING).await.unwrap();
    let mut refused = 0;
    for object in place.objects().into_iter().filter(|object| !object.starts_with("state/") || *object == current) {
        let whole = place.read(&object);
        let step = (whole.len() / FLIPS).max(1);
        let places = (0..whole.len()).step_by(step).chain([whole.len() - 1]);
        for (turn, at) in places.enumerate() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (turn % 8);
            place.write(&object, &flipped);
            let faults = place.verify(Some(&head)).await.faults;
            let named: Vec<_> = faults.iter().map(|fault| fault.path.as_str()).collect();
            assert_eq!(named, [object.as_str()], "bit {} of byte {at} of {object}: {faults:?}", turn % 8);
            if object.ends_with(".parquet") && turn % 4 == 0 {
                refused += answer_or_name(&place, &object, &rows).await;
            }
        }
        place.write(&object, &whole);
    }
    assert!(refused > 10, "only {refused} queries met the damage");
    assert_eq!(place.verify(Some(&head)).await.faults, []);
}

/// A query over a damaged file either does not touch what was changed, or names the file. Returns 1 if it did.
async fn answer_or_name(place: &Place, object: &str, rows: &[Vec<Option<String>>]) -> usize {
    let sql = if object.starts_with("events/") { EVERYTHING } else { "SELECT * FROM samples" };
    match place.query(sql).await {
        Err(Error::Damaged { path, .. }) => {
            assert_eq!(path, object);
            1
        }
        Err(other) => panic!("{object}: {other}"),
        Ok(answered) => {
            assert!(sql != EVERYTHING || answered == rows, "{object} was changed, and so was the answer");
            0
        }
    }
}

#[tokio::test]
async fn a_query_that_meets_damage_names_the_file_and_others_answer() {
    let place = Place::filled().await;
    let object = place.objects().into_iter().find(|object| object.starts_with("events/")).unwrap();
    let mut bytes = place.read(&object);
    bytes[100] ^= 1;
    place.write(&object, &bytes);
    let failed = query(place.store(), "SELECT count(DISTINCT path) FROM events").await.unwrap_err();
    assert!(matches!(&failed, Error::Damaged { path, .. } if *path == object), "{failed}");
    assert_eq!(place.count("SELECT count(*) FROM samples").await, 4 * ROWS);
    let state = place.archive().await.catalog().state.clone().unwrap().path;
    place.write(&state, b"another");
    let failed = query(place.store(), "SELECT count(*) FROM samples").await.unwrap_err();
    assert!(matches!(&failed, Error::Damaged { path, .. } if *path == state), "{failed}");
}

#[tokio::test]
async fn what_is_missing_short_or_long_is_named() {
    let place = Place::filled().await;
    let head = place.verify(None).await.head;
    let current = place.archive().await.catalog().state.clone().unwrap().path;
    let newest = manifest_path(3).to_string();
    for object in place.objects().into_iter().filter(|object| !object.starts_with("state/") || *object == current) {
        let whole = place.read(&object);
        std::fs::remove_file(place.path(&object)).unwrap();
        // Without the newest, what is left is a whole archive: only the head tells, and names the end of the chain.
        let named = if object == newest { manifest_path(2).to_string() } else { object.clone() };
        assert_eq!(place.damaged(Some(&head)).await, [named.as_str()], "without {object}");
        place.write(&object, &whole[..whole.len() - 1]);
        assert_eq!(place.damaged(Some(&head)).await, [object.as_str()], "{object} cut");
        place.write(&object, &[&whole[..], b" "].concat());
        assert_eq!(place.damaged(Some(&head)).await, [object.as_str()], "{object} made longer");
        place.write(&object, &whole);
    }
}

#[tokio::test]
async fn the_newest_manifest_is_held_against_its_files() {
    let place = Place::filled().await;
    std::fs::remove_file(place.path("manifest/00000000000000000003.json")).unwrap();
    let newest = manifest_path(2).to_string();
    let whole = place.read(&newest);
    let text = String::from_utf8(whole.clone()).unwrap();
    let entry: Manifest = serde_json::from_slice(&whole).unwrap();
    let file = &entry.added[0];
    let other = |hash: &str| format!("{}{}", if hash.starts_with('0') { '1' } else { '0' }, &hash[1..]);
    let changes = [
        (file.sha256.clone(), other(&file.sha256)),
        (file.footer_sha256.clone(), other(&file.footer_sha256)),
        (format!("\"rows\": {}", file.rows), format!("\"rows\": {}", file.rows + 1)),
        (format!("\"bytes\": {}", file.bytes), format!("\"bytes\": {}", file.bytes + 8)),
        (format!("\"time_min\": {}", file.time_min), format!("\"time_min\": {}", file.time_min - 1)),
        (format!("\"tick_max\": {}", file.tick_max), format!("\"tick_max\": {}", file.tick_max + 1)),
        ("\"imported\"".to_owned(), "\"imporded\"".to_owned()),
        (entry.previous.clone(), other(&entry.previous)),
    ];
    for (from, to) in changes {
        let changed = text.replacen(&from, &to, 1);
        assert_ne!(changed, text, "{from}");
        place.write(&newest, changed.as_bytes());
        assert_eq!(place.damaged(None).await, [newest.as_str()], "{from} made {to}");
    }
}

#[tokio::test]
async fn a_chain_that_was_tampered_with_is_named_where_it_was() {
    let place = Place::filled().await;
    let paths = [1, 2, 3].map(|number| manifest_path(number).to_string());
    let whole = [0, 1, 2].map(|at| place.read(&paths[at]));
    // Two exchanged: each says that it is the other.
    place.write(&paths[0], &whole[1]);
    place.write(&paths[1], &whole[0]);
    assert_eq!(place.damaged(None).await, &paths[..2]);
    place.write(&paths[0], &whole[0]);
    // Re-encoded with other content, as one who knows the format would.
    let mut forged: Manifest = serde_json::from_slice(&whole[1]).unwrap();
    let hidden = forged.added.remove(0);
    place.write(&paths[1], &forged.encode());
    let verified = place.verify(None).await;
    assert_eq!(verified.faults.iter().map(|fault| fault.path.as_str()).collect::<Vec<_>>(), [&paths[1]]);
    assert_eq!((verified.files, verified.unreferenced), (3, 2), "{hidden:?}");
    // The same, and every later link forged as well: only the head that somebody kept can tell.
    let mut last: Manifest = serde_json::from_slice(&whole[2]).unwrap();
    last.previous = sha256_hex(&forged.encode());
    place.write(&paths[2], &last.encode());
    assert_eq!(place.damaged(None).await, Vec::<String>::new());
    assert_eq!(place.damaged(Some(&sha256_hex(&whole[2]))).await, [paths[2].as_str()]);
    // One removed, with a file that it may have removed: both are told.
    for (path, whole) in paths.iter().zip(&whole) {
        place.write(path, whole);
    }
    std::fs::remove_file(place.path(&paths[1])).unwrap();
    let first: Manifest = serde_json::from_slice(&whole[0]).unwrap();
    std::fs::remove_file(place.path(&first.added[0].path)).unwrap();
    let faults = place.verify(None).await.faults;
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(faults[0].path == paths[1] && faults[0].why.contains(&first.added[0].path), "{faults:?}");
}

#[tokio::test]
async fn a_snapshot_must_be_what_was_folded_and_ends_the_doubt() {
    let place = Place::filled().await;
    let archive = place.archive().await;
    while archive.catalog().number < 65 {
        place.hold(&archive, &format!("case-{}", archive.catalog().number)).await;
    }
    assert_eq!(place.verify(None).await.faults, []);
    // Behind a missing manifest the snapshot is what is known: all files are found, none is in doubt.
    let second = place.read("manifest/00000000000000000002.json");
    std::fs::remove_file(place.path("manifest/00000000000000000002.json")).unwrap();
    let verified = place.verify(None).await;
    assert_eq!((verified.faults.len(), verified.files), (1, 4), "{:?}", verified.faults);
    place.write("manifest/00000000000000000002.json", &second);
    // A snapshot that hides a file, with the links behind it forged.
    let (at, behind) = (manifest_path(64).to_string(), manifest_path(65).to_string());
    let mut forged: Manifest = serde_json::from_slice(&place.read(&at)).unwrap();
    forged.snapshot.as_mut().unwrap().files.pop();
    place.write(&at, &forged.encode());
    let mut last: Manifest = serde_json::from_slice(&place.read(&behind)).unwrap();
    last.previous = sha256_hex(&forged.encode());
    place.write(&behind, &last.encode());
    assert_eq!(place.damaged(None).await, [at.as_str()]);
}

const EVERYTHING: &str = "SELECT * FROM events ORDER BY event_id";
/// Bits that are flipped in each object, about.
const FLIPS: usize = 16;
