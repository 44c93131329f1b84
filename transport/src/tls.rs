//! Mutual TLS 1.3 from three files: who is trusted, who we are, and our key.
//!
//! Promise: a handshake in which certificates were shown and that succeeds was between an agent and a node of one trust domain, under
//! a trusted authority, in time; the agent is not revoked. The chain, the dates and the usage are checked by webpki; role, trust domain,
//! region and revocation here, inside the handshake. Only a node that enrols lets callers in who show none, and `server/admit.rs` lets
//! them do nothing else. Nothing is resumed: a session ticket would outlive a certificate.

use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::UNIX_EPOCH;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::tls13::OkmBlock;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore,
    ServerConfig, SignatureScheme, WantsVerifier,
};
use tracing::warn;
use weir_config::{ClientTls, ServerTls};
use weir_schema::{AgentIdentity, Name};

use crate::certificate::{Validity, sha256};
use crate::enrol::ENROL_ALPN;
use crate::error::{Error, IdentityError};
use crate::identity::{TrustDomain, spiffe_id};
use crate::trust::{Admission, Trust};

/// What a node needs to listen.
#[derive(Debug, Clone)]
pub struct NodeTls {
    /// For the listening socket.
    pub config: Arc<ServerConfig>,
    /// Checks agents' certificates, also after the handshake; its files may change.
    pub(crate) trust: Arc<Trust>,
    /// Who we are.
    pub node: Name,
    /// The fleet.
    pub trust_domain: TrustDomain,
    /// Derived from our key, the same after a restart: lets the node tell agents that it has forgotten their connection.
    pub(crate) reset_key: ResetKey,
}

/// What an agent needs to connect.
#[derive(Debug, Clone)]
pub struct AgentTls {
    /// For connections to nodes.
    pub config: Arc<ClientConfig>,
    /// Who we are.
    pub agent: AgentIdentity,
    /// The fleet.
    pub trust_domain: TrustDomain,
    /// From when to when our certificate holds.
    pub(crate) validity: Validity,
}

impl NodeTls {
    /// Reads a node's three files. Agents of all regions are taken, nobody is enrolled.
    pub fn load(files: &ServerTls) -> Result<Self, Error> {
        Self::load_for(files, Admission::default(), Callers::Certified)
    }

    pub(crate) fn load_for(files: &ServerTls, admission: Admission, callers: Callers) -> Result<Self, Error> {
        let own = Own::load(&files.ca, &files.cert, &files.key)?;
        let identity = |error: IdentityError| tls_error(&files.cert, error);
        let id = spiffe_id(&own.chain[0]).map_err(identity)?;
        let trust_domain = id.trust_domain.clone();
        let node = id.into_node(&trust_domain).map_err(identity)?;
        let verifier = CallerVerifier::new(&own, files, trust_domain.clone(), Role::Agent(admission.clone()), callers)?;
        let trust = Arc::new(Trust::new(files, &own, node.clone(), Arc::new(verifier), admission)?);
        let mut config = ServerConfig::builder_with_provider(own.provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| tls_error(&files.key, error))?
            .with_client_cert_verifier(trust.verifier.clone())
            .with_cert_resolver(trust.own.clone());
        config.alpn_protocols = match callers {
            Callers::Certified => vec![ALPN.to_vec()],
            Callers::AlsoNew => vec![ALPN.to_vec(), ENROL_ALPN.to_vec()],
        };
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        let reset_key = ResetKey::derive(own.key.secret_der());
        Ok(Self { config: Arc::new(config), trust, node, trust_domain, reset_key })
    }
}

impl AgentTls {
    /// Reads an agent's three files.
    pub fn load(files: &ClientTls) -> Result<Self, Error> {
        Self::of(files, Own::load(&files.ca, &files.cert, &files.key)?)
    }

    /// From what the files hold or are to hold.
    pub(crate) fn of(files: &ClientTls, own: Own) -> Result<Self, Error> {
        let identity = |error: IdentityError| tls_error(&files.cert, error);
        let id = spiffe_id(&own.chain[0]).map_err(identity)?;
        let trust_domain = id.trust_domain.clone();
        let agent = id.into_agent(&trust_domain).map_err(identity)?;
        let validity = Validity::of(&own.chain[0]).map_err(identity)?;
        let chain = WebPkiServerVerifier::builder_with_provider(own.roots.clone(), own.provider.clone())
            .build()
            .map_err(|error| tls_error(&files.ca, error))?;
        let mut config = new_client(own.provider)
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(NodeVerifier { chain, ours: trust_domain.clone() }))
            .with_client_auth_cert(own.chain, own.key)
            .map_err(|error| tls_error(&files.key, error))?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        Ok(Self { config: Arc::new(config), agent, trust_domain, validity })
    }
}

