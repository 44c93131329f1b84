//! The results as people read them: a table in plain text, and a picture of bars (SVG, no library).

use std::fmt::Write as _;

use super::measure::Measured;
use super::{Peer, Results, Task};

/// What the table says of the run as a whole.
pub(super) struct About {
    pub(super) events: u64,
    pub(super) rounds: u32,
    pub(super) workers: usize,
    pub(super) seed: u64,
    pub(super) machine: String,
    /// Of the machine, before and after.
    pub(super) load: (f64, f64),
    pub(super) day: String,
    pub(super) note: Option<String>,
}

/// One line of the table.
struct Line {
    seconds: f64,
    events_per_s: f64,
    cpu_s_per_million: f64,
    peak_mb: f64,
    digest: String,
}

impl Line {
    fn of(runs: &[Measured], rows: u64) -> Option<Self> {
        let seconds = median(runs.iter().map(|run| run.seconds))?;
        let cpu_s = median(runs.iter().map(|run| run.cpu_s))?;
        Some(Self {
            seconds,
            events_per_s: rows as f64 / seconds.max(1e-9),
            cpu_s_per_million: cpu_s * 1e6 / rows.max(1) as f64,
            peak_mb: runs.iter().map(|run| run.peak_bytes).max()? as f64 / 1e6,
            digest: runs.first()?.digest.clone(),
        })
    }
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        even if even.is_multiple_of(2) => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
        _ => Some(sorted[middle]),
    }
}

/// All lines in order, of each task those of all peers.
fn lines(results: &Results) -> Vec<(Task, Peer, Result<Line, &str>)> {
    let mut lines = Vec::new();
    for ((task, peer), runs) in &results.runs {
        let rows = results.inputs.get(&task.0).map_or(0, |(rows, _)| *rows);
        let line = match runs {
            Ok(runs) => Line::of(runs, rows).ok_or("no run"),
            Err(why) => Err(why.as_str()),
        };
        lines.push((*task, *peer, line));
    }
    lines
}

pub(super) fn text(about: &About, results: &Results, differing: &[String]) -> String {
    let mut text = String::new();
    let About { events, rounds, workers, seed, machine, load, day, note } = about;
    let _ = writeln!(
        text,
        "Side by side, {day}: {events} events, CSV, {workers} threads each but the loop, median of {rounds}, seed {seed}."
    );
    let _ = writeln!(text, "{machine}. Load before {:.1}, after {:.1}, the runs themselves included.", load.0, load.1);
    if let Some(note) = note {
        let _ = writeln!(text, "{note}");
    }
    for (shape, (rows, digest)) in &results.inputs {
        let _ = writeln!(text, "input {:<10} {rows} rows, digest {digest}", shape.name());
    }
    for (peer, ready) in &results.peers {
        let _ = match ready {
            Ok(version) => writeln!(text, "{:<8} {version}", peer.name()),
            Err(why) => writeln!(text, "{:<8} not here: {why}", peer.name()),
        };
    }
    let _ =
        writeln!(text, "\nRatios are Weir's: speed = its events/s by theirs, CPU = theirs by its own; above 1 it is ahead.\n");
    let heads = ("input", "query", "peer", "events/s", "CPU s/M", "peak MB", "speed", "CPU", "digest");
    let (a, b, c, d, e, f, g, h, i) = heads;
    let _ = writeln!(text, "{a:<10} {b:<5} {c:<8} {d:>11} {e:>8} {f:>8} {g:>6} {h:>6}  {i}");
    let lines = lines(results);
    for (task, peer, line) in &lines {
        let _ = write!(text, "{:<10} {:<5} {:<8} ", task.0.name(), task.1, peer.name());
        let line = match line {
            Ok(line) => line,
            Err(why) => {
                let _ = writeln!(text, "{:>11} {why}", "-");
                continue;
            }
        };
        let weir = lines.iter().find(|(of, who, _)| of == task && *who == Peer::Weir).and_then(|(.., line)| line.as_ref().ok());
        let ratio = |of: Option<f64>| of.filter(|of| of.is_finite()).map_or_else(|| "-".to_owned(), |of| format!("{of:.2}"));
        let speed = ratio(weir.map(|weir| line.seconds / weir.seconds));
        let cpu = ratio(weir.map(|weir| line.cpu_s_per_million / weir.cpu_s_per_million));
        let Line { events_per_s, cpu_s_per_million, peak_mb, digest, .. } = line;
        let _ = writeln!(text, "{events_per_s:>11.0} {cpu_s_per_million:>8.3} {peak_mb:>8.0} {speed:>6} {cpu:>6}  {digest}");
    }
    let _ = match differing {
        [] => writeln!(text, "\nAll answers to a question are equal."),
        differing => writeln!(text, "\nANSWERS DIFFER: {}", differing.join("; ")),
    };
    text
}

