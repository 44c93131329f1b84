//! Evidence and import, tested together over a small archive in a directory.

mod bundles;
mod damage;
mod fixture;
mod lines;
