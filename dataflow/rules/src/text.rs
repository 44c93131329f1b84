//! Matching of texts that is more than equality: globs, path prefixes, bytes, networks, base64.

use std::net::IpAddr;

/// A shell pattern over a whole text: `*`, `?`, `[a-z]`, `[!x]`, backslash. `*` also takes slashes, as in fnmatch without flags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Glob(Vec<Piece>);

/// What a pattern is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    Star,
    Any,
    Char(char),
    Set { negated: bool, ranges: Vec<(char, char)> },
}

impl Glob {
    /// A pattern of pieces that somebody else has read.
    pub(crate) fn of(pieces: impl IntoIterator<Item = Piece>) -> Self {
        Self(pieces.into_iter().collect())
    }

    pub(crate) fn new(pattern: &str) -> Self {
        let chars: Vec<char> = pattern.chars().collect();
        let mut pieces = Vec::new();
        let mut at = 0;
        while at < chars.len() {
            match chars[at] {
                '*' if pieces.last() == Some(&Piece::Star) => {}
                '*' => pieces.push(Piece::Star),
                '?' => pieces.push(Piece::Any),
                '\\' if at + 1 < chars.len() => {
                    at += 1;
                    pieces.push(Piece::Char(chars[at]));
                }
                '[' => match set(&chars[at..]) {
                    Some((piece, used)) => {
                        pieces.push(piece);
                        at += used - 1;
                    }
                    None => pieces.push(Piece::Char('[')),
                },
                c => pieces.push(Piece::Char(c)),
            }
            at += 1;
        }
        Self(pieces)
    }

    /// Linear in text times pattern: only the last star is tried again.
    pub(crate) fn matches(&self, text: &str) -> bool {
        let pieces = &self.0;
        let (mut rest, mut at) = (text.chars(), 0);
        let mut retry: Option<(usize, std::str::Chars<'_>)> = None;
        loop {
            if pieces.get(at) == Some(&Piece::Star) {
                at += 1;
                retry = Some((at, rest.clone()));
                continue;
            }
            let before = rest.clone();
            match (pieces.get(at), rest.next()) {
                (None, None) => return true,
                (Some(piece), Some(c)) if piece.takes(c) => at += 1,
                (_, None) => return false,
                _ => {
                    drop(before);
                    let Some((star, from)) = &mut retry else { return false };
                    if from.next().is_none() {
                        return false;
                    }
                    (at, rest) = (*star, from.clone());
                }
            }
        }
    }
}

impl Piece {
    fn takes(&self, c: char) -> bool {
        match self {
            Self::Star => false,
            Self::Any => true,
            Self::Char(wanted) => *wanted == c,
            Self::Set { negated, ranges } => ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated,
        }
    }
}

/// A bracket expression and how many characters it takes; `None` when it is not closed.
fn set(chars: &[char]) -> Option<(Piece, usize)> {
    let mut at = 1;
    let negated = matches!(chars.get(at), Some('!' | '^'));
    at += usize::from(negated);
    let mut ranges = Vec::new();
    let first = at;
    loop {
        let c = *chars.get(at)?;
        if c == ']' && at > first {
            return Some((Piece::Set { negated, ranges }, at + 1));
        }
        if chars.get(at + 1) == Some(&'-') && chars.get(at + 2).is_some_and(|end| *end != ']') {
            ranges.push((c, chars[at + 2]));
            at += 3;
        } else {
            ranges.push((c, c));
            at += 1;
        }
    }
}

/// A path, or all that begins with its components; a component may be a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PathPrefix(Vec<Glob>);

impl PathPrefix {
    pub(crate) fn new(path: &str) -> Self {
        Self(components(path).map(Glob::new).collect())
    }

    pub(crate) fn matches(&self, path: &str) -> bool {
        let mut parts = components(path);
        self.0.iter().all(|wanted| parts.next().is_some_and(|part| wanted.matches(part)))
    }
}

fn components(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|part| !part.is_empty())
}

/// An address or a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network {
    address: IpAddr,
    bits: u32,
}

