//! Compaction, retention and sweep against the books of what was written.

mod faulty;
mod killed;
mod random;
mod rules;
mod support;
mod world;
