//! Lines to syslog servers (UDP, TCP, TLS) and to files.
//!
//! TCP and TLS use octet counting (RFC 6587, RFC 5425) and one connection for all alerts. A server acknowledges nothing: a line counts as
//! delivered once the kernel has taken it, so those of the last moment before a server's death may be lost.

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Mutex;
use weir_config::{HostPort, SyslogProtocol};

/// Speaks to one syslog server.
pub(crate) struct Syslog {
    address: HostPort,
    protocol: SyslogProtocol,
    tls: Option<tokio_rustls::TlsConnector>,
    connection: Mutex<Option<Box<dyn Stream>>>,
    time_max: Duration,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl std::fmt::Debug for Syslog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Syslog({}, {:?})", self.address, self.protocol)
    }
}

impl Syslog {
    pub(crate) fn new(address: &HostPort, protocol: SyslogProtocol, ca: Option<&Path>, time_ms_max: u64) -> Result<Self, String> {
        let tls = match protocol {
            SyslogProtocol::Tls => Some(Arc::new(crate::tls::client(ca)?).into()),
            SyslogProtocol::Udp | SyslogProtocol::Tcp => None,
        };
        let time_max = Duration::from_millis(time_ms_max);
        Ok(Self { address: address.clone(), protocol, tls, connection: Mutex::new(None), time_max })
    }

    /// Sends one line, without its end.
    pub(crate) async fn send(&self, line: &[u8]) -> Result<(), String> {
        let sent = async {
            match self.protocol {
                SyslogProtocol::Udp => self.datagram(line).await,
                SyslogProtocol::Tcp | SyslogProtocol::Tls => self.frame(line).await,
            }
        };
        match tokio::time::timeout(self.time_max, sent).await {
            Ok(sent) => sent.map_err(|why| format!("could not send to {}: {why}", self.address)),
            Err(_) => Err(format!("{} took nothing in time", self.address)),
        }
    }

    async fn datagram(&self, line: &[u8]) -> std::io::Result<()> {
        let mut failed = std::io::Error::other("the name has no address");
        for to in tokio::net::lookup_host(self.address.as_str()).await? {
            let from = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(from).await?;
            match socket.send_to(line, to).await {
                Ok(_) => return Ok(()),
                Err(why) => failed = why,
            }
        }
        Err(failed)
    }

    async fn frame(&self, line: &[u8]) -> std::io::Result<()> {
        let mut framed = format!("{} ", line.len()).into_bytes();
        framed.extend_from_slice(line);
        let mut connection = self.connection.lock().await;
        // Taken out: one that failed in the middle of a frame must not be used again.
        let mut stream = match connection.take() {
            Some(stream) => stream,
            None => self.connect().await?,
        };
        if !alive(&mut stream).await {
            stream = self.connect().await?;
        }
        stream.write_all(&framed).await?;
        stream.flush().await?;
        *connection = Some(stream);
        Ok(())
    }

    async fn connect(&self) -> std::io::Result<Box<dyn Stream>> {
        let stream = TcpStream::connect(self.address.as_str()).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        let name = ServerName::try_from(self.address.host().to_owned()).map_err(std::io::Error::other)?;
        Ok(Box::new(tls.connect(name, stream).await?))
    }
}

/// A server says nothing: what can be read is the end of the connection.
async fn alive(stream: &mut Box<dyn Stream>) -> bool {
    use tokio::io::AsyncReadExt as _;
    let mut byte = [0; 1];
    let read = tokio::time::timeout(Duration::ZERO, stream.read(&mut byte)).await;
    !matches!(read, Ok(Ok(0) | Err(_)))
}

/// Adds a line to a file, durably. The file is opened each time, so that it may be renamed away.
pub(crate) async fn add_line(path: &Path, line: Vec<u8>) -> Result<(), String> {
    let path: PathBuf = path.to_owned();
    let written = tokio::task::spawn_blocking(move || {
        append(&path, line).map_err(|why| format!("could not add to {}: {why}", path.display()))
    });
    written.await.unwrap_or_else(|_| Err("the thread that writes ended".to_owned()))
}

fn append(path: &Path, mut line: Vec<u8>) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().create(true).read(true).append(true).open(path)?;
    // What a crash or a full disk left of an earlier line is ended first.
    if file.seek(SeekFrom::End(0))? > 0 {
        file.seek(SeekFrom::End(-1))?;
        let mut last = [0; 1];
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            line.insert(0, b'\n');
        }
    }
    line.push(b'\n');
    file.write_all(&line)?;
    file.sync_data()
}
