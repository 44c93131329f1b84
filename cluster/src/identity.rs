//! Who may be an agent of this cluster, as objects that all its nodes read: tokens, what became of them, and who is revoked.
//!
//! ```text
//! tokens/<id>/token                  version u8 | postcard of TokenRecord: a hash of the secret, the agent, the times
//! tokens/<id>/used                   version u8 | postcard of Redeemed; created once, by the node that enrolled
//! revoked/<tenant>/<region>/<agent>  decimal: when, in milliseconds of Unix time
//! ```
//!
//! Promises: a token is used once in the whole cluster, because its `used` is created, never written. A revocation is in force on every
//! node within [`LOOK_EVERY`] and a listing; a node whose store is away keeps the list it has, and says so.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;
use tracing::{info, warn};
use weir_archive::{ObjectPath, Store};
use weir_config::NodeConfig;
use weir_schema::{AgentIdentity, Name};
use weir_transport::enrol::{DeskOptions, Redeemed, Token, TokenId, TokenRecord, Tokens};
use weir_transport::{Admission, Doors, full_name};

use crate::error::Error;
use crate::node::cluster_store;

/// What a token shall make.
#[derive(Debug, Clone)]
pub struct TokenWish {
    /// Tenant of the agent.
    pub tenant: Name,
    /// Region of the agent.
    pub region: Name,
    /// Its name; none: one made from the token's id, which nobody else has.
    pub agent: Option<Name>,
    /// How long the token is good.
    pub valid: Duration,
}

/// A token, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenStatus {
    /// As stored when it was made.
    pub record: TokenRecord,
    /// Its use.
    pub used: Option<Redeemed>,
}

/// An agent that was enrolled by a token, or is revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentStatus {
    /// Who.
    pub agent: AgentIdentity,
    /// Its latest enrolment; none: its certificate came otherwise.
    pub enrolled: Option<Redeemed>,
    /// Since when it is revoked, in milliseconds of Unix time.
    pub revoked_ms: Option<u64>,
}

/// Makes a token for the cluster of this node's config.
pub async fn create_token(config: &NodeConfig, wish: TokenWish) -> Result<(Token, TokenRecord), Error> {
    let store = cluster_store(config)?;
    let identity =
        |agent: &Name| AgentIdentity { tenant: wish.tenant.clone(), region: wish.region.clone(), agent: agent.clone() };
    if let Some(agent) = wish.agent.as_ref().map(identity)
        && revoked(&store).await?.contains_key(&agent)
    {
        return Err(Error::Identity(format!(
            "agent {} is revoked: name another, or let it back by `weir agents revoke --undo`",
            full_name(&agent)
        )));
    }
    let authority = weir_transport::tls::authority_of(&config.tls)?;
    let now = wall_ms();
    let times = (now, now.saturating_add(wish.valid.as_millis() as u64));
    let (token, record) = Token::create(wish.tenant, wish.region, wish.agent, authority, times);
    store.create(&token_path(token.id), encode(&record)).await?;
    Ok((token, record))
}

/// All tokens, the oldest first.
pub async fn tokens(config: &NodeConfig) -> Result<Vec<TokenStatus>, Error> {
    let store = cluster_store(config)?;
    let mut found = Vec::new();
    for path in store.list(&ObjectPath::from(TOKENS)).await? {
        if !path.as_ref().ends_with("/token") {
            continue;
        }
        let Some(record) = read::<TokenRecord>(&store, &path).await? else { continue };
        let used = read::<Redeemed>(&store, &used_path(record.id)).await?;
        found.push(TokenStatus { record, used });
    }
    found.sort_by_key(|token| (token.record.created_ms, token.record.id));
    Ok(found)
}

