//! What tools ask when they connect and list what there is: psql's commands, and start-up queries in the form that Grafana, DBeaver and JDBC send them (written down by hand, not captured).

use weir_config::QueryLimits;

use super::{Node, ask};

async fn psql(node: &Node, commands: &[&str]) -> (bool, String, String) {
    let port = node.running.sql_addr().port().to_string();
    let mut psql = tokio::process::Command::new("psql");
    psql.args(["-X", "-h", "127.0.0.1", "-p", &port, "-U", "weir", "-A", "-t", "weir"]);
    psql.args(commands.iter().flat_map(|command| ["-c", command]));
    let output = psql.output().await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psql_lists_and_describes() {
    if std::process::Command::new("psql").arg("--version").output().is_err() {
        println!("SKIPPED: psql is not installed (apt-get install postgresql-client)");
        return;
    }
    let node = Node::start("describes", QueryLimits::default()).await;
    let mut wrong = Vec::new();
    for (command, expected) in [
        ("\\d", &["public|events|table|weir", "public|service_map|materialized view|weir"][..]),
        ("\\dt", &["public|hosts|table|weir"]),
        ("\\dm", &["public|region_connections|materialized view|weir"]),
        ("\\dv", &[]),
        ("\\di", &[]),
        ("\\ds", &[]),
        ("\\d hosts", &["host|text|", "first_seen|timestamp with time zone|", "simulated|boolean|"]),
        ("\\d service_map", &["total|bigint|", "src_app|text|"]),
        ("\\d+ service_map", &["total|bigint|"]),
        ("\\d \"service_map\"", &["total|bigint|"]),
        ("\\d ev*", &["kind|text|"]),
        ("\\l", &["weir|weir|UTF8"]),
        ("\\dn", &["public|weir"]),
        ("\\df", &[]),
        ("\\dx", &[]),
        ("\\du", &["weir"]),
        ("\\encoding", &["UTF8"]),
        ("\\conninfo", &["weir"]),
    ] {
        let (fine, rows, told) = psql(&node, &[command]).await;
        let fine = fine && told.lines().all(|line| line.starts_with("Did not find"));
        let missing: Vec<_> = expected.iter().filter(|expected| !rows.contains(**expected)).collect();
        if !fine || !missing.is_empty() {
            wrong.push(format!("{command}: {missing:?} {told}\n{rows}"));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    let (_, _, told) = psql(&node, &["\\d nowhere"]).await;
    assert!(told.contains("Did not find any relation named \"nowhere\""), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start_up_queries_of_tools_are_answered() {
    let node = Node::start("startup", QueryLimits::default()).await;
    let sql = node.connect().await;
    let mut wrong = Vec::new();
    for question in include_str!("startup.sql").split(";\n") {
        let (expected, query): (Vec<_>, Vec<_>) = question.lines().partition(|line| line.starts_with("--"));
        let query = query.join("\n");
        if query.trim().is_empty() {
            continue;
        }
        let told = ask(&sql, &query).await;
        for expected in expected.iter().filter_map(|line| line.strip_prefix("--> ")) {
            let fine = if expected == "(nothing)" { told.is_empty() } else { told.contains(expected) };
            if !fine {
                wrong.push(format!("{query}\n  {expected}\n  {told}\n"));
            }
        }
        let is_error =
            told.as_bytes().get(..6).is_some_and(|code| code[5] == b' ' && code[..5].iter().all(u8::is_ascii_alphanumeric));
        if is_error && told.split(' ').next().is_some_and(|code| code.bytes().any(|byte| byte.is_ascii_digit())) {
            wrong.push(format!("{query}\n  {told}\n"));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    for (query, expected) in [
        ("select 'nowhere'::regclass", "42P01 relation \"nowhere\" does not exist"),
        ("select 'nowhere'::regtype", "42704 type \"nowhere\" does not exist"),
        ("select to_regclass('nowhere')", "NULL"),
        ("select 'hosts'::regclass::oid::regclass::text", "hosts"),
        ("select * from pg_catalog.pg_nowhere", "42P01"),
        ("select nothing from pg_class", "42703"),
        ("select count(*) from pg_trigger", "0"),
        ("select current_setting('nothing')", "42704"),
        ("select current_setting('nothing', true)", "NULL"),
    ] {
        let told = ask(&sql, query).await;
        assert!(told.starts_with(expected), "{query}: {told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_and_settings_are_as_tools_send_them() {
    let node = Node::start("transactions", QueryLimits::default()).await;
    let sql = node.connect().await;
    for (statement, expected) in [
        ("begin read only", ""),
        ("select 1", "1"),
        ("select nothing from hosts", "42703"),
        ("select 1", "25P02 current transaction is aborted"),
        ("savepoint a", "25P02"),
        ("rollback to savepoint a", "25P02 ROLLBACK TO after an error is not supported"),
        ("commit", ""),
        ("select 1", "1"),
        ("savepoint a", "25P01"),
        ("begin isolation level repeatable read", ""),
        ("show transaction_isolation", "repeatable read"),
        ("select count(*) from hosts", "6"),
        ("set transaction isolation level serializable", "25001"),
        ("rollback", ""),
        ("begin; savepoint a; savepoint b; rollback to a; release a", ""),
        ("release a", "3B001"),
        ("rollback", ""),
        ("begin", ""),
        ("create table t (a int)", "25001"),
        ("rollback", ""),
        ("set session characteristics as transaction isolation level serializable, read only", ""),
        ("show transaction isolation level", "serializable"),
        ("create table t (a int)", "25006"),
        ("begin read write", ""),
        ("show transaction_read_only", "off"),
        ("commit", ""),
        ("discard all", ""),
        ("show transaction_isolation", "read committed"),
        ("set application_name = 'my tool'", ""),
        ("show application_name", "my tool"),
        ("set local application_name = 'other'", ""),
        ("show application_name", "my tool"),
        ("begin; set local application_name to other", ""),
        ("show application_name", "other"),
        ("rollback", ""),
        ("show application_name", "my tool"),
        ("reset application_name", ""),
        ("show application_name", ""),
        ("set my.own = 1", ""),
        ("show my.own", "1"),
        ("reset all", ""),
        ("show my.own", "42704"),
        ("set nothing = 1", "42704"),
        ("set client_encoding = 'LATIN1'", "22023"),
        ("set names 'utf8'", ""),
        ("set time zone 'Europe/Paris'", ""),
        ("show timezone", "UTC"),
        ("set statement_timeout = '20ms'", ""),
        (
            "select count(*) from events a, events b, events c, events d, events e",
            "57014 canceling statement due to statement timeout",
        ),
        ("reset statement_timeout", ""),
        ("commit and chain", "0A000 AND CHAIN"),
    ] {
        let told = ask(&sql, statement).await;
        assert!(told.starts_with(expected) && told.is_empty() == expected.is_empty(), "{statement}: {told}");
    }
}
