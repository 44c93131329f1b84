//! Settings, as clients ask for them and set them.

use crate::error::SqlError;
use crate::functions;
use crate::tables::SCHEMA;

/// The value of a setting that nobody has set.
pub(crate) fn value(name: &str) -> Result<&'static str, SqlError> {
    let name = match name {
        "time.zone" => "timezone",
        "transaction.isolation.level" => "transaction_isolation",
        other => other,
    };
    all().find(|(known, _)| *known == name).map(|(_, value)| value).ok_or_else(|| {
        let message = format!("unrecognized configuration parameter \"{name}\"");
        SqlError::new("42704", message)
            .with_hint("SHOW weir.tick, VIEWS, TABLES, COLUMNS FROM, CREATE VIEW; SHOW ALL tells the settings")
    })
}

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
    ("default_transaction_isolation", "serializable"),
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
    ("transaction_isolation", "serializable"),
    ("transaction_read_only", "off"),
];
