//! The links between the workers' processes of one generation: mutual TLS between nodes, handed to the engine as local sockets.
//!
//! A process calls those before it and is called by those behind it. Nobody gets in without a node's certificate of this fleet and the
//! right greeting ([`greeting`]); who is refused is told why, and harms nothing. Once all links stand nobody is listened to any more.
//!
//! The engine works on plain sockets, so each link is pumped between TLS and one end of a Unix socket pair. A link that ends closes the
//! pair, and that ends the process: its generation is over.

pub(crate) mod greeting;

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener as StdListener;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, info, warn};
use weir_schema::Name;
use weir_transport::PeerTls;

use crate::generation::Generation;
use greeting::{Answer, GREETING_BYTES, Greeting};

/// Which place in which mesh.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Place {
    /// The cluster.
    pub(crate) cluster: u128,
    /// The generation.
    pub(crate) generation: Generation,
    /// This process's place among its members.
    pub(crate) process: usize,
}

/// The sockets of a process: one per other process, by place; none at its own.
pub(crate) type Sockets = Vec<Option<StdUnixStream>>;

/// Some members could not be reached in time.
#[derive(Debug)]
pub(crate) struct Unreachable(pub(crate) Vec<Name>);

/// A link that stands: anything with two directions.
trait Link: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Link for T {}

/// Meets the other members, within `meet`. The pumps run on the runtime that this is called on, for as long as the links hold.
pub(crate) async fn meet(
    tls: PeerTls,
    listener: StdListener,
    place: Place,
    meet: Duration,
) -> io::Result<Result<Sockets, Unreachable>> {
    let deadline = Instant::now() + meet;
    let members = place.generation.members.len();
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let (place, tls) = (Arc::new(place), Arc::new(tls));
    let (made, mut links) = mpsc::channel::<(usize, Box<dyn Link>)>(members.max(1));
    let mut tasks = JoinSet::new();
    for to in 0..place.process {
        tasks.spawn(call(tls.clone(), place.clone(), to, made.clone()));
    }
    tasks.spawn(listen(tls, listener, place.clone(), made));
    let mut standing: BTreeMap<usize, Box<dyn Link>> = BTreeMap::new();
    while standing.len() + 1 < members {
        match timeout_at(deadline, links.recv()).await {
            // A second link of a place replaces the first: its caller gave that one up.
            Ok(Some((from, link))) => _ = standing.insert(from, link),
            Ok(None) | Err(_) => break,
        }
    }
    tasks.abort_all();
    let missing = |at: &usize| *at != place.process && !standing.contains_key(at);
    let missing: Vec<Name> = (0..members).filter(missing).map(|at| place.generation.members[at].node.clone()).collect();
    if !missing.is_empty() {
        return Ok(Err(Unreachable(missing)));
    }
    info!(generation = place.generation.number, members, "all links of the mesh stand");
    let mut sockets: Sockets = (0..members).map(|_| None).collect();
    for (at, link) in standing {
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        tokio::spawn(pump(link, UnixStream::from_std(ours)?, place.generation.members[at].node.clone()));
        sockets[at] = Some(theirs);
    }
    Ok(Ok(sockets))
}

/// Calls one member until it welcomes us.
async fn call(tls: Arc<PeerTls>, place: Arc<Place>, to: usize, made: mpsc::Sender<(usize, Box<dyn Link>)>) {
    let member = &place.generation.members[to];
    let mut told = String::new();
    loop {
        match timeout(GREETING_TIME_MAX, call_once(&tls, &place, to)).await {
            Ok(Ok(link)) => {
                let _ = made.send((to, link)).await;
                return;
            }
            Ok(Err(why)) => {
                // It may still be at an older generation: it will come. Said once, not for every attempt.
                let why = why.to_string();
                if why != told {
                    warn!(node = %member.node, address = member.address, error = why, "a member of the mesh does not take our link; trying on");
                    told = why;
                }
            }
            Err(_) => debug!(node = %member.node, "a member of the mesh does not answer"),
        }
        sleep(CALL_EVERY).await;
    }
}

