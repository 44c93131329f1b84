//! What a table of figures says of its machine, and what a process has used so far. No names of machines.

/// Cores, processor, memory, kernel: one line.
pub fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let model = line_of("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".to_owned());
    let memory = line_of("/proc/meminfo", "MemTotal");
    let kib = memory.as_deref().and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cores} cores, {model}, {} GiB, Linux {}", kib >> 20, kernel.trim())
}

/// Processes that ran or waited, on average over the last minute.
pub fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0.0)
}

fn line_of(path: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Nanoseconds since the Unix epoch as a day, `2026-11-26`, in UTC.
pub fn day(now_ns: i64) -> String {
    // Howard Hinnant's `civil_from_days`: years begin in March, eras have 400 of them.
    let days = now_ns.div_euclid(86_400_000_000_000) + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{day:02}", year + era * 400 + carry)
}

/// User and system time of a process.
pub fn process_cpu_s(pid: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.rsplit_once(')')?.1;
    let ticks: Vec<f64> = after_name.split_whitespace().skip(11).take(2).filter_map(|text| text.parse().ok()).collect();
    Some(ticks.iter().sum::<f64>() / CLOCK_TICKS_PER_S)
}

/// A line of `/proc/PID/status` that is in KiB.
pub fn status_kib(pid: u32, name: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// `sysconf(_SC_CLK_TCK)` on every Linux that Weir runs on.
const CLOCK_TICKS_PER_S: f64 = 100.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_the_machine_are_told() {
        let at = |days: i64| day(days * 86_400_000_000_000);
        assert_eq!([at(0), at(-1), at(11_016), at(20_783)], ["1970-01-01", "1969-12-31", "2000-02-29", "2026-11-26"]);
        assert!(machine().contains("cores") && load() >= 0.0 && process_cpu_s(std::process::id()).is_some());
    }
}
