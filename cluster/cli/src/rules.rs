//! `weir rules`: what a rule file means to Weir, what its rules find in a recording, which rules a cluster runs, and what others would do.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use weir_cluster::rules as chained;
use weir_config::NodeConfig;
use weir_dataflow::{RuleOrigin, RulesChange};
use weir_rules::{AttackTable, Coverage, Matching, Pipeline, RuleSet, techniques_of};

use crate::token::CONFIG;

mod blinded;
mod difference;
mod over_file;
mod recorded;
mod sequences;
mod what_if;

/// Arguments of `weir rules`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Load Falco and Sigma rule files and say of each rule whether it can be evaluated
    #[command(
        after_help = "Example:\n  weir rules check /etc/falco/falco_rules.yaml sigma/rules/linux config/rules\n\nOne line a rule: `ok`, `partly: ` with what is not collected (comparisons with it are false), or\n`refused: ` with place, reason and cure. Exit code 1 if any is refused. A folder stands for its .yaml and\n.yml files and those of its folders, by name, hidden ones left out; later Falco files may append to and override earlier ones.\nSigma and Falco files may stand side by side, and sequence rules: .sql files of CREATE RULE, .eql files of one query of EQL, and\n.toml files as Elastic has them. Sigma correlations are told of behind the rules; filters are refused by name.\nWith --agent FILE, `blind: ` lines name the rules none or only some of whose kinds of events an agent of that config sends."
    )]
    Check {
        #[command(flatten)]
        pipeline: PipelineFiles,
        /// An agent's config: rules that need what it does not send are named
        #[arg(long, value_name = "FILE")]
        agent: Option<PathBuf>,
        /// Rule files or folders, in the order in which they are to be loaded
        #[arg(value_name = "PATH", required = true)]
        paths: Vec<PathBuf>,
    },
    /// Run rules over a recording: one JSON alert a line
    #[command(
        after_help = "Example:\n  weir rules run --events recording.jsonl falco_rules.yaml\n\nLines that are not events are reported by number and skipped. Refused rules are reported and left out.\nOf the Falco rules only the first that matches an event alerts, unless --all is given; Sigma rules all do.\nMatches of Sigma correlations follow behind, with the lines of their events: rules that they only count do not alert."
    )]
    Run {
        #[command(flatten)]
        pipeline: PipelineFiles,
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
    /// Techniques of ATT&CK that rules claim: a table, and a layer for ATT&CK Navigator
    #[command(
        after_help = "Example:\n  weir rules coverage config/rules --stock /etc/falco/falco_rules.yaml --layer weir.json\n\nA rule claims a technique by its tags (attack.t1059.004, T1059). The table of techniques is attack.csv\nbeside the rules, or --attack; it names the version of ATT&CK."
    )]
    Coverage {
        #[command(flatten)]
        pipeline: PipelineFiles,
        /// Rules of others, counted in a column of their own
        #[arg(long, value_name = "PATH")]
        stock: Vec<PathBuf>,
        /// Techniques as CSV: technique, name, tactics, platforms
        #[arg(long, value_name = "FILE")]
        attack: Option<PathBuf>,
        /// Writes a layer (format 4.5) to this file
        #[arg(long, value_name = "FILE")]
        layer: Option<PathBuf>,
        /// Rule files or folders
        #[arg(value_name = "PATH", default_value = "config/rules")]
        paths: Vec<PathBuf>,
    },
    /// What a change of the rules would have done to the alerts of the last hour, or of a recording
    #[command(
        name = "what-if",
        after_help = "Examples:\n  weir rules what-if --config config/examples/node.toml --since 24h my_exceptions.yaml\n  weir rules what-if --events recording.jsonl --rules /etc/falco/rules.d my_exceptions.yaml\n  weir rules what-if --except 'Shell in a container' shop container.image.repository startswith reg/shop\n\nThe files are taken as `weir rules load` would take them, over the rules in force or those of --rules, and refused for the same reasons.\nBoth sets of rules judge the same events; hits are grouped into alerts as the cluster does. An alert opens if only the changed rules have it,\nfalls silent if only the others have it, and changes if it has other events. Nothing is changed in the cluster.\nThe exceptions of the table rule_exceptions count on both sides, those of --except on one. With --rules or --events there are no others.\nIn the cluster a rule that says something else begins anew: its alerts are withdrawn, and events of the past are not judged again.\nLate and imported events, correlations and sequence rules (CREATE RULE) are left out."
    )]
    WhatIf(what_if::Arguments),
    /// Put rule files into force in a running cluster
    #[command(
        after_help = "Example:\n  weir rules load --config config/examples/node.toml /etc/falco/rules.d\n\nA file takes the place of one of the same name, else it comes behind those that are there. Files that are wrong, alone or with those in\nforce, are refused with place and cure, and nothing is changed. Alerts of rules that say something else now are withdrawn.\nSequence rules (.sql, .eql, .toml) become rules of SQL: SHOW RULES lists them, DROP RULE takes them out of force."
    )]
    Load {
        /// The config of any node of the cluster
        #[arg(long, value_name = "FILE", default_value = CONFIG)]
        config: PathBuf,
        /// Where a node answers SQL: sequence rules are put in force there. Default: `listen.sql` of the config
        #[arg(long, value_name = "URL")]
        url: Option<String>,
        /// Rule files or folders, in the order in which they are to be loaded
        #[arg(value_name = "PATH", required = true)]
        paths: Vec<PathBuf>,
    },
    /// List the rule files that are in force, in their order
    #[command(after_help = "Example:\n  weir rules list --config config/examples/node.toml")]
    List {
        /// The config of any node of the cluster
        #[arg(long, value_name = "FILE", default_value = CONFIG)]
        config: PathBuf,
    },
    /// Take rule files out of force
    #[command(
        after_help = "Example:\n  weir rules drop --config config/examples/node.toml my_rules.yaml\n\nAlerts of rules that are gone are withdrawn. A file of a node's [rules] paths comes back when that node's files change."
    )]
    Drop {
        /// The config of any node of the cluster
        #[arg(long, value_name = "FILE", default_value = CONFIG)]
        config: PathBuf,
        /// Names as `weir rules list` shows them
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
    },
}

