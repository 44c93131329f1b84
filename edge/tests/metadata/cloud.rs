//! The metadata services of three clouds.

use weir_edge::enrich::metadata::News;
use weir_edge::enrich::metadata::cloud::Instance;

use crate::http::{Act, Asked, Fake, answer, ok};
use crate::{Heard, config};

fn aws(asked: &Asked, _: usize) -> Vec<Act> {
    match asked.line.as_str() {
        "PUT /latest/api/token" if asked.head.contains("x-aws-ec2-metadata-token-ttl-seconds: 60") => ok("t0ken=="),
        "GET /latest/dynamic/instance-identity/document" if asked.head.contains("x-aws-ec2-metadata-token: t0ken==") => ok(
            r#"{"region":"eu-central-1","availabilityZone":"eu-central-1a","instanceId":"i-1","instanceType":"m7.large","accountId":"1"}"#,
        ),
        // As IMDSv1 would be answered where it is off.
        _ => answer(401, "", ""),
    }
}

fn gcp(asked: &Asked, _: usize) -> Vec<Act> {
    let value = match asked.line.as_str() {
        "GET /computeMetadata/v1/instance/zone" => "projects/7/zones/europe-west3-a",
        "GET /computeMetadata/v1/instance/id" => "4520031799277581759",
        "GET /computeMetadata/v1/instance/machine-type" => "projects/7/machineTypes/e2-medium",
        _ => return answer(404, "", ""),
    };
    match asked.head.contains("metadata-flavor: google") {
        true => answer(200, "Metadata-Flavor: Google\r\n", value),
        false => answer(403, "", ""),
    }
}

fn azure(asked: &Asked, _: usize) -> Vec<Act> {
    match asked.line.as_str() {
        "GET /metadata/instance/compute?api-version=2021-02-01" if asked.head.contains("metadata: true") => ok(
            r#"{"location":"westeurope","zone":"2","vmId":"02aab8a4","vmSize":"Standard_D2s_v5","userData":"c2VjcmV0","tags":"a:b"}"#,
        ),
        _ => answer(404, "", ""),
    }
}

async fn told(fake: &Fake, providers: &str) -> Instance {
    let at = fake.tcp().await;
    let mut heard = Heard::start(&config(&format!("[metadata.cloud]\nproviders = {providers}\naddress = \"{at}\"\n")));
    heard
        .until("the instance", |news| match news {
            News::Cloud(instance) => Some(instance.clone()),
            _ => None,
        })
        .await
}

fn instance(texts: [&str; 5]) -> Instance {
    let [provider, region, zone, id, kind] = texts.map(|text| Some(text.into()));
    Instance { provider, region, zone, id, kind }
}

#[tokio::test]
async fn each_cloud_says_where_its_instance_is() {
    let all = r#"["azure", "aws", "gcp"]"#;
    assert_eq!(told(&Fake::new(aws), all).await, instance(["aws", "eu-central-1", "eu-central-1a", "i-1", "m7.large"]));
    let google = ["gcp", "europe-west3", "europe-west3-a", "4520031799277581759", "e2-medium"];
    assert_eq!(told(&Fake::new(gcp), all).await, instance(google));
    let microsoft = ["azure", "westeurope", "westeurope-2", "02aab8a4", "Standard_D2s_v5"];
    assert_eq!(told(&Fake::new(azure), all).await, instance(microsoft));
}

#[tokio::test]
async fn only_those_that_are_named_are_asked() {
    let fake = Fake::new(aws);
    told(&fake, r#"["aws"]"#).await;
    assert_eq!((fake.count("computeMetadata"), fake.count("api-version")), (0, 0));
    let fake = Fake::new(gcp);
    told(&fake, r#"["gcp"]"#).await;
    assert_eq!((fake.count("latest"), fake.count("attributes")), (0, 0));
}

#[tokio::test]
async fn what_is_no_metadata_service_says_nothing() {
    // A captive portal answers everything; a service that begins to answer is believed then.
    for strange in [ok("<html>"), ok(r#"{"region":7}"#), answer(200, "", "projects/7/zones/x"), vec![Act::Hang], Vec::new()] {
        let fake = Fake::new(move |asked, before| if before < 8 { strange.clone() } else { aws(asked, before) });
        assert_eq!(told(&fake, r#"["gcp", "aws", "azure"]"#).await.provider.as_deref(), Some("aws"));
    }
}

#[test]
fn nothing_is_asked_by_default() {
    let default = weir_config::MetadataConfig::default();
    assert!(default.cloud.providers.is_empty());
    assert_eq!(default.cloud.address.to_string(), "169.254.169.254:80");
}
