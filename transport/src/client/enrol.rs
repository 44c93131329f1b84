//! The agent's side of enrolment and renewal: its key, one request to one node, and the files that come of it.
//!
//! Promises: the key is made here with mode 0600 and goes nowhere; it is on the disk before a token is spent, so that the same
//! request can be made again. A certificate is put in force by one rename, after it was seen to fit the key, and stays what it was when
//! anything fails.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use quinn::ConnectionError;
use quinn::crypto::rustls::QuicClientConfig;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::{info, warn};
use weir_config::{ClientTls, TransportChoice};

use super::ClientConfig;
use super::connect::Waits;
use super::explain::explain;
use super::pin::{self, Authority};
use crate::ca::{self, Existing, Secrecy};
use crate::certificate::{Validity, to_pem};
use crate::enrol::{ANSWER_BYTES_MAX, Answer, Ask, ENROL_ALPN, Grant, HEAD_BYTES, Refusal, Token, decode_answer, decode_head};
use crate::error::Error;
use crate::link::{self, Lost};
use crate::message::Bye;
use crate::socket;
use crate::tls::{AgentTls, Own, certificates, read};
use crate::trust::full_name;

/// Makes sure that the agent of `config` has a certificate in force: with none it enrols by its token, and tries on until a node
/// answers. An error is final: a person has to do something.
pub async fn ensure_certificate(config: &ClientConfig) -> Result<(), Error> {
    let Some(enrol) = &config.enrol else { return Ok(()) };
    let mut waits = Waits::new();
    loop {
        if is_in_force(&config.tls) {
            return Ok(());
        }
        let why = match by_token(config, &enrol.token_file).await? {
            Ok(()) => return Ok(()),
            Err(NoGrant::Refused { node, refusal }) if !refusal.may_pass() => {
                return Err(Error::NotEnrolled { node, reason: refusal.explain() });
            }
            Err(not_yet) => not_yet.to_string(),
        };
        let wait = waits.grown();
        warn!(why, next_try_ms = wait.as_millis() as u64, "not enrolled yet");
        tokio::time::sleep(wait).await;
    }
}

/// Whether there is a certificate, with its key, whose time is not over.
pub(super) fn is_in_force(files: &ClientTls) -> bool {
    files.cert.exists() && AgentTls::load(files).is_ok_and(|tls| tls.validity.until > SystemTime::now())
}

/// Why no certificate came.
#[derive(Debug)]
pub(super) enum NoGrant {
    /// A node said no.
    Refused { node: String, refusal: Refusal },
    /// None was reached, or what came is of no use.
    Failed(String),
}

impl std::fmt::Display for NoGrant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused { node, refusal } => write!(f, "{node}: {}", refusal.explain()),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

/// Enrols. The outer error is one of this host's files.
pub(super) async fn by_token(config: &ClientConfig, token_file: &Path) -> Result<Result<(), NoGrant>, Error> {
    let content = |problem: &str| Error::Content {
        path: token_file.into(),
        problem: format!("holds no token ({problem})"),
        cure: "write there what `weir token create` printed",
    };
    let text = fs::read_to_string(token_file).map_err(|source| Error::File {
        doing: "read",
        path: token_file.into(),
        source,
        cure: " (write there what `weir token create` printed)",
    })?;
    let token: Token = text.parse().map_err(content)?;
    let authority = match config.tls.ca.exists() {
        true => Authority::Known(roots(&config.tls.ca)?),
        false => Authority::Pinned(token.authority),
    };
    let key = own_key(&config.tls.key)?;
    let ask = Ask { token: Some((token.id, token.secret.clone())), request: request(&key)? };
    Ok(obtain(config, Arc::new(pin::config(authority)), &ask, &key).await)
}

/// Renews the certificate in force.
pub(super) async fn renew(config: &ClientConfig) -> Result<Result<(), NoGrant>, Error> {
    let tls = AgentTls::load(&config.tls)?;
    let key = own_key(&config.tls.key)?;
    let mut calling = (*tls.config).clone();
    calling.alpn_protocols = vec![ENROL_ALPN.to_vec()];
    Ok(obtain(config, Arc::new(calling), &Ask { token: None, request: request(&key)? }, &key).await)
}

