//! Cuts a stream of bytes into frames and control messages, whatever pieces it comes in.
//!
//! Promise: memory is bounded by the longest frame and one piece. What does not check is named: a frame of good length is left out
//! and reported with its key, anything else ends the stream, because nobody knows where the next frame begins.

use std::num::NonZeroU32;

use weir_schema::{Epoch, Frame, HEADER_BYTES, Lane, Seq};

use crate::error::ProtocolError;
use crate::message::{FrameKey, MAGIC, Message, RefusedReason};

/// Bytes that came and are no whole frame or message yet.
#[derive(Debug)]
pub struct FrameStream {
    frame_bytes_max: usize,
    buffer: Vec<u8>,
    /// Where the next frame or message begins.
    start: usize,
    broken: Option<ProtocolError>,
}

/// One thing on the stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Unit {
    /// A frame whose checksum is good.
    Frame(Frame),
    /// A control message.
    Message(Message),
    /// A frame of good length that does not check, left out.
    BadFrame {
        /// Which, as far as its head can be believed.
        key: Option<FrameKey>,
        /// Its length.
        bytes: usize,
        /// What to tell its sender.
        refusal: RefusedReason,
        /// What is wrong with it.
        error: ProtocolError,
    },
}

impl FrameStream {
    /// A stream whose frames have at most `frame_bytes_max` bytes, head included.
    pub fn new(frame_bytes_max: usize) -> Self {
        Self { frame_bytes_max, buffer: Vec::new(), start: 0, broken: None }
    }

