//! `weir rules load` of sequence rules: what a user would do with psql.
//!
//! All files are read first; a rule of the same name gives way, unless it says the same.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use weir_cluster::sequences::{SequenceRule, check};
use weir_config::NodeConfig;

use crate::sql::{connect, query};

/// The rules of all files; the first that is wrong is the error.
pub(super) fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<SequenceRule>> {
    let mut rules: Vec<SequenceRule> = Vec::new();
    for file in check(paths)? {
        for rule in file? {
            let name = &rule.definition.name;
            let twice = rules.iter().any(|known| known.definition.name == *name);
            anyhow::ensure!(!twice, "two sequence rules are named {name:?}: rename one");
            rules.push(rule);
        }
    }
    Ok(rules)
}

/// Puts rules in force by a node's SQL port.
pub(super) fn load(config: &Path, url: Option<&str>, rules: &[SequenceRule]) -> anyhow::Result<()> {
    let url = match url {
        Some(url) => url.to_owned(),
        None => url_of(NodeConfig::load(config)?.listen.sql),
    };
    let runtime = crate::runtime()?;
    let client = runtime.block_on(connect(&url))?;
    let there = runtime.block_on(query(&client, "SHOW RULES"))?;
    let there: Vec<&Vec<Option<String>>> = there.iter().flat_map(|table| &table.rows).collect();
    let (mut new, mut partly) = (0, 0);
    for SequenceRule { definition, partly: lacks } in rules {
        partly += usize::from(!lacks.is_empty());
        let known = there.iter().find(|row| row.first().is_some_and(|name| name.as_deref() == Some(&definition.name)));
        let sql = match known {
            Some(row) if row.get(1).is_some_and(|sql| sql.as_deref().is_some_and(|sql| says_the_same(sql, &definition.sql))) => {
                continue;
            }
            Some(_) => replacing(&definition.sql),
            None => definition.sql.clone(),
        };
        runtime.block_on(query(&client, &sql)).with_context(|| format!("sequence rule {:?}", definition.name))?;
        new += 1;
    }
    eprintln!(
        "{} sequence rules: {new} put in force, the others were already; {partly} partly: see `weir rules check`",
        rules.len()
    );
    Ok(())
}

/// A node that listens everywhere is asked here.
fn url_of(listens: SocketAddr) -> String {
    let ip = match listens.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    format!("postgresql://weir@{}/weir", SocketAddr::new(ip, listens.port()))
}

/// What stands behind CREATE [OR REPLACE] RULE and the comments before it.
fn rest(sql: &str) -> &str {
    let mut rest = sql.trim_start();
    loop {
        let behind = if rest.starts_with("--") { rest.split_once('\n') } else { None };
        let behind = behind.or_else(|| if rest.starts_with("/*") { rest.split_once("*/") } else { None });
        let Some((_, behind)) = behind else { break };
        rest = behind.trim_start();
    }
    let words = ["create", "or", "replace", "rule"];
    words.iter().fold(rest, |rest, word| match rest.get(..word.len()) {
        Some(found) if found.eq_ignore_ascii_case(word) => rest[word.len()..].trim_start(),
        _ => rest,
    })
}

fn says_the_same(there: &str, wanted: &str) -> bool {
    rest(there).trim_end() == rest(wanted).trim_end()
}

fn replacing(sql: &str) -> String {
    format!("CREATE OR REPLACE RULE {}", rest(sql))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_replaced_only_by_another() {
        let rule = "-- Why.\n/* And */ create  rule a AS SEQUENCE [x]";
        assert_eq!(replacing(rule), "CREATE OR REPLACE RULE a AS SEQUENCE [x]");
        assert!(says_the_same(&replacing(rule), rule) && !says_the_same(rule, "CREATE RULE b AS SEQUENCE [x]"));
        assert_eq!(url_of(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 5_433)), "postgresql://weir@127.0.0.1:5433/weir");
    }
}
