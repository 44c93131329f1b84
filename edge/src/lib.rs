//! The agent on every host: kernel events to batches.
