//! Who may come in: user and database `weir`, no password, from loopback only.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use futures::{Sink, SinkExt as _};
use pgwire::api::auth::{
    DefaultServerParameterProvider, StartupHandler, finish_authentication, protocol_negotiation,
    save_startup_parameters_to_metadata,
};
use pgwire::api::{ClientInfo, ConnectionGuard, ConnectionHandle, METADATA_DATABASE, METADATA_USER, PidSecretKeyGenerator as _};
use pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use pgwire::messages::response::ErrorResponse;
use pgwire::messages::{PgWireBackendMessage, PgWireFrontendMessage};

use super::Handler;
use crate::functions::{SERVER_VERSION, USER};
use crate::tables::CATALOG;

#[async_trait]
impl StartupHandler for Handler {
    async fn on_startup<C>(&self, client: &mut C, message: PgWireFrontendMessage) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let PgWireFrontendMessage::Startup(startup) = &message else { return Ok(()) };
        protocol_negotiation(client, startup).await?;
        save_startup_parameters_to_metadata(client, startup);
        if let Some(refused) = refused(client) {
            client.send(PgWireBackendMessage::ErrorResponse(ErrorResponse::from(refused))).await?;
            client.close().await?;
            return Ok(());
        }
        let mut parameters = DefaultServerParameterProvider::default();
        parameters.server_version = SERVER_VERSION.to_owned();
        let (pid, key) = self.keys.generate(client);
        client.set_pid_and_secret_key(pid, key.clone());
        let (handle, guard) = self.connections.register(pid, key);
        client.session_extensions().insert::<Arc<ConnectionHandle>>(handle);
        client.session_extensions().insert::<ConnectionGuard>(guard);
        finish_authentication(client, &parameters).await
    }
}

/// Why a client may not come in.
fn refused<C: ClientInfo>(client: &C) -> Option<ErrorInfo> {
    let fatal = |code: &str, message: String| Some(ErrorInfo::new("FATAL".into(), code.into(), message));
    let named = |key: &str| client.metadata().get(key).map(String::as_str);
    let (user, database) =
        (named(METADATA_USER).unwrap_or(""), named(METADATA_DATABASE).or_else(|| named(METADATA_USER)).unwrap_or(""));
    let peer = client.socket_addr().ip();
    if !peer.to_canonical().is_loopback() {
        return fatal("28000", format!("{peer} may not connect: there are no passwords yet, so only loopback is let in"));
    }
    if user != USER {
        return fatal("28000", format!("role \"{user}\" does not exist: connect as \"{USER}\""));
    }
    if database != CATALOG {
        return fatal("3D000", format!("database \"{database}\" does not exist: connect to \"{CATALOG}\""));
    }
    None
}
