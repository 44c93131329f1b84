//! Whose address is this: what hosts said of their own addresses, over time.
//!
//! A host's word holds from its time until its next word. Where nobody's word holds, a first word that follows soon does: its host
//! had the address before its agent spoke. Addresses mean something inside one tenant. An address that several
//! hosts claim is nobody's, except for a host that claims it itself; loopback is the host's own.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::{HashMap, HashSet};
use serde::{Deserialize, Serialize};

use super::end::{Lateness, Place, is_local, millis};

/// A host's own addresses, as it said at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressFact {
    /// The host.
    pub place: Arc<Place>,
    /// Nanoseconds since the epoch.
    pub time: i64,
    /// The first 64 bits of the event id: breaks ties of time.
    pub id: u64,
    /// All of its addresses.
    pub addresses: Vec<IpAddr>,
}

/// Every host's addresses.
#[derive(Debug, Default)]
pub struct Addresses {
    hosts: HashMap<u64, BTreeMap<(i64, u64), AddressFact>, FixedState>,
    claims: HashMap<(u64, IpAddr), HashSet<u64, FixedState>, FixedState>,
}

impl Addresses {
    /// Adds a fact. Returns the addresses (with their tenant's key) whose owner may have changed by it.
    pub fn learn(&mut self, fact: AddressFact) -> Vec<(u64, IpAddr)> {
        let tenant = fact.place.tenant_key;
        let host = self.hosts.entry(fact.place.host_key).or_default();
        let at = (fact.time, fact.id);
        if host.get(&at) == Some(&fact) {
            return Vec::new();
        }
        // The word before ends here; and if there is none, the word after is the host's first no more.
        let neighbour = host.range(..at).next_back().or_else(|| host.range(at..).next());
        let replaced = neighbour.map_or_else(Vec::new, |(_, word)| word.addresses.clone());
        for ip in &fact.addresses {
            self.claims.entry((tenant, *ip)).or_default().insert(fact.place.host_key);
        }
        let mut moved: Vec<_> = replaced.into_iter().chain(fact.addresses.iter().copied()).map(|ip| (tenant, ip)).collect();
        host.insert(at, fact);
        moved.sort_unstable();
        moved.dedup();
        moved
    }

    /// All words that are kept, to be learnt again.
    pub(super) fn facts(&self) -> Vec<AddressFact> {
        let mut hosts: Vec<_> = self.hosts.iter().collect();
        hosts.sort_by_key(|(host, _)| **host);
        hosts.into_iter().flat_map(|(_, words)| words.values().cloned()).collect()
    }

    /// Who had `ip` at time `at` (`None`: has it now), as seen from `own`, the host at the other end.
    pub fn owner(&self, ip: IpAddr, own: &Arc<Place>, at: Option<i64>, lateness: Lateness) -> Option<Arc<Place>> {
        if ip.is_loopback() {
            return Some(Arc::clone(own));
        }
        let claimants = self.claims.get(&(own.tenant_key, ip))?;
        let said = |host: &u64| self.in_force(*host, at).filter(|fact| fact.addresses.contains(&ip));
        let Some(at) = at.filter(|_| !claimants.iter().any(|host| said(host).is_some())) else {
            return sole_owner(&ip, own, claimants, said);
        };
        let reaches = at.saturating_add_unsigned(lateness.first_word_ms().saturating_mul(1_000_000));
        let first = |host: &u64| self.hosts.get(host)?.values().next();
        let soon = |host: &u64| first(host).filter(|fact| at < fact.time && fact.time <= reaches && fact.addresses.contains(&ip));
        sole_owner(&ip, own, claimants, soon)
    }

    /// Drops words that no unsettled connection can ask for at `tick`.
    pub fn forget(&mut self, tick: u64, lateness: Lateness) {
        let horizon = tick.saturating_sub(lateness.hold_ms());
        let mut stale = Vec::new();
        for (host, facts) in &mut self.hosts {
            while facts.keys().nth(1).is_some_and(|(next, _)| millis(*next) < horizon) {
                let (_, gone) = facts.pop_first().expect("there are two");
                stale.push((*host, gone));
            }
        }
        for (host, gone) in stale {
            for ip in &gone.addresses {
                let claimed = self.hosts[&host].values().any(|fact| fact.addresses.contains(ip));
                let entry = (gone.place.tenant_key, *ip);
                if !claimed && let Some(claimants) = self.claims.get_mut(&entry) {
                    claimants.remove(&host);
                    if claimants.is_empty() {
                        self.claims.remove(&entry);
                    }
                }
            }
        }
    }

