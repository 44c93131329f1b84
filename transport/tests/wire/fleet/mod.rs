//! A small fleet for tests: an authority, nodes in runtimes of their own that can be killed, agents, and forgers.

#![allow(unreachable_pub, reason = "the tests beside it use all of it")]

pub mod said;
pub mod tokens;
mod wall;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, Endpoint};
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use weir_config::{ClientTls, ServerTls, TransportChoice};
use weir_schema::{AgentIdentity, BatchBuilder, Epoch, Event, Fields, Frame, Host, Kind, Lane, Name, Seq};
use weir_transport::ca::{self, Authority, Existing, IssueOptions};
use weir_transport::frame_stream::{FrameStream, Unit};
use weir_transport::message::Message;
use weir_transport::tls::AgentTls;
use weir_transport::{
    AckRanges, Client, ClientConfig, Doors, Incoming, RefusedReason, ResumeState, Server, ServerHandle, TransportLimits,
};

pub use wall::{Gate, Wall};

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// Waits for something that comes soon.
pub async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let late = Instant::now() + Duration::from_secs(60);
    while !is() {
        assert!(Instant::now() < late, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A frame of `count` events from `first` on.
pub fn frame(lane: Lane, first: u64, count: u64) -> Frame {
    let kind = Kind::ALL.iter().copied().find(|kind| kind.lane() == lane).unwrap();
    let mut builder = BatchBuilder::new(Arc::new(Host::default()), EPOCH, lane, Seq(first));
    for seq in first..first + count {
        builder.push(&Event { kind, time: seq as i64 * 7_919, ..Event::default() }).unwrap();
    }
    builder.finish().unwrap()
}

/// A frame of about `bytes` that does not compress.
pub fn fat_frame(lane: Lane, first: u64, bytes: usize) -> Frame {
    let kind = Kind::ALL.iter().copied().find(|kind| kind.lane() == lane).unwrap();
    let mut builder = BatchBuilder::new(Arc::new(Host::default()), EPOCH, lane, Seq(first));
    let mut state = first.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for _ in 0..bytes.div_ceil(FAT_EVENT_BYTES) {
        // Four random bits in each letter: half of its bytes are what it cannot be compressed below.
        let letters = (0..2 * FAT_EVENT_BYTES).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            char::from(b'a' + (state >> 60) as u8)
        });
        let fields = Fields { path: Some(letters.collect::<String>().into()), ..Fields::default() };
        builder.push(&Event { kind, fields, ..Event::default() }).unwrap();
    }
    builder.finish().unwrap()
}

const FAT_EVENT_BYTES: usize = 1_000;

pub struct Fleet {
    pub dir: TempDir,
    pub authority: Authority,
    pub log: Arc<Mutex<Log>>,
    /// What agents and raw callers use.
    pub transport: TransportChoice,
    /// Of nodes started from now on.
    pub limits: TransportLimits,
}

/// What the nodes' logs hold together.
#[derive(Default)]
pub struct Log {
    /// How often each durable frame came.
    pub frames: BTreeMap<(AgentIdentity, Lane, u64, u32), u32>,
    contents: BTreeMap<(AgentIdentity, Lane, u64), Vec<u8>>,
}

struct SharedLog(Arc<Mutex<Log>>);

impl ResumeState for SharedLog {
    fn acked(&self, agent: &AgentIdentity, epoch: Epoch) -> Vec<(Lane, AckRanges)> {
        assert_eq!(epoch, EPOCH);
        let mut lanes = BTreeMap::<Lane, AckRanges>::new();
        for (identity, lane, first, count) in self.0.lock().unwrap().frames.keys() {
            if identity == agent {
                lanes.entry(*lane).or_default().add(Seq(*first)..Seq(first + u64::from(*count)));
            }
        }
        lanes.into_iter().collect()
    }
}

