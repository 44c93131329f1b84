//! Which application a container or process belongs to, by rules that people write. The first rule that fits wins.
//!
//! A rule names conditions and an application; all its conditions must hold. What no rule takes is `unassigned`: said so,
//! never guessed.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use crate::document::Document;
use crate::error::Error;

/// The application of what no rule takes.
pub const UNASSIGNED: &str = "unassigned";

/// One rule: all given conditions hold → `app`. At least one condition is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppRule {
    /// The container's label: its name, exactly, and a glob on its value.
    pub label: Option<LabelGlob>,
    /// The container's image, such as `registry.example.org/shop/*`.
    pub image: Option<Glob>,
    /// The systemd unit, such as `nginx.service`.
    pub unit: Option<Glob>,
    /// The cgroup's path below the root, such as `/kubepods*/*`.
    pub cgroup: Option<Glob>,
    /// The executable's path, such as `/usr/bin/python3*`.
    pub exe: Option<Glob>,
    /// The application's name, stamped on the events: 1 to 128 characters out of `A-Z a-z 0-9 . _ -`.
    pub app: String,
}

/// What is known about a container or process when rules are asked. Unknown is `None` and fits no condition.
#[derive(Debug, Clone, Copy, Default)]
pub struct AppSubject<'a> {
    /// Labels, in any order.
    pub labels: &'a [(&'a str, &'a str)],
    /// Image.
    pub image: Option<&'a str>,
    /// systemd unit.
    pub unit: Option<&'a str>,
    /// cgroup path.
    pub cgroup: Option<&'a str>,
    /// Executable.
    pub exe: Option<&'a str>,
}

impl AppRule {
    /// Whether all conditions of the rule hold.
    pub fn fits(&self, subject: &AppSubject<'_>) -> bool {
        let holds =
            |glob: &Option<Glob>, text: Option<&str>| glob.as_ref().is_none_or(|glob| text.is_some_and(|text| glob.fits(text)));
        let label = self
            .label
            .as_ref()
            .is_none_or(|wanted| subject.labels.iter().any(|(name, value)| *name == wanted.name && wanted.value.fits(value)));
        label
            && holds(&self.image, subject.image)
            && holds(&self.unit, subject.unit)
            && holds(&self.cgroup, subject.cgroup)
            && holds(&self.exe, subject.exe)
    }
}

/// The application of `subject` by the first rule that fits, else [`UNASSIGNED`].
pub fn app_of<'a>(rules: &'a [AppRule], subject: &AppSubject<'_>) -> &'a str {
    rules.iter().find(|rule| rule.fits(subject)).map_or(UNASSIGNED, |rule| rule.app.as_str())
}

/// A pattern over a whole text: `*` stands for any characters (also `/`), `?` for one. Nothing else is special.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob(String);

impl Glob {
    /// Whether the whole of `text` fits. Takes at most pattern × text steps, whatever they hold.
    pub fn fits(&self, text: &str) -> bool {
        let (pattern, text) = (self.0.as_bytes(), text.as_bytes());
        let (mut p, mut t) = (0, 0);
        let mut retry: Option<(usize, usize)> = None;
        while t < text.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    retry = Some((p, t));
                    p += 1;
                }
                Some(b'?') => {
                    // One character, not one byte: take its continuation bytes along.
                    t += 1;
                    while text.get(t).is_some_and(|byte| byte & 0xc0 == 0x80) {
                        t += 1;
                    }
                    p += 1;
                }
                Some(byte) if *byte == text[t] => {
                    p += 1;
                    t += 1;
                }
                _ => {
                    let Some((star, from)) = retry else { return false };
                    retry = Some((star, from + 1));
                    p = star + 1;
                    t = from + 1;
                }
            }
        }
        pattern[p..].iter().all(|byte| *byte == b'*')
    }
}

impl FromStr for Glob {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.len() {
            0 => Err("empty pattern"),
            1..=GLOB_BYTES_MAX => Ok(Self(text.to_owned())),
            _ => Err("pattern longer than 1024 bytes"),
        }
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `name=glob`: a label's name, exactly, and a pattern for its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelGlob {
    /// The label's name, such as `app.kubernetes.io/name`.
    pub name: String,
    /// What its value must fit.
    pub value: Glob,
}

