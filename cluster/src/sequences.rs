//! The sequence rules of a node's config: the `CREATE RULE` statements of the .sql files in `[rules] paths`, and the rules of its .eql and .toml
//! files, which are EQL; asked for as people ask for theirs.
//!
//! A .sql file that is wrong keeps all of them from being asked for. Of EQL, whose files come from elsewhere by the hundred, each file that is
//! refused is told and left out.
//!
//! Once, when the node starts, a rule that is not there or is another one is put in force; what people made besides stays.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::{error, info, warn};
use weir_config::NodeConfig;
use weir_dataflow::{Definitions, ViewChange, ViewDefinition, ViewKind, ViewOutcome, eql_definition, rule_definitions};
use weir_query::ViewStore;

use crate::error::Error;
use crate::rules::{SEQUENCES, files_of};

/// Asks for them until they are in force.
pub(crate) async fn configure(config: NodeConfig, store: Arc<dyn ViewStore>) {
    let wanted = match read(&config.rules.paths) {
        Ok(wanted) if wanted.is_empty() => return,
        Ok(wanted) => wanted,
        Err(wrong) => return error!(error = %wrong, "the sequence rules of [rules] paths are not taken"),
    };
    let mut known = store.definitions();
    while known.is_none() {
        tokio::time::sleep(AGAIN_AFTER).await;
        known = store.definitions();
    }
    let known = known.unwrap_or_default();
    let (mut asked, mut new) = (tokio::task::JoinSet::new(), 0);
    for definition in wanted {
        let name = definition.name.clone();
        match change(&known, definition, config.query.views_max) {
            Ok(None) => {}
            Ok(Some(change)) => {
                let store = Arc::clone(&store);
                asked.spawn(async move { (name, put(&*store, change).await) });
            }
            Err(wrong) => error!(error = %wrong, "a sequence rule of [rules] paths is not taken"),
        }
    }
    while let Some(done) = asked.join_next().await {
        match done {
            Ok((_, Ok(()))) => new += 1,
            Ok((rule, Err(why))) => error!(rule, error = %why, "a sequence rule of [rules] paths is not taken"),
            Err(stopped) => warn!(error = %stopped, "asking for sequence rules was stopped"),
        }
    }
    info!(rules = new, "the sequence rules of [rules] paths are in force");
}

/// A rule of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceRule {
    /// As it would be asked for.
    pub definition: ViewDefinition,
    /// What it asks and nothing supplies; empty: it is whole.
    pub partly: Vec<String>,
}

/// The rules of a file, or what is wrong with it.
pub type Checked = Result<Vec<SequenceRule>, Error>;

/// The rules of each file of sequence rules, or what is wrong with it: for people who want to know before they load it.
pub fn check(paths: &[PathBuf]) -> Result<Vec<Checked>, Error> {
    Ok(files(paths)?.iter().map(|file| of_file(file)).collect())
}

/// Reads and plans the rules of all files.
pub fn read(paths: &[PathBuf]) -> Result<Vec<ViewDefinition>, Error> {
    let mut rules: Vec<ViewDefinition> = Vec::new();
    for file in files(paths)? {
        let found = match of_file(&file) {
            Err(wrong) if ending(&file) != "sql" => {
                warn!(error = %wrong, "a rule of EQL is left out");
                continue;
            }
            found => found?,
        };
        for SequenceRule { definition, partly } in found {
            if rules.iter().any(|known| known.name == definition.name) {
                let why = format!("{}: there is a second rule named {:?}; rename one", file.display(), definition.name);
                return Err(Error::Rules(why));
            }
            if !partly.is_empty() {
                warn!(rule = definition.name, lacks = partly.join(", "), "a sequence rule asks for what is not collected");
            }
            rules.push(definition);
        }
    }
    Ok(rules)
}

fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Error> {
    let files = paths.iter().map(|path| files_of(path, SEQUENCES)).collect::<Result<Vec<_>, _>>()?;
    Ok(files.into_iter().flatten().collect())
}

fn of_file(file: &Path) -> Checked {
    let text = std::fs::read_to_string(file).map_err(Error::file("read rule file", file))?;
    let wrong = |wrong: &dyn std::fmt::Display| Error::Rules(format!("{}: {wrong}", file.display()));
    if ending(file) == "sql" {
        let rules = rule_definitions(&text).map_err(|why| wrong(&why))?.into_iter();
        return Ok(rules.map(|rule| SequenceRule { definition: rule.definition, partly: vec![] }).collect());
    }
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let (rule, partly) = eql_definition(&stem, ending(file), &text).map_err(|why| wrong(&why))?;
    Ok(vec![SequenceRule { definition: rule.definition, partly }])
}

fn ending(file: &Path) -> &str {
    file.extension().and_then(|ending| ending.to_str()).unwrap_or_default()
}

