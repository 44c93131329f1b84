//! `weir rules what-if`: which alerts a change of the rules would have opened and silenced, over events that were recorded.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use weir_cluster::rules as chained;
use weir_config::NodeConfig;
use weir_dataflow::{
    ALERT_SUMMARY_BYTES_MAX, RuleMatching, RuleOrigin, Rulebook, Rules, RulesChange, RulesOutcome, alert_subject,
};
use weir_rules::{EventFields, ExceptionRow, Exceptions, Language, Matcher, Matching, Pass, RuleSet};
use weir_schema::{JsonEvent, Kind, Name, parse_line, write_time};

use super::difference::{Change, Difference, Hit, Side};
use super::recorded::{self, Window};
use crate::sql::Table;
use crate::token::CONFIG;
use crate::when::parse_duration;

/// Arguments of `weir rules what-if`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Where to ask for recorded events, in SQL
    #[arg(long, value_name = "URL", default_value = "postgres://weir@127.0.0.1:7432/weir", conflicts_with = "events")]
    url: String,
    /// How far back to look
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_duration, conflicts_with = "events")]
    since: Duration,
    /// A recording in the place of a cluster's record: JSON lines, keys as the columns of `events`
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,
    /// The config of any node of the cluster: its rules in force are what the change is compared with
    #[arg(long, value_name = "FILE", default_value = CONFIG, conflicts_with = "rules")]
    config: PathBuf,
    /// Rule files or folders to compare with, in the place of those in force
    #[arg(long, value_name = "PATH")]
    rules: Vec<PathBuf>,
    /// With --rules: every Falco rule that matches an event, not only the first one in the files' order
    #[arg(long, requires = "rules")]
    all: bool,
    /// Take this rule file out, as `weir rules drop` would; may be given several times
    #[arg(long = "drop", value_name = "NAME")]
    dropped: Vec<String>,
    /// A row of rule_exceptions that is not there yet; several of one rule and name hold together
    #[arg(long, num_args = 5, value_names = ["RULE", "NAME", "FIELD", "COMPARATOR", "VALUE"])]
    except: Vec<String>,
    /// One JSON object for each alert that differs, and no tables
    #[arg(long)]
    json: bool,
    /// Rule files or folders with what is new, as `weir rules load` would take them
    #[arg(value_name = "PATH", required_unless_present_any = ["dropped", "except"])]
    paths: Vec<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let before = if arguments.rules.is_empty() {
        let (config, runtime) = (NodeConfig::load(&arguments.config)?, crate::runtime()?);
        chained::in_force(&config, runtime.handle())?
    } else {
        book(&arguments.rules, arguments.all)?
    };
    let mut after = before.clone();
    if !arguments.dropped.is_empty() {
        let names = arguments.dropped.iter().map(|name| name.as_str().into()).collect();
        after = chained::after(&after, &RulesChange::Drop(names))?;
    }
    if !arguments.paths.is_empty() {
        let files = chained::read_files(&arguments.paths, RuleOrigin::Loaded)?;
        anyhow::ensure!(
            !files.is_empty(),
            "no rule file is named: sequence rules (.sql) cannot be tried out before they are made"
        );
        after = chained::after(&after, &RulesChange::Load(files))?;
    }
    if before.rules().files == after.rules().files && arguments.except.is_empty() {
        eprintln!("the rules would be as they are");
    }
    let there = match (&arguments.events, arguments.rules.is_empty()) {
        (None, true) => crate::runtime()?.block_on(Box::pin(recorded::exceptions(&arguments.url)))?,
        // Without a cluster there is no table.
        _ => Vec::new(),
    };
    let mut judge = Judge::new([before.rules(), after.rules()], [&there, &excepted(&there, &arguments.except)?]);
    judge.check_names(&arguments.except)?;
    match &arguments.events {
        Some(file) => over_file(&mut judge, file)?,
        None => {
            let window = Window { since: arguments.since, kinds: judge.kinds.clone() };
            crate::runtime()?.block_on(Box::pin(recorded::read(&arguments.url, &window, |id, event| judge.take(id, event))))?;
        }
    }
    if arguments.json { judge.print_lines() } else { judge.print_tables() }
}

