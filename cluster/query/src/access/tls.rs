//! The certificate of the SQL port, as PostgreSQL's clients want TLS: after an SSLRequest, or at once with the protocol `postgresql`.

use std::sync::Arc;

use pgwire::tokio::TlsAcceptor;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use weir_config::SqlTls;

use crate::error::Error;

/// What was read.
pub(super) struct Loaded {
    pub(super) acceptor: TlsAcceptor,
    /// PEM of the chain, for the binding of proofs to it.
    pub(super) chain: Vec<u8>,
}

/// Reads the certificate and its key.
pub(super) fn load(tls: &SqlTls) -> Result<Loaded, Error> {
    let failed = |path: &std::path::Path, why: String| Error::Certificate { path: path.to_owned(), why };
    let chain = std::fs::read(&tls.cert).map_err(|why| failed(&tls.cert, why.to_string()))?;
    let certificates = CertificateDer::pem_slice_iter(&chain).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(|why| failed(&tls.cert, why.to_string()))?;
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|why| failed(&tls.key, why.to_string()))?;
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(certificates, key));
    let mut config = config.map_err(|why| failed(&tls.cert, why.to_string()))?;
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(Loaded { acceptor: TlsAcceptor::from(Arc::new(config)), chain })
}
