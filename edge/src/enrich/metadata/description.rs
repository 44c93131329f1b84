//! What a source says of a container, and how the words of several become one.
//!
//! Promise: whatever a source sends, what is kept of it is bounded: texts, labels and mounts are cut, and what is told of them fits into
//! one `detail`, which says what it leaves out.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use weir_config::Glob;
use weir_schema::Text;

/// What is known about a container beside its id.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Description {
    /// Name.
    pub name: Option<Text>,
    /// Image reference, as who started the container wrote it.
    pub image: Option<Text>,
    /// Digest of the image in its registry, `sha256:…`.
    pub digest: Option<Text>,
    /// The image's id on this host, `sha256:…`.
    pub image_id: Option<Text>,
    /// Kubernetes namespace.
    pub namespace: Option<Text>,
    /// Kubernetes pod.
    pub pod: Option<Text>,
    /// Kubernetes' pod uid.
    pub pod_uid: Option<Text>,
    /// Kubernetes workload: the Deployment, not its ReplicaSet.
    pub workload: Option<Text>,
    /// What the workload is, as `Deployment`.
    pub workload_kind: Option<Text>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Whether all of the host's devices and capabilities are given to it.
    pub privileged: Option<bool>,
    /// Folders and files of the host inside.
    pub mounts: Vec<Mount>,
}

/// A part of the host's file system inside a container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mount {
    /// On the host.
    pub source: String,
    /// In the container.
    pub target: String,
    /// Not to be written.
    pub read_only: bool,
}

/// Who said it. Of two that know, the later one here is believed, but for the image: there Kubernetes' status shows what was resolved,
/// the runtimes what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The runtime's files.
    Disk,
    /// The Docker Engine API.
    Docker,
    /// The CRI.
    Cri,
    /// The Kubernetes API.
    Kubernetes,
}

impl Origin {
    /// All, by number.
    pub const COUNT: usize = 4;
}

impl Description {
    /// One description of what the origins said, in their order; `pod` is what Kubernetes says of the whole pod.
    pub fn merged<'a>(said: &[Option<&'a Self>; Origin::COUNT], pod: Option<&'a Self>) -> Self {
        let [disk, docker, cri, kubernetes] = *said;
        let first = |order: [Option<&'a Self>; 5], of: fn(&Self) -> &Option<Text>| {
            order.into_iter().flatten().find_map(|known| of(known).clone())
        };
        let usual = [kubernetes, pod, cri, docker, disk];
        let image = [cri, docker, kubernetes, disk, pod];
        let mut labels = BTreeMap::new();
        for known in usual.into_iter().rev().flatten() {
            labels.extend(known.labels.iter().map(|(name, value)| (name.clone(), value.clone())));
        }
        let mounts = [cri, docker, disk].into_iter().flatten().find(|known| !known.mounts.is_empty());
        Self {
            name: first(usual, |known| &known.name),
            image: first(image, |known| &known.image),
            digest: first(usual, |known| &known.digest),
            image_id: first(image, |known| &known.image_id),
            namespace: first(usual, |known| &known.namespace),
            pod: first(usual, |known| &known.pod),
            pod_uid: first(usual, |known| &known.pod_uid),
            workload: first(usual, |known| &known.workload),
            workload_kind: first(usual, |known| &known.workload_kind),
            labels: labels.into_iter().take(LABELS_MAX).collect(),
            privileged: [cri, docker, kubernetes, disk].into_iter().flatten().find_map(|known| known.privileged),
            mounts: mounts.map(|known| known.mounts.clone()).unwrap_or_default(),
        }
    }

    /// Writes what has no column into a `detail`: labels that fit one of `globs`, digest, privileged flag, mounts, pod uid.
    pub fn tell(&self, globs: &[Glob], detail: &mut Map<String, Value>) {
        let texts = [
            ("image_digest", &self.digest),
            ("image_id", &self.image_id),
            ("pod_uid", &self.pod_uid),
            ("workload_kind", &self.workload_kind),
        ];
        detail.extend(texts.into_iter().filter_map(|(key, text)| Some((key.to_owned(), text.as_deref()?.into()))));
        if let Some(privileged) = self.privileged {
            detail.insert("privileged".into(), privileged.into());
        }
        let mut left = TOLD_BYTES_MAX;
        let mut fits = |bytes: usize| {
            let fits = bytes <= left;
            left -= if fits { bytes } else { 0 };
            fits
        };
        let wanted = self.labels.iter().filter(|(name, _)| globs.iter().any(|glob| glob.fits(name)));
        let (mut labels, mut cut) = (Map::new(), 0_u64);
        for (name, value) in wanted {
            match fits(json_bytes(name) + json_bytes(value)) {
                true => drop(labels.insert(name.clone(), value.as_str().into())),
                false => cut += 1,
            }
        }
        let mut mounts = Vec::new();
        for mount in &self.mounts {
            let way = if mount.read_only { "ro" } else { "rw" };
            let text = format!("{}:{}:{way}", mount.source, mount.target);
            match fits(json_bytes(&text)) {
                true => mounts.push(Value::from(text)),
                false => cut += 1,
            }
        }
        if !labels.is_empty() {
            detail.insert("labels".into(), labels.into());
        }
        if !mounts.is_empty() {
            detail.insert("mounts".into(), mounts.into());
        }
        if cut > 0 {
            detail.insert("metadata_cut".into(), cut.into());
        }
    }
}