/// What names of Sigma rules mean here.
#[derive(Debug, clap::Args)]
struct PipelineFiles {
    /// Pipelines for Sigma rules: fields, log sources and placeholders as YAML, later ones before earlier ones
    #[arg(long = "pipeline", value_name = "FILE")]
    files: Vec<PathBuf>,
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.command {
        Command::Check { pipeline, agent, paths } => {
            let set = Arc::new(load(&paths, &pipeline)?);
            if let Some(config) = &agent {
                blinded::tell(&set, config)?;
            }
            check(&set, &paths)
        }
        Command::Run { pipeline, events, all, paths } => {
            let matching = if all { Matching::All } else { Matching::First };
            if paths.iter().any(|path| chained::files_of(path, chained::SEQUENCES).is_ok_and(|files| !files.is_empty())) {
                eprintln!("sequence rules (.sql, .eql, .toml) are left out: they run in a cluster only");
            }
            over_file::run(&load(&paths, &pipeline)?, &events, matching)
        }
        Command::Coverage { pipeline, stock, attack, layer, paths } => {
            let table = attack_table(attack.as_deref(), &paths)?;
            let (own, stock) = (load(&paths, &pipeline)?, load(&stock, &pipeline)?);
            coverage(&own, &stock, &table, layer.as_deref())
        }
        Command::WhatIf(arguments) => what_if::run(&arguments),
        Command::Load { config, url, paths } => load_into(&config, url.as_deref(), &paths),
        Command::Drop { config, names } => {
            change(&config, RulesChange::Drop(names.iter().map(|name| name.as_str().into()).collect()))
        }
        Command::List { config } => list(&config),
    }
}

/// Puts files of all kinds into force; all are read before the first is.
fn load_into(config: &Path, url: Option<&str>, paths: &[PathBuf]) -> anyhow::Result<()> {
    let sequences = sequences::read(paths)?;
    let files = chained::read_files(paths, RuleOrigin::Loaded)?;
    if !files.is_empty() || sequences.is_empty() {
        change(config, RulesChange::Load(files))?;
    }
    if sequences.is_empty() { Ok(()) } else { sequences::load(config, url, &sequences) }
}

fn change(config: &Path, change: RulesChange) -> anyhow::Result<()> {
    let (config, runtime) = (NodeConfig::load(config)?, crate::runtime()?);
    let chained::RulesChanged { tick, is_new, rules: (rules, partly) } = chained::change(&config, runtime.handle(), change)?;
    let since = if is_new { format!("from tick {tick} on") } else { "as before".to_owned() };
    eprintln!("{rules} rules are in force {since}, {partly} of them partly: see `weir rules check`");
    Ok(())
}

fn list(config: &Path) -> anyhow::Result<()> {
    let (config, runtime) = (NodeConfig::load(config)?, crate::runtime()?);
    let book = chained::in_force(&config, runtime.handle())?;
    let mut out = std::io::stdout().lock();
    for file in &book.rules().files {
        let set = RuleSet::load([(&*file.name, &*file.text)]);
        let origin = if file.origin == RuleOrigin::Config { "config" } else { "loaded" };
        writeln!(
            out,
            "{:<40} {origin:<7} {} bytes, {} rules by itself",
            file.name,
            file.text.len(),
            set.rules.len() + set.correlations.len()
        )?;
    }
    Ok(())
}

