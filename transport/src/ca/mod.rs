//! The fleet's own certificate authority: one key, kept in a directory, that names agents and nodes.
//!
//! ```text
//! DIR/ca.pem   the certificate every agent and node trusts; its one URI name is spiffe://DOMAIN
//! DIR/ca.key   its key, mode 0600: whoever reads it can be anybody
//! OUT/cert.pem OUT/key.pem (0600) OUT/ca.pem   what one agent or node needs
//! ```
//!
//! Promise: no file is overwritten unless that was asked for, and a certificate that would not be accepted is never written.
//! Certificates whose key stays on the agent, tokens and renewal are in `enrol/`; who is revoked is in `trust.rs`.

mod issue;

pub(crate) use issue::{CLOCK_SKEW, NODE_NAME};

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use weir_schema::{AgentIdentity, Name};

use crate::error::Error;
pub use issue::{Authority, Issued, REQUEST_BYTES_MAX, RequestedKey};

/// How a certificate is to be made.
#[derive(Debug, Clone)]
pub struct IssueOptions {
    /// How long it is valid from now on. Default 30 days.
    pub valid: Duration,
    /// DNS names and addresses that a node is reached under, besides its id, `weir-node`, `localhost`, 127.0.0.1 and ::1. Not
    /// for agents.
    pub reached_as: Vec<String>,
}

/// What to do with files that are in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Refuse and name the file.
    Keep,
    /// Replace them.
    Replace,
}

/// The files of one identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    /// The authority to trust.
    pub ca: PathBuf,
    /// The certificate.
    pub cert: PathBuf,
    /// Its key, mode 0600.
    pub key: PathBuf,
}

impl Default for IssueOptions {
    fn default() -> Self {
        Self { valid: LEAF_VALID, reached_as: Vec::new() }
    }
}

/// Makes a new authority for `trust_domain` in `dir`. Refuses if one is there.
pub fn init(dir: &Path, trust_domain: &str) -> Result<Authority, Error> {
    let authority = Authority::new(trust_domain, SystemTime::now())?;
    make_dir(dir)?;
    let (cert, key) = (dir.join(CA_CERT), dir.join(CA_KEY));
    for path in [&cert, &key] {
        if path.exists() {
            return Err(Error::Exists { path: path.clone(), cure: "use it, name another directory, or move it away first" });
        }
    }
    write(&key, &authority.key_pem(), Secrecy::Owner, Existing::Keep)?;
    write(&cert, authority.cert_pem(), Secrecy::World, Existing::Keep)?;
    Ok(authority)
}

/// Issues a certificate for an agent by the authority in `dir` and writes it to `out`, valid for 30 days. [`Authority`] takes options.
pub fn issue_agent(dir: &Path, tenant: &Name, region: &Name, agent: &Name, out: &Path) -> Result<IdentityFiles, Error> {
    let identity = AgentIdentity { tenant: tenant.clone(), region: region.clone(), agent: agent.clone() };
    Authority::open(dir)?.agent(&identity, &IssueOptions::default(), SystemTime::now())?.write(out, Existing::Keep)
}

/// Issues a certificate for a node by the authority in `dir` and writes it to `out`, valid for 30 days. [`Authority`] takes options.
pub fn issue_node(dir: &Path, node: &Name, out: &Path) -> Result<IdentityFiles, Error> {
    Authority::open(dir)?.node(node, &IssueOptions::default(), SystemTime::now())?.write(out, Existing::Keep)
}

impl Issued {
    /// Writes `cert.pem`, `key.pem` and `ca.pem` into `out`, which is made if it is not there.
    pub fn write(&self, out: &Path, existing: Existing) -> Result<IdentityFiles, Error> {
        make_dir(out)?;
        let files = IdentityFiles { ca: out.join(CA_CERT), cert: out.join("cert.pem"), key: out.join("key.pem") };
        for path in [&files.cert, &files.key] {
            if existing == Existing::Keep && path.exists() {
                return Err(Error::Exists { path: path.clone(), cure: "name another directory, or ask to replace it" });
            }
        }
        let same_ca = fs::read_to_string(&files.ca).is_ok_and(|there| there == self.ca_pem);
        if !same_ca {
            write(&files.ca, &self.ca_pem, Secrecy::World, existing)?;
        }
        write(&files.key, &self.key_pem, Secrecy::Owner, existing)?;
        write(&files.cert, &self.cert_pem, Secrecy::World, existing)?;
        Ok(files)
    }
}

