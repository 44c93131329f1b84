//! Where the certificates and keys lie. Secrets stand in files, never in the configuration itself.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::document::Document;
use crate::error::Error;

/// The agent's side of mutual TLS 1.3. Made by `weir ca issue --agent`, or by the agent itself when it enrols.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientTls {
    /// PEM with the roots that nodes are checked against. Required, but for an agent that enrols: then `identity/ca.pem` in `data_dir`.
    pub ca: PathBuf,
    /// PEM with the agent's certificate chain; its URI SAN is the agent's identity. In the same way, `identity/cert.pem`.
    pub cert: PathBuf,
    /// PEM with the agent's private key, mode 0600. In the same way, `identity/key.pem`.
    pub key: PathBuf,
}

/// How the agent gets its certificate, and the next ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrol {
    /// The file with the token that `weir token create` printed. Read only while there is no certificate in force; afterwards it may go.
    pub token_file: PathBuf,
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

/// What people write of `enrol`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawEnrol {
    token_file: Option<PathBuf>,
}

impl RawEnrol {
    pub(crate) fn check(self, document: &Document) -> Result<Enrol, Error> {
        let file = document.required("enrol.token_file", self.token_file, "\"token\"")?;
        Ok(Enrol { token_file: document.path("enrol.token_file", &file)? })
    }
}

impl RawTls {
    pub(crate) fn client(self, document: &Document) -> Result<ClientTls, Error> {
        let [ca, cert, key] = self.check(document)?;
        Ok(ClientTls { ca, cert, key })
    }

    /// Of an agent that makes its files itself, in `folder` unless they are named.
    pub(crate) fn made_in(self, folder: &Path, document: &Document) -> Result<ClientTls, Error> {
        let file = |key: &str, raw: Option<PathBuf>, name: &str| match raw {
            Some(raw) => document.path(key, &raw),
            None => Ok(folder.join(name)),
        };
        Ok(ClientTls {
            ca: file("tls.ca", self.ca, "ca.pem")?,
            cert: file("tls.cert", self.cert, "cert.pem")?,
            key: file("tls.key", self.key, "key.pem")?,
        })
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
