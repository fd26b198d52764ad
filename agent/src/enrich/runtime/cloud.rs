//! What the cloud says of the host: account, region, instance, tags. EC2 by IMDSv2 only, Azure and Google behind the same
//! few functions.
//!
//! The firmware's names (DMI) tell which cloud it is, so that elsewhere nobody is asked. Where they do not say,
//! EC2's service is tried once, for a second, and its silence is no message. No credentials are read.

use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use sumun_abi::record::FLAW_TRUNCATED;
use sumun_proto::text;
use sumun_proto::v1::{Cloud, Event, Facts};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::http::{Answer, Request, ask};
use super::{Learned, labels};

/// Where all three clouds answer.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Longest answer.
const ANSWER_MAX: usize = 256 * 1024;
/// Most tags that are asked for one by one.
const TAGS_MAX: usize = 64;
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a token is asked to hold.
const TOKEN_SECONDS: &str = "21600";
/// Pause before the next try where there must be a service, doubled each time up to
const RETRY: Duration = Duration::from_secs(1);
/// this.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// What can change (tags, the role) is looked at this often.
const REFRESH: Duration = Duration::from_secs(300);

/// Where to ask, and how the host's cloud is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Address of the metadata service.
    pub address: SocketAddr,
    /// Folder of the firmware's names.
    pub dmi: PathBuf,
    /// The cloud, where the configuration names it.
    pub provider: Option<Provider>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            address: SocketAddr::new(ADDRESS.into(), 80),
            dmi: "/sys/class/dmi/id".into(),
            provider: None,
        }
    }
}

/// A cloud.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// Amazon EC2.
    Ec2,
    /// Microsoft Azure.
    Azure,
    /// Google Compute Engine.
    Google,
}

/// Why the cloud said nothing.
#[derive(Debug)]
enum Failure {
    /// Nobody answers.
    Silent(String),
    /// It answers, but not with what was asked for.
    Refused(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Silent(why) | Failure::Refused(why) => out.write_str(why),
        }
    }
}

/// Whether the last event is a connection to the metadata service.
#[must_use]
pub fn is_asked(events: &[Event]) -> bool {
    let last = events.last();
    let network = last.and_then(|event| event.network.as_ref());
    network.is_some_and(|network| network.dst_ip == ADDRESS.octets() && network.dst_port == 80)
}

