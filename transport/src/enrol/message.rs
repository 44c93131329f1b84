//! The two messages of enrolment and renewal.
//!
//! ```text
//! message = "WENR" | version u8 | length u32 LE | length bytes: postcard of `Ask` or `Result<Grant, Refusal>`
//! ```
//!
//! A new version may change all but the head. Promise: whatever bytes come, a message of at most [`ASK_BYTES_MAX`] or
//! [`ANSWER_BYTES_MAX`] bytes is read, or an error.

use serde::{Deserialize, Serialize};

use super::token::{Secret, TokenId};
use crate::ca::REQUEST_BYTES_MAX;
use crate::error::ProtocolError;

/// What an agent wants signed, and by which right: a token's, or else its present certificate's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ask {
    pub(crate) token: Option<(TokenId, Secret)>,
    /// PKCS #10, DER.
    pub(crate) request: Vec<u8>,
}

/// What a node gives or why it does not.
pub type Answer = Result<Grant, Refusal>;

/// A certificate, and whom to trust from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The agent's certificate, DER.
    pub certificate: Vec<u8>,
    /// The fleet's authorities, DER: two while one takes over from the other.
    pub roots: Vec<Vec<u8>>,
}

/// Why there is no certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Refusal {
    /// No such token, or its secret is wrong.
    Unknown,
    /// The token made an agent already.
    Used,
    /// The token's time is over.
    Expired,
    /// The token, or the certificate, is of a region that this node does not take.
    Region,
    /// The agent is revoked.
    Revoked,
    /// The signing request is damaged or asks with a key that is not taken.
    Request,
    /// Neither a token nor a certificate was shown.
    Nothing,
    /// This node does not issue certificates.
    NotHere,
    /// The node cannot issue now: too many ask, or its store or authority is away.
    NotNow,
}

impl Refusal {
    /// Whether another node, or the same later, may say something else.
    pub fn may_pass(self) -> bool {
        matches!(self, Self::NotNow | Self::NotHere | Self::Region)
    }

    /// A short fixed word for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Used => "used",
            Self::Expired => "expired",
            Self::Region => "region",
            Self::Revoked => "revoked",
            Self::Request => "request",
            Self::Nothing => "nothing",
            Self::NotHere => "not_here",
            Self::NotNow => "not_now",
        }
    }

    /// What happened, and the cure, for whoever looks after the agent or the node.
    pub fn explain(self) -> &'static str {
        match self {
            Self::Unknown => "no such token (cure: a new one by `weir token create`, copied whole)",
            Self::Used => {
                "the token was used before (cure: a new one by `weir token create`; who used this one: `weir agents list`)"
            }
            Self::Expired => "the token's time is over (cure: a new one by `weir token create`)",
            Self::Region => "it is of a region that this node does not take (cure: `nodes` of its region, or `agents.regions`)",
            Self::Revoked => "the agent is revoked (cure: if it is to come back, a token for another agent name)",
            Self::Request => {
                "the signing request is damaged or its key is of a kind that is not taken (cure: a current weir-agent)"
            }
            Self::Nothing => "neither a token nor a certificate was shown (cure: `enrol.token_file`)",
            Self::NotHere => "this node issues no certificates (cure: `agents.authority` in its config)",
            Self::NotNow => "the node cannot issue now; the agent asks again (cure: see the node's log)",
        }
    }
}

impl Ask {
    pub(crate) fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads the body of a message whose head said how long it is.
    pub(crate) fn decode(body: &[u8]) -> Result<Self, ProtocolError> {
        let ask: Self = decode(body)?;
        if ask.request.len() > REQUEST_BYTES_MAX {
            let (bytes, bytes_max) = (ask.request.len() as u64, REQUEST_BYTES_MAX as u64);
            return Err(ProtocolError::TooLong { what: "signing request", bytes, bytes_max });
        }
        Ok(ask)
    }
}

pub(crate) fn encode_answer(answer: &Answer) -> Vec<u8> {
    encode(answer)
}

pub(crate) fn decode_answer(body: &[u8]) -> Result<Answer, ProtocolError> {
    decode(body)
}

/// The length of the body that follows this head.
pub(crate) fn decode_head(head: [u8; HEAD_BYTES], bytes_max: usize) -> Result<usize, ProtocolError> {
    let [m0, m1, m2, m3, version, l0, l1, l2, l3] = head;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(ProtocolError::Garbage([m0, m1, m2, m3]));
    }
    if version != VERSION {
        return Err(ProtocolError::Version { min: version.into(), max: version.into() });
    }
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if length > bytes_max {
        let (bytes, bytes_max) = (length as u64, bytes_max as u64);
        return Err(ProtocolError::TooLong { what: "enrolment message", bytes, bytes_max });
    }
    Ok(length)
}

