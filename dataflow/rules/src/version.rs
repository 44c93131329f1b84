//! Versions of the engine that rule files ask for.

use std::fmt;

/// Major, minor, patch. A plain number N of older files is 0.N.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

/// The version of Falco's engine that this crate follows.
pub const ENGINE: Version = Version(0, 63, 0);

impl Version {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.trim().split('.').map(|part| part.parse::<u32>().ok());
        let version = match (numbers.next()?, numbers.next(), numbers.next()) {
            (minor, None, None) => Self(0, minor?, 0),
            (major, Some(minor), Some(patch)) => Self(major?, minor?, patch?),
            _ => return None,
        };
        numbers.next().is_none().then_some(version)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_three_numbers_or_one() {
        assert_eq!(Version::parse("0.57.0"), Some(Version(0, 57, 0)));
        assert_eq!(Version::parse("26"), Some(Version(0, 26, 0)));
        for bad in ["", "x", "1.2", "1.2.3.4", "-1", "0.57.0-rc"] {
            assert_eq!(Version::parse(bad), None, "{bad}");
        }
    }
}
