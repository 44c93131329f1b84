//! How large anything in a frame may be. Producers keep to it, decoders refuse what is larger before they allocate for it.

/// Longest frame, header included.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Longest body after decompression.
pub const RAW_BYTES_MAX: usize = 8 << 20;
/// Most that a body may grow by decompression.
pub const RATIO_MAX: usize = 64;
/// Most events in a frame.
pub const EVENTS_MAX: usize = 65_536;
/// Most rows in the table of processes, and in the table of containers.
pub const TABLE_ROWS_MAX: usize = 65_535;
/// Most strings in a frame, the empty one at code 0 included.
pub const STRINGS_MAX: usize = 65_536;
/// Longest text. A builder cuts a longer one and ends it with `…`.
pub const STRING_BYTES_MAX: usize = 4_096;
/// Most decoded cells (rows × columns, over all tables and sections): 16 MiB. Constant columns cost nothing on the wire.
pub const CELLS_MAX: usize = 2 << 20;
