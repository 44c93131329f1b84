//! Bytes from anybody: they are refused or decoded, never a panic, never memory without bound.
//!
//! Random tests run few cases by default; `WEIR_CASES=100000 cargo test -p weir-schema --release --test hostile` runs long.

#![allow(clippy::unwrap_used)] // helpers outside of `#[test]` functions

mod support;

use proptest::prelude::*;
use support::{body_of, config, decode, events, frame_of, host, kinds_of, sealed, section, with_body};
use weir_schema::{Batch, Column, Decoder, Error, Event, Frame, Host, Kind, Lane, StampedFrame, frame_len, limits};

/// One random damage to bytes.
#[derive(Debug, Clone)]
enum Damage {
    Set(usize, u8),
    Flip(usize, u8),
    Cut(usize),
    Insert(usize, Vec<u8>),
    Copy { from: usize, to: usize, len: usize },
    Long(usize, u32),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<usize>;
    let edge = prop_oneof![Just(0u32), Just(1), Just(u32::MAX), Just(65_536), Just(1 << 20), any::<u32>()];
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        (at(), 0u8..8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        at().prop_map(Damage::Cut),
        (at(), proptest::collection::vec(any::<u8>(), 0..20)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        (at(), at(), 0usize..64).prop_map(|(from, to, len)| Damage::Copy { from, to, len }),
        (at(), edge).prop_map(|(at, value)| Damage::Long(at, value)),
    ]
}

fn damaged(mut bytes: Vec<u8>, damages: &[Damage]) -> Vec<u8> {
    for damage in damages {
        if bytes.is_empty() {
            return bytes;
        }
        let len = bytes.len();
        match damage {
            Damage::Set(at, byte) => bytes[at % len] = *byte,
            Damage::Flip(at, bit) => bytes[at % len] ^= 1 << bit,
            Damage::Cut(at) => bytes.truncate(at % len),
            Damage::Insert(at, new) => _ = bytes.splice(at % len..at % len, new.iter().copied()),
            Damage::Copy { from, to, len: count } => {
                let piece: Vec<u8> = bytes[from % len..].iter().take(*count).copied().collect();
                bytes.splice(to % len..to % len, piece);
            }
            Damage::Long(at, value) => {
                let at = at % len;
                bytes.splice(at..(at + 4).min(len), value.to_le_bytes());
            }
        }
    }
    bytes
}

/// Uses everything that a consumer may ask of a batch.
fn use_up(batch: &Batch) {
    assert_eq!(batch.rows() as u64 + batch.rows_skipped(), u64::from(batch.header.count));
    for section in &batch.sections {
        for column in Column::ALL {
            if let Some(codes) = batch.codes(section, *column) {
                assert_eq!(codes.len(), section.rows());
                assert!(codes.iter().all(|code| (*code as usize) < batch.strings.entries()));
            }
            if let Some(ints) = batch.ints(section, *column) {
                assert_eq!(ints.values.len(), section.rows());
            }
        }
    }
    assert_eq!(batch.process_ids("t").len(), batch.processes.rows());
    assert_eq!(batch.parent_ids("t").len(), batch.processes.rows());
    assert_eq!(batch.events().len(), batch.rows());
}

fn try_bytes(bytes: &[u8]) {
    _ = frame_len(bytes);
    if let Ok(frame) = Frame::parse(bytes)
        && let Ok(batch) = decode(&frame)
    {
        use_up(&batch);
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn random_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        try_bytes(&bytes);
        _ = StampedFrame::decode(&bytes);
        let mut framed = b"WEIR\x01\0\0\0".to_vec();
        framed.extend_from_slice(&bytes);
        try_bytes(&framed);
        if framed.len() >= 64 { try_bytes(&sealed(framed)); }
    }

    #[test]
    fn damaged_bodies_are_refused_or_decoded(host in host(), pushed in events(kinds_of(Lane::Network), 12),
        damages in proptest::collection::vec(damage(), 1..4)) {
        let frame = frame_of(&host, Lane::Network, &pushed);
        let body = damaged(body_of(&frame), &damages);
        for codec in [0, 1] {
            try_bytes(&with_body(&frame, &body, pushed.len() as u32, codec));
        }
    }

    #[test]
    fn damaged_frames_are_refused_or_decoded(host in host(), pushed in events(kinds_of(Lane::Security), 12),
        damages in proptest::collection::vec(damage(), 1..4)) {
        let frame = frame_of(&host, Lane::Security, &pushed);
        let bytes = damaged(frame.bytes, &damages);
        try_bytes(&bytes);
        if bytes.len() >= 64 { try_bytes(&sealed(bytes)); }
    }
}

fn small() -> Frame {
    frame_of(&Host::default(), Lane::Sample, &[Event { kind: Kind::Sample, ..Event::default() }])
}

fn refused(bytes: &[u8]) -> String {
    let error = match Frame::parse(bytes) {
        Ok(frame) => decode(&frame).map(|_| ()).unwrap_err(),
        Err(error) => error,
    };
    error.to_string()
}

/// `small()` with four bytes of the header replaced.
fn with_header(at: usize, value: u32) -> Vec<u8> {
    let mut bytes = small().bytes;
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    sealed(bytes)
}

#[test]
fn every_limit_of_the_header_has_its_error() {
    let long = limits::FRAME_BYTES_MAX as u32;
    let cases = [
        (with_header(0, 0x2052_4157), "not a frame: it begins with [57, 41, 52, 20] instead of \"WEIR\""),
        (with_header(4, 2), "frame has version 2, this binary knows up to 1"),
        (with_header(4, 0x0305_0001), "frame codec has version 5, this binary knows up to 1"),
        (with_header(4, 0x0901_0001), "frame header is wrong: its lane is unknown"),
        (with_header(24, 0), "frame header is wrong: it has no events"),
        (with_header(24, 65_537), "number of events in a frame is 65537, at most 65536 is allowed"),
        (with_header(28, (8 << 20) + 1), "frame length after decompression is 8388609, at most 8388608 is allowed"),
        (with_header(32, long), "frame length is 1048640, at most 1048576 is allowed"),
    ];
    for (bytes, expected) in cases {
        assert_eq!(refused(&bytes), expected);
        assert!(frame_len(&bytes).is_err());
    }
    assert!(refused(&with_header(28, 1 << 20)).starts_with("compression ratio of a frame is "));
    assert!(refused(&with_header(32, 4_000)).starts_with("frame is cut off"));
    assert!(refused(&small().bytes[..70]).starts_with("frame is cut off"));
    assert!(refused(&with_header(28, small().header.raw_len + 1)).contains("frame body does not decompress"));
    let mut flipped = small().bytes;
    flipped[66] ^= 1;
    assert!(refused(&flipped).starts_with("frame checksum is "));
    let mut trailing = small().bytes;
    trailing.push(0);
    assert_eq!(refused(&trailing), "frame header is wrong: there are bytes after its end");
    assert_eq!(frame_len(b"WEI"), Ok(None));
    assert_eq!(frame_len(b"GET "), Err(Error::Magic(*b"GET ")));
}

#[test]
fn a_decompression_bomb_stops_at_what_the_header_says() {
    let zeros = vec![0u8; 64 << 20];
    let bomb = zstd::bulk::compress(&zeros, 1).unwrap();
    let mut bytes = small().bytes[..64].to_vec();
    bytes[6] = 1;
    bytes[28..32].copy_from_slice(&(bomb.len() as u32 * 60).to_le_bytes());
    bytes[32..36].copy_from_slice(&(bomb.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&bomb);
    assert!(refused(&sealed(bytes)).contains("does not decompress to"));
}

/// The four sections that every body begins with, the strings given.
fn lead(strings: &[u8]) -> Vec<u8> {
    let body = body_of(&small());
    let host_end = 12 + u32::from_le_bytes([body[8], body[9], body[10], body[11]]) as usize;
    [&body[..host_end], strings, &section(0xfff2, 1, 0, &[0]), &section(0xfff3, 1, 0, &[0])].concat()
}

fn no_strings() -> Vec<u8> {
    section(0xfff1, 1, 0, &[0, 0, 0, 0, 0, 0, 0, 0])
}

/// A column in postcard: number, form, width, first, base (zigzag), bits, planes.
fn column(number: u8, form: u8, width: u8, base: i32, valid: &[u8], planes: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number, form, width, 0];
    let mut zigzag = ((base << 1) ^ (base >> 31)) as u32;
    while zigzag >= 0x80 {
        bytes.push(zigzag as u8 | 0x80);
        zigzag >>= 7;
    }
    bytes.push(zigzag as u8);
    for piece in [valid, planes] {
        bytes.push(piece.len() as u8);
        bytes.extend_from_slice(piece);
    }
    bytes
}

fn sample_body(rows: u32, columns: &[Vec<u8>]) -> Vec<u8> {
    let content = [&[columns.len() as u8][..], &columns.concat()].concat();
    [lead(&no_strings()), section(Kind::Sample as u16, 1, rows, &content)].concat()
}

#[test]
fn contradictions_in_a_body_have_their_errors() {
    let time = || column(1, 0, 0, 5, &[], &[]);
    let cases: Vec<(&str, u32, Vec<u8>)> = vec![
        ("", 3, sample_body(3, &[time(), column(49, 0, 1, 0, &[], &[1, 2, 3])])),
        ("an event has no time", 3, sample_body(3, &[column(49, 0, 0, 1, &[], &[])])),
        ("an event has no time", 3, sample_body(3, &[column(1, 0, 1, 0, &[1], &[7])])),
        ("columns are out of order", 1, sample_body(1, &[column(49, 0, 0, 1, &[], &[]), time()])),
        ("columns are out of order", 1, sample_body(1, &[time(), time()])),
        ("a column's form is unknown", 1, sample_body(1, &[time(), column(49, 7, 0, 1, &[], &[])])),
        ("a column's bytes do not match its rows", 3, sample_body(3, &[time(), column(49, 0, 1, 0, &[], &[1, 2])])),
        ("a column's bytes do not match its rows", 1, sample_body(1, &[time(), column(49, 0, 9, 0, &[], &[0; 9])])),
        ("a column's bits do not match its rows", 3, sample_body(3, &[time(), column(49, 0, 0, 0, &[0xff], &[])])),
        ("a column's bits do not match its rows", 9, sample_body(9, &[time(), column(49, 0, 0, 0, &[0xff], &[])])),
        ("a code is beyond its table", 2, sample_body(2, &[time(), column(6, 0, 1, 0, &[], &[0, 1])])),
        ("a code is beyond its table", 1, sample_body(1, &[time(), column(2, 0, 1, 0, &[], &[1])])),
        ("packed as no builder packs it", 1, sample_body(1, &[time(), column(6, 0, 0, -1, &[], &[])])),
        ("packed as no builder packs it", 1, sample_body(1, &[time(), column(6, 0, 0, 1, &[], &[])])),
        ("packed as no builder packs it", 2, sample_body(2, &[time(), column(6, 1, 0, 0, &[], &[])])),
        ("does not belong", 1, sample_body(1, &[time(), column(100, 0, 0, 0, &[], &[])])),
        ("do not add up", 2, sample_body(1, &[time()])),
        ("do not add up", 1, sample_body(2, &[time()])),
        ("do not add up", 1, sample_body(0, &[time()])),
        ("a lane where it does not belong", 1, [lead(&no_strings()), section(Kind::Exec as u16, 1, 1, &[0])].concat()),
        ("a section's head is cut off", 1, lead(&no_strings())[..5].to_vec()),
        ("a section is longer than the body", 1, lead(&no_strings())[..14].to_vec()),
        ("do not come first", 1, section(Kind::Sample as u16, 1, 1, &[0])),
        ("table of a batch has version 2", 1, lead(&section(0xfff1, 2, 0, &[0; 8]))),
        ("the strings are malformed", 1, lead(&section(0xfff1, 1, 0, &[0; 3]))),
        ("number of strings is 65536", 1, lead(&section(0xfff1, 1, 65_536, &[0; 8]))),
        ("do not add up to their text", 1, lead(&section(0xfff1, 1, 0, &[0, 0, 0, 0, 0, 0, 0, 1, b'x']))),
        ("a string's end is", 1, lead(&section(0xfff1, 1, 2, &[0, 0, 0, 0, 0x80, 0x40, 0, 0, 1, b'x']))),
        ("a string's end is", 1, lead(&section(0xfff1, 1, 2, &[0, 0, 0, 0, 2, 0, 0, 2, 0xc3, 0xa4]))),
        ("not UTF-8", 1, lead(&section(0xfff1, 1, 1, &[0, 0, 0, 0, 2, 0, 0, 1, 0xff]))),
        ("packed as no builder packs it", 1, lead(&section(0xfff1, 1, 1, &[0, 0, 0, 0, 0x82, 0x40, 0, 0, 0]))),
    ];
    for (expected, count, body) in cases {
        let bytes = with_body(&small(), &body, count, 0);
        if expected.is_empty() {
            use_up(&decode(&Frame::parse(&bytes).unwrap()).unwrap());
        } else {
            let error = refused(&bytes);
            assert!(error.contains(expected), "{expected:?} expected, {error:?} found");
        }
    }
}

#[test]
fn constant_columns_cannot_ask_for_more_cells_than_allowed() {
    let columns: Vec<_> =
        [1].into_iter().chain(4..=28).chain(32..=36).chain(48..=59).map(|n| column(n, 0, 0, 0, &[], &[])).collect();
    let bytes = with_body(&small(), &sample_body(65_536, &columns), 65_536, 0);
    assert_eq!(refused(&bytes), "number of cells is 2162688, at most 2097152 is allowed");
}

#[test]
fn one_decoder_survives_bad_frames() {
    let mut decoder = Decoder::new();
    let good = small();
    let mut bad = good.bytes.clone();
    bad.truncate(bad.len() - 3);
    for _ in 0..3 {
        assert!(decoder.decode(good.header, &bad).is_err());
        assert_eq!(decoder.decode(good.header, &good.bytes).map(|batch| batch.rows()), Ok(1));
    }
}
