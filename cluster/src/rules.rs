//! The rule files of the cluster: brought by nodes' configs and by people, ordered by the chain, compiled anew by every worker.
//!
//! ```text
//! wanted/rules/<id>   version u8 | postcard of RulesRequest; the holder chains it and removes it
//! ```
//!
//! Files are checked together with those in force before they are asked for: what is wrong is refused and changes nothing. What became of a
//! request follows from the records before it. A node whose config names rule files asks for them when they are others than it last asked
//! for; with the same ones, or with none, it leaves the rules as they are.

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tracing::{error, info, warn};
use weir_archive::Store;
use weir_config::{NodeConfig, RuleMatching as ConfigMatching};
use weir_dataflow::{
    Command as EngineCommand, RULE_BYTES_MAX, RuleFile, RuleMatching, RuleOrigin, Rulebook, Rules, RulesChange, RulesOutcome,
};

use crate::chain::{ChainRecord, ChainState};
use crate::error::Error;
use crate::forget;
use crate::log::{self, LogError, Pace, Reader, nonce};
use crate::node::cluster_store;
use crate::requests;

/// A change of the rules that somebody asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RulesRequest {
    /// Random: tells it from every other.
    pub id: u128,
    /// What shall change.
    pub change: RulesChange,
}

/// The rule files as of a place in the chain, and what became of the last requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainedRules {
    book: Rulebook,
    outcomes: VecDeque<(u128, u64, RulesOutcome)>,
}

impl ChainedRules {
    /// The files that are in force.
    pub fn book(&self) -> &Rulebook {
        &self.book
    }

    /// Takes up the next request of the chain.
    pub(crate) fn apply(&mut self, tick: u64, request: &RulesRequest) {
        if self.outcome(request.id).is_some() {
            return;
        }
        let outcome = self.book.change(&request.change);
        self.outcomes.push_back((request.id, tick, outcome));
        while self.outcomes.len() > OUTCOMES_MAX {
            self.outcomes.pop_front();
        }
    }

    /// What became of a request, and at which tick; none: the chain does not know it.
    pub fn outcome(&self, id: u128) -> Option<(u64, &RulesOutcome)> {
        self.outcomes.iter().rev().find(|(known, ..)| *known == id).map(|(_, tick, outcome)| (*tick, outcome))
    }

    /// What the workers do for a request of this tick's record, once it was applied.
    pub(crate) fn engine(&self, tick: u64, id: u128) -> Option<EngineCommand> {
        let (at, outcome) = self.outcome(id)?;
        (at == tick && *outcome == RulesOutcome::Changed).then(|| EngineCommand::SetRules(self.book.rules().clone()))
    }

    /// What workers begin with that begin here; none: nobody has ever asked for rules.
    pub(crate) fn in_force(&self) -> Option<Rules> {
        (*self != Self::default()).then(|| self.book.rules().clone())
    }
}

/// What is asked for and not yet removed.
pub(crate) async fn requests(store: &Store) -> Result<Vec<RulesRequest>, Error> {
    requests::read(store, WANTED, VERSION, REQUESTS_PER_LOOK).await
}

/// Removes a request that the chain has.
pub(crate) async fn settle(store: &Store, id: u128) -> Result<(), Error> {
    requests::settle(store, WANTED, id).await
}

/// What was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RulesChanged {
    /// The tick from which it counts.
    pub tick: u64,
    /// False: the same rules were in force already.
    pub is_new: bool,
    /// Rules there are now, and how many of them lack a field or event that is not collected.
    pub rules: (usize, usize),
}

/// The files of paths: a folder stands for its .yaml and .yml files by name.
pub fn read_files(paths: &[PathBuf], origin: RuleOrigin) -> Result<Vec<RuleFile>, Error> {
    let mut files: Vec<RuleFile> = Vec::new();
    let mut bytes = 0;
    for path in paths {
        for file in files_of(path, FILES)? {
            let name = file.file_name().map_or_else(|| file.display().to_string(), |name| name.to_string_lossy().into_owned());
            if files.iter().any(|known| *known.name == *name) {
                let why =
                    format!("two rule files are named {name:?} ({}): files are told apart by name; rename one", file.display());
                return Err(Error::Rules(why));
            }
            let text = std::fs::read_to_string(&file).map_err(Error::file("read rule file", &file))?;
            bytes += text.len();
            if bytes > RULE_BYTES_MAX {
                let why = format!("the rule files have more than {RULE_BYTES_MAX} bytes (at {}): name fewer", file.display());
                return Err(Error::Rules(why));
            }
            files.push(RuleFile { name: name.into(), text: text.into(), origin });
        }
    }
    Ok(files)
}

