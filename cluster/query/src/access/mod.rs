//! Who may come in, and as whom. `grants.rs` says what a role may do, `regions.rs` what it sees.
//!
//! Without roles there is one user, `weir`, who may do everything and comes from loopback only. Promise: until somebody is known, they are
//! nobody, who may do nothing.

mod grants;
mod regions;
mod tls;
mod verifier;

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use async_trait::async_trait;
use pgwire::api::auth::sasl::scram::{ScramAuth, ScramSecret};
use pgwire::api::auth::{AuthSource, LoginInfo, Password};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::tokio::TlsAcceptor;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use weir_config::{Grants, RoleConfig, RoleLimits, SqlConfig, TlsMode};

pub(crate) use self::regions::restricted;
pub use self::verifier::Verifier;
use crate::error::{self, Error, SqlError};
use crate::functions::USER;

/// Who may come in.
pub(crate) struct Access {
    logins: Arc<Logins>,
    /// Who comes in without a password; none: nobody does.
    open: Option<Arc<Role>>,
    /// TLS of the SQL port.
    pub(crate) tls: Option<TlsAcceptor>,
    /// Nobody comes in over SQL without TLS.
    pub(crate) tls_required: bool,
    scram: ScramAuth,
    /// With the certificate bound into the proof.
    scram_bound: Option<ScramAuth>,
}

/// Somebody, and what they may do.
#[derive(Debug)]
pub(crate) struct Role {
    pub(crate) name: String,
    /// None: nothing.
    grants: Option<Grants>,
    /// Whose rows it sees; none named: all.
    regions: Vec<String>,
    /// What it sees whole.
    relations: Vec<String>,
    pub(crate) limits: RoleLimits,
    connections: Arc<Semaphore>,
    subscriptions: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Logins(BTreeMap<String, (Verifier, Arc<Role>)>);

impl Access {
    /// Reads the secrets and certificates that the config names.
    pub(crate) fn load(config: &SqlConfig) -> Result<Self, Error> {
        let mut logins = Logins::default();
        for role in &config.roles {
            let failed = |why: String| Error::Secret { role: role.name.clone(), path: role.secret_file.clone(), why };
            let text = fs::read_to_string(&role.secret_file).map_err(|why| failed(why.to_string()))?;
            let verifier = Verifier::of_secret(text.lines().next().unwrap_or_default()).map_err(failed)?;
            logins.0.insert(role.name.clone(), (verifier, Arc::new(Role::new(role))));
        }
        let open = logins.0.is_empty().then(|| Arc::new(Role::anybody()));
        let logins = Arc::new(logins);
        let scram = ScramAuth::new(Arc::clone(&logins) as Arc<dyn AuthSource>);
        let loaded = config.tls.as_ref().map(tls::load).transpose()?;
        let scram_bound = loaded.as_ref().and_then(|loaded| {
            let mut bound = scram.clone();
            // Certificates whose signature names no hash (Ed25519) have no binding.
            bound.configure_certificate(&loaded.chain).ok().map(|()| bound)
        });
        let tls_required = config.tls.as_ref().is_some_and(|tls| tls.mode == TlsMode::Required);
        Ok(Self { logins, open, tls: loaded.map(|loaded| loaded.acceptor), tls_required, scram, scram_bound })
    }

    /// Who comes in without a password.
    pub(crate) fn open(&self) -> Option<&Arc<Role>> {
        self.open.as_ref()
    }

    /// Whether the SQL port has TLS.
    pub(crate) fn is_kept_from_listeners(&self) -> bool {
        self.tls.is_some()
    }

    /// The exchange for a password. Over TLS it is bound to the certificate, where a client can.
    pub(crate) fn scram(&self, secure: bool) -> &ScramAuth {
        self.scram_bound.as_ref().filter(|_| secure).unwrap_or(&self.scram)
    }

    /// The role of this name, once its password was proven.
    pub(crate) fn role(&self, name: &str) -> Option<Arc<Role>> {
        self.logins.0.get(name).map(|(_, role)| Arc::clone(role))
    }

