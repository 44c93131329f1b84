//! The e-mail sink against a server that speaks SMTP: what is sent, by which way, and what its answers mean.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod server;

use std::path::Path;

use server::smtp::{Letter, Manners, SmtpServer, Tls};
use server::{alert, dir_with_secrets, sinks};
use weir_alert::{Alert, Outcome, State};

const PEOPLE: &str = "from = \"weir@node.example\"\nto = [\"soc@example.org\", \"duty@example.org\"]";
/// Of weir and the secret of the tests.
const LOGIN: &str = "AHdlaXIAczNjcmV0";

async fn deliver(dir: &Path, port: u16, more: &str, alert: Alert) -> Outcome {
    let section = format!("address = \"localhost:{port}\"\n{PEOPLE}\n{more}");
    sinks(dir, &[("email", &section)], 5_000).deliver("sink", alert).await
}

/// The one mail that a server got of an alert.
async fn mail_of(alert: Alert) -> Letter {
    let dir = dir_with_secrets();
    let server = SmtpServer::start(dir.path(), Manners::default()).await;
    assert_eq!(deliver(dir.path(), server.port, "protocol = \"plain\"", alert).await, Outcome::Delivered);
    let mut taken = server.taken();
    assert_eq!(taken.len(), 1);
    taken.remove(0)
}

#[tokio::test]
async fn a_mail_says_what_a_responder_needs() {
    let letter = mail_of(alert()).await;
    assert_eq!((&*letter.from, letter.to.len()), ("weir@node.example", 2));
    assert_eq!(letter.header("Subject").unwrap(), "[critical] Terminal shell in container on web-7");
    assert_eq!(letter.header("To").unwrap(), "soc@example.org, duty@example.org");
    assert_eq!(letter.header("Date").unwrap(), "Mon, 23 Nov 2026 16:25:34 +0000");
    assert_eq!(letter.header("Auto-Submitted").unwrap(), "auto-generated");
    assert_eq!(letter.header("X-Weir-Key").unwrap(), "a1:1");
    let body = letter.body();
    for says in [
        "A shell was spawned in a container (user=root command=sh -i)\r\n\r\n",
        "Rule          Terminal shell in container\r\n",
        "State         open, revision 1\r\n",
        "First seen    2026-11-23T16:25:34.5Z\r\n",
        "Container     0123456789ab\r\n",
        "Techniques    T1059.004, T1611\r\n",
        "Evidence      e1, e2\r\n",
        "  select * from process_tree('00112233445566778899aabbccddeeff');\r\n",
        "  select * from blast_radius('a1', '1 hour') order by at;\r\n",
    ] {
        assert!(body.contains(says), "{says:?} is not in {body}");
    }
}

#[tokio::test]
async fn revisions_are_a_thread_and_a_resend_is_the_same() {
    let open = mail_of(alert()).await;
    let again = mail_of(alert()).await;
    assert_eq!(open.text, again.text);
    let withdrawn = mail_of(Alert { state: State::Withdrawn, revision: 2, ..alert() }).await;
    assert_eq!(open.header("Message-ID").unwrap(), "<a1.1@node.example>");
    assert_eq!(withdrawn.header("Message-ID").unwrap(), "<a1.2@node.example>");
    for letter in [&open, &withdrawn] {
        assert_eq!(letter.header("References").unwrap(), "<a1@node.example>");
        assert_eq!(letter.header("In-Reply-To").unwrap(), "<a1@node.example>");
    }
    assert_eq!(withdrawn.header("Subject").unwrap(), "[critical] Withdrawn: Terminal shell in container on web-7");
    assert!(withdrawn.body().starts_with("This alert is withdrawn") && !withdrawn.body().contains("Look further"));
}