/// The rule files below a path: itself, or all of a folder and of the folders in it, sorted. Hidden ones are left out, and those that end
/// otherwise: sequence rules stand in files of their own.
pub fn files_of(path: &Path, endings: &[&str]) -> Result<Vec<PathBuf>, Error> {
    let is_of =
        |path: &Path, endings: &[&str]| path.extension().is_some_and(|found| endings.iter().any(|ending| found == *ending));
    if !path.is_dir() {
        let others = is_of(path, SEQUENCES) != (endings == SEQUENCES);
        return Ok(if others { vec![] } else { vec![path.to_owned()] });
    }
    let (mut files, mut todo, mut any) = (Vec::new(), vec![(path.to_owned(), 0)], false);
    while let Some((folder, depth)) = todo.pop() {
        if depth > FOLDER_DEPTH_MAX {
            let why = format!("{} is nested deeper than {FOLDER_DEPTH_MAX} folders: name a folder below it", path.display());
            return Err(Error::Rules(why));
        }
        for entry in std::fs::read_dir(&folder).map_err(Error::file("list rule folder", &folder))? {
            let entry = entry.map_err(Error::file("list rule folder", &folder))?;
            // A mounted ConfigMap keeps its files a second time in a hidden folder.
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let file = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                todo.push((file, depth + 1));
                continue;
            }
            any |= is_of(&file, FILES) || is_of(&file, SEQUENCES);
            if is_of(&file, endings) {
                files.push(file);
            }
        }
    }
    files.sort();
    if !any {
        let why =
            format!("{} has no .yaml, .yml, .sql, .eql or .toml file: name a rule file, or a folder of them", path.display());
        return Err(Error::Rules(why));
    }
    Ok(files)
}

/// How files of rules over single events end.
pub const FILES: &[&str] = &["yaml", "yml"];
/// How files of sequence rules end.
pub const SEQUENCES: &[&str] = &["sql", "eql", "toml"];
/// Folders in folders; deeper is a mistake, or a loop.
const FOLDER_DEPTH_MAX: usize = 16;

/// Asks for a change and waits until it is in the chain. Blocks, but not in async code; files that are wrong are refused and nothing is changed.
pub fn change(config: &NodeConfig, runtime: &Handle, change: RulesChange) -> Result<RulesChanged, Error> {
    ask(&mut ChainView::open(config, runtime)?, change, || false)
}

/// The files that are in force.
pub fn in_force(config: &NodeConfig, runtime: &Handle) -> Result<Rulebook, Error> {
    Ok(ChainView::open(config, runtime)?.catch_up()?.rules.book().clone())
}

/// The files as they would be after a change, which nobody is asked for; an error says why it would be refused.
pub fn after(before: &Rulebook, change: &RulesChange) -> Result<Rulebook, Error> {
    let mut next = before.clone();
    match next.change(change) {
        RulesOutcome::Changed => compile(next.rules(), before.rules(), change).map(|_| next),
        RulesOutcome::Unchanged => Ok(next),
        refused => Err(Error::Rules(told(&refused))),
    }
}

fn ask(view: &mut ChainView, change: RulesChange, stop: impl Fn() -> bool) -> Result<RulesChanged, Error> {
    let state = view.catch_up()?;
    let before = state.rules.book();
    let mut next = before.clone();
    let outcome = next.change(&change);
    let rules = match &outcome {
        RulesOutcome::Changed => compile(next.rules(), before.rules(), &change)?,
        RulesOutcome::Unchanged => counts(next.rules()),
        refused => return Err(Error::Rules(told(refused))),
    };
    if next == *before {
        return Ok(RulesChanged { tick: state.tick, is_new: false, rules });
    }
    let request = RulesRequest { id: nonce(), change };
    let bytes = postcard::to_extend(&request, vec![VERSION]).expect("names and text always serialise");
    view.runtime.block_on(view.store.write(&requests::place(WANTED, request.id), bytes))?;
    let since = Instant::now();
    loop {
        if let Some((tick, outcome)) = view.catch_up()?.rules.outcome(request.id) {
            return match outcome {
                RulesOutcome::Changed | RulesOutcome::Unchanged => {
                    Ok(RulesChanged { tick, is_new: *outcome == RulesOutcome::Changed, rules })
                }
                refused => Err(Error::Rules(told(refused))),
            };
        }
        if stop() || since.elapsed() >= CHAINED_WITHIN {
            // Taken back: who was not answered should not find it done much later. It may be on its way into the chain all the same.
            view.runtime.block_on(settle(&view.store, request.id))?;
            return Err(Error::Rules(
                "nobody wrote the change into the chain in time: is a node running? It was taken back".to_owned(),
            ));
        }
        std::thread::sleep(POLL);
    }
}