impl Fleet {
    pub fn on(transport: TransportChoice) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = ca::init(&dir.path().join("ca"), "weir.test").unwrap();
        let limits = TransportLimits { window_bytes: 256 << 10, ..TransportLimits::default() };
        Self { dir, authority, log: Arc::default(), transport, limits }
    }

    /// A running node; port 0 takes a free one.
    pub async fn node(&self, id: &str, port: u16) -> Node {
        self.node_with_log(id, port, self.log.clone()).await
    }

    /// A running node that knows only what is in `log`.
    pub async fn node_with_log(&self, id: &str, port: u16, log: Arc<Mutex<Log>>) -> Node {
        let out = self.dir.path().join(format!("node-{id}"));
        if !out.exists() {
            ca::issue_node(&self.dir.path().join("ca"), &name(id), &out).unwrap();
        }
        Node::start(self.node_tls(id), port, log, self.limits, Doors::default()).await
    }

    /// A running node that takes and makes agents as `doors` say.
    pub async fn node_with_doors(&self, id: &str, doors: Doors) -> Node {
        let out = self.dir.path().join(format!("node-{id}"));
        if !out.exists() {
            ca::issue_node(&self.dir.path().join("ca"), &name(id), &out).unwrap();
        }
        Node::start(self.node_tls(id), 0, self.log.clone(), self.limits, doors).await
    }

    /// The files of a node.
    pub fn node_tls(&self, id: &str) -> ServerTls {
        let out = self.dir.path().join(format!("node-{id}"));
        ServerTls { ca: out.join("ca.pem"), cert: out.join("cert.pem"), key: out.join("key.pem") }
    }

    /// The files of an agent.
    pub fn agent(&self, agent: &str) -> ClientTls {
        let out = self.dir.path().join(format!("agent-{agent}"));
        if !out.exists() {
            ca::issue_agent(&self.dir.path().join("ca"), &name("acme"), &name("eu-1"), &name(agent), &out).unwrap();
        }
        ClientTls { ca: out.join("ca.pem"), cert: out.join("cert.pem"), key: out.join("key.pem") }
    }

    pub fn config(&self, tls: ClientTls, nodes: &[SocketAddr], memory_bytes_max: u64) -> ClientConfig {
        ClientConfig {
            nodes: nodes.iter().map(ToString::to_string).collect(),
            server_name: "weir-node".into(),
            tls,
            memory_bytes_max,
            software: "test".into(),
            transport: self.transport,
            udp_retry: Duration::from_secs(600),
            enrol: None,
            dialer: None,
        }
    }

    pub fn client(&self, agent: &str, nodes: &[SocketAddr], memory_bytes_max: u64) -> Client {
        Client::start(self.config(self.agent(agent), nodes, memory_bytes_max), EPOCH).unwrap()
    }

    /// Why a client finds no session.
    pub async fn fails(&self, config: ClientConfig) -> String {
        let client = Client::start(config, EPOCH).unwrap();
        let late = Instant::now() + Duration::from_secs(60);
        while Instant::now() < late {
            if let Some(why) = client.stats().last_error {
                assert_eq!(client.stats().connected_to, None);
                return why;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the client neither failed nor said why: {:?}", client.stats());
    }

    pub async fn refused_by(&self, tls: ClientTls, node: SocketAddr) -> String {
        self.fails(self.config(tls, &[node], 1 << 20)).await
    }

    /// Speaks raw bytes with a good certificate; how the node closed.
    pub async fn raw(&self, agent: &str, node: SocketAddr, bytes: &[u8]) -> String {
        let tls = AgentTls::load(&self.agent(agent)).unwrap();
        self.say((*tls.config).clone(), node, bytes).await
    }

    /// As `raw`, with any certificate and without looking at the node's.
    pub async fn raw_with(&self, tls: &ClientTls, node: SocketAddr, bytes: &[u8]) -> String {
        let (chain, key) = (chain(&tls.cert), PrivateKeyDer::from_pem_file(&tls.key).unwrap());
        let config = self.careless().with_client_auth_cert(chain, key).unwrap();
        self.say(config, node, bytes).await
    }

    pub async fn raw_without_certificate(&self, node: SocketAddr) -> String {
        self.say(self.careless().with_no_client_auth(), node, b"").await
    }

    async fn say(&self, mut config: rustls::ClientConfig, node: SocketAddr, bytes: &[u8]) -> String {
        config.alpn_protocols = vec![b"weir/1".to_vec()];
        match self.transport {
            TransportChoice::Tcp => say_tcp(dial_tcp(config, node).await, bytes).await,
            _ => say(dial(config, node).await, bytes).await,
        }
    }

    /// Looks at no node's certificate but for its authority.
    pub fn careless(&self) -> rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.cert_pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
    }

    /// A certificate that our authority would never issue, signed with its key.
    pub fn forge(&self, what: &str, uris: &[&str], usages: &[ExtendedKeyUsagePurpose]) -> ClientTls {
        let subject = |common: &str| {
            let mut name = DistinguishedName::new();
            name.push(DnType::CommonName, common);
            name
        };
        let key = std::fs::read_to_string(self.dir.path().join("ca/ca.key")).unwrap();
        let mut issuer = CertificateParams::default();
        issuer.distinguished_name = subject("Weir authority of weir.test");
        let issuer = Issuer::new(issuer, KeyPair::from_pem(&key).unwrap());
        let mut params = CertificateParams::new(vec!["weir-node".to_owned()]).unwrap();
        params.distinguished_name = subject("forged");
        params.subject_alt_names.extend(uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())));
        params.extended_key_usages = usages.to_vec();
        let key = KeyPair::generate().unwrap();
        let issued = ca::Issued {
            ca_pem: self.authority.cert_pem().to_owned(),
            cert_pem: params.signed_by(&key, &issuer).unwrap().pem(),
            key_pem: key.serialize_pem(),
        };
        let files = issued.write(&self.dir.path().join(what), Existing::Keep).unwrap();
        ClientTls { ca: files.ca, cert: files.cert, key: files.key }
    }

    /// A server on both transports with any certificate of our authority.
    pub fn impostor(&self, tls: &ClientTls) -> SocketAddr {
        let (chain, key) = (chain(&tls.cert), PrivateKeyDer::from_pem_file(&tls.key).unwrap());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![b"weir/1".to_vec()];
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config.clone()));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = acceptor.accept(stream).await;
            }
        });
        let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(config).unwrap()));
        let endpoint = Endpoint::server(config, addr).unwrap();
        tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let _ = incoming.await;
            }
        });
        addr
    }
}

