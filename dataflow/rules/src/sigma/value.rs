//! Sigma's values: what the modifiers behind a field's name make of what is written behind it.
//!
//! `CommandLine|windash|contains|all: [a, b]`: modifiers apply in their order. What comes out is, for each value, a list of
//! comparisons of which one has to hold; `all` asks for every value, else one is enough.

use super::pipeline::Pipeline;
use crate::ast::Op;
use crate::error::{Fault, Why, shown};
use crate::limits::EXPANSIONS_MAX;
use crate::pattern::{At, DASHES, DatePart, Like, Pattern, Piece};
use crate::yaml::{Node, Yaml};

/// What is behind a field's name, read.
#[derive(Debug)]
pub(super) struct Item {
    /// Per value what it wants; one of the inner ones has to hold.
    pub(super) wants: Vec<Vec<Want>>,
    /// Every value, not one of them.
    pub(super) all: bool,
    /// None of them may hold, and the field must be there.
    pub(super) neq: bool,
}

/// One comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Want {
    /// The event does not have the field.
    Absent,
    /// The event has the field, or has not.
    Exists(bool),
    Like {
        like: Like,
        cased: bool,
    },
    Pattern(Pattern),
    /// Another field, named as in the rule.
    Field {
        name: String,
        at: At,
        cased: bool,
    },
}

/// A modifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Modifier {
    All,
    At(At),
    Exists,
    Cased,
    Neq,
    WinDash,
    Regex,
    Insensitive,
    Lines,
    DotAll,
    Base64,
    Base64Offset,
    Utf16 { big: bool, mark: bool },
    Order(Op),
    Date(DatePart),
    Cidr,
    Expand,
    FieldRef,
}

const MODIFIERS: &[(&str, Modifier)] = &[
    ("all", Modifier::All),
    ("startswith", Modifier::At(At::Start)),
    ("endswith", Modifier::At(At::End)),
    ("contains", Modifier::At(At::Anywhere)),
    ("exists", Modifier::Exists),
    ("cased", Modifier::Cased),
    ("neq", Modifier::Neq),
    ("windash", Modifier::WinDash),
    ("re", Modifier::Regex),
    ("i", Modifier::Insensitive),
    ("ignorecase", Modifier::Insensitive),
    ("m", Modifier::Lines),
    ("multiline", Modifier::Lines),
    ("s", Modifier::DotAll),
    ("dotall", Modifier::DotAll),
    ("base64", Modifier::Base64),
    ("base64offset", Modifier::Base64Offset),
    ("utf16", Modifier::Utf16 { big: false, mark: true }),
    ("utf16le", Modifier::Utf16 { big: false, mark: false }),
    ("wide", Modifier::Utf16 { big: false, mark: false }),
    ("utf16be", Modifier::Utf16 { big: true, mark: false }),
    ("lt", Modifier::Order(Op::Lt)),
    ("lte", Modifier::Order(Op::Le)),
    ("gt", Modifier::Order(Op::Gt)),
    ("gte", Modifier::Order(Op::Ge)),
    ("minute", Modifier::Date(DatePart::Minute)),
    ("hour", Modifier::Date(DatePart::Hour)),
    ("day", Modifier::Date(DatePart::Day)),
    ("week", Modifier::Date(DatePart::Week)),
    ("month", Modifier::Date(DatePart::Month)),
    ("year", Modifier::Date(DatePart::Year)),
    ("cidr", Modifier::Cidr),
    ("expand", Modifier::Expand),
    ("fieldref", Modifier::FieldRef),
];

/// A key of a selection: the field's name (empty for keywords) and its modifiers.
#[derive(Debug)]
pub(super) struct FieldKey<'a> {
    pub(super) name: &'a str,
    modifiers: Vec<Modifier>,
}

