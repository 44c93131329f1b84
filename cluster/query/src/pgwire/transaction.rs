//! What a connection has set, and the transaction it is in.
//!
//! Nothing can be changed inside a transaction block, so there is nothing to roll back. What a block does promise is what it reads: at
//! REPEATABLE READ and SERIALIZABLE all its queries are answered at the tick of the first one; at READ COMMITTED, which is the default as in
//! PostgreSQL, each at the newest. Workers hold old ticks for a short while only: a block that is open for longer fails with 72000.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pgwire::api::ClientInfo;
use pgwire::messages::response::TransactionStatus;

use crate::error::{self, SqlError};
use crate::settings::{self, Assignment};
use crate::statement::{Modes, Statement};

/// What one connection has set.
#[derive(Default)]
pub(super) struct Session(Mutex<State>);

#[derive(Default)]
struct State {
    /// Until the connection ends.
    set: BTreeMap<String, String>,
    /// Until the transaction ends.
    local: BTreeMap<String, String>,
    savepoints: Vec<String>,
    /// The tick of the first query of a transaction that reads at one tick.
    tick: Option<u64>,
}

/// What this client's connection has set.
pub(super) fn of<C: ClientInfo>(client: &C) -> Arc<Session> {
    client.session_extensions().get_or_insert_with(Session::default)
}

impl Session {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a statement may run where the connection is. What is returned is where it is after it.
    pub(super) fn allow(&self, statement: &Statement, within: TransactionStatus) -> Result<TransactionStatus, SqlError> {
        match statement {
            Statement::End(_) => return Ok(TransactionStatus::Idle),
            Statement::RollbackTo(_) if within == TransactionStatus::Error => {
                let message = "ROLLBACK TO after an error is not supported: a transaction that failed ends as a whole";
                return Err(SqlError::new(error::ABORTED, message).with_hint("ROLLBACK"));
            }
            _ if within == TransactionStatus::Error => {
                let message = "current transaction is aborted, commands ignored until end of transaction block";
                return Err(SqlError::new(error::ABORTED, message).with_hint("ROLLBACK"));
            }
            Statement::Begin(_) => return Ok(TransactionStatus::Transaction),
            Statement::Savepoint(_) | Statement::Release(_) | Statement::RollbackTo(_) if within == TransactionStatus::Idle => {
                return Err(
                    SqlError::new(error::NO_TRANSACTION, "savepoints are for transaction blocks").with_hint("BEGIN first")
                );
            }
            other if other.changes() => {
                if self.state().value("transaction_read_only") == "on" {
                    return Err(SqlError::new(error::READ_ONLY, "cannot change anything in a read-only transaction"));
                }
                if within != TransactionStatus::Idle && other.changes_rows() {
                    let message = "tables cannot be changed inside a transaction block: it could not be rolled back";
                    return Err(SqlError::new(error::IN_TRANSACTION, message).with_hint("turn the client's autocommit on"));
                }
            }
            _ => {}
        }
        Ok(within)
    }

    /// BEGIN.
    pub(super) fn begin(&self, modes: &Modes) {
        let mut state = self.state();
        state.end();
        state.take(modes);
    }

    /// SET TRANSACTION; SET SESSION CHARACTERISTICS when it is for what comes after.
    pub(super) fn characteristics(&self, modes: &Modes, within: TransactionStatus) -> Result<Option<String>, SqlError> {
        let mut state = self.state();
        if modes.session {
            let defaults =
                [("default_transaction_isolation", modes.isolation), ("default_transaction_read_only", modes.read_only())];
            for (name, value) in defaults {
                if let Some(value) = value {
                    state.set.insert(name.to_owned(), value.to_owned());
                }
            }
            return Ok(None);
        }
        if within == TransactionStatus::Idle {
            return Ok(Some("SET TRANSACTION can only be used in transaction blocks".to_owned()));
        }
        if state.tick.is_some() && modes.isolation.is_some() {
            let message = "SET TRANSACTION ISOLATION LEVEL must be called before any query";
            return Err(SqlError::new(error::IN_TRANSACTION, message).with_hint("ROLLBACK, and say it first"));
        }
        state.take(modes);
        Ok(None)
    }

    /// COMMIT, ROLLBACK, or the end of a block that failed.
    pub(super) fn end(&self) {
        self.state().end();
    }

    /// SAVEPOINT.
    pub(super) fn savepoint(&self, name: &str) -> Result<(), SqlError> {
        let mut state = self.state();
        if state.savepoints.len() >= SAVEPOINTS_MAX {
            let message = format!("this transaction has {SAVEPOINTS_MAX} savepoints already");
            return Err(SqlError::new(error::LIMIT, message).with_hint("release some"));
        }
        state.savepoints.push(name.to_owned());
        Ok(())
    }