/// A certificate of an agent as `authority` issues it, at another time.
pub fn agent_of(authority: &Authority, now: SystemTime) -> ca::Issued {
    let agent = AgentIdentity { tenant: name("acme"), region: name("eu-1"), agent: name("a") };
    authority.agent(&agent, &IssueOptions::default(), now).unwrap()
}

fn chain(path: &std::path::Path) -> Vec<CertificateDer<'static>> {
    vec![CertificateDer::from_pem_file(path).unwrap()]
}

pub async fn dial(config: rustls::ClientConfig, node: SocketAddr) -> Result<(Endpoint, Connection), String> {
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()));
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let connection = endpoint.connect_with(config, node, "weir-node").unwrap().await.map_err(|error| error.to_string())?;
    Ok((endpoint, connection))
}

pub type TcpLink = tokio_rustls::client::TlsStream<TcpStream>;

pub async fn dial_tcp(config: rustls::ClientConfig, node: SocketAddr) -> Result<TcpLink, String> {
    let stream = TcpStream::connect(node).await.map_err(|error| error.to_string())?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    connector.connect("weir-node".try_into().unwrap(), stream).await.map_err(|error| in_words(&error))
}

/// As quinn words an alert.
fn in_words(error: &std::io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(rustls::Error::AlertReceived(alert)) => format!("error {}", u8::from(*alert)),
        _ => error.to_string(),
    }
}

async fn say_tcp(link: Result<TcpLink, String>, bytes: &[u8]) -> String {
    let mut link = match link {
        Ok(link) => link,
        Err(error) => return error,
    };
    let (mut stream, mut piece) = (FrameStream::new(0), [0; 4096]);
    let _ = link.write_all(bytes).await;
    let _ = link.flush().await;
    if !bytes.is_empty() {
        let _ = link.shutdown().await;
    }
    loop {
        match link.read(&mut piece).await {
            Ok(0) => return "an end without a word".to_owned(),
            Ok(length) => stream.push(&piece[..length]),
            Err(error) => return in_words(&error),
        }
        while let Ok(Some(unit)) = stream.next_unit() {
            if let Unit::Message(Message::Bye(bye)) = unit {
                return format!("said {}", bye.as_str());
            }
        }
    }
}

async fn say(connection: Result<(Endpoint, Connection), String>, bytes: &[u8]) -> String {
    let (endpoint, connection) = match connection {
        Ok(connection) => connection,
        Err(error) => return error,
    };
    if let Ok((mut send, _recv)) = connection.open_bi().await {
        let _ = send.write_all(bytes).await;
        let _ = send.finish();
        return connection.closed().await.to_string();
    }
    let closed = connection.closed().await.to_string();
    drop(endpoint);
    closed
}

