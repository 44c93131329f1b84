//! An open connection is worth no more than its certificate: TLS looks at it in the handshake only, this as long as it is open.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier as _;
use tokio::sync::watch;
use tokio::time::Instant;
use weir_schema::AgentIdentity;

use crate::certificate::Validity;
use crate::trust::Trust;

/// Why a certificate is not taken, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NotTaken {
    pub(super) reason: String,
    pub(super) cure: &'static str,
}

impl NotTaken {
    /// In the words of rustls, which are all that QUIC gives, to those of an operator.
    pub(super) fn explain(said: &str) -> Self {
        let reason = said.trim_start_matches("invalid peer certificate: ").to_owned();
        let known = [
            ("is revoked", "none, if that is meant; else a new token for another agent name by `weir token create`"),
            ("is of a region that", "`nodes` of its region in the agent's config, or `agents.regions` in this node's"),
            ("expired", "the agent's clock, or a new token by `weir token create`: the agent's log says why it was not renewed"),
            ("not valid yet", "the clocks of both hosts"),
        ];
        if let Some((_, cure)) = known.iter().find(|(word, _)| reason.contains(word)) {
            return Self { reason, cure };
        }
        let cure = "a certificate of this fleet, by `weir token create` or `weir ca issue`";
        match reason.as_str() {
            "UnknownIssuer" | "BadSignature" => {
                Self { reason: "signed by no authority that this node trusts: self-signed, or of another fleet".to_owned(), cure }
            }
            "peer sent no certificates" => Self { reason: "it shows no certificate".to_owned(), cure },
            _ => Self { reason, cure },
        }
    }
}

/// Watches the certificate of one connection.
pub(super) struct CertificateWatch<'a> {
    trust: &'a Trust,
    chain: &'a [CertificateDer<'static>],
    agent: &'a AgentIdentity,
    until: SystemTime,
    /// When to look next; kept, because waiting is broken off again and again.
    due: Instant,
    files: watch::Receiver<()>,
    admission: watch::Receiver<()>,
}

impl<'a> CertificateWatch<'a> {
    pub(super) fn new(trust: &'a Trust, chain: &'a [CertificateDer<'static>], agent: &'a AgentIdentity) -> Self {
        let (files, mut admission) = (trust.changes(), trust.admission().changes());
        // Who was revoked between the handshake and now is found at once.
        admission.mark_changed();
        // The handshake has read these dates.
        let until = Validity::of(&chain[0]).map_or(UNIX_EPOCH, |validity| validity.until);
        Self { trust, chain, agent, until, due: next_look(until), files, admission }
    }

    /// Waits until the certificate is not taken any more. May be broken off.
    pub(super) async fn not_taken(&mut self) -> NotTaken {
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(self.due) => self.due = next_look(self.until),
                _ = self.files.changed() => {}
                _ = self.admission.changed() => {
                    // Of thousands of connections one is meant: no signature is checked for that.
                    match self.trust.admission().check(self.agent) {
                        Ok(()) => continue,
                        Err(error) => return NotTaken::explain(&error.to_string()),
                    }
                }
            }
            let now = UnixTime::since_unix_epoch(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
            if let Err(error) = self.trust.verifier.verify_client_cert(&self.chain[0], &self.chain[1..], now) {
                return NotTaken::explain(&error.to_string());
            }
        }
    }
}

/// Just after the certificate's end by the wall clock, which may be set: never later than in a minute.
fn next_look(until: SystemTime) -> Instant {
    let left = until.duration_since(SystemTime::now()).unwrap_or_default();
    Instant::now() + left.saturating_add(JUST_AFTER).min(CHECK_EVERY)
}

/// The dates of certificates are whole seconds; the last one still counts.
const JUST_AFTER: Duration = Duration::from_millis(1_100);
/// How often a certificate is looked at when nothing is known to have changed.
const CHECK_EVERY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_words_and_a_cure() {
        let check = |said: &str, reason: &str, cure: &str| {
            let told = NotTaken::explain(said);
            assert_eq!(told.reason, reason);
            assert!(told.cure.contains(cure), "{told:?}");
        };
        check("invalid peer certificate: agent a/b/c is revoked", "agent a/b/c is revoked", "another agent name");
        check(
            "invalid peer certificate: UnknownIssuer",
            "signed by no authority that this node trusts: self-signed, or of another fleet",
            "weir ca issue",
        );
        check("peer sent no certificates", "it shows no certificate", "weir token create");
        check(
            "invalid peer certificate: certificate expired: verification time 2 …",
            "certificate expired: verification time 2 …",
            "weir token create",
        );
        check(
            "invalid peer certificate: agent a/b/c is of a region that …",
            "agent a/b/c is of a region that …",
            "agents.regions",
        );
    }
}
