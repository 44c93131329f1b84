//! Settings, as clients ask for them and set them.

use crate::error::{self, SqlError};
use crate::functions;
use crate::tables::SCHEMA;

/// The value of a setting that nobody has set.
pub(crate) fn value(name: &str) -> Result<&'static str, SqlError> {
    let name = canonical(name);
    all().find(|(known, _)| *known == name).map(|(_, value)| value).ok_or_else(|| {
        let message = format!("unrecognized configuration parameter \"{name}\"");
        SqlError::new("42704", message)
            .with_hint("SHOW weir.tick, VIEWS, TABLES, COLUMNS FROM, CREATE VIEW; SHOW ALL tells the settings")
    })
}

/// SET of a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Assignment {
    /// In lower case.
    pub(crate) name: String,
    pub(crate) value: String,
    /// SET LOCAL: until the transaction ends.
    pub(crate) local: bool,
}

/// A value that a connection may set.
pub(crate) struct Accepted {
    pub(crate) value: String,
    /// What is to be told beside it.
    pub(crate) note: Option<String>,
}

/// One name for a setting that is asked for in several ways.
pub(crate) fn canonical(name: &str) -> &str {
    match name {
        "time.zone" => "timezone",
        "transaction.isolation.level" => "transaction_isolation",
        other => other,
    }
}

/// The value that a connection has when it sets this one. A name with a dot is a client's own.
pub(crate) fn accepted(name: &str, wanted: &str) -> Result<Accepted, SqlError> {
    let refused = |cure: &str| {
        let message = format!("invalid value for parameter \"{name}\": \"{wanted}\"");
        Err(SqlError::new(error::BAD_VALUE, message).with_hint(cure.to_owned()))
    };
    let lower = wanted.to_lowercase();
    if wanted.len() > VALUE_BYTES_MAX {
        return refused("a value has at most 1,024 bytes");
    }
    if !name.contains('.') {
        value(name)?;
    }
    let is_default = lower == "default";
    let mut accepted = Accepted { value: if is_default { value(name)?.to_owned() } else { wanted.to_owned() }, note: None };
    match name {
        "server_version"
        | "server_version_num"
        | "server_encoding"
        | "integer_datetimes"
        | "max_identifier_length"
        | "max_index_keys" => {
            return Err(SqlError::new("55P02", format!("parameter \"{name}\" cannot be changed")));
        }
        "client_encoding" if !is_default && !matches!(lower.replace('-', "").as_str(), "utf8" | "unicode") => {
            return refused("this server speaks UTF8");
        }
        "timezone" if !matches!(lower.as_str(), "utc" | "etc/utc" | "gmt" | "z" | "0" | "default") => {
            accepted = Accepted { value: value(name)?.to_owned(), note: Some("times are told in UTC here".to_owned()) };
        }
        "standard_conforming_strings" if !matches!(lower.as_str(), "on" | "true" | "1" | "default") => {
            return refused("strings are as the standard has them");
        }
        "transaction_isolation" | "default_transaction_isolation" if !is_default => match lower.as_str() {
            "serializable" | "repeatable read" | "read committed" => accepted.value = lower,
            // PostgreSQL does the same.
            "read uncommitted" => accepted.value = "read committed".into(),
            _ => return refused("serializable, repeatable read, read committed"),
        },
        "transaction_read_only" | "default_transaction_read_only" if !is_default => match lower.as_str() {
            "on" | "true" | "yes" | "1" => accepted.value = "on".into(),
            "off" | "false" | "no" | "0" => accepted.value = "off".into(),
            _ => return refused("on or off"),
        },
        "statement_timeout" if milliseconds(&accepted.value).is_none() => {
            return refused("milliseconds, or a number with ms, s, min or h");
        }
        _ => {}
    }
    Ok(accepted)
}

/// A time as settings write it.
pub(crate) fn milliseconds(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match text[digits..].trim() {
        "" | "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(unit)
}

/// Names of applications are the longest that is set.
const VALUE_BYTES_MAX: usize = 1_024;

/// Every setting and its value.
pub(crate) fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    SETTINGS.iter().copied()
}

const SETTINGS: &[(&str, &str)] = &[
    ("application_name", ""),
    ("bytea_output", "hex"),
    ("client_encoding", "UTF8"),
    ("client_min_messages", "notice"),
    ("datestyle", "ISO, YMD"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
    ("extra_float_digits", "1"),
    ("idle_in_transaction_session_timeout", "0"),
    ("integer_datetimes", "on"),
    ("intervalstyle", "postgres"),
    ("lock_timeout", "0"),
    ("max_identifier_length", "63"),
    ("max_index_keys", "32"),
    ("row_security", "on"),
    ("search_path", SCHEMA),
    ("server_encoding", "UTF8"),
    ("server_version", functions::SERVER_VERSION),
    ("server_version_num", "150000"),
    ("standard_conforming_strings", "on"),
    ("statement_timeout", "0"),
    ("timezone", "UTC"),
    ("transaction_deferrable", "off"),
    ("transaction_isolation", "read committed"),
    ("transaction_read_only", "off"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_set_and_what_not() {
        for (name, wanted, expected) in [
            ("application_name", "x", "x"),
            ("my.own", "1", "1"),
            ("nothing", "1", "42704"),
            ("client_encoding", "utf-8", "utf-8"),
            ("client_encoding", "LATIN1", "22023"),
            ("timezone", "Europe/Paris", "UTC"),
            ("default_transaction_isolation", "REPEATABLE READ", "repeatable read"),
            ("default_transaction_isolation", "none", "22023"),
            ("transaction_read_only", "TRUE", "on"),
            ("statement_timeout", "5s", "5s"),
            ("statement_timeout", "soon", "22023"),
            ("server_version", "16", "55P02"),
            ("search_path", "default", "public"),
        ] {
            let told = accepted(name, wanted).map_or_else(|error| error.code.to_owned(), |accepted| accepted.value);
            assert_eq!(told, expected, "{name} = {wanted}");
        }
        assert_eq!(milliseconds("2 min"), Some(120_000));
        assert_eq!(milliseconds("99999999999999999999"), None);
        assert_eq!(milliseconds("18446744073709551615h"), None);
    }
}
