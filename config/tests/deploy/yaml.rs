//! YAML as a tree, as far as our manifests use it: no anchors, all scalars are text.

use saphyr_parser::{Event, Parser};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Yaml {
    Text(String),
    List(Vec<Self>),
    Map(Vec<(String, Self)>),
}

impl Yaml {
    /// The value at a path such as `spec.template.spec.containers.0.name`.
    pub(crate) fn at(&self, path: &str) -> Option<&Self> {
        path.split('.').try_fold(self, |here, step| match here {
            Self::Map(pairs) => pairs.iter().find(|(key, _)| key == step).map(|(_, value)| value),
            Self::List(items) => items.get(step.parse::<usize>().ok()?),
            Self::Text(_) => None,
        })
    }

    /// The text at a path; what is missing is empty.
    pub(crate) fn text(&self, path: &str) -> &str {
        match self.at(path) {
            Some(Self::Text(text)) => text,
            _ => "",
        }
    }

    /// The items at a path; what is missing has none.
    pub(crate) fn list(&self, path: &str) -> &[Self] {
        match self.at(path) {
            Some(Self::List(items)) => items,
            _ => &[],
        }
    }

    /// The texts of the list at a path.
    pub(crate) fn texts(&self, path: &str) -> Vec<&str> {
        let text = |item: &'_ Self| matches!(item, Self::Text(_));
        assert!(self.list(path).iter().all(text), "{path}: {self:?}");
        self.list(path).iter().filter_map(|item| if let Self::Text(text) = item { Some(text.as_str()) } else { None }).collect()
    }
}

/// All documents of a file.
pub(crate) fn documents(file: &str, text: &str) -> Vec<Yaml> {
    let events: Vec<Event<'_>> =
        Parser::new_from_str(text).map(|event| event.unwrap_or_else(|error| panic!("{file}: {error}")).0).collect();
    let mut events = events.into_iter();
    let mut documents = Vec::new();
    while let Some(event) = events.next() {
        if matches!(event, Event::DocumentStart(_)) {
            let first = events.next().expect("a document has a node");
            documents.push(node(first, &mut events));
        }
    }
    documents
}

fn node<'e>(event: Event<'e>, rest: &mut impl Iterator<Item = Event<'e>>) -> Yaml {
    match event {
        Event::Scalar(text, ..) => Yaml::Text(text.into_owned()),
        Event::SequenceStart(..) => {
            let mut items = Vec::new();
            while let Some(event) = rest.next().filter(|event| *event != Event::SequenceEnd) {
                items.push(node(event, rest));
            }
            Yaml::List(items)
        }
        Event::MappingStart(..) => {
            let mut pairs: Vec<(String, Yaml)> = Vec::new();
            while let Some(event) = rest.next().filter(|event| *event != Event::MappingEnd) {
                let Yaml::Text(key) = node(event, rest) else { panic!("a key is text") };
                assert!(pairs.iter().all(|(other, _)| *other != key), "{key} stands twice");
                let event = rest.next().expect("a key has a value");
                pairs.push((key, node(event, rest)));
            }
            Yaml::Map(pairs)
        }
        other => panic!("{other:?}: our manifests have no anchors"),
    }
}
