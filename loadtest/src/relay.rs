//! A relay in front of a node, for UDP and TCP alike: what stands between them on a bad network. It loses, doubles and delays datagrams
//! (later ones overtake), and it cuts a node off: datagrams vanish, and streams stay open but carry nothing, as behind a dead switch.
//!
//! Faults can be set at any time; a stream goes on where it was when its cut ends. TCP itself never loses here, as on a real network.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket, tcp};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::fleet::Random;

/// How bad the network is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weather {
    /// Nothing comes through, either way.
    pub cut: bool,
    /// Of a thousand datagrams so many are lost.
    pub lost: u64,
    /// Of a thousand datagrams so many come twice.
    pub doubled: u64,
    /// A datagram is late by up to this, each by its own time.
    pub late: Duration,
}

/// Which connections are let through by whom they come from: the port of the other end.
pub type Passes = Arc<dyn Fn(u16) -> bool + Send + Sync>;

/// Stands in front of one node.
pub struct Relay {
    /// Where it listens, for UDP and TCP.
    pub address: SocketAddr,
    weather: watch::Sender<Weather>,
    tasks: Vec<JoinHandle<()>>,
}

impl Relay {
    /// Listens on a free port of loopback and passes everything on to `node`. `seed` decides which datagrams suffer. TCP connections
    /// that `passes` refuses are taken and carry nothing, as long as they are refused.
    pub async fn start(node: SocketAddr, seed: u64, passes: Passes) -> anyhow::Result<Self> {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.context("opening a relay's socket")?;
            match TcpListener::bind(udp.local_addr()?).await {
                Ok(tcp) => break (udp, tcp),
                // The port is somebody's on TCP: another one.
                Err(_) => continue,
            }
        };
        let (weather, seen) = watch::channel(Weather::default());
        let address = udp.local_addr()?;
        let tasks = vec![
            tokio::spawn(datagrams(Arc::new(udp), node, seed, seen.clone())),
            tokio::spawn(streams(tcp, node, seen, passes)),
        ];
        Ok(Self { address, weather, tasks })
    }

    /// From now on the network is like this.
    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Each agent has a socket of its own towards the node, so that answers find back.
async fn datagrams(front: Arc<UdpSocket>, node: SocketAddr, seed: u64, weather: watch::Receiver<Weather>) {
    let mut backs: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut tasks = JoinSet::new();
    let mut random = Random(seed | 1);
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        // An error is of an earlier datagram that nobody took.
        let Ok((length, from)) = front.recv_from(&mut buffer).await else { continue };
        if backs.len() > SOCKETS_MAX {
            backs.clear();
        }
        let back = match backs.get(&from) {
            Some(back) => back.clone(),
            None => {
                let Ok(back) = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await else { continue };
                let back = Arc::new(back);
                backs.insert(from, back.clone());
                let (back_in, front, weather, seed) = (back.clone(), front.clone(), weather.clone(), random.next());
                tasks.spawn(async move {
                    let mut random = Random(seed | 1);
                    let mut buffer = vec![0; DATAGRAM_MAX];
                    loop {
                        let received = tokio::time::timeout(IDLE_MAX, back_in.recv_from(&mut buffer)).await;
                        match received {
                            Ok(Ok((length, _))) => pass(&front, from, &buffer[..length], &weather, &mut random).await,
                            Ok(Err(_)) => {}
                            Err(_) => break,
                        }
                    }
                });
                back
            }
        };
        pass(&back, node, &buffer[..length], &weather, &mut random).await;
        while tasks.try_join_next().is_some() {}
    }
}

/// Sends a datagram on, or not, or later, or twice.
async fn pass(socket: &Arc<UdpSocket>, to: SocketAddr, bytes: &[u8], weather: &watch::Receiver<Weather>, random: &mut Random) {
    let Weather { cut, lost, doubled, late } = *weather.borrow();
    if cut || random.below(1_000) < lost {
        return;
    }
    let times = 1 + u32::from(random.below(1_000) < doubled);
    for _ in 0..times {
        let wait = Duration::from_micros(random.below(late.as_micros() as u64 + 1));
        if wait.is_zero() {
            let _ = socket.send_to(bytes, to).await;
        } else {
            let (socket, bytes) = (socket.clone(), bytes.to_vec());
            tokio::spawn(async move {
                tokio::time::sleep(wait).await;
                let _ = socket.send_to(&bytes, to).await;
            });
        }
    }
}