/// Compiles the files as they would be; an error names file, line and cure. Files that were wrong before and stay as they are hinder nobody.
fn compile(next: &Rules, before: &Rules, change: &RulesChange) -> Result<(usize, usize), Error> {
    let set = next.compile();
    let known: BTreeSet<String> = before.compile().errors.iter().map(ToString::to_string).collect();
    let new: Vec<String> = set.errors.iter().map(ToString::to_string).filter(|error| !known.contains(error)).collect();
    if !new.is_empty() {
        let what =
            if matches!(change, RulesChange::Drop(_)) { "without these files others are wrong" } else { "the rules are wrong" };
        let shown = new.iter().take(ERRORS_SHOWN_MAX).map(|error| format!("\n  {error}")).collect::<String>();
        let more = new.len().saturating_sub(ERRORS_SHOWN_MAX);
        let more = if more == 0 { String::new() } else { format!("\n  and {more} more: see `weir rules check`") };
        return Err(Error::Rules(format!("{what}; nothing is changed:{shown}{more}")));
    }
    Ok(counts(next))
}

fn counts(rules: &Rules) -> (usize, usize) {
    let set = rules.compile();
    let rules = set.rules.iter().map(|rule| rule.is_fully_evaluable());
    let all: Vec<bool> = rules.chain(set.correlations.iter().map(|one| one.is_fully_evaluable())).collect();
    (all.len(), all.iter().filter(|whole| !**whole).count())
}

fn told(outcome: &RulesOutcome) -> String {
    match outcome {
        RulesOutcome::Changed => "the rules are changed".to_owned(),
        RulesOutcome::Unchanged => "the rules are as they were".to_owned(),
        RulesOutcome::Missing(name) => format!("no rule file is named {name:?}: see `weir rules list`; nothing is changed"),
        RulesOutcome::TooMuch { files, bytes } => {
            format!(
                "there would be {files} rule files of {bytes} bytes, more than a cluster takes: drop some; nothing is changed"
            )
        }
    }
}

/// Asks for the rule files of a node's config, if they are others than it last asked for. Runs on a thread of its own, until it is done.
pub(crate) fn configure(config: &NodeConfig, runtime: &Handle, stop: impl Fn() -> bool) {
    if config.rules.paths.is_empty() {
        return;
    }
    let files = match read_files(&config.rules.paths, RuleOrigin::Config) {
        Ok(files) => files,
        Err(wrong) => return error!(error = %wrong, "the rule files of [rules] paths are not taken: the rules stay as they are"),
    };
    if files.is_empty() {
        return;
    }
    let matching = match config.rules.matching {
        ConfigMatching::First => RuleMatching::First,
        ConfigMatching::All => RuleMatching::All,
    };
    let change = RulesChange::Configure { node: config.id.as_str().into(), matching, files };
    while !stop() {
        let asked = ChainView::open(config, runtime).and_then(|mut view| ask(&mut view, change.clone(), &stop));
        match asked {
            Ok(RulesChanged { is_new: true, tick, rules: (rules, partly) }) => {
                return info!(tick, rules, partly, "the rules of [rules] paths are in force");
            }
            Ok(_) => return,
            // The holder makes the chain; it may not have come so far.
            Err(Error::NoChain(_)) => std::thread::sleep(AGAIN_AFTER),
            Err(wrong @ Error::Rules(_)) => {
                return error!(error = %wrong, "the rule files of [rules] paths are not taken: the rules stay as they are");
            }
            Err(failed) => {
                warn!(error = %failed, "the rule files of [rules] paths could not be asked for; trying on");
                std::thread::sleep(AGAIN_AFTER);
            }
        }
    }
}

