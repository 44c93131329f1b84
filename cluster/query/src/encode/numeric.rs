//! NUMERIC in PostgreSQL's binary form: a sign and base-10000 digits.
//!
//! ```text
//! i16 digits · i16 weight (of the first digit, powers of 10000) · u16 sign (0x0000, 0x4000 minus) · i16 digits behind the point · i16 × digits
//! ```

/// Appends a decimal that is written as `-12.340` or `7`.
pub(super) fn binary(text: &str, out: &mut Vec<u8>) {
    let (sign, text) = text.strip_prefix('-').map_or((0_u16, text), |rest| (0x4000, rest));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole = whole.trim_start_matches('0');
    let pad = |length: usize| "0".repeat((4 - length % 4) % 4);
    let padded = format!("{}{whole}{fraction}{}", pad(whole.len()), pad(fraction.len()));
    let digit = |four: &[u8]| four.iter().fold(0_i16, |value, byte| value * 10 + i16::from(byte.wrapping_sub(b'0')));
    let digits: Vec<i16> = padded.as_bytes().chunks(4).map(digit).collect();
    let leading = digits.iter().take_while(|digit| **digit == 0).count();
    let used = digits.len() - digits.iter().rev().take_while(|digit| **digit == 0).count();
    let digits = digits.get(leading..used).unwrap_or_default();
    let weight = whole.len().div_ceil(4) as i16 - 1 - leading as i16;
    let sign = if digits.is_empty() { 0 } else { sign };
    let weight = if digits.is_empty() { 0 } else { weight };
    out.extend_from_slice(&(digits.len() as i16).to_be_bytes());
    out.extend_from_slice(&weight.to_be_bytes());
    out.extend_from_slice(&sign.to_be_bytes());
    out.extend_from_slice(&(fraction.len() as i16).to_be_bytes());
    digits.iter().for_each(|digit| out.extend_from_slice(&digit.to_be_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected words are what PostgreSQL 15 sends.
    #[test]
    fn as_postgresql_sends_it() {
        let cases: [(&str, &[u16]); 8] = [
            ("0", &[0, 0, 0, 0]),
            ("0.00", &[0, 0, 0, 2]),
            ("1", &[1, 0, 0, 0, 1]),
            ("-12345.678", &[3, 1, 0x4000, 3, 1, 2345, 6780]),
            ("10000", &[1, 1, 0, 0, 1]),
            ("0.0001", &[1, 0xffff, 0, 4, 1]),
            ("0.00001", &[1, 0xfffe, 0, 5, 1000]),
            ("120000000.5", &[4, 2, 0, 1, 1, 2000, 0, 5000]),
        ];
        for (text, words) in cases {
            let mut sent = Vec::new();
            binary(text, &mut sent);
            let words: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
            assert_eq!(sent, words, "{text}");
        }
    }
}