async fn call_once(tls: &PeerTls, place: &Place, to: usize) -> io::Result<Box<dyn Link>> {
    let member = &place.generation.members[to];
    let socket = TcpStream::connect(&member.address).await?;
    prepare(&socket)?;
    let mut link = tls.dial(socket, &member.node).await?;
    link.write_all(&place.greeting(place.process, to).encode()).await?;
    link.flush().await?;
    match Answer::from_code(link.read_u8().await?) {
        Answer::Welcome => Ok(Box::new(link)),
        refused => Err(io::Error::other(format!("it says that we are {}", refused.as_str()))),
    }
}

/// Takes calls until it is ended.
async fn listen(tls: Arc<PeerTls>, listener: TcpListener, place: Arc<Place>, made: mpsc::Sender<(usize, Box<dyn Link>)>) {
    let half_open = Arc::new(Semaphore::new(HALF_OPEN_MAX));
    let mut calls = JoinSet::new();
    loop {
        // Strangers who say nothing hold a place for a few seconds only.
        let Ok(permit) = half_open.clone().acquire_owned().await else { return };
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) => {
                warn!(%error, "a call of the mesh could not be taken");
                sleep(CALL_EVERY).await;
                continue;
            }
        };
        while calls.try_join_next().is_some() {}
        let (tls, place, made) = (tls.clone(), place.clone(), made.clone());
        calls.spawn(async move {
            let from = socket.peer_addr().ok();
            match timeout(GREETING_TIME_MAX, take(&tls, &place, socket)).await {
                Ok(Ok((at, link))) => _ = made.send((at, link)).await,
                Ok(Err(error)) => warn!(?from, %error, "a call of the mesh was refused"),
                Err(_) => warn!(?from, "a call of the mesh said nothing in time"),
            }
            drop(permit);
        });
    }
}

async fn take(tls: &PeerTls, place: &Place, socket: TcpStream) -> io::Result<(usize, Box<dyn Link>)> {
    prepare(&socket)?;
    let (mut link, node) = tls.accept(socket).await?;
    let mut bytes = [0; GREETING_BYTES];
    link.read_exact(&mut bytes).await?;
    let said = Greeting::decode(&bytes);
    let from = said.map_or(0, |said| said.from as usize);
    let member = place.generation.members.get(from).filter(|member| member.node == node && from > place.process);
    let answer = match (place.greeting(from, place.process).answer(said.as_ref()), member) {
        (Answer::Welcome, None) => Answer::Place,
        (answer, _) => answer,
    };
    link.write_u8(answer.code()).await?;
    link.flush().await?;
    match answer {
        Answer::Welcome => Ok((from, Box::new(link))),
        refused => Err(io::Error::other(format!("node {node} is {}", refused.as_str()))),
    }
}

impl Place {
    fn greeting(&self, from: usize, to: usize) -> Greeting {
        let (from, to) = (from as u32, to as u32);
        Greeting { cluster: self.cluster, generation: self.generation.number, from, to, build: greeting::build() }
    }
}

/// A peer that vanishes without a word must not be waited for longer than one that is silent.
fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(socket, KEEPALIVE)?;
    sockopt::set_tcp_user_timeout(socket, UNANSWERED_MAX.as_millis() as u32)?;
    Ok(())
}

/// Moves bytes both ways until either end has gone.
async fn pump(mut link: Box<dyn Link>, mut local: UnixStream, node: Name) {
    match tokio::io::copy_bidirectional_with_sizes(&mut link, &mut local, PUMP_BYTES, PUMP_BYTES).await {
        Ok(_) => info!(%node, "a link of the mesh ended"),
        Err(error) => warn!(%node, %error, "a link of the mesh broke"),
    }
}

/// For TLS and greeting of one call.
const GREETING_TIME_MAX: Duration = Duration::from_secs(5);
const CALL_EVERY: Duration = Duration::from_millis(100);
/// Calls that have not yet greeted.
const HALF_OPEN_MAX: usize = 64;
const PUMP_BYTES: usize = 64 * 1024;
const KEEPALIVE: Duration = Duration::from_secs(3);
/// Bytes that nobody acknowledges for so long end a link.
const UNANSWERED_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;
