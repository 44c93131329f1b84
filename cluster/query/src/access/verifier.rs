//! What a server keeps of a password (RFC 5803, as PostgreSQL writes it): enough to check a proof, too little to make one.
//!
//! ```text
//! SCRAM-SHA-256$<iterations>:<salt, base64>$<StoredKey, base64>:<ServerKey, base64>
//! ```

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pgwire::api::auth::sasl::scram::{SCRAM_ITERATIONS, ScramSecret, gen_salted_password, random_nonce};

/// What is kept of a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    salt: Vec<u8>,
    iterations: usize,
    stored_key: Vec<u8>,
    server_key: Vec<u8>,
}

impl Verifier {
    /// Of a password, with a new salt.
    pub fn of(password: &str) -> Self {
        let mut salt = STANDARD.decode(random_nonce()).expect("a nonce is base64 of 18 random bytes");
        salt.truncate(SALT_BYTES);
        Self::salted(password, salt, SCRAM_ITERATIONS)
    }

    /// Of what stands in a secret file: a verifier, or else a password.
    pub(crate) fn of_secret(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("its first line is empty".to_owned()),
            text if text.starts_with(PREFIX) => {
                Self::parse(text).ok_or_else(|| format!("what begins with {PREFIX} is no verifier"))
            }
            password => Ok(Self::of(password)),
        }
    }

    /// Reads the form above.
    pub fn parse(text: &str) -> Option<Self> {
        let (cost, keys) = text.trim().strip_prefix(PREFIX)?.split_once('$')?;
        let ((iterations, salt), (stored, server)) = (cost.split_once(':')?, keys.split_once(':')?);
        let iterations = iterations.parse().ok().filter(|count| (SCRAM_ITERATIONS..=ITERATIONS_MAX).contains(count))?;
        let key = |text: &str| STANDARD.decode(text).ok().filter(|key| key.len() == KEY_BYTES);
        let salt = STANDARD.decode(salt).ok().filter(|salt| (1..=SALT_BYTES_MAX).contains(&salt.len()))?;
        Some(Self { salt, iterations, stored_key: key(stored)?, server_key: key(server)? })
    }

    /// Of somebody who does not exist. Who asks twice is told the same salt twice, as for somebody who does.
    pub(crate) fn of_nobody(user: &str, known: &[&Self]) -> Self {
        let iterations = known.first().map_or(SCRAM_ITERATIONS, |verifier| verifier.iterations);
        let secrets: Vec<u8> = known.iter().flat_map(|verifier| verifier.server_key.iter().copied()).collect();
        let secret = gen_salted_password(&STANDARD.encode(secrets), b"nobody", 1);
        let mut salt = gen_salted_password(user, &secret, 1);
        salt.truncate(SALT_BYTES);
        // No client key hashes to a key that was made up.
        let made_up = gen_salted_password(user, &[&secret[..], b"key"].concat(), 1);
        Self { salt, iterations, stored_key: made_up.clone(), server_key: made_up }
    }

    /// Whether it is of this password. Takes as long whatever the password is.
    pub(crate) fn is_of(&self, password: &str) -> bool {
        let other = Self::salted(password, self.salt.clone(), self.iterations);
        let differ = self.stored_key.iter().zip(&other.stored_key).fold(0, |differ, (ours, theirs)| differ | (ours ^ theirs));
        differ == 0
    }

    /// As the exchange wants it.
    pub(crate) fn secret(&self) -> ScramSecret {
        let Self { salt, iterations, stored_key, server_key } = self.clone();
        ScramSecret::Verifier { salt, iterations, stored_key, server_key }
    }

    fn salted(password: &str, salt: Vec<u8>, iterations: usize) -> Self {
        let salted = gen_salted_password(password, &salt, iterations);
        match ScramSecret::verifier_from_salted_password(salt, salted, iterations) {
            ScramSecret::Verifier { salt, iterations, stored_key, server_key } => {
                Self { salt, iterations, stored_key, server_key }
            }
            ScramSecret::SaltedPassword { .. } => unreachable!("a verifier was asked for"),
        }
    }
}

impl fmt::Display for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [salt, stored, server] = [&self.salt, &self.stored_key, &self.server_key].map(|bytes| STANDARD.encode(bytes));
        write!(f, "{PREFIX}{}:{salt}${stored}:{server}", self.iterations)
    }
}

/// A log is no place for keys.
impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}:…", self.iterations)
    }
}

const PREFIX: &str = "SCRAM-SHA-256$";
/// PostgreSQL's.
const SALT_BYTES: usize = 16;
/// Beyond it nobody salts.
const SALT_BYTES_MAX: usize = 64;
/// SHA-256.
const KEY_BYTES: usize = 32;
/// Some seconds of a client's work; HTTP does it here, once for every request.
const ITERATIONS_MAX: usize = 1_000_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_verifier_of_postgresql_is_read_and_written() {
        // `ALTER ROLE … PASSWORD 'pencil'` with the salt of RFC 7677's example.
        let verifier = Verifier::salted("pencil", STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap(), 4096);
        let text = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
        assert_eq!(verifier.to_string(), text);
        assert_eq!(Verifier::parse(text), Some(verifier.clone()));
        assert!(verifier.is_of("pencil") && !verifier.is_of("pencil ") && !verifier.is_of(""));
        assert!(!format!("{verifier:?}").contains("WG5d8"));
    }

    #[test]
    fn what_is_no_verifier_is_refused() {
        let good = Verifier::of("a").to_string();
        for (bad, why) in [
            (good.replace("4096", "4095"), "too cheap"),
            (good.replace("4096", "1000001"), "too dear"),
            (good.replace("$4096:", "$4096:!"), "no base64"),
            (good[..good.len() - 5].to_owned(), "a short key"),
            (good.replace("SHA-256", "SHA-1"), "another hash"),
        ] {
            assert_eq!(Verifier::parse(&bad), None, "{why}: {bad}");
        }
        assert!(Verifier::of_secret("SCRAM-SHA-256$x").is_err() && Verifier::of_secret("").is_err());
        assert!(Verifier::of_secret("pencil").unwrap().is_of("pencil"));
    }

    #[test]
    fn nobody_is_told_the_same_salt_every_time() {
        let known = Verifier::of("a");
        let nobody = |user: &str| Verifier::of_nobody(user, &[&known]);
        assert_eq!(nobody("x"), nobody("x"));
        assert_ne!(nobody("x").salt, nobody("y").salt);
        assert_eq!((nobody("x").salt.len(), nobody("x").iterations), (known.salt.len(), known.iterations));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,120}") {
            let _ = Verifier::parse(&text);
            let _ = Verifier::parse(&format!("{PREFIX}{text}"));
        }
    }
}
