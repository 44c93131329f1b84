//! The detection rules that ship, in the binary: `rules/` of this folder, so that a demo has them wherever it is started.

/// Name and text of each file.
pub const RULE_FILES: &[(&str, &str)] = &[
    ("collection.yml", include_str!("../rules/collection.yml")),
    ("command-and-control.yml", include_str!("../rules/command-and-control.yml")),
    ("containers.yml", include_str!("../rules/containers.yml")),
    ("correlations.yml", include_str!("../rules/correlations.yml")),
    ("credential-access.yml", include_str!("../rules/credential-access.yml")),
    ("defense-evasion.yml", include_str!("../rules/defense-evasion.yml")),
    ("discovery.yml", include_str!("../rules/discovery.yml")),
    ("execution.yml", include_str!("../rules/execution.yml")),
    ("exfiltration.yml", include_str!("../rules/exfiltration.yml")),
    ("impact.yml", include_str!("../rules/impact.yml")),
    ("lateral-movement.yml", include_str!("../rules/lateral-movement.yml")),
    ("persistence.yml", include_str!("../rules/persistence.yml")),
    ("privilege-escalation.yml", include_str!("../rules/privilege-escalation.yml")),
];

/// The same of the sequence rules, which stand in the folder `chains`.
pub const CHAIN_FILES: &[(&str, &str)] = &[
    ("containers.sql", include_str!("../rules/chains/containers.sql")),
    ("intrusion.sql", include_str!("../rules/chains/intrusion.sql")),
    ("movement.sql", include_str!("../rules/chains/movement.sql")),
    ("persistence.sql", include_str!("../rules/chains/persistence.sql")),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_folders_is_there() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("rules");
        for (folder, ending, files) in [(folder.clone(), ".yml", RULE_FILES), (folder.join("chains"), ".sql", CHAIN_FILES)] {
            let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<String> = names.filter(|name| name.ends_with(ending)).collect();
            names.sort();
            assert_eq!(files.iter().map(|(name, _)| *name).collect::<Vec<_>>(), names);
        }
    }
}