    /// RELEASE; ROLLBACK TO, which keeps the savepoint itself.
    pub(super) fn back_to(&self, name: &str, keep: Kept) -> Result<(), SqlError> {
        let mut state = self.state();
        let found = state.savepoints.iter().rposition(|other| other == name);
        let place = found.ok_or_else(|| SqlError::new(error::NO_SAVEPOINT, format!("savepoint \"{name}\" does not exist")))?;
        state.savepoints.truncate(place + usize::from(keep == Kept::Yes));
        Ok(())
    }

    /// The tick at which a query of this transaction is answered; none: the newest.
    pub(super) fn tick(&self, within: TransactionStatus) -> Option<u64> {
        self.state().tick.filter(|_| within == TransactionStatus::Transaction)
    }

    /// A query was answered at a tick.
    pub(super) fn read_at(&self, tick: Option<u64>, within: TransactionStatus) {
        let mut state = self.state();
        if within == TransactionStatus::Transaction && state.value("transaction_isolation") != READ_COMMITTED {
            state.tick = state.tick.or(tick);
        }
    }

    /// SET. What is returned is to be told.
    pub(super) fn set(&self, assignment: &Assignment, within: TransactionStatus) -> Result<Option<String>, SqlError> {
        let accepted = settings::accepted(&assignment.name, &assignment.value)?;
        let mut state = self.state();
        if state.set.len() + state.local.len() >= SETTINGS_MAX {
            let message = format!("this connection has set {SETTINGS_MAX} settings already");
            return Err(SqlError::new(error::LIMIT, message).with_hint("RESET ALL"));
        }
        let (name, value) = (assignment.name.clone(), accepted.value);
        if name == "transaction_isolation" || name == "transaction_read_only" || assignment.local {
            if within == TransactionStatus::Idle {
                return Ok(Some("SET LOCAL can only be used in transaction blocks".to_owned()));
            }
            state.local.insert(name, value);
        } else {
            state.local.remove(&name);
            state.set.insert(name, value);
        }
        Ok(accepted.note)
    }

    /// RESET; none: of all.
    pub(super) fn reset(&self, name: Option<&str>) -> Result<(), SqlError> {
        let mut state = self.state();
        match name {
            None => (state.set, state.local) = (BTreeMap::new(), BTreeMap::new()),
            Some(name) => {
                if !name.contains('.') {
                    settings::value(name)?;
                }
                state.set.remove(name);
                state.local.remove(name);
            }
        }
        Ok(())
    }

    /// The value of a setting, where this connection has one of its own.
    pub(super) fn own(&self, name: &str) -> Option<String> {
        let name = settings::canonical(name);
        let state = self.state();
        let own = state.local.get(name).or_else(|| state.set.get(name));
        own.cloned().or_else(|| DEFAULT_OF.iter().find(|(of, _)| *of == name).map(|_| state.value(name)))
    }

    /// How long a query may take; none: as long as the node lets it.
    pub(super) fn time_max(&self) -> Option<Duration> {
        settings::milliseconds(&self.state().value("statement_timeout")).filter(|ms| *ms > 0).map(Duration::from_millis)
    }
}

/// Whether ROLLBACK TO and not RELEASE was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    Yes,
    No,
}

impl State {
    fn value(&self, name: &str) -> String {
        let default = DEFAULT_OF.iter().find(|(of, _)| *of == name).map(|(_, default)| *default);
        let own = self.local.get(name).or_else(|| self.set.get(name)).or_else(|| self.set.get(default?));
        own.cloned().unwrap_or_else(|| settings::value(name).map(str::to_owned).unwrap_or_default())
    }

    fn take(&mut self, modes: &Modes) {
        for (name, value) in [("transaction_isolation", modes.isolation), ("transaction_read_only", modes.read_only())] {
            if let Some(value) = value {
                self.local.insert(name.to_owned(), value.to_owned());
            }
        }
    }

    fn end(&mut self) {
        self.local.clear();
        self.savepoints.clear();
        self.tick = None;
    }
}

/// What a transaction takes from the connection, where it says nothing itself.
const DEFAULT_OF: [(&str, &str); 2] =
    [("transaction_isolation", "default_transaction_isolation"), ("transaction_read_only", "default_transaction_read_only")];
const READ_COMMITTED: &str = "read committed";
/// Names only; a client that nests deeper has lost count.
const SAVEPOINTS_MAX: usize = 64;
/// A client may make up settings with a dot in their names.
const SETTINGS_MAX: usize = 100;