/// A node in a runtime of its own: killing it sends nothing.
pub struct Node {
    pub addr: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
    handle: ServerHandle,
    ingest: Arc<Ingest>,
    run: tokio::task::JoinHandle<()>,
}

struct Ingest {
    log: Arc<Mutex<Log>>,
    /// How many frames get a verdict.
    most: AtomicUsize,
    /// Bytes of frames without one, and their peak.
    waiting_bytes: AtomicUsize,
    waiting_bytes_peak: AtomicUsize,
    held: AtomicBool,
    change: Notify,
}

impl Node {
    async fn start(tls: ServerTls, port: u16, log: Arc<Mutex<Log>>, limits: TransportLimits, doors: Doors) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listen = SocketAddr::from(([127, 0, 0, 1], port));
        let bound = runtime.spawn(async move { Server::listen_for(listen.into(), &tls, limits, doors).await });
        let server = bound.await.unwrap().unwrap();
        let (addr, handle) = (server.local_addr(), server.handle());
        let (to_ingest, incoming) = mpsc::channel(16);
        let run = runtime.spawn(server.run(to_ingest, Arc::new(SharedLog(log.clone()))));
        let ingest = Arc::new(Ingest {
            log,
            most: AtomicUsize::new(usize::MAX),
            waiting_bytes: AtomicUsize::new(0),
            waiting_bytes_peak: AtomicUsize::new(0),
            held: AtomicBool::new(false),
            change: Notify::new(),
        });
        runtime.spawn(take(ingest.clone(), incoming));
        Self { addr, runtime: Some(runtime), handle, ingest, run }
    }

    pub fn stop_storing_after(&self, most: usize) {
        self.ingest.most.store(most, Ordering::SeqCst);
    }

    pub fn hold(&self, held: bool) {
        self.ingest.held.store(held, Ordering::SeqCst);
        self.ingest.change.notify_one();
    }

    /// Bytes of frames that ingest has without a verdict: now, and at the most.
    pub fn waiting_bytes(&self) -> (usize, usize) {
        let read = |count: &AtomicUsize| count.load(Ordering::SeqCst);
        (read(&self.ingest.waiting_bytes), read(&self.ingest.waiting_bytes_peak))
    }

    /// As `kill -9`: no packet says so.
    pub async fn kill(mut self) {
        let runtime = self.runtime.take().unwrap();
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(Duration::from_secs(10))).await.unwrap();
    }

    pub async fn stop(mut self) {
        self.handle.close();
        (&mut self.run).await.unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn take(ingest: Arc<Ingest>, mut incoming: mpsc::Receiver<Incoming>) {
    let mut waiting = VecDeque::new();
    let mut taken = 0;
    loop {
        tokio::select! {
            next = incoming.recv() => match next {
                Some(next) => {
                    let bytes = next.frame.bytes.len();
                    let now = ingest.waiting_bytes.fetch_add(bytes, Ordering::SeqCst) + bytes;
                    ingest.waiting_bytes_peak.fetch_max(now, Ordering::SeqCst);
                    waiting.push_back(next);
                }
                None => return,
            },
            () = ingest.change.notified() => {}
        }
        if ingest.held.load(Ordering::SeqCst) {
            continue;
        }
        while taken < ingest.most.load(Ordering::SeqCst) {
            let Some(next) = waiting.pop_front() else { break };
            taken += 1;
            ingest.waiting_bytes.fetch_sub(next.frame.bytes.len(), Ordering::SeqCst);
            judge(&ingest.log, next);
        }
    }
}

fn judge(log: &Mutex<Log>, incoming: Incoming) {
    let header = incoming.frame.header;
    let identity = (*incoming.identity).clone();
    let key = (identity.clone(), header.lane, header.first_seq.0, header.count);
    let mut log = log.lock().unwrap();
    let content = log.contents.entry((identity, header.lane, header.first_seq.0)).or_insert_with(|| incoming.frame.bytes.clone());
    if *content != incoming.frame.bytes {
        drop(log);
        return incoming.ack.refused(RefusedReason::Conflict);
    }
    *log.frames.entry(key).or_default() += 1;
    drop(log);
    incoming.ack.durable();
}

pub const EPOCH: Epoch = Epoch(42);
