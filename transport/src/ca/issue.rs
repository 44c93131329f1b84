//! Makes certificates: the authority's own and those it signs. No files but reading the authority's.
//!
//! An agent's certificate is for TLS clients only. A node's is for servers and clients, because nodes dial each other; that it is no
//! agent is said by its URI name, which both ends check (`tls.rs`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{fmt, fs};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PublicKey,
    PublicKeyData, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, DnsName, UnixTime};
use weir_schema::{AgentIdentity, Name};

use super::{CA_CERT, CA_KEY, IssueOptions};
use crate::certificate::{sha256, to_pem};
use crate::error::Error;
use crate::identity::{Peer, SCHEME, SpiffeId, TrustDomain, uri_name};

/// A certificate authority, ready to sign.
pub struct Authority {
    trust_domain: TrustDomain,
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
    pem: String,
}

impl fmt::Debug for Authority {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

/// A certificate with its key and the authority to trust, as PEM.
#[derive(Clone)]
pub struct Issued {
    /// The authority's certificate.
    pub ca_pem: String,
    /// The certificate.
    pub cert_pem: String,
    /// Its key.
    pub key_pem: String,
}

/// A public key whose holder has shown that the private one is his, by a signing request. Of the request nothing else is kept: names,
/// usages and dates are not the asker's to choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestedKey(PublicKey);

impl RequestedKey {
    /// Reads a PKCS #10 request of at most [`REQUEST_BYTES_MAX`] bytes and checks its signature.
    pub fn from_request(der: &[u8]) -> Result<Self, Error> {
        let wrong = |problem: String| Error::Request { problem };
        if der.len() > REQUEST_BYTES_MAX {
            return Err(wrong(format!("it has {} bytes, at most {REQUEST_BYTES_MAX} are read", der.len())));
        }
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der))
            .map_err(|error| wrong(error.to_string()))?;
        let key = request.public_key;
        if ![&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519].contains(&key.algorithm()) {
            return Err(wrong("its key is neither ECDSA on P-256 or P-384 nor Ed25519".to_owned()));
        }
        Ok(Self(key))
    }

    /// The key's SubjectPublicKeyInfo.
    pub fn to_der(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }
}

impl Authority {
    /// Makes a new authority, valid for ten years from `now`.
    pub fn new(trust_domain: &str, now: SystemTime) -> Result<Self, Error> {
        let trust_domain = TrustDomain::new(trust_domain).ok_or_else(|| Error::Asked {
            what: "trust domain",
            value: trust_domain.to_owned(),
            cure: "use 1 to 128 of a-z 0-9 . _ -",
        })?;
        let subject = format!("the authority of {:?}", trust_domain.as_str());
        let params = ca_params(&trust_domain, now)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(issue_error(&subject))?;
        let certificate = params.self_signed(&key).map_err(issue_error(&subject))?;
        let (der, pem) = (certificate.der().clone(), certificate.pem());
        Ok(Self { trust_domain, issuer: Issuer::new(params, key), der, pem })
    }

