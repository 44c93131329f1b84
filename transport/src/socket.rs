//! UDP sockets and QUIC settings, the same for both ends.
//!
//! Why these figures: small default UDP buffers lost over a thousand packets of a hundred thousand on loopback; windows beyond 1 MiB
//! gained nothing and make gaps that kill a connection on lossy long paths; BBR lost most of its packets where CUBIC did not.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::crypto::HmacKey;
use quinn::{
    AsyncUdpSocket, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, IdleTimeout, Runtime, ServerConfig,
    TokioRuntime, TransportConfig, VarInt,
};
use rustix::net::sockopt;

use crate::message::Bye;

/// A QUIC endpoint and what the system gave it.
pub(crate) struct Bound {
    pub(crate) endpoint: Endpoint,
    /// Segments that one send may carry; 1 is no segmentation offload.
    pub(crate) gso_segments: usize,
    /// As granted.
    pub(crate) receive_buffer_bytes: usize,
}

/// Opens the listening end. Needs a tokio runtime.
pub(crate) fn listen(address: SocketAddr, config: ServerConfig, reset_key: Arc<dyn HmacKey>) -> io::Result<Bound> {
    let mut endpoint_config = EndpointConfig::new(reset_key);
    // Plain random ids: a node started anew must answer ids of its earlier life with a reset.
    endpoint_config.cid_generator(|| Box::<RandomIds>::default());
    bind(address, endpoint_config, Some(config))
}

/// Opens the calling end for addresses of the family of `to`. Needs a tokio runtime.
pub(crate) fn dial(to: SocketAddr) -> io::Result<Bound> {
    let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    bind(any, EndpointConfig::default(), None)
}

fn bind(address: SocketAddr, config: EndpointConfig, server: Option<ServerConfig>) -> io::Result<Bound> {
    let socket = UdpSocket::bind(address)?;
    // As root beyond the system's limit, else up to it; whatever is granted is used.
    if sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER_BYTES).is_err() {
        sockopt::set_socket_recv_buffer_size(&socket, BUFFER_BYTES)?;
    }
    if sockopt::set_socket_send_buffer_size_force(&socket, BUFFER_BYTES).is_err() {
        sockopt::set_socket_send_buffer_size(&socket, BUFFER_BYTES)?;
    }
    let receive_buffer_bytes = sockopt::socket_recv_buffer_size(&socket)?;
    let runtime = Arc::new(TokioRuntime);
    let socket: Arc<dyn AsyncUdpSocket> = runtime.wrap_udp_socket(socket)?;
    let gso_segments = socket.max_transmit_segments();
    let endpoint = Endpoint::new_with_abstract_socket(config, server, socket, runtime)?;
    Ok(Bound { endpoint, gso_segments, receive_buffer_bytes })
}

/// The settings of a connection. `streams` is how many the other end may open.
pub(crate) fn transport(idle: Duration, streams: u32) -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    let window = VarInt::from_u32(WINDOW_BYTES);
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(window)
        .receive_window(window)
        .send_window(u64::from(2 * WINDOW_BYTES))
        .initial_rtt(INITIAL_RTT)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::try_from(idle).expect("an idle time is far below 2^62 ms")))
        .congestion_controller_factory(Arc::new(CubicConfig::default()));
    Arc::new(transport)
}

/// The code a connection is closed with.
pub(crate) fn close_code(bye: Bye) -> VarInt {
    let place = ALL_BYES.iter().position(|other| *other == bye).expect("every good-bye has a code");
    VarInt::from_u32(FIRST_CODE + place as u32)
}

/// The good-bye that a code stands for.
pub(crate) fn bye_of(code: VarInt) -> Option<Bye> {
    let place = code.into_inner().checked_sub(u64::from(FIRST_CODE))?;
    ALL_BYES.get(usize::try_from(place).ok()?).copied()
}

/// Eight random bytes as connection id; quinn keeps its own such generator to itself.
#[derive(Default)]
struct RandomIds {
    keys: RandomState,
    made: u64,
}

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        self.made += 1;
        // SipHash of a counter under a random key: not to be guessed, and other ids after a restart.
        ConnectionId::new(&self.keys.hash_one(self.made).to_le_bytes())
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Codes are for ever: added to, never moved.
const ALL_BYES: [Bye; 7] = [Bye::Done, Bye::Version, Bye::Protocol, Bye::Full, Bye::Superseded, Bye::Penalty, Bye::Expired];
const FIRST_CODE: u32 = 0x5700;

/// UDP send and receive buffers.
const BUFFER_BYTES: usize = 8 << 20;
/// Flow control windows of a stream and of a connection.
const WINDOW_BYTES: u32 = 1 << 20;
/// Before the first measurement: a lost first packet is sent again after 300 ms instead of a second.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// How often an idle connection says that it lives.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long an agent keeps a connection on which nothing comes.
pub(crate) const IDLE: Duration = Duration::from_secs(60);
