//! One connection between an agent and a node: a stream of QUIC, or a TLS session over TCP. The bytes on both are the same.
//!
//! Promise: whoever talks through a [`Link`] need not know which it is, but for how it ends. QUIC closes with a code and words; TCP has
//! the message Bye for it, sent before the end. A write that is broken off leaves no half message before that Bye.
//!
//! TCP knows only whether the other kernel lives: keep-alive and user time-out find a dead host. A frozen process is found by the
//! agent, see `client/pulse.rs`: on TCP a node says something at least every second while frames are on their way.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use quinn::{Connection, ConnectionError, ReadError, RecvStream, SendStream, WriteError};
use rustix::net::sockopt;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsStream;

use crate::frame_stream::FrameStream;
use crate::message::{Bye, Message};
use crate::socket::{self, KEEP_ALIVE};
use crate::tls::ALPN;

/// What carries a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// QUIC over UDP.
    Quic,
    /// TLS 1.3 over TCP, for networks that let no UDP through.
    Tcp,
}

impl Transport {
    /// A short fixed word for metrics, logs and the relation `agents`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
        }
    }
}

/// A connection whose handshake is done.
pub(crate) struct Link {
    /// `None` on TCP.
    quic: Option<Connection>,
    /// The other end's certificates, its own first.
    chain: Vec<CertificateDer<'static>>,
    halves: Option<(Reader, Writer)>,
}

/// Why a link is of no use any more.
#[derive(Debug)]
pub(crate) enum Lost {
    Quic(ConnectionError),
    /// The stream ended otherwise than by its last byte; QUIC only.
    Stream,
    Tcp(io::Error),
}

/// The bytes that come.
pub(crate) enum Reader {
    Quic(RecvStream),
    Tcp { half: ReadHalf<TlsStream<TcpStream>>, piece: Box<[u8]> },
}

/// The bytes that go.
pub(crate) enum Writer {
    Quic(SendStream),
    Tcp { half: WriteHalf<TlsStream<TcpStream>>, unsent: VecDeque<Bytes> },
}

impl Link {
    /// On a connection of QUIC, to be opened or accepted. `None`: the other end shows no certificate.
    pub(crate) fn quic(connection: Connection) -> Option<Self> {
        let chain = *connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
        (!chain.is_empty()).then_some(Self { quic: Some(connection), chain, halves: None })
    }

    /// On a TLS session. `None`: the other end shows no certificate, or came for something else.
    pub(crate) fn tcp(stream: impl Into<TlsStream<TcpStream>>) -> Option<Self> {
        let stream = stream.into();
        let (_, session) = stream.get_ref();
        let chain: Vec<_> = session.peer_certificates()?.iter().cloned().map(CertificateDer::into_owned).collect();
        if chain.is_empty() || session.alpn_protocol() != Some(ALPN) {
            return None;
        }
        let (half, write) = tokio::io::split(stream);
        let reader = Reader::Tcp { half, piece: vec![0; PIECE_BYTES].into() };
        let writer = Writer::Tcp { half: write, unsent: VecDeque::new() };
        Some(Self { quic: None, chain, halves: Some((reader, writer)) })
    }

    pub(crate) fn transport(&self) -> Transport {
        if self.quic.is_some() { Transport::Quic } else { Transport::Tcp }
    }

    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// QUIC's connection, for its counters.
    pub(crate) fn connection(&self) -> Option<Connection> {
        self.quic.clone()
    }

    /// The calling end's stream.
    pub(crate) async fn open(&mut self) -> Result<(&mut Reader, &mut Writer), Lost> {
        if let (Some(connection), None) = (&self.quic, &self.halves) {
            let (send, recv) = connection.open_bi().await.map_err(Lost::Quic)?;
            self.halves = Some((Reader::Quic(recv), Writer::Quic(send)));
        }
        Ok(self.both())
    }

    /// The called end's stream.
    pub(crate) async fn accept(&mut self) -> Result<(&mut Reader, &mut Writer), Lost> {
        if let (Some(connection), None) = (&self.quic, &self.halves) {
            let (send, recv) = connection.accept_bi().await.map_err(Lost::Quic)?;
            self.halves = Some((Reader::Quic(recv), Writer::Quic(send)));
        }
        Ok(self.both())
    }

    /// Ends the link with a word; on TCP as far as the other end takes it soon.
    pub(crate) async fn close(mut self, bye: Bye, why: &str) {
        match (&self.quic, &mut self.halves) {
            (Some(connection), _) => connection.close(socket::close_code(bye), why.as_bytes()),
            (None, Some((reader, writer))) => {
                writer.put(Message::Bye(bye).encode().into());
                if timeout(CLOSE_TIME_MAX, writer.finish()).await.is_ok_and(|sent| sent.is_ok()) {
                    // What still comes is taken and thrown away: a socket closed over it would reset, and our word be lost.
                    let _ = timeout(CLOSE_TIME_MAX, reader.drain()).await;
                }
            }
            (None, None) => {}
        }
    }

    /// What QUIC was closed with: it counts more than the stream's error that comes with it.
    pub(crate) fn close_reason(&self) -> Option<ConnectionError> {
        self.quic.as_ref()?.close_reason()
    }