/// The rows that are there, and those of --except, five words each.
fn excepted(there: &[ExceptionRow], words: &[String]) -> anyhow::Result<Vec<ExceptionRow>> {
    let mut rows = there.to_vec();
    for row in words.chunks_exact(5) {
        let [rule, name, field, comparator, value] = [0, 1, 2, 3, 4].map(|word| row[word].clone());
        let row = ExceptionRow { rule, name, field, comparator, value };
        row.check().map_err(|wrong| anyhow::anyhow!("--except: {wrong}; {}", wrong.cure))?;
        rows.push(row);
    }
    Ok(rows)
}

/// Files as a node's config would bring them.
fn book(paths: &[PathBuf], all: bool) -> anyhow::Result<Rulebook> {
    let matching = if all { RuleMatching::All } else { RuleMatching::First };
    let files = chained::read_files(paths, RuleOrigin::Config)?;
    let mut book = Rulebook::default();
    match book.change(&RulesChange::Configure { node: "what-if".into(), matching, files }) {
        RulesOutcome::TooMuch { files, bytes } => {
            anyhow::bail!("--rules: {files} rule files of {bytes} bytes are more than a cluster takes: name fewer")
        }
        _ => Ok(book),
    }
}

fn over_file(judge: &mut Judge, path: &Path) -> anyhow::Result<()> {
    let file = File::open(path).with_context(|| format!("could not open {}", path.display()))?;
    for (at, line) in BufReader::new(file).lines().enumerate() {
        let line = line.with_context(|| format!("reading {}", path.display()))?;
        if line.trim().is_empty() {
            continue;
        }
        match parse_line(&line) {
            Ok(event) => judge.take(&(at + 1).to_string(), &event)?,
            Err(why) => eprintln!("{}:{}: skipped: {why}", path.display(), at + 1),
        }
    }
    Ok(())
}

/// The rules of one side.
struct Rulers {
    set: Arc<RuleSet>,
    matching: Matching,
    matcher: Matcher,
    exceptions: Exceptions,
    excepting: Matcher,
}

impl Rulers {
    /// The rules that have an event: one of Falco's at most, where that is asked for.
    fn judge(&mut self, source: &EventFields<'_>, hits: &mut Vec<usize>) {
        hits.clear();
        self.matcher.matches(&self.set, source, Matching::All, hits);
        let mut is_taken = false;
        hits.retain(|place| {
            let rule = &self.set.rules[*place];
            let one_only = self.matching == Matching::First && rule.language == Language::Falco;
            let is_late = one_only && is_taken;
            let has = !is_late && !self.exceptions.silence(rule, source, &mut self.excepting);
            is_taken |= has && one_only;
            has
        });
    }
}

/// Both sets of rules, and what they say of the events so far.
struct Judge {
    sides: [Rulers; 2],
    /// Events of other kinds no rule of either side can match.
    kinds: Vec<Kind>,
    difference: Difference,
    events: u64,
    hits: Vec<usize>,
}

impl Judge {
    fn new(rules: [&Rules; 2], rows: [&[ExceptionRow]; 2]) -> Self {
        let mut rows = rows.into_iter();
        let sides = rules.map(|rules| {
            let exceptions = Exceptions::compile(rows.next().unwrap_or_default());
            exceptions.refused.iter().for_each(|error| eprintln!("left out: {error}"));
            let set = Arc::new(rules.compile());
            for error in &set.errors {
                eprintln!("left out: {error}");
            }
            let [matcher, excepting] = Default::default();
            Rulers { set, matching: rules.matching.into(), matcher, exceptions, excepting }
        });
        let passes = sides.each_ref().map(|side| Pass::new(Arc::clone(&side.set), side.matching));
        let asked = |kind: &Kind| *kind != Kind::Sample && passes.iter().any(|pass| pass.rules_of(*kind) > 0);
        let kinds = Kind::ALL.iter().copied().filter(asked).collect();
        Self { sides, kinds, difference: Difference::default(), events: 0, hits: Vec::new() }
    }

