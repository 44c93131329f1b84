//! A node, and nodes together: ingest, log, chain, workers, recovery.
