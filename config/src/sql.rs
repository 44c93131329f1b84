//! Who may ask over the SQL port and the HTTP port, how the way to the SQL port is kept, and what each role may use.
//!
//! Secrets stand in files, never in this file: a role names the file with its verifier (PostgreSQL's `SCRAM-SHA-256$…`, printed by
//! `weir sql-role hash`) or with its password, which is hashed when the node starts.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

use crate::document::Document;
use crate::error::Error;

/// Roles, and TLS of the SQL port.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SqlConfig {
    /// Milliseconds without a statement after which an SQL connection is ended; 0: never. Default 0, up to 86400000.
    pub idle_ms_max: u64,
    /// TLS of the SQL port. Default: none, so what is asked and answered is in the clear.
    pub tls: Option<SqlTls>,
    /// Who may come in. Default: none, then `weir` may from loopback, without a password.
    pub roles: Vec<RoleConfig>,
}

/// TLS of the SQL port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlTls {
    /// PEM with the certificate chain that clients check. Required.
    pub cert: PathBuf,
    /// PEM with its private key, mode 0600. Required.
    pub key: PathBuf,
    /// Whether a client may come without. Default `required`.
    pub mode: TlsMode,
}

/// Whether a client may come without TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TlsMode {
    /// No client may.
    #[default]
    Required,
    /// TLS for whoever asks for it.
    Preferred,
}

/// Who may come in, and what they may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleConfig {
    /// The user's name. A name as in certificates.
    pub name: String,
    /// The file whose first line is the verifier or the password. Required.
    pub secret_file: PathBuf,
    /// What the role may do. Default `read`.
    pub grants: Grants,
    /// Regions whose rows the role sees; at most 256. Default: all.
    pub regions: Vec<String>,
    /// With `regions`: relations without a region column that the role sees whole.
    pub relations: Vec<String>,
    /// What it may use. What is not said here is as in `query`.
    pub limits: RoleLimits,
}

/// What a role may do. Each may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Grants {
    /// Ask and subscribe.
    #[default]
    Read,
    /// Make and drop views and tables, change rows of tables.
    Write,
    /// Make and drop rules and sinks of alerts: what the whole fleet is watched for, and who is told.
    Admin,
}

/// What a role may use; none: as much as `query` lets everybody.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RoleLimits {
    /// Bytes of memory of one statement, from 1048576 to 68719476736.
    pub memory_bytes_max: Option<u64>,
    /// Milliseconds of one statement, from 10 to 3600000.
    pub statement_ms_max: Option<u64>,
    /// Rows of one answer, from 1 to 100000000.
    pub rows_max: Option<u64>,
    /// Subscriptions at once on this node, from 0 to 10000.
    pub subscriptions_max: Option<u64>,
    /// SQL connections at once on this node, from 1 to 10000.
    pub connections_max: Option<u64>,
}

