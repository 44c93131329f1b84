//! Members, strangers and members of other meshes, on loopback with real certificates.

use std::io::{Read as _, Write as _};
use std::net::TcpStream as StdTcpStream;
use std::path::Path;

use weir_config::ServerTls;
use weir_transport::ca;

use super::*;
use crate::generation::Member;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn node_tls(authority: &Path, node: &str) -> ServerTls {
    let out = authority.join(node);
    if out.exists() {
        return ServerTls { ca: out.join("ca.pem"), cert: out.join("cert.pem"), key: out.join("key.pem") };
    }
    let files = ca::issue_node(authority, &name(node), &out).unwrap();
    ServerTls { ca: files.ca, cert: files.cert, key: files.key }
}

struct World {
    dir: tempfile::TempDir,
    listeners: Vec<StdListener>,
    generation: Generation,
}

impl World {
    fn new(members: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        ca::init(dir.path(), "test.weir.local").unwrap();
        let listeners: Vec<_> = (0..members).map(|_| StdListener::bind("127.0.0.1:0").unwrap()).collect();
        let member = |(at, listener): (usize, &StdListener)| Member {
            node: name(&format!("n{at}")),
            address: listener.local_addr().unwrap().to_string(),
            run: 1,
        };
        let members = listeners.iter().enumerate().map(member).collect();
        Self { dir, listeners, generation: Generation { number: 7, workers: 1, members, from: None } }
    }

    fn tls(&self, node: &str) -> PeerTls {
        PeerTls::load(&node_tls(self.dir.path(), node)).unwrap()
    }

    fn place(&self, process: usize) -> Place {
        Place { cluster: 42, generation: self.generation.clone(), process }
    }

    /// Lets one member meet the others.
    fn join(&self, process: usize, within: Duration) -> tokio::task::JoinHandle<Result<Sockets, Unreachable>> {
        let (tls, listener) = (self.tls(&format!("n{process}")), self.listeners[process].try_clone().unwrap());
        let place = self.place(process);
        tokio::spawn(async move { meet(tls, listener, place, within).await.unwrap() })
    }
}

/// Says something over every link and hears it at the other end.
fn check_links(mut all: Vec<Sockets>) {
    let pairs = (0..all.len()).flat_map(|from| (0..all.len()).map(move |to| (from, to)));
    for (from, to) in pairs.collect::<Vec<_>>() {
        let Some(socket) = &mut all[from][to] else { continue };
        socket.write_all(&[from as u8, to as u8, 7]).unwrap();
        let mut heard = [0; 3];
        all[to][from].as_mut().unwrap().read_exact(&mut heard).unwrap();
        assert_eq!(heard, [from as u8, to as u8, 7]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_meet_whoever_comes_first() {
    let world = World::new(3);
    let mut joining = Vec::new();
    // The one that is called comes last: the others try on.
    for process in [2, 1, 0] {
        joining.push(world.join(process, Duration::from_secs(30)));
        sleep(Duration::from_millis(50)).await;
    }
    let mut all = Vec::new();
    for joined in joining.into_iter().rev() {
        all.push(joined.await.unwrap().unwrap());
    }
    tokio::task::spawn_blocking(|| check_links(all)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_ends_is_seen_at_the_other_end() {
    let world = World::new(2);
    let (one, two) = (world.join(0, Duration::from_secs(30)), world.join(1, Duration::from_secs(30)));
    let (one, mut two) = (one.await.unwrap().unwrap(), two.await.unwrap().unwrap());
    drop(one);
    let mut socket = two[0].take().unwrap();
    let read = tokio::task::spawn_blocking(move || socket.read(&mut [0; 1]));
    assert_eq!(read.await.unwrap().unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_missing_is_named() {
    let world = World::new(3);
    let (one, two) = (world.join(0, Duration::from_secs(2)), world.join(1, Duration::from_secs(2)));
    assert_eq!(one.await.unwrap().unwrap_err().0, [name("n2")]);
    assert_eq!(two.await.unwrap().unwrap_err().0, [name("n2")]);
}

/// Whoever does not belong here is refused, and those who do meet all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_and_old_generations_are_refused_and_harm_nothing() {
    let world = World::new(2);
    let first = world.join(0, Duration::from_secs(60));
    let address = world.generation.members[0].address.clone();

    // Garbage, and somebody who says nothing.
    let silent = StdTcpStream::connect(&address).unwrap();
    let mut garbage = StdTcpStream::connect(&address).unwrap();
    garbage.write_all(&[7; 4_096]).unwrap();

    // A node of another fleet.
    let other = World::new(1);
    let stranger = PeerTls::load(&node_tls(other.dir.path(), "n1")).unwrap();
    let refused = call_once(&stranger, &world.place(1), 0).await.map(drop).unwrap_err();
    assert!(
        refused.to_string().to_lowercase().contains("certificate") || refused.to_string().contains("UnknownIssuer"),
        "{refused}"
    );

    // An agent of this fleet has a certificate of ours, but is no node.
    let out = world.dir.path().join("agent");
    let agent = ca::issue_agent(world.dir.path(), &name("t"), &name("r"), &name("a"), &out).unwrap();
    let files = ServerTls { ca: agent.ca, cert: agent.cert, key: agent.key };
    assert!(PeerTls::load(&files).is_err(), "an agent's certificate is not even loaded");

    // Nodes of this fleet that mean another mesh.
    let tls = world.tls("n1");
    let told = async |change: fn(&mut Place)| {
        let mut place = world.place(1);
        change(&mut place);
        call_once(&tls, &place, 0).await.map(drop).unwrap_err().to_string()
    };
    assert!(told(|place| place.generation.number = 6).await.contains("another generation"));
    assert!(told(|place| place.cluster = 1).await.contains("another cluster"));
    let third = world.tls("n9");
    let wrong = call_once(&third, &world.place(1), 0).await.map(drop).unwrap_err().to_string();
    assert!(wrong.contains("another place"), "{wrong}");

    // The right one gets in while the silent one is still there.
    let second = world.join(1, Duration::from_secs(60));
    let all = vec![first.await.unwrap().unwrap(), second.await.unwrap().unwrap()];
    tokio::task::spawn_blocking(|| check_links(all)).await.unwrap();
    drop(silent);
}
