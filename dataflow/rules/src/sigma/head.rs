//! What every document of Sigma's says of itself: title, name, level, tags.

use super::find;
use crate::error::{Error, Place, Why, shown};
use crate::set::Priority;
use crate::yaml::{Node, Yaml};

/// What a rule or a correlation says of itself.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) title: String,
    /// By which correlations refer to it.
    pub(crate) name: Option<String>,
    pub(crate) place: Place,
    pub(crate) id: Option<String>,
    pub(crate) desc: String,
    /// Of its `level`.
    pub(crate) priority: Option<Priority>,
    pub(crate) tags: Vec<String>,
    pub(crate) false_positives: Vec<String>,
    /// `status: unsupported` says that it cannot be used as it is.
    pub(crate) enabled: bool,
}

/// A document's title, empty if it has none.
pub(crate) fn title(document: &Node) -> &str {
    find(document, "title").and_then(Node::scalar).unwrap_or("").trim()
}

impl Head {
    pub(crate) fn read(file: &Place, document: &Node) -> Result<Self, Error> {
        let place = Place { line: document.line, ..file.clone() };
        let title = title(document);
        if title.is_empty() {
            return Err(Error::new(Why::Shape, &place, "the rule has no title", "write title:"));
        }
        let reader = Reader { file, document };
        let level = reader.text("level")?;
        let priority = level.as_deref().map(|level| {
            priority(level).ok_or_else(|| {
                let line = find(document, "level").map_or_else(|| place.clone(), |node| reader.at(node));
                let what = format!("the level {} is unknown", shown(level));
                Error::new(Why::Shape, &line, what, "write informational, low, medium, high or critical")
            })
        });
        Ok(Self {
            title: title.to_owned(),
            name: reader.text("name")?,
            id: reader.text("id")?,
            desc: reader.text("description")?.unwrap_or_default(),
            priority: priority.transpose()?,
            tags: reader.texts("tags")?,
            false_positives: reader.texts("falsepositives")?,
            enabled: reader.text("status")?.as_deref() != Some("unsupported"),
            place,
        })
    }
}

/// Reads keys of a mapping.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) file: &'a Place,
    pub(super) document: &'a Node,
}

impl Reader<'_> {
    pub(super) fn at(&self, node: &Node) -> Place {
        Place { line: node.line, ..self.file.clone() }
    }

    /// A text; none where the key is not there or says nothing.
    pub(super) fn text(&self, key: &str) -> Result<Option<String>, Error> {
        match find(self.document, key).map(|node| (node, &node.value)) {
            None | Some((_, Yaml::Null)) => Ok(None),
            Some((_, Yaml::Scalar(text))) => Ok(Some(text.trim().to_owned())),
            Some((node, _)) => Err(Error::new(Why::Shape, &self.at(node), format!("{key} is no text"), "write a text")),
        }
    }

    /// A list of texts, or one.
    pub(super) fn texts(&self, key: &str) -> Result<Vec<String>, Error> {
        let Some(node) = find(self.document, key) else { return Ok(Vec::new()) };
        let one = std::slice::from_ref(node);
        let nodes = match &node.value {
            Yaml::Seq(nodes) => nodes.as_slice(),
            Yaml::Null => &[],
            _ => one,
        };
        let all: Option<Vec<String>> = nodes.iter().map(|node| node.scalar().map(str::to_owned)).collect();
        all.ok_or_else(|| Error::new(Why::Shape, &self.at(node), format!("{key} holds no text"), "write a list of texts"))
    }
}

/// Falco's word for a level of Sigma's: both order alerts together.
fn priority(level: &str) -> Option<Priority> {
    Some(match level {
        "critical" => Priority::Critical,
        "high" => Priority::Error,
        "medium" => Priority::Warning,
        "low" => Priority::Notice,
        "informational" => Priority::Informational,
        _ => return None,
    })
}
