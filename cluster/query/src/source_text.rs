//! The tokens of a statement, each with the text that it was written as.
//!
//! A token does not print itself as it was written: `'it''s'` becomes `'it's'`. So whatever is cut out of a statement, to be read again, is cut out of
//! its text; else a quoted value could end its quotes and go on as a statement.

use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer, TokenizerError};

/// The tokens, white space among them, and the text of each. The texts one after the other are the whole.
pub(crate) fn tokens(sql: &str) -> Result<(Vec<Token>, Vec<&str>), TokenizerError> {
    let found = Tokenizer::new(&PostgreSqlDialect {}, sql).tokenize_with_location()?;
    let mut starts = Vec::with_capacity(found.len() + 1);
    // Places are told as line and column, in characters.
    let mut at = (1_u64, 1_u64);
    let mut characters = sql.char_indices().peekable();
    for token in &found {
        let wanted = (token.span.start.line, token.span.start.column);
        while at < wanted
            && let Some((_, character)) = characters.next()
        {
            at = if character == '\n' { (at.0 + 1, 1) } else { (at.0, at.1 + 1) };
        }
        starts.push(characters.peek().map_or(sql.len(), |(offset, _)| *offset));
    }
    starts.push(sql.len());
    let texts = starts.windows(2).map(|ends| &sql[ends[0]..ends[1]]).collect();
    Ok((found.into_iter().map(|token| token.token).collect(), texts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_as_written() {
        let (tokens, texts) = tokens("select 'it''s' -- a\n, E'\\'é', \"q\"\"q\", $$x$$ ;").unwrap();
        assert_eq!(tokens.len(), texts.len());
        for written in ["'it''s'", "E'\\'é'", "\"q\"\"q\"", "$$x$$", ";"] {
            assert!(texts.contains(&written), "{written}: {texts:?}");
        }
    }

    #[test]
    fn texts_one_after_the_other_are_the_whole() {
        let pieces = [
            "'", "''", "a", " ", "\n", "\r\n", "é", "$$", "$a$", "\"", "--", "/*", "*/", "E'", "\\", "1.5", ";", "<=", "U&'",
            "\t", "(", "𝕏",
        ];
        let mut seed = 41_u64;
        let mut read = 0;
        for _ in 0..20_000 {
            let mut sql = String::new();
            for _ in 0..9 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                sql.push_str(pieces[(seed >> 33) as usize % pieces.len()]);
            }
            let Ok((found, texts)) = tokens(&sql) else { continue };
            read += 1;
            assert_eq!((texts.concat(), found.len()), (sql.clone(), texts.len()));
            // The text of a quoted value alone is that value again.
            for (token, text) in found.iter().zip(&texts).filter(|(token, _)| matches!(token, Token::SingleQuotedString(_))) {
                assert_eq!(tokens(text).unwrap().0, std::slice::from_ref(token), "{text}");
            }
        }
        assert!(read > 1_000, "{read}");
    }
}