impl Network {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().ok()?;
        let bits_max = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Some(bits_max), |bits| bits.parse().ok())?;
        (bits <= bits_max).then_some(Self { address, bits })
    }

    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        match (self.address, ip.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(ip)) => {
                let shift = 32 - self.bits;
                u32::from(own).checked_shr(shift).unwrap_or(0) == u32::from(ip).checked_shr(shift).unwrap_or(0)
            }
            (IpAddr::V6(own), ip) => {
                let ip = match ip {
                    IpAddr::V6(ip) => ip,
                    IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                };
                let shift = 128 - self.bits;
                u128::from(own).checked_shr(shift).unwrap_or(0) == u128::from(ip).checked_shr(shift).unwrap_or(0)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) => false,
        }
    }
}

/// Hexadecimal digits to bytes.
pub(crate) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2) && !digits.is_empty())?;
    Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// Decodes base64 with either alphabet's last characters; `None` for what is none.
pub(crate) fn from_base64(text: &str) -> Option<String> {
    let digits = text.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut word, mut bits) = (0u32, 0);
    for c in digits.bytes() {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        word = word << 6 | u32::from(value);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((word >> bits) as u8);
            word &= (1 << bits) - 1;
        }
    }
    (bits < 6).then(|| String::from_utf8_lossy(&bytes).into_owned())
}

/// The last component of a path.
pub(crate) fn basename(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Whether bytes contain other bytes; the empty ones are everywhere.
pub(crate) fn contains(text: &[u8], part: &[u8]) -> bool {
    part.is_empty() || text.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        let cases = [
            ("*", "", true),
            ("/usr/lib/*", "/usr/lib/a/b", true),
            ("*../*../*", "a/../../b", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("[a-c]x[!0-9]", "bxy", true),
            ("[a-c]x[!0-9]", "bx1", false),
            ("[]]", "]", true),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("[x", "[x", true),
            ("*a*b*c", "xxaxxbxxbxxc", true),
            ("*a*b*c", "xxaxxbxxbxx", false),
            ("é*", "é!", true),
        ];
        for (pattern, text, wanted) in cases {
            assert_eq!(Glob::new(pattern).matches(text), wanted, "{pattern} {text}");
        }
        assert!(!Glob::new(&"*a".repeat(1_000)).matches(&"a".repeat(999)));
    }

    #[test]
    fn path_prefixes_end_at_components() {
        let cases = [
            ("/usr", "/usr/bin/x", true),
            ("/usr/", "/usr", true),
            ("/usr", "/usrx", false),
            ("/usr/bin", "/usr", false),
            ("/home/*/.ssh", "/home/u/.ssh/id", true),
        ];
        for (prefix, path, wanted) in cases {
            assert_eq!(PathPrefix::new(prefix).matches(path), wanted, "{prefix} {path}");
        }
    }

    #[test]
    fn networks() {
        let cases = [
            ("10.0.0.0/8", "10.9.8.7", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("127.0.0.1/24", "127.0.0.9", true),
            ("0.0.0.0/0", "1.2.3.4", true),
            ("10.1.2.3", "10.1.2.3", true),
            ("10.0.0.0/8", "::ffff:10.1.1.1", true),
            ("fd00::/8", "fd12::1", true),
            ("::/0", "fe80::1", true),
            ("::1", "127.0.0.1", false),
        ];
        for (network, ip, wanted) in cases {
            assert_eq!(Network::parse(network).unwrap().contains(ip.parse().unwrap()), wanted, "{network} {ip}");
        }
        for bad in ["", "10.0.0.0/33", "x", "1.2.3", "::/129", "10.0.0.0/-1"] {
            assert_eq!(Network::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn bytes_from_text() {
        assert_eq!(from_hex("48656c").as_deref(), Some(&b"Hel"[..]));
        assert_eq!((from_hex("4"), from_hex("zz"), from_hex("é")), (None, None, None));
        assert_eq!(from_base64("aGVsbG8=").as_deref(), Some("hello"));
        assert_eq!((from_base64("a"), from_base64("a b")), (None, None));
        assert_eq!(basename("/usr/bin/cat"), "cat");
    }
}
