//! Output templates: texts with `%field` placeholders.
//!
//! `%proc.name`, `%proc.aname[2]`, `%evt.arg.flags`, `%tolower(proc.name)`; `%%` is a percent sign. A leading `*` of the whole
//! template, which Falco reads as "print even if a field is missing", is dropped: that is what always happens here. A field
//! that the event does not have is printed as `<NA>`.

use crate::check::Of;
use crate::error::{Fault, Why, shown};
use crate::fields::Field;
use crate::parse::term_prefix;
use crate::resolve::of_term;
use crate::value::FieldSource;

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Template(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Of(Of),
}

impl Template {
    pub(crate) fn parse(text: &str) -> Result<Self, Fault> {
        let mut rest = text.trim();
        rest = rest.strip_prefix('*').unwrap_or(rest);
        let mut pieces = Vec::new();
        while let Some(at) = rest.find('%') {
            push(&mut pieces, &rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('%') {
                push(&mut pieces, "%");
                rest = after;
                continue;
            }
            let Some((term, length)) = term_prefix(rest).filter(|_| rest.starts_with(|c: char| c.is_ascii_alphabetic())) else {
                let what = format!("the output's placeholder {} is no field", shown(&format!("%{}", first_word(rest))));
                return Err(Fault::new(Why::UnknownField, what, "write a field behind %, or %% for a percent sign"));
            };
            pieces.push(Piece::Of(of_term(&term)?));
            rest = &rest[length..];
        }
        push(&mut pieces, rest);
        Ok(Self(pieces))
    }

    /// The text for an event.
    pub fn render(&self, source: &(impl FieldSource + ?Sized)) -> String {
        let mut text = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(part) => text.push_str(part),
                Piece::Of(of) => match of.value(source) {
                    Some(value) => text.push_str(&value.to_text()),
                    None => text.push_str("<NA>"),
                },
            }
        }
        text
    }

    /// Every field it prints, in order, each once.
    pub fn fields(&self) -> Vec<Field> {
        let mut fields: Vec<Field> = Vec::new();
        for piece in &self.0 {
            if let Piece::Of(of) = piece {
                of.fields(&mut |field| {
                    if !fields.contains(field) {
                        fields.push(field.clone());
                    }
                });
            }
        }
        fields
    }
}

fn push(pieces: &mut Vec<Piece>, text: &str) {
    match pieces.last_mut() {
        _ if text.is_empty() => {}
        Some(Piece::Text(last)) => last.push_str(text),
        _ => pieces.push(Piece::Text(text.to_owned())),
    }
}

fn first_word(text: &str) -> &str {
    text.split(|c: char| c.is_whitespace()).next().unwrap_or("")
}