    /// The role of this name and password. Costs as much for a wrong one, and for a name that is not there: some milliseconds.
    pub(crate) fn login(&self, name: &str, password: &str) -> Option<Arc<Role>> {
        let proven = self.logins.verifier(name).is_of(password);
        self.role(name).filter(|_| proven)
    }
}

impl Role {
    fn new(config: &RoleConfig) -> Self {
        let places = |max: Option<u64>| {
            let max = max.and_then(|max| usize::try_from(max).ok()).unwrap_or(Semaphore::MAX_PERMITS);
            Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS)))
        };
        Self {
            name: config.name.clone(),
            grants: Some(config.grants),
            regions: config.regions.clone(),
            relations: config.relations.clone(),
            connections: places(config.limits.connections_max),
            subscriptions: places(config.limits.subscriptions_max),
            limits: config.limits.clone(),
        }
    }

    /// The one user of a server without roles.
    fn anybody() -> Self {
        Self { grants: Some(Grants::Admin), ..Self::nobody() }
    }

    /// Who is not known yet.
    pub(crate) fn nobody() -> Self {
        let unlimited = || Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        Self {
            name: USER.to_owned(),
            grants: None,
            regions: Vec::new(),
            relations: Vec::new(),
            limits: RoleLimits::default(),
            connections: unlimited(),
            subscriptions: unlimited(),
        }
    }

    /// Whether it sees the rows of some regions only.
    pub(crate) fn is_restricted(&self) -> bool {
        !self.regions.is_empty()
    }

    /// A place for one more connection.
    pub(crate) fn connect(&self) -> Result<OwnedSemaphorePermit, SqlError> {
        self.place(&self.connections, "connections", "connections_max")
    }

    /// A place for one more subscription.
    pub(crate) fn subscribe(&self) -> Result<OwnedSemaphorePermit, SqlError> {
        self.place(&self.subscriptions, "subscriptions", "subscriptions_max")
    }

    /// Whether an answer may have so many rows.
    pub(crate) fn takes(&self, rows: usize) -> Result<(), SqlError> {
        match self.limits.rows_max {
            Some(max) if rows as u64 > max => {
                let message = format!("the answer has {rows} rows, role \"{}\" takes {max}", self.name);
                Err(SqlError::new(error::LIMIT, message).with_hint("add a LIMIT, or raise `rows_max` of the role"))
            }
            _ => Ok(()),
        }
    }

    /// An error at a limit, with the cure for this role.
    pub(crate) fn in_its_words(&self, failed: SqlError) -> SqlError {
        let key = match failed.code {
            error::TIMED_OUT if self.limits.statement_ms_max.is_some() => "statement_ms_max",
            error::OUT_OF_MEMORY if self.limits.memory_bytes_max.is_some() => "memory_bytes_max",
            _ => return failed,
        };
        let hint = format!("ask for less, or raise `{key}` of role \"{}\"", self.name);
        failed.with_hint(hint)
    }

    fn place(&self, places: &Arc<Semaphore>, what: &str, key: &str) -> Result<OwnedSemaphorePermit, SqlError> {
        Arc::clone(places).try_acquire_owned().map_err(|_| {
            let message = format!("role \"{}\" has as many {what} on this node as it may have", self.name);
            SqlError::new(error::TOO_MANY, message).with_hint(format!("end one, ask another node, or raise `{key}` of the role"))
        })
    }
}

impl Logins {
    fn verifier(&self, name: &str) -> Verifier {
        match self.0.get(name) {
            Some((verifier, _)) => verifier.clone(),
            None => Verifier::of_nobody(name, &self.0.values().map(|(verifier, _)| verifier).collect::<Vec<_>>()),
        }
    }
}

#[async_trait]
impl AuthSource for Logins {
    async fn get_password(&self, login: &LoginInfo) -> PgWireResult<Password> {
        // Nothing here knows a password.
        Err(PgWireError::InvalidPassword(login.user().unwrap_or_default().to_owned()))
    }

    async fn get_scram_secret(&self, login: &LoginInfo) -> PgWireResult<(ScramSecret, Option<()>)> {
        Ok((self.verifier(login.user().unwrap_or_default()).secret(), None))
    }
}
