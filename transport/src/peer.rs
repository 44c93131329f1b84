//! TLS between nodes: both ends show a node's certificate, and each knows by name whom it wants.
//!
//! Promise: a link that comes out of [`PeerTls::dial`] or [`PeerTls::accept`] was made with a node of our trust domain, under our
//! authority, in time; `dial` with exactly the node that was asked for. What the link is for is agreed by whoever uses it.

use std::io;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use weir_config::ServerTls;
use weir_schema::Name;

use crate::ca::NODE_NAME;
use crate::error::Error;
use crate::identity::{Peer, from_certificate};
use crate::tls::node_to_node;

/// A node's own end of links to other nodes.
#[derive(Clone)]
pub struct PeerTls {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
}

impl PeerTls {
    /// Reads a node's three files.
    pub fn load(files: &ServerTls) -> Result<Self, Error> {
        let (server, client) = node_to_node(files, ALPN)?;
        Ok(Self { acceptor: Arc::new(server).into(), connector: Arc::new(client).into() })
    }

    /// Takes a link; says who is at its other end.
    pub async fn accept(&self, socket: TcpStream) -> io::Result<(server::TlsStream<TcpStream>, Name)> {
        let link = self.acceptor.accept(socket).await?;
        let node = node_of(link.get_ref().1.peer_certificates())?;
        Ok((link, node))
    }

    /// Makes a link to node `wanted`.
    pub async fn dial(&self, socket: TcpStream, wanted: &Name) -> io::Result<client::TlsStream<TcpStream>> {
        let name = ServerName::try_from(NODE_NAME).expect("it is a DNS name");
        let link = self.connector.connect(name, socket).await?;
        let found = node_of(link.get_ref().1.peer_certificates())?;
        if found != *wanted {
            return Err(io::Error::other(format!("the certificate there is that of node {found}, not of {wanted}")));
        }
        Ok(link)
    }
}

fn node_of(chain: Option<&[CertificateDer<'_>]>) -> io::Result<Name> {
    match chain.and_then(<[_]>::first).map(|first| from_certificate(first)) {
        Some(Ok(Peer::Node(node))) => Ok(node),
        _ => Err(io::Error::other("the other end shows no certificate of a node")),
    }
}

/// The one application protocol of links between nodes.
const ALPN: &[u8] = b"weir-mesh/1";