/// The chain as somebody reads it who takes no part.
struct ChainView {
    chain: Box<dyn Reader>,
    state: ChainState,
    store: Store,
    runtime: Handle,
}

impl ChainView {
    fn open(config: &NodeConfig, runtime: &Handle) -> Result<Self, Error> {
        let logs = log::open(config)?;
        let chain = logs.read_chain(0, Pace::UpToNow).map_err(|_| Error::NoChain(logs.place()))?;
        Ok(Self { chain, state: ChainState::default(), store: cluster_store(config)?, runtime: runtime.clone() })
    }

    /// Reads all that there is.
    fn catch_up(&mut self) -> Result<&ChainState, Error> {
        loop {
            match self.chain.next() {
                Ok(Some((_, bytes))) => self.state.apply(&ChainRecord::decode(&bytes)?)?,
                Ok(None) => return Ok(&self.state),
                Err(LogError::Forgotten { first, .. }) => {
                    let position = self.runtime.block_on(forget::base(&self.store, first))?;
                    self.state = position.state;
                    self.chain.seek(position.record);
                }
                Err(failed) => return Err(Error::log("reading the chain")(failed)),
            }
        }
    }
}

const WANTED: &str = "wanted/rules";
const VERSION: u8 = 1;
/// Requests whose outcome is remembered: many more than are ever under way.
const OUTCOMES_MAX: usize = 64;
/// The rest is found at the next look.
const REQUESTS_PER_LOOK: usize = 16;
/// A new holder is found within seconds.
const CHAINED_WITHIN: Duration = Duration::from_secs(30);
const AGAIN_AFTER: Duration = Duration::from_millis(200);
const POLL: Duration = Duration::from_millis(50);
/// Errors of rule files in one message.
const ERRORS_SHOWN_MAX: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn load(id: u128, name: &str, text: &str) -> RulesRequest {
        let file = RuleFile { name: name.into(), text: text.into(), origin: RuleOrigin::Loaded };
        RulesRequest { id, change: RulesChange::Load(vec![file]) }
    }

    #[test]
    fn a_request_is_done_once() {
        let mut rules = ChainedRules::default();
        assert_eq!(rules.in_force(), None);
        rules.apply(5, &load(1, "a", "[]"));
        rules.apply(6, &load(1, "a", "[]"));
        rules.apply(7, &load(2, "a", "[]"));
        assert_eq!(rules.outcome(1), Some((5, &RulesOutcome::Changed)));
        assert_eq!(rules.outcome(2), Some((7, &RulesOutcome::Unchanged)));
        assert!(matches!(rules.engine(5, 1), Some(EngineCommand::SetRules(rules)) if rules.files.len() == 1));
        assert_eq!((rules.engine(6, 1), rules.engine(7, 2)), (None, None));
        let read_back: ChainedRules = postcard::from_bytes(&postcard::to_stdvec(&rules).unwrap()).unwrap();
        assert_eq!(read_back, rules);
    }

    #[test]
    fn wrong_files_are_refused_with_place_and_cure() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("b.yaml"),
            "- rule: r\n  desc: d\n  condition: evt.type = \n  output: o\n  priority: INFO\n",
        )
        .unwrap();
        std::fs::write(dir.path().join("a.txt"), "no rules").unwrap();
        let files = read_files(&[dir.path().to_owned()], RuleOrigin::Loaded).unwrap();
        assert_eq!(files.len(), 1);
        let (mut book, change) = (Rulebook::default(), RulesChange::Load(files));
        assert_eq!(book.change(&change), RulesOutcome::Changed);
        let told = compile(book.rules(), &Rules::default(), &change).unwrap_err().to_string();
        assert!(told.contains("nothing is changed") && told.contains("b.yaml:3"), "{told}");
        // Who was wrong before hinders nobody.
        assert!(compile(book.rules(), book.rules(), &change).is_ok());
        let twice = [dir.path().join("b.yaml"), dir.path().to_owned()];
        assert!(read_files(&twice, RuleOrigin::Loaded).unwrap_err().to_string().contains("two rule files"));
        assert!(read_files(&[dir.path().join("missing.yaml")], RuleOrigin::Loaded).is_err());
    }
}