/// Every agent that was enrolled by a token, and every one that is revoked, by name.
pub async fn agents(config: &NodeConfig) -> Result<Vec<AgentStatus>, Error> {
    let store = cluster_store(config)?;
    let mut agents: BTreeMap<String, AgentStatus> = BTreeMap::new();
    let mut of = |agent: &AgentIdentity, change: &dyn Fn(&mut AgentStatus)| {
        let unknown = AgentStatus { agent: agent.clone(), enrolled: None, revoked_ms: None };
        change(agents.entry(full_name(agent)).or_insert(unknown));
    };
    for used in tokens(config).await?.into_iter().filter_map(|token| token.used) {
        let newer = |known: &AgentStatus| known.enrolled.as_ref().is_none_or(|known| known.at_ms <= used.at_ms);
        of(&used.agent, &|known| {
            if newer(known) {
                known.enrolled = Some(used.clone());
            }
        });
    }
    for (agent, path) in revoked(&store).await? {
        let at = store.read_if_there(&path).await?.and_then(|text| String::from_utf8(text).ok()?.trim().parse().ok());
        of(&agent, &|known| known.revoked_ms = Some(at.unwrap_or(0)));
    }
    Ok(agents.into_values().collect())
}

/// Revokes an agent: every node refuses it from the next look on, and ends its connections.
pub async fn revoke(config: &NodeConfig, agent: &AgentIdentity) -> Result<(), Error> {
    let at = wall_ms().to_string().into_bytes();
    // One that is revoked already keeps its time.
    cluster_store(config)?.create(&revoked_path(agent), at).await?;
    Ok(())
}

/// Lets a revoked agent back, with whatever certificate it has. False: it was not revoked.
pub async fn let_back(config: &NodeConfig, agent: &AgentIdentity) -> Result<bool, Error> {
    let (store, path) = (cluster_store(config)?, revoked_path(agent));
    let was = store.read_if_there(&path).await?.is_some();
    store.remove(&path).await?;
    Ok(was)
}

/// The agent that `text` names: `TENANT/REGION/AGENT`, or a plain name that only one agent of `agents` has.
pub fn find_agent(text: &str, agents: &[AgentStatus]) -> Result<AgentIdentity, Error> {
    let name = |text: &str| Name::new(text).map_err(|wrong| Error::Identity(wrong.to_string()));
    match text.split('/').collect::<Vec<_>>()[..] {
        [tenant, region, agent] => Ok(AgentIdentity { tenant: name(tenant)?, region: name(region)?, agent: name(agent)? }),
        [agent] => {
            let mut named = agents.iter().filter(|known| known.agent.agent.as_str() == agent);
            match (named.next(), named.next()) {
                (Some(only), None) => Ok(only.agent.clone()),
                (found, _) => {
                    let count = if found.is_some() { "several agents are" } else { "no enrolled agent is" };
                    Err(Error::Identity(format!("{count} called {agent:?}: write TENANT/REGION/AGENT")))
                }
            }
        }
        _ => Err(Error::Identity(format!("{text:?} names no agent: write TENANT/REGION/AGENT"))),
    }
}

/// What the node's server is to hold agents to, and the store to follow. The revoked are known before the first agent comes.
pub(crate) async fn doors(config: &NodeConfig) -> Result<(Doors, Store), Error> {
    let store = cluster_store(config)?;
    let regions =
        config.agents.regions.iter().map(|region| Name::new(region).map_err(|wrong| Error::Identity(wrong.to_string())));
    let admission = Admission::new(regions.collect::<Result<_, _>>()?);
    admission.set_revoked(revoked(&store).await?.into_keys().collect());
    let enrols = config.agents.authority.clone().map(|authority| {
        let tokens = std::sync::Arc::new(StoredTokens { store: store.clone(), runtime: Handle::current() });
        DeskOptions { authority, valid: Duration::from_millis(config.agents.certificate_ms), tokens }
    });
    if enrols.is_some() {
        info!("agents are enrolled here");
    }
    Ok((Doors { admission, enrols }, store))
}

/// Keeps the list of revoked agents fresh. Ends when dropped.
pub(crate) async fn follow(store: Store, admission: Admission) {
    let mut failed = false;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        match tokio::time::timeout(STORE_TIME_MAX, revoked(&store)).await {
            Ok(Ok(revoked)) => {
                failed = false;
                admission.set_revoked(revoked.into_keys().collect());
            }
            // Told once, not with every look.
            failure if !failed => {
                failed = true;
                let why =
                    failure.map_or_else(|late| late.to_string(), |failed| failed.err().map_or(String::new(), |e| e.to_string()));
                warn!(why, store = store.url(), "the list of revoked agents cannot be read: the one read before stays in force");
            }
            _ => {}
        }
    }
}

