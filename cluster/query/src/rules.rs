//! `CREATE RULE … AS SEQUENCE`, `DROP RULE`, `SHOW RULES`: read here, because no SQL parser knows them, and asked for as views are.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};
use weir_dataflow::{Definitions, Known, RuleDefinition, ViewChange, ViewDefinition, ViewKind, ViewOutcome};

use crate::error::{self, SqlError};
use crate::session::{Answer, Engine};
use crate::views::{Dropped, Dropping, exists, not_changed, refused, told};

/// A statement about sequence rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RuleStatement {
    /// CREATE [OR REPLACE] RULE.
    Create(String),
    /// DROP RULE.
    Drop(Dropping),
    /// SHOW RULES.
    Show,
}

/// Reads one statement; none: it is about something else.
pub(crate) fn read(sql: &str) -> Result<Option<RuleStatement>, SqlError> {
    // What cannot be split into words the parser tells better.
    let Ok(tokens) = Tokenizer::new(&PostgreSqlDialect {}, sql).tokenize() else { return Ok(None) };
    let is_blank = |token: &Token| matches!(token, Token::Whitespace(_) | Token::EOF);
    let tokens: Vec<Token> = tokens.into_iter().filter(|token| !is_blank(token)).collect();
    let is = |at: usize, word: &str| matches!(tokens.get(at), Some(Token::Word(found)) if found.quote_style.is_none() && found.value.eq_ignore_ascii_case(word));
    let replace = is(0, "create") && is(1, "or") && is(2, "replace") && is(3, "rule");
    if replace || (is(0, "create") && is(1, "rule")) {
        return Ok(Some(RuleStatement::Create(sql.trim().to_owned())));
    }
    if is(0, "show") && is(1, "rules") {
        return match tokens.len() {
            2 => Ok(Some(RuleStatement::Show)),
            _ => Err(SqlError::new(error::SYNTAX, "SHOW RULES takes nothing")),
        };
    }
    if !(is(0, "drop") && is(1, "rule")) {
        return Ok(None);
    }
    let if_exists = is(2, "if") && is(3, "exists");
    let mut at = if if_exists { 4 } else { 2 };
    let mut names = vec![];
    loop {
        let Some(Token::Word(name)) = tokens.get(at) else {
            return Err(SqlError::new(error::SYNTAX, "DROP RULE needs the name of a rule"));
        };
        names.push(if name.quote_style.is_some() { name.value.clone() } else { name.value.to_lowercase() });
        at += 1;
        if tokens.get(at) != Some(&Token::Comma) {
            break;
        }
        at += 1;
    }
    let cascade = is(at, "cascade");
    at += usize::from(cascade || is(at, "restrict"));
    match tokens.get(at) {
        None => Ok(Some(RuleStatement::Drop(Dropping { what: Dropped::Rule, names, cascade, if_exists }))),
        Some(left) => Err(SqlError::new(error::SYNTAX, format!("\"{left}\" is left at the end of DROP RULE"))),
    }
}

impl RuleStatement {
    /// The command tag.
    pub(crate) fn tag(&self) -> &'static str {
        match self {
            Self::Create(_) => "CREATE RULE",
            Self::Drop(_) => "DROP RULE",
            Self::Show => "SHOW",
        }
    }
}

