//! What the sources of metadata said, on its way into the tables, the events to come, and the next `host_start`.

use std::sync::Arc;

use tokio::time::Instant;
use weir_schema::Host;

use super::Agent;
use crate::enrich::host;
use crate::enrich::metadata::News;
use crate::enrich::metadata::cloud::Instance;
use crate::error::Error;
use crate::probe::system::boot_clock_ns;

impl Agent {
    /// Takes in what the sources of metadata said.
    pub(super) fn learn(&mut self) -> Result<(), Error> {
        if self.news.is_empty() {
            return Ok(());
        }
        let news = std::mem::take(&mut self.news);
        for news in &news {
            match news {
                News::Cloud(instance) => self.rehost(instance)?,
                News::State { source, state } => {
                    let states = self.detail.entry("metadata").or_insert_with(|| serde_json::Map::new().into());
                    if let Some(states) = states.as_object_mut() {
                        let cut = |text: &str| text[..text.floor_char_boundary(STATE_BYTES_MAX)].to_owned();
                        let source = cut(source);
                        if states.len() < STATES_MAX || states.contains_key(&source) {
                            states.insert(source, cut(state).into());
                            self.is_untold = true;
                        }
                    }
                }
                News::Container { .. } | News::Pod { .. } => {}
            }
        }
        self.enricher.learn(news, boot_clock_ns(), &mut self.events);
        Ok(())
    }

    /// The cloud says where this host is: on all events from now on, unless the config says it.
    fn rehost(&mut self, instance: &Instance) -> Result<(), Error> {
        let known = self.batcher.host();
        let host = Arc::new(Host {
            cloud: known.cloud.clone().or_else(|| instance.provider.clone()),
            zone: known.zone.clone().or_else(|| instance.zone.clone()),
            ..Host::clone(known)
        });
        let now = Instant::now();
        // What was seen before is said in the words that held then.
        self.batch_events(now)?;
        for frame in self.batcher.set_host(host.clone())? {
            if let Some(shipper) = &mut self.shipper {
                shipper.ship(frame, now)?;
            }
        }
        if let Some(recorder) = &self.recorder {
            recorder.set_host(host);
        }
        self.tell_instance(instance);
        Ok(())
    }

    /// Instance and region for the next `host_start`. The region of events is the certificate's: another word on it is only said.
    pub(super) fn tell_instance(&mut self, instance: &Instance) {
        let said = host::instance_detail(instance, &self.config.metadata.cloud);
        if !said.is_empty() {
            self.detail.insert("instance".into(), said.into());
            self.is_untold = true;
        }
        let certified =
            (!self.config.nodes.is_empty()).then(|| weir_transport::tls::agent_identity(&self.config.tls).ok()).flatten();
        let mismatch = certified.and_then(|agent| host::region_mismatch(agent.region.as_str(), instance.region.as_deref()?));
        if let Some(mismatch) = mismatch {
            tracing::warn!(%mismatch, "the cloud names another region than the certificate, which holds");
            self.detail.insert("region_mismatch".into(), mismatch.into());
        }
    }
}

/// Sources that are told of, and how much of each: all of `host_start`'s detail fits into one text of 4 KiB.
const STATES_MAX: usize = 8;
const STATE_BYTES_MAX: usize = 80;
