//! What the measurements share: frames, and what the process has used.

use weir_schema::{Frame, HEADER_BYTES};

/// A frame whose body nobody decodes here; see weir-schema's frame.rs for its head.
pub(crate) fn frame(body: &[u8], first_seq: u64) -> Frame {
    let mut bytes = vec![0; HEADER_BYTES];
    let length = (body.len() as u32).to_le_bytes();
    bytes[..4].copy_from_slice(b"WEIR");
    bytes[4] = 1;
    bytes[8] = 1;
    bytes[16..24].copy_from_slice(&first_seq.to_le_bytes());
    bytes[24] = 1;
    bytes[28..32].copy_from_slice(&length);
    bytes[32..36].copy_from_slice(&length);
    bytes.extend_from_slice(body);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..60]), body);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    Frame::from_vec(bytes).expect("a good frame")
}

/// User and system time of this process.
pub(crate) fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("procfs");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<f64>().expect("a number");
    (ticks(11) + ticks(12)) / 100.0
}
