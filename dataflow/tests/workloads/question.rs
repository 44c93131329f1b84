//! The questions of a workload as text: `-- name what it is`, the SQL, and perhaps `reference:` or `refused:`.

/// One question.
pub struct Question {
    pub name: String,
    pub sql: String,
    /// The same in words that DataFusion has.
    pub reference: Option<String>,
    /// What a refusal names, in lower case.
    pub refused: Option<String>,
}

/// All questions of a file. The first paragraph says what the file is.
pub fn questions(text: &str) -> Vec<Question> {
    let (_, text) = text.split_once("\n\n").expect("a first paragraph");
    text.split("\n\n").map(|paragraph| question(paragraph.trim())).collect()
}

fn question(text: &str) -> Question {
    let (head, body) = text.split_once('\n').expect("a head line");
    let name = head.trim_start_matches("-- ").split(' ').next().unwrap().to_owned();
    let (body, refused) = match body.split_once("\nrefused: ") {
        Some((body, name)) => (body, Some(name.trim().to_owned())),
        None => (body, None),
    };
    let (sql, reference) = match body.split_once("\nreference:\n") {
        Some((sql, reference)) => (sql, Some(reference.trim().to_owned())),
        None => (body, None),
    };
    Question { name, sql: sql.trim().to_owned(), reference, refused }
}
