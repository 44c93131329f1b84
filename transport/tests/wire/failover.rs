//! A node goes, the session goes on at another: nothing lost, every frame settled once at its sender.
//!
//! The two nodes know nothing of each other here, which is the worst case: what the first stored and could not acknowledge, the second
//! stores too. Which copy counts is the cluster's one dedupe rule, see `dataflow/src/source`.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use weir_config::TransportChoice;
use weir_schema::Lane;

use crate::fleet::{Fleet, Log, Node, Wall, frame, name, until};

/// How a node goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    /// `kill -9`: the process is gone, the kernel closes its sockets.
    Killed,
    /// The machine is gone, or frozen: nothing is sent, no FIN either; on TCP the kernel still takes bytes.
    Frozen,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quic_goes_on_elsewhere_when_a_node_is_killed() {
    fails_over(TransportChoice::Quic, Death::Killed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quic_goes_on_elsewhere_when_a_node_freezes() {
    fails_over(TransportChoice::Quic, Death::Frozen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_goes_on_elsewhere_when_a_node_is_killed() {
    fails_over(TransportChoice::Tcp, Death::Killed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_goes_on_elsewhere_when_a_node_freezes() {
    fails_over(TransportChoice::Tcp, Death::Frozen).await;
}

struct Side {
    id: &'static str,
    node: Option<Node>,
    wall: Wall,
    log: Arc<Mutex<Log>>,
}

impl Side {
    async fn new(fleet: &Fleet, id: &'static str) -> Self {
        let log = Arc::<Mutex<Log>>::default();
        let node = fleet.node_with_log(id, 0, log.clone()).await;
        let wall = Wall::before(node.addr).await;
        Self { id, node: Some(node), wall, log }
    }

    fn stored(&self) -> BTreeSet<u64> {
        self.log.lock().unwrap().frames.keys().map(|(_, _, first, _)| *first).collect()
    }
}

async fn fails_over(transport: TransportChoice, death: Death) {
    let fleet = Fleet::on(transport);
    let mut sides = [Side::new(&fleet, "n1").await, Side::new(&fleet, "n2").await];
    let client = fleet.client("a", &[sides[0].wall.addr, sides[1].wall.addr], 4 << 20);
    until("a session", || client.stats().connected_to.is_some()).await;
    if client.stats().connected_to != Some(name(sides[0].id)) {
        sides.reverse();
    }
    let [dying, living] = &mut sides;
    for at in 0..50 {
        client.send(frame(Lane::Network, at * 10, 10)).await.unwrap();
    }
    client.flush(Instant::now() + PATIENCE).await.unwrap();
    // Stored by the dying node, and the agent never hears of it.
    dying.wall.mute();
    for at in 50..60 {
        client.send(frame(Lane::Network, at * 10, 10)).await.unwrap();
    }
    until("frames at the dying node", || dying.stored().len() == 60).await;
    let died = Instant::now();
    match death {
        Death::Killed => dying.node.take().unwrap().kill().await,
        Death::Frozen => dying.wall.freeze(),
    }
    if death == Death::Killed {
        // The wall passes the end of a TCP connection on, as the dead process's kernel would.
        dying.wall.hear_again();
    }
    for at in 60..200 {
        client.send(frame(Lane::Network, at * 10, 10)).await.unwrap();
    }
    until("acks elsewhere", || client.stats().acked_frames > 50).await;
    let took = died.elapsed();
    eprintln!("{transport:?}, {death:?}: acks went on elsewhere after {took:?}");
    client.flush(Instant::now() + PATIENCE).await.unwrap();
    let stats = client.stats();
    assert_eq!((stats.acked_frames, stats.acked_events, stats.unacked_frames), (200, 2_000, 0), "{transport:?}, {death:?}");
    assert!(stats.resent >= 10, "{stats:?}");
    assert_eq!((stats.refused_frames, stats.connected_to), (0, Some(name(living.id))));
    let (first, second) = (dying.stored(), living.stored());
    let both: Vec<_> = first.intersection(&second).copied().collect();
    assert_eq!(both, (50..60).map(|at| at * 10).collect::<Vec<_>>(), "unacknowledged frames are at both, others are not");
    assert_eq!(first.union(&second).count(), 200);
    assert!(took < Duration::from_secs(20), "{transport:?}, {death:?}: acks went on only after {took:?} (target: 5 s)");
}

/// No test waits this long unless it fails.
const PATIENCE: Duration = Duration::from_secs(60);
