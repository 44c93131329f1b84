//! A join token: good for one agent of one tenant and region, for a while.
//!
//! ```text
//! weir1-ID-SECRET-AUTHORITY        hex of 8, 32 and 32 bytes: which record, what proves it, SHA-256 of the authority's certificate
//! ```
//!
//! Promise: from what is stored nobody can make the token. An error or a log shows the id, never the secret.

use std::fmt;
use std::str::FromStr;

use rustls::crypto::aws_lc_rs;
use serde::{Deserialize, Serialize};
use weir_schema::{AgentIdentity, Name};

use super::message::Refusal;
use crate::certificate::sha256;

/// Which token; no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TokenId(pub [u8; 8]);

/// What proves that its bearer was given the token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Secret(pub(crate) [u8; 32]);

/// A token as it is handed to a host.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Which.
    pub id: TokenId,
    pub(crate) secret: Secret,
    /// SHA-256 of the certificate of the authority: how the agent knows the node.
    pub(crate) authority: [u8; 32],
}

/// What the cluster keeps of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Which.
    pub id: TokenId,
    /// SHA-256 of the secret, which has 256 random bits: there is nothing to guess from it.
    secret_hash: [u8; 32],
    /// Who its bearer becomes.
    pub agent: AgentIdentity,
    /// When it was made, in milliseconds of Unix time.
    pub created_ms: u64,
    /// Until when it is good.
    pub expires_ms: u64,
}

/// That a token was used, and for which key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redeemed {
    /// Who its bearer became.
    pub agent: AgentIdentity,
    /// SHA-256 of the bearer's public key: the same bearer may ask again, should the answer get lost.
    pub key_hash: [u8; 32],
    /// The node that issued.
    pub node: Name,
    /// When, in milliseconds of Unix time.
    pub at_ms: u64,
}

impl Token {
    /// A new token for `tenant` and `region`, and what is to be stored of it. Without a name the agent is called after the token.
    pub fn create(
        tenant: Name,
        region: Name,
        agent: Option<Name>,
        authority: [u8; 32],
        (created_ms, expires_ms): (u64, u64),
    ) -> (Self, TokenRecord) {
        let (mut id, mut secret) = (TokenId([0; 8]), Secret([0; 32]));
        let random = aws_lc_rs::default_provider().secure_random;
        random.fill(&mut id.0).and_then(|()| random.fill(&mut secret.0)).expect("the system has random numbers");
        let agent = agent.unwrap_or_else(|| Name::new(format!("agent-{id}")).expect("hex is a name"));
        let agent = AgentIdentity { tenant, region, agent };
        let record = TokenRecord { id, secret_hash: sha256(&secret.0), agent, created_ms, expires_ms };
        (Self { id, secret, authority }, record)
    }
}

impl TokenRecord {
    /// Whether `secret` is this token's and the token is good at `now_ms`.
    pub(crate) fn check(&self, secret: &Secret, now_ms: u64) -> Result<(), Refusal> {
        let offered = sha256(&secret.0);
        // Every byte is looked at, whichever is wrong: time tells nothing.
        let differences = offered.iter().zip(&self.secret_hash).fold(0, |all, (one, other)| all | (one ^ other));
        match differences {
            0 if now_ms < self.expires_ms => Ok(()),
            0 => Err(Refusal::Expired),
            _ => Err(Refusal::Unknown),
        }
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl FromStr for TokenId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(from_hex(text).ok_or("not the id of a token")?))
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}-{}-", self.id)?;
        write_hex(f, &self.secret.0)?;
        f.write_str("-")?;
        write_hex(f, &self.authority)
    }
}

impl FromStr for Token {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let read = || {
            let rest = text.trim().strip_prefix(PREFIX)?.strip_prefix('-')?;
            let mut parts = rest.split('-');
            let (id, secret, authority) = (parts.next()?, parts.next()?, parts.next()?);
            let whole = parts.next().is_none();
            let token = Self { id: id.parse().ok()?, secret: Secret(from_hex(secret)?), authority: from_hex(authority)? };
            whole.then_some(token)
        };
        read().ok_or("not a token: it begins with weir1- and has 152 characters, as `weir token create` prints it")
    }
}

impl fmt::Debug for Token {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.id)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N || !digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let value = |digit: u8| if digit < b'a' { digit - b'0' } else { digit - b'a' + 10 };
        *byte = value(pair[0]) << 4 | value(pair[1]);
    }
    Some(bytes)
}

const PREFIX: &str = "weir1";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn token() -> (Token, TokenRecord) {
        Token::create(name("acme"), name("eu"), None, [7; 32], (1_000, 2_000))
    }

    #[test]
    fn what_is_stored_knows_its_token_and_does_not_hold_it() {
        let (token, record) = token();
        assert_eq!(token.to_string().len(), 152);
        assert_eq!(token.to_string().parse::<Token>().unwrap(), token);
        assert_eq!(record.agent.agent.as_str(), format!("agent-{}", token.id));
        assert_eq!(record.check(&token.secret, 1_999), Ok(()));
        assert_eq!(record.check(&token.secret, 2_000), Err(Refusal::Expired));
        let mut wrong = token.secret.clone();
        wrong.0[31] ^= 1;
        assert_eq!(record.check(&wrong, 1_999), Err(Refusal::Unknown));
        assert_eq!(record.check(&wrong, 2_000), Err(Refusal::Unknown), "who has no secret learns nothing");
        let stored = postcard::to_allocvec(&record).unwrap();
        assert!(!stored.windows(8).any(|bytes| token.secret.0.starts_with(bytes)));
        let shown = format!("{token:?} {record:?}");
        assert!(!shown.contains(&token.to_string()[23..40]), "{shown}");
        let (other, _) = Token::create(name("acme"), name("eu"), None, [7; 32], (1_000, 2_000));
        assert!(other.id != token.id && other.secret != token.secret);
    }

    proptest! {
        #[test]
        fn only_whole_tokens_are_read(at in 0usize..152, letter in "[^0-9a-f]", noise in "\\PC{0,200}") {
            let text = token().0.to_string();
            let mut bad = text.clone();
            bad.replace_range(at..=at, &letter);
            prop_assert!(bad.parse::<Token>().is_err() || bad.trim() == text, "{bad}");
            prop_assert!(text[..at].parse::<Token>().is_err());
            let longer = format!("{text}-");
            prop_assert!(longer.parse::<Token>().is_err());
            prop_assert!(noise.parse::<Token>().is_err());
            prop_assert!(noise.parse::<TokenId>().is_err() || noise.len() == 16);
        }
    }
}
