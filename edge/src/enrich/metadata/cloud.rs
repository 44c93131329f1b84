//! The cloud's word on this host: provider, region, zone, instance.
//!
//! The metadata services of Amazon (IMDSv2: a token first, never without), Google and Microsoft, all at one link-local address. Only those
//! that the config names are asked, one after the other; firmware that names one puts it first. Nothing is asked that may hold secrets:
//! of Google single values, of Microsoft's document only what is named here is read. An instance does not change while it runs: the first
//! word holds.

use std::time::Duration;

use hyper::Request;
use serde::Deserialize;
use tokio::time::sleep;
use weir_config::{CloudConfig, CloudProvider, MetadataLimits};
use weir_schema::Text;

use super::News;
use super::description::text;
use super::failure::Failure;
use super::http::{Address, Answer, Service};
use super::source::{Backoff, Teller};

/// What a metadata service says of this host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Instance {
    /// Provider, as `aws`.
    pub provider: Option<Text>,
    /// Region, as `eu-central-1`.
    pub region: Option<Text>,
    /// Availability zone, as `eu-central-1a`.
    pub zone: Option<Text>,
    /// Instance id.
    pub id: Option<Text>,
    /// Instance type, as `m7.large`.
    pub kind: Option<Text>,
}

/// Asks until somebody answered, or has not for too often.
pub(crate) async fn ask(config: CloudConfig, limits: MetadataLimits, mut teller: Teller) {
    let service = Service {
        address: Address::Tcp(config.address),
        timeout: Duration::from_millis(limits.request_timeout_ms),
        bytes_max: limits.answer_bytes_max.min(ANSWER_BYTES_MAX),
    };
    let host = config.address.to_string();
    let vendor = std::fs::read_to_string(VENDOR).unwrap_or_default();
    let mut providers = config.providers;
    // Stable: those that the firmware does not name stay in their order.
    providers.sort_by_key(|provider| !vendor.contains(vendor_of(*provider)));
    let mut backoff = Backoff::new(Duration::from_millis(limits.resync_ms));
    for _ in 0..ROUNDS_MAX {
        for provider in &providers {
            let asked = Asked { service: &service, host: &host };
            let answer = match provider {
                CloudProvider::Aws => asked.aws().await,
                CloudProvider::Gcp => asked.gcp().await,
                CloudProvider::Azure => asked.azure().await,
            };
            match answer {
                Ok(instance) => {
                    teller.ok().await;
                    return teller.tell(News::Cloud(instance)).await;
                }
                Err(failure) => {
                    tracing::debug!(provider = provider.as_str(), why = %failure, "metadata: no word of this cloud");
                    teller.failed(&failure).await;
                }
            }
        }
        sleep(backoff.pause()).await;
    }
    tracing::warn!("metadata: no service of a cloud answered; set `cloud` and `zone`, or leave metadata.cloud.providers empty");
    teller.tell(News::State { source: "cloud".into(), state: "given up: no service answered".into() }).await;
}

struct Asked<'a> {
    service: &'a Service,
    host: &'a str,
}

impl Asked<'_> {
    async fn send(&self, method: &str, path: &str, header: (&str, &str)) -> Result<Answer, Failure> {
        let request = Request::builder().method(method).uri(path).header("host", self.host).header(header.0, header.1);
        self.service.ask(request.body(()).map_err(|error| Failure::broken("request", error))?).await
    }

    async fn aws(&self) -> Result<Instance, Failure> {
        let token = self.send("PUT", "/latest/api/token", ("x-aws-ec2-metadata-token-ttl-seconds", "60")).await?.success()?;
        let token = std::str::from_utf8(&token).map_err(|error| Failure::broken("token", error))?.trim();
        let path = "/latest/dynamic/instance-identity/document";
        let body = self.send("GET", path, ("x-aws-ec2-metadata-token", token)).await?.success()?;
        let document: Aws = serde_json::from_slice(&body).map_err(|error| Failure::broken("identity document", error))?;
        Ok(Instance {
            provider: text(CloudProvider::Aws.as_str()),
            region: text(&document.region),
            zone: text(&document.availability_zone),
            id: text(&document.instance_id),
            kind: text(&document.instance_type),
        })
    }

    async fn gcp(&self) -> Result<Instance, Failure> {
        let zone = self.gcp_value("zone").await?;
        // `europe-west3-a` is in `europe-west3`.
        let region = zone.rsplit_once('-').and_then(|(region, _)| text(region));
        let (id, kind) = (self.gcp_value("id").await?, self.gcp_value("machine-type").await?);
        Ok(Instance { provider: text(CloudProvider::Gcp.as_str()), region, zone: text(&zone), id: text(&id), kind: text(&kind) })
    }

    /// The last part of a value such as `projects/7/zones/europe-west3-a`.
    async fn gcp_value(&self, name: &str) -> Result<String, Failure> {
        let path = format!("/computeMetadata/v1/instance/{name}");
        let answer = self.send("GET", &path, ("metadata-flavor", "Google")).await?;
        if answer.response.headers.get("metadata-flavor").is_none_or(|flavor| flavor != "Google") {
            return Err(Failure::broken("answer", "not Google's"));
        }
        let body = answer.success()?;
        let value = std::str::from_utf8(&body).map_err(|error| Failure::broken(name, error))?.trim();
        match value.rsplit('/').next().filter(|last| !last.is_empty() && last.bytes().all(|b| b.is_ascii_graphic())) {
            Some(last) => Ok(last.to_owned()),
            None => Err(Failure::broken(name, "no value")),
        }
    }

    async fn azure(&self) -> Result<Instance, Failure> {
        let path = "/metadata/instance/compute?api-version=2021-02-01";
        let body = self.send("GET", path, ("metadata", "true")).await?.success()?;
        let compute: Azure = serde_json::from_slice(&body).map_err(|error| Failure::broken("compute", error))?;
        // A zone is a number within its region, and empty where there are none.
        let zone = (!compute.zone.is_empty()).then(|| format!("{}-{}", compute.location, compute.zone));
        Ok(Instance {
            provider: text(CloudProvider::Azure.as_str()),
            region: text(&compute.location),
            zone: zone.and_then(|zone| text(&zone)),
            id: text(&compute.vm_id),
            kind: text(&compute.vm_size),
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Aws {
    region: String,
    availability_zone: String,
    instance_id: String,
    #[serde(default)]
    instance_type: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Azure {
    location: String,
    #[serde(default)]
    zone: String,
    vm_id: String,
    #[serde(default)]
    vm_size: String,
}

const fn vendor_of(provider: CloudProvider) -> &'static str {
    match provider {
        CloudProvider::Aws => "Amazon",
        CloudProvider::Gcp => "Google",
        CloudProvider::Azure => "Microsoft",
    }
}

/// Who made the machine, as its firmware has it.
const VENDOR: &str = "/sys/class/dmi/id/sys_vendor";
/// Longest answer read: the documents have below 4 KiB, Microsoft's with its tags more.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Rounds over all providers: about a minute, longer than a service takes to come up with its instance.
const ROUNDS_MAX: usize = 8;
