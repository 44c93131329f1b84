//! A wall before a node: one port number for UDP and TCP that lets each through, or swallows it without a word.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Whether something gets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    Open,
    /// Packets vanish; bytes of TCP are taken by the wall's kernel and go nowhere.
    Shut,
}

pub struct Wall {
    pub addr: SocketAddr,
    udp: watch::Sender<Gate>,
    tcp: watch::Sender<Gate>,
    /// From the node to the agent, both transports.
    back: watch::Sender<Gate>,
    tcp_callers: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Wall {
    pub async fn before(node: SocketAddr) -> Self {
        let (listener, socket) = loop {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            if let Ok(socket) = UdpSocket::bind(listener.local_addr().unwrap()).await {
                break (listener, socket);
            }
        };
        let addr = listener.local_addr().unwrap();
        let gates = [Gate::Open; 3].map(|gate| watch::channel(gate).0);
        let [udp, tcp, back] = gates;
        let tcp_callers = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        tasks.spawn(carry_udp(socket, node, udp.subscribe(), back.subscribe()));
        tasks.spawn(carry_tcp(listener, node, tcp_callers.clone(), tcp.subscribe(), back.subscribe()));
        Self { addr, udp, tcp, back, tcp_callers, _tasks: tasks }
    }

    pub fn udp(&self, gate: Gate) {
        self.udp.send(gate).unwrap();
    }

    /// The node vanishes: no packet, no byte, no FIN.
    pub fn freeze(&self) {
        for gate in [&self.udp, &self.tcp, &self.back] {
            gate.send(Gate::Shut).unwrap();
        }
    }

    /// The node hears and is not heard any more.
    pub fn mute(&self) {
        self.back.send(Gate::Shut).unwrap();
    }

    /// The end of muting.
    pub fn hear_again(&self) {
        self.back.send(Gate::Open).unwrap();
    }

    /// How often somebody came by TCP.
    pub fn tcp_callers(&self) -> usize {
        self.tcp_callers.load(Ordering::SeqCst)
    }
}

async fn carry_udp(socket: UdpSocket, node: SocketAddr, there: watch::Receiver<Gate>, back: watch::Receiver<Gate>) {
    let socket = Arc::new(socket);
    let mut ways = HashMap::<SocketAddr, Arc<UdpSocket>>::new();
    let mut answers = JoinSet::new();
    let mut packet = vec![0; 65_536];
    while let Ok((length, from)) = socket.recv_from(&mut packet).await {
        if *there.borrow() == Gate::Shut {
            continue;
        }
        let way = match ways.get(&from) {
            Some(way) => way.clone(),
            None => {
                let way = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                way.connect(node).await.unwrap();
                answers.spawn(answer(socket.clone(), way.clone(), from, back.clone()));
                ways.entry(from).or_insert(way).clone()
            }
        };
        let _ = way.send(&packet[..length]).await;
    }
}

async fn answer(socket: Arc<UdpSocket>, way: Arc<UdpSocket>, to: SocketAddr, back: watch::Receiver<Gate>) {
    let mut packet = vec![0; 65_536];
    loop {
        // A refused packet is an error here and no end.
        let Ok(length) = way.recv(&mut packet).await else { continue };
        if *back.borrow() == Gate::Open {
            let _ = socket.send_to(&packet[..length], to).await;
        }
    }
}

async fn carry_tcp(
    listener: TcpListener,
    node: SocketAddr,
    callers: Arc<AtomicUsize>,
    there: watch::Receiver<Gate>,
    back: watch::Receiver<Gate>,
) {
    let mut ways = JoinSet::new();
    while let Ok((agent, _)) = listener.accept().await {
        callers.fetch_add(1, Ordering::SeqCst);
        let (there, back) = (there.clone(), back.clone());
        ways.spawn(async move {
            let Ok(node) = TcpStream::connect(node).await else { return };
            let ((from_agent, to_agent), (from_node, to_node)) = (agent.into_split(), node.into_split());
            tokio::join!(copy(from_agent, to_node, there), copy(from_node, to_agent, back));
        });
    }
}

/// Copies until the end, and passes that on. Behind a shut gate bytes are taken and lost, and the end waits until it opens.
async fn copy(mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin, mut gate: watch::Receiver<Gate>) {
    let mut piece = vec![0; 16_384];
    loop {
        let length = from.read(&mut piece).await.unwrap_or(0);
        let shut = *gate.borrow() == Gate::Shut;
        if shut && length > 0 {
            continue;
        }
        if shut && gate.wait_for(|gate| *gate == Gate::Open).await.is_err() {
            return;
        }
        if length == 0 || to.write_all(&piece[..length]).await.is_err() {
            let _ = to.shutdown().await;
            return;
        }
    }
}
