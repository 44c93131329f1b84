//! The node's decision: who gets a certificate, and which.
//!
//! Promise: a token is used up only together with a certificate that was made; a store that is away refuses for now and uses
//! nothing up. The authority's files are read anew for each certificate, so a new authority needs no restart.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use tracing::error;
use weir_schema::{AgentIdentity, Name};

use super::message::{Answer, Ask, Grant, Refusal};
use super::token::{Redeemed, Secret, TokenId, TokenRecord};
use crate::ca::{Authority, IssueOptions, RequestedKey};
use crate::certificate::sha256;
use crate::error::IdentityError;
use crate::trust::Admission;

/// The tokens of the cluster: the same for all its nodes. Asked on threads that may block.
pub trait Tokens: Send + Sync {
    /// What was stored of a token when it was made. An error is for people: the store is away.
    fn find(&self, id: TokenId) -> Result<Option<TokenRecord>, String>;

    /// Notes a first use, once for all nodes, and gives what is noted: `used`, or an earlier use.
    fn redeem(&self, id: TokenId, used: &Redeemed) -> Result<Redeemed, String>;
}

/// What a node needs to issue certificates.
#[derive(Clone)]
pub struct DeskOptions {
    /// Folder of the authority, with its key.
    pub authority: PathBuf,
    /// How long a certificate lives.
    pub valid: Duration,
    /// The cluster's tokens.
    pub tokens: Arc<dyn Tokens>,
}

impl fmt::Debug for DeskOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeskOptions").field("authority", &self.authority).field("valid", &self.valid).finish_non_exhaustive()
    }
}

/// Issues certificates to agents.
#[derive(Debug, Clone)]
pub(crate) struct Desk {
    options: DeskOptions,
    admission: Admission,
    node: Name,
}

/// An answer, and for the log whose it is as far as is known.
#[derive(Debug)]
pub(crate) struct Decided {
    pub(crate) answer: Answer,
    pub(crate) agent: Option<AgentIdentity>,
}

impl Desk {
    pub(crate) fn new(options: DeskOptions, admission: Admission, node: Name) -> Self {
        Self { options, admission, node }
    }

