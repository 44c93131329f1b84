//! What can go wrong between two ends of the wire. Each variant is something an operator or a caller may act on.

use std::path::PathBuf;

/// Why a certificate, a session or a socket was not accepted or could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A certificate says nothing usable about who its holder is.
    #[error("certificate is no identity: {0}")]
    Identity(#[from] IdentityError),
    /// A file could not be read or written.
    #[error("could not {doing} {path:?}: {source}{cure}")]
    File {
        /// The attempt, as a verb.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
        /// What to do about it, or nothing.
        cure: &'static str,
    },
    /// A file exists and would be overwritten.
    #[error("{path:?} exists already and is not overwritten: {cure}")]
    Exists {
        /// The file.
        path: PathBuf,
        /// What to do about it.
        cure: &'static str,
    },
    /// A file was read but its content is not what it must be.
    #[error("{path:?} {problem}: {cure}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        cure: &'static str,
    },
    /// A certificate could not be made.
    #[error("could not make a certificate for {subject}: {reason}")]
    Issue {
        /// Whom the certificate was for.
        subject: String,
        /// What the library said.
        reason: String,
    },
    /// A trust domain, a name or a validity was asked for that no certificate may carry.
    #[error("{what} {value:?} cannot stand in a certificate: {cure}")]
    Asked {
        /// What was asked for.
        what: &'static str,
        /// The value given.
        value: String,
        /// What to do about it.
        cure: &'static str,
    },
    /// A signing request is damaged, or its key is of a kind that is not taken.
    #[error("the signing request is not taken: {problem}")]
    Request {
        /// What is wrong with it.
        problem: String,
    },
    /// TLS could not be set up from the files.
    #[error("could not set up TLS from {path:?}: {reason}")]
    Tls {
        /// The file at fault.
        path: PathBuf,
        /// What the library said.
        reason: String,
    },
    /// A UDP socket could not be opened.
    #[error("could not listen on {address}/udp: {source}")]
    Bind {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The TCP port for agents could not be opened.
    #[error("could not listen on {address}/tcp: {source} (cure: another `listen.tcp`, or \"off\")")]
    BindTcp {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A node refused to enrol the agent, and no other would say otherwise.
    #[error("could not enrol at {node}: {reason}")]
    NotEnrolled {
        /// The node that was asked.
        node: String,
        /// Why not, and the cure.
        reason: &'static str,
    },
    /// The client has no node to connect to.
    #[error("no node to connect to: set `nodes` to at least one \"host:port\"")]
    NoNodes,
    /// A frame is longer than the client may ever hold.
    #[error("frame of {bytes} bytes can never be sent: at most {bytes_max} bytes fit")]
    FrameTooLarge {
        /// The frame's length.
        bytes: u64,
        /// The most that is taken.
        bytes_max: u64,
    },
    /// A frame was sent whose key is held already, or whose seqs go beyond all numbers.
    #[error("frame {key:?} cannot be sent: its key is held already or is no key")]
    FrameKey {
        /// Its key.
        key: crate::message::FrameKey,
    },
    /// The client was closed.
    #[error("the client is closed")]
    Closed,
    /// Frames were still un-acked when the deadline of a flush passed.
    #[error("{frames} frames ({bytes} bytes) are still un-acked after the deadline")]
    NotFlushed {
        /// How many frames.
        frames: u64,
        /// How many bytes.
        bytes: u64,
    },
}

/// Why a certificate's names are no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The bytes are no X.509 certificate.
    #[error("it is no X.509 certificate ({0})")]
    Certificate(String),
    /// Exactly one URI name is wanted.
    #[error("it has {0} URI names, exactly one is wanted (issue it with `weir ca issue`)")]
    Names(usize),
    /// The URI name is not of the two forms.
    #[error(
        "its URI name {0:?} is neither spiffe://DOMAIN/tenant/T/region/R/agent/A nor spiffe://DOMAIN/node/ID (issue it with `weir ca issue`)"
    )]
    Form(String),
    /// An agent's certificate where a node's is wanted, or the reverse.
    #[error("it is {found}'s, {wanted}'s is wanted")]
    Role {
        /// Whose it is.
        found: &'static str,
        /// Whose is wanted.
        wanted: &'static str,
    },
    /// The agent is revoked.
    #[error("agent {agent} is revoked")]
    Revoked {
        /// `TENANT/REGION/AGENT`.
        agent: String,
    },
    /// The agent is of a region that this node does not take.
    #[error("agent {agent} is of a region that this node does not take (it takes {taken})")]
    Region {
        /// `TENANT/REGION/AGENT`.
        agent: String,
        /// The regions that are taken.
        taken: String,
    },
    /// The certificate is of another trust domain.
    #[error("its trust domain is {found:?}, ours is {ours:?}")]
    TrustDomain {
        /// The domain in the certificate.
        found: String,
        /// The domain of our own certificate.
        ours: String,
    },
}

/// What a peer did that the protocol does not allow. Counted under [`ProtocolError::label`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// Bytes that begin neither a frame nor a control message.
    #[error("bytes {0:02x?} begin no frame and no control message")]
    Garbage([u8; 4]),
    /// The stream ended inside a frame or a message.
    #[error("stream ended {have} bytes into a frame or message of {want} bytes")]
    Truncated {
        /// Bytes that came.
        have: usize,
        /// Bytes announced; 0 when the head had not come yet.
        want: usize,
    },
    /// A length above the limit.
    #[error("{what} of {bytes} bytes, at most {bytes_max} are taken")]
    TooLong {
        /// A frame or a control message.
        what: &'static str,
        /// The length announced.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// A control message that does not check or does not decode.
    #[error("control message does not decode: {0}")]
    Control(String),
    /// A frame that does not check.
    #[error("frame is not valid: {0}")]
    Frame(String),
    /// A message that has no place where it came.
    #[error("{0} is not expected here")]
    Unexpected(&'static str),
    /// More bytes than credit was given for.
    #[error("frame goes {over} bytes beyond the credit")]
    Credit {
        /// Bytes beyond the credit.
        over: u64,
    },
    /// More (epoch, lane) pairs than a session may have.
    #[error("more than {0} lanes in one session")]
    Lanes(usize),
    /// No protocol version in common.
    #[error("peer speaks versions {min} to {max}, we speak {ours}", ours = crate::message::PROTOCOL_VERSION)]
    Version {
        /// The lowest the peer speaks.
        min: u16,
        /// The highest the peer speaks.
        max: u16,
    },
    /// The node says another name than its certificate.
    #[error("node calls itself {said:?}, its certificate says {certified:?}")]
    NodeName {
        /// In its Welcome.
        said: String,
        /// In its certificate.
        certified: String,
    },
    /// The peer took too long.
    #[error("{0} did not come in time")]
    Slow(&'static str),
}

impl ProtocolError {
    /// A short fixed word for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Garbage(_) => "garbage",
            Self::Truncated { .. } => "truncated",
            Self::TooLong { .. } => "too_long",
            Self::Control(_) => "control",
            Self::Frame(_) => "frame",
            Self::Unexpected(_) => "unexpected",
            Self::Credit { .. } => "credit",
            Self::Lanes(_) => "lanes",
            Self::Version { .. } => "version",
            Self::NodeName { .. } => "node_name",
            Self::Slow(_) => "slow",
        }
    }
}