    /// Reads the authority that `weir ca init` left in `dir`.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let (cert_path, key_path) = (dir.join(CA_CERT), dir.join(CA_KEY));
        let read = |path: &Path, cure| {
            let failed = |source| Error::File { doing: "read", path: path.into(), source, cure };
            fs::read_to_string(path).map_err(failed)
        };
        let pem = read(&cert_path, " (make an authority with `weir ca init`)")?;
        let key_pem = read(&key_path, " (certificates are issued where the authority's key is, by who may read it)")?;
        let wrong = |path: &Path, problem: String, cure| Error::Content { path: path.into(), problem, cure };
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| wrong(&cert_path, format!("holds no certificate ({error:?})"), "restore it from a backup"))?;
        let key = KeyPair::from_pem(&key_pem)
            .map_err(|error| wrong(&key_path, format!("holds no private key ({error})"), "restore it from a backup"))?;
        let trust_domain = uri_name(&der)
            .ok()
            .and_then(|uri| TrustDomain::new(uri.strip_prefix(SCHEME)?))
            .ok_or_else(|| wrong(&cert_path, "names no trust domain".into(), "use the one that `weir ca init` made"))?;
        let params = ca_params(&trust_domain, UNIX_EPOCH)?;
        Ok(Self { trust_domain, issuer: Issuer::new(params, key), der, pem })
    }

    /// The fleet this authority speaks for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The authority's certificate.
    pub fn cert_pem(&self) -> &str {
        &self.pem
    }

    /// The authority's certificate, as DER.
    pub fn cert_der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// SHA-256 of the authority's certificate: what a token pins.
    pub fn fingerprint(&self) -> [u8; 32] {
        sha256(&self.der)
    }

    /// The authority's key.
    pub(super) fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A certificate for an agent.
    pub fn agent(&self, agent: &AgentIdentity, options: &IssueOptions, now: SystemTime) -> Result<Issued, Error> {
        let id = SpiffeId { trust_domain: self.trust_domain.clone(), peer: Peer::Agent(agent.clone()) };
        self.issue(&id, &agent_params(&id, agent, options, now)?, now)
    }

    /// A certificate, as DER, for an agent that keeps its private key to itself.
    pub fn agent_with_key(
        &self,
        agent: &AgentIdentity,
        key: &RequestedKey,
        options: &IssueOptions,
        now: SystemTime,
    ) -> Result<CertificateDer<'static>, Error> {
        let id = SpiffeId { trust_domain: self.trust_domain.clone(), peer: Peer::Agent(agent.clone()) };
        let params = agent_params(&id, agent, options, now)?;
        self.sign(&id, &params, &key.0, now)
    }

    /// A certificate for a node.
    pub fn node(&self, node: &Name, options: &IssueOptions, now: SystemTime) -> Result<Issued, Error> {
        let id = SpiffeId { trust_domain: self.trust_domain.clone(), peer: Peer::Node(node.clone()) };
        let mut params = leaf_params(&id, node.as_str(), options, now)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names.extend([
            dns_or_ip(NODE_NAME)?,
            dns_or_ip("localhost")?,
            SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            SanType::IpAddress(IpAddr::V6(Ipv6Addr::LOCALHOST)),
        ]);
        // An id that is no host name (`n_1.`) is simply not one of the names the node is reached under.
        params
            .subject_alt_names
            .extend(dns_or_ip(node.as_str()).ok().filter(|_| ![NODE_NAME, "localhost"].contains(&node.as_str())));
        for reached_as in &options.reached_as {
            params.subject_alt_names.push(dns_or_ip(reached_as)?);
        }
        self.issue(&id, &params, now)
    }

    fn issue(&self, id: &SpiffeId, params: &CertificateParams, now: SystemTime) -> Result<Issued, Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(issue_error(&id.to_uri()))?;
        let certificate = self.sign(id, params, &key, now)?;
        Ok(Issued { ca_pem: self.pem.clone(), cert_pem: to_pem(&[certificate]), key_pem: key.serialize_pem() })
    }

    /// Signs, then checks that the result would be accepted under our own certificate.
    fn sign(
        &self,
        id: &SpiffeId,
        params: &CertificateParams,
        key: &impl PublicKeyData,
        now: SystemTime,
    ) -> Result<CertificateDer<'static>, Error> {
        let certificate = params.signed_by(key, &self.issuer).map_err(issue_error(&id.to_uri()))?;
        self.check(certificate.der(), now)?;
        Ok(certificate.der().clone())
    }

    fn check(&self, leaf: &CertificateDer<'_>, now: SystemTime) -> Result<(), Error> {
        let refused = |error: webpki::Error| {
            let cure = match error {
                webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. } => {
                    "set the clock, or make a new authority with `weir ca init`"
                }
                _ => "put back the ca.key that `weir ca init` made with this ca.pem",
            };
            let problem = match error {
                webpki::Error::CertExpired { .. } => "(with ca.key) would sign a certificate that has expired".to_owned(),
                webpki::Error::InvalidSignatureForPublicKey => "does not belong to the ca.key beside it".to_owned(),
                other => format!("does not belong to the ca.key beside it ({other:?})"),
            };
            Error::Content { path: CA_CERT.into(), problem, cure }
        };
        let anchor = webpki::anchor_from_trusted_cert(&self.der).map_err(refused)?;
        let leaf = webpki::EndEntityCert::try_from(leaf).map_err(refused)?;
        let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        leaf.verify_for_usage(
            rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.all,
            &[anchor],
            &[],
            UnixTime::since_unix_epoch(since_epoch),
            webpki::KeyUsage::client_auth(),
            None,
            None,
        )
        .map(|_| ())
        .map_err(refused)
    }
}

