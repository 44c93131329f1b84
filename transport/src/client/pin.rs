//! How an agent without a certificate knows that it speaks to a node of its fleet: by the authority.
//!
//! The token holds the fingerprint of the authority's certificate. The node shows that certificate beside its own, and the agent takes
//! exactly the root that was pinned. A file of `tls.ca` that is there already counts instead.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::certificate::sha256;
use crate::enrol::ENROL_ALPN;
use crate::identity::{Peer, from_certificate};
use crate::tls::new_client;

/// Whom to take for a node of our fleet.
#[derive(Debug, Clone)]
pub(super) enum Authority {
    /// Any of these.
    Known(Arc<RootCertStore>),
    /// The one with this SHA-256.
    Pinned([u8; 32]),
}

/// TLS for a caller who has no certificate yet.
pub(super) fn config(authority: Authority) -> ClientConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(Verifier { authority, provider: provider.clone() });
    let mut config = new_client(provider).dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = vec![ENROL_ALPN.to_vec()];
    config
}

#[derive(Debug)]
struct Verifier {
    authority: Authority,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn roots(&self, shown: &[CertificateDer<'_>]) -> Result<Arc<RootCertStore>, rustls::Error> {
        match &self.authority {
            Authority::Known(roots) => Ok(roots.clone()),
            Authority::Pinned(fingerprint) => {
                let pinned = shown.iter().find(|certificate| sha256(certificate) == *fingerprint);
                let mut roots = RootCertStore::empty();
                roots.add(pinned.ok_or(CertificateError::UnknownIssuer)?.clone().into_owned())?;
                Ok(Arc::new(roots))
            }
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = WebPkiServerVerifier::builder_with_provider(self.roots(intermediates)?, self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let verified = chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        match from_certificate(end_entity) {
            Ok(Peer::Node(_)) => Ok(verified),
            _ => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
