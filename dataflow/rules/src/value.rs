//! Values of fields, and where they come from.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use crate::fields::Field;

/// The value of a field of one event.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// A text.
    Text(Cow<'a, str>),
    /// An integer; unsigned 64-bit values keep their bits.
    Int(i64),
    /// A truth.
    Bool(bool),
    /// An address.
    Ip(IpAddr),
    /// Several values: ancestors, both ends of a connection, the words of a command line.
    Many(Vec<Self>),
}

impl<'a> Value<'a> {
    /// A text that lives as long as its event.
    pub fn text(text: impl Into<Cow<'a, str>>) -> Self {
        Self::Text(text.into())
    }

    /// The text that operators on texts see: as it is printed.
    pub(crate) fn to_text(&self) -> Cow<'_, str> {
        match self {
            Self::Text(text) => Cow::Borrowed(text),
            other => Cow::Owned(other.to_string()),
        }
    }
}

/// As outputs print it. Several values: joined by blanks.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Int(int) => write!(f, "{int}"),
            Self::Bool(truth) => write!(f, "{truth}"),
            Self::Ip(ip) => write!(f, "{ip}"),
            Self::Many(values) => {
                for (at, value) in values.iter().enumerate() {
                    write!(f, "{}{value}", if at == 0 { "" } else { " " })?;
                }
                Ok(())
            }
        }
    }
}

/// One event, seen through Falco's fields.
pub trait FieldSource {
    /// The value of a field, of the type that `FieldDef::ty` says; `None` when it is not known.
    fn get(&self, field: &Field) -> Option<Value<'_>>;
}
