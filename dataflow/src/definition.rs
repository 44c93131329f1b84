//! Views and tables that people make: what the chain says of them, and by which rules.
//!
//! A plain view is a name for a SELECT, put in the name's place wherever it is read. A materialized one is kept by the workers from the
//! tick of its command on. A table's rows are written by people; it shares the views' names, and what reads it keeps it from being dropped. Promise: the same changes in the same order are the same views, in every process.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use serde::{Deserialize, Serialize};
use weir_plan::{Plan, Rule, SchemaOf, Table, normal_type};

use crate::chains::info_of;
use crate::relations::{RelationInfo, relation, relations};
use crate::shipped::is_shipped;
use crate::table::TableWrite;

/// What somebody made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewDefinition {
    /// Its name.
    pub name: String,
    /// The SELECT.
    pub sql: String,
    /// Kept, or only named.
    pub kind: ViewKind,
    /// The relations that the SELECT names.
    pub reads: Vec<String>,
}

/// Whether a view's rows are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ViewKind {
    /// A name for a SELECT.
    Plain,
    /// Its rows are kept up to date.
    Materialized,
    /// A table: its text is a CREATE TABLE.
    Table,
    /// A rule over events that follow each other: its text is a CREATE RULE.
    Sequence,
}

impl ViewDefinition {
    /// The statement that makes it.
    pub fn statement(&self) -> String {
        if matches!(self.kind, ViewKind::Table | ViewKind::Sequence) {
            return self.sql.clone();
        }
        let kind = if self.kind == ViewKind::Materialized { "MATERIALIZED VIEW" } else { "VIEW" };
        let plain = self.name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            && !self.name.starts_with(|c: char| c.is_ascii_digit());
        let name = if plain { self.name.clone() } else { format!("\"{}\"", self.name.replace('"', "\"\"")) };
        format!("CREATE {kind} {name} AS\n{}", self.sql)
    }
}

impl ViewKind {
    /// What it is counted with, where there may be so many.
    fn counted_as(self) -> u8 {
        match self {
            Self::Plain | Self::Materialized => 0,
            Self::Table => 1,
            Self::Sequence => 2,
        }
    }
}

/// What shall change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ViewChange {
    /// A view is made.
    Create {
        /// Which.
        definition: ViewDefinition,
        /// With so many of its kind, views or tables, there is no room for it.
        views_max: u64,
    },
    /// Views are dropped: all of them or none.
    Drop {
        /// Which.
        names: Vec<String>,
        /// With those that read them.
        cascade: bool,
        /// One that is not there is no error.
        if_exists: bool,
    },
    /// Rows of a table change. Whether they may is not for the definitions to say.
    Write(TableWrite),
    /// A rule is made, in the place of one of its name.
    Replace {
        /// Which.
        definition: ViewDefinition,
        /// With so many rules there is no room for another.
        views_max: u64,
    },
}

/// What became of a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ViewOutcome {
    /// The view is there.
    Created(ViewDefinition),
    /// These are there no more.
    Dropped(Vec<String>),
    /// Nothing was done: there is a relation of this name.
    Exists(String),
    /// Nothing was done: there is no view, or no relation to read, of this name.
    Missing(String),
    /// Nothing was done: another view reads it.
    Needed {
        /// Which was to be dropped.
        name: String,
        /// Which reads it.
        by: String,
    },
    /// Nothing was done: there are so many of this kind already.
    TooMany(u64),
    /// The rows are written.
    Written,
    /// Nothing was done: the table has changed at this tick, after what the change follows from was read.
    Stale(u64),
    /// Nothing was done: the table would hold more bytes than these.
    Full(u64),
}

/// The views there are, in the order in which they were made: what a view reads comes before it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definitions(Vec<ViewDefinition>);

impl Definitions {
    /// All of them.
    pub fn all(&self) -> &[ViewDefinition] {
        &self.0
    }

    /// The one of this name.
    pub fn find(&self, name: &str) -> Option<&ViewDefinition> {
        self.0.iter().find(|view| view.name == name)
    }

    /// Changes them, or says why not.
    pub fn change(&mut self, change: &ViewChange) -> ViewOutcome {
        match change {
            ViewChange::Create { definition, views_max } => self.create(definition, *views_max),
            ViewChange::Drop { names, cascade, if_exists } => self.drop_all(names, *cascade, *if_exists),
            ViewChange::Write(write) => ViewOutcome::Missing(write.table.clone()),
            ViewChange::Replace { definition, views_max } => self.replace(definition, *views_max),
        }
    }