impl<'a> FieldKey<'a> {
    pub(super) fn parse(key: &'a str) -> Result<Self, Fault> {
        let mut parts = key.split('|');
        let name = parts.next().unwrap_or("").trim();
        let modifiers = parts.map(|word| {
            let known = MODIFIERS.iter().find(|(known, _)| *known == word);
            known.map(|(_, modifier)| *modifier).ok_or_else(|| {
                let names: Vec<&str> = MODIFIERS.iter().map(|(name, _)| *name).collect();
                let what = format!("the modifier {} of {} is unknown", shown(word), shown(key));
                Fault::new(Why::Syntax, what, format!("Sigma has {}", names.join(", ")))
            })
        });
        let key = Self { name, modifiers: modifiers.collect::<Result<_, _>>()? };
        key.check()?;
        Ok(key)
    }

    fn has(&self, wanted: Modifier) -> bool {
        self.modifiers.contains(&wanted)
    }

    /// Modifiers that make a type of their own exclude each other; flags belong to `re`.
    fn check(&self) -> Result<(), Fault> {
        let types: Vec<Modifier> = self
            .modifiers
            .iter()
            .copied()
            .filter(|modifier| {
                use Modifier::*;
                matches!(
                    modifier,
                    Exists | Regex | Order(_) | Date(_) | Cidr | FieldRef | WinDash | Base64 | Base64Offset | Utf16 { .. }
                )
            })
            .collect();
        let fits = |one: Modifier, other: Modifier| {
            use Modifier::*;
            let text = |modifier| matches!(modifier, WinDash | Base64 | Base64Offset | Utf16 { .. });
            (text(one) && text(other)) || matches!((one, other), (Date(_), Order(_)))
        };
        if let Some(pair) = types.windows(2).find(|pair| !fits(pair[0], pair[1])) {
            let what = format!("the modifiers {} and {} do not go together", word(pair[0]), word(pair[1]));
            return Err(Fault::new(Why::Syntax, what, "use two selections"));
        }
        let is_flag = |modifier| matches!(modifier, Modifier::Insensitive | Modifier::Lines | Modifier::DotAll);
        let at_regex = self.modifiers.iter().position(|modifier| *modifier == Modifier::Regex);
        if let Some(flag) = self.modifiers.iter().position(|modifier| is_flag(*modifier))
            && at_regex.is_none_or(|at| at > flag)
        {
            let what = format!("the modifier {} stands without re before it", word(self.modifiers[flag]));
            return Err(Fault::new(Why::Syntax, what, "write it behind re: field|re|i"));
        }
        Ok(())
    }

    /// Reads what stands behind the key.
    pub(super) fn read(&self, node: &Node, pipeline: &Pipeline) -> Result<Item, Fault> {
        let one = std::slice::from_ref(node);
        let nodes = if let Yaml::Seq(items) = &node.value { items.as_slice() } else { one };
        if nodes.is_empty() {
            return Err(Fault::new(Why::Shape, "a field has an empty list of values", "write a value, '' or null"));
        }
        let mut wants = Vec::new();
        for node in nodes {
            match &node.value {
                Yaml::Null => wants.push(vec![Want::Absent]),
                Yaml::Scalar(text) if self.has(Modifier::Expand) => {
                    let expanded = expand(text, pipeline)?;
                    wants.push(expanded.iter().map(|text| self.value(text)).collect::<Result<Vec<_>, _>>()?.concat());
                }
                Yaml::Scalar(text) => wants.push(self.value(text)?),
                Yaml::Seq(_) | Yaml::Map(_) => {
                    return Err(Fault::new(Why::Shape, "a value is a list or a mapping", "write texts, numbers or null"));
                }
            }
        }
        Ok(Item { wants, all: self.has(Modifier::All), neq: self.has(Modifier::Neq) })
    }

