//! Every metric of the transport, with unit and meaning. Counted per frame, message or connection, never per event.

use metrics::{counter, gauge};

use crate::error::ProtocolError;
use crate::link::Transport;
use crate::message::{Bye, RefusedReason};

/// `weir_transport_frames_received_total`, `weir_transport_bytes_received_total`: frames whose checksum was good.
pub(crate) fn frame_received(bytes: usize) {
    counter!("weir_transport_frames_received_total").increment(1);
    counter!("weir_transport_bytes_received_total").increment(bytes as u64);
}

/// `weir_transport_protocol_errors_total{error}`: what peers did that the protocol does not allow.
pub(crate) fn protocol_error(error: &ProtocolError) {
    counter!("weir_transport_protocol_errors_total", "error" => error.label()).increment(1);
}

/// `weir_transport_refused_frames_total{reason}`: frames that will never be taken.
pub(crate) fn frame_refused(reason: RefusedReason) {
    counter!("weir_transport_refused_frames_total", "reason" => reason.as_str()).increment(1);
}

/// `weir_transport_handshakes_total{outcome}`: `ok`, `certificate` (theirs is refused), `ours_refused`, `timeout`, `flood` or
/// `other`.
pub(crate) fn handshake(outcome: &'static str) {
    counter!("weir_transport_handshakes_total", "outcome" => outcome).increment(1);
}

/// `weir_transport_sessions{transport}`: agents connected now, by `quic` or `tcp`.
pub(crate) fn sessions(change: f64, transport: Transport) {
    gauge!("weir_transport_sessions", "transport" => transport.as_str()).increment(change);
}

/// `weir_transport_closed_sessions_total{why}`: connections closed by this node, by its good-bye, and `lost` ones.
pub(crate) fn session_closed(why: &'static str) {
    counter!("weir_transport_closed_sessions_total", "why" => why).increment(1);
}

/// `weir_transport_in_flight_bytes`: frames received and neither durable nor refused.
pub(crate) fn in_flight(change_bytes: f64) {
    gauge!("weir_transport_in_flight_bytes").increment(change_bytes);
}

/// `weir_transport_acks_sent_total`: ack messages; many frames share one.
pub(crate) fn acks_sent(messages: u64) {
    counter!("weir_transport_acks_sent_total").increment(messages);
}

/// `weir_transport_gso_segments`, `weir_transport_udp_receive_buffer_bytes`: what the system gave the listening socket.
pub(crate) fn socket(gso_segments: usize, receive_buffer_bytes: usize) {
    gauge!("weir_transport_gso_segments").set(gso_segments as f64);
    gauge!("weir_transport_udp_receive_buffer_bytes").set(receive_buffer_bytes as f64);
}

/// `weir_transport_client_connects_total{outcome, transport}`: `ok` or `failed`, counted by an agent.
pub(crate) fn client_connect(outcome: &'static str, transport: Transport) {
    counter!("weir_transport_client_connects_total", "outcome" => outcome, "transport" => transport.as_str()).increment(1);
}

/// `weir_transport_slowed_total`: how often an agent over its events or bytes per second had to wait for credit.
pub(crate) fn slowed() {
    counter!("weir_transport_slowed_total").increment(1);
}

/// `weir_transport_client_byes_total{why}`: good-byes that nodes said to an agent.
pub(crate) fn client_bye(bye: Bye) {
    counter!("weir_transport_client_byes_total", "why" => bye.as_str()).increment(1);
}

/// `weir_transport_enrolments_total{outcome}`: callers for a certificate; `enrolled`, `renewed`, `flood`, `slow`, `lost`, `malformed`, or
/// why it was refused.
pub(crate) fn enrolment(outcome: &'static str) {
    counter!("weir_transport_enrolments_total", "outcome" => outcome).increment(1);
}

/// Names, units and help of all of them, so that `/metrics` shows each with its meaning.
pub fn describe() {
    use metrics::{Unit, describe_counter, describe_gauge};
    describe_counter!("weir_transport_frames_received_total", "Frames received whole.");
    describe_counter!("weir_transport_bytes_received_total", Unit::Bytes, "Bytes of frames received whole.");
    describe_counter!("weir_transport_protocol_errors_total", "What peers did that the protocol does not allow, by error.");
    describe_counter!("weir_transport_refused_frames_total", "Frames refused for good, by reason.");
    describe_counter!("weir_transport_handshakes_total", "Handshakes, by outcome.");
    describe_counter!("weir_transport_enrolments_total", "Callers for a certificate, by outcome.");
    describe_gauge!("weir_transport_sessions", "Agents connected, by transport.");
    describe_counter!("weir_transport_closed_sessions_total", "Connections ended, by reason.");
    describe_gauge!("weir_transport_in_flight_bytes", Unit::Bytes, "Frames received and not yet durable.");
    describe_counter!("weir_transport_acks_sent_total", "Ack messages sent.");
    describe_gauge!("weir_transport_gso_segments", "Segments that one send of the listening socket may carry; 1 is no GSO.");
    describe_gauge!("weir_transport_udp_receive_buffer_bytes", Unit::Bytes, "Receive buffer of the listening socket.");
    describe_counter!("weir_transport_client_connects_total", "Connections an agent tried, by outcome and transport.");
    describe_counter!("weir_transport_slowed_total", "Times that an agent over its events or bytes per second had to wait.");
    describe_counter!("weir_transport_client_byes_total", "Good-byes that nodes said to an agent, by reason.");
}
