//! The record: every event kept as Parquet on an object store, as DataFusion tables.

#![forbid(unsafe_code)]
