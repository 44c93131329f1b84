//! What can be read off a certificate without trusting it: its dates and its fingerprint; and certificates as PEM.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::pki_types::CertificateDer;

use crate::error::IdentityError;

/// From when to when a certificate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) from: SystemTime,
    pub(crate) until: SystemTime,
}

impl Validity {
    /// As it stands in the certificate with these DER bytes.
    pub(crate) fn of(der: &[u8]) -> Result<Self, IdentityError> {
        let (_, read) =
            x509_parser::parse_x509_certificate(der).map_err(|error| IdentityError::Certificate(error.to_string()))?;
        let time = |seconds: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let validity = read.validity();
        Ok(Self { from: time(validity.not_before.timestamp()), until: time(validity.not_after.timestamp()) })
    }
}

/// SHA-256.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let suite = TLS13_AES_128_GCM_SHA256.tls13().expect("it is a suite of TLS 1.3");
    let hash = suite.common.hash_provider.hash(bytes);
    hash.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// Certificates one after the other, as files hold them.
pub(crate) fn to_pem(certificates: &[CertificateDer<'_>]) -> String {
    certificates.iter().map(|der| block("CERTIFICATE", der)).collect()
}

fn block(label: &str, der: &[u8]) -> String {
    let text = base64(der);
    // Base64 is ASCII: every cut is between characters.
    let lines: Vec<&str> = (0..text.len()).step_by(LINE_CHARS).map(|at| &text[at..text.len().min(at + LINE_CHARS)]).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for place in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= three.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

const LINE_CHARS: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustls::pki_types::pem::PemObject;

    use super::*;
    use crate::ca::{Authority, IssueOptions};

    #[test]
    fn dates_and_fingerprint_are_read() {
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let authority = Authority::new("td", now).unwrap();
        let node = weir_schema::Name::new("n1").unwrap();
        let options = IssueOptions { valid: Duration::from_secs(3600), ..IssueOptions::default() };
        let pem = authority.node(&node, &options, now).unwrap().cert_pem;
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let validity = Validity::of(&der).unwrap();
        assert_eq!(validity.until, now + Duration::from_secs(3600));
        assert!(validity.from < now);
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(sha256(b"").map(|byte| format!("{byte:02x}")).concat(), empty);
    }

    proptest! {
        #[test]
        fn pem_comes_back_and_hostile_bytes_have_no_dates(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let der = CertificateDer::from(bytes.clone());
            let text = to_pem(&[der.clone(), der]);
            let read: Vec<_> = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<_, _>>().unwrap();
            prop_assert_eq!(read.len(), 2);
            prop_assert_eq!(&*read[1], &bytes[..]);
            prop_assert!(Validity::of(&bytes).is_err());
        }
    }
}
