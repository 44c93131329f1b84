//! The PostgreSQL wire: simple and extended protocol.

mod busy;
mod cursors;
mod outgoing;
mod parameters;
mod peer;
mod prepared;
mod startup;
mod transaction;

use std::fmt::Debug;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use futures::{Sink, SinkExt as _, StreamExt as _, stream};
use pgwire::api::auth::StartupHandler;
use pgwire::api::cancel::{CancelHandler, DefaultCancelHandler};
use pgwire::api::portal::{Format, Portal};
use pgwire::api::query::{ExtendedQueryHandler, SimpleQueryHandler};
use pgwire::api::results::{FieldFormat, FieldInfo, QueryResponse, Response, Tag};
use pgwire::api::{ClientInfo, ConnectionManager, PgWireServerHandlers, RandomPidSecretKeyGenerator};
use pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::response::TransactionStatus;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use self::busy::Busy;
use self::cursors::Cursors;
use self::outgoing::Shape;
use self::peer::{Peer, keep_alive};
use self::prepared::{Parser, Prepared};
use self::startup::Entered;
use self::transaction::{Kept, Session};
use crate::access::Access;
use crate::encode;
use crate::error::SqlError;
use crate::rules::RuleStatement;
use crate::session::{Answer, Engine, Planned};
use crate::sinks::SinkStatement;
use crate::statement::{Show, Statement, parse};
use crate::subscription::Subscribable;

