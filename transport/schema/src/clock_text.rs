//! Times as text: RFC 3339 in and out, nanoseconds since the Unix epoch inside. Only what an `i64` of nanoseconds can hold
//! (the years 1677 to 2262). A leap second is read as the second after it.

use std::fmt::Write;

/// Reads `2026-11-23T16:25:38.123456789+01:00`; a blank or `t` for the `T` and `z` for the `Z` will do. `None` for anything else.
pub fn parse_time(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    let separators = [(4, b"-"), (7, b"-"), (13, b":"), (16, b":")];
    let framed = bytes.len() >= 20 && separators.iter().all(|(at, mark)| bytes[*at] == mark[0]);
    if !framed || !matches!(bytes[10], b'T' | b't' | b' ') {
        return None;
    }
    let number = |from: usize, digits: usize| digits_of(bytes.get(from..from + digits)?);
    let (year, month, day) = (number(0, 4)?, number(5, 2)?, number(8, 2)?);
    let (hour, minute, second) = (number(11, 2)?, number(14, 2)?, number(17, 2)?);
    let in_range =
        (1..=12).contains(&month) && day >= 1 && day <= days_in(year, month) && hour < 24 && minute < 60 && second <= 60;
    if !in_range {
        return None;
    }
    let (nanos, zone) = fraction(&bytes[19..])?;
    let seconds = days_from_civil(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second - offset_seconds(zone)?;
    i64::try_from(i128::from(seconds) * 1_000_000_000 + i128::from(nanos)).ok()
}

/// Appends `time` as `2026-11-23T16:25:38.123456789Z`, without the fraction's trailing zeros.
pub fn write_time(out: &mut String, time: i64) {
    let (seconds, nanos) = (time.div_euclid(1_000_000_000), time.rem_euclid(1_000_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil_from_days(days);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    _ = write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    if nanos != 0 {
        let fraction = format!("{nanos:09}");
        out.push('.');
        out.push_str(fraction.trim_end_matches('0'));
    }
    out.push('Z');
}

fn digits_of(bytes: &[u8]) -> Option<i64> {
    bytes.iter().try_fold(0, |sum, byte| byte.is_ascii_digit().then(|| sum * 10 + i64::from(byte - b'0')))
}

/// The nanoseconds of a fraction, if one begins here, and what follows it. Digits beyond the ninth are dropped.
fn fraction(rest: &[u8]) -> Option<(i64, &[u8])> {
    let Some(digits) = rest.strip_prefix(b".") else { return Some((0, rest)) };
    let count = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let kept = count.min(9);
    let nanos = digits_of(&digits[..kept])? * 10i64.pow(9 - kept as u32);
    if count == 0 { None } else { Some((nanos, &digits[count..])) }
}

fn offset_seconds(zone: &[u8]) -> Option<i64> {
    match zone {
        b"Z" | b"z" => Some(0),
        [sign @ (b'+' | b'-'), hours @ .., b':', m1, m2] if hours.len() == 2 => {
            let (hours, minutes) = (digits_of(hours)?, digits_of(&[*m1, *m2])?);
            let seconds = hours * 3_600 + minutes * 60;
            (hours < 24 && minutes < 60).then_some(if *sign == b'-' { -seconds } else { seconds })
        }
        _ => None,
    }
}

fn days_in(year: i64, month: i64) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar; years are counted from March so that leap days come last.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The inverse of `days_from_civil`.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let (day, month) = (day_of_year - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(time: i64) -> String {
        let mut text = String::new();
        write_time(&mut text, time);
        text
    }

    #[test]
    fn texts_are_read_as_the_times_they_name() {
        let cases = [
            ("1970-01-01T00:00:00Z", 0),
            ("1969-12-31T23:59:59.999999999Z", -1),
            ("2000-02-29 12:00:00z", 951_825_600_000_000_000),
            ("2026-11-23T16:25:38.5+01:00", 1_795_447_538_500_000_000),
            ("2026-11-23t10:25:38.50-05:00", 1_795_447_538_500_000_000),
            ("1970-01-01T00:00:00.1234567899Z", 123_456_789),
        ];
        for (text, time) in cases {
            assert_eq!(parse_time(text), Some(time), "{text}");
        }
        let wrong = [
            "",
            "now",
            "2026-11-23",
            "2026-11-23T16:25:38",
            "2026-13-23T16:25:38Z",
            "2026-02-29T16:25:38Z",
            "2026-11-23T24:00:00Z",
            "2026-11-23T16:25:38.Z",
            "2026-11-23T16:25:38+0100",
            "2026-11-23T16:25:38+01:60",
            "9999-01-01T00:00:00Z",
            "2026-11-23T16:25:38Zx",
            "２026-11-23T16:25:38Z",
        ];
        for text in wrong {
            assert_eq!(parse_time(text), None, "{text}");
        }
    }

    #[test]
    fn every_time_reads_back_equal() {
        let edges = [i64::MIN, i64::MIN + 1, -1, 0, 1, i64::MAX - 1, i64::MAX];
        let steps = (0..20_000).map(|day| day * 86_400_000_000_000 * 5 - 4_000_000_000_000_000_000 + 1_234_567);
        for time in edges.into_iter().chain(steps) {
            assert_eq!(parse_time(&written(time)), Some(time), "{}", written(time));
        }
    }
}