    /// Decides. `caller` is who the connection's certificate names, if one was shown; `roots` are those that this node trusts. Blocks.
    pub(crate) fn decide(
        &self,
        ask: &Ask,
        caller: Option<&AgentIdentity>,
        roots: &[CertificateDer<'_>],
        now: SystemTime,
    ) -> Decided {
        let mut agent = caller.cloned();
        let answer = match (&ask.token, caller) {
            (Some((id, secret)), _) => {
                self.known(*id, secret, now).and_then(|record| self.enrol(agent.insert(record.agent), *id, ask, roots, now))
            }
            (None, Some(caller)) => self.admit(caller).and_then(|()| Ok(self.sign(caller, ask, roots, now)?.0)),
            (None, None) => Err(Refusal::Nothing),
        };
        Decided { answer, agent }
    }

    fn known(&self, id: TokenId, secret: &Secret, now: SystemTime) -> Result<TokenRecord, Refusal> {
        let record = self.options.tokens.find(id).map_err(not_now)?.ok_or(Refusal::Unknown)?;
        record.check(secret, unix_ms(now))?;
        Ok(record)
    }

    fn enrol(&self, agent: &AgentIdentity, id: TokenId, ask: &Ask, roots: &[CertificateDer<'_>], now: SystemTime) -> Answer {
        self.admit(agent)?;
        let (grant, key) = self.sign(agent, ask, roots, now)?;
        let used =
            Redeemed { agent: agent.clone(), key_hash: sha256(&key.to_der()), node: self.node.clone(), at_ms: unix_ms(now) };
        let noted = self.options.tokens.redeem(id, &used).map_err(not_now)?;
        // The same key asks again: the answer before was lost.
        if noted.key_hash == used.key_hash { Ok(grant) } else { Err(Refusal::Used) }
    }

    fn admit(&self, agent: &AgentIdentity) -> Result<(), Refusal> {
        self.admission.check(agent).map_err(|error| match error {
            IdentityError::Revoked { .. } => Refusal::Revoked,
            _ => Refusal::Region,
        })
    }

    fn sign(
        &self,
        agent: &AgentIdentity,
        ask: &Ask,
        roots: &[CertificateDer<'_>],
        now: SystemTime,
    ) -> Result<(Grant, RequestedKey), Refusal> {
        let key = RequestedKey::from_request(&ask.request).map_err(|_| Refusal::Request)?;
        let authority = Authority::open(&self.options.authority).map_err(not_now)?;
        if !roots.contains(authority.cert_der()) {
            let authority = self.options.authority.display();
            return Err(not_now(format!(
                "the authority in {authority} is none that this node trusts (cure: add its ca.pem to the file of `tls.ca`)"
            )));
        }
        let options = IssueOptions { valid: self.options.valid, ..IssueOptions::default() };
        let certificate = authority.agent_with_key(agent, &key, &options, now).map_err(not_now)?;
        let roots = roots.iter().map(|root| root.to_vec()).collect();
        Ok((Grant { certificate: certificate.to_vec(), roots }, key))
    }
}

/// The agent is told to ask again; what is wrong is this node's, and for its log.
fn not_now(why: impl fmt::Display) -> Refusal {
    error!(%why, "no certificate can be issued now");
    Refusal::NotNow
}

fn unix_ms(now: SystemTime) -> u64 {
    now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};
    use std::path::Path;
    use std::sync::Mutex;

    use super::*;
    use crate::ca;
    use crate::enrol::Token;
    use crate::identity::{Peer, from_certificate};

    #[derive(Default)]
    struct InMemory {
        records: Mutex<BTreeMap<TokenId, TokenRecord>>,
        used: Mutex<BTreeMap<TokenId, Redeemed>>,
        away: Mutex<bool>,
    }

    impl Tokens for InMemory {
        fn find(&self, id: TokenId) -> Result<Option<TokenRecord>, String> {
            Ok(self.records.lock().unwrap().get(&id).cloned())
        }

        fn redeem(&self, id: TokenId, used: &Redeemed) -> Result<Redeemed, String> {
            if *self.away.lock().unwrap() {
                return Err("the store is away".into());
            }
            Ok(self.used.lock().unwrap().entry(id).or_insert_with(|| used.clone()).clone())
        }
    }

    struct Scene {
        dir: tempfile::TempDir,
        tokens: Arc<InMemory>,
        admission: Admission,
        desk: Desk,
        roots: Vec<CertificateDer<'static>>,
    }

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::now() + Duration::from_secs(seconds)
    }

    fn request() -> Vec<u8> {
        let key = rcgen::KeyPair::generate().unwrap();
        rcgen::CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
    }

    impl Scene {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let authority = ca::init(&dir.path().join("ca"), "td").unwrap();
            let (tokens, admission) = (Arc::new(InMemory::default()), Admission::new(vec![name("eu")]));
            let options = DeskOptions { authority: dir.path().join("ca"), valid: DAY, tokens: tokens.clone() };
            let desk = Desk::new(options, admission.clone(), name("n1"));
            Self { dir, tokens, admission, desk, roots: vec![authority.cert_der().clone()] }
        }

        fn token(&self, region: &str) -> Token {
            let now = unix_ms(SystemTime::now());
            let (token, record) = Token::create(name("acme"), name(region), Some(name("web-7")), [0; 32], (now, now + 3_600_000));
            self.tokens.records.lock().unwrap().insert(token.id, record);
            token
        }

        fn ask(&self, token: &Token, request: &[u8], now: SystemTime) -> Answer {
            let ask = Ask { token: Some((token.id, token.secret.clone())), request: request.to_vec() };
            self.desk.decide(&ask, None, &self.roots, now).answer
        }

        fn renew(&self, caller: Option<&AgentIdentity>) -> Answer {
            self.desk.decide(&Ask { token: None, request: request() }, caller, &self.roots, SystemTime::now()).answer
        }
    }

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn web7(region: &str) -> AgentIdentity {
        AgentIdentity { tenant: name("acme"), region: name(region), agent: name("web-7") }
    }

