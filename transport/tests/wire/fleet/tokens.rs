//! A cluster's tokens, in memory; and agents that have nothing but a token.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use weir_config::{ClientTls, Enrol};
use weir_transport::enrol::{DeskOptions, Redeemed, Token, TokenId, TokenRecord, Tokens};
use weir_transport::{Admission, ClientConfig, Doors};

use super::{Fleet, name};

#[derive(Default)]
pub struct InMemory {
    pub records: Mutex<BTreeMap<TokenId, TokenRecord>>,
    pub used: Mutex<BTreeMap<TokenId, Redeemed>>,
}

impl Tokens for InMemory {
    fn find(&self, id: TokenId) -> Result<Option<TokenRecord>, String> {
        Ok(self.records.lock().unwrap().get(&id).cloned())
    }

    fn redeem(&self, id: TokenId, used: &Redeemed) -> Result<Redeemed, String> {
        Ok(self.used.lock().unwrap().entry(id).or_insert_with(|| used.clone()).clone())
    }
}

impl InMemory {
    /// A token of tenant acme that is good for `valid`.
    pub fn make(&self, fleet: &Fleet, region: &str, agent: &str, valid: Duration) -> Token {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        let times = (now, now + valid.as_millis() as u64);
        let (token, record) = Token::create(name("acme"), name(region), Some(name(agent)), fleet.authority.fingerprint(), times);
        self.records.lock().unwrap().insert(token.id, record);
        token
    }
}

impl Fleet {
    /// A node with these enrols agents of region eu-1.
    pub fn doors(&self, tokens: &Arc<InMemory>) -> Doors {
        let authority = self.dir.path().join("ca");
        let enrols = DeskOptions { authority, valid: Duration::from_secs(24 * 3600), tokens: tokens.clone() };
        Doors { admission: Admission::new(vec![name("eu-1")]), enrols: Some(enrols) }
    }

    /// A host with a token and nothing else.
    pub fn host(&self, host: &str, token: &str, nodes: &[SocketAddr]) -> ClientConfig {
        let dir = self.dir.path().join(format!("host-{host}"));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("token"), format!("{token}\n")).unwrap();
        let own = dir.join("identity");
        let tls = ClientTls { ca: own.join("ca.pem"), cert: own.join("cert.pem"), key: own.join("key.pem") };
        let enrol = Some(Enrol { token_file: dir.join("token") });
        ClientConfig { enrol, ..self.config(tls, nodes, 1 << 20) }
    }
}