    fn create(&mut self, definition: &ViewDefinition, views_max: u64) -> ViewOutcome {
        if relation(&definition.name).is_some() || self.find(&definition.name).is_some() {
            return ViewOutcome::Exists(definition.name.clone());
        }
        // What Weir ships is nobody's.
        let counts = |view: &&ViewDefinition| view.kind.counted_as() == definition.kind.counted_as() && !is_shipped(&view.name);
        let of_its_kind = self.0.iter().filter(counts).count();
        if of_its_kind as u64 >= views_max {
            return ViewOutcome::TooMany(views_max);
        }
        // A relation that only queries know is known to whoever asked for the view; another view may have gone meanwhile.
        let gone = |name: &&String| self.find(name).is_none() && relation(name).is_none();
        if definition.kind == ViewKind::Materialized
            && let Some(name) = definition.reads.iter().find(gone)
        {
            return ViewOutcome::Missing(name.clone());
        }
        self.0.push(definition.clone());
        ViewOutcome::Created(definition.clone())
    }

    fn replace(&mut self, definition: &ViewDefinition, views_max: u64) -> ViewOutcome {
        let name = &definition.name;
        let Some(known) = self.0.iter().position(|view| view.name == *name) else {
            return self.create(definition, views_max);
        };
        if self.0[known].kind != ViewKind::Sequence || definition.kind != ViewKind::Sequence {
            return ViewOutcome::Exists(name.clone());
        }
        // Its columns may be others.
        if let Some(reader) = self.0.iter().find(|view| view.reads.contains(name)) {
            return ViewOutcome::Needed { name: name.clone(), by: reader.name.clone() };
        }
        self.0[known] = definition.clone();
        ViewOutcome::Created(definition.clone())
    }

    fn drop_all(&mut self, names: &[String], cascade: bool, if_exists: bool) -> ViewOutcome {
        let mut going = BTreeSet::new();
        for name in names {
            match self.find(name) {
                Some(_) => {
                    going.insert(name.clone());
                }
                None if if_exists => {}
                None => return ViewOutcome::Missing(name.clone()),
            }
        }
        for view in &self.0 {
            let Some(name) = view.reads.iter().find(|name| going.contains(*name)) else { continue };
            if cascade {
                going.insert(view.name.clone());
            } else if !going.contains(&view.name) {
                return ViewOutcome::Needed { name: name.clone(), by: view.name.clone() };
            }
        }
        self.0.retain(|view| !going.contains(&view.name));
        ViewOutcome::Dropped(going.into_iter().collect())
    }
}

/// The relations that a kept view may read: what the workers hold, and what was made of it.
#[derive(Debug, Clone)]
pub struct Known {
    schemas: HashMap<String, SchemaRef>,
    texts: HashMap<String, String>,
    tables: BTreeSet<String>,
}

impl Default for Known {
    fn default() -> Self {
        let standing = relations().iter().filter(|info| info.standing);
        let schemas = standing.map(|info| (info.name.to_string(), inside(&info.schema))).collect();
        Self { schemas, texts: HashMap::new(), tables: BTreeSet::new() }
    }
}

impl SchemaOf for Known {
    fn schema_of(&self, relation: &str) -> Option<SchemaRef> {
        self.schemas.get(relation).cloned()
    }

    fn text_of(&self, relation: &str) -> Option<String> {
        self.texts.get(relation).cloned()
    }

    fn is_table(&self, relation: &str) -> bool {
        self.tables.contains(relation)
    }
}

impl Known {
    /// Takes up a view. Of one that is kept: its plan, and how it is seen.
    pub fn add(&mut self, definition: &ViewDefinition) -> Result<Option<(Plan, RelationInfo)>, weir_plan::Error> {
        if definition.kind == ViewKind::Plain {
            self.texts.insert(definition.name.clone(), definition.sql.clone());
            return Ok(None);
        }
        let plan = weir_plan::compile(&definition.sql, self)?;
        let schema = plan.schema(self)?;
        let info = RelationInfo {
            name: definition.name.clone().into(),
            schema: outside(&schema),
            standing: true,
            sql: Some(definition.statement().into()),
        };
        self.schemas.insert(definition.name.clone(), schema);
        Ok(Some((plan, info)))
    }

    /// Takes up a table: how it is seen.
    pub fn add_table(&mut self, definition: &ViewDefinition) -> Result<RelationInfo, weir_plan::Error> {
        let table = Table::parse(&definition.sql)?;
        let schema = with_types(&table.schema, DataType::clone);
        self.schemas.insert(definition.name.clone(), inside(&schema));
        self.tables.insert(definition.name.clone());
        Ok(RelationInfo { name: definition.name.clone().into(), schema, standing: true, sql: None })
    }

