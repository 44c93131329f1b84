//! `weir rules`: what a rule file means to Weir, and what its rules find in a recording. Works without a cluster.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use weir_rules::{EventFields, Matcher, Matching, RuleSet};
use weir_schema::{parse_line, write_time};

/// Arguments of `weir rules`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Load Falco rule files and say of each rule whether it can be evaluated
    #[command(
        after_help = "Example:\n  weir rules check /etc/falco/falco_rules.yaml /etc/falco/rules.d\n\nOne line a rule: `ok`, `partly: ` with what is not collected (comparisons with it are false), or\n`refused: ` with place, reason and cure. Exit code 1 if any is refused. A folder stands for its .yaml and\n.yml files by name; later files may append to and override earlier ones."
    )]
    Check {
        /// Rule files or folders, in the order in which they are to be loaded
        #[arg(value_name = "PATH", required = true)]
        paths: Vec<PathBuf>,
    },
    /// Run rules over a recording: one JSON alert a line
    #[command(
        after_help = "Example:\n  weir rules run --events recording.jsonl falco_rules.yaml\n\nLines that are not events are reported by number and skipped. Refused rules are reported and left out."
    )]
    Run {
        /// The recording: JSON lines, keys as the columns of `events`
        #[arg(long, value_name = "FILE")]
        events: PathBuf,
        /// Every rule that matches an event, not only the first one in the files' order
        #[arg(long)]
        all: bool,
        /// Rule files or folders, in the order in which they are to be loaded
        #[arg(value_name = "PATH", required = true)]
        paths: Vec<PathBuf>,
    },
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.command {
        Command::Check { paths } => check(&load(&paths)?),
        Command::Run { events, all, paths } => {
            let matching = if all { Matching::All } else { Matching::First };
            over_recording(&load(&paths)?, &events, matching)
        }
    }
}

fn load(paths: &[PathBuf]) -> anyhow::Result<RuleSet> {
    let mut files = Vec::new();
    for path in paths {
        for file in files_of(path)? {
            let text = std::fs::read_to_string(&file).with_context(|| format!("could not read {}", file.display()))?;
            files.push((file.display().to_string(), text));
        }
    }
    Ok(RuleSet::load(files.iter().map(|(name, text)| (name.as_str(), text.as_str()))))
}

/// The file itself, or a folder's rule files by name.
fn files_of(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).with_context(|| format!("could not list {}", path.display()))?;
    let mut files: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    files.retain(|file| file.extension().is_some_and(|ending| ending == "yaml" || ending == "yml"));
    files.sort();
    anyhow::ensure!(!files.is_empty(), "{} has no .yaml or .yml file: name a rule file, or a folder of them", path.display());
    Ok(files)
}

fn check(set: &RuleSet) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for rule in &set.rules {
        writeln!(out, "{}: {}", rule.name, rule.verdict())?;
    }
    for notice in &set.notices {
        writeln!(out, "{}: note: {} ({})", notice.rule, notice.what, notice.place)?;
    }
    for error in &set.errors {
        writeln!(out, "refused: {error}")?;
    }
    let whole = set.rules.iter().filter(|rule| rule.is_fully_evaluable()).count();
    let (partly, refused) = (set.rules.len() - whole, set.errors.len());
    writeln!(out, "{} rules: {whole} ok, {partly} partly; {refused} refused", set.rules.len() + refused)?;
    anyhow::ensure!(refused == 0, "{refused} items of the rule files were refused");
    Ok(())
}

fn over_recording(set: &RuleSet, events: &Path, matching: Matching) -> anyhow::Result<()> {
    for error in &set.errors {
        eprintln!("refused: {error}");
    }
    let file = File::open(events).with_context(|| format!("could not open {}", events.display()))?;
    let mut out = std::io::stdout().lock();
    let (mut matcher, mut hits, mut alerts, mut skipped) = (Matcher::default(), Vec::new(), 0_u64, 0_u64);
    for (at, line) in BufReader::new(file).lines().enumerate() {
        let line = line.with_context(|| format!("reading {}", events.display()))?;
        if line.trim().is_empty() {
            continue;
        }
        let event = match parse_line(&line) {
            Ok(event) => event,
            Err(why) => {
                eprintln!("{}:{}: skipped: {why}", events.display(), at + 1);
                skipped += 1;
                continue;
            }
        };
        let host = event.host.host.clone();
        let source = EventFields::new(&event.event, &host);
        hits.clear();
        matcher.matches(set, &source, matching, &mut hits);
        for hit in &hits {
            let rule = &set.rules[*hit];
            let mut time = String::new();
            write_time(&mut time, event.event.time);
            let alert = serde_json::json!({
                "time": time,
                "rule": rule.name,
                "priority": rule.priority.to_string(),
                "tags": rule.tags,
                "host": &*host,
                "line": at + 1,
                "output": rule.output.render(&source),
            });
            writeln!(out, "{alert}")?;
            alerts += 1;
        }
    }
    eprintln!("{alerts} alerts, {skipped} lines skipped");
    Ok(())
}