    /// What one value wants.
    fn value(&self, text: &str) -> Result<Vec<Want>, Fault> {
        let cased = self.has(Modifier::Cased);
        let at = self.modifiers.iter().rev().find_map(|modifier| if let Modifier::At(at) = modifier { Some(*at) } else { None });
        let order = self.modifiers.iter().find_map(|modifier| if let Modifier::Order(op) = modifier { Some(*op) } else { None });
        for modifier in &self.modifiers {
            return Ok(vec![match modifier {
                Modifier::Exists => Want::Exists(truth(text)?),
                Modifier::Regex => Want::Pattern(Pattern::Regex {
                    text: match at {
                        Some(At::Start) => format!("^(?:{text})"),
                        Some(At::End) => format!("(?:{text})$"),
                        _ => text.to_owned(),
                    },
                    insensitive: self.has(Modifier::Insensitive),
                    lines: self.has(Modifier::Lines),
                    dot_all: self.has(Modifier::DotAll),
                }),
                Modifier::Cidr => Want::Pattern(Pattern::Network(text.to_owned())),
                Modifier::Order(op) => number(*op, text).map(|(op, bound)| Want::Pattern(Pattern::Number { op, bound }))?,
                Modifier::Date(part) => {
                    let (op, bound) = number(order.unwrap_or(Op::Eq), text)?;
                    Want::Pattern(Pattern::Date { part: *part, op, bound })
                }
                Modifier::FieldRef => Want::Field { name: text.to_owned(), at: at.unwrap_or(At::Whole), cased },
                _ => continue,
            }]);
        }
        Ok(self.texts(text)?.into_iter().map(|like| Want::Like { like, cased }).collect())
    }

    /// The texts that a value stands for, with wildcards.
    fn texts(&self, text: &str) -> Result<Vec<Like>, Fault> {
        // Keywords are looked for anywhere.
        let keyword = self.name.is_empty() && !self.modifiers.iter().any(|modifier| matches!(modifier, Modifier::At(_)));
        let mut state = State::Like(like(text));
        for modifier in &self.modifiers {
            state = state.apply(*modifier)?;
        }
        let likes = state.likes()?;
        Ok(if keyword { likes.iter().map(|like| like.at(At::Anywhere)).collect() } else { likes })
    }
}

/// A text while modifiers change it.
enum State {
    Like(Like),
    Bytes(Vec<Vec<u8>>),
    Texts(Vec<Like>),
}

impl State {
    fn apply(self, modifier: Modifier) -> Result<Self, Fault> {
        Ok(match modifier {
            Modifier::At(at) => Self::Texts(self.likes()?.iter().map(|like| like.at(at)).collect()),
            Modifier::WinDash => match self {
                Self::Like(like) => Self::Like(dashed(&like)),
                other => Self::Texts(other.likes()?.iter().map(dashed).collect()),
            },
            Modifier::Base64 => Self::ascii(self.bytes()?.iter().map(|bytes| to_base64(bytes))),
            Modifier::Base64Offset => Self::ascii(self.bytes()?.iter().flat_map(|bytes| offsets(bytes))),
            Modifier::Utf16 { big, mark } => {
                let wide = |bytes: Vec<u8>| {
                    let text = String::from_utf8_lossy(&bytes).into_owned();
                    let units = mark.then_some(0xFEFF).into_iter().chain(text.encode_utf16());
                    units.flat_map(|unit: u16| if big { unit.to_be_bytes() } else { unit.to_le_bytes() }).collect()
                };
                Self::Bytes(self.bytes()?.into_iter().map(wide).collect())
            }
            _ => self,
        })
    }

    fn ascii(texts: impl Iterator<Item = String>) -> Self {
        Self::Texts(texts.map(plain).collect())
    }

    /// The bytes of texts without wildcards.
    fn bytes(self) -> Result<Vec<Vec<u8>>, Fault> {
        let likes = match self {
            Self::Bytes(bytes) => return Ok(bytes),
            Self::Like(like) => vec![like],
            Self::Texts(likes) => likes,
        };
        let mut all = Vec::new();
        for like in likes {
            all.extend(undashed(&like)?.into_iter().map(String::into_bytes));
        }
        Ok(all)
    }