/// Who may read a file.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Secrecy {
    Owner,
    World,
}

pub(crate) fn make_dir(dir: &Path) -> Result<(), Error> {
    fs::create_dir_all(dir).map_err(|source| Error::File { doing: "make directory", path: dir.into(), source, cure: "" })
}

/// Writes beside, syncs, then renames: a key is whole, or it is not there. Its mode is right from the first moment.
pub(crate) fn write(path: &Path, text: &str, secrecy: Secrecy, existing: Existing) -> Result<(), Error> {
    if existing == Existing::Keep && path.exists() {
        return Err(Error::Exists { path: path.into(), cure: "name another directory, or move it away first" });
    }
    let mode = match secrecy {
        Secrecy::Owner => 0o600,
        Secrecy::World => 0o644,
    };
    let mut staged = path.as_os_str().to_owned();
    staged.push(".new");
    let staged = PathBuf::from(staged);
    let fail = |source| Error::File { doing: "write", path: path.into(), source, cure: "" };
    match fs::remove_file(&staged) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&staged).map_err(fail)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(fail)?;
    fs::rename(&staged, path).map_err(fail)?;
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(fail)
}

/// The authority's certificate in its directory, and beside every certificate it issued.
pub const CA_CERT: &str = "ca.pem";

/// The authority's key.
pub const CA_KEY: &str = "ca.key";