fn encode(message: &impl Serialize) -> Vec<u8> {
    let body = postcard::to_allocvec(message).expect("a message in memory serializes");
    let mut bytes = MAGIC.to_vec();
    bytes.push(VERSION);
    bytes.extend_from_slice(&u32::try_from(body.len()).expect("certificates are small").to_le_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

fn decode<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ProtocolError> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(ProtocolError::Control(format!("{} bytes too many", rest.len()))),
        Err(error) => Err(ProtocolError::Control(error.to_string())),
    }
}

const MAGIC: [u8; 4] = *b"WENR";
const VERSION: u8 = 1;
/// Magic, version, length.
pub(crate) const HEAD_BYTES: usize = 9;
/// Longest body of a request.
pub(crate) const ASK_BYTES_MAX: usize = REQUEST_BYTES_MAX + 128;
/// Longest body of an answer: a certificate and a bundle of roots.
pub(crate) const ANSWER_BYTES_MAX: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn body(message: &[u8], bytes_max: usize) -> Result<&[u8], ProtocolError> {
        let length = decode_head(*message.first_chunk().unwrap(), bytes_max)?;
        assert_eq!(length, message.len() - HEAD_BYTES);
        Ok(&message[HEAD_BYTES..])
    }

    #[test]
    fn golden_bytes() {
        let ask = Ask { token: Some((TokenId([1; 8]), Secret([2; 32]))), request: vec![3, 4] };
        let bytes = ask.encode();
        let expected = [&b"WENR\x01\x2c\0\0\0\x01"[..], &[1; 8], &[2; 32], &[2, 3, 4]].concat();
        assert_eq!(bytes, expected);
        assert_eq!(encode_answer(&Err(Refusal::Used)), b"WENR\x01\x02\0\0\0\x01\x01");
        let grant = Grant { certificate: vec![5], roots: vec![vec![6]] };
        assert_eq!(encode_answer(&Ok(grant)), b"WENR\x01\x06\0\0\0\0\x01\x05\x01\x01\x06");
    }

    #[test]
    fn limits_hold() {
        let long = Ask { token: None, request: vec![0; REQUEST_BYTES_MAX + 1] };
        let bytes = long.encode();
        let whole = body(&bytes, ASK_BYTES_MAX).unwrap();
        assert!(matches!(Ask::decode(whole), Err(ProtocolError::TooLong { what: "signing request", .. })));
        let largest = Ask { token: Some((TokenId([9; 8]), Secret([9; 32]))), request: vec![0; REQUEST_BYTES_MAX] };
        assert_eq!(Ask::decode(body(&largest.encode(), ASK_BYTES_MAX).unwrap()).unwrap(), largest);
        let head = |bytes: &[u8]| decode_head(*bytes.first_chunk().unwrap(), ASK_BYTES_MAX).unwrap_err().label();
        assert_eq!(head(b"WENR\x01\xff\xff\xff\xff"), "too_long");
        assert_eq!(head(b"WENR\x02\x00\x00\x00\x00"), "version");
        assert_eq!(head(b"GET / HTT"), "garbage");
        assert_eq!(Ask::decode(&[0, 0, 0]).unwrap_err().label(), "control");
    }

    proptest! {
        #[test]
        fn messages_come_back_and_cut_ones_do_not(request in proptest::collection::vec(any::<u8>(), 0..600), with in any::<bool>(), cut in 0usize..600) {
            let token = with.then_some((TokenId([1; 8]), Secret([2; 32])));
            let ask = Ask { token, request };
            let bytes = ask.encode();
            let whole = body(&bytes, ASK_BYTES_MAX).unwrap();
            prop_assert_eq!(&Ask::decode(whole).unwrap(), &ask);
            if cut < whole.len() {
                prop_assert!(Ask::decode(&whole[..cut]).is_err());
            }
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 9..300), known in any::<bool>()) {
            let mut bytes = bytes;
            if known {
                bytes[..5].copy_from_slice(b"WENR\x01");
            }
            let _ = decode_head(*bytes.first_chunk().unwrap(), ASK_BYTES_MAX);
            let _ = Ask::decode(&bytes);
            let _ = decode_answer(&bytes);
        }
    }
}
