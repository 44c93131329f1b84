//! The files of `deploy`: systemd units, images, Kubernetes manifests. What stands in several of them must be equal.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod docker;
mod kubernetes;
mod rendered;
mod units;
mod yaml;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn deploy(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file)
}

fn read(file: &str) -> String {
    std::fs::read_to_string(deploy(file)).unwrap_or_else(|error| panic!("deploy/{file}: {error}"))
}

/// Section and key to value; a key may stand once.
fn unit(file: &str) -> BTreeMap<(String, String), String> {
    let (mut keys, mut section) = (BTreeMap::new(), String::new());
    for line in read(file).lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name.to_owned();
            continue;
        }
        let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("{file}: {line}: no key=value"));
        assert!(["Unit", "Service", "Install"].contains(&section.as_str()), "{file}: {line}: in section {section:?}");
        let before = keys.insert((section.clone(), key.to_owned()), value.to_owned());
        assert_eq!(before, None, "{file}: {key} stands twice");
    }
    keys
}

/// What a unit says of its service.
fn service(file: &str, key: &str) -> String {
    unit(file).remove(&("Service".to_owned(), key.to_owned())).unwrap_or_else(|| panic!("{file} has no {key}"))
}

/// A folder of this run and this test; who makes it removes it.
fn folder(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("weir-deploy-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}