    /// A row whose rule nobody knows is a mistake here: nobody waits for its file.
    fn check_names(&self, words: &[String]) -> anyhow::Result<()> {
        let rules = &self.sides[1].set.rules;
        let is_known = |name: &String| rules.iter().any(|rule| rule.name == *name || rule.id.as_ref() == Some(name));
        match words.iter().step_by(5).find(|name| !is_known(name)) {
            Some(name) => anyhow::bail!("--except: no rule is named {name:?}: see `weir rules check`"),
            None => Ok(()),
        }
    }

    fn take(&mut self, id: &str, told: &JsonEvent) -> anyhow::Result<()> {
        self.events += 1;
        let (host, event) = (&*told.host.host, &told.event);
        if !self.kinds.contains(&event.kind) {
            return Ok(());
        }
        let source = EventFields::new(event, host);
        let tenant = told.tenant.as_ref().map_or("default", Name::as_str);
        let subject = alert_subject(tenant, host, &told.host.boot_id, event);
        for (side, rulers) in [Side::Before, Side::After].into_iter().zip(&mut self.sides) {
            rulers.judge(&source, &mut self.hits);
            for place in &self.hits {
                let rule = &rulers.set.rules[*place];
                let hit = Hit { rule, subject, host, time: event.time, event: id };
                self.difference.take(side, hit, || summary(rule.output.render(&source)))?;
            }
        }
        Ok(())
    }

    fn print_lines(&self) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        let differing = self.difference.differing();
        for told in &differing {
            let line = serde_json::json!({
                "change": told.change.as_str(),
                "time": text_of(told.alert.first),
                "last": text_of(told.last),
                "rule": told.rule.name,
                "rule_id": told.rule.id,
                "priority": told.rule.priority,
                "tags": told.rule.tags,
                "host": told.alert.host,
                "event": told.alert.event,
                "events_before": told.events[0],
                "events_after": told.events[1],
                "output": told.alert.output,
            });
            writeln!(out, "{line}")?;
        }
        out.flush()?;
        self.sum_up(&differing.iter().map(|told| told.change).collect::<Vec<_>>());
        Ok(())
    }

    fn print_tables(&self) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        let counts = self.difference.counts().into_iter().map(|counts| {
            let numbers = [counts.before, counts.after, counts.opened, counts.silenced, counts.changed];
            let numbers = numbers.map(|number| number.to_string());
            [counts.rule, counts.priority].into_iter().chain(numbers).map(Some).collect()
        });
        let columns = ["rule", "priority", "before", "after", "opened", "silenced", "changed"].map(str::to_owned).to_vec();
        let counts = Table { columns, rows: counts.collect() };
        out.write_all(counts.aligned().as_bytes())?;
        let differing = self.difference.differing();
        let rows = differing.iter().map(|told| {
            let events = match (told.change, told.events) {
                (Change::Opened, [_, after]) => after.to_string(),
                (Change::Silenced, [before, _]) => before.to_string(),
                (Change::Changed, [before, after]) => format!("{before} → {after}"),
            };
            // What was recorded says nothing to the terminal.
            let output: String = told.alert.output.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            let (change, time) = (told.change.as_str().to_owned(), text_of(told.alert.first));
            [change, time, told.alert.host.clone(), told.rule.name.clone(), events, output].map(Some).to_vec()
        });
        let columns = ["alert", "time", "host", "rule", "events", "output"].map(str::to_owned).to_vec();
        let alerts = Table { columns, rows: rows.collect() };
        if !alerts.rows.is_empty() {
            write!(out, "\n{}", alerts.aligned())?;
        }
        out.flush()?;
        self.sum_up(&differing.iter().map(|told| told.change).collect::<Vec<_>>());
        Ok(())
    }

    fn sum_up(&self, changes: &[Change]) {
        let of = |wanted: Change| changes.iter().filter(|change| **change == wanted).count();
        let [opened, silenced, changed] = [Change::Opened, Change::Silenced, Change::Changed].map(of);
        eprintln!("{} events: {opened} alerts would open, {silenced} fall silent, {changed} change", self.events);
    }
}

/// A rule's output, as long as the cluster keeps it.
fn summary(mut output: String) -> String {
    if output.len() > ALERT_SUMMARY_BYTES_MAX {
        output.truncate(output.floor_char_boundary(ALERT_SUMMARY_BYTES_MAX));
    }
    output
}

fn text_of(time: i64) -> String {
    let mut text = String::new();
    write_time(&mut text, time);
    text
}