/// The cluster's tokens for the transport, which asks on threads that may block.
struct StoredTokens {
    store: Store,
    runtime: Handle,
}

impl StoredTokens {
    fn wait<T>(&self, asked: impl Future<Output = Result<T, Error>>) -> Result<T, String> {
        let asked = async { tokio::time::timeout(STORE_TIME_MAX, asked).await };
        match self.runtime.block_on(asked) {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!("the store {} does not answer", self.store.url())),
        }
    }
}

impl Tokens for StoredTokens {
    fn find(&self, id: TokenId) -> Result<Option<TokenRecord>, String> {
        self.wait(read(&self.store, &token_path(id)))
    }

    fn redeem(&self, id: TokenId, used: &Redeemed) -> Result<Redeemed, String> {
        self.wait(async {
            let path = used_path(id);
            // Whatever came of it, what is there counts: a create that failed may have succeeded.
            let created = self.store.create(&path, encode(used)).await;
            match read(&self.store, &path).await? {
                Some(there) => Ok(there),
                None => Err(created.err().map_or_else(|| Error::Identity(format!("{path} has vanished")), Error::from)),
            }
        })
    }
}

/// Who is revoked, and the object that says so. Read off the names alone: no object's content can spoil the list.
async fn revoked(store: &Store) -> Result<HashMap<AgentIdentity, ObjectPath>, Error> {
    let paths = store.list(&ObjectPath::from(REVOKED)).await?;
    let mut found = HashMap::new();
    for path in paths {
        match agent_of(&path) {
            Some(agent) => _ = found.insert(agent, path),
            None => warn!(%path, "no revocation of this version: left out"),
        }
    }
    Ok(found)
}

fn agent_of(path: &ObjectPath) -> Option<AgentIdentity> {
    let parts: Vec<String> = path.parts().map(|part| part.as_ref().replace("%2E", ".")).collect();
    let [folder, tenant, region, agent] = &parts[..] else { return None };
    let name = |text: &String| Name::new(text).ok();
    (folder == REVOKED).then_some(AgentIdentity { tenant: name(tenant)?, region: name(region)?, agent: name(agent)? })
}

fn token_path(id: TokenId) -> ObjectPath {
    ObjectPath::from(TOKENS).join(id.to_string()).join("token")
}

fn used_path(id: TokenId) -> ObjectPath {
    ObjectPath::from(TOKENS).join(id.to_string()).join("used")
}

fn revoked_path(agent: &AgentIdentity) -> ObjectPath {
    [&agent.tenant, &agent.region, &agent.agent]
        .into_iter()
        .fold(ObjectPath::from(REVOKED), |path, name| path.join(name.as_str()))
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    postcard::to_extend(value, vec![VERSION]).expect("a value in memory serializes")
}

/// What stands there; an object of another version is an error, for it may be a use.
async fn read<T: DeserializeOwned>(store: &Store, path: &ObjectPath) -> Result<Option<T>, Error> {
    let Some(bytes) = store.read_if_there(path).await? else { return Ok(None) };
    let decoded = bytes.strip_prefix(&[VERSION]).and_then(|body| postcard::from_bytes(body).ok());
    decoded.map(Some).ok_or_else(|| Error::Identity(format!("{path} does not decode: is it of a newer version?")))
}

fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

