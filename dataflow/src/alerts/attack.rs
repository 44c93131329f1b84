//! ATT&CK out of a rule's tags: `mitre_execution` and `T1059.004` as Falco's files have them, `attack.execution` and `attack.t1059` as
//! Sigma's do.

/// The tactics, in ATT&CK's short names, in the tags' order.
pub(crate) fn tactics(tags: &[String]) -> Vec<String> {
    let name = |tag: &String| {
        let rest = tag.strip_prefix("mitre_").or_else(|| tag.strip_prefix("attack."))?;
        // Software and groups have numbers, tactics do not.
        let is_name = !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_alphabetic() || b"_-".contains(&byte));
        is_name.then(|| rest.to_ascii_lowercase().replace('_', "-"))
    };
    unique(tags.iter().filter_map(name))
}

/// The techniques, in the tags' order.
pub(crate) fn techniques(tags: &[String]) -> Vec<String> {
    unique(tags.iter().filter_map(|tag| technique(tag.strip_prefix("attack.").unwrap_or(tag))))
}

/// `T1059` or `T1059.004`, in any case.
fn technique(text: &str) -> Option<String> {
    let digits = text.strip_prefix(['T', 't'])?;
    let (main, sub) = digits.split_once('.').map_or((digits, None), |(main, sub)| (main, Some(sub)));
    let fits = |part: &str, len: usize| part.len() == len && part.bytes().all(|byte| byte.is_ascii_digit());
    (fits(main, 4) && sub.is_none_or(|sub| fits(sub, 3))).then(|| text.to_ascii_uppercase())
}

fn unique(names: impl Iterator<Item = String>) -> Vec<String> {
    names.fold(Vec::new(), |mut all, name| {
        if !all.contains(&name) {
            all.push(name);
        }
        all
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_writing_tags_are_read() {
        let tags = [
            "container",
            "mitre_privilege_escalation",
            "T1611",
            "attack.t1059.004",
            "attack.execution",
            "T1611",
            "T12",
            "attack.s0001",
        ];
        let tags: Vec<String> = tags.iter().map(|&tag| tag.to_owned()).collect();
        assert_eq!(techniques(&tags), ["T1611", "T1059.004"]);
        assert_eq!(tactics(&tags), ["privilege-escalation", "execution"]);
    }
}
