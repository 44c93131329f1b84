//! What an EQL query says, as it is written.

/// A query.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Query {
    /// `category where condition`.
    Event(Event),
    /// `sequence …`.
    Sequence(Sequence),
}

/// Which events.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Event {
    pub(super) category: String,
    pub(super) condition: Expr,
    pub(super) line: usize,
}

/// `sequence by … with maxspan=… [ … ] … until [ … ]`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sequence {
    pub(super) by: Vec<Field>,
    pub(super) max_span_ms: u64,
    pub(super) items: Vec<Item>,
    pub(super) until: Option<Item>,
    pub(super) line: usize,
}

/// `[ … ] by … with runs=n`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Item {
    /// `!` stands before it.
    pub(super) missing: bool,
    pub(super) event: Event,
    pub(super) by: Vec<Field>,
    pub(super) runs: usize,
}

/// A field of ECS.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Field {
    pub(super) name: String,
    /// `?` stands before it: it may be one that nothing supplies.
    pub(super) optional: bool,
    pub(super) line: usize,
}

/// How a value is held against several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// `in`.
    Equal,
    /// `:` and `like`: `*` stands for any text, `?` for one character.
    Like,
    /// `regex`: the whole value.
    Regex,
}

/// A value or a condition.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Expr {
    Field(Field),
    Text(String),
    Number(String),
    Bool(bool),
    Null,
    Not(Box<Self>),
    /// AND.
    All(Vec<Self>),
    /// OR.
    Any(Vec<Self>),
    /// `==`, `!=`, `<`, `<=`, `>`, `>=`, as SQL writes them.
    Compare {
        op: &'static str,
        sides: Box<(Self, Self)>,
        line: usize,
    },
    Among {
        value: Box<Self>,
        how: How,
        insensitive: bool,
        options: Vec<Self>,
        line: usize,
    },
    Arithmetic {
        op: &'static str,
        sides: Box<(Self, Self)>,
        line: usize,
    },
    Call {
        name: String,
        insensitive: bool,
        arguments: Vec<Self>,
        line: usize,
    },
}

impl Expr {
    /// Whether a field is named anywhere in it.
    pub(super) fn names(&self, field: &str) -> bool {
        match self {
            Self::Field(own) => own.name == field,
            Self::Text(_) | Self::Number(_) | Self::Bool(_) | Self::Null => false,
            Self::Not(inner) => inner.names(field),
            Self::All(all) | Self::Any(all) | Self::Call { arguments: all, .. } => all.iter().any(|own| own.names(field)),
            Self::Compare { sides, .. } | Self::Arithmetic { sides, .. } => sides.0.names(field) || sides.1.names(field),
            Self::Among { value, options, .. } => value.names(field) || options.iter().any(|own| own.names(field)),
        }
    }
}
