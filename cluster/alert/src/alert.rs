//! One revision of an alert: a row of the relation `alerts`, and how parts of it read as text.

use serde::{Deserialize, Serialize};
use weir_config::Severity;

/// A row of `alerts`. Times are nanoseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the relation's columns")]
pub struct Alert {
    /// For a sink: the first id that was sent of it.
    pub alert_id: String,
    pub revision: u64,
    pub state: State,
    pub rule: String,
    pub rule_id: String,
    pub severity: Severity,
    pub tactics: Vec<String>,
    pub techniques: Vec<String>,
    pub time: i64,
    pub first_seen: i64,
    pub last_seen: i64,
    pub tenant: String,
    pub cloud: Option<String>,
    pub region: String,
    pub host: String,
    pub app: Option<String>,
    pub container_id: Option<String>,
    pub process_id: Option<String>,
    pub summary: String,
    /// Event ids, in order.
    pub evidence: Vec<String>,
    /// JSON, as in the relation.
    pub stages: String,
    pub hosts: Vec<String>,
    pub regions: Vec<String>,
    pub closed_through: Option<i64>,
    pub lost_events: u64,
}

/// Where an alert is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// New.
    Open,
    /// There is more evidence, or better.
    Updated,
    /// It was wrong, or its rule is gone.
    Withdrawn,
}

impl State {
    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Updated => "updated",
            Self::Withdrawn => "withdrawn",
        }
    }
}

impl std::str::FromStr for State {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Open, Self::Updated, Self::Withdrawn]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or("no state of an alert")
    }
}

impl Alert {
    /// The same for every resend of a revision.
    pub fn idempotency_key(&self) -> String {
        format!("{}:{}", self.alert_id, self.revision)
    }

    /// Whether it was taken back.
    pub fn is_withdrawn(&self) -> bool {
        self.state == State::Withdrawn
    }

    /// Fields that a rule's output may fill without end, cut to what sinks take.
    #[must_use]
    pub fn trimmed(mut self) -> Self {
        for text in [&mut self.rule, &mut self.host, &mut self.tenant, &mut self.region] {
            *text = cut(text, NAME_BYTES_MAX);
        }
        self.summary = cut(&self.summary, SUMMARY_BYTES_MAX);
        for list in [&mut self.evidence, &mut self.tactics, &mut self.techniques, &mut self.hosts, &mut self.regions] {
            list.truncate(LIST_MAX);
            list.iter_mut().for_each(|text| *text = cut(text, NAME_BYTES_MAX));
        }
        if self.stages.len() > STAGES_BYTES_MAX {
            self.stages = "[]".to_owned();
        }
        self
    }

    /// Bytes that it takes in memory, about.
    pub(crate) fn bytes(&self) -> usize {
        let lists = [&self.evidence, &self.tactics, &self.techniques, &self.hosts, &self.regions];
        let listed: usize = lists.iter().flat_map(|list| list.iter()).map(|text| text.len() + 24).sum();
        512 + self.rule.len() + self.summary.len() + self.stages.len() + listed
    }

    /// One line for people.
    pub fn title(&self) -> String {
        let taken_back = if self.is_withdrawn() { "Withdrawn: " } else { "" };
        format!("{taken_back}{} on {}", self.rule, self.host)
    }
}

/// At most `bytes_max` bytes of `text`, whole characters, with a mark where it was cut.
pub fn cut(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let mut end = bytes_max.saturating_sub(MARK.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{MARK}", &text[..end])
}

/// RFC 3339, in UTC.
pub fn time_text(nanos: i64) -> String {
    let mut text = String::with_capacity(30);
    weir_schema::write_time(&mut text, nanos);
    text
}

const MARK: &str = "…";
/// A summary as the engine makes it fits; others are cut.
const SUMMARY_BYTES_MAX: usize = 4_096;
const NAME_BYTES_MAX: usize = 1_024;
const STAGES_BYTES_MAX: usize = 16_384;
/// Items of one list.
const LIST_MAX: usize = 64;
