//! What the agent's process may do and use once its hooks are attached: rights, memory, processor.

use std::str::FromStr;

use serde::Deserialize;

use crate::document::Document;
use crate::error::Error;

/// What the agent's process may do and use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessConfig {
    /// Give up, once the hooks are attached, every capability that they alone needed, and never gain one again. Default true.
    pub drop_privileges: bool,
    /// What happens at a system call that the agent has no use for. Default `off`.
    pub seccomp: SeccompMode,
    /// Memory of the process that the kernel cannot take back (RssAnon), in bytes. Beyond it events are shed, the least important lane
    /// first, and counted as `memory_cap`.
    ///
    /// Default 100663296 (96 MiB: tables and queues have bounds of their own, which together stay below), from 32 MiB to 4 GiB.
    pub resident_bytes_max: u64,
    /// Time of the process on processors, in percent of one. Beyond it events are shed, never those of the security lane, and counted
    /// as `cpu_cap`.
    ///
    /// Default 100 (the collector's loop is one thread, so this is as much as it can take), from 5 to 400.
    pub cpu_percent_max: u64,
}

impl Default for ProcessConfig {
    fn default() -> Self {
        Self {
            drop_privileges: true,
            seccomp: SeccompMode::default(),
            resident_bytes_max: RESIDENT_BYTES,
            cpu_percent_max: CPU_PERCENT,
        }
    }
}

/// What happens at a system call that is not on the agent's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SeccompMode {
    /// Nothing: there is no filter.
    #[default]
    Off,
    /// The kernel writes a line (`dmesg`, audit) and lets it pass.
    Log,
    /// The kernel ends the process.
    Kill,
}

impl SeccompMode {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Log => "log",
            Self::Kill => "kill",
        }
    }
}

impl FromStr for SeccompMode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let all = [Self::Off, Self::Log, Self::Kill];
        all.into_iter().find(|mode| mode.as_str() == text).ok_or("not a mode")
    }
}

/// What people write.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawProcess {
    drop_privileges: Option<bool>,
    seccomp: Option<String>,
    resident_bytes_max: Option<i64>,
    cpu_percent_max: Option<i64>,
}

impl RawProcess {
    pub(crate) fn check(self, document: &Document) -> Result<ProcessConfig, Error> {
        let drop_privileges = self.drop_privileges.unwrap_or(true);
        let mode = |raw: String| document.parsed("process.seccomp", &raw, "write \"off\", \"log\" or \"kill\"");
        let seccomp: SeccompMode = self.seccomp.map(mode).transpose()?.unwrap_or_default();
        if seccomp != SeccompMode::Off && !drop_privileges {
            let cure = "leave process.drop_privileges out, or write \"off\"";
            return Err(document.wrong("process.seccomp", "a filter without giving up rights", cure));
        }
        let number = |key: &str, raw, default, range| document.number(key, raw, default, range);
        Ok(ProcessConfig {
            drop_privileges,
            seccomp,
            resident_bytes_max: number(
                "process.resident_bytes_max",
                self.resident_bytes_max,
                RESIDENT_BYTES,
                32 << 20..=4 << 30,
            )?,
            cpu_percent_max: number("process.cpu_percent_max", self.cpu_percent_max, CPU_PERCENT, 5..=400)?,
        })
    }
}

const RESIDENT_BYTES: u64 = 96 << 20;
const CPU_PERCENT: u64 = 100;