/// Asks one node after the other until one gives a certificate, or refuses so that no other would say otherwise.
async fn obtain(config: &ClientConfig, tls: Arc<rustls::ClientConfig>, ask: &Ask, key: &KeyPair) -> Result<(), NoGrant> {
    let bytes = ask.encode();
    let first = Waits::new().random() as usize % config.nodes.len();
    let mut last = NoGrant::Failed("no node was asked".to_owned());
    for turn in first..first + config.nodes.len() {
        let node = &config.nodes[turn % config.nodes.len()];
        last = match ask_node(config, &tls, node, &bytes).await {
            Ok(Ok(grant)) => match install(&config.tls, &grant, key) {
                Ok(()) => return Ok(()),
                Err(error) => NoGrant::Failed(format!("the certificate that {node} gave is not put in force: {error}")),
            },
            Ok(Err(refusal)) if !refusal.may_pass() => return Err(NoGrant::Refused { node: node.clone(), refusal }),
            Ok(Err(refusal)) => NoGrant::Refused { node: node.clone(), refusal },
            Err(why) => NoGrant::Failed(format!("{node}: {why}")),
        };
    }
    Err(last)
}

/// Over QUIC or TCP, whichever is let through, at the first address that answers.
async fn ask_node(config: &ClientConfig, tls: &Arc<rustls::ClientConfig>, node: &str, ask: &[u8]) -> Result<Answer, String> {
    let addresses = tokio::net::lookup_host(node).await.map_err(|error| format!("could not resolve {node:?}: {error}"))?;
    let addresses: Vec<SocketAddr> = addresses.take(ADDRESSES_MAX).collect();
    let mut last = format!("{node:?} has no address");
    for over_quic in [true, false] {
        match (over_quic, config.transport) {
            (true, TransportChoice::Tcp) | (false, TransportChoice::Quic) => continue,
            _ => {}
        }
        for address in &addresses {
            let asked = async {
                match over_quic {
                    true => ask_quic(config, tls, *address, ask).await,
                    false => ask_tcp(config, tls, *address, ask).await,
                }
            };
            last = match timeout(ASK_TIME_MAX, asked).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(why)) => why,
                Err(_) => format!("{address} does not answer"),
            };
        }
    }
    Err(last)
}

async fn ask_quic(
    config: &ClientConfig,
    tls: &Arc<rustls::ClientConfig>,
    address: SocketAddr,
    ask: &[u8],
) -> Result<Answer, String> {
    let dialer = config.dialer.clone().unwrap_or_default();
    let endpoint = dialer.endpoint(address).map_err(|error| format!("could not open a UDP socket: {error}"))?;
    let crypto = QuicClientConfig::try_from(tls.clone()).expect("the provider has the suite of QUIC's first packets");
    let mut quic = quinn::ClientConfig::new(Arc::new(crypto));
    quic.transport_config(socket::transport(socket::IDLE, 0));
    let lost = |error: ConnectionError| explain(&Lost::Quic(error));
    let connecting = endpoint.connect_with(quic, address, &config.server_name).map_err(|error| error.to_string())?;
    let connection = connecting.await.map_err(lost)?;
    let (mut asking, mut answering) = connection.open_bi().await.map_err(lost)?;
    let answer = async {
        asking.write_all(ask).await.map_err(io::Error::from)?;
        let _ = asking.finish();
        read_answer(&mut answering).await
    };
    let answer = answer.await.map_err(|error| connection.close_reason().map_or_else(|| error.to_string(), lost));
    connection.close(socket::close_code(Bye::Done), b"");
    answer
}