    fn in_force(&self, host: u64, at: Option<i64>) -> Option<&AddressFact> {
        let facts = self.hosts.get(&host)?;
        match at {
            None => facts.values().next_back(),
            Some(at) => facts.range(..=(at, u64::MAX)).next_back().map(|(_, fact)| fact),
        }
    }
}

/// The one of `claimants` whose word holds, or `own` when it is among several.
fn sole_owner<'a>(
    ip: &IpAddr,
    own: &Arc<Place>,
    claimants: &HashSet<u64, FixedState>,
    holds: impl Fn(&u64) -> Option<&'a AddressFact>,
) -> Option<Arc<Place>> {
    if let Some(fact) = Some(&own.host_key).filter(|host| claimants.contains(*host)).and_then(&holds) {
        return Some(Arc::clone(&fact.place));
    }
    if is_local(ip) {
        return None;
    }
    let mut owners = claimants.iter().filter_map(holds);
    let owner = owners.next()?;
    owners.next().is_none().then(|| Arc::clone(&owner.place))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A first word reaches 1 ms back.
    const LATENESS: Lateness = Lateness { retention_ms: 10, skew_ms: 1 };

    fn place(tenant: &str, host: &str) -> Arc<Place> {
        Arc::new(Place::new(tenant.into(), "r".into(), host.into()))
    }

    fn fact(tenant: &str, host: &str, time: i64, addresses: &[&str]) -> AddressFact {
        let addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        AddressFact { place: place(tenant, host), time, id: 0, addresses }
    }

    fn check(table: &Addresses, ip: &str, own: &str, at: Option<i64>, expected: Option<&str>) {
        let owner = table.owner(ip.parse().unwrap(), &place("t", own), at, LATENESS);
        assert_eq!(owner.as_ref().map(|place| &*place.host), expected, "{ip} from {own} at {at:?}");
    }

    #[test]
    fn one_claimant_owns_an_address_from_its_word_on() {
        let mut table = Addresses::default();
        assert_eq!(table.learn(fact("t", "a", 10, &["10.0.0.1"])).len(), 1);
        assert!(table.learn(fact("t", "a", 10, &["10.0.0.1"])).is_empty());
        table.learn(fact("t", "a", 20, &["10.0.0.2"]));
        check(&table, "10.0.0.1", "z", Some(-1_000_000), None);
        check(&table, "10.0.0.1", "z", Some(9), Some("a"));
        check(&table, "10.0.0.2", "z", Some(9), None);
        check(&table, "10.0.0.1", "z", Some(10), Some("a"));
        check(&table, "10.0.0.1", "z", Some(20), None);
        check(&table, "10.0.0.2", "z", None, Some("a"));
    }

    #[test]
    fn what_several_claim_is_nobodys_but_ones_own() {
        let mut table = Addresses::default();
        for host in ["a", "b"] {
            table.learn(fact("t", host, 1, &["172.17.0.1", "127.0.0.1", "fe80::1"]));
        }
        table.learn(fact("u", "c", 1, &["10.0.0.9"]));
        check(&table, "172.17.0.1", "z", None, None);
        check(&table, "172.17.0.1", "b", None, Some("b"));
        check(&table, "127.0.0.1", "z", None, Some("z"));
        check(&table, "fe80::1", "a", None, Some("a"));
        check(&table, "fe80::1", "z", None, None);
        check(&table, "10.0.0.9", "z", None, None);
    }

    #[test]
    fn old_words_are_forgotten_but_not_the_one_in_force() {
        let mut table = Addresses::default();
        let ms = 1_000_000;
        table.learn(fact("t", "a", 10 * ms, &["10.0.0.1"]));
        table.learn(fact("t", "a", 20 * ms, &["10.0.0.2"]));
        table.forget(1_000, LATENESS);
        check(&table, "10.0.0.1", "z", Some(15 * ms), None);
        check(&table, "10.0.0.2", "z", Some(25 * ms), Some("a"));
        assert_eq!(table.claims.len(), 1);
    }
}