    /// Takes the next bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
            if self.buffer.capacity() > IDLE_BYTES_MAX {
                self.buffer = Vec::new();
            }
        } else if self.start >= self.buffer.len() / 2 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame or message, if it is there. After an error it is the same error again.
    pub fn next_unit(&mut self) -> Result<Option<Unit>, ProtocolError> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        match self.cut() {
            Ok(Some((unit, length))) => {
                self.start += length;
                Ok(Some(unit))
            }
            Ok(None) => Ok(None),
            Err(error) => {
                self.broken = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Whether a frame or message has begun and is not whole.
    pub fn is_inside(&self) -> bool {
        self.start < self.buffer.len()
    }

    /// The length of the frame that has begun, if it is a long one: whoever reads on needs memory for it.
    pub fn large(&self) -> Option<NonZeroU32> {
        let rest = &self.buffer[self.start..];
        let length = rest.starts_with(&FRAME_MAGIC).then(|| frame_length(rest)).flatten()?;
        let length = NonZeroU32::new(u32::try_from(length).ok()?)?;
        (length.get() as usize > LARGE_BYTES_MIN).then_some(length)
    }

    /// Says whether the stream may end here.
    pub fn end(&self) -> Result<(), ProtocolError> {
        let rest = &self.buffer[self.start..];
        if rest.is_empty() {
            return Ok(());
        }
        let want = if rest.starts_with(&MAGIC) { Message::length(rest)? } else { frame_length(rest) };
        Err(ProtocolError::Truncated { have: rest.len(), want: want.unwrap_or(0) })
    }

    fn cut(&self) -> Result<Option<(Unit, usize)>, ProtocolError> {
        let rest = &self.buffer[self.start..];
        let Some(magic) = rest.first_chunk::<4>() else { return begins_well(rest).map(|()| None) };
        match *magic {
            MAGIC => {
                let Some(bytes) = Message::length(rest)?.and_then(|length| rest.get(..length)) else { return Ok(None) };
                Ok(Some((Unit::Message(Message::decode(bytes)?), bytes.len())))
            }
            FRAME_MAGIC => {
                let Some(length) = frame_length(rest) else { return Ok(None) };
                if length > self.frame_bytes_max {
                    let (bytes, bytes_max) = (length as u64, self.frame_bytes_max as u64);
                    return Err(ProtocolError::TooLong { what: "frame", bytes, bytes_max });
                }
                let Some(bytes) = rest.get(..length) else { return Ok(None) };
                Ok(Some((frame(bytes), length)))
            }
            other => Err(ProtocolError::Garbage(other)),
        }
    }
}

/// Whether fewer than four bytes can become a frame or a message: garbage is found at its first byte.
fn begins_well(rest: &[u8]) -> Result<(), ProtocolError> {
    if MAGIC.starts_with(rest) || FRAME_MAGIC.starts_with(rest) {
        return Ok(());
    }
    let mut found = [0; 4];
    found[..rest.len()].copy_from_slice(rest);
    Err(ProtocolError::Garbage(found))
}

/// The length of the frame that `bytes` begin, once its head is there. Every version of a frame has its lengths at the same place.
fn frame_length(bytes: &[u8]) -> Option<usize> {
    let head = bytes.first_chunk::<HEADER_BYTES>()?;
    Some(HEADER_BYTES + u32_at(head, 32) as usize)
}

fn frame(bytes: &[u8]) -> Unit {
    let error = match Frame::parse(bytes) {
        Ok(frame) => return Unit::Frame(frame),
        Err(error) => error,
    };
    let refusal = match error {
        weir_schema::Error::Version { .. } => RefusedReason::Version,
        weir_schema::Error::Limit { .. } => RefusedReason::Limit,
        _ => RefusedReason::Malformed,
    };
    Unit::BadFrame { key: key_of(bytes), bytes: bytes.len(), refusal, error: ProtocolError::Frame(error.to_string()) }
}

fn key_of(bytes: &[u8]) -> Option<FrameKey> {
    let head = bytes.first_chunk::<HEADER_BYTES>()?;
    let u64_at = |at| u64::from(u32_at(head, at)) | u64::from(u32_at(head, at + 4)) << 32;
    let lane = Lane::from_u8(head[7])?;
    Some(FrameKey { epoch: Epoch(u64_at(8)), lane, first_seq: Seq(u64_at(16)), count: u32_at(head, 24) })
}

fn u32_at(head: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
}

/// How every frame begins.
const FRAME_MAGIC: [u8; 4] = *b"WEIR";

/// A frame is long from here on; shorter ones are part of what a connection costs.
const LARGE_BYTES_MIN: usize = 64 * 1024;

/// What an idle connection keeps of its buffer.
const IDLE_BYTES_MAX: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use weir_schema::{BatchBuilder, Event, Host};

    use super::*;
    use crate::message::Bye;

    fn a_frame(first_seq: u64) -> Frame {
        let mut builder = BatchBuilder::new(Arc::new(Host::default()), Epoch(1), Lane::Security, Seq(first_seq));
        builder.push(&Event::default()).unwrap();
        builder.finish().unwrap()
    }

    fn all(stream: &mut FrameStream) -> Vec<Unit> {
        std::iter::from_fn(|| stream.next_unit().unwrap()).collect()
    }

    #[test]
    fn a_bad_frame_is_left_out_and_the_next_one_found() {
        let (mut bad, good) = (a_frame(7), a_frame(8));
        bad.bytes[HEADER_BYTES] ^= 1;
        let mut stream = FrameStream::new(1 << 20);
        stream.push(&bad.bytes);
        stream.push(&good.bytes);
        let units = all(&mut stream);
        let key = FrameKey { epoch: Epoch(1), lane: Lane::Security, first_seq: Seq(7), count: 1 };
        assert!(matches!(&units[0], Unit::BadFrame { key: Some(found), refusal: RefusedReason::Malformed, .. } if *found == key));
        assert_eq!(units[1..], [Unit::Frame(good)]);
        let mut newer = a_frame(9);
        newer.bytes[4] = 99;
        stream.push(&newer.bytes);
        assert!(matches!(all(&mut stream)[..], [Unit::BadFrame { refusal: RefusedReason::Version, .. }]));
        assert_eq!(stream.end(), Ok(()));
    }

    #[test]
    fn garbage_is_named_at_once_and_for_ever() {
        let check = |bytes: &[u8], label: &str| {
            let mut stream = FrameStream::new(1000);
            stream.push(bytes);
            let error = stream.next_unit().unwrap_err();
            assert_eq!(error.label(), label, "{error}");
            stream.push(&a_frame(0).bytes);
            assert_eq!(stream.next_unit().unwrap_err(), error);
        };
        check(b"G", "garbage");
        check(b"GET / HTTP/1.1\r\n", "garbage");
        check(b"WCT?", "garbage");
        check(&[0; 64], "garbage");
        check(b"WCTL\xff\xff\xff\xff", "too_long");
        check(b"WCTL\x01\0\0\0\0\0\0\0\x07", "control");
        let mut long = a_frame(0).bytes;
        long[32..36].copy_from_slice(&u32::MAX.to_le_bytes());
        check(&long, "too_long");
    }

    #[test]
    fn a_cut_stream_says_how_much_is_missing() {
        let frame = a_frame(0);
        let mut stream = FrameStream::new(1 << 20);
        stream.push(&frame.bytes[..frame.bytes.len() - 1]);
        assert_eq!(stream.next_unit(), Ok(None));
        assert!(stream.is_inside());
        let (have, want) = (frame.bytes.len() - 1, frame.bytes.len());
        assert_eq!(stream.end(), Err(ProtocolError::Truncated { have, want }));
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(order in proptest::collection::vec(any::<bool>(), 1..20), piece in 1usize..200) {
            let mut bytes = Vec::new();
            let mut sent = Vec::new();
            for (i, is_frame) in order.into_iter().enumerate() {
                let unit = if is_frame { Unit::Frame(a_frame(i as u64)) } else { Unit::Message(Message::Bye(Bye::Done)) };
                match &unit {
                    Unit::Frame(frame) => bytes.extend_from_slice(&frame.bytes),
                    Unit::Message(message) => bytes.extend_from_slice(&message.encode()),
                    Unit::BadFrame { .. } => unreachable!(),
                }
                sent.push(unit);
            }
            let mut stream = FrameStream::new(1 << 20);
            let mut came = Vec::new();
            for piece in bytes.chunks(piece) {
                stream.push(piece);
                came.extend(all(&mut stream));
            }
            prop_assert_eq!(came, sent);
            prop_assert_eq!(stream.end(), Ok(()));
        }

        #[test]
        fn hostile_bytes_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..300), head in 0usize..3, flips in proptest::collection::vec((0usize..500, any::<u8>()), 0..5),
        ) {
            let mut stream = FrameStream::new(4096);
            let mut all = match head { 0 => Vec::new(), 1 => a_frame(1).bytes, _ => Message::Bye(Bye::Done).encode() };
            all.extend_from_slice(&bytes);
            for (at, value) in flips {
                if let Some(byte) = all.get_mut(at) { *byte = value; }
            }
            stream.push(&all);
            while let Ok(Some(_)) = stream.next_unit() {}
            let _ = stream.end();
        }
    }
}
