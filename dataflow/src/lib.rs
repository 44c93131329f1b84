//! Keeps every answer up to date: plans to timely and differential operators.

#![forbid(unsafe_code)]

pub mod handle;
mod settings;

pub use settings::{Command, ViewSettings};
