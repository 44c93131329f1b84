//! ATT&CK's tactics by the short names that rules use. A name that is not here is passed on without an id.

/// `TA0002` for `execution`; either way of writing blanks.
pub(super) fn tactic_id(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase().replace(['_', ' '], "-");
    TACTICS.iter().find(|(known, _)| *known == name).map(|(_, id)| *id)
}

/// `T1059` of `T1059.004`, and whether there is more.
pub(super) fn parent(technique: &str) -> (&str, Option<&str>) {
    technique.split_once('.').map_or((technique, None), |(parent, _)| (parent, Some(technique)))
}

const TACTICS: [(&str, &str); 14] = [
    ("reconnaissance", "TA0043"),
    ("resource-development", "TA0042"),
    ("initial-access", "TA0001"),
    ("execution", "TA0002"),
    ("persistence", "TA0003"),
    ("privilege-escalation", "TA0004"),
    ("defense-evasion", "TA0005"),
    ("credential-access", "TA0006"),
    ("discovery", "TA0007"),
    ("lateral-movement", "TA0008"),
    ("collection", "TA0009"),
    ("command-and-control", "TA0011"),
    ("exfiltration", "TA0010"),
    ("impact", "TA0040"),
];
