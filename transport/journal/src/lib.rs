//! The append-only segmented log of opaque records, crash-safe.
