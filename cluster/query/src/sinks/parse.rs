//! Statements about sinks, read here because no SQL parser knows them.

use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer, Word};
use weir_config::{SinkDefinition, SinkValue};

use crate::error::{self, SqlError};

/// A statement about sinks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SinkStatement {
    /// CREATE SINK.
    Create {
        /// What it is to be; not checked yet.
        definition: SinkDefinition,
        /// One that is there is no error.
        if_not_exists: bool,
    },
    /// DROP SINK.
    Drop {
        /// Which.
        names: Vec<String>,
        /// One that is not there is no error.
        if_exists: bool,
    },
    /// SHOW SINKS.
    Show,
}

impl SinkStatement {
    /// The command tag.
    pub(crate) fn tag(&self) -> &'static str {
        match self {
            Self::Create { .. } => "CREATE SINK",
            Self::Drop { .. } => "DROP SINK",
            Self::Show => "SHOW",
        }
    }
}

/// Reads one statement; none: it is about something else.
pub(crate) fn read(sql: &str) -> Result<Option<SinkStatement>, SqlError> {
    // What cannot be split into words the parser tells better.
    let Ok(tokens) = Tokenizer::new(&PostgreSqlDialect {}, sql).tokenize() else { return Ok(None) };
    let is_blank = |token: &Token| matches!(token, Token::Whitespace(_) | Token::EOF);
    let mut words = Words { tokens: tokens.into_iter().filter(|token| !is_blank(token)).collect(), at: 0 };
    if words.take_all(&["show", "sinks"]) {
        words.end("SHOW SINKS")?;
        return Ok(Some(SinkStatement::Show));
    }
    if words.take_all(&["create", "or", "replace", "sink"]) {
        return Err(SqlError::unsupported("CREATE OR REPLACE SINK").with_hint("use DROP SINK, then CREATE SINK"));
    }
    if words.take_all(&["create", "sink"]) {
        return words.create().map(Some);
    }
    if !words.take_all(&["drop", "sink"]) {
        return Ok(None);
    }
    let if_exists = words.take_all(&["if", "exists"]);
    let mut names = vec![words.name("DROP SINK")?];
    while words.take_token(&Token::Comma) {
        names.push(words.name("DROP SINK")?);
    }
    // Nothing depends on a sink: both words mean the same.
    let _ = words.take_all(&["cascade"]) || words.take_all(&["restrict"]);
    words.end("DROP SINK")?;
    Ok(Some(SinkStatement::Drop { names, if_exists }))
}

struct Words {
    tokens: Vec<Token>,
    at: usize,
}

impl Words {
    fn create(&mut self) -> Result<SinkStatement, SqlError> {
        let if_not_exists = self.take_all(&["if", "not", "exists"]);
        let name = self.name("CREATE SINK")?;
        if !self.take_all(&["format"]) {
            return Err(self.unexpected("FORMAT and what the sink speaks, such as FORMAT webhook"));
        }
        let format = match self.next() {
            Some(Token::Word(Word { value, .. })) => value.to_lowercase(),
            Some(Token::SingleQuotedString(text)) => text,
            _ => return Err(self.unexpected("what the sink speaks, such as FORMAT webhook")),
        };
        let mut keys = Vec::new();
        if self.take_all(&["to"]) {
            let Some(to) = self.text() else { return Err(self.unexpected("where the sink is, such as TO 'https://…'")) };
            keys.push((SinkDefinition::place_key(&format, &to).to_owned(), SinkValue::Text(to)));
        }
        if self.take_all(&["with"]) {
            if !self.take_token(&Token::LParen) {
                return Err(self.unexpected("WITH (key = 'text', …)"));
            }
            loop {
                keys.push(self.pair()?);
                if keys.len() > KEYS_MAX {
                    return Err(SqlError::new(error::LIMIT, format!("a sink has at most {KEYS_MAX} keys")));
                }
                match self.take_token(&Token::Comma) {
                    true => {}
                    false if self.take_token(&Token::RParen) => break,
                    false => return Err(self.unexpected("a comma or a closing parenthesis behind a key")),
                }
            }
        }
        self.end("CREATE SINK")?;
        Ok(SinkStatement::Create { definition: SinkDefinition { name, format, keys }, if_not_exists })
    }

    fn pair(&mut self) -> Result<(String, SinkValue), SqlError> {
        let key = match self.next() {
            Some(Token::Word(Word { value, .. })) => value.to_lowercase(),
            _ => return Err(self.unexpected("a key, such as secret_file = '/etc/weir/key'")),
        };
        if !self.take_token(&Token::Eq) {
            return Err(self.unexpected(&format!("`=` behind {key}")));
        }
        let value = if self.take_all(&["true"]) {
            SinkValue::Flag(true)
        } else if self.take_all(&["false"]) {
            SinkValue::Flag(false)
        } else if self.take_token(&Token::LParen) {
            self.list()?
        } else if let Some(text) = self.text() {
            // What is a list takes one text, too.
            if LISTS.contains(&key.as_str()) { SinkValue::List(vec![text]) } else { SinkValue::Text(text) }
        } else {
            return Err(self.unexpected(&format!("{key} = 'text', true, false, or ('text', …)")));
        };
        Ok((key, value))
    }

    fn list(&mut self) -> Result<SinkValue, SqlError> {
        let mut texts = Vec::new();
        loop {
            let Some(text) = self.text() else { return Err(self.unexpected("a text in single quotes")) };
            texts.push(text);
            match self.take_token(&Token::Comma) {
                true => {}
                false if self.take_token(&Token::RParen) => return Ok(SinkValue::List(texts)),
                false => return Err(self.unexpected("a comma or a closing parenthesis behind a text")),
            }
        }
    }

