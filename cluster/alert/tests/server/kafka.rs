//! A small broker: ApiVersions, SaslHandshake and SaslAuthenticate (PLAIN), Metadata, Produce. It checks each batch as a broker does, keeps the records
//! by partition, or answers with an error as told.
//!
//! ```text
//! request   size i32 | api key i16 | version i16 | correlation i32 | client id | body          (a flexible version has tags before the body)
//! answer    size i32 | correlation i32 | body
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// What the broker does.
#[derive(Clone, Default)]
pub(crate) struct Manners {
    pub(crate) tls: Option<TlsAcceptor>,
    /// User and password; none: nobody is asked.
    pub(crate) login: Option<(&'static str, &'static str)>,
    /// The error code of every Produce.
    pub(crate) error: i16,
    /// Topics beside its own are none.
    pub(crate) topic: &'static str,
    pub(crate) partitions: i32,
}

/// A record as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) partition: i32,
    pub(crate) key: String,
    pub(crate) value: Vec<u8>,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) time_ms: i64,
    pub(crate) acks: i16,
}

pub(crate) struct Broker {
    pub(crate) port: u16,
    kept: Arc<Mutex<Vec<Kept>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Broker {
    pub(crate) async fn start(manners: Manners) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let kept: Arc<Mutex<Vec<Kept>>> = Arc::default();
        let noted = Arc::clone(&kept);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let talk = Talk { manners: manners.clone(), kept: Arc::clone(&noted), port, known: manners.login.is_none() };
                let tls = manners.tls.clone();
                // A client that leaves in the middle is no fault.
                connections.spawn(async move {
                    match tls {
                        None => talk.serve(stream).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => talk.serve(stream).await,
                            Err(_) => None,
                        },
                    }
                });
            }
        });
        Self { port, kept, task }
    }

    pub(crate) fn taken(&self) -> Vec<Kept> {
        std::mem::take(&mut self.kept.lock().unwrap())
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Talk {
    manners: Manners,
    kept: Arc<Mutex<Vec<Kept>>>,
    port: u16,
    known: bool,
}

impl Talk {
    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut self, mut stream: S) -> Option<()> {
        loop {
            let size = stream.read_i32().await.ok()?;
            let mut bytes = vec![0; usize::try_from(size).ok()?];
            stream.read_exact(&mut bytes).await.ok()?;
            let mut request = Reader(&bytes);
            let (key, version, correlation) = (request.i16(), request.i16(), request.i32());
            request.text();
            let mut answer = Writer::default();
            answer.i32(correlation);
            match key {
                18 => Self::versions(version, &mut answer),
                17 => {
                    let mechanism = request.text();
                    answer.i16(if mechanism == "PLAIN" { 0 } else { 33 });
                    answer.i32(1).text("PLAIN");
                }
                36 => {
                    let said = request.bytes().split(|byte| *byte == 0).map(<[u8]>::to_vec).collect::<Vec<_>>();
                    let right = self.manners.login.map(|(user, password)| [vec![], user.into(), password.into()]);
                    self.known = right.is_some_and(|right| said == right);
                    answer.i16(if self.known { 0 } else { 58 }).text(if self.known { "" } else { "wrong password" }).i32(0);
                }
                // A broker ends the connection of whom it does not know.
                _ if !self.known => return None,
                3 => self.metadata(&mut answer),
                0 => self.produce(&mut request, &mut answer),
                other => panic!("api {other} is not spoken here"),
            }
            stream.write_i32(answer.0.len() as i32).await.ok()?;
            stream.write_all(&answer.0).await.ok()?;
        }
    }

    fn versions(version: i16, answer: &mut Writer) {
        let spoken = [(0, 3, 3), (3, 1, 1), (17, 1, 1), (18, 0, 3), (36, 0, 0)];
        answer.i16(0);
        match version {
            3 => _ = answer.byte(spoken.len() as u8 + 1),
            _ => _ = answer.i32(spoken.len() as i32),
        }
        for (key, least, most) in spoken {
            answer.i16(key).i16(least).i16(most);
            if version == 3 {
                answer.byte(0);
            }
        }
        if version >= 1 {
            answer.i32(0);
        }
        if version == 3 {
            answer.byte(0);
        }
    }

    fn metadata(&self, answer: &mut Writer) {
        answer.i32(1).i32(0).text("localhost").i32(i32::from(self.port)).i16(-1);
        answer.i32(0).i32(1).i16(0).text(self.manners.topic).byte(0).i32(self.manners.partitions);
        for partition in 0..self.manners.partitions {
            answer.i16(0).i32(partition).i32(0).i32(1).i32(0).i32(1).i32(0);
        }
    }

    fn produce(&self, request: &mut Reader<'_>, answer: &mut Writer) {
        assert_eq!(request.i16(), -1, "no transaction");
        let (acks, _, topics) = (request.i16(), request.i32(), request.i32());
        assert_eq!(topics, 1);
        let (topic, partitions) = (request.text(), request.i32());
        assert_eq!((topic.as_str(), partitions), (self.manners.topic, 1));
        let partition = request.i32();
        let batch = request.bytes().to_vec();
        if self.manners.error == 0 {
            self.kept.lock().unwrap().extend(records(&batch, partition, acks));
        }
        answer.i32(1).text(&topic).i32(1).i32(partition).i16(self.manners.error).i64(0).i64(-1).i32(0);
    }
}

