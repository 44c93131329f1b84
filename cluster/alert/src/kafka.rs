//! Records to a topic of Kafka, by rskafka: acknowledged by all replicas in sync, one record a request.
//!
//! The partition follows from the key by the rule of Kafka's own clients (murmur2), so all revisions of an alert are in one partition, in order. A
//! record may be there twice, with the same key and the same header `weir-key`: the protocol's own deduplication needs a producer that is never two.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rskafka::BackoffConfig;
use rskafka::chrono::DateTime;
use rskafka::client::error::{Error as KafkaError, ProtocolError};
use rskafka::client::partition::{Compression, PartitionClient, UnknownTopicHandling};
use rskafka::client::{Client, ClientBuilder, Credentials, SaslConfig};
use rskafka::record::Record as KafkaRecord;
use tokio::sync::Mutex;
use weir_config::KafkaTarget;

use crate::alert::cut;
use crate::sink::Outcome;

/// A record of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its key: the alert's.
    pub key: String,
    /// JSON.
    pub value: Vec<u8>,
    /// Milliseconds since the Unix epoch.
    pub time_ms: i64,
    /// The same for every resend.
    pub resend_key: String,
}

/// Speaks to one topic.
pub(crate) struct Kafka {
    target: KafkaTarget,
    tls: Option<Arc<rustls::ClientConfig>>,
    login: Option<(String, String)>,
    time_max: Duration,
    connected: Mutex<Option<Connected>>,
}

/// While nothing has failed. The list of partitions is as of then.
struct Connected {
    client: Client,
    partitions: Vec<i32>,
    open: BTreeMap<i32, Arc<PartitionClient>>,
}

enum Trouble {
    Kafka(KafkaError),
    Topic(String),
}

impl Kafka {
    /// `login`: user and password, SASL/PLAIN.
    pub(crate) fn new(
        target: &KafkaTarget,
        login: Option<(&str, &str)>,
        ca: Option<&Path>,
        time_ms_max: u64,
    ) -> Result<Self, String> {
        let tls = if target.tls { Some(Arc::new(crate::tls::client(ca)?)) } else { None };
        let login = login.map(|(user, password)| (user.to_owned(), password.to_owned()));
        let time_max = Duration::from_millis(time_ms_max);
        Ok(Self { target: target.clone(), tls, login, time_max, connected: Mutex::new(None) })
    }

    /// Sends a record.
    pub(crate) async fn send(&self, record: Record) -> Outcome {
        let sent = match Box::pin(self.partition(record.key.as_bytes())).await {
            Ok(partition) => partition.produce(vec![record_of(record)], Compression::NoCompression).await.map_err(Trouble::Kafka),
            Err(trouble) => Err(trouble),
        };
        let Err(trouble) = sent else { return Outcome::Delivered };
        // Whatever is known of the cluster may be what is wrong.
        *self.connected.lock().await = None;
        match trouble {
            Trouble::Kafka(failed) => outcome(&failed),
            Trouble::Topic(why) => Outcome::Retry { why, after_ms: None },
        }
    }

    async fn partition(&self, key: &[u8]) -> Result<Arc<PartitionClient>, Trouble> {
        let mut held = self.connected.lock().await;
        if held.is_none() {
            *held = Some(self.connect().await?);
        }
        let connected = held.as_mut().expect("it was just put there");
        let at = positive(murmur2(key)) as usize % connected.partitions.len();
        let number = connected.partitions[at];
        if let Some(open) = connected.open.get(&number) {
            return Ok(Arc::clone(open));
        }
        let opened = connected.client.partition_client(self.target.topic.clone(), number, UnknownTopicHandling::Error).await;
        let opened = Arc::new(opened.map_err(Trouble::Kafka)?);
        connected.open.insert(number, Arc::clone(&opened));
        Ok(opened)
    }

    async fn connect(&self) -> Result<Connected, Trouble> {
        // The outbox tries again: the client itself gives up in time to say why.
        let backoff =
            BackoffConfig { max_backoff: self.time_max / 8, deadline: Some(self.time_max / 2), ..BackoffConfig::default() };
        let brokers = self.target.brokers.iter().map(ToString::to_string).collect();
        let mut builder =
            ClientBuilder::new(brokers).client_id("weir").max_message_size(ANSWER_BYTES_MAX).backoff_config(backoff);
        if let Some(tls) = &self.tls {
            builder = builder.tls_config(Arc::clone(tls));
        }
        if let Some((user, password)) = &self.login {
            builder = builder.sasl_config(SaslConfig::Plain(Credentials::new(user.clone(), password.clone())));
        }
        let client = builder.build().await.map_err(Trouble::Kafka)?;
        let topics = client.list_topics().await.map_err(Trouble::Kafka)?;
        let topic = topics.into_iter().find(|topic| topic.name == self.target.topic && !topic.partitions.is_empty());
        let Some(topic) = topic else {
            return Err(Trouble::Topic(format!("there is no topic {:?}: create it, or let this user see it", self.target.topic)));
        };
        Ok(Connected { client, partitions: topic.partitions.into_iter().collect(), open: BTreeMap::new() })
    }
}

fn record_of(record: Record) -> KafkaRecord {
    let headers = [("weir-key", record.resend_key), ("content-type", "application/json".to_owned())];
    KafkaRecord {
        key: Some(record.key.into_bytes()),
        value: Some(record.value),
        headers: headers.map(|(name, value)| (name.to_owned(), value.into_bytes())).into(),
        timestamp: DateTime::from_timestamp_millis(record.time_ms).unwrap_or_default(),
    }
}

fn outcome(failed: &KafkaError) -> Outcome {
    let why = cut(&failed.to_string(), SAID_BYTES_MAX);
    let never = [ProtocolError::MessageTooLarge, ProtocolError::RecordListTooLarge, ProtocolError::InvalidRecord];
    match failed {
        KafkaError::ServerError { protocol_error, .. } if never.contains(protocol_error) => {
            Outcome::Refused { why: format!("the broker refused it: {why}") }
        }
        _ => Outcome::Retry { why: format!("the brokers did not take it: {why}"), after_ms: None },
    }
}

/// The hash by which Kafka's own clients place a key.
fn murmur2(bytes: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ bytes.len() as u32;
    let (words, rest) = bytes.as_chunks::<4>();
    for word in words {
        let k = u32::from_le_bytes(*word).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ (k ^ (k >> 24)).wrapping_mul(M);
    }
    if !rest.is_empty() {
        let tail = rest.iter().rev().fold(0, |tail: u32, byte| tail << 8 | u32::from(*byte));
        hash = (hash ^ tail).wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

fn positive(hash: u32) -> u32 {
    hash & 0x7fff_ffff
}

/// A list of all topics of a large cluster fits; what a broker answers is no reason for more.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// What of an error is repeated.
const SAID_BYTES_MAX: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_placed_as_kafka_places_them() {
        // From the tests of Kafka's own clients.
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
    }
}
