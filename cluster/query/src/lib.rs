//! Reading: PostgreSQL wire, HTTP, live or past.
