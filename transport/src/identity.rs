//! Who the other end is, as its certificate says and nothing else.
//!
//! A certificate carries exactly one URI name, in one of two forms:
//!
//! ```text
//! spiffe://DOMAIN/tenant/T/region/R/agent/A     an agent
//! spiffe://DOMAIN/node/ID                       a node
//! ```
//!
//! Promise: what is returned came out of a certificate byte for byte. Nothing is unescaped, folded or trimmed: a name that is not
//! plain is refused. Whether the certificate is to be trusted is decided in `tls.rs`.

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;
use weir_schema::{AgentIdentity, Name};

use crate::error::{Error, IdentityError};

/// The holder of a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Peer {
    /// An agent, with tenant and region.
    Agent(AgentIdentity),
    /// A node.
    Node(Name),
}

/// The whole URI name of a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SpiffeId {
    /// The fleet; every certificate of a fleet has the same.
    pub trust_domain: TrustDomain,
    /// Who it is inside the fleet.
    pub peer: Peer,
}

/// The name of a fleet: 1 to 128 characters out of `a-z 0-9 . _ -`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TrustDomain(Name);

/// Who holds the certificate with these DER bytes.
pub fn from_certificate(der: &[u8]) -> Result<Peer, Error> {
    Ok(spiffe_id(der)?.peer)
}

/// The one URI name of the certificate with these DER bytes.
pub fn spiffe_id(der: &[u8]) -> Result<SpiffeId, IdentityError> {
    SpiffeId::parse(&uri_name(der)?)
}

/// The one URI name of a certificate, as text.
pub(crate) fn uri_name(der: &[u8]) -> Result<String, IdentityError> {
    let der = CertificateDer::from(der);
    let certificate = EndEntityCert::try_from(&der).map_err(|error| IdentityError::Certificate(format!("{error:?}")))?;
    let mut names = certificate.valid_uri_names();
    let first = names.next().ok_or(IdentityError::Names(0))?;
    match names.count() {
        0 => Ok(first.to_owned()),
        more => Err(IdentityError::Names(1 + more)),
    }
}

impl SpiffeId {
    /// Reads one of the two forms.
    pub fn parse(uri: &str) -> Result<Self, IdentityError> {
        let form = || IdentityError::Form(uri.chars().take(URI_CHARS_SHOWN).collect());
        let rest = uri.strip_prefix(SCHEME).ok_or_else(form)?;
        let mut parts = rest.split('/');
        let trust_domain = TrustDomain::new(parts.next().unwrap_or_default()).ok_or_else(form)?;
        let path: Vec<&str> = parts.take(PATH_PARTS_MAX + 1).collect();
        let name = |text: &str| Name::new(text).map_err(|_| form());
        let peer = match path[..] {
            ["tenant", tenant, "region", region, "agent", agent] => {
                Peer::Agent(AgentIdentity { tenant: name(tenant)?, region: name(region)?, agent: name(agent)? })
            }
            ["node", node] => Peer::Node(name(node)?),
            _ => return Err(form()),
        };
        Ok(Self { trust_domain, peer })
    }

    /// The URI this name stands in a certificate as.
    pub fn to_uri(&self) -> String {
        match &self.peer {
            Peer::Agent(agent) => {
                format!(
                    "{SCHEME}{}/tenant/{}/region/{}/agent/{}",
                    self.trust_domain.as_str(),
                    agent.tenant,
                    agent.region,
                    agent.agent
                )
            }
            Peer::Node(node) => format!("{SCHEME}{}/node/{node}", self.trust_domain.as_str()),
        }
    }

    /// The agent, if the certificate is an agent's of `ours`.
    pub(crate) fn into_agent(self, ours: &TrustDomain) -> Result<AgentIdentity, IdentityError> {
        self.expect_domain(ours)?;
        match self.peer {
            Peer::Agent(agent) => Ok(agent),
            Peer::Node(_) => Err(IdentityError::Role { found: "a node", wanted: "an agent" }),
        }
    }

    /// The node, if the certificate is a node's of `ours`.
    pub(crate) fn into_node(self, ours: &TrustDomain) -> Result<Name, IdentityError> {
        self.expect_domain(ours)?;
        match self.peer {
            Peer::Node(node) => Ok(node),
            Peer::Agent(_) => Err(IdentityError::Role { found: "an agent", wanted: "a node" }),
        }
    }

    fn expect_domain(&self, ours: &TrustDomain) -> Result<(), IdentityError> {
        if self.trust_domain == *ours {
            return Ok(());
        }
        let text = |domain: &TrustDomain| domain.as_str().to_owned();
        Err(IdentityError::TrustDomain { found: text(&self.trust_domain), ours: text(ours) })
    }
}

impl TrustDomain {
    /// Checks and keeps `text`.
    pub fn new(text: &str) -> Option<Self> {
        let lower = text.bytes().all(|b| !b.is_ascii_uppercase());
        Name::new(text).ok().filter(|_| lower).map(Self)
    }

