//! Load, replay, benchmarks.