/// A text of a source: absent when empty, cut when long.
pub(crate) fn text(raw: &str) -> Option<Text> {
    (!raw.is_empty()).then(|| raw[..raw.floor_char_boundary(TEXT_BYTES_MAX)].into())
}

/// Labels of a source, as many and as long as are kept.
pub(crate) fn labels<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> BTreeMap<String, String> {
    let cut = |raw: &str| raw[..raw.floor_char_boundary(TEXT_BYTES_MAX)].to_owned();
    pairs.into_iter().take(LABELS_MAX).map(|(name, value)| (cut(name), cut(value))).collect()
}

/// Mounts of a source, as many and as long as are kept. What has no place on the host is none.
pub(crate) fn mounts<'a>(all: impl IntoIterator<Item = (&'a str, &'a str, bool)>) -> Vec<Mount> {
    let cut = |raw: &str| raw[..raw.floor_char_boundary(TEXT_BYTES_MAX)].to_owned();
    let hosts = all.into_iter().filter(|(source, _, _)| source.starts_with('/'));
    let mount = |(source, target, read_only): (&str, &str, bool)| Mount { source: cut(source), target: cut(target), read_only };
    hosts.take(MOUNTS_MAX).map(mount).collect()
}

/// The digest in a reference such as `docker.io/library/nginx@sha256:…`.
pub(crate) fn digest(reference: &str) -> Option<Text> {
    let (_, digest) = reference.rsplit_once('@')?;
    text(digest).filter(|digest| digest.contains(':'))
}

/// True of what may stand in a path of a request: runtimes name containers by hexadecimal digits, people by plain names.
pub(crate) fn is_plain_id(id: &str) -> bool {
    (1..=ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// A text with its quotes, comma or colon, and what escapes add.
fn json_bytes(text: &str) -> usize {
    serde_json::to_string(text).map_or(0, |json| json.len()) + 1
}

/// Longest text kept.
const TEXT_BYTES_MAX: usize = 512;
/// Labels kept of one container.
const LABELS_MAX: usize = 64;
/// Mounts kept of one container.
const MOUNTS_MAX: usize = 32;
/// Longest id.
const ID_BYTES_MAX: usize = 128;
/// Labels and mounts in one `detail`: it is cut at 4 KiB, and would be no JSON afterwards.
const TOLD_BYTES_MAX: usize = 2_400;

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str, image: &str) -> Description {
        Description { name: text(name), image: text(image), ..Description::default() }
    }

    #[test]
    fn who_knows_better_is_believed() {
        let disk = Description { labels: labels([("app", "old"), ("team", "a")]), ..named("d", "d:1") };
        let cri = Description { privileged: Some(true), mounts: mounts([("/etc", "/host/etc", true)]), ..named("c", "c:1") };
        let kubernetes = Description { labels: labels([("app", "new")]), ..named("k", "docker.io/k:1") };
        let pod = Description { pod: text("p"), workload: text("w"), ..Description::default() };
        let whole = Description::merged(&[Some(&disk), None, Some(&cri), Some(&kubernetes)], Some(&pod));
        assert_eq!((whole.name.as_deref(), whole.image.as_deref()), (Some("k"), Some("c:1")));
        assert_eq!((whole.pod.as_deref(), whole.workload.as_deref(), whole.privileged), (Some("p"), Some("w"), Some(true)));
        assert_eq!(whole.labels, labels([("app", "new"), ("team", "a")]));
        assert_eq!(whole.mounts, cri.mounts);
        assert_eq!(Description::merged(&[None; 4], None), Description::default());
    }

    #[test]
    fn what_is_told_fits_and_says_what_it_leaves_out() {
        let long = "\u{1}x".repeat(400);
        let many: Vec<String> = (0..500).map(|number| format!("l{number:03}")).collect();
        let description = Description {
            labels: labels(many.iter().map(|name| (name.as_str(), long.as_str())).chain([("secret", "s")])),
            mounts: mounts(std::iter::repeat_n(("/a\"b", "/c", false), 100)),
            digest: text("sha256:aa"),
            ..Description::default()
        };
        let mut detail = Map::new();
        description.tell(&["l*".parse().unwrap()], &mut detail);
        let json = Value::Object(detail.clone()).to_string();
        assert!(json.len() < 4_096 - 512, "{}", json.len());
        assert!(detail["metadata_cut"].as_u64().unwrap() > 0 && detail.contains_key("mounts"), "{json}");
        assert_eq!(detail["image_digest"], "sha256:aa");
        let mut none = Map::new();
        description.tell(&[], &mut none);
        assert!(!none.contains_key("labels"), "nothing allowed, nothing told");
    }

    #[test]
    fn references_and_ids() {
        assert_eq!(digest("docker.io/library/nginx@sha256:ab").as_deref(), Some("sha256:ab"));
        assert_eq!((digest("nginx:1"), digest("a@b"), digest("a@")), (None, None, None));
        assert!(is_plain_id("0af3") && !is_plain_id("") && !is_plain_id("../../x") && !is_plain_id(&"a".repeat(200)));
    }
}
