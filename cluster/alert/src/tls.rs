//! TLS to sinks: rustls, against the system's certificates or those of a file.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

/// What servers are checked against; the error says what to do.
pub(crate) fn client(ca: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            let unreadable = |why: String| format!("could not read ca = {}: {why}", path.display());
            for certificate in CertificateDer::pem_file_iter(path).map_err(|why| unreadable(why.to_string()))? {
                let certificate = certificate.map_err(|why| unreadable(why.to_string()))?;
                roots.add(certificate).map_err(|why| unreadable(why.to_string()))?;
            }
            if roots.is_empty() {
                return Err(unreadable("no certificate in it; write PEM".to_owned()));
            }
        }
        // None at all is told by the handshake, and only matters to who uses TLS.
        None => _ = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs),
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions =
        ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12]);
    Ok(versions.map_err(|why| why.to_string())?.with_root_certificates(roots).with_no_client_auth())
}