/// Two columns of bars, events per second and CPU seconds per million, each of one scale.
pub(super) fn picture(about: &About, results: &Results) -> String {
    let lines = lines(results);
    let most = |of: fn(&Line) -> f64| lines.iter().filter_map(|(.., line)| Some(of(line.as_ref().ok()?))).fold(1e-9, f64::max);
    let (speed_max, cpu_max) = (most(|line| line.events_per_s), most(|line| line.cpu_s_per_million));
    let mut body = String::new();
    let mut y = TOP;
    let mut last = None;
    for (task, peer, line) in &lines {
        if last.replace(*task) != Some(*task) {
            y += GAP;
            let _ = writeln!(body, "<text x=\"8\" y=\"{}\" font-weight=\"bold\">{} {}</text>", y + 11, task.0.name(), task.1);
        }
        let _ = writeln!(body, "<text x=\"110\" y=\"{}\">{}</text>", y + 11, peer.name());
        match line {
            Ok(line) => {
                let millions = format!("{:.2} M/s", line.events_per_s / 1e6);
                bar(&mut body, (SPEED_X, y), (line.events_per_s / speed_max, *peer), &millions);
                bar(
                    &mut body,
                    (CPU_X, y),
                    (line.cpu_s_per_million / cpu_max, *peer),
                    &format!("{:.2} s", line.cpu_s_per_million),
                );
            }
            Err(_) => {
                let _ = writeln!(body, "<text x=\"{SPEED_X}\" y=\"{}\" fill=\"#888\">none: see the table</text>", y + 11);
            }
        }
        y += ROW;
    }
    let height = y + 16;
    let About { events, day, machine, load, rounds, .. } = about;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"8\" y=\"20\" font-size=\"15\">Side by side, {day}: {events} events from CSV, median of {rounds}</text>\n\
         <text x=\"8\" y=\"38\" fill=\"#555\">{} · load {:.1} before, {:.1} after</text>\n\
         <text x=\"{SPEED_X}\" y=\"60\" fill=\"#555\">events per second (longer is better)</text>\n\
         <text x=\"{CPU_X}\" y=\"60\" fill=\"#555\">CPU seconds per million events (shorter is better)</text>\n\
         {body}</svg>\n",
        escaped(machine),
        load.0,
        load.1
    )
}

fn bar(body: &mut String, (x, y): (usize, usize), (share, peer): (f64, Peer), label: &str) {
    let width = (share * BAR_MAX).max(1.0);
    let fill = if peer == Peer::Weir { "#0b6e4f" } else { "#9db4c0" };
    let _ = writeln!(body, "<rect x=\"{x}\" y=\"{y}\" width=\"{width:.1}\" height=\"13\" fill=\"{fill}\"/>");
    let _ = writeln!(body, "<text x=\"{:.1}\" y=\"{}\">{label}</text>", x as f64 + width + 5.0, y + 11);
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

const WIDTH: usize = 900;
const TOP: usize = 60;
const ROW: usize = 16;
const GAP: usize = 10;
const SPEED_X: usize = 180;
const CPU_X: usize = 540;
const BAR_MAX: f64 = 270.0;

#[cfg(test)]
mod tests {
    use super::super::Shape;
    use super::*;

    #[test]
    fn the_table_has_medians_peaks_ratios_and_reasons() {
        let mut results = Results::default();
        results.inputs.insert(Shape::Plain, (1_000_000, "0123".to_owned()));
        results.peers.insert(Peer::Flink, Err("needs a JDK".to_owned()));
        let task = (Shape::Plain, "q1");
        for (peer, seconds) in [(Peer::Weir, [0.5, 0.1, 0.4]), (Peer::Duckdb, [0.8, 0.9, 0.7])] {
            for seconds in seconds {
                results.note(
                    task,
                    peer,
                    Ok(Measured { seconds, cpu_s: seconds / 2.0, peak_bytes: 5_000_000, digest: "ab".to_owned() }),
                );
            }
        }
        results.note(task, Peer::Loop, Err("events in order".to_owned()));
        let about = About {
            events: 1_000_000,
            rounds: 3,
            workers: 2,
            seed: 42,
            machine: "2 cores, A <&> B".to_owned(),
            load: (0.5, 1.5),
            day: "2026-11-26".to_owned(),
            note: Some("Quiet.".to_owned()),
        };
        let table = text(&about, &results, &[]);
        let line =
            |start: &str| table.lines().find(|line| line.starts_with(start)).unwrap().split_whitespace().collect::<Vec<_>>();
        assert_eq!(line("plain      q1    weir")[3..], ["2500000", "0.200", "5", "1.00", "1.00", "ab"]);
        assert_eq!(line("plain      q1    duckdb")[3..], ["1250000", "0.400", "5", "2.00", "2.00", "ab"]);
        assert!(
            table.contains("- events in order") && table.contains("not here: needs a JDK") && table.contains("are equal"),
            "{table}"
        );
        assert!(text(&about, &results, &["plain q1".to_owned()]).contains("ANSWERS DIFFER: plain q1"));
        let drawn = picture(&about, &results);
        assert!(
            drawn.contains("A &lt;&amp;&gt; B") && drawn.matches("<rect").count() == 5 && drawn.ends_with("</svg>\n"),
            "{drawn}"
        );
        assert_eq!(median([1.0, 4.0].into_iter()), Some(2.5));
    }
}