async fn ask_tcp(
    config: &ClientConfig,
    tls: &Arc<rustls::ClientConfig>,
    address: SocketAddr,
    ask: &[u8],
) -> Result<Answer, String> {
    let lost = |error| explain(&Lost::Tcp(error));
    let name = link::server_name(&config.server_name)?;
    let stream = TcpStream::connect(address).await.map_err(|error| format!("could not connect to {address}/tcp: {error}"))?;
    let mut stream = link::connector(tls).connect(name, stream).await.map_err(lost)?;
    if stream.get_ref().1.alpn_protocol() != Some(ENROL_ALPN) {
        return Err(NO_ENROLMENT.to_owned());
    }
    stream.write_all(ask).await.map_err(lost)?;
    stream.flush().await.map_err(lost)?;
    let answer = read_answer(&mut stream).await.map_err(lost);
    let _ = stream.shutdown().await;
    answer
}

async fn read_answer(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Answer> {
    let mut head = [0; HEAD_BYTES];
    stream.read_exact(&mut head).await?;
    let mut body = vec![0; decode_head(head, ANSWER_BYTES_MAX).map_err(io::Error::other)?];
    stream.read_exact(&mut body).await?;
    decode_answer(&body).map_err(io::Error::other)
}

/// The agent's key, made when it is not there.
fn own_key(path: &Path) -> Result<KeyPair, Error> {
    if path.exists() {
        let pem = String::from_utf8_lossy(&read(path)?).into_owned();
        return KeyPair::from_pem(&pem).map_err(|error| Error::Content {
            path: path.into(),
            problem: format!("holds no private key ({error})"),
            cure: "remove it: the agent makes a new one, and needs a new token",
        });
    }
    let failed = |error: rcgen::Error| Error::Request { problem: error.to_string() };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        ca::make_dir(folder)?;
    }
    ca::write(path, &key.serialize_pem(), Secrecy::Owner, Existing::Keep)?;
    Ok(key)
}

fn request(key: &KeyPair) -> Result<Vec<u8>, Error> {
    let failed = |error: rcgen::Error| Error::Request { problem: error.to_string() };
    let mut params = CertificateParams::default();
    // Who we are is not ours to say.
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "weir-agent");
    Ok(params.serialize_request(key).map_err(failed)?.der().to_vec())
}

/// Puts a certificate in force: the roots first, so that no moment has a certificate without them.
fn install(files: &ClientTls, grant: &Grant, key: &KeyPair) -> Result<(), Error> {
    let certificate = [CertificateDer::from(grant.certificate.as_slice())];
    let roots: Vec<_> = grant.roots.iter().map(|root| CertificateDer::from(root.as_slice())).collect();
    let (cert_pem, ca_pem) = (to_pem(&certificate), to_pem(&roots));
    let contents = [ca_pem.clone(), cert_pem.clone(), key.serialize_pem()].map(String::into_bytes);
    let tls = AgentTls::of(files, Own::parse([&files.ca, &files.cert, &files.key], contents)?)?;
    for path in [&files.ca, &files.cert] {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            ca::make_dir(folder)?;
        }
    }
    if fs::read(&files.ca).ok().as_deref() != Some(ca_pem.as_bytes()) {
        ca::write(&files.ca, &ca_pem, Secrecy::World, Existing::Replace)?;
    }
    ca::write(&files.cert, &cert_pem, Secrecy::World, Existing::Replace)?;
    let Validity { until, .. } = tls.validity;
    let valid_s = until.duration_since(SystemTime::now()).unwrap_or_default().as_secs();
    info!(agent = full_name(&tls.agent), valid_s, roots = roots.len(), "certificate in force");
    Ok(())
}

fn roots(path: &Path) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    for root in certificates(path, &read(path)?)? {
        roots.add(root).map_err(|error| crate::tls::tls_error(path, error))?;
    }
    Ok(Arc::new(roots))
}

/// When the other end knows only sessions.
const NO_ENROLMENT: &str = "this node issues no certificates (cure: `agents.authority` in its config)";
/// Addresses of one node that are tried.
const ADDRESSES_MAX: usize = 4;
/// For one address, from the first packet to the answer.
const ASK_TIME_MAX: Duration = Duration::from_secs(8);