impl Engine {
    /// CREATE [OR REPLACE] RULE. What is returned is to be told beside the result.
    pub(crate) async fn create_rule(&self, sql: &str) -> Result<Option<String>, SqlError> {
        let store = self.view_store()?;
        self.views_known().await?;
        let sql_bytes_max = self.limits().view_sql_bytes_max;
        if sql.len() as u64 > sql_bytes_max {
            let message = format!("the rule has {} bytes, {sql_bytes_max} are allowed", sql.len());
            return Err(SqlError::new(error::LIMIT, message).with_hint("raise `query.view_sql_bytes_max`"));
        }
        let RuleDefinition { definition, replace } = weir_dataflow::rule_definition(sql).map_err(told)?;
        let name = definition.name.clone();
        if name.is_empty() || name.len() > NAME_BYTES_MAX || crate::subscription::is_of_subscription(&name) {
            return Err(SqlError::new(
                error::BAD_NAME,
                format!("\"{name}\" is no name of a rule: 1 to {NAME_BYTES_MAX} bytes of text"),
            ));
        }
        let made = self.made().await?;
        let is_rule = made.rules().any(|rule| rule.name == name);
        if self.is_taken(&name, &made) && !(replace && is_rule) {
            return exists(&name, false);
        }
        Known::default().add_rule(&definition).map_err(told)?;
        let views_max = self.limits().views_max;
        let change =
            if replace { ViewChange::Replace { definition, views_max } } else { ViewChange::Create { definition, views_max } };
        let changed = store.change(change).await.map_err(|why| not_changed(&why))?;
        match changed.outcome {
            ViewOutcome::Created(_) => {
                self.live().require(changed.tick);
                Ok(self.reached(changed.tick).await)
            }
            ViewOutcome::Exists(name) => exists(&name, false),
            ViewOutcome::TooMany(rules_max) => {
                Err(SqlError::new(error::LIMIT, format!("there are {rules_max} sequence rules already"))
                    .with_hint("drop one, or raise `query.views_max`"))
            }
            ViewOutcome::Needed { name, by } => {
                let message = format!("cannot replace rule \"{name}\" because view \"{by}\" depends on it");
                Err(SqlError::new(error::DEPENDENTS, message).with_hint("drop the view first"))
            }
            other => Err(refused(&other)),
        }
    }

    /// SHOW RULES.
    pub(crate) async fn show_rules(&self) -> Result<Answer, SqlError> {
        self.views_known().await?;
        let made = self.made().await?;
        let (names, texts): (Vec<String>, Vec<String>) = made.rules().map(|rule| (rule.name.clone(), rule.sql.clone())).unzip();
        let columns = [names, texts].map(|column| Arc::new(StringArray::from(column)) as ArrayRef);
        let schema = rules_schema();
        let batch =
            RecordBatch::try_new(Arc::clone(&schema), columns.into()).map_err(datafusion::error::DataFusionError::from)?;
        Ok(Answer { schema, batches: vec![batch], tick: None, completeness: None, note: None })
    }
}

/// The columns of SHOW RULES.
pub(crate) fn rules_schema() -> SchemaRef {
    Arc::new(Schema::new(["rule_name", "create_statement"].map(|name| Field::new(name, DataType::Utf8, true)).to_vec()))
}

/// The sequence rules among what people made.
pub(crate) fn rules_of(definitions: &Definitions) -> impl Iterator<Item = &ViewDefinition> {
    definitions.all().iter().filter(|definition| definition.kind == ViewKind::Sequence)
}

/// As PostgreSQL's.
const NAME_BYTES_MAX: usize = 63;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_about_rules_are_told_apart() {
        let read = |sql: &str| read(sql).map_err(|error| error.to_string());
        assert_eq!(read("select 1 from rule"), Ok(None));
        assert_eq!(read("drop view rule"), Ok(None));
        assert_eq!(read(" show Rules "), Ok(Some(RuleStatement::Show)));
        assert_eq!(
            read("create or replace rule a as x"),
            Ok(Some(RuleStatement::Create("create or replace rule a as x".into())))
        );
        let names = vec!["a".to_owned(), "B".to_owned()];
        let dropping = Dropping { what: Dropped::Rule, names, cascade: true, if_exists: true };
        assert_eq!(read("DROP RULE IF EXISTS A, \"B\" CASCADE"), Ok(Some(RuleStatement::Drop(dropping))));
        assert!(read("drop rule").is_err() && read("drop rule a b").is_err() && read("show rules like 'a'").is_err());
    }
}