/// Serves connections until dropped.
pub(crate) async fn serve(listener: TcpListener, engine: Engine, access: Arc<Access>, idle_max: Duration) {
    let connections_max = engine.limits().connections_max;
    let (handler, places) = (Handler::new(engine, access), Arc::new(Semaphore::new(connections_max)));
    loop {
        match listener.accept().await {
            Ok((socket, peer)) => {
                let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                    tracing::warn!(%peer, connections_max, "too many SQL connections: one was refused");
                    continue;
                };
                keep_alive(&socket);
                let (busy, tls) = (Arc::<Busy>::default(), handler.access.tls.clone());
                let client =
                    Handler { peer: Peer::of(&socket), busy: Arc::clone(&busy), entered: Arc::default(), ..handler.clone() };
                let handlers = Handlers(Arc::new(client));
                tokio::spawn(async move {
                    tokio::select! {
                        ended = pgwire::tokio::process_socket(socket, tls, handlers) => {
                            if let Err(error) = ended {
                                tracing::debug!(%peer, %error, "an SQL connection ended");
                            }
                        }
                        () = busy.idle_for(idle_max) => {
                            tracing::info!(%peer, "an SQL connection without a statement for `sql.idle_ms_max` was ended");
                        }
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "an SQL connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

#[derive(Clone)]
struct Handlers(Arc<Handler>);

impl PgWireServerHandlers for Handlers {
    fn simple_query_handler(&self) -> Arc<impl SimpleQueryHandler> {
        Arc::clone(&self.0)
    }

    fn extended_query_handler(&self) -> Arc<impl ExtendedQueryHandler> {
        Arc::clone(&self.0)
    }

    fn startup_handler(&self) -> Arc<impl StartupHandler> {
        Arc::clone(&self.0)
    }

    fn cancel_handler(&self) -> Arc<impl CancelHandler> {
        Arc::new(DefaultCancelHandler::new(Arc::clone(&self.0.connections)))
    }
}

#[derive(Clone)]
struct Handler {
    /// Of nobody.
    engine: Engine,
    access: Arc<Access>,
    /// Who has logged in.
    entered: Arc<OnceLock<Entered>>,
    /// The client.
    peer: Peer,
    busy: Arc<Busy>,
    /// Who may cancel what.
    connections: Arc<ConnectionManager>,
    keys: Arc<RandomPidSecretKeyGenerator>,
}

/// Whether a client was told the columns before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Described {
    Yes,
    No,
}

/// Where a statement runs.
struct Place<'a> {
    cursors: &'a Cursors,
    session: &'a Session,
    /// Before it.
    within: TransactionStatus,
}

impl Handler {
    fn new(engine: Engine, access: Arc<Access>) -> Self {
        Self {
            engine,
            access,
            entered: Arc::default(),
            peer: Peer::default(),
            busy: Arc::default(),
            connections: Arc::new(ConnectionManager::new()),
            keys: Arc::default(),
        }
    }

    /// As whoever has logged in; as nobody before.
    fn engine(&self) -> &Engine {
        self.entered.get().map_or(&self.engine, |entered| &entered.engine)
    }

    /// Sends the rows of a SUBSCRIBE or a COPY as they come; nothing for another statement. `described`: the client was told the columns.
    async fn stream<C>(
        &self,
        client: &mut C,
        prepared: &Prepared,
        parameters: Option<datafusion::common::ParamValues>,
        (format, described, place): (&Format, Described, &Place<'_>),
    ) -> PgWireResult<Option<Result<Tag, SqlError>>>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<C::Error>,
    {
        let (shape, header, tag) = match (&prepared.statement, &prepared.subscribable) {
            (Statement::Subscribe(_), Some(Subscribable { schema, .. })) => {
                (Shape::Rows(outgoing::formats(schema, format)), false, "SUBSCRIBE")
            }
            (Statement::Copy(copy), _) => (Shape::Copy(copy.format), copy.header, "COPY"),
            _ => return Ok(None),
        };
        let begins = described == Described::No || matches!(shape, Shape::Copy(_));
        let sent = match (&prepared.subscribable, &prepared.planned) {
            (Some(subscribable), _) => match self.engine().subscribe(subscribable).await {
                Ok(mut subscription) => {
                    if begins {
                        shape.begin(client, &subscribable.schema, header).await?;
                    }
                    outgoing::send((client, &self.peer), &mut subscription, &shape).await?
                }
                Err(failed) => Err(failed),
            },
            (None, Some(planned)) => match self.read(planned, parameters, place).await {
                Ok(answer) => {
                    tell(client, answer.note.clone()).await?;
                    shape.begin(client, &answer.schema, header).await?;
                    let mut rows = 0;
                    for batch in &answer.batches {
                        rows += shape.feed(client, batch).await?;
                    }
                    Ok(rows)
                }
                Err(failed) => Err(failed),
            },
            (None, None) => Err(SqlError::new(crate::error::INTERNAL, "a statement was not planned")),
        };
        if sent.is_ok() {
            shape.end(client).await?;
        }
        Ok(Some(sent.map(|rows| Tag::new(tag).with_rows(rows))))
    }

    /// The rows of a query, at the transaction's tick where it has one.
    async fn read(
        &self,
        planned: &Planned,
        parameters: Option<datafusion::common::ParamValues>,
        place: &Place<'_>,
    ) -> Result<Answer, SqlError> {
        let as_of = planned.as_of.or_else(|| place.session.tick(place.within));
        let planned = Planned { plan: planned.plan.clone(), as_of };
        let run = self.engine().run(&planned, parameters);
        let answer = match place.session.time_max() {
            None => run.await?,
            Some(max) => tokio::time::timeout(max, run)
                .await
                .map_err(|_| SqlError::new(crate::error::TIMED_OUT, "canceling statement due to statement timeout"))??,
        };
        place.session.read_at(answer.tick, place.within);
        Ok(answer)
    }

    async fn execute(
        &self,
        place: &Place<'_>,
        prepared: &Prepared,
        parameters: Option<datafusion::common::ParamValues>,
        format: &Format,
    ) -> Result<(Response, Option<String>), SqlError> {
        let Place { cursors, session, within } = *place;
        let mut note = None;
        let response = match (&prepared.statement, &prepared.planned) {
            (Statement::Show(Show::Setting(name)), _) if session.own(name).is_some() => {
                rows(&Answer::of_text(name, session.own(name))?, format, "SHOW")?
            }
            (Statement::Show(show), _) => rows(&self.engine().show(show).await?, format, Self::tag(show))?,
            (Statement::Query(_), Some(planned)) => {
                let answer = self.read(planned, parameters, place).await?;
                note.clone_from(&answer.note);
                rows(&answer, format, "SELECT")?
            }
            (Statement::CreateView(view), _) => {
                note = self.engine().create_view(view).await?;
                let tag = if view.materialized { "CREATE MATERIALIZED VIEW" } else { "CREATE VIEW" };
                Response::Execution(Tag::new(tag))
            }
            (Statement::DropViews(dropping), _) => {
                note = self.engine().drop_views(dropping).await?;
                Response::Execution(Tag::new(dropping.what.tag()))
            }
            (Statement::Rule(RuleStatement::Show), _) => rows(&self.engine().show_rules().await?, format, "SHOW")?,
            (Statement::Rule(rule), _) => {
                match rule {
                    RuleStatement::Create(sql) => note = self.engine().create_rule(sql).await?,
                    RuleStatement::Drop(dropping) => note = self.engine().drop_views(dropping).await?,
                    RuleStatement::Show => {}
                }
                Response::Execution(Tag::new(rule.tag()))
            }
            (Statement::Sink(SinkStatement::Show), _) => rows(&self.engine().show_sinks().await?, format, "SHOW")?,
            (Statement::Sink(sink), _) => {
                note = self.engine().change_sinks(sink).await?;
                Response::Execution(Tag::new(sink.tag()))
            }
            (Statement::CreateTable(create), _) => {
                note = self.engine().create_table(create).await?;
                Response::Execution(Tag::new("CREATE TABLE"))
            }
            (Statement::Write(_), Some(planned)) => {
                let done = Box::pin(self.engine().write(planned, parameters)).await?;
                note = done.note;
                Response::Execution(Tag::new(done.tag).with_rows(done.rows))
            }
            (Statement::Truncate(table), _) => {
                let done = self.engine().truncate(table).await?;
                note = done.note;
                Response::Execution(Tag::new(done.tag))
            }
            (Statement::Declare(declare), _) => {
                let tick = cursors.declare(self.engine(), declare, session.tick(within)).await?;
                session.read_at(tick, within);
                Response::Execution(Tag::new("DECLARE CURSOR"))
            }
            (Statement::Fetch(fetch), _) => rows(&cursors.fetch(fetch, &self.peer).await?, format, "FETCH")?,
            (Statement::Close(name), _) => {
                cursors.close(name.as_deref()).await?;
                Response::Execution(Tag::new("CLOSE CURSOR"))
            }
            (Statement::Subscribe(_) | Statement::Copy(_), _) => {
                return Err(SqlError::new(crate::error::INTERNAL, "what streams was not streamed"));
            }
            (Statement::Begin(modes), _) => {
                if within == TransactionStatus::Idle {
                    session.begin(modes);
                } else {
                    note = Some("there is already a transaction in progress".to_owned());
                }
                Response::TransactionStart(Tag::new("BEGIN"))
            }
            (Statement::End(tag), _) => {
                cursors.close(None).await?;
                session.end();
                note = (within == TransactionStatus::Idle).then(|| "there is no transaction in progress".to_owned());
                // What failed cannot be committed.
                Response::TransactionEnd(Tag::new(if within == TransactionStatus::Error { "ROLLBACK" } else { tag }))
            }
            (Statement::Characteristics(modes), _) => {
                note = session.characteristics(modes, within)?;
                Response::Execution(Tag::new("SET"))
            }
            (Statement::Savepoint(name), _) => {
                session.savepoint(name)?;
                Response::Execution(Tag::new("SAVEPOINT"))
            }
            (Statement::Release(name), _) => {
                session.back_to(name, Kept::No)?;
                Response::Execution(Tag::new("RELEASE"))
            }
            (Statement::RollbackTo(name), _) => {
                session.back_to(name, Kept::Yes)?;
                Response::Execution(Tag::new("ROLLBACK"))
            }
            (Statement::Set(assignment), _) => {
                note = session.set(assignment, within)?;
                Response::Execution(Tag::new("SET"))
            }
            (Statement::Reset(name), _) => {
                session.reset(name.as_deref())?;
                Response::Execution(Tag::new("RESET"))
            }
            (Statement::Discard, _) => {
                cursors.close(None).await?;
                session.reset(None)?;
                Response::Execution(Tag::new("DISCARD ALL"))
            }
            (Statement::Accepted(tag), _) => Response::Execution(Tag::new(tag)),
            (Statement::Query(_) | Statement::Write(_), None) => {
                return Err(SqlError::new(crate::error::INTERNAL, "a query was not planned"));
            }
        };
        Ok((response, note))
    }

    fn tag(_: &Show) -> &'static str {
        "SHOW"
    }
}

fn rows(answer: &Answer, format: &Format, tag: &str) -> Result<Response, SqlError> {
    let header = Arc::new(encode::fields(&answer.schema, format));
    let formats: Vec<FieldFormat> = header.iter().map(FieldInfo::format).collect();
    // Batch by batch: an answer is in memory once as Arrow, not twice.
    let encoded = stream::iter(answer.batches.clone()).flat_map(move |batch| {
        let rows =
            encode::data_rows(&batch, &formats).map_err(|error| told(SqlError::new(crate::error::INTERNAL, error.to_string())));
        stream::iter(match rows {
            Ok(rows) => rows.into_iter().map(Ok).collect::<Vec<_>>(),
            Err(error) => vec![Err(error)],
        })
    });
    let mut response = QueryResponse::new(header, encoded);
    response.set_command_tag(tag);
    Ok(Response::Query(response))
}

#[async_trait]
impl SimpleQueryHandler for Handler {
    async fn do_query<C>(&self, client: &mut C, query: &str) -> PgWireResult<Vec<Response>>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<C::Error>,
    {
        let _busy = self.busy.begin();
        let (mut responses, statements) = (Vec::new(), parse(query).map_err(told)?);
        let (cursors, session) = (cursors::of(client), transaction::of(client));
        let streams = |statement: &Statement| matches!(statement, Statement::Subscribe(_) | Statement::Copy(_));
        if statements.len() > 1 && statements.iter().any(streams) {
            let construct = "SUBSCRIBE or COPY together with other statements in one query";
            return Err(told(SqlError::unsupported(construct).with_hint("send it alone")));
        }
        let mut within = client.transaction_status();
        for statement in statements {
            let place = Place { cursors: &cursors, session: &session, within };
            let prepared = async {
                let after = session.allow(&statement, within)?;
                Prepared::of(self.engine(), &cursors, statement).await.map(|prepared| (prepared, after))
            };
            let answered = match prepared.await {
                Ok((prepared, after)) => {
                    within = after;
                    let told = (&Format::UnifiedText, Described::No, &place);
                    match self.stream(client, &prepared, None, told).await? {
                        Some(streamed) => streamed.map(|tag| (Response::Execution(tag), None)),
                        None => self.execute(&place, &prepared, None, &Format::UnifiedText).await,
                    }
                }
                Err(error) => Err(error),
            };
            match answered {
                Ok((response, note)) => {
                    tell(client, note).await?;
                    responses.push(response);
                }
                // What came before stands; what comes after is not run.
                Err(error) => {
                    responses.push(Response::Error(Box::new(info(error))));
                    break;
                }
            }
        }
        Ok(responses)
    }
}

#[async_trait]
impl ExtendedQueryHandler for Handler {
    type Statement = Prepared;
    type QueryParser = Parser;

    fn query_parser(&self) -> Arc<Self::QueryParser> {
        Arc::new(Parser { engine: self.engine().clone() })
    }

    async fn do_query<C>(&self, client: &mut C, portal: &Portal<Self::Statement>, max_rows: usize) -> PgWireResult<Response>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<C::Error>,
    {
        let _busy = self.busy.begin();
        let prepared = &portal.statement.statement;
        let (within, session) = (client.transaction_status(), transaction::of(client));
        session.allow(&prepared.statement, within).map_err(told)?;
        let parameters = match &prepared.planned {
            Some(planned) => parameters::values(portal, &planned.plan)?,
            None => None,
        };
        let (format, cursors) = (&portal.result_column_format, cursors::of(client));
        let place = Place { cursors: &cursors, session: &session, within };
        if max_rows > 0 && matches!(prepared.statement, Statement::Subscribe(_)) {
            let refused = SqlError::unsupported("SUBSCRIBE with a fetch size");
            return Err(told(refused.with_hint("DECLARE a cursor for it, and FETCH")));
        }
        let streamed = self.stream(client, prepared, parameters.clone(), (format, Described::Yes, &place)).await?;
        if let Some(streamed) = streamed {
            return streamed.map(Response::Execution).map_err(told);
        }
        let (response, note) = self.execute(&place, prepared, parameters, format).await.map_err(told)?;
        tell(client, note).await?;
        Ok(response)
    }
}

/// Sends a notice ahead of the rows.
async fn tell<C>(client: &mut C, note: Option<String>) -> PgWireResult<()>
where
    C: Sink<PgWireBackendMessage> + Unpin + Send + Sync,
    PgWireError: From<C::Error>,
{
    if let Some(note) = note {
        let info = ErrorInfo::new("NOTICE".into(), "00000".into(), note);
        client.feed(PgWireBackendMessage::NoticeResponse(info.into())).await?;
    }
    Ok(())
}

fn info(error: SqlError) -> ErrorInfo {
    let mut info = ErrorInfo::new("ERROR".into(), error.code.into(), error.message);
    info.hint = error.hint;
    info
}

fn told(error: SqlError) -> PgWireError {
    PgWireError::UserError(Box::new(info(error)))
}
