//! `host:port`: where a node listens, by name or by address. Resolved by whoever connects, each time anew.

use std::fmt;
use std::str::FromStr;

/// A host name or address and a port, such as `weir-1.example.org:7443`, `10.0.0.7:7443` or `[fd00::7]:7443`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort(String);

impl HostPort {
    /// The whole text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The host without the port and without brackets.
    pub fn host(&self) -> &str {
        self.0.rsplit_once(':').map_or(&*self.0, |(host, _)| host.trim_matches(['[', ']']))
    }
}

impl FromStr for HostPort {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = text.rsplit_once(':').ok_or("no port")?;
        if host.is_empty() || host.len() > HOST_BYTES_MAX || host.contains(char::is_whitespace) {
            return Err("no usable host");
        }
        if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
            return Err("an IPv6 address without brackets");
        }
        match port.parse::<u16>() {
            Ok(port) if port > 0 => Ok(Self(text.to_owned())),
            _ => Err("no usable port"),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for HostPort {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// Longest DNS name.
const HOST_BYTES_MAX: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_an_address_and_what_is_not() {
        for (text, host) in [("a.b:1", Some("a.b")), ("[::1]:7443", Some("::1")), ("127.0.0.1:65535", Some("127.0.0.1"))] {
            assert_eq!(text.parse::<HostPort>().ok().as_ref().map(HostPort::host), host, "{text}");
        }
        for text in ["", "a", ":1", "a:", "a:0", "a:65536", "::1:7443", "a b:1", "a:-1"] {
            assert!(text.parse::<HostPort>().is_err(), "{text}");
        }
    }
}