/// Who an agent is by its certificate, whether it is in force or not.
pub fn agent_identity(files: &ClientTls) -> Result<AgentIdentity, Error> {
    let chain = certificates(&files.cert, &read(&files.cert)?)?;
    let identity = |error: IdentityError| tls_error(&files.cert, error);
    let id = spiffe_id(&chain[0]).map_err(identity)?;
    let trust_domain = id.trust_domain.clone();
    id.into_agent(&trust_domain).map_err(identity)
}

/// SHA-256 of the authority's certificate under which a node's own stands: what tokens pin.
pub fn authority_of(files: &ServerTls) -> Result<[u8; 32], Error> {
    let roots = certificates(&files.ca, &read(&files.ca)?)?;
    let chain = certificates(&files.cert, &read(&files.cert)?)?;
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms.all;
    let until = Validity::of(&chain[0]).map_err(|error| tls_error(&files.cert, error))?.until;
    // Whether it has expired is not the question here.
    let within = UnixTime::since_unix_epoch(until.duration_since(UNIX_EPOCH).unwrap_or_default());
    let signs = |root: &CertificateDer<'_>| {
        let leaf = webpki::EndEntityCert::try_from(&chain[0])?;
        let anchor = webpki::anchor_from_trusted_cert(root)?;
        let usage = webpki::KeyUsage::server_auth();
        leaf.verify_for_usage(algorithms, &[anchor], &chain[1..], within, usage, None, None).map(drop)
    };
    let found = roots.iter().find(|root| signs(root).is_ok());
    found.map(|root| sha256(root)).ok_or_else(|| tls_error(&files.cert, "none of the authorities of `tls.ca` has signed it"))
}

/// Settings for links between nodes that speak `alpn`, for the end that is called and the one that calls.
pub(crate) fn node_to_node(files: &ServerTls, alpn: &[u8]) -> Result<(ServerConfig, ClientConfig), Error> {
    let own = Own::load(&files.ca, &files.cert, &files.key)?;
    let identity = |error: IdentityError| tls_error(&files.cert, error);
    let id = spiffe_id(&own.chain[0]).map_err(identity)?;
    let ours = id.trust_domain.clone();
    id.into_node(&ours).map_err(identity)?;
    let wrong = |error: rustls::Error| tls_error(&files.key, error);
    let clients = CallerVerifier::new(&own, files, ours.clone(), Role::Node, Callers::Certified)?;
    let servers = WebPkiServerVerifier::builder_with_provider(own.roots.clone(), own.provider.clone())
        .build()
        .map_err(|error| tls_error(&files.ca, error))?;
    let mut server = ServerConfig::builder_with_provider(own.provider.clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(wrong)?
        .with_client_cert_verifier(Arc::new(clients))
        .with_single_cert(own.chain.clone(), own.key.clone_key())
        .map_err(wrong)?;
    server.send_tls13_tickets = 0;
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.alpn_protocols = vec![alpn.to_vec()];
    let mut client = new_client(own.provider)
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(NodeVerifier { chain: servers, ours }))
        .with_client_auth_cert(own.chain, own.key)
        .map_err(wrong)?;
    client.resumption = Resumption::disabled();
    client.alpn_protocols = vec![alpn.to_vec()];
    Ok((server, client))
}

/// Settings of a calling end, as far as all have them.
pub(crate) fn new_client(provider: Arc<CryptoProvider>) -> ConfigBuilder<ClientConfig, WantsVerifier> {
    ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13]).expect("the provider has TLS 1.3")
}

/// The content of the three files.
pub(crate) struct Own {
    pub(crate) provider: Arc<CryptoProvider>,
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) root_certificates: Vec<CertificateDer<'static>>,
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    /// As they are: authorities, certificate, key.
    pub(crate) contents: [Vec<u8>; 3],
}

impl Own {
    fn load(ca: &Path, cert: &Path, key: &Path) -> Result<Self, Error> {
        if std::fs::metadata(key).is_ok_and(|file| file.permissions().mode() & 0o007 != 0) {
            warn!(?key, "everybody on this host may read this private key (cure: chmod 600)");
        }
        Self::parse([ca, cert, key], [read(ca)?, read(cert)?, read(key)?])
    }

    /// Nothing, when the files are as they were.
    pub(crate) fn load_unless(ca: &Path, cert: &Path, key: &Path, known: &[Vec<u8>; 3]) -> Result<Option<Self>, Error> {
        let contents = [read(ca)?, read(cert)?, read(key)?];
        if contents == *known {
            return Ok(None);
        }
        Self::parse([ca, cert, key], contents).map(Some)
    }

    /// Of contents that stand, or are to stand, in these files.
    pub(crate) fn parse([ca, cert, key]: [&Path; 3], contents: [Vec<u8>; 3]) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        let root_certificates = certificates(ca, &contents[0])?;
        for root in &root_certificates {
            roots.add(root.clone()).map_err(|error| tls_error(ca, error))?;
        }
        let chain = certificates(cert, &contents[1])?;
        let key = PrivateKeyDer::from_pem_slice(&contents[2]).map_err(|error| Error::Content {
            path: key.into(),
            problem: format!("holds no private key ({error})"),
            cure: "issue one with `weir ca issue`",
        })?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        Ok(Self { provider, roots: Arc::new(roots), root_certificates, chain, key, contents })
    }
}