/// How long a certificate that people issue is valid. Those of enrolled agents live a day, since they are renewed.
pub const LEAF_VALID: Duration = Duration::from_secs(30 * 24 * 3600);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::identity::{Peer, from_certificate};

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn web7() -> AgentIdentity {
        AgentIdentity { tenant: name("acme"), region: name("eu-1"), agent: name("web-7") }
    }

    fn der(path: &Path) -> Vec<u8> {
        use rustls::pki_types::{CertificateDer, pem::PemObject};
        CertificateDer::from_pem_file(path).unwrap().to_vec()
    }

    fn issue(ca: &Path, out: &Path) -> Result<IdentityFiles, Error> {
        issue_agent(ca, &name("acme"), &name("eu-1"), &name("web-7"), out)
    }

    #[test]
    fn an_issued_certificate_says_who_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca");
        init(&ca, "weir.test").unwrap();
        let agent = issue(&ca, &dir.path().join("a")).unwrap();
        assert_eq!(from_certificate(&der(&agent.cert)).unwrap(), Peer::Agent(web7()));
        let node = issue_node(&ca, &name("n1"), &dir.path().join("n")).unwrap();
        assert_eq!(from_certificate(&der(&node.cert)).unwrap(), Peer::Node(name("n1")));
        assert_eq!(der(&node.ca), der(&ca.join(CA_CERT)));
        for key in [&agent.key, &node.key, &ca.join(CA_KEY)] {
            assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600, "{key:?}");
        }
    }

    #[test]
    fn a_signing_request_gives_its_key_and_nothing_else() {
        let authority = Authority::new("td", SystemTime::now()).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["weir-node".to_owned()]).unwrap();
        let claimed = "spiffe://td/tenant/other/region/us/agent/boss";
        params.subject_alt_names.push(rcgen::SanType::URI(claimed.try_into().unwrap()));
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let request = params.serialize_request(&key).unwrap();
        let asked = RequestedKey::from_request(request.der()).unwrap();
        let made = authority.agent_with_key(&web7(), &asked, &IssueOptions::default(), SystemTime::now()).unwrap();
        assert_eq!(from_certificate(&made).unwrap(), Peer::Agent(web7()));
        let (_, read) = x509_parser::parse_x509_certificate(&made).unwrap();
        assert!(!read.is_ca() && !read.extended_key_usage().unwrap().unwrap().value.server_auth);
        assert_eq!(read.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 1);
        assert_eq!(read.public_key().raw, asked.to_der());

        let mut bytes = request.der().to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        for (bad, says) in [(bytes, "signature"), (vec![0; REQUEST_BYTES_MAX + 1], "4097 bytes"), (Vec::new(), "parse")] {
            let why = RequestedKey::from_request(&bad).unwrap_err().to_string();
            assert!(why.contains("signing request") && why.contains(says), "{why}");
        }
    }

    proptest::proptest! {
        #[test]
        fn hostile_signing_requests_never_panic(
            flips in proptest::collection::vec((0usize..400, proptest::prelude::any::<u8>()), 1..6), cut in 0usize..400,
        ) {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::new(vec!["weir-node".to_owned()]).unwrap();
            params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
            let good = params.serialize_request(&key).unwrap().der().to_vec();
            let mut bytes = good.clone();
            for (at, value) in flips {
                if let Some(byte) = bytes.get_mut(at) { *byte = value; }
            }
            // The outermost bytes are not signed; whatever is taken, it is the key that signed.
            let asked = RequestedKey::from_request(&good).unwrap();
            proptest::prop_assert!(RequestedKey::from_request(&bytes).ok().is_none_or(|altered| altered == asked));
            let _ = RequestedKey::from_request(&bytes[..cut.min(bytes.len())]);
        }
    }

    #[test]
    fn nothing_is_overwritten_unasked() {
        let dir = tempfile::tempdir().unwrap();
        let (ca, out) = (dir.path().join("ca"), dir.path().join("out"));
        init(&ca, "td").unwrap();
        let again = init(&ca, "td").unwrap_err();
        assert!(again.to_string().contains("ca.pem") && again.to_string().contains("not overwritten"), "{again}");
        let files = issue(&ca, &out).unwrap();
        let before = fs::read(&files.key).unwrap();
        let again = issue(&ca, &out).unwrap_err();
        assert!(matches!(again, Error::Exists { .. }), "{again}");
        assert_eq!(fs::read(&files.key).unwrap(), before);
        let authority = Authority::open(&ca).unwrap();
        let issued = authority.agent(&web7(), &IssueOptions::default(), SystemTime::now()).unwrap();
        issued.write(&out, Existing::Replace).unwrap();
        assert_ne!(fs::read(&files.key).unwrap(), before);
    }

    #[test]
    fn errors_name_the_file_and_the_cure() {
        let dir = tempfile::tempdir().unwrap();
        let failed = |ca: &Path| issue(ca, &dir.path().join("out")).unwrap_err().to_string();
        let missing = failed(&dir.path().join("none"));
        assert!(missing.contains("none/ca.pem") && missing.contains("weir ca init"), "{missing}");

        let ca = dir.path().join("ca");
        init(&ca, "td").unwrap();
        fs::write(ca.join(CA_KEY), "no key").unwrap();
        let broken = failed(&ca);
        assert!(broken.contains("ca.key") && broken.contains("private key"), "{broken}");

        let other = dir.path().join("other");
        let authority = init(&other, "td").unwrap();
        fs::copy(other.join(CA_KEY), ca.join(CA_KEY)).unwrap();
        let mixed = failed(&ca);
        assert!(mixed.contains("ca.key") && mixed.contains("does not belong"), "{mixed}");

        assert!(init(&dir.path().join("x"), "No Domain").unwrap_err().to_string().contains("No Domain"));
        let node = |options: &IssueOptions| authority.node(&name("n1"), options, SystemTime::now()).map(|_| ());
        let wrong = node(&IssueOptions { reached_as: vec!["no name".to_owned()], ..IssueOptions::default() }).unwrap_err();
        assert!(wrong.to_string().contains("no name"), "{wrong}");
        let for_ever = IssueOptions { valid: Duration::MAX, ..IssueOptions::default() };
        assert!(matches!(node(&for_ever), Err(Error::Asked { .. })));
    }
}
