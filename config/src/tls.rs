//! Where the certificates and keys lie. Secrets stand in files, never in the configuration itself.

use std::path::PathBuf;

use serde::Deserialize;

use crate::document::Document;
use crate::error::Error;

/// The agent's side of mutual TLS 1.3. Made by `weir ca issue --agent`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientTls {
    /// PEM with the roots that nodes are checked against. Required.
    pub ca: PathBuf,
    /// PEM with the agent's certificate chain; its URI SAN is the agent's identity. Required.
    pub cert: PathBuf,
    /// PEM with the agent's private key, mode 0600. Required.
    pub key: PathBuf,
}

/// The node's side of mutual TLS 1.3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTls {
    /// PEM with the roots that agents and other nodes are checked against. Required.
    pub ca: PathBuf,
    /// PEM with the node's certificate chain (URI SAN `spiffe://TD/node/ID`). Required.
    pub cert: PathBuf,
    /// PEM with the node's private key, mode 0600. Required.
    pub key: PathBuf,
}

/// What people write.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawTls {
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
}

impl RawTls {
    pub(crate) fn client(self, document: &Document) -> Result<ClientTls, Error> {
        let [ca, cert, key] = self.check(document)?;
        Ok(ClientTls { ca, cert, key })
    }

    pub(crate) fn server(self, document: &Document) -> Result<ServerTls, Error> {
        let [ca, cert, key] = self.check(document)?;
        Ok(ServerTls { ca, cert, key })
    }

    fn check(self, document: &Document) -> Result<[PathBuf; 3], Error> {
        let file = |key: &str, raw: Option<PathBuf>, example: &str| document.path(key, &document.required(key, raw, example)?);
        Ok([
            file("tls.ca", self.ca, "\"ca.pem\"")?,
            file("tls.cert", self.cert, "\"cert.pem\"")?,
            file("tls.key", self.key, "\"key.pem\"")?,
        ])
    }
}
