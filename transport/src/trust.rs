//! Whom a node takes, now: the roots, its own certificate, and which agents are revoked or of other regions. All of it may change
//! while the node runs.
//!
//! Promise: a change is in force for the next handshake at once, and every open connection hears of it. What cannot be read leaves
//! in force what was read before, and is told once.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use tracing::{info, warn};
use weir_config::ServerTls;
use weir_schema::{AgentIdentity, Name};

use crate::enrol::ENROL_ALPN;
use crate::error::{Error, IdentityError};
use crate::identity::{TrustDomain, spiffe_id};
use crate::tls::{CallerVerifier, Own, tls_error};

/// Which agents with a good certificate are taken all the same. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Admission(Arc<Rules>);

struct Rules {
    /// None: all.
    regions: Vec<Name>,
    revoked: RwLock<HashSet<AgentIdentity>>,
    change: watch::Sender<()>,
}

impl Admission {
    /// Takes agents of these regions, of all if none is named. Nobody is revoked yet.
    pub fn new(regions: Vec<Name>) -> Self {
        Self(Arc::new(Rules { regions, revoked: RwLock::default(), change: watch::Sender::new(()) }))
    }

    /// Says who is revoked from now on. Open connections of these agents end.
    pub fn set_revoked(&self, revoked: HashSet<AgentIdentity>) {
        let mut current = self.0.revoked.write().unwrap_or_else(PoisonError::into_inner);
        if *current != revoked {
            info!(revoked = revoked.len(), before = current.len(), "the list of revoked agents changed");
            *current = revoked;
            drop(current);
            self.0.change.send_replace(());
        }
    }

    /// Whether this agent is taken.
    pub fn check(&self, agent: &AgentIdentity) -> Result<(), IdentityError> {
        let regions = &self.0.regions;
        if self.0.revoked.read().unwrap_or_else(PoisonError::into_inner).contains(agent) {
            return Err(IdentityError::Revoked { agent: full_name(agent) });
        }
        if !regions.is_empty() && !regions.contains(&agent.region) {
            let taken = regions.iter().map(Name::as_str).collect::<Vec<_>>().join(", ");
            return Err(IdentityError::Region { agent: full_name(agent), taken });
        }
        Ok(())
    }

    /// Hears of every change of the list.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.0.change.subscribe()
    }
}

impl Default for Admission {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission").field("regions", &self.0.regions).finish_non_exhaustive()
    }
}

/// An agent's name as people write it: `TENANT/REGION/AGENT`.
pub fn full_name(agent: &AgentIdentity) -> String {
    format!("{}/{}/{}", agent.tenant, agent.region, agent.agent)
}

/// A node's files in force.
#[derive(Debug)]
pub(crate) struct Trust {
    files: ServerTls,
    node: Name,
    ours: TrustDomain,
    admission: Admission,
    pub(crate) verifier: Arc<CallerVerifier>,
    pub(crate) own: Arc<OwnCertificate>,
    seen: Mutex<Seen>,
    change: watch::Sender<()>,
}

#[derive(Debug)]
struct Seen {
    /// The three files when they were looked at last, good or not.
    contents: [Vec<u8>; 3],
    roots: Vec<CertificateDer<'static>>,
    failed: bool,
}

impl Trust {
    pub(crate) fn new(
        files: &ServerTls,
        own: &Own,
        node: Name,
        verifier: Arc<CallerVerifier>,
        admission: Admission,
    ) -> Result<Self, Error> {
        let seen = Seen { contents: own.contents.clone(), roots: own.root_certificates.clone(), failed: false };
        Ok(Self {
            files: files.clone(),
            node,
            admission,
            ours: verifier.ours.clone(),
            own: Arc::new(OwnCertificate(RwLock::new(Shown::of(files, own)?))),
            verifier,
            seen: Mutex::new(seen),
            change: watch::Sender::new(()),
        })
    }