const VERSION: u8 = 1;
const TOKENS: &str = "tokens";
const REVOKED: &str = "revoked";
/// How often the list of revoked agents is read.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// For one answer of the store.
const STORE_TIME_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn agent(agent: &str) -> AgentIdentity {
        AgentIdentity { tenant: name("acme"), region: name("eu"), agent: name(agent) }
    }

    struct Scene {
        _dir: tempfile::TempDir,
        config: NodeConfig,
    }

    /// A node's config with its files, as two nodes of one machine would have it.
    fn scene() -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca");
        weir_transport::ca::init(&ca, "td").unwrap();
        weir_transport::ca::issue_node(&ca, &name("n1"), &dir.path().join("tls")).unwrap();
        let text = "id = \"n1\"\ndata_dir = \"data\"\n[tls]\nca = \"tls/ca.pem\"\ncert = \"tls/cert.pem\"\nkey = \"tls/key.pem\"\n[agents]\nauthority = \"ca\"\n";
        let config = NodeConfig::parse(&dir.path().join("node.toml"), text, []).unwrap();
        Scene { _dir: dir, config }
    }

    fn wish(agent: Option<&str>) -> TokenWish {
        TokenWish { tenant: name("acme"), region: name("eu"), agent: agent.map(name), valid: Duration::from_secs(3600) }
    }

    fn used(agent: &AgentIdentity, key: u8) -> Redeemed {
        Redeemed { agent: agent.clone(), key_hash: [key; 32], node: name("n1"), at_ms: 7 }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_token_is_redeemed_once_whoever_asks() {
        let scene = scene();
        let (token, record) = create_token(&scene.config, wish(None)).await.unwrap();
        let agent = record.agent.clone();
        let nodes = [(); 4].map(|()| StoredTokens { store: cluster_store(&scene.config).unwrap(), runtime: Handle::current() });
        // Four nodes, each with another key, at the same time.
        let asking = nodes.into_iter().zip(1u8..).map(|(node, key)| {
            let agent = agent.clone();
            tokio::task::spawn_blocking(move || {
                assert!(node.find(token_id()).unwrap().is_none());
                node.redeem(token.id, &used(&agent, key)).unwrap()
            })
        });
        let mut noted = Vec::new();
        for asked in asking.collect::<Vec<_>>() {
            noted.push(asked.await.unwrap());
        }
        assert!(noted.iter().all(|one| *one == noted[0]), "{noted:?}");
        let listed = tokens(&scene.config).await.unwrap();
        assert_eq!(listed, [TokenStatus { record, used: Some(noted[0].clone()) }]);
        assert_eq!(agents(&scene.config).await.unwrap()[0].enrolled.as_ref(), Some(&noted[0]));
    }

    fn token_id() -> TokenId {
        TokenId([9; 8])
    }

    #[tokio::test]
    async fn the_revoked_are_read_off_names_and_let_back() {
        let scene = scene();
        let config = &scene.config;
        for who in [agent("web-7"), agent("."), agent(".."), agent("a.b")] {
            revoke(config, &who).await.unwrap();
            revoke(config, &who).await.unwrap();
        }
        let (doors, store) = doors(config).await.unwrap();
        assert!(doors.enrols.is_some());
        for who in ["web-7", ".", "..", "a.b"] {
            assert!(doors.admission.check(&agent(who)).is_err(), "{who}");
        }
        assert!(doors.admission.check(&agent("web-8")).is_ok());
        let refused = create_token(config, wish(Some("web-7"))).await.unwrap_err().to_string();
        assert!(refused.contains("acme/eu/web-7 is revoked"), "{refused}");

        let following = tokio::spawn(follow(store, doors.admission.clone()));
        assert!(let_back(config, &agent("web-7")).await.unwrap());
        assert!(!let_back(config, &agent("web-7")).await.unwrap());
        revoke(config, &agent("web-8")).await.unwrap();
        let late = tokio::time::Instant::now() + Duration::from_secs(30);
        while doors.admission.check(&agent("web-7")).is_err() || doors.admission.check(&agent("web-8")).is_ok() {
            assert!(tokio::time::Instant::now() < late, "the change was not seen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        following.abort();
        let listed = agents(config).await.unwrap();
        assert_eq!(listed.len(), 4);
        assert!(listed.iter().all(|one| one.revoked_ms.is_some_and(|at| at > 0) && one.enrolled.is_none()));
    }

    #[test]
    fn agents_are_named_in_full_or_by_a_name_of_their_own() {
        let status = |agent| AgentStatus { agent, enrolled: None, revoked_ms: None };
        let twin = AgentIdentity { tenant: name("other"), ..agent("twin") };
        let known = [status(agent("web-7")), status(agent("twin")), status(twin.clone())];
        assert_eq!(find_agent("web-7", &known).unwrap(), agent("web-7"));
        assert_eq!(find_agent("other/eu/twin", &known).unwrap(), twin);
        for (text, says) in [("twin", "several"), ("web-8", "no enrolled agent"), ("a/b", "names no agent"), ("a/b/c d", "name")]
        {
            let why = find_agent(text, &known).unwrap_err().to_string();
            assert!(why.contains(says), "{why}");
        }
    }
}