#[tokio::test]
async fn text_of_any_kind_ends_no_header_and_no_line() {
    let long = "Überfall \u{1f980} =\r\n.\r\nBcc: x@example.org\r\n\t\u{0}".repeat(5_000);
    let strange = Alert {
        alert_id: "a\r\nBcc: x@example.org".to_owned(),
        rule: "r\r\nBcc: x@example.org".to_owned(),
        host: long.clone(),
        summary: long.clone(),
        evidence: vec![long.clone(); 100],
        process_id: Some("'); drop table x; --\n".to_owned()),
        ..alert()
    };
    let letter = mail_of(strange.trimmed()).await;
    assert_eq!((letter.header("Bcc"), letter.to.len()), (None, 2));
    assert!(letter.text.len() < 1 << 18, "{} bytes", letter.text.len());
    assert!(letter.body().contains("process_tree('''); drop table x; -- ')"), "{}", letter.body());
    let bare = Alert { app: None, container_id: None, process_id: None, evidence: vec![], closed_through: None, ..alert() };
    let body = mail_of(bare).await.body();
    assert!(!body.contains("Container") && !body.contains("Evidence"), "{body}");
}

#[tokio::test]
async fn a_password_goes_by_tls_only() {
    let with_password = "user = \"weir\"\nsecret_file = \"key\"\nca = \"ca.pem\"";
    for (tls, protocol) in [(Tls::AfterGreeting, "starttls"), (Tls::Always, "tls")] {
        let dir = dir_with_secrets();
        let server = SmtpServer::start(dir.path(), Manners { tls, login: Some(LOGIN), ..Manners::default() }).await;
        let more = format!("protocol = \"{protocol}\"\n{with_password}");
        assert_eq!(deliver(dir.path(), server.port, &more, alert()).await, Outcome::Delivered);
        assert!(server.taken().iter().all(|letter| letter.by_tls));
        // Whoever has another certificate than the one that is known gets nothing.
        let strange = deliver(dir.path(), server.port, &more.replace("ca = \"ca.pem\"", ""), alert()).await;
        assert!(matches!(&strange, Outcome::Retry { why, .. } if why.contains("certificate")), "{strange:?}");
        // A password that is wrong may be repaired.
        std::fs::write(dir.path().join("key"), "wr0ng\n").unwrap();
        let wrong = deliver(dir.path(), server.port, &more, alert()).await;
        assert!(matches!(&wrong, Outcome::Retry { why, .. } if why.contains("535") && !why.contains("wr0ng")), "{wrong:?}");
        assert_eq!(server.taken(), []);
    }
    // One that offers no TLS is told nothing.
    let dir = dir_with_secrets();
    let server = SmtpServer::start(dir.path(), Manners::default()).await;
    let refused = deliver(dir.path(), server.port, with_password, alert()).await;
    assert!(matches!(refused, Outcome::Retry { .. }), "{refused:?}");
    assert_eq!(server.taken(), []);
}

#[tokio::test]
async fn answers_of_a_mail_server_mean_what_they_mean() {
    let dir = dir_with_secrets();
    for (recipient, taken, retries) in [
        ("250 OK", "451 4.3.0 later", true),
        ("450 4.2.0 greylisted", "250 queued", true),
        ("421 4.3.2 closing", "250 queued", true),
        ("550 5.1.1 no such user", "250 queued", false),
        ("250 OK", "554 5.7.1 spam", false),
        ("530 5.7.0 log in first", "250 queued", true),
    ] {
        let server = SmtpServer::start(dir.path(), Manners { recipient, taken, ..Manners::default() }).await;
        let outcome = deliver(dir.path(), server.port, "protocol = \"plain\"", alert()).await;
        let code = if taken.starts_with('2') { &recipient[..3] } else { &taken[..3] };
        match outcome {
            Outcome::Retry { why, after_ms: None } if retries => assert!(why.contains(code), "{why}"),
            Outcome::Refused { why } if !retries => assert!(why.contains(code), "{why}"),
            other => panic!("{recipient} {taken}: {other:?}"),
        }
    }
    // Nobody there, and somebody who says nothing.
    let server = SmtpServer::start(dir.path(), Manners::default()).await;
    let port = server.port;
    drop(server);
    let gone = deliver(dir.path(), port, "protocol = \"plain\"", alert()).await;
    assert!(matches!(gone, Outcome::Retry { .. }), "{gone:?}");
    let silent = server::Server::start_silent().await;
    let port: u16 = silent.url.rsplit(':').next().unwrap().parse().unwrap();
    let section = format!("address = \"localhost:{port}\"\n{PEOPLE}\nprotocol = \"plain\"");
    let outcome = sinks(dir.path(), &[("email", &section)], 300).deliver("sink", alert()).await;
    assert!(matches!(outcome, Outcome::Retry { .. }), "{outcome:?}");
}
