//! How a client comes in: by SCRAM-SHA-256 as one of the roles, or without a password from loopback where there are none.
//!
//! A wrong password and a name that is not there are told in the same words, after the same exchange. Every error here is fatal: behind any
//! other the wire would take statements.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use futures::Sink;
use pgwire::api::auth::driver::AuthOutcome;
use pgwire::api::auth::mechanism::AuthMechanismFactory as _;
use pgwire::api::auth::{
    AuthDriver, DefaultServerParameterProvider, StartupHandler, protocol_negotiation, save_startup_parameters_to_metadata,
};
use pgwire::api::{ClientInfo, METADATA_DATABASE, METADATA_USER};
use pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use pgwire::messages::startup::Authentication;
use pgwire::messages::{PgWireBackendMessage, PgWireFrontendMessage};
use tokio::sync::OwnedSemaphorePermit;

use super::Handler;
use crate::access::Role;
use crate::error::{self, SqlError};
use crate::functions::{SERVER_VERSION, USER};
use crate::session::Engine;
use crate::tables::CATALOG;

/// Somebody who has come in.
pub(super) struct Entered {
    /// Asked by them.
    pub(super) engine: Engine,
    /// Among the connections of the role.
    _place: OwnedSemaphorePermit,
}

#[async_trait]
impl StartupHandler for Handler {
    async fn on_startup<C>(&self, client: &mut C, message: PgWireFrontendMessage) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let driver = self.driver();
        let (user, role, last) = match message {
            PgWireFrontendMessage::Startup(startup) => {
                protocol_negotiation(client, &startup).await?;
                save_startup_parameters_to_metadata(client, &startup);
                let user = named(client, METADATA_USER).to_owned();
                match self.access.open() {
                    Some(role) => {
                        let peer = client.socket_addr().ip();
                        if !peer.to_canonical().is_loopback() {
                            let message = format!("{peer} may not connect: there are no roles, so only loopback is let in");
                            return Err(fatal(SqlError::new(error::NOT_LET_IN, message)));
                        }
                        if user != USER {
                            let message = format!("role \"{user}\" does not exist: connect as \"{USER}\"");
                            return Err(fatal(SqlError::new(error::NOT_LET_IN, message)));
                        }
                        (user, Some(Arc::clone(role)), None)
                    }
                    None => {
                        if self.access.tls_required && !client.is_secure() {
                            let refused = SqlError::new(error::NOT_LET_IN, "this server is asked over TLS only");
                            return Err(fatal(refused.with_hint("connect with sslmode=require, or better verify-full")));
                        }
                        let mechanism = self.access.scram(client.is_secure()).create();
                        let begun = driver.begin_authentication(client, mechanism).await;
                        return begun.map(drop).map_err(|_| wrong_password(&user));
                    }
                }
            }
            PgWireFrontendMessage::PasswordMessageFamily(message) => {
                let user = named(client, METADATA_USER).to_owned();
                match driver.advance_authentication(client, message).await {
                    Ok(AuthOutcome::InProgress) => return Ok(()),
                    Ok(AuthOutcome::Authenticated { final_message, .. }) => {
                        let role = self.access.role(&user);
                        (user, role, final_message)
                    }
                    Err(failed) => {
                        tracing::warn!(user, peer = %client.socket_addr(), %failed, "an SQL login failed");
                        return Err(wrong_password(&user));
                    }
                }
            }
            _ => return Ok(()),
        };
        let role = role.ok_or_else(|| wrong_password(&user))?;
        self.enter(client, &driver, &role, last).await
    }
}

impl Handler {
    fn driver(&self) -> AuthDriver<DefaultServerParameterProvider> {
        let mut parameters = DefaultServerParameterProvider::default();
        parameters.server_version = SERVER_VERSION.to_owned();
        AuthDriver::new(parameters)
            .with_pid_secret_key_generator(self.keys.clone())
            .with_connection_manager(Arc::clone(&self.connections))
    }

    /// Somebody is known.
    async fn enter<C>(
        &self,
        client: &mut C,
        driver: &AuthDriver<DefaultServerParameterProvider>,
        role: &Arc<Role>,
        last: Option<Authentication>,
    ) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let database = match named(client, METADATA_DATABASE) {
            "" => &role.name,
            database => database,
        };
        if database != CATALOG {
            let message = format!("database \"{database}\" does not exist: connect to \"{CATALOG}\"");
            return Err(fatal(SqlError::new(error::UNKNOWN_DATABASE, message)));
        }
        let entered = Entered { engine: self.engine.asked_by(role), _place: role.connect().map_err(fatal)? };
        self.entered.set(entered).map_err(|_| fatal(SqlError::new(error::NOT_LET_IN, "somebody has logged in already")))?;
        driver.complete_authentication(client, last).await
    }
}

fn named<'a, C: ClientInfo>(client: &'a C, key: &str) -> &'a str {
    client.metadata().get(key).map_or("", String::as_str)
}

fn wrong_password(user: &str) -> PgWireError {
    fatal(SqlError::new(error::WRONG_PASSWORD, format!("password authentication failed for user \"{user}\"")))
}

fn fatal(error: SqlError) -> PgWireError {
    let mut info = ErrorInfo::new("FATAL".into(), error.code.into(), error.message);
    info.hint = error.hint;
    PgWireError::UserError(Box::new(info))
}