    #[test]
    fn a_token_makes_one_agent_for_one_key() {
        let scene = Scene::new();
        let (token, first, second) = (scene.token("eu"), request(), request());
        let grant = scene.ask(&token, &first, at(0)).unwrap();
        assert_eq!(from_certificate(&grant.certificate).unwrap(), Peer::Agent(web7("eu")));
        assert_eq!(scene.ask(&token, &second, at(0)), Err(Refusal::Used));
        let again = scene.ask(&token, &first, at(60)).unwrap();
        assert_eq!(from_certificate(&again.certificate).unwrap(), Peer::Agent(web7("eu")), "the answer before was lost");
        assert_eq!(scene.tokens.used.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_token_that_is_expired_wrong_unknown_or_of_another_region_makes_none() {
        let scene = Scene::new();
        let token = scene.token("eu");
        assert_eq!(scene.ask(&token, &request(), at(3601)), Err(Refusal::Expired));
        let mut wrong = token.clone();
        wrong.secret.0[0] ^= 1;
        assert_eq!(scene.ask(&wrong, &request(), at(0)), Err(Refusal::Unknown));
        let mut unknown = token.clone();
        unknown.id.0[0] ^= 1;
        assert_eq!(scene.ask(&unknown, &request(), at(0)), Err(Refusal::Unknown));
        assert_eq!(scene.ask(&scene.token("us"), &request(), at(0)), Err(Refusal::Region));
        assert_eq!(scene.ask(&token, b"no request", at(0)), Err(Refusal::Request));
        scene.admission.set_revoked(HashSet::from([web7("eu")]));
        assert_eq!(scene.ask(&token, &request(), at(0)), Err(Refusal::Revoked));
        assert!(scene.tokens.used.lock().unwrap().is_empty(), "a refusal uses nothing up");
        scene.admission.set_revoked(HashSet::new());
        assert!(scene.ask(&token, &request(), at(0)).is_ok());
    }

    #[test]
    fn a_failure_of_this_node_uses_no_token_up() {
        let scene = Scene::new();
        let token = scene.token("eu");
        *scene.tokens.away.lock().unwrap() = true;
        assert_eq!(scene.ask(&token, &request(), at(0)), Err(Refusal::NotNow));
        *scene.tokens.away.lock().unwrap() = false;
        let away = |from: &str, to: &str| std::fs::rename(scene.dir.path().join(from), scene.dir.path().join(to)).unwrap();
        away("ca", "elsewhere");
        assert_eq!(scene.ask(&token, &request(), at(0)), Err(Refusal::NotNow));
        ca::init(Path::new(&scene.dir.path().join("ca")), "td").unwrap();
        assert_eq!(scene.ask(&token, &request(), at(0)), Err(Refusal::NotNow), "an authority that nobody trusts");
        std::fs::remove_dir_all(scene.dir.path().join("ca")).unwrap();
        away("elsewhere", "ca");
        assert!(scene.ask(&token, &request(), at(0)).is_ok());
    }

    #[test]
    fn renewal_is_for_the_same_agent_only_while_it_is_taken() {
        let scene = Scene::new();
        let grant = scene.renew(Some(&web7("eu"))).unwrap();
        assert_eq!(from_certificate(&grant.certificate).unwrap(), Peer::Agent(web7("eu")));
        assert_eq!(scene.renew(Some(&web7("us"))), Err(Refusal::Region));
        assert_eq!(scene.renew(None), Err(Refusal::Nothing));
        scene.admission.set_revoked(HashSet::from([web7("eu")]));
        assert_eq!(scene.renew(Some(&web7("eu"))), Err(Refusal::Revoked));
    }
}
