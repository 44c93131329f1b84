//! A server of HTTP/1.1 that answers what a case says, byte by byte if need be. One answer per connection.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};

/// What was asked.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// Method and path, as `GET /x?y`.
    pub(crate) line: String,
    /// The head, in lower case.
    pub(crate) head: String,
}

/// A part of an answer.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    /// Bytes as they are.
    Send(Vec<u8>),
    /// A pause.
    Pause(Duration),
    /// Nothing more, and the connection stays.
    Hang,
}

/// What is answered to what is asked, and to how many before.
type Answering = dyn Fn(&Asked, usize) -> Vec<Act> + Send + Sync;

/// Answers of a server, and what it was asked.
#[derive(Clone)]
pub(crate) struct Fake {
    answer: Arc<Answering>,
    /// All that was asked, in order.
    pub(crate) asked: Arc<Mutex<Vec<Asked>>>,
}

impl Fake {
    /// `answer` is given what is asked, and how many were before it.
    pub(crate) fn new(answer: impl Fn(&Asked, usize) -> Vec<Act> + Send + Sync + 'static) -> Self {
        Self { answer: Arc::new(answer), asked: Arc::default() }
    }

    /// How many requests had a line with this text in it.
    pub(crate) fn count(&self, text: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| asked.line.contains(text)).count()
    }

    /// Serves at a Unix socket.
    pub(crate) fn unix(&self, path: &Path) {
        let listener = UnixListener::bind(path).unwrap();
        let fake = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(fake.clone().serve(stream));
            }
        });
    }

    /// Serves at a port of loopback.
    pub(crate) async fn tcp(&self) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (at, fake) = (listener.local_addr().unwrap(), self.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(fake.clone().serve(stream));
            }
        });
        at
    }

    /// The same over TLS; returns also the certificate, PEM, which is its own root.
    pub(crate) async fn tls(&self) -> (std::net::SocketAddr, String) {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key.into()).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (at, fake) = (listener.local_addr().unwrap(), self.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (fake, acceptor) = (fake.clone(), acceptor.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        fake.serve(stream).await;
                    }
                });
            }
        });
        (at, made.cert.pem())
    }

    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(self, mut stream: S) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            match stream.read(&mut byte).await {
                Ok(1) => head.push(byte[0]),
                _ => return,
            }
        }
        let head = String::from_utf8(head).unwrap();
        let line = head.lines().next().unwrap().trim_end_matches(" HTTP/1.1").to_owned();
        let asked = Asked { line, head: head.to_lowercase() };
        let before = {
            let mut all = self.asked.lock().unwrap();
            all.push(asked.clone());
            all.len() - 1
        };
        for act in (self.answer)(&asked, before) {
            match act {
                Act::Send(bytes) => {
                    if stream.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
                Act::Pause(pause) => tokio::time::sleep(pause).await,
                Act::Hang => std::future::pending().await,
            }
        }
    }
}

/// A whole answer.
pub(crate) fn answer(status: u16, headers: &str, body: &str) -> Vec<Act> {
    let length = body.len();
    vec![Act::Send(
        format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n{body}").into_bytes(),
    )]
}

/// A whole answer that is well.
pub(crate) fn ok(body: &str) -> Vec<Act> {
    answer(200, "", body)
}

/// The head of an answer that goes on until the connection ends, and its first bytes.
pub(crate) fn stream(body: &str) -> Vec<Act> {
    vec![Act::Send(format!("HTTP/1.1 200 X\r\nconnection: close\r\n\r\n{body}").into_bytes())]
}
