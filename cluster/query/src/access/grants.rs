//! What a role may say.
//!
//! | statements | needs |
//! | --- | --- |
//! | SELECT, EXPLAIN, SHOW, SUBSCRIBE, COPY … TO STDOUT, cursors, settings, transactions | read |
//! | CREATE and DROP of views and tables, INSERT, UPDATE, DELETE, TRUNCATE | write |
//! | CREATE and DROP of rules and sinks of alerts | admin |
//!
//! A role that sees some regions only cannot subscribe, and is not told the sinks: the workers keep views over the rows of all regions.

use weir_config::Grants;

use super::Role;
use crate::error::{self, SqlError};
use crate::rules::RuleStatement;
use crate::sinks::SinkStatement;
use crate::statement::Statement;
use crate::streaming::Source;

impl Role {
    /// Whether it may say this. Asked before a statement is planned, so that a refusal tells nothing of what is there.
    pub(crate) fn permit(&self, statement: &Statement) -> Result<(), SqlError> {
        let needed = needed(statement);
        let Some(granted) = self.grants else {
            return Err(SqlError::new(error::NOT_LET_IN, "nobody has logged in on this connection"));
        };
        if granted < needed {
            let message = format!("permission denied: role \"{}\" may {} only", self.name, word(granted));
            let hint = format!("ask as a role with grants = \"{}\" in [[sql.roles]]", word(needed));
            return Err(SqlError::new(error::PRIVILEGE, message).with_hint(hint));
        }
        if self.is_restricted() && tells_of_all_regions(statement) {
            let message = format!("permission denied: role \"{}\" sees some regions only, and this tells of all", self.name);
            return Err(SqlError::new(error::PRIVILEGE, message).with_hint("ask with SELECT"));
        }
        Ok(())
    }
}

fn needed(statement: &Statement) -> Grants {
    match statement {
        Statement::Rule(RuleStatement::Show) | Statement::Sink(SinkStatement::Show) => Grants::Read,
        Statement::Rule(_) | Statement::Sink(_) => Grants::Admin,
        Statement::CreateView(_)
        | Statement::DropViews(_)
        | Statement::CreateTable(_)
        | Statement::Write(_)
        | Statement::Truncate(_) => Grants::Write,
        Statement::Query(_)
        | Statement::Show(_)
        | Statement::Subscribe(_)
        | Statement::Copy(_)
        | Statement::Declare(_)
        | Statement::Fetch(_)
        | Statement::Close(_)
        | Statement::Accepted(_)
        | Statement::Begin(_)
        | Statement::Characteristics(_)
        | Statement::Savepoint(_)
        | Statement::Release(_)
        | Statement::RollbackTo(_)
        | Statement::Set(_)
        | Statement::Reset(_)
        | Statement::Discard
        | Statement::End(_) => Grants::Read,
    }
}

fn tells_of_all_regions(statement: &Statement) -> bool {
    let source = match statement {
        Statement::Subscribe(_) | Statement::Sink(_) => return true,
        Statement::Copy(copy) => &copy.source,
        Statement::Declare(declare) => &declare.source,
        _ => return false,
    };
    matches!(source, Source::Subscribe(_))
}

fn word(grants: Grants) -> &'static str {
    match grants {
        Grants::Read => "read",
        Grants::Write => "write",
        Grants::Admin => "admin",
    }
}

#[cfg(test)]
mod tests {
    use weir_config::{RoleConfig, RoleLimits};

    use super::*;
    use crate::statement::parse;

    fn role(grants: Grants, regions: &[&str]) -> Role {
        Role::new(&RoleConfig {
            name: "a".into(),
            secret_file: "a".into(),
            grants,
            regions: regions.iter().map(|&region| region.into()).collect(),
            relations: vec![],
            limits: RoleLimits::default(),
        })
    }

    #[test]
    fn each_statement_needs_its_grant() {
        for (needed, sql) in [
            (Grants::Read, "select 1"),
            (Grants::Read, "explain select 1"),
            (Grants::Read, "show views"),
            (Grants::Read, "show rules"),
            (Grants::Read, "show sinks"),
            (Grants::Read, "subscribe to hosts"),
            (Grants::Read, "copy (select 1) to stdout"),
            (Grants::Read, "declare c cursor for select 1"),
            (Grants::Read, "begin"),
            (Grants::Read, "set application_name = 'a'"),
            (Grants::Write, "create view v as select 1"),
            (Grants::Write, "create materialized view v as select 1"),
            (Grants::Write, "drop view v"),
            (Grants::Write, "create table t (a int)"),
            (Grants::Write, "drop table t"),
            (Grants::Write, "insert into t values (1)"),
            (Grants::Write, "update t set a = 1"),
            (Grants::Write, "delete from t"),
            (Grants::Write, "truncate t"),
            (Grants::Admin, "drop rule r"),
            (Grants::Admin, "drop sink s"),
        ] {
            let statement = parse(sql).unwrap_or_else(|why| panic!("{sql}: {why}")).pop().unwrap();
            for granted in [Grants::Read, Grants::Write, Grants::Admin] {
                let told = role(granted, &[]).permit(&statement).err().map(|error| error.code);
                assert_eq!(told, (granted < needed).then_some("42501"), "{granted:?}: {sql}");
            }
            assert_eq!(Role::nobody().permit(&statement).unwrap_err().code, "28000", "{sql}");
        }
    }

    #[test]
    fn who_sees_some_regions_is_not_told_of_all() {
        let restricted = role(Grants::Read, &["eu"]);
        for (sql, told) in [
            ("select 1", true),
            ("copy (select 1) to stdout", true),
            ("declare c cursor for select 1", true),
            ("subscribe to hosts", false),
            ("copy (subscribe to hosts) to stdout", false),
            ("declare c cursor for subscribe to hosts", false),
            ("show sinks", false),
        ] {
            let statement = parse(sql).unwrap_or_else(|why| panic!("{sql}: {why}")).pop().unwrap();
            assert_eq!(restricted.permit(&statement).is_ok(), told, "{sql}");
        }
    }
}