    /// Looks whether the files have changed, and puts in force what they say.
    pub(crate) fn reread(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = match Own::load_unless(&self.files.ca, &self.files.cert, &self.files.key, &seen.contents) {
            Ok(None) => return,
            Ok(Some(own)) => {
                // Files that are being replaced may not fit together yet; they are looked at again when they change.
                seen.contents.clone_from(&own.contents);
                match self.put_in_force(&own) {
                    Ok(()) => {
                        info!(roots = own.root_certificates.len(), ca = ?self.files.ca, "certificates read anew");
                        seen.roots = own.root_certificates;
                        seen.failed = false;
                        self.change.send_replace(());
                        return;
                    }
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        if !seen.failed {
            warn!(error = %failed, "certificates could not be read anew: those read before stay in force");
        }
        seen.failed = true;
    }

    fn put_in_force(&self, own: &Own) -> Result<(), Error> {
        let identity = |error: IdentityError| tls_error(&self.files.cert, error);
        let node = spiffe_id(&own.chain[0]).and_then(|id| id.into_node(&self.ours)).map_err(identity)?;
        if node != self.node {
            return Err(tls_error(&self.files.cert, format!("it is that of node {node}, this is {}", self.node)));
        }
        let shown = Shown::of(&self.files, own)?;
        self.verifier.trust(own, &self.files)?;
        *self.own.0.write().unwrap_or_else(PoisonError::into_inner) = shown;
        Ok(())
    }

    /// Which agents are taken.
    pub(crate) fn admission(&self) -> &Admission {
        &self.admission
    }

    /// The roots that are trusted.
    pub(crate) fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).roots.clone()
    }

    /// Hears of every change of the files.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.change.subscribe()
    }
}

/// The certificate that this node shows.
#[derive(Debug)]
pub(crate) struct OwnCertificate(RwLock<Shown>);

#[derive(Debug)]
struct Shown {
    plain: Arc<CertifiedKey>,
    /// Agents that enrol know an authority's fingerprint only.
    with_roots: Arc<CertifiedKey>,
}

impl Shown {
    fn of(files: &ServerTls, own: &Own) -> Result<Self, Error> {
        let wrong = |error: rustls::Error| tls_error(&files.key, error);
        let certified = |chain| CertifiedKey::from_der(chain, own.key.clone_key(), &own.provider).map(Arc::new);
        let mut with_roots = own.chain.clone();
        with_roots.extend(own.root_certificates.iter().take(ROOTS_SHOWN_MAX).cloned());
        Ok(Self { plain: certified(own.chain.clone()).map_err(wrong)?, with_roots: certified(with_roots).map_err(wrong)? })
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let shown = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let enrols = hello.alpn().is_some_and(|mut protocols| protocols.any(|protocol| protocol == ENROL_ALPN));
        Some(if enrols { shown.with_roots.clone() } else { shown.plain.clone() })
    }
}

/// Roots shown to agents that enrol. A fleet has one, and two while one takes over.
const ROOTS_SHOWN_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_and_revocations_are_told_in_plain_words() {
        let name = |text: &str| Name::new(text).unwrap();
        let agent = |region: &str| AgentIdentity { tenant: name("acme"), region: name(region), agent: name("web-7") };
        let admission = Admission::new(vec![name("eu-1"), name("eu-2")]);
        let mut changes = admission.changes();
        assert_eq!(admission.check(&agent("eu-2")), Ok(()));
        let why = admission.check(&agent("us-1")).unwrap_err().to_string();
        assert_eq!(why, "agent acme/us-1/web-7 is of a region that this node does not take (it takes eu-1, eu-2)");
        admission.set_revoked(HashSet::from([agent("eu-2")]));
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        let why = admission.check(&agent("eu-2")).unwrap_err().to_string();
        assert_eq!(why, "agent acme/eu-2/web-7 is revoked");
        assert_eq!(admission.check(&agent("eu-1")), Ok(()), "the same name elsewhere is another agent");
        admission.set_revoked(HashSet::from([agent("eu-2")]));
        assert!(!changes.has_changed().unwrap());
        assert_eq!(Admission::default().check(&agent("us-1")), Ok(()));
    }
}
