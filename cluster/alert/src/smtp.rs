//! Mail to a submission server: SMTP with STARTTLS or TLS, by lettre; one connection each message.
//!
//! A server's word decides: 2xx to the whole message is delivered. 4xx is tried again. 5xx is refused, but where it is about the password (530, 534,
//! 535, 538), which people repair. One recipient that is refused refuses the message.

use std::error::Error as _;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use lettre::message::header::{ContentType, HeaderName, HeaderValue};
use lettre::message::{Mailbox, MessageBuilder};
use lettre::transport::smtp::Error as SmtpError;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, CertificateStore, Tls, TlsParameters};
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Tokio1Executor};
use weir_config::{MailSecurity, MailTarget};

use crate::alert::cut;
use crate::sink::Outcome;

/// A mail, but for who writes to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mail {
    /// Its Message-ID, with angle brackets.
    pub id: String,
    /// What it refers to: the same for all that belong together.
    pub thread: String,
    /// One line.
    pub subject: String,
    /// Plain text.
    pub body: String,
    /// Nanoseconds since the Unix epoch.
    pub time: i64,
    /// The same for every resend.
    pub key: String,
}

/// Speaks to one mail server.
pub(crate) struct Smtp {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
    to: Vec<Mailbox>,
}

impl Smtp {
    /// `login`: user and password.
    pub(crate) fn new(
        target: &MailTarget,
        login: Option<(&str, &str)>,
        ca: Option<&Path>,
        time_ms_max: u64,
    ) -> Result<Self, String> {
        let mailbox = |text: &String| text.parse::<Mailbox>().map_err(|why| format!("{text} is no address of a mailbox: {why}"));
        let (host, port) = target.server.as_str().rsplit_once(':').unwrap_or((target.server.as_str(), ""));
        let port = port.parse().map_err(|_| format!("{} has no usable port", target.server))?;
        let tls = match target.security {
            MailSecurity::StartTls => Tls::Required(tls(target.server.host(), ca)?),
            MailSecurity::Tls => Tls::Wrapper(tls(target.server.host(), ca)?),
            MailSecurity::Plain => Tls::None,
        };
        let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(host)
            .port(port)
            .tls(tls)
            .timeout(Some(Duration::from_millis(time_ms_max)));
        if let Some((user, password)) = login {
            builder = builder.credentials(Credentials::new(user.to_owned(), password.to_owned()));
        }
        let to = target.to.iter().map(mailbox).collect::<Result<_, _>>()?;
        Ok(Self { transport: builder.build(), from: mailbox(&target.from)?, to })
    }

    /// Sends a mail.
    pub(crate) async fn send(&self, mail: Mail) -> Outcome {
        let message = match self.message(mail) {
            Ok(message) => message,
            Err(why) => return Outcome::Refused { why: format!("no mail could be made of it: {why}") },
        };
        match self.transport.send(message).await {
            Ok(_) => Outcome::Delivered,
            Err(failed) => outcome(&failed),
        }
    }

    fn message(&self, mail: Mail) -> Result<lettre::Message, String> {
        let time = UNIX_EPOCH + Duration::from_nanos(u64::try_from(mail.time).unwrap_or(0));
        let named = |name: &'static str, value: &str| {
            let name = HeaderName::new_from_ascii_str(name);
            HeaderValue::new(name, value.to_owned())
        };
        let builder = MessageBuilder::new()
            .from(self.from.clone())
            .date(time)
            .message_id(Some(mail.id))
            .in_reply_to(mail.thread.clone())
            .references(mail.thread)
            .subject(mail.subject)
            // RFC 3834: nobody's holiday note answers it.
            .raw_header(named("Auto-Submitted", "auto-generated"))
            .raw_header(named("X-Weir-Key", &mail.key))
            .header(ContentType::TEXT_PLAIN);
        let builder = self.to.iter().cloned().fold(builder, MessageBuilder::to);
        builder.body(mail.body).map_err(|why| why.to_string())
    }
}

fn tls(host: &str, ca: Option<&Path>) -> Result<TlsParameters, String> {
    let mut builder = TlsParameters::builder(host.to_owned());
    if let Some(path) = ca {
        let unreadable = |why: String| format!("could not read ca = {}: {why}", path.display());
        let pem = std::fs::read(path).map_err(|why| unreadable(why.to_string()))?;
        // lettre takes a file of several certificates one by one.
        let found: Vec<Certificate> = pem_certificates(&pem).map_err(unreadable)?;
        builder = found
            .into_iter()
            .fold(builder.certificate_store(CertificateStore::None), |builder, one| builder.add_root_certificate(one));
    }
    builder.build().map_err(|why| why.to_string())
}

fn pem_certificates(pem: &[u8]) -> Result<Vec<Certificate>, String> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    let each = CertificateDer::pem_slice_iter(pem).map(|found| {
        let der = found.map_err(|why| why.to_string())?.to_vec();
        Certificate::from_der(der).map_err(|why| why.to_string())
    });
    let found = each.collect::<Result<Vec<_>, String>>()?;
    if found.is_empty() { Err("no certificate in it; write PEM".to_owned()) } else { Ok(found) }
}

fn outcome(failed: &SmtpError) -> Outcome {
    let mut why = failed.to_string();
    let mut cause = failed.source();
    while let Some(inner) = cause {
        why = format!("{why}: {inner}");
        cause = inner.source();
    }
    let why = cut(&why, SAID_BYTES_MAX);
    let code = failed.status().map(|code| code.to_string());
    let about_password = code.as_deref().is_some_and(|code| PASSWORD_CODES.contains(&code));
    if failed.is_permanent() && !about_password {
        return Outcome::Refused { why: format!("the mail server refused it: {why}") };
    }
    Outcome::Retry { why: format!("the mail server did not take it: {why}"), after_ms: None }
}

/// RFC 4954, 6.
const PASSWORD_CODES: [&str; 4] = ["530", "534", "535", "538"];
/// What of a server's words is repeated.
const SAID_BYTES_MAX: usize = 300;