    fn text(&mut self) -> Option<String> {
        let (Token::SingleQuotedString(text) | Token::EscapedStringLiteral(text)) = self.tokens.get(self.at)? else {
            return None;
        };
        let text = text.clone();
        self.at += 1;
        Some(text)
    }

    fn name(&mut self, statement: &str) -> Result<String, SqlError> {
        match self.next() {
            Some(Token::Word(word)) => Ok(if word.quote_style.is_some() { word.value } else { word.value.to_lowercase() }),
            _ => Err(self.unexpected(&format!("{statement} and the name of a sink"))),
        }
    }

    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    /// Takes these words if all of them come next.
    fn take_all(&mut self, wanted: &[&str]) -> bool {
        let is = |(place, word): (usize, &&str)| matches!(self.tokens.get(self.at + place), Some(Token::Word(found)) if found.quote_style.is_none() && found.value.eq_ignore_ascii_case(word));
        let found = wanted.iter().enumerate().all(is);
        self.at += if found { wanted.len() } else { 0 };
        found
    }

    fn take_token(&mut self, wanted: &Token) -> bool {
        let found = self.tokens.get(self.at) == Some(wanted);
        self.at += usize::from(found);
        found
    }

    fn end(&self, statement: &str) -> Result<(), SqlError> {
        match self.tokens.get(self.at) {
            None => Ok(()),
            Some(left) => Err(SqlError::new(error::SYNTAX, format!("\"{left}\" is left at the end of {statement}"))),
        }
    }

    fn unexpected(&self, wanted: &str) -> SqlError {
        SqlError::new(error::SYNTAX, format!("a statement about sinks needs {wanted}"))
            .with_hint("CREATE SINK name FORMAT format TO 'place' WITH (key = 'text', …); the keys are those of [[alerts.sinks]]")
    }
}

/// Keys that hold a list.
const LISTS: &[&str] = &["rules", "regions", "tenants", "to", "brokers"];
/// More than any format has.
const KEYS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_about_sinks_are_told_apart() {
        let read = |sql: &str| read(sql).map_err(|error| error.to_string());
        assert_eq!(read("select * from sinks"), Ok(None));
        assert_eq!(read("drop view sink"), Ok(None));
        assert_eq!(read(" show Sinks "), Ok(Some(SinkStatement::Show)));
        let names = vec!["a".to_owned(), "B".to_owned()];
        assert_eq!(read("DROP SINK IF EXISTS A, \"B\" CASCADE"), Ok(Some(SinkStatement::Drop { names, if_exists: true })));
        let text = |text: &str| SinkValue::Text(text.to_owned());
        let sql = "create sink if not exists Pager format PagerDuty to 'https://p/' -- why\n with (secret_file = '/k', ack = true, rules = 'a', \
                   regions = ('b', 'it''s'))";
        let Ok(Some(SinkStatement::Create { definition, if_not_exists: true })) = read(sql) else { panic!("{:?}", read(sql)) };
        let keys = [
            ("url", text("https://p/")),
            ("secret_file", text("/k")),
            ("ack", SinkValue::Flag(true)),
            ("rules", SinkValue::List(vec!["a".to_owned()])),
            ("regions", SinkValue::List(vec!["b".to_owned(), "it's".to_owned()])),
        ];
        let keys = keys.map(|(key, value)| (key.to_owned(), value)).to_vec();
        assert_eq!(definition, SinkDefinition { name: "pager".to_owned(), format: "pagerduty".to_owned(), keys });
        for (format, to, key) in
            [("syslog", "h:514", "address"), ("ocsf", "/f", "path"), ("stix", "/f", "path"), ("stix", "http://h", "url")]
        {
            let sql = format!("create sink s format {format} to '{to}'");
            let Ok(Some(SinkStatement::Create { definition, .. })) = read(&sql) else { panic!("{sql}") };
            assert_eq!(definition.keys, [(key.to_owned(), text(to))]);
        }
        // What a statement says of itself makes the same sink again.
        let Ok(Some(SinkStatement::Create { definition: again, .. })) = read(&definition.statement()) else { panic!() };
        assert_eq!(again, definition);
    }

    #[test]
    fn what_is_no_statement_is_told() {
        for sql in [
            "create sink",
            "create sink 'a' format webhook",
            "create sink a",
            "create sink a format",
            "create sink a format webhook to url",
            "create sink a format webhook with secret_file = 'x'",
            "create sink a format webhook with (secret_file 'x')",
            "create sink a format webhook with (secret_file = x)",
            "create sink a format webhook with (rules = ('a' 'b'))",
            "create sink a format webhook with (rules = ())",
            "create sink a format webhook with (a = 'b'",
            "create sink a format webhook as x",
            "create or replace sink a format webhook",
            "drop sink",
            "drop sink a b",
            "show sinks like 'a'",
        ] {
            let refused = read(sql).expect_err(sql);
            assert!(["42601", "0A000"].contains(&refused.code), "{sql}: {refused}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(pieces in proptest::collection::vec(proptest::sample::select(vec![
            "create", "sink", "drop", "if", "not", "exists", "format", "with", "to", "(", ")", ",", "=", "'a'", "a", "true", "\"B\"", ";", "--x\n", "E'\\n'",
        ]), 0..16)) {
            let _ = read(&pieces.join(" "));
            let _ = read(&format!("create sink {}", pieces.join(" ")));
        }
    }
}