    fn likes(self) -> Result<Vec<Like>, Fault> {
        match self {
            Self::Like(like) => Ok(vec![like]),
            Self::Texts(likes) => Ok(likes),
            Self::Bytes(all) => all
                .into_iter()
                .map(|bytes| {
                    String::from_utf8(bytes).map(plain).map_err(|_| {
                        let what = "the encoded value is no UTF-8 text, so no event can hold it";
                        Fault::new(Why::Value, what, "put base64 or base64offset behind the encoding")
                    })
                })
                .collect(),
        }
    }
}

fn word(modifier: Modifier) -> &'static str {
    MODIFIERS.iter().find(|(_, known)| *known == modifier).map_or("", |(word, _)| word)
}

fn plain(text: String) -> Like {
    let mut like = Like::default();
    like.push(Piece::Text(text));
    like
}

/// Sigma's texts: `*` and `?` are wildcards, a backslash takes a wildcard or a backslash as it is, else it is itself.
pub(super) fn like(text: &str) -> Like {
    let mut like = Like::default();
    let mut chars = text.chars().peekable();
    let mut run = String::new();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.peek() {
                Some(next @ ('*' | '?' | '\\')) => {
                    run.push(*next);
                    chars.next();
                }
                _ => run.push('\\'),
            },
            '*' | '?' => {
                like.push(Piece::Text(std::mem::take(&mut run)));
                like.push(if c == '*' { Piece::Many } else { Piece::One });
            }
            c => run.push(c),
        }
    }
    like.push(Piece::Text(run));
    like
}

/// `windash`: a dash before a word and not behind one may be any of the dashes.
fn dashed(like: &Like) -> Like {
    let mut dashed = Like::default();
    let is_word = |c: &char| c.is_alphanumeric() || *c == '_';
    let mut before: Option<char> = None;
    for piece in like.pieces() {
        let Piece::Text(text) = piece else {
            before = None;
            dashed.push(piece.clone());
            continue;
        };
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            let begins_option = !before.as_ref().is_some_and(is_word) && chars.peek().is_some_and(is_word);
            dashed.push(if DASHES.contains(&c) && begins_option { Piece::Dash } else { Piece::Text(c.to_string()) });
            before = Some(c);
        }
    }
    dashed
}

/// The texts with each dash written out.
fn undashed(like: &Like) -> Result<Vec<String>, Fault> {
    let mut texts = vec![String::new()];
    for piece in like.pieces() {
        match piece {
            Piece::Text(text) => texts.iter_mut().for_each(|own| own.push_str(text)),
            Piece::Dash => {
                if texts.len() * DASHES.len() > EXPANSIONS_MAX {
                    return Err(too_many());
                }
                texts = texts.iter().flat_map(|text| DASHES.iter().map(move |dash| format!("{text}{dash}"))).collect();
            }
            Piece::One | Piece::Many => {
                let what = "a value with wildcards cannot be encoded";
                return Err(Fault::new(Why::Value, what, "put contains behind the encoding, and escape wildcards"));
            }
        }
    }
    Ok(texts)
}

fn too_many() -> Fault {
    let what = format!("a value stands for more than {EXPANSIONS_MAX} texts");
    Fault::new(Why::Limit, what, "use fewer placeholders or dashes in it")
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn to_base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let at = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let word = at(0) << 16 | at(1) << 8 | at(2);
        for digit in 0..4usize {
            let six = (word >> (18 - 6 * digit)) & 63;
            text.push(if digit <= chunk.len() { char::from(ALPHABET[six as usize]) } else { '=' });
        }
    }
    text
}

/// The part of the base64 text that stays the same whatever stands around the bytes, for each place in a group of three.
fn offsets(bytes: &[u8]) -> Vec<String> {
    (0..3usize)
        .map(|offset| {
            let padded: Vec<u8> = std::iter::repeat_n(b' ', offset).chain(bytes.iter().copied()).collect();
            let text = to_base64(&padded);
            let start = [0, 2, 3][offset];
            let end = text.len() - [0, 3, 2][padded.len() % 3];
            text.get(start..end).unwrap_or("").to_owned()
        })
        .filter(|text| !text.is_empty())
        .collect()
}

