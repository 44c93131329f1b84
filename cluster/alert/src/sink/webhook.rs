//! Webhook: the alert's columns as JSON by POST.
//!
//! ```text
//! Idempotency-Key: <alert_id>:<revision>             the same for every resend
//! X-Weir-Signature: sha256=<hex HMAC-SHA256 of the body>   when there is a secret
//! ```

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use super::{Message, Request, Sink, columns};
use crate::alert::Alert;

pub(super) struct Webhook {
    pub(super) url: String,
    pub(super) secret: Option<Vec<u8>>,
}

impl Sink for Webhook {
    fn message(&self, alert: &Alert) -> Message {
        let mut request = Request::json(&self.url, &columns(alert)).with("idempotency-key", alert.idempotency_key());
        if let Some(secret) = &self.secret {
            let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("a key of any length will do");
            mac.update(&request.body);
            let sum: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
            request = request.with("x-weir-signature", format!("sha256={sum}"));
        }
        Message::Http(request)
    }
}
