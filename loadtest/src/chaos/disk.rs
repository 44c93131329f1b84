//! A small disk for what the nodes share, so that it can be full. Needs root.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A disk of its own for what the nodes share, so that it can be full.
pub(super) struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// Mounts one at `at`; `None` without the right to.
    pub(super) fn mount(at: &Path) -> Option<Self> {
        std::fs::create_dir_all(at).ok()?;
        let size = format!("size={DISK_BYTES}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).output().ok()?;
        mounted.status.success().then(|| Self { at: at.to_owned() })
    }

    /// Takes all space that is left, until the guard is dropped.
    pub(super) fn fill(&self) -> anyhow::Result<Ballast> {
        let path = self.at.join("ballast");
        let file = std::fs::File::create(&path)?;
        let ballast = Ballast { path };
        let (mut at, mut piece) = (0_u64, 64_u64 << 20);
        while piece >= 4_096 {
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), at, piece) {
                Ok(()) => at += piece,
                Err(_) => piece /= 2,
            }
        }
        Ok(ballast)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

/// What takes the space.
pub(super) struct Ballast {
    path: PathBuf,
}

impl Drop for Ballast {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Room for an hour of a small fleet.
const DISK_BYTES: u64 = 4 << 30;
