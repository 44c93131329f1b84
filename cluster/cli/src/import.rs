//! `weir import`: what other collectors recorded, as events in JSON lines.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read as _, Write};
use std::path::PathBuf;

use anyhow::Context as _;
use weir_edge::import::{Format, IMPORT_LINE_BYTES_MAX, Importer};
use weir_schema::write_line;

/// Arguments of `weir import`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  weir import --from auditd --out events.jsonl /var/log/audit/audit.log\n  weir import --from zeek conn.log dns.log | weir rules run --events /dev/stdin rules.yaml\n\nThe lines are read by `weir rules run`, `weir archive import` and `weir-loadtest replay`. A line that cannot be\nread is reported with its number and left out; what tells nothing that an event could hold is passed over. Both are\ncounted at the end. Compressed logs: zcat conn.log.gz | weir import --from zeek -"
)]
pub(crate) struct Arguments {
    /// Whose recording it is: falco, sysmon, auditd or zeek
    #[arg(long, value_name = "FORMAT")]
    from: Format,
    /// Where the events go; - is standard output
    #[arg(long, value_name = "FILE", default_value = "-")]
    out: PathBuf,
    /// Name of the host where the recording has none
    #[arg(long, value_name = "NAME", default_value = "unnamed")]
    host: String,
    /// The recordings, in order; - is standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut out: Box<dyn Write> = if arguments.out.as_os_str() == "-" {
        Box::new(BufWriter::new(std::io::stdout().lock()))
    } else {
        let made = File::create(&arguments.out).with_context(|| format!("could not write {}", arguments.out.display()))?;
        Box::new(BufWriter::new(made))
    };
    let mut importer = Importer::new(arguments.from, &arguments.host);
    let (mut events, mut bad) = (0_u64, 0_u64);
    for file in &arguments.files {
        let name = file.display();
        let mut input: Box<dyn BufRead> = if file.as_os_str() == "-" {
            Box::new(BufReader::new(std::io::stdin().lock()))
        } else {
            Box::new(BufReader::new(File::open(file).with_context(|| format!("could not open {name}"))?))
        };
        let (mut line, mut found, mut text, mut number) = (Vec::new(), Vec::new(), String::new(), 0_u64);
        loop {
            let more = next_line(&mut input, &mut line).with_context(|| format!("reading {name}"))?;
            number += u64::from(more);
            let taken = if more { importer.line(&line, &mut found) } else { importer.finish(&mut found) };
            if let Err(why) = taken {
                bad += 1;
                if bad <= BAD_SHOWN_MAX {
                    eprintln!("{name}:{number}: left out: {why}");
                }
            }
            events += found.len() as u64;
            found.drain(..).for_each(|event| write_line(&mut text, &event));
            out.write_all(text.as_bytes()).with_context(|| format!("writing {}", arguments.out.display()))?;
            text.clear();
            if !more {
                break;
            }
        }
    }
    out.flush().with_context(|| format!("writing {}", arguments.out.display()))?;
    if bad > BAD_SHOWN_MAX {
        eprintln!("… and {} lines more", bad - BAD_SHOWN_MAX);
    }
    eprintln!("{events} events; {} records passed over, {bad} lines left out", importer.passed_over());
    anyhow::ensure!(events > 0 || bad == 0, "nothing of this was a recording of that format: see --from");
    Ok(())
}

/// Reads one line without its end; of a longer one than is read, one byte more than that, and the rest is dropped. False at the end.
fn next_line(input: &mut dyn BufRead, line: &mut Vec<u8>) -> std::io::Result<bool> {
    line.clear();
    let bytes_max = IMPORT_LINE_BYTES_MAX as u64 + 1;
    if input.take(bytes_max).read_until(b'\n', line)? == 0 {
        return Ok(false);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if line.len() as u64 == bytes_max {
        skip_line(input)?;
    }
    Ok(true)
}

fn skip_line(input: &mut dyn BufRead) -> std::io::Result<()> {
    loop {
        let held = input.fill_buf()?;
        let (len, end) = (held.len(), held.iter().position(|byte| *byte == b'\n'));
        input.consume(end.map_or(len, |at| at + 1));
        if len == 0 || end.is_some() {
            return Ok(());
        }
    }
}

/// Bad lines that are shown; the others are only counted.
const BAD_SHOWN_MAX: u64 = 20;
