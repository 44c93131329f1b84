//! What people may ask for: typed configuration sections, limits with reasons, validation with a cure.
//!
//! Three files, three doors: [`AgentConfig::load`], [`NodeConfig::load`], [`DemoConfig::load`]. Behind a door every value is
//! valid and nobody checks again; rooms receive their section by value, never the whole.
//!
//! - TOML; unknown keys are refused. Sizes and times are whole numbers, the unit stands in the key (`_bytes`, `_ms`), the
//!   same word in file, code, metric and manual.
//! - `WEIR_` and the path with `__` overrides a key: `WEIR_LISTEN__SQL=127.0.0.1:8432`, `WEIR_TICK_MS=250`. The value is read
//!   as TOML where the key takes it so, else as text. A variable with a section that is no key is refused, unless the section is
//!   another role's, which may share the environment; one without a section that is no key belongs to somebody else, as `WEIR_LOG` does,
//!   which says what is logged.
//! - Relative paths, also from the environment, are relative to the folder of the file.
//! - An [`Error`] is one line: file and line, key, value, what is wrong, what to do.
//!
//! Absent on purpose: secrets (only paths to them), hot reload (what changes answers is a command of the chain).

mod address;
mod agent;
mod alerts;
mod apps;
mod archive;
mod collector;
mod demo;
mod document;
mod error;
mod log;
mod metadata;
mod node;
mod process;
mod rules;
mod section;
mod shipped;
mod sink;
mod sink_definition;
mod sql;
mod tls;

use std::path::Path;

pub use address::HostPort;
pub use agent::{AgentConfig, BatchLimits, SpoolLimits, TransportChoice};
pub use alerts::{AlertLimits, AlertsConfig, SINKS_MAX, Severity};
pub use apps::{AppRule, AppSubject, Glob, LabelGlob, UNASSIGNED, app_of};
pub use archive::{ArchiveConfig, ArchiveLimits, RetentionRule};
pub use collector::{CallFilter, Collector, OpenFilter, UdpFilter};
pub use demo::DemoConfig;
pub use error::Error;
pub use log::{LogConfig, LogLevel};
pub use metadata::{CloudConfig, CloudProvider, KubernetesConfig, MetadataConfig, MetadataLimits};
pub use node::{
    Agents, ChangesLimits, CheckpointLimits, JournalLimits, Limits, Listen, Mesh, MeshLimits, NodeConfig, QueryLimits, TcpListen,
    Views,
};
pub use process::{ProcessConfig, SeccompMode};
pub use rules::{RuleMatching, RulesConfig};
pub use shipped::{CHAIN_FILES, RULE_FILES};
pub use sink::{KafkaTarget, MailSecurity, MailTarget, Route, Secret, SinkConfig, SinkFormat, SyslogProtocol, Target};
pub use sink_definition::{SinkDefinition, SinkRefusal, SinkValue};
pub use sql::{Grants, RoleConfig, RoleLimits, SqlConfig, SqlTls, TlsMode};
pub use tls::{ClientTls, Enrol, ServerTls};

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::Read { file: path.to_owned(), source })
}

/// The process's environment, as far as it is text.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}
