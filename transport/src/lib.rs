//! Moves batches through space: session state machine, QUIC shells, identity, certificates.