fn truth(text: &str) -> Result<bool, Fault> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" => Ok(true),
        "false" | "no" => Ok(false),
        _ => Err(Fault::new(Why::Value, format!("exists is neither true nor false: {}", shown(text)), "write true or false")),
    }
}

/// A bound for whole numbers: behind a decimal point it moves to the next whole one.
fn number(op: Op, text: &str) -> Result<(Op, i64), Fault> {
    let text = text.trim();
    if let Ok(bound) = text.parse() {
        return Ok((op, bound));
    }
    let hex = text.strip_prefix("0x").and_then(|digits| i64::from_str_radix(digits, 16).ok());
    if let Some(bound) = hex {
        return Ok((op, bound));
    }
    let decimal = text.parse::<f64>().ok().filter(|number| number.is_finite() && number.abs() < 9e15 && op.is_order());
    let Some(decimal) = decimal else {
        return Err(Fault::new(Why::Value, format!("{} is no number", shown(text)), "write a number"));
    };
    Ok((op, if matches!(op, Op::Gt | Op::Le) { decimal.floor() } else { decimal.ceil() } as i64))
}

/// Puts the pipeline's values in the place of `%name%`; `\%` is a percent sign.
fn expand(text: &str, pipeline: &Pipeline) -> Result<Vec<String>, Fault> {
    let mut texts = vec![String::new()];
    let push = |texts: &mut Vec<String>, part: &str| texts.iter_mut().for_each(|text| text.push_str(part));
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        if let Some(before) = rest[..at].strip_suffix('\\') {
            push(&mut texts, before);
            push(&mut texts, "%");
            rest = &rest[at + 1..];
            continue;
        }
        push(&mut texts, &rest[..at]);
        let name = rest[at + 1..].split_once('%').map(|(name, _)| name).filter(|name| !name.is_empty());
        let Some(name) = name else {
            push(&mut texts, "%");
            rest = &rest[at + 1..];
            continue;
        };
        let Some(values) = pipeline.placeholder(name) else {
            let what = format!("no pipeline has values for the placeholder {}", shown(name));
            return Err(Fault::new(
                Why::Unsupported,
                what,
                "give them in a pipeline file under placeholders:, and name it with --pipeline",
            ));
        };
        if texts.len() * values.len() > EXPANSIONS_MAX {
            return Err(too_many());
        }
        texts = texts.iter().flat_map(|text| values.iter().map(move |value| format!("{text}{value}"))).collect();
        rest = &rest[at + 1 + name.len() + 1..];
    }
    push(&mut texts, rest);
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backslashes_escape_wildcards_and_themselves() {
        let text = |text: &str| Piece::Text(text.to_owned());
        let cases = [
            (r"a\b", vec![text(r"a\b")]),
            (r"a\\b", vec![text(r"a\b")]),
            (r"a\*b", vec![text("a*b")]),
            (r"a\\*b", vec![text(r"a\"), Piece::Many, text("b")]),
            (r"a\\\*b", vec![text(r"a\*b")]),
            (r"a\\\b", vec![text(r"a\\b")]),
            (r"a\\\\b", vec![text(r"a\\b")]),
            (r"a\", vec![text(r"a\")]),
            ("a?**b", vec![text("a"), Piece::One, Piece::Many, text("b")]),
            ("", vec![]),
        ];
        for (written, wanted) in cases {
            assert_eq!(like(written).pieces(), wanted, "{written}");
        }
    }

    #[test]
    fn base64_as_the_standard_has_it() {
        let cases = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (text, wanted) in cases {
            assert_eq!(to_base64(text.as_bytes()), wanted);
        }
        // Whatever stands around it, one of the three is in the encoded text.
        for before in 0..4 {
            for after in 0..4 {
                let whole = format!("{}/bin/bash{}", "x".repeat(before), "y".repeat(after));
                let encoded = to_base64(whole.as_bytes());
                assert!(offsets(b"/bin/bash").iter().any(|part| encoded.contains(part)), "{whole}");
            }
        }
        assert_eq!(offsets(b"foo"), ["Zm9v", "Zvb", "mb2"]);
    }
}
