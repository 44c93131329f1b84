//! A small mail server: EHLO, STARTTLS, AUTH PLAIN and LOGIN, MAIL, RCPT, DATA. It takes everything, or answers as told.

use std::path::Path;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// When TLS begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tls {
    Never,
    AfterGreeting,
    Always,
}

/// What the server does.
#[derive(Debug, Clone)]
pub(crate) struct Manners {
    pub(crate) tls: Tls,
    /// The base64 of AUTH PLAIN that is right; none: nobody is asked.
    pub(crate) login: Option<&'static str>,
    /// The answer to RCPT TO.
    pub(crate) recipient: &'static str,
    /// The answer to a whole message.
    pub(crate) taken: &'static str,
}

impl Default for Manners {
    fn default() -> Self {
        Self { tls: Tls::Never, login: None, recipient: "250 OK", taken: "250 queued" }
    }
}

/// A message as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Letter {
    pub(crate) from: String,
    pub(crate) to: Vec<String>,
    pub(crate) text: String,
    pub(crate) by_tls: bool,
}

impl Letter {
    /// A header, folded lines joined.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let head = self.text.split("\r\n\r\n").next().unwrap().replace("\r\n ", " ");
        head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned))
    }

    /// What stands behind the headers, decoded.
    pub(crate) fn body(&self) -> String {
        let body = self.text.split_once("\r\n\r\n").unwrap().1;
        match self.header("Content-Transfer-Encoding").as_deref() {
            Some("quoted-printable") => quoted_printable(body),
            Some("base64") => String::from_utf8(base64(body)).unwrap(),
            _ => body.to_owned(),
        }
    }
}

pub(crate) struct SmtpServer {
    pub(crate) port: u16,
    letters: Arc<Mutex<Vec<Letter>>>,
    task: tokio::task::JoinHandle<()>,
}

impl SmtpServer {
    /// Starts one; the certificate of its TLS, for `localhost`, is written to `ca.pem` in `dir`.
    pub(crate) async fn start(dir: &Path, manners: Manners) -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(dir.join("ca.pem"), made.cert.pem()).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let tls = tls.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let letters: Arc<Mutex<Vec<Letter>>> = Arc::default();
        let noted = Arc::clone(&letters);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A client that leaves in the middle is no fault.
                tokio::spawn(serve(stream, acceptor.clone(), manners.clone(), Arc::clone(&noted)));
            }
        });
        Self { port, letters, task }
    }

    pub(crate) fn taken(&self) -> Vec<Letter> {
        std::mem::take(&mut self.letters.lock().unwrap())
    }
}

impl Drop for SmtpServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    manners: Manners,
    letters: Arc<Mutex<Vec<Letter>>>,
) -> std::io::Result<()> {
    let mut talk = Talk { manners, letters, by_tls: false };
    if talk.manners.tls == Tls::Always {
        talk.by_tls = true;
        let mut stream = BufReader::new(acceptor.accept(stream).await?);
        stream.write_all(b"220 mail ESMTP\r\n").await?;
        return talk.until_end(&mut stream).await.map(drop);
    }
    let mut stream = BufReader::new(stream);
    stream.write_all(b"220 mail ESMTP\r\n").await?;
    if talk.until_end(&mut stream).await? == End::StartTls {
        talk.by_tls = true;
        let mut stream = BufReader::new(acceptor.accept(stream.into_inner()).await?);
        talk.until_end(&mut stream).await?;
    }
    Ok(())
}

#[derive(PartialEq, Eq)]
enum End {
    Quit,
    StartTls,
}

struct Talk {
    manners: Manners,
    letters: Arc<Mutex<Vec<Letter>>>,
    by_tls: bool,
}

impl Talk {
    async fn until_end<S: AsyncRead + AsyncWrite + Unpin>(&mut self, stream: &mut BufReader<S>) -> std::io::Result<End> {
        let mut letter = Letter { from: String::new(), to: Vec::new(), text: String::new(), by_tls: self.by_tls };
        let mut known = self.manners.login.is_none();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(End::Quit);
            }
            let line = line.trim_end();
            let word = line.split(' ').next().unwrap().to_ascii_uppercase();
            let answer = match word.as_str() {
                "EHLO" => {
                    let tls = self.manners.tls == Tls::AfterGreeting && !self.by_tls;
                    let login = self.manners.login.is_some();
                    let mut offers = vec!["250-mail"];
                    offers.extend(tls.then_some("250-STARTTLS"));
                    offers.extend(login.then_some("250-AUTH PLAIN"));
                    offers.push("250 8BITMIME");
                    offers.join("\r\n")
                }
                "STARTTLS" => {
                    stream.write_all(b"220 go ahead\r\n").await?;
                    return Ok(End::StartTls);
                }
                "AUTH" => {
                    known = line.split(' ').nth(2) == self.manners.login;
                    if known { "235 welcome" } else { "535 5.7.8 wrong" }.to_owned()
                }
                "MAIL" | "RCPT" | "DATA" if !known => "530 5.7.0 who are you".to_owned(),
                "MAIL" => {
                    line.split(['<', '>']).nth(1).unwrap().clone_into(&mut letter.from);
                    "250 OK".to_owned()
                }
                "RCPT" => {
                    letter.to.push(line.split(['<', '>']).nth(1).unwrap().to_owned());
                    self.manners.recipient.to_owned()
                }
                "DATA" => {
                    stream.write_all(b"354 go on\r\n").await?;
                    letter.text = message(stream).await?;
                    if self.manners.taken.starts_with('2') {
                        self.letters.lock().unwrap().push(letter.clone());
                    }
                    self.manners.taken.to_owned()
                }
                "QUIT" => {
                    stream.write_all(b"221 bye\r\n").await?;
                    return Ok(End::Quit);
                }
                _ => "250 OK".to_owned(),
            };
            stream.write_all(format!("{answer}\r\n").as_bytes()).await?;
        }
    }
}

/// A message up to its dot, dots undone.
async fn message<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut BufReader<S>) -> std::io::Result<String> {
    let mut text = String::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        assert!(line.ends_with("\r\n") && line.len() <= 1_000, "a line that RFC 5322 forbids: {} bytes", line.len());
        match line.strip_prefix('.') {
            Some("\r\n") => return Ok(text),
            Some(rest) => text.push_str(rest),
            None => text.push_str(&line),
        }
    }
}

fn quoted_printable(text: &str) -> String {
    let text = text.replace("=\r\n", "");
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, behind)) = rest.split_first() {
        if *first == b'=' {
            bytes.push(u8::from_str_radix(std::str::from_utf8(&behind[..2]).unwrap(), 16).unwrap());
            rest = &behind[2..];
        } else {
            bytes.push(*first);
            rest = behind;
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn base64(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut count, mut bytes) = (0u32, 0, Vec::new());
    for letter in text.bytes() {
        let Some(value) = ALPHABET.iter().position(|known| *known == letter) else { continue };
        bits = bits << 6 | value as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    bytes
}