impl FromStr for LabelGlob {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, value) = text.split_once('=').ok_or("a label condition without `=`")?;
        if name.is_empty() {
            return Err("a label condition without a name");
        }
        Ok(Self { name: name.to_owned(), value: value.parse()? })
    }
}

/// What people write.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawAppRule {
    label: Option<String>,
    image: Option<String>,
    unit: Option<String>,
    cgroup: Option<String>,
    exe: Option<String>,
    app: Option<String>,
}

impl RawAppRule {
    pub(crate) fn check(self, index: usize, document: &Document) -> Result<AppRule, Error> {
        let at = |field: &str| format!("apps[{index}].{field}");
        let glob = |field: &str, raw: Option<String>| -> Result<Option<Glob>, Error> {
            let cure = "write a pattern such as \"/usr/bin/python*\", or remove the key";
            raw.map(|raw| document.parsed(&at(field), &raw, cure)).transpose()
        };
        let label_cure = "write a label and a pattern such as \"app.kubernetes.io/name=shop*\"";
        let label = self.label.map(|raw| document.parsed(&at("label"), &raw, label_cure)).transpose()?;
        let app = document.required(&at("app"), self.app, "\"shop\"")?;
        let rule = AppRule {
            label,
            image: glob("image", self.image)?,
            unit: glob("unit", self.unit)?,
            cgroup: glob("cgroup", self.cgroup)?,
            exe: glob("exe", self.exe)?,
            app: document.name(&at("app"), app)?,
        };
        let conditions = [&rule.image, &rule.unit, &rule.cgroup, &rule.exe];
        if rule.label.is_none() && conditions.iter().all(|condition| condition.is_none()) {
            let cure = "add one of label, image, unit, cgroup, exe; a rule that takes everything says exe = \"*\"";
            return Err(document.wrong(&at("app"), "a rule without a condition", cure));
        }
        Ok(rule)
    }
}

/// Longest pattern, in bytes: it is run against every new process.
const GLOB_BYTES_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        let cases = [
            ("*", "", true),
            ("*", "a/b", true),
            ("a*c", "abbc", true),
            ("a*c", "abbcd", false),
            ("*a*b", "xaxbxb", true),
            ("?", "ä", true),
            ("?", "", false),
            ("a?c", "abc", true),
            ("[a]", "a", false),
            ("*ä?", "xxäö", true),
        ];
        for (pattern, text, fits) in cases {
            assert_eq!(pattern.parse::<Glob>().unwrap().fits(text), fits, "{pattern} on {text}");
        }
        let slow = format!("{}b", "*a".repeat(500));
        assert!(!slow.parse::<Glob>().unwrap().fits(&"a".repeat(4096)));
    }

    #[test]
    fn first_rule_wins_and_all_conditions_count() {
        let rule = |label: Option<&str>, exe: Option<&str>, app: &str| AppRule {
            label: label.map(|text| text.parse().unwrap()),
            image: None,
            unit: None,
            cgroup: None,
            exe: exe.map(|text| text.parse().unwrap()),
            app: app.to_owned(),
        };
        let rules = [
            rule(Some("app=shop*"), Some("*/java"), "shop"),
            rule(Some("app=*"), None, "labelled"),
            rule(None, Some("*/sh"), "sh"),
        ];
        let java = AppSubject { labels: &[("tier", "x"), ("app", "shop-1")], exe: Some("/bin/java"), ..AppSubject::default() };
        assert_eq!(app_of(&rules, &java), "shop");
        assert_eq!(app_of(&rules, &AppSubject { exe: None, ..java }), "labelled");
        assert_eq!(app_of(&rules, &AppSubject { exe: Some("/bin/sh"), ..AppSubject::default() }), "sh");
        assert_eq!(app_of(&rules, &AppSubject::default()), UNASSIGNED);
    }
}
