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
use sumun_abi::record::{FLAW_LOST, FLAW_TRUNCATED};
use sumun_proto::text;
use sumun_proto::v1::{Cloud, Event, Facts};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::http::{Answer, Request, ask};
use super::{Learned, Told, labels};

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

/// The metadata service among those that do not answer.
const CLOUD: &str = "cloud";

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

/// What one look at the metadata service came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tried {
    /// The host is in no cloud, for all that can be told.
    Nowhere,
    /// It is an instance.
    Instance {
        /// Provider, id and region.
        name: String,
        /// What the service could not say.
        missing: Option<String>,
    },
}

/// Looks once, for who wants to know whether it can be asked.
///
/// # Errors
/// There is a service, or should be, and it does not tell of the instance: why, in words.
pub async fn try_once(settings: &Settings) -> Result<Tried, String> {
    let Some((provider, certain)) = provider(settings) else {
        return Ok(Tried::Nowhere);
    };
    match look(settings, provider, None).await {
        Ok(Seen { cloud, missing }) => Ok(Tried::Instance {
            name: format!(
                "{} {} in {}",
                cloud.provider, cloud.instance_id, cloud.region
            ),
            missing: missing.map(|missing| missing.to_string()),
        }),
        Err(Failure::Silent(_)) if !certain => Ok(Tried::Nowhere),
        Err(failure) => Err(failure.to_string()),
    }
}

/// How often it is asked.
#[derive(Clone, Copy, Debug)]
struct Pace {
    retry: Duration,
    retry_max: Duration,
    refresh: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            retry: RETRY,
            retry_max: RETRY_MAX,
            refresh: REFRESH,
        }
    }
}

/// What a look at the service came to.
#[derive(Debug)]
struct Seen {
    /// With what was known before of what could not be asked now.
    cloud: Cloud,
    /// Why that is not all.
    missing: Option<Failure>,
}

/// Asks again and again, and sends what has changed; off the clouds once that there is nothing. What is known stays until the service
/// says something else: a failure says nothing.
pub async fn serve(settings: Settings, told: &Told, answers: mpsc::Sender<Learned>) {
    serve_at(Pace::default(), settings, told, answers).await;
}