fn load(paths: &[PathBuf], pipelines: &PipelineFiles) -> anyhow::Result<RuleSet> {
    let read = |file: &Path| std::fs::read_to_string(file).with_context(|| format!("could not read {}", file.display()));
    let mut pipeline = Pipeline::default();
    for file in &pipelines.files {
        pipeline.read(&file.display().to_string(), &read(file)?)?;
    }
    let mut files = Vec::new();
    for path in paths {
        for file in chained::files_of(path, chained::FILES)? {
            let text = read(&file)?;
            files.push((file.display().to_string(), text));
        }
    }
    Ok(RuleSet::load_with(files.iter().map(|(name, text)| (name.as_str(), text.as_str())), &pipeline))
}

/// The table that was named, else the one beside the rules.
fn attack_table(named: Option<&Path>, paths: &[PathBuf]) -> anyhow::Result<AttackTable> {
    let beside = || paths.iter().map(|path| path.join("attack.csv")).find(|file| file.is_file());
    let file = named.map(Path::to_owned).or_else(beside);
    let file = file.context("no attack.csv beside the rules: name the table of techniques with --attack FILE")?;
    let text = std::fs::read_to_string(&file).with_context(|| format!("could not read {}", file.display()))?;
    AttackTable::parse(&text).map_err(|why| anyhow::anyhow!("{}: {why}", file.display()))
}

/// Tells of every rule whether it can be evaluated, of sequence rules first.
fn check(set: &RuleSet, paths: &[PathBuf]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let (mut sequences, mut lacking, mut wrong) = (0, 0, 0);
    for rules in weir_cluster::sequences::check(paths)? {
        match rules {
            Ok(rules) => {
                for rule in rules {
                    sequences += 1;
                    lacking += usize::from(!rule.partly.is_empty());
                    let verdict =
                        if rule.partly.is_empty() { "ok".to_owned() } else { format!("partly: {}", rule.partly.join("; ")) };
                    writeln!(out, "{}: {verdict}", rule.definition.name)?;
                }
            }
            Err(why) => {
                wrong += 1;
                writeln!(out, "refused: {why}")?;
            }
        }
    }
    for rule in &set.rules {
        writeln!(out, "{}: {}", rule.name, rule.verdict())?;
    }
    for correlation in &set.correlations {
        writeln!(out, "{}: {}", correlation.name, correlation.verdict())?;
    }
    for notice in &set.notices {
        writeln!(out, "{}: note: {} ({})", notice.rule, notice.what, notice.place)?;
    }
    for error in &set.errors {
        writeln!(out, "refused: {error}")?;
    }
    let rules = set.rules.iter().map(weir_rules::Rule::is_fully_evaluable);
    let told: Vec<bool> = rules.chain(set.correlations.iter().map(weir_rules::Correlation::is_fully_evaluable)).collect();
    let whole = told.iter().filter(|whole| **whole).count();
    let (partly, refused) = (told.len() - whole + lacking, set.errors.len() + wrong);
    let (all, whole) = (told.len() + sequences + refused, whole + sequences - lacking);
    writeln!(out, "{all} rules: {whole} ok, {partly} partly; {refused} refused")?;
    anyhow::ensure!(refused == 0, "{refused} items of the rule files were refused");
    Ok(())
}

fn coverage(own: &RuleSet, stock: &RuleSet, table: &AttackTable, layer: Option<&Path>) -> anyhow::Result<()> {
    for error in own.errors.iter().chain(&stock.errors) {
        eprintln!("refused: {error}");
    }
    let coverage = Coverage::new(own, stock);
    let mut out = std::io::stdout().lock();
    writeln!(out, "{:<10} {:>5} {:>5}  {:<44} {:<40} by", "technique", "rules", "stock", "name", "tactics")?;
    for [id, name, rules, others, tactics, by] in coverage.lines(table) {
        writeln!(out, "{id:<10} {rules:>5} {others:>5}  {name:<44} {tactics:<40} {by}")?;
    }
    let claimed = coverage.claims.values().filter(|(own, _)| !own.is_empty()).count();
    let also = coverage.claims.values().filter(|(own, stock)| !own.is_empty() && !stock.is_empty()).count();
    let rules = own.rules.iter().filter(|rule| rule.enabled && rule.alerts).map(|rule| &rule.tags);
    let all = rules.chain(own.correlations.iter().filter(|one| one.enabled && one.alerts).map(|one| &one.tags));
    let tagged = all.filter(|tags| !techniques_of(tags).is_empty()).count();
    writeln!(
        out,
        "{tagged} rules claim {claimed} techniques of ATT&CK v{}; the stock rules claim {also} of them, too",
        table.version()
    )?;
    if let Some(file) = layer {
        let text = serde_json::to_string_pretty(&coverage.layer(table))?;
        std::fs::write(file, text + "\n").with_context(|| format!("could not write {}", file.display()))?;
        eprintln!("wrote {}", file.display());
    }
    Ok(())
}