    /// Takes up a sequence rule: what it says, and how it is seen.
    pub fn add_rule(&mut self, definition: &ViewDefinition) -> Result<(Rule, RelationInfo), weir_plan::Error> {
        let (rule, info) = info_of(definition)?;
        self.schemas.insert(definition.name.clone(), inside(&info.schema));
        Ok((rule, info))
    }

    /// Forgets a view.
    pub fn remove(&mut self, name: &str) {
        self.schemas.remove(name);
        self.texts.remove(name);
        self.tables.remove(name);
    }
}

fn inside(schema: &Schema) -> SchemaRef {
    with_types(schema, normal_type)
}

fn outside(schema: &Schema) -> SchemaRef {
    with_types(schema, |ty| match ty {
        DataType::Dictionary(_, values) => values.as_ref().clone(),
        other => other.clone(),
    })
}

fn with_types(schema: &Schema, ty: impl Fn(&DataType) -> DataType) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| Field::new(field.name(), ty(field.data_type()), true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(name: &str, reads: &[&str]) -> ViewChange {
        let reads = reads.iter().map(|&name| name.to_owned()).collect();
        let definition = ViewDefinition { name: name.into(), sql: "SELECT".into(), kind: ViewKind::Materialized, reads };
        ViewChange::Create { definition, views_max: 4 }
    }

    fn drop_of(names: &[&str], cascade: bool, if_exists: bool) -> ViewChange {
        ViewChange::Drop { names: names.iter().map(|&name| name.to_owned()).collect(), cascade, if_exists }
    }

    #[test]
    fn changes_keep_to_the_rules() {
        let mut views = Definitions::default();
        let mut change = |change: ViewChange| views.change(&change);
        assert!(matches!(change(create("a", &["hosts"])), ViewOutcome::Created(_)));
        assert_eq!(change(create("a", &["hosts"])), ViewOutcome::Exists("a".into()));
        assert_eq!(change(create("hosts", &[])), ViewOutcome::Exists("hosts".into()));
        assert_eq!(change(create("b", &["nothing"])), ViewOutcome::Missing("nothing".into()));
        assert!(matches!(change(create("b", &["a"])), ViewOutcome::Created(_)));
        assert!(matches!(change(create("c", &["b", "hosts"])), ViewOutcome::Created(_)));
        assert!(matches!(change(create("d", &["hosts"])), ViewOutcome::Created(_)));
        assert_eq!(change(create("e", &["hosts"])), ViewOutcome::TooMany(4));
        assert_eq!(change(drop_of(&["a"], false, false)), ViewOutcome::Needed { name: "a".into(), by: "b".into() });
        assert_eq!(change(drop_of(&["nothing"], false, false)), ViewOutcome::Missing("nothing".into()));
        assert_eq!(change(drop_of(&["nothing"], false, true)), ViewOutcome::Dropped(vec![]));
        assert_eq!(change(drop_of(&["c", "b"], false, false)), ViewOutcome::Dropped(vec!["b".into(), "c".into()]));
        assert!(matches!(change(create("f", &["a"])), ViewOutcome::Created(_)));
        assert_eq!(change(drop_of(&["a"], true, false)), ViewOutcome::Dropped(vec!["a".into(), "f".into()]));
        assert_eq!(views.all().len(), 1);
    }

    #[test]
    fn tables_share_names_and_dependents_with_views_and_are_counted_apart() {
        let mut views = Definitions::default();
        let table = |name: &str| {
            let sql = format!("CREATE TABLE {name} (a bigint)");
            let definition = ViewDefinition { name: name.into(), sql, kind: ViewKind::Table, reads: vec![] };
            ViewChange::Create { definition, views_max: 2 }
        };
        assert!(matches!(views.change(&table("t")), ViewOutcome::Created(_)));
        assert!(matches!(views.change(&create("v", &["t"])), ViewOutcome::Created(_)));
        assert_eq!(views.change(&table("v")), ViewOutcome::Exists("v".into()));
        assert!(matches!(views.change(&table("u")), ViewOutcome::Created(_)));
        assert_eq!(views.change(&table("w")), ViewOutcome::TooMany(2));
        assert!(matches!(views.change(&drop_of(&["t"], false, false)), ViewOutcome::Needed { .. }));
        assert_eq!(views.change(&drop_of(&["t"], true, false)), ViewOutcome::Dropped(vec!["t".into(), "v".into()]));
    }
}
