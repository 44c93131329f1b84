//! An agent's outage, measured: hours without a node go into its spool as fast as the disk takes them, then a node is there and the
//! backlog is drained while new events keep coming.
//!
//! The agent's own batcher, shipper and spool are used, and a real session; the events are a simulated fleet's. The node keeps books
//! and acknowledges in groups, as one with a disk does.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::mpsc;
use tokio::time::Instant;
use weir_config::{BatchLimits, ClientTls, ServerTls, SpoolLimits, TransportChoice};
use weir_edge::batch::Batcher;
use weir_edge::loss::{Losses, Reason};
use weir_edge::ship::Shipper;
use weir_edge::spool::Spool;
use weir_schema::{AgentIdentity, Epoch, Lane, Name};
use weir_transport::{AckRanges, Client, ClientConfig, FrameKey, Incoming, ResumeState, Server, TransportLimits, ca};

use crate::fleet::{Fleet, FleetOptions};
use crate::runner::now_ns;

/// What is simulated.
#[derive(Debug, Clone, Copy)]
pub struct OutageOptions {
    /// How long there is no node, in the events' own time.
    pub outage: Duration,
    /// Events per second, during the outage and after it.
    pub rate: u64,
    /// The spool's bound.
    pub spool_bytes_max: u64,
}

/// What was seen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outage {
    /// Events made during the outage.
    pub made: u64,
    /// Events that were dropped since the spool was full, told as losses.
    pub dropped: u64,
    /// Events in the spool when the node came.
    pub spooled: u64,
    /// The spool on the disk then.
    pub disk_bytes: u64,
    /// From the first appended frame to the last.
    pub spooling: Duration,
    /// From the node's start until the spool was empty.
    pub draining: Duration,
    /// Events made meanwhile.
    pub made_meanwhile: u64,
    /// The longest time that a new frame waited for its acknowledgement while the backlog was drained.
    pub live_wait_max: Duration,
    /// Events the node has, each counted once, and how often one came again.
    pub stored: u64,
    /// Events that came more than once.
    pub twice: u64,
}

struct Nothing;

impl ResumeState for Nothing {
    fn acked(&self, _: &AgentIdentity, _: Epoch) -> Vec<(Lane, AckRanges)> {
        Vec::new()
    }
}

/// What the node has.
#[derive(Default)]
struct Books {
    seqs: BTreeSet<(Epoch, Lane, u64)>,
    stored: u64,
    twice: u64,
}

/// Runs it, with its files in `dir`.
pub async fn run(dir: &Path, options: OutageOptions) -> anyhow::Result<Outage> {
    let mut agent = Agent::start(dir, options)?;
    let mut seen = Outage::default();
    let begun = Instant::now();
    let ticks = options.outage.as_millis() as u64 / TICK.as_millis() as u64;
    for tick in 0..ticks {
        agent.tick(begun + TICK * u32::try_from(tick)?)?;
        // The client looks for its node meanwhile.
        tokio::task::yield_now().await;
    }
    // The outage's clock ran ahead of this one.
    agent.ship_open(begun + options.outage)?;
    agent.turn(begun + options.outage + Duration::from_secs(1))?;
    (seen.made, seen.dropped, seen.spooling) = (agent.made, agent.losses.total(), begun.elapsed());
    (seen.spooled, seen.disk_bytes) = (agent.shipper.spooled_events(), agent.shipper.spool_bytes());

    let tls = agent.server_tls.clone();
    let server = Server::bind(agent.address, &tls, TransportLimits::default()).await?;
    let (to_node, incoming) = mpsc::channel(1_024);
    let serving = tokio::spawn(server.run(to_node, Arc::new(Nothing)));
    let books = Arc::<Mutex<Books>>::default();
    tokio::spawn(keep_books(incoming, books.clone()));

    agent.live.clear();
    let begun = Instant::now();
    let mut due = begun;
    while agent.shipper.spooled_events() > 0 {
        anyhow::ensure!(begun.elapsed() < DRAIN_MAX, "the spool was not drained within {DRAIN_MAX:?}");
        if due <= Instant::now() {
            agent.tick(Instant::now())?;
            due += TICK;
        }
        if !agent.turn(Instant::now())? {
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                () = agent.shipper.heard() => {}
            }
        } else {
            tokio::task::yield_now().await;
        }
        seen.live_wait_max = seen.live_wait_max.max(agent.longest_wait());
    }
    (seen.draining, seen.made_meanwhile) = (begun.elapsed(), agent.made - seen.made);
    agent.ship_open(Instant::now())?;
    let total = agent.made;
    let (stats, left) = agent.shipper.finish(Duration::from_secs(10)).await?;
    anyhow::ensure!(left == 0 && stats.unacked_frames == 0, "{left} events were left in the spool at the end");
    serving.abort();
    let books = books.lock().unwrap_or_else(PoisonError::into_inner);
    (seen.stored, seen.twice) = (books.stored, books.twice);
    anyhow::ensure!(total == seen.stored + seen.dropped, "made {total}, stored {}, dropped {}", seen.stored, seen.dropped);
    Ok(seen)
}