/// The records of a batch (format 2), its checksum checked.
fn records(batch: &[u8], partition: i32, acks: i16) -> Vec<Kept> {
    let mut reader = Reader(batch);
    let (_, length, _) = (reader.i64(), reader.i32(), reader.i32());
    assert_eq!(length as usize, batch.len() - 12);
    assert_eq!(reader.take(1), [2], "record batch format");
    let sum = reader.i32() as u32;
    assert_eq!(sum, crc32c::crc32c(reader.0), "the batch's checksum");
    let (attributes, _, first_ms, _) = (reader.i16(), reader.i32(), reader.i64(), reader.i64());
    assert_eq!(attributes, 0, "no compression");
    let (_, _, _, count) = (reader.i64(), reader.i16(), reader.i32(), reader.i32());
    let mut kept = Vec::new();
    for _ in 0..count {
        let (_, _, after_ms, _) = (reader.varint(), reader.take(1), reader.varint(), reader.varint());
        let (key, value) = (reader.var_bytes(), reader.var_bytes());
        let headers = (0..reader.varint()).map(|_| (reader.var_text(), reader.var_text())).collect();
        let key = String::from_utf8(key).unwrap();
        kept.push(Kept { partition, key, value, headers, time_ms: first_ms + after_ms, acks });
    }
    assert!(reader.0.is_empty());
    kept
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }
    fn i16(&mut self) -> i16 {
        i16::from_be_bytes(self.take(2).try_into().unwrap())
    }
    fn i32(&mut self) -> i32 {
        i32::from_be_bytes(self.take(4).try_into().unwrap())
    }
    fn i64(&mut self) -> i64 {
        i64::from_be_bytes(self.take(8).try_into().unwrap())
    }
    /// A nullable text; null is empty.
    fn text(&mut self) -> String {
        let length = usize::try_from(self.i16()).unwrap_or(0);
        String::from_utf8(self.take(length).to_vec()).unwrap()
    }
    fn bytes(&mut self) -> &'a [u8] {
        let length = usize::try_from(self.i32()).unwrap_or(0);
        self.take(length)
    }
    fn varint(&mut self) -> i64 {
        let (mut value, mut shift) = (0_u64, 0);
        loop {
            let byte = self.take(1)[0];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return (value >> 1) as i64 ^ -((value & 1) as i64);
            }
        }
    }
    fn var_bytes(&mut self) -> Vec<u8> {
        let length = usize::try_from(self.varint()).unwrap_or(0);
        self.take(length).to_vec()
    }
    fn var_text(&mut self) -> String {
        String::from_utf8(self.var_bytes()).unwrap()
    }
}

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn byte(&mut self, byte: u8) -> &mut Self {
        self.0.push(byte);
        self
    }
    fn i16(&mut self, number: i16) -> &mut Self {
        self.0.extend(number.to_be_bytes());
        self
    }
    fn i32(&mut self, number: i32) -> &mut Self {
        self.0.extend(number.to_be_bytes());
        self
    }
    fn i64(&mut self, number: i64) -> &mut Self {
        self.0.extend(number.to_be_bytes());
        self
    }
    fn text(&mut self, text: &str) -> &mut Self {
        self.i16(text.len() as i16);
        self.0.extend(text.as_bytes());
        self
    }
}