async fn serve_at(pace: Pace, settings: Settings, told: &Told, answers: mpsc::Sender<Learned>) {
    let learned = |cloud: Option<Cloud>| Learned {
        made_ns: 0,
        workload: 0,
        facts: cloud.map(|cloud| Facts {
            source: "imds".into(),
            cloud: Some(cloud),
            ..Facts::default()
        }),
        again: None,
        denied: false,
    };
    let Some((provider, certain)) = provider(&settings) else {
        // Nobody listens any more only when the agent ends.
        let _ = answers.send(learned(None)).await;
        return;
    };
    let mut last: Option<Cloud> = None;
    let mut retry = pace.retry;
    let mut complained = false;
    loop {
        let failure = match look(&settings, provider, last.as_ref()).await {
            Ok(seen) => {
                if last.as_ref() != Some(&seen.cloud) {
                    last = Some(seen.cloud.clone());
                    if answers.send(learned(Some(seen.cloud))).await.is_err() {
                        return;
                    }
                }
                seen.missing
            }
            // Not in a cloud, for all that anybody can tell.
            Err(Failure::Silent(_)) if !certain && last.is_none() => {
                let _ = answers.send(learned(None)).await;
                return;
            }
            Err(failure) => Some(failure),
        };
        let pause = match failure {
            None => {
                if std::mem::take(&mut complained) {
                    tracing::info!("the cloud's metadata service answers");
                }
                told.trouble(CLOUD, None);
                retry = pace.retry;
                pace.refresh
            }
            Some(failure) => {
                if !std::mem::replace(&mut complained, true) {
                    tracing::warn!(
                        %failure,
                        "the cloud's metadata service does not tell all of this instance: what it has told before stays"
                    );
                }
                told.trouble(CLOUD, Some(failure.to_string()));
                let pause = retry;
                retry = (retry * 2).min(pace.retry_max);
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

async fn look(
    settings: &Settings,
    provider: Provider,
    before: Option<&Cloud>,
) -> Result<Seen, Failure> {
    let service = Service {
        address: settings.address,
    };
    let cloud = match provider {
        Provider::Ec2 => return ec2(&service, before).await,
        Provider::Azure => azure(&service).await,
        Provider::Google => google(&service).await,
    }?;
    Ok(Seen {
        cloud,
        missing: None,
    })
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

/// The same of what need not be there: 404.
fn if_any(path: &str, answer: &Answer) -> Result<Option<String>, Failure> {
    match answer.status {
        404 => Ok(None),
        _ => good(path, answer).map(Some),
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

/// A session of IMDSv2, without which nothing is asked.
struct Session<'a> {
    service: &'a Service,
    token: String,
}

impl<'a> Session<'a> {
    async fn open(service: &'a Service) -> Result<Self, Failure> {
        const TOKEN: &str = "/latest/api/token";
        let ttl = [("X-aws-ec2-metadata-token-ttl-seconds", TOKEN_SECONDS)];
        let answer = service.ask("PUT", TOKEN, EC2_HOST, &ttl).await?;
        let token = match answer.status {
            // As where there is a service of version 1 only, which gives whoever asks what they want to know.
            404 | 405 => {
                return Err(Failure::Refused(format!(
                    "{TOKEN}: status {}: it has no sessions (version 1 only), and is not asked without one",
                    answer.status
                )));
            }
            403 => {
                return Err(Failure::Refused(format!(
                    "{TOKEN}: status 403: the metadata service of this instance is off, or a proxy is between"
                )));
            }
            _ => good(TOKEN, &answer)?,
        };
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Failure::Refused(format!("{TOKEN}: no token")));
        }
        Ok(Self { service, token })
    }

    async fn get(&self, path: &str) -> Result<Answer, Failure> {
        let headers = [("X-aws-ec2-metadata-token", self.token.as_str())];
        self.service.ask("GET", path, EC2_HOST, &headers).await
    }
}

/// The identity document of an EC2 instance with Amazon's signature over it, as the service gives it: base64.
///
/// # Errors
/// Nobody answers, or not with that.
pub async fn signed_document(address: SocketAddr) -> Result<Vec<u8>, String> {
    let service = Service { address };
    let path = "/latest/dynamic/instance-identity/rsa2048";
    let told = async {
        let answer = Session::open(&service).await?.get(path).await?;
        good(path, &answer)?;
        Ok::<_, Failure>(answer.body)
    };
    told.await.map_err(|failure| failure.to_string())
}

/// By IMDSv2: a session's token first, and nothing without it. What fails beside the instance itself is as it was before.
async fn ec2(service: &Service, before: Option<&Cloud>) -> Result<Seen, Failure> {
    let session = Session::open(service).await?;
    let path = "/latest/dynamic/instance-identity/document";
    let cloud = match json::<Document>(path, &session.get(path).await?) {
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
        // There was a document: it is there again in a moment.
        Err(failure) if before.is_some_and(|before| !before.account.is_empty()) => {
            return Err(failure);
        }
        Err(failure) => match values(&session).await? {
            Some(cloud) => cloud,
            None => return Err(failure),
        },
    };
    // Of another instance nothing was known.
    let before = before.filter(|before| before.instance_id == cloud.instance_id);
    let mut seen = Seen {
        cloud,
        missing: None,
    };
    match role(&session).await {
        Ok(role) => seen.cloud.role = role.unwrap_or_default(),
        Err(failure) => {
            seen.missing = Some(failure);
            match before {
                Some(before) => {
                    seen.cloud.role.clone_from(&before.role);
                    seen.cloud.role_untold = before.role_untold;
                }
                None => seen.cloud.role_untold = true,
            }
        }
    }
    tags(&session, before, &mut seen).await;
    Ok(seen)
}

/// The profile, which is named as its role; where the role's credentials lie is not gone to. `None`: it has none.
async fn role(session: &Session<'_>) -> Result<Option<String>, Failure> {
    let path = "/latest/meta-data/iam/info";
    let answer = session.get(path).await?;
    if answer.status == 404 {
        return Ok(None);
    }
    let profile = json::<Profile>(path, &answer)?;
    let name = profile.instance_profile_arn.rsplit('/').next();
    Ok(name.map(str::to_owned))
}

/// The tags, where they are allowed in metadata (404: they are not). One that is not told is as it was before, or missing.
async fn tags(session: &Session<'_>, before: Option<&Cloud>, seen: &mut Seen) {
    const PATH: &str = "/latest/meta-data/tags/instance";
    let cloud = &mut seen.cloud;
    let keys = match session.get(PATH).await.and_then(|answer| {
        let text = if_any(PATH, &answer)?;
        Ok(text.map(|_| answer.body))
    }) {
        Ok(Some(keys)) => keys,
        Ok(None) => return,
        Err(failure) => {
            seen.missing = Some(failure);
            match before {
                Some(before) => {
                    cloud.tags.clone_from(&before.tags);
                    cloud.tags_flaws = before.tags_flaws;
                    cloud.scaling_group.clone_from(&before.scaling_group);
                }
                None => cloud.tags_flaws = u32::from(FLAW_LOST),
            }
            return;
        }
    };
    let mut tags: Vec<(&[u8], Vec<u8>)> = Vec::new();
    let mut flaws = 0;
    let keys = keys.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let keys: Vec<&[u8]> = keys.filter(|key| !key.is_empty()).collect();
    // A service that has stopped to answer is not waited for once for each tag.
    let mut silent = false;
    for (count, key) in keys.into_iter().enumerate() {
        if count == TAGS_MAX {
            flaws |= u32::from(FLAW_TRUNCATED);
            break;
        }
        let path = format!("{PATH}/{}", in_path(key));
        let failure = match silent {
            true => None,
            false => match session.get(&path).await {
                Ok(answer) if answer.status == 200 => {
                    tags.push((key, answer.body));
                    continue;
                }
                // It is listed, and so it is there, or was.
                Ok(answer) if answer.status == 404 => None,
                Ok(answer) => good(&path, &answer).err(),
                Err(failure) => {
                    silent = true;
                    Some(failure)
                }
            },
        };
        seen.missing = seen.missing.take().or(failure);
        match before.and_then(|before| value_before(before, key)) {
            Some(value) => tags.push((key, value)),
            None => flaws |= u32::from(FLAW_LOST),
        }
    }
    let group = tags.iter().find(|(key, _)| *key == SCALING_GROUP);
    cloud.scaling_group = group.map_or_else(String::new, |(_, value)| text::from_bytes(value));
    let (mut tags, cut) = labels(tags);
    if flaws != 0 && cut == 0 {
        // The last one of a list with a flaw is not known: it stands for those that are missing.
        tags.push(String::new());
    }
    (cloud.tags, cloud.tags_flaws) = (tags, flaws | cut);
}

/// The tag by which an instance is told its group.
const SCALING_GROUP: &[u8] = b"aws:autoscaling:groupName";

/// What was told of a tag before.
fn value_before(before: &Cloud, key: &[u8]) -> Option<Vec<u8>> {
    let name = text::from_bytes(key);
    let mut tags = before.tags.iter();
    let value = tags.find_map(|tag| tag.strip_prefix(&name)?.strip_prefix('='))?;
    text::to_bytes(value)
}

/// A tag's key as a part of a path.
fn in_path(key: &[u8]) -> String {
    let mut path = String::with_capacity(key.len());
    for byte in key {
        match byte {
            byte if byte.is_ascii_alphanumeric() || b"-._~:@+=,".contains(byte) => {
                path.push(char::from(*byte));
            }
            byte => path.push_str(&format!("%{byte:02X}")),
        }
    }
    path
}

/// What stands in no document: proxies before the service and doubles of it have single values only. Of them, the account is not
/// known. `None`: not even the instance's id is there.
async fn values(session: &Session<'_>) -> Result<Option<Cloud>, Failure> {
    let value = async |path: &str| -> Result<String, Failure> {
        let told = if_any(path, &session.get(path).await?)?.unwrap_or_default();
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