/// What is to be asked for; none: it is in force.
fn change(known: &Definitions, definition: ViewDefinition, views_max: u64) -> Result<Option<ViewChange>, String> {
    match known.all().iter().find(|known| known.name == definition.name) {
        None => Ok(Some(ViewChange::Create { definition, views_max })),
        Some(there) if there.kind != ViewKind::Sequence => {
            Err(format!("\"{}\" is a view or a table: rename the rule", there.name))
        }
        Some(there) if there.sql == definition.sql => Ok(None),
        Some(_) => Ok(Some(ViewChange::Replace { definition, views_max })),
    }
}

/// Asks until somebody writes it into the chain.
async fn put(store: &dyn ViewStore, change: ViewChange) -> Result<(), String> {
    loop {
        match store.change(change.clone()).await {
            // Another node may have been faster.
            Ok(changed) => match changed.outcome {
                ViewOutcome::Created(_) | ViewOutcome::Exists(_) => return Ok(()),
                ViewOutcome::TooMany(rules_max) => return Err(format!("there are {rules_max} already: raise `query.views_max`")),
                ViewOutcome::Needed { by, .. } => return Err(format!("view \"{by}\" depends on what it was: drop that first")),
                other => return Err(format!("{other:?}")),
            },
            Err(why) => {
                warn!(error = %why, "a sequence rule of [rules] paths could not be asked for; trying on");
                tokio::time::sleep(AGAIN_AFTER).await;
            }
        }
    }
}

const AGAIN_AFTER: std::time::Duration = std::time::Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Vec<ViewDefinition> {
        rule_definitions(text).unwrap().into_iter().map(|rule| rule.definition).collect()
    }

    #[test]
    fn what_is_in_force_is_not_asked_for_again() {
        let one = "-- Why.\nCREATE RULE a AS SEQUENCE BY host WITH MAXSPAN INTERVAL '1 minute' [kind = 'exec'] AS x [kind = 'exit'] AS y;\n";
        let mut known = Definitions::default();
        let definition = rules(one).pop().unwrap();
        let Ok(Some(create @ ViewChange::Create { .. })) = change(&known, definition.clone(), 10) else {
            panic!("it is not there")
        };
        assert!(matches!(known.change(&create), ViewOutcome::Created(_)));
        assert_eq!(change(&known, definition.clone(), 10), Ok(None));
        let other = rules(&one.replace("1 minute", "2 minutes")).pop().unwrap();
        assert!(matches!(change(&known, other, 10), Ok(Some(ViewChange::Replace { .. }))));
    }

    #[test]
    fn folders_stand_for_their_files_and_names_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let rule = |name: &str| {
            format!(
                "CREATE RULE {name} AS SEQUENCE BY host WITH MAXSPAN INTERVAL '1 minute' [kind = 'exec'] AS x [kind = 'exit'] AS y;"
            )
        };
        std::fs::write(dir.path().join("a.sql"), rule("a") + &rule("b")).unwrap();
        std::fs::write(dir.path().join("c.yml"), "- rule: not read here").unwrap();
        let names = |rules: Vec<ViewDefinition>| rules.into_iter().map(|rule| rule.name).collect::<Vec<_>>();
        assert_eq!(names(read(&[dir.path().to_owned()]).unwrap()), ["a", "b"]);
        std::fs::write(dir.path().join("d.sql"), rule("b")).unwrap();
        assert!(read(&[dir.path().to_owned()]).unwrap_err().to_string().contains("second rule named \"b\""));
        std::fs::write(dir.path().join("d.sql"), "CREATE RULE x AS SEQUENCE BY nothing").unwrap();
        assert!(read(&[dir.path().join("d.sql")]).unwrap_err().to_string().contains("d.sql"));
    }

    #[test]
    fn files_of_eql_are_rules_and_what_is_refused_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("b.eql", "process where event.action == \"exec\" and process.hash.md5 == \"x\"");
        write("c.toml", "[rule]\nname = \"A name\"\ntype = \"eql\"\nquery = 'file where event.type == \"deletion\"'\n");
        write("d.eql", "sample by host.id [any where true] [any where true]");
        let checked = check(&[dir.path().to_owned()]).unwrap();
        let shown: Vec<String> = checked
            .into_iter()
            .map(|file| {
                file.map(|rules| format!("{} {:?}", rules[0].definition.name, rules[0].partly))
                    .unwrap_or_else(|why| why.to_string())
            })
            .collect();
        assert_eq!(shown[..2], ["b [\"field process.hash.md5 is not supplied\"]", "a_name []"]);
        assert!(shown[2].contains("d.eql: line 1 of the query: sample is not supported: write a sequence"), "{}", shown[2]);
        let names: Vec<String> = read(&[dir.path().to_owned()]).unwrap().into_iter().map(|rule| rule.name).collect();
        assert_eq!(names, ["b", "a_name"]);
    }
}