/// What people write.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawSql {
    idle_ms_max: Option<i64>,
    tls: Option<RawSqlTls>,
    roles: Vec<RawRole>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawSqlTls {
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    mode: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawRole {
    name: Option<String>,
    secret_file: Option<PathBuf>,
    grants: Option<String>,
    regions: Option<Vec<String>>,
    relations: Option<Vec<String>>,
    memory_bytes_max: Option<i64>,
    statement_ms_max: Option<i64>,
    rows_max: Option<i64>,
    subscriptions_max: Option<i64>,
    connections_max: Option<i64>,
}

impl RawSql {
    /// `listen` is where the SQL port is: beyond loopback nobody comes in without a password.
    pub(crate) fn check(self, document: &Document, listen: SocketAddr) -> Result<SqlConfig, Error> {
        if self.roles.is_empty() && !listen.ip().to_canonical().is_loopback() {
            let cure = "add [[sql.roles]] with a name and a secret_file (`weir sql-role hash`), or listen on 127.0.0.1";
            return Err(document.wrong("listen.sql", "other machines could ask without a password", cure));
        }
        if self.roles.len() > ROLES_MAX {
            return Err(document.wrong("sql.roles", "too many roles", format!("keep at most {ROLES_MAX}")));
        }
        let mut roles: Vec<RoleConfig> = Vec::new();
        for (place, raw) in self.roles.into_iter().enumerate() {
            let key = format!("sql.roles[{place}]");
            let role = raw.check(document, &key)?;
            if roles.iter().any(|other| other.name == role.name) {
                return Err(document.wrong(&format!("{key}.name"), "two roles of this name", "give each role a name of its own"));
            }
            roles.push(role);
        }
        Ok(SqlConfig {
            idle_ms_max: document.number("sql.idle_ms_max", self.idle_ms_max, 0, 0..=86_400_000)?,
            tls: self.tls.map(|raw| raw.check(document)).transpose()?,
            roles,
        })
    }
}

impl RawSqlTls {
    fn check(self, document: &Document) -> Result<SqlTls, Error> {
        let file = |key: &str, raw: Option<PathBuf>, example: &str| document.path(key, &document.required(key, raw, example)?);
        Ok(SqlTls {
            cert: file("sql.tls.cert", self.cert, "\"tls/sql-cert.pem\"")?,
            key: file("sql.tls.key", self.key, "\"tls/sql-key.pem\"")?,
            mode: match self.mode.as_deref() {
                None | Some("required") => TlsMode::Required,
                Some("preferred") => TlsMode::Preferred,
                Some(_) => return Err(document.wrong("sql.tls.mode", "not known", "write \"required\" or \"preferred\"")),
            },
        })
    }
}

impl RawRole {
    fn check(self, document: &Document, key: &str) -> Result<RoleConfig, Error> {
        let at = |name: &str| format!("{key}.{name}");
        let name = document.name(&at("name"), document.required(&at("name"), self.name.clone(), "\"analyst\"")?)?;
        let secret = document.required(&at("secret_file"), self.secret_file.clone(), "\"analyst.scram\"")?;
        let grants = match self.grants.as_deref() {
            None | Some("read") => Grants::Read,
            Some("write") => Grants::Write,
            Some("admin") => Grants::Admin,
            Some(_) => return Err(document.wrong(&at("grants"), "not known", "write \"read\", \"write\" or \"admin\"")),
        };
        let regions = names(document, &at("regions"), self.regions.as_deref())?;
        if !regions.is_empty() && grants != Grants::Read {
            let cure = "write grants = \"read\", or leave regions away";
            return Err(document.wrong(&at("regions"), "what a role makes is kept over the rows of all regions", cure));
        }
        if !regions.is_empty() {
            let cure = "remove the key, and give the role no secret until it may see every region";
            return Err(document.wrong(&at("regions"), "regions are not enforced for every statement yet", cure));
        }
        let relations = names(document, &at("relations"), self.relations.as_deref())?;
        if !relations.is_empty() && regions.is_empty() {
            let cure = "remove it, or name the regions that the role sees";
            return Err(document.wrong(&at("relations"), "a role without regions sees every relation whole", cure));
        }
        Ok(RoleConfig {
            name,
            secret_file: document.path(&at("secret_file"), &secret)?,
            grants,
            regions,
            relations,
            limits: self.limits(document, key)?,
        })
    }

    fn limits(&self, document: &Document, key: &str) -> Result<RoleLimits, Error> {
        let limit = |name: &str, raw: Option<i64>, range: std::ops::RangeInclusive<u64>| {
            let Some(number) = raw else { return Ok(None) };
            let number = u64::try_from(number).ok().filter(|number| range.contains(number));
            let cure = format!(
                "write a whole number from {} to {}, or remove the key: then `query` alone limits",
                range.start(),
                range.end()
            );
            number.map(Some).ok_or_else(|| document.wrong(&format!("{key}.{name}"), "out of range", cure))
        };
        Ok(RoleLimits {
            memory_bytes_max: limit("memory_bytes_max", self.memory_bytes_max, 1_048_576..=68_719_476_736)?,
            statement_ms_max: limit("statement_ms_max", self.statement_ms_max, 10..=3_600_000)?,
            rows_max: limit("rows_max", self.rows_max, 1..=100_000_000)?,
            subscriptions_max: limit("subscriptions_max", self.subscriptions_max, 0..=10_000)?,
            connections_max: limit("connections_max", self.connections_max, 1..=10_000)?,
        })
    }
}

/// 1 to 256 names, or none where nothing is written.
fn names(document: &Document, key: &str, raw: Option<&[String]>) -> Result<Vec<String>, Error> {
    let Some(raw) = raw else { return Ok(Vec::new()) };
    if raw.is_empty() || raw.len() > NAMES_MAX {
        return Err(document.wrong(
            key,
            "nothing named, or too much",
            format!("write 1 to {NAMES_MAX} names, or remove the key"),
        ));
    }
    raw.iter().enumerate().map(|(at, name)| document.name(&format!("{key}[{at}]"), name.clone())).collect()
}

/// People and tools share roles; each is looked at for every login.
const ROLES_MAX: usize = 256;
/// As many as a node may name regions.
const NAMES_MAX: usize = 256;
