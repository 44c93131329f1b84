//! One HTTP/1.1 request over a Unix socket or TCP, its answer bounded in bytes and time; or an answer that never ends, by lines.
//!
//! A connection per request: sources are asked seldom, and one that hangs must not hold another's answer.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;

use super::failure::Failure;

/// Where a service listens.
#[derive(Debug, Clone)]
pub(crate) enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// TCP, never encrypted: loopback and link-local only.
    Tcp(SocketAddr),
}

/// A service, and how much of it is waited for.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) address: Address,
    pub(crate) timeout: Duration,
    pub(crate) bytes_max: usize,
}

/// What a service answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) response: hyper::http::response::Parts,
    pub(crate) body: Bytes,
}

impl Answer {
    /// The body of a success; 404 is `Missing`, 401 and 403 are `Denied`.
    pub(crate) fn success(self) -> Result<Bytes, Failure> {
        status(self.response.status).map(|()| self.body)
    }
}

/// What a status says.
pub(crate) fn status(status: StatusCode) -> Result<(), Failure> {
    match status {
        StatusCode::NOT_FOUND => Err(Failure::Missing),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Failure::Denied),
        status if status.is_success() => Ok(()),
        status => Err(Failure::Status(status.as_u16())),
    }
}

impl Service {
    /// Sends a request without a body, and reads the whole answer.
    pub(crate) async fn ask(&self, request: Request<()>) -> Result<Answer, Failure> {
        let whole = async {
            let (response, _connection) = self.send(request).await?;
            let (response, body) = response.into_parts();
            let body = whole(body, self.bytes_max).await?;
            Ok(Answer { response, body })
        };
        within(self.timeout, whole).await
    }

    /// Sends a request whose answer goes on for ever.
    pub(crate) async fn follow(&self, request: Request<()>) -> Result<(Lines<Incoming>, Connection), Failure> {
        let begun = async {
            let (response, connection) = self.send(request).await?;
            status(response.status())?;
            Ok((Lines::new(response.into_body(), self.bytes_max), connection))
        };
        within(self.timeout, begun).await
    }

    async fn send(&self, request: Request<()>) -> Result<(Response<Incoming>, Connection), Failure> {
        let request = request.map(|()| Empty::<Bytes>::new());
        match &self.address {
            Address::Unix(path) => exchange(UnixStream::connect(path).await.map_err(|error| Failure::io(&error))?, request).await,
            Address::Tcp(at) => exchange(TcpStream::connect(at).await.map_err(|error| Failure::io(&error))?, request).await,
        }
    }
}

/// The connection of an answer: it ends when this is dropped.
pub(crate) type Connection = JoinSet<()>;

async fn exchange<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<(Response<Incoming>, Connection), Failure>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let broken = |error: hyper::Error| Failure::of("HTTP", &error);
    let (mut sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let mut connection = JoinSet::new();
    connection.spawn(async move {
        // What goes wrong is told to who waits for the answer.
        let _ = driver.await;
    });
    Ok((sender.send_request(request).await.map_err(broken)?, connection))
}

/// A whole body of at most so many bytes.
pub(crate) async fn whole<B>(body: B, bytes_max: usize) -> Result<Bytes, Failure>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let collected = Limited::new(body, bytes_max).collect().await;
    collected.map(http_body_util::Collected::to_bytes).map_err(|error| match error.is::<LengthLimitError>() {
        true => Failure::TooLong(bytes_max),
        false => Failure::of("HTTP", &*error),
    })
}

/// What is not done in time has failed.
pub(crate) async fn within<T>(timeout: Duration, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let late = |_| Failure::Timeout(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
    tokio::time::timeout(timeout, work).await.map_err(late)?
}

/// The socket answers: nothing is sent.
pub(crate) async fn knock(socket: &Path, timeout: Duration) -> Result<(), Failure> {
    within(timeout, async { UnixStream::connect(socket).await.map(drop).map_err(|error| Failure::io(&error)) }).await
}

/// Lines of a body that goes on.
#[derive(Debug)]
pub(crate) struct Lines<B> {
    body: B,
    held: Vec<u8>,
    /// Where the next line begins.
    begin: usize,
    /// Where the search for its end goes on.
    searched: usize,
    bytes_max: usize,
}

impl<B> Lines<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// Lines of at most so many bytes.
    pub(crate) const fn new(body: B, bytes_max: usize) -> Self {
        Self { body, held: Vec::new(), begin: 0, searched: 0, bytes_max }
    }

    /// The next line, without its end; nothing when the body ended. May be dropped and asked again.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        loop {
            if let Some(length) = self.held[self.searched..].iter().position(|byte| *byte == b'\n') {
                let end = self.searched + length;
                let line = self.held[self.begin..end].to_vec();
                (self.begin, self.searched) = (end + 1, end + 1);
                return Ok(Some(line));
            }
            self.held.drain(..self.begin);
            (self.begin, self.searched) = (0, self.held.len());
            if self.held.len() > self.bytes_max {
                return Err(Failure::TooLong(self.bytes_max));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.held.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data)),
                Some(Err(error)) => return Err(Failure::of("HTTP", &*error.into())),
                None => return Ok(None),
            }
        }
    }
}
