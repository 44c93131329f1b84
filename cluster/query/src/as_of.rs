//! `SELECT … AS OF tick`: the clause at the end of a statement, which the parser does not know.

use datafusion::sql::sqlparser::tokenizer::Token;

use crate::error::{self, SqlError};
use crate::source_text;

/// Splits a text into statements, each with its tick. A text without the clause comes back as it is, in one piece.
pub(crate) fn split(sql: &str) -> Result<Vec<(String, Option<u64>)>, SqlError> {
    if !sql.to_ascii_lowercase().contains("of") {
        return Ok(vec![(sql.to_owned(), None)]);
    }
    // What cannot be split into words the parser tells better.
    let Ok((tokens, texts)) = source_text::tokens(sql) else { return Ok(vec![(sql.to_owned(), None)]) };
    let mut statements = Vec::new();
    let mut begin = 0;
    for tokens in tokens.split(|token| *token == Token::SemiColon) {
        let (kept, as_of) = take(tokens)?;
        let text = texts[begin..begin + kept].concat();
        begin += tokens.len() + 1;
        if !text.trim().is_empty() {
            statements.push((text, as_of));
        }
    }
    if statements.iter().all(|(_, as_of)| as_of.is_none()) { Ok(vec![(sql.to_owned(), None)]) } else { Ok(statements) }
}

/// How many tokens stand before the clause at the end of a statement, and its tick.
fn take(tokens: &[Token]) -> Result<(usize, Option<u64>), SqlError> {
    let words: Vec<usize> = (0..tokens.len()).filter(|at| !matches!(tokens[*at], Token::Whitespace(_))).collect();
    let [.., a, of, tick] = words.as_slice() else { return Ok((tokens.len(), None)) };
    let is = |at: usize, word: &str| matches!(&tokens[at], Token::Word(found) if found.quote_style.is_none() && found.value.eq_ignore_ascii_case(word));
    if !is(*a, "as") || !is(*of, "of") {
        return Ok((tokens.len(), None));
    }
    let text = tokens[*tick].to_string();
    let tick = text.parse().map_err(|_| {
        SqlError::new(error::SYNTAX, format!("AS OF {text}: not a tick"))
            .with_hint("a tick is milliseconds since 1970, as SHOW weir.tick says")
    })?;
    Ok((*a, Some(tick)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(sql: &str, expected: &[(&str, Option<u64>)]) {
        let expected: Vec<_> = expected.iter().map(|(sql, as_of)| ((*sql).to_owned(), *as_of)).collect();
        assert_eq!(split(sql).unwrap(), expected, "{sql}");
    }

    #[test]
    fn the_clause_is_taken_off_the_end_only() {
        check("select 1", &[("select 1", None)]);
        check("select 1 as of 17", &[("select 1 ", Some(17))]);
        check("select * from hosts AS  OF\n1790 ;", &[("select * from hosts ", Some(1790))]);
        check("select 1 as of 1; select 2", &[("select 1 ", Some(1)), (" select 2", None)]);
        check("select '''; drop table t; --' as of 1", &[("select '''; drop table t; --' ", Some(1))]);
        check("select E'\\'; x' as of 1; select \"a\"\"b\"", &[("select E'\\'; x' ", Some(1)), (" select \"a\"\"b\"", None)]);
        check("select 'as of 3' x", &[("select 'as of 3' x", None)]);
        check("select 1 as \"of\"", &[("select 1 as \"of\"", None)]);
        check("select ofs from t -- as of 4", &[("select ofs from t -- as of 4", None)]);
        let wrong = split("select 1 as of yesterday").unwrap_err();
        assert!(wrong.message.contains("yesterday"), "{wrong}");
    }
}