    /// The domain's text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

/// How every URI name begins.
pub(crate) const SCHEME: &str = "spiffe://";

/// `tenant/T/region/R/agent/A`.
const PATH_PARTS_MAX: usize = 6;

/// How much of a wrong name an error shows.
const URI_CHARS_SHOWN: usize = 200;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn agent(tenant: &str, region: &str, agent: &str) -> Peer {
        let name = |text| Name::new(text).unwrap();
        Peer::Agent(AgentIdentity { tenant: name(tenant), region: name(region), agent: name(agent) })
    }

    #[test]
    fn the_two_forms_are_read() {
        let cases = [
            ("spiffe://weir.example/tenant/acme/region/eu-1/agent/web-7", agent("acme", "eu-1", "web-7")),
            ("spiffe://td/tenant/A/region/B/agent/c.d_e-f", agent("A", "B", "c.d_e-f")),
            ("spiffe://td/tenant/tenant/region/region/agent/agent", agent("tenant", "region", "agent")),
            ("spiffe://td/node/n1", Peer::Node(Name::new("n1").unwrap())),
            ("spiffe://td/node/node", Peer::Node(Name::new("node").unwrap())),
        ];
        for (uri, peer) in cases {
            let read = SpiffeId::parse(uri).unwrap();
            assert_eq!(read.peer, peer, "{uri}");
            assert_eq!(read.to_uri(), uri);
        }
    }

    #[test]
    fn hostile_names_are_refused() {
        let long = format!("spiffe://td/node/{}", "n".repeat(129));
        let many = format!("spiffe://td/{}", "node/".repeat(10_000));
        let cases = [
            "",
            "spiffe://",
            "spiffe://td",
            "spiffe://td/",
            "spiffe:///node/n1",
            "SPIFFE://td/node/n1",
            "https://td/node/n1",
            " spiffe://td/node/n1",
            "spiffe://td/node/n1 ",
            "spiffe://td/node/n1\n",
            "spiffe://td/node/n1\0",
            "spiffe://td/node/",
            "spiffe://td/node/n1/",
            "spiffe://td//node/n1",
            "spiffe://td/Node/n1",
            "spiffe://td/node/n1?x=1",
            "spiffe://td/node/n1#x",
            "spiffe://td/node/n%31",
            "spiffe://td/node/é",
            "spiffe://TD/node/n1",
            "spiffe://user@td/node/n1",
            "spiffe://td:443/node/n1",
            "spiffe://td/tenant/t/region/r",
            "spiffe://td/tenant/t/region/r/agent",
            "spiffe://td/tenant/t/region/r/agent/",
            "spiffe://td/tenant//region/r/agent/a",
            "spiffe://td/tenant/t/region/r/agent/a/b",
            "spiffe://td/tenant/t/agent/a/region/r",
            "spiffe://td/region/r/tenant/t/agent/a",
            "spiffe://td/tenant/t/region/r/agent/a/node/n",
            "spiffe://td/tenant/t%2fregion%2fr2/region/r/agent/a",
            "spiffe://td/tenant/../region/r\u{202e}/agent/a",
            &long,
            &many,
        ];
        for uri in cases {
            assert!(matches!(SpiffeId::parse(uri), Err(IdentityError::Form(_))), "{uri:?} was taken");
        }
    }

    #[test]
    fn roles_and_domains_are_told_apart() {
        let ours = TrustDomain::new("td").unwrap();
        let read = |uri| SpiffeId::parse(uri).unwrap();
        assert!(read("spiffe://td/node/n1").into_node(&ours).is_ok());
        assert!(matches!(read("spiffe://td/node/n1").into_agent(&ours), Err(IdentityError::Role { .. })));
        let agent = "spiffe://td/tenant/t/region/r/agent/a";
        assert!(read(agent).into_agent(&ours).is_ok());
        assert!(matches!(read(agent).into_node(&ours), Err(IdentityError::Role { .. })));
        let foreign = read("spiffe://other/tenant/t/region/r/agent/a").into_agent(&ours);
        assert!(matches!(foreign, Err(IdentityError::TrustDomain { .. })));
    }

    proptest! {
        #[test]
        fn names_come_back_and_nothing_panics(
            td in "[a-z0-9._-]{1,40}", t in "[A-Za-z0-9._-]{1,128}", r in "[A-Za-z0-9._-]{1,40}", a in "[A-Za-z0-9._-]{1,40}",
            noise in "\\PC{0,60}", bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let id = SpiffeId { trust_domain: TrustDomain::new(&td).unwrap(), peer: agent(&t, &r, &a) };
            prop_assert_eq!(SpiffeId::parse(&id.to_uri()).unwrap(), id);
            if let Ok(read) = SpiffeId::parse(&format!("spiffe://{noise}")) {
                prop_assert_eq!(read.to_uri(), format!("spiffe://{noise}"));
            }
            prop_assert!(spiffe_id(&bytes).is_err());
        }
    }
}
