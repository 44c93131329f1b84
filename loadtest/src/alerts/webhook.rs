//! A webhook that notes what it is sent and when, and that can be away: then connections are refused.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::runner::now_ns;

/// One request that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Taken {
    /// When all of it was there, nanoseconds since the Unix epoch.
    pub(crate) at_ns: i64,
    /// Its Idempotency-Key.
    pub(crate) key: String,
    pub(crate) alert_id: String,
    pub(crate) revision: u64,
    pub(crate) container: String,
    /// Of its body.
    pub(crate) hash: u64,
}

/// The server.
pub(crate) struct Webhook {
    pub(crate) address: SocketAddr,
    taken: Arc<Mutex<Vec<Taken>>>,
    serving: Option<JoinHandle<()>>,
}

impl Webhook {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no port for a webhook")?;
        let mut webhook = Self { address: listener.local_addr()?, taken: Arc::default(), serving: None };
        webhook.serve(listener);
        Ok(webhook)
    }

    /// What came so far, in the order in which it came.
    pub(crate) fn taken(&self) -> MutexGuard<'_, Vec<Taken>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes away: who calls is refused, who is connected is cut off.
    pub(crate) async fn close(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            let _ = serving.await;
        }
    }

    /// Comes back at the same address.
    pub(crate) async fn open(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + OPEN_WITHIN;
        loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => {
                    self.serve(listener);
                    return Ok(());
                }
                Err(taken) if Instant::now() > deadline => return Err(taken).context("the webhook's port is taken by another"),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    fn serve(&mut self, listener: TcpListener) {
        let taken = Arc::clone(&self.taken);
        self.serving = Some(tokio::spawn(async move {
            // Dropped with this task, so that a webhook that goes away cuts all off.
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => match accepted {
                        Ok((stream, _)) => _ = connections.spawn(take(stream, Arc::clone(&taken))),
                        // Such as no descriptors: those of others may be closed soon.
                        Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                    },
                    Some(_) = connections.join_next() => {}
                }
            }
        }));
    }
}

/// Takes what comes over one connection, until its end or something that is no request.
async fn take(mut stream: TcpStream, taken: Arc<Mutex<Vec<Taken>>>) -> Option<()> {
    let mut bytes = Vec::new();
    loop {
        let head = loop {
            if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            if bytes.len() > HEAD_BYTES_MAX {
                return None;
            }
            stream.read_buf(&mut bytes).await.ok().filter(|read| *read > 0)?;
        };
        let text = String::from_utf8_lossy(&bytes[..head]).into_owned();
        let header = |name: &str| {
            let line = text.lines().find(|line| line.to_ascii_lowercase().starts_with(name))?;
            Some(line[name.len()..].trim().to_owned())
        };
        let length: usize = header("content-length:")?.parse().ok().filter(|length| *length <= BODY_BYTES_MAX)?;
        while bytes.len() < head + length {
            stream.read_buf(&mut bytes).await.ok().filter(|read| *read > 0)?;
        }
        let body = &bytes[head..head + length];
        let alert: Value = serde_json::from_slice(body).ok()?;
        let text = |name: &str| alert[name].as_str().unwrap_or_default().to_owned();
        let mut hasher = DefaultHasher::new();
        body.hash(&mut hasher);
        let one = Taken {
            at_ns: now_ns(),
            key: header("idempotency-key:").unwrap_or_default(),
            alert_id: text("alert_id"),
            revision: alert["revision"].as_u64().unwrap_or(0),
            container: text("container_id"),
            hash: hasher.finish(),
        };
        taken.lock().unwrap_or_else(PoisonError::into_inner).push(one);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.ok()?;
        bytes.drain(..head + length);
    }
}

const HEAD_BYTES_MAX: usize = 65_536;
/// An alert as a webhook gets it is far smaller.
const BODY_BYTES_MAX: usize = 1 << 20;
/// A port that was let go is free at once, but for connections of others that happen to have it.
const OPEN_WITHIN: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    async fn post(address: SocketAddr, body: &str) -> std::io::Result<usize> {
        let mut stream = TcpStream::connect(address).await?;
        let head = format!("POST / HTTP/1.1\r\nIdempotency-Key: a:1\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).await?;
        stream.read(&mut [0; 64]).await
    }

    #[tokio::test]
    async fn it_notes_what_comes_and_is_away_when_told() {
        let mut webhook = Webhook::start().await.unwrap();
        let body = r#"{"alert_id":"a","revision":1,"container_id":"c"}"#;
        assert!(post(webhook.address, body).await.unwrap() > 0);
        webhook.close().await;
        assert!(post(webhook.address, body).await.is_err());
        webhook.open().await.unwrap();
        assert!(post(webhook.address, body).await.unwrap() > 0);
        assert_eq!(post(webhook.address, "no json").await.unwrap_or(0), 0);
        let taken = webhook.taken().clone();
        let told: Vec<_> = taken.iter().map(|one| (&*one.key, &*one.alert_id, one.revision, &*one.container)).collect();
        assert_eq!(told, [("a:1", "a", 1, "c"); 2]);
        assert_eq!(taken[0].hash, taken[1].hash);
    }
}