async fn streams(listener: TcpListener, node: SocketAddr, weather: watch::Receiver<Weather>, passes: Passes) {
    let mut tasks = JoinSet::new();
    loop {
        let Ok((front, from)) = listener.accept().await else { continue };
        let (weather, passes) = (weather.clone(), passes.clone());
        tasks.spawn(async move {
            // While it is cut off, the other end hears nothing, not even that nobody is there.
            while weather.borrow().cut || !passes(from.port()) {
                tokio::time::sleep(CUT_LOOK).await;
            }
            let Ok(back) = TcpStream::connect(node).await else { return };
            let ((front_in, front_out), (back_in, back_out)) = (front.into_split(), back.into_split());
            let port = from.port();
            tokio::select! {
                () = pump(front_in, back_out, &weather, &passes, port) => {}
                () = pump(back_in, front_out, &weather, &passes, port) => {}
            }
        });
        while tasks.try_join_next().is_some() {}
    }
}

async fn pump(
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    weather: &watch::Receiver<Weather>,
    passes: &Passes,
    port: u16,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let Ok(length @ 1..) = from.read(&mut buffer).await else { return };
        while weather.borrow().cut || !passes(port) {
            tokio::time::sleep(CUT_LOOK).await;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

/// Which of the processes owns a TCP socket of loopback with this local port, by procfs.
pub fn owner_of_port(port: u16, pids: impl Iterator<Item = u32>) -> Option<u32> {
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    // A number may stand there more than once: connections that are over linger.
    let sockets = table.lines().skip(1).filter_map(|line| {
        let mut cells = line.split_whitespace().skip(1);
        let local = u16::from_str_radix(cells.next()?.rsplit_once(':')?.1, 16).ok()?;
        let inode = (local == port).then(|| cells.nth(7)).flatten()?;
        Some(format!("socket:[{inode}]"))
    });
    let wanted: Vec<String> = sockets.collect();
    let mut pids = pids;
    pids.find(|pid| {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.filter_map(|entry| std::fs::read_link(entry.path()).ok())
            .any(|link| wanted.iter().any(|socket| link.to_string_lossy() == *socket))
    })
}

/// QUIC's are smaller.
const DATAGRAM_MAX: usize = 64 << 10;
const SOCKETS_MAX: usize = 4_096;
const IDLE_MAX: Duration = Duration::from_secs(60);
const CUT_LOOK: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn all() -> Passes {
        Arc::new(|_| true)
    }

    #[tokio::test]
    async fn datagrams_suffer_as_told() {
        let node = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let relay = Relay::start(node.local_addr().unwrap(), 7, all()).await.unwrap();
        let agent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut buffer = [0; 8];
        agent.send_to(b"hello", relay.address).await.unwrap();
        let (length, back) = node.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], b"hello");
        node.send_to(b"yes", back).await.unwrap();
        assert_eq!(agent.recv_from(&mut buffer).await.unwrap(), (3, relay.address));

        relay.set(Weather { lost: 300, doubled: 200, late: Duration::from_millis(20), ..Weather::default() });
        for at in 0..1_000_u32 {
            agent.send_to(&at.to_le_bytes(), relay.address).await.unwrap();
            tokio::task::yield_now().await;
        }
        let mut came = Vec::new();
        while let Ok(Ok((4, _))) = tokio::time::timeout(Duration::from_millis(300), node.recv_from(&mut buffer)).await {
            came.push(u32::from_le_bytes(buffer[..4].try_into().unwrap()));
        }
        let (mut sorted, count) = (came.clone(), came.len());
        sorted.sort_unstable();
        assert_ne!(came, sorted, "some overtake");
        sorted.dedup();
        assert!(sorted.len() < 900 && sorted.len() < count, "{count} came, {} of them once", sorted.len());

        relay.set(Weather { cut: true, ..Weather::default() });
        agent.send_to(b"lost", relay.address).await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(200), node.recv_from(&mut buffer)).await.is_err());
    }

    #[tokio::test]
    async fn a_cut_stream_goes_on_where_it_was() {
        let node = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = Relay::start(node.local_addr().unwrap(), 7, all()).await.unwrap();
        let mut agent = TcpStream::connect(relay.address).await.unwrap();
        let (mut there, _) = node.accept().await.unwrap();
        let mut buffer = [0; 5];
        agent.write_all(b"first").await.unwrap();
        there.read_exact(&mut buffer).await.unwrap();
        relay.set(Weather { cut: true, ..Weather::default() });
        agent.write_all(b"later").await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(200), there.read_exact(&mut buffer)).await.is_err());
        relay.set(Weather::default());
        there.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"later");
        let port = agent.local_addr().unwrap().port();
        assert_eq!(owner_of_port(port, [1, std::process::id()].into_iter()), Some(std::process::id()));
        assert_eq!(owner_of_port(port, std::iter::once(1)), None);
    }
}