struct Agent {
    fleet: Fleet,
    at_ns: i64,
    batcher: Batcher,
    shipper: Shipper,
    client: Client,
    losses: Losses,
    made: u64,
    /// Frames that went the direct way and wait for their acknowledgement.
    live: Vec<(FrameKey, Instant)>,
    address: std::net::SocketAddr,
    server_tls: ServerTls,
}

impl Agent {
    fn start(dir: &Path, options: OutageOptions) -> anyhow::Result<Self> {
        let authority = dir.join("ca");
        ca::init(&authority, "outage")?;
        let node = ca::issue_node(&authority, &Name::new("n1")?, &dir.join("node"))?;
        let files = ca::issue_agent(&authority, &Name::new("demo")?, &Name::new("eu")?, &Name::new("a1")?, &dir.join("agent"))?;
        let address = std::net::UdpSocket::bind("127.0.0.1:0").context("looking for a free port")?.local_addr()?;
        let epoch = Epoch(1);
        let client = Client::start(
            ClientConfig {
                nodes: vec![address.to_string()],
                server_name: "weir-node".to_owned(),
                tls: ClientTls { ca: files.ca, cert: files.cert, key: files.key },
                memory_bytes_max: 32 << 20,
                software: "weir-loadtest".to_owned(),
                transport: TransportChoice::Quic,
                udp_retry: Duration::from_secs(600),
                dialer: None,
                enrol: None,
            },
            epoch,
        )?;
        let limits = SpoolLimits { bytes_max: options.spool_bytes_max, ..SpoolLimits::default() };
        let disk = Arc::new(weir_journal::RealDisk);
        let (spool, _) = Spool::open(disk, &dir.join("spool"), limits.bytes_max)?;
        let at_ns = now_ns() - i64::try_from(options.outage.as_nanos())?;
        let fleet = Fleet::new(FleetOptions { hosts: 4, rate: options.rate, seed: 9, start_ns: at_ns });
        let host = fleet.hosts().first().context("a fleet without hosts")?.host.clone();
        Ok(Self {
            fleet,
            at_ns,
            batcher: Batcher::new(host, epoch, BatchLimits::default()),
            shipper: Shipper::new(client.clone(), 32 << 20, Some(spool), limits),
            client,
            losses: Losses::default(),
            made: 0,
            live: Vec::new(),
            address,
            server_tls: ServerTls { ca: node.ca, cert: node.cert, key: node.key },
        })
    }

    /// 50 ms of the host.
    fn tick(&mut self, now: Instant) -> anyhow::Result<()> {
        self.at_ns += TICK.as_nanos() as i64;
        let mut events = Vec::new();
        self.fleet.advance(self.at_ns, |_, event| events.push(event));
        let mut frames = Vec::new();
        for event in &events {
            self.made += 1;
            frames.extend(self.batcher.push(event, now)?);
        }
        self.batcher.set_away(self.shipper.is_away(now));
        frames.extend(self.batcher.due(now)?);
        for frame in frames {
            let key = FrameKey::of(&frame.header);
            self.shipper.ship(frame, now)?;
            if self.client.holds(&key) {
                self.live.push((key, Instant::now()));
            }
        }
        self.turn(now)?;
        Ok(())
    }

    /// Ships the batches that are not due yet.
    fn ship_open(&mut self, now: Instant) -> anyhow::Result<()> {
        for frame in self.batcher.finish()? {
            self.shipper.ship(frame, now)?;
        }
        Ok(())
    }

    fn turn(&mut self, now: Instant) -> anyhow::Result<bool> {
        let more = self.shipper.refresh(now, &mut self.losses)?;
        if let Some((verdict, gaps)) = self.shipper.overflow() {
            gaps.into_iter().for_each(|gap| self.losses.add_gap(Reason::SpoolFull, gap));
            let mut told = Vec::new();
            for event in self.losses.take(self.at_ns) {
                self.made += 1;
                told.extend(self.batcher.push(&event, now)?);
            }
            told.extend(self.batcher.finish_lane(Lane::Security)?);
            self.shipper.drop_told(told, verdict, now)?;
        }
        Ok(more)
    }

    /// The longest wait of a new frame, so far.
    fn longest_wait(&mut self) -> Duration {
        let waits = self.live.iter().map(|(_, since)| since.elapsed()).max().unwrap_or_default();
        self.live.retain(|(key, _)| self.client.holds(key));
        waits
    }
}

/// Takes what is there, waits as long as a sync takes, acknowledges.
async fn keep_books(mut incoming: mpsc::Receiver<Incoming>, books: Arc<Mutex<Books>>) {
    let mut group = Vec::new();
    while incoming.recv_many(&mut group, 256).await > 0 {
        tokio::time::sleep(SYNC).await;
        let mut books = books.lock().unwrap_or_else(PoisonError::into_inner);
        for incoming in group.drain(..) {
            let header = &incoming.frame.header;
            if books.seqs.insert((header.epoch, header.lane, header.first_seq.0)) {
                books.stored += u64::from(header.count);
            } else {
                books.twice += u64::from(header.count);
            }
            incoming.ack.durable();
        }
    }
}

const TICK: Duration = Duration::from_millis(50);
/// As long as a sync of a usual disk.
const SYNC: Duration = Duration::from_millis(4);
const DRAIN_MAX: Duration = Duration::from_secs(1_800);