pub(crate) fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let problem = |problem| Error::Content { path: path.into(), problem, cure: "issue one with `weir ca issue`" };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err(problem("holds no certificate".to_owned())),
        Ok(found) => Ok(found),
        Err(error) => Err(problem(format!("holds no certificate ({error})"))),
    }
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |source: io::Error| {
        let cure = match source.kind() {
            io::ErrorKind::NotFound => " (issue it with `weir ca issue`)",
            io::ErrorKind::PermissionDenied => " (give it to the user that this program runs as)",
            _ => "",
        };
        Error::File { doing: "read", path: path.into(), source, cure }
    };
    std::fs::read(path).map_err(failed)
}

pub(crate) fn tls_error(path: &Path, reason: impl fmt::Display) -> Error {
    Error::Tls { path: path.into(), reason: reason.to_string() }
}

/// Takes callers of one role, of our trust domain.
#[derive(Debug)]
pub(crate) struct CallerVerifier {
    chain: RwLock<Arc<dyn ClientCertVerifier>>,
    pub(crate) ours: TrustDomain,
    role: Role,
    callers: Callers,
}

/// Who may call.
#[derive(Debug, Clone)]
pub(crate) enum Role {
    Agent(Admission),
    Node,
}

/// What a caller must show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Callers {
    /// A good certificate.
    Certified,
    /// A good certificate or none: who has none can only enrol.
    AlsoNew,
}

impl CallerVerifier {
    fn new(own: &Own, files: &ServerTls, ours: TrustDomain, role: Role, callers: Callers) -> Result<Self, Error> {
        Ok(Self { chain: RwLock::new(Self::chain(own, files)?), ours, role, callers })
    }

    fn chain(own: &Own, files: &ServerTls) -> Result<Arc<dyn ClientCertVerifier>, Error> {
        WebPkiClientVerifier::builder_with_provider(own.roots.clone(), own.provider.clone())
            .build()
            .map_err(|error| tls_error(&files.ca, error))
    }

    /// Trusts other roots from now on.
    pub(crate) fn trust(&self, own: &Own, files: &ServerTls) -> Result<(), Error> {
        let chain = Self::chain(own, files)?;
        *self.chain.write().unwrap_or_else(PoisonError::into_inner) = chain;
        Ok(())
    }

    fn current(&self) -> Arc<dyn ClientCertVerifier> {
        self.chain.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Takes nodes of our trust domain.
#[derive(Debug)]
struct NodeVerifier {
    chain: Arc<WebPkiServerVerifier>,
    ours: TrustDomain,
}

/// An identity's error as rustls carries it; rustls shows it by `Debug`, people shall read its text.
struct Told(IdentityError);

impl fmt::Debug for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl std::error::Error for Told {}

fn told(error: IdentityError) -> rustls::Error {
    rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(Told(error)))))
}

impl ClientCertVerifier for CallerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.callers == Callers::Certified
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Hints would tell strangers the names of our authorities, and callers have one certificate only.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.current().verify_client_cert(end_entity, intermediates, now)?;
        let id = spiffe_id(end_entity).map_err(told)?;
        match &self.role {
            Role::Agent(admission) => id.into_agent(&self.ours).and_then(|agent| admission.check(&agent)),
            Role::Node => id.into_node(&self.ours).map(drop),
        }
        .map_err(told)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.current().verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.current().verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.current().supported_verify_schemes()
    }
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        spiffe_id(end_entity).and_then(|id| id.into_node(&self.ours)).map_err(told)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Signs QUIC's stateless resets. Made from the node's private key, so that a node that was killed and started again can tell an
/// agent at its next packet, instead of leaving it to a time-out.
#[derive(Clone)]
pub(crate) struct ResetKey([u8; 32]);

impl ResetKey {
    fn derive(secret: &[u8]) -> Self {
        Self(hmac(b"weir stateless reset key", secret))
    }
}

impl fmt::Debug for ResetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResetKey")
    }
}

impl quinn::crypto::HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(&hmac(&self.0, data));
    }

    fn signature_len(&self) -> usize {
        self.0.len()
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), quinn::crypto::CryptoError> {
        // Not in constant time: quinn asks for it nowhere for resets, which go out in clear and are compared by the agent.
        if hmac(&self.0, data) == signature { Ok(()) } else { Err(quinn::crypto::CryptoError) }
    }
}

/// HMAC-SHA-256.
fn hmac(key: &[u8], data: &[u8]) -> [u8; 32] {
    let suite = aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256.tls13().expect("it is a suite of TLS 1.3");
    let tag = suite.hkdf_provider.hmac_sign(&OkmBlock::new(key), data);
    tag.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// The application protocol of sessions.
pub(crate) const ALPN: &[u8] = b"weir/1";