fn ca_params(trust_domain: &TrustDomain, now: SystemTime) -> Result<CertificateParams, Error> {
    let uri = format!("{SCHEME}{}", trust_domain.as_str());
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(&format!("Weir authority of {}", trust_domain.as_str()));
    params.subject_alt_names = vec![uri_san(&uri)?];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, now, CA_VALID)?;
    Ok(params)
}

fn agent_params(
    id: &SpiffeId,
    agent: &AgentIdentity,
    options: &IssueOptions,
    now: SystemTime,
) -> Result<CertificateParams, Error> {
    let mut params = leaf_params(id, agent.agent.as_str(), options, now)?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

fn leaf_params(id: &SpiffeId, common: &str, options: &IssueOptions, now: SystemTime) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(common);
    params.subject_alt_names = vec![uri_san(&id.to_uri())?];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, now, options.valid)?;
    Ok(params)
}

fn subject(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    // X.509 allows 64 characters; the whole name stands in the URI name.
    name.push(DnType::CommonName, common.chars().take(64).collect::<String>());
    name
}

fn set_validity(params: &mut CertificateParams, now: SystemTime, valid: Duration) -> Result<(), Error> {
    let wrong = || Error::Asked { what: "validity", value: format!("{valid:?}"), cure: "use between 1 minute and 100 years" };
    if !(VALID_MIN..=VALID_MAX).contains(&valid) {
        return Err(wrong());
    }
    let since_epoch = now.duration_since(UNIX_EPOCH).map_err(|_| wrong())?;
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + since_epoch.saturating_sub(CLOCK_SKEW);
    params.not_after = epoch + (since_epoch + valid);
    Ok(())
}

fn uri_san(uri: &str) -> Result<SanType, Error> {
    let wrong = |_| Error::Asked { what: "name", value: uri.to_owned(), cure: "use plain ASCII" };
    Ok(SanType::URI(uri.try_into().map_err(wrong)?))
}

fn dns_or_ip(text: &str) -> Result<SanType, Error> {
    let wrong = || Error::Asked { what: "host name", value: text.to_owned(), cure: "use a DNS name or an IP address" };
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    DnsName::try_from(text).map_err(|_| wrong())?;
    Ok(SanType::DnsName(text.try_into().map_err(|_| wrong())?))
}

fn issue_error(subject: &str) -> impl Fn(rcgen::Error) -> Error {
    move |error| Error::Issue { subject: subject.to_owned(), reason: error.to_string() }
}

/// Longest signing request: one with the largest key that is taken has a few hundred bytes.
pub const REQUEST_BYTES_MAX: usize = 4096;

/// The name that every node carries, and that agents ask for unless they are told otherwise.
pub(crate) const NODE_NAME: &str = "weir-node";

/// The authority's own validity: ten years.
const CA_VALID: Duration = Duration::from_secs(3652 * 24 * 3600);

/// Shortest validity; tests of expiry use less than nothing by moving `now`.
const VALID_MIN: Duration = Duration::from_secs(60);

/// Longest validity.
const VALID_MAX: Duration = Duration::from_secs(36525 * 24 * 3600);

/// How far a certificate is valid before it was made, for clocks that are behind.
pub(crate) const CLOCK_SKEW: Duration = Duration::from_secs(300);
