//! What can be wrong with an event, a batch or a frame. Each variant is something a caller may act on.

/// Why bytes, text or an event were not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name has a character or a length that is not allowed.
    #[error("{0:?} is no name: use 1 to 128 of A-Z a-z 0-9 . _ -")]
    Name(String),
    /// The bytes do not begin like a frame: the sender speaks something else.
    #[error("not a frame: it begins with {0:02x?} instead of \"WEIR\"")]
    Magic([u8; 4]),
    /// The frame, record or table is of a version or codec that this binary does not know.
    #[error("{what} has version {found}, this binary knows up to {known}")]
    Version {
        /// What is too new.
        what: &'static str,
        /// Its version.
        found: u16,
        /// The newest version known here.
        known: u16,
    },
    /// Something is larger than it may be.
    #[error("{what} is {found}, at most {max} is allowed")]
    Limit {
        /// What is too large.
        what: &'static str,
        /// How large it is.
        found: u64,
        /// How large it may be.
        max: u64,
    },
    /// The bytes end before the frame or record does.
    #[error("{what} is cut off: {found} bytes of {expected}")]
    CutOff {
        /// What is cut off.
        what: &'static str,
        /// Bytes there.
        found: u64,
        /// Bytes expected.
        expected: u64,
    },
    /// The checksum does not match: the bytes changed on their way or on disk.
    #[error("frame checksum is {found:08x} but its bytes give {computed:08x}")]
    Checksum {
        /// Checksum in the header.
        found: u32,
        /// Checksum of the bytes.
        computed: u32,
    },
    /// The header contradicts itself.
    #[error("frame header is wrong: {0}")]
    Header(&'static str),
    /// The body cannot be decompressed to what its header says.
    #[error("frame body does not decompress to {0} bytes")]
    Decompress(u32),
    /// The body is not what a builder writes: a faulty or hostile producer.
    #[error("frame body is wrong: {0}")]
    Body(&'static str),
    /// There is nothing to put into a frame.
    #[error("the batch is empty")]
    Empty,
    /// A stamped record is not what a node writes.
    #[error("stamped record is wrong: {0}")]
    Stamped(&'static str),
    /// A line of JSON is not an event.
    #[error("not an event: {0}")]
    Line(String),
}

/// Why a builder did not take an event. The event is as it was; nothing is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The batch has no room: finish it and push again.
    #[error("the batch is full")]
    Full,
    /// The event's kind travels in another lane.
    #[error("the event belongs to another lane")]
    WrongLane,
}