/// Asks again and again, and sends what has changed; off the clouds once that there is nothing.
pub async fn serve(settings: Settings, answers: mpsc::Sender<Learned>) {
    let none = || Learned {
        made_ns: 0,
        workload: 0,
        facts: None,
        again: None,
    };
    let told = provider(&settings);
    let Some((provider, certain)) = told else {
        // Nobody listens any more only when the agent ends.
        let _ = answers.send(none()).await;
        return;
    };
    let mut last = None;
    let mut retry = RETRY;
    let mut complained = false;
    loop {
        let pause = match look(&settings, provider).await {
            Ok(cloud) => {
                if complained {
                    tracing::info!("the cloud's metadata service answers");
                    complained = false;
                }
                retry = RETRY;
                if last.as_ref() != Some(&cloud) {
                    last = Some(cloud.clone());
                    let facts = Facts {
                        source: "imds".into(),
                        cloud: Some(cloud),
                        ..Facts::default()
                    };
                    let learned = Learned {
                        made_ns: 0,
                        workload: 0,
                        facts: Some(facts),
                        again: None,
                    };
                    if answers.send(learned).await.is_err() {
                        return;
                    }
                }
                REFRESH
            }
            // Not in a cloud, for all that anybody can tell.
            Err(Failure::Silent(_)) if !certain && last.is_none() => {
                let _ = answers.send(none()).await;
                return;
            }
            Err(failure) => {
                if !std::mem::replace(&mut complained, true) {
                    tracing::warn!(
                        %failure,
                        "the cloud's metadata service does not tell of this instance: events go without account, region and tags"
                    );
                }
                let pause = retry;
                retry = (retry * 2).min(RETRY_MAX);
                pause
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Which cloud it is, and whether that is certain; `None`: certainly none of them.
fn provider(settings: &Settings) -> Option<(Provider, bool)> {
    if let Some(provider) = settings.provider {
        return Some((provider, true));
    }
    let read = |name: &str| {
        let text = fs::read_to_string(settings.dmi.join(name)).unwrap_or_default();
        text.trim().to_owned()
    };
    let (vendor, product, tag) = (
        read("sys_vendor"),
        read("product_name"),
        read("chassis_asset_tag"),
    );
    if vendor == "Amazon EC2"
        || read("bios_vendor") == "Amazon EC2"
        || read("product_version").contains("amazon")
    {
        Some((Provider::Ec2, true))
    } else if tag == "7783-7084-3265-9085-8269-3286-77" {
        // Documented by Microsoft: other machines of Hyper-V have the same vendor.
        Some((Provider::Azure, true))
    } else if vendor == "Google" || product == "Google Compute Engine" {
        Some((Provider::Google, true))
    } else if vendor.is_empty() {
        Some((Provider::Ec2, false))
    } else {
        None
    }
}

async fn look(settings: &Settings, provider: Provider) -> Result<Cloud, Failure> {
    let service = Service {
        address: settings.address,
    };
    let cloud = match provider {
        Provider::Ec2 => ec2(&service).await,
        Provider::Azure => azure(&service).await,
        Provider::Google => google(&service).await,
    }?;
    Ok(cloud)
}

struct Service {
    address: SocketAddr,
}

impl Service {
    /// One question. Each has a connection of its own: they are few.
    async fn ask(
        &self,
        method: &str,
        path: &str,
        host: &str,
        headers: &[(&str, &str)],
    ) -> Result<Answer, Failure> {
        let request = Request {
            method,
            path,
            host,
            headers,
        };
        let asked = async {
            let stream = TcpStream::connect(self.address).await?;
            ask(stream, request, ANSWER_MAX).await
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(Failure::Silent(format!("{method} {path}: {error}"))),
            Err(_) => Err(Failure::Silent(format!(
                "{method} {path}: no answer within a second (in a container, the hop limit may be 1)"
            ))),
        }
    }
}

/// The text of an answer of 200.
fn good(path: &str, answer: &Answer) -> Result<String, Failure> {
    match answer.status {
        200 => Ok(text::from_bytes(&answer.body)),
        status => Err(Failure::Refused(format!("{path}: status {status}"))),
    }
}

/// The same as JSON.
fn json<T: serde::de::DeserializeOwned>(path: &str, answer: &Answer) -> Result<T, Failure> {
    good(path, answer)?;
    serde_json::from_slice(&answer.body)
        .map_err(|error| Failure::Refused(format!("{path}: {error}")))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    account_id: String,
    region: String,
    availability_zone: String,
    instance_id: String,
    instance_type: String,
    image_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Profile {
    instance_profile_arn: String,
}

/// Longest single value of EC2's service that is taken, in bytes.
const VALUE_MAX: usize = 256;
/// The header `Host` of requests to EC2's service.
const EC2_HOST: &str = "169.254.169.254";

/// The token of a session of IMDSv2, without which nothing is asked.
async fn session(service: &Service) -> Result<String, Failure> {
    const TOKEN: &str = "/latest/api/token";
    let ttl = [("X-aws-ec2-metadata-token-ttl-seconds", TOKEN_SECONDS)];
    let answer = service.ask("PUT", TOKEN, EC2_HOST, &ttl).await?;
    let token = good(TOKEN, &answer)?;
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Failure::Refused(format!("{TOKEN}: no token")));
    }
    Ok(token)
}

/// The identity document of an EC2 instance with Amazon's signature over it, as the service gives it: base64.
///
/// # Errors
/// Nobody answers, or not with that.
pub async fn signed_document(address: SocketAddr) -> Result<Vec<u8>, String> {
    let service = Service { address };
    let path = "/latest/dynamic/instance-identity/rsa2048";
    let told = async {
        let token = session(&service).await?;
        let headers = [("X-aws-ec2-metadata-token", token.as_str())];
        let answer = service.ask("GET", path, EC2_HOST, &headers).await?;
        good(path, &answer)?;
        Ok::<_, Failure>(answer.body)
    };
    told.await.map_err(|failure| failure.to_string())
}

/// By IMDSv2: a session's token first, and nothing without it.
async fn ec2(service: &Service) -> Result<Cloud, Failure> {
    let token = session(service).await?;
    let headers = [("X-aws-ec2-metadata-token", token.as_str())];
    let get = async |path: &str| service.ask("GET", path, EC2_HOST, &headers).await;
    let path = "/latest/dynamic/instance-identity/document";
    let mut cloud = match json::<Document>(path, &get(path).await?) {
        Ok(document) => Cloud {
            provider: "aws".into(),
            account: document.account_id,
            region: document.region,
            zone: document.availability_zone,
            instance_id: document.instance_id,
            instance_type: document.instance_type,
            image: document.image_id,
            ..Cloud::default()
        },
        Err(failure) => match values(&get).await? {
            Some(cloud) => cloud,
            None => return Err(failure),
        },
    };
    // The profile, which is named as its role; where the role's credentials lie is not gone to. 404: it has none.
    let path = "/latest/meta-data/iam/info";
    let answer = get(path).await?;
    if answer.status != 404
        && let Ok(profile) = json::<Profile>(path, &answer)
    {
        let arn = profile.instance_profile_arn;
        cloud.role = arn.rsplit('/').next().unwrap_or_default().to_owned();
    }
    // 404: tags are not allowed in metadata.
    let path = "/latest/meta-data/tags/instance";
    let answer = get(path).await?;
    if answer.status == 200 {
        let keys = good(path, &answer)?;
        let mut tags = Vec::new();
        for key in keys.lines().map(str::trim).filter(|key| !key.is_empty()) {
            if tags.len() == TAGS_MAX {
                cloud.tags_flaws = u32::from(FLAW_TRUNCATED);
                break;
            }
            let path = format!("{path}/{key}");
            if let Ok(value) = good(&path, &get(&path).await?) {
                if key == "aws:autoscaling:groupName" {
                    cloud.scaling_group.clone_from(&value);
                }
                tags.push((key.to_owned(), value));
            }
        }
        let (tags, cut) = labels(tags);
        cloud.tags = tags;
        cloud.tags_flaws |= cut;
    }
    Ok(cloud)
}

/// What stands in no document: proxies before the service and doubles of it have single values only. Of them, the account is not
/// known. `None`: not even the instance's id is there.
async fn values<F: Future<Output = Result<Answer, Failure>>>(
    get: &impl Fn(&'static str) -> F,
) -> Result<Option<Cloud>, Failure> {
    let value = async |path: &'static str| -> Result<String, Failure> {
        let told = good(path, &get(path).await?).unwrap_or_default();
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        Ok(Some(told)
            .filter(|told| told.len() <= VALUE_MAX && told.bytes().all(fits))
            .unwrap_or_default())
    };
    let instance_id = value("/latest/meta-data/instance-id").await?;
    if instance_id.is_empty() {
        return Ok(None);
    }
    Ok(Some(Cloud {
        provider: "aws".into(),
        instance_id,
        region: value("/latest/meta-data/placement/region").await?,
        zone: value("/latest/meta-data/placement/availability-zone").await?,
        instance_type: value("/latest/meta-data/instance-type").await?,
        image: value("/latest/meta-data/ami-id").await?,
        ..Cloud::default()
    }))
}

/// <https://learn.microsoft.com/azure/virtual-machines/instance-metadata-service>
async fn azure(service: &Service) -> Result<Cloud, Failure> {
    let path = "/metadata/instance/compute?api-version=2021-02-01";
    let headers = [("Metadata", "true")];
    let answer = service
        .ask("GET", path, "169.254.169.254", &headers)
        .await?;
    let compute: Value = json(path, &answer)?;
    let of = |name: &str| compute[name].as_str().unwrap_or_default().to_owned();
    let tags = compute["tagsList"].as_array().into_iter().flatten();
    let (tags, tags_flaws) = labels(tags.filter_map(|tag| {
        let (key, value) = (tag["name"].as_str()?, tag["value"].as_str()?);
        Some((key.to_owned(), value.to_owned()))
    }));
    Ok(Cloud {
        provider: "azure".into(),
        account: of("subscriptionId"),
        region: of("location"),
        zone: of("zone"),
        instance_id: of("vmId"),
        instance_type: of("vmSize"),
        image: compute["storageProfile"]["imageReference"]["id"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        scaling_group: of("vmScaleSetName"),
        tags,
        tags_flaws,
        ..Cloud::default()
    })
}

/// <https://cloud.google.com/compute/docs/metadata/predefined-metadata-keys>
async fn google(service: &Service) -> Result<Cloud, Failure> {
    const HOST: &str = "metadata.google.internal";
    let headers = [("Metadata-Flavor", "Google")];
    let path = "/computeMetadata/v1/project/project-id";
    let project = good(path, &service.ask("GET", path, HOST, &headers).await?)?;
    let path = "/computeMetadata/v1/instance/?recursive=true";
    let instance: Value = json(path, &service.ask("GET", path, HOST, &headers).await?)?;
    let last = |name: &str| {
        let whole = instance[name].as_str().unwrap_or_default();
        whole.rsplit('/').next().unwrap_or_default().to_owned()
    };
    let zone = last("zone");
    let tags = instance["tags"].as_array().into_iter().flatten();
    // Network tags have no value.
    let (tags, tags_flaws) =
        labels(tags.filter_map(|tag| Some((tag.as_str()?.to_owned(), String::new()))));
    Ok(Cloud {
        provider: "gcp".into(),
        account: project,
        region: zone
            .rsplit_once('-')
            .map_or("", |(region, _)| region)
            .to_owned(),
        zone,
        instance_id: instance["id"].to_string(),
        instance_type: last("machineType"),
        image: last("image"),
        role: instance["serviceAccounts"]["default"]["email"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        tags,
        tags_flaws,
        ..Cloud::default()
    })
}

#[cfg(test)]
mod tests;