    fn both(&mut self) -> (&mut Reader, &mut Writer) {
        let (reader, writer) = self.halves.as_mut().expect("TCP has its halves from the start, QUIC got them above");
        (reader, writer)
    }
}

impl Reader {
    /// Moves what comes next into `stream`; false at the end. May be broken off.
    pub(crate) async fn read(&mut self, stream: &mut FrameStream) -> Result<bool, Lost> {
        match self {
            Self::Quic(recv) => match recv.read_chunk(CHUNK_BYTES_MAX, true).await {
                Ok(Some(chunk)) => stream.push(&chunk.bytes),
                Ok(None) => return Ok(false),
                Err(ReadError::ConnectionLost(error)) => return Err(Lost::Quic(error)),
                Err(_) => return Err(Lost::Stream),
            },
            Self::Tcp { half, piece } => match half.read(piece).await {
                Ok(0) => return Ok(false),
                Ok(count) => stream.push(&piece[..count]),
                Err(error) => return Err(Lost::Tcp(error)),
            },
        }
        Ok(true)
    }

    async fn drain(&mut self) {
        if let Self::Tcp { half, piece } = self {
            while half.read(piece).await.is_ok_and(|count| count > 0) {}
        }
    }
}

impl Writer {
    /// Sends `chunks` and leaves none of them. Broken off, it may have sent a part: then only `Link::close` follows.
    pub(crate) async fn write(&mut self, chunks: &mut Vec<Bytes>) -> Result<(), Lost> {
        match self {
            Self::Quic(send) => match send.write_all_chunks(chunks).await {
                Ok(()) => chunks.clear(),
                Err(WriteError::ConnectionLost(error)) => return Err(Lost::Quic(error)),
                Err(_) => return Err(Lost::Stream),
            },
            Self::Tcp { unsent, .. } => {
                unsent.extend(chunks.drain(..));
                self.flush().await.map_err(Lost::Tcp)?;
            }
        }
        Ok(())
    }

    /// Says that nothing comes any more, and waits until the other end has all, or as good as.
    pub(crate) async fn end(&mut self) {
        match self {
            Self::Quic(send) => {
                let _ = send.finish();
                let _ = send.stopped().await;
            }
            Self::Tcp { .. } => {
                if self.finish().await.is_ok() {
                    // The other end closes when it has read ours; its end is seen by who reads.
                    tokio::time::sleep(CLOSE_TIME_MAX).await;
                }
            }
        }
    }

    fn put(&mut self, bytes: Bytes) {
        if let Self::Tcp { unsent, .. } = self {
            unsent.push_back(bytes);
        }
    }

    async fn finish(&mut self) -> io::Result<()> {
        self.flush().await?;
        match self {
            Self::Tcp { half, .. } => half.shutdown().await,
            Self::Quic(_) => Ok(()),
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        let Self::Tcp { half, unsent } = self else { return Ok(()) };
        while let Some(front) = unsent.front_mut() {
            // Takes a part or nothing when it is broken off, never a part that is not noted.
            let count = half.write(front).await?;
            front.advance(count);
            if front.is_empty() {
                unsent.pop_front();
            } else if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        half.flush().await
    }
}

/// Settings of a TCP socket of either end. A host that died is given up after `silence`, be the link idle or not.
pub(crate) fn tune(stream: &TcpStream, silence: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEP_ALIVE.min(silence))?;
    sockopt::set_tcp_keepintvl(stream, PROBE_EVERY)?;
    sockopt::set_tcp_user_timeout(stream, u32::try_from(silence.as_millis()).unwrap_or(u32::MAX))?;
    Ok(())
}

/// Closes a socket whose handshake failed, so that the other end still gets the alert: one closed over unread bytes would reset.
pub(crate) async fn let_go(mut stream: TcpStream) {
    let drain = async {
        stream.shutdown().await?;
        let mut piece = [0; 1024];
        let mut left = LET_GO_BYTES_MAX;
        while left > 0 {
            match stream.read(&mut piece).await? {
                0 => break,
                count => left = left.saturating_sub(count),
            }
        }
        io::Result::Ok(())
    };
    let _ = timeout(CLOSE_TIME_MAX, drain).await;
}

/// The session's error, where TLS is what failed.
pub(crate) fn tls_of(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// A server name for TLS.
pub(crate) fn server_name(name: &str) -> Result<rustls::pki_types::ServerName<'static>, String> {
    name.to_owned().try_into().map_err(|_| format!("{name:?} is no server name (cure: `server_name`)"))
}

/// TLS for one outgoing connection.
pub(crate) fn connector(config: &Arc<rustls::ClientConfig>) -> tokio_rustls::TlsConnector {
    tokio_rustls::TlsConnector::from(config.clone())
}

/// Read at once from QUIC.
const CHUNK_BYTES_MAX: usize = 64 * 1024;
/// Read at once from TCP: one record of TLS. Held by every connection.
const PIECE_BYTES: usize = 16 * 1024;
/// For a last word, and again for the other end to take it.
const CLOSE_TIME_MAX: Duration = Duration::from_millis(500);
/// Taken of a caller whose handshake failed.
const LET_GO_BYTES_MAX: usize = 64 * 1024;
/// Between two probes of an idle host that did not answer.
const PROBE_EVERY: Duration = Duration::from_secs(5);
