//! Docker's API, which podman's service speaks as well, and the files that podman's containers leave where no service runs.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::Deserialize;
use sumun_abi::record::FLAW_LOST;
use sumun_proto::v1::Facts;
use tokio::net::UnixStream;

use super::http::{Request, ask};
use super::{labels, reference, untold};

/// Longest description of a container.
const ANSWER_MAX: usize = 1024 * 1024;
/// Longest list of podman's containers.
const LIST_MAX: u64 = 16 * 1024 * 1024;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Container {
    #[serde(default)]
    name: String,
    /// Id of the image.
    #[serde(default)]
    image: String,
    #[serde(default)]
    config: Config,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    image: String,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    /// `REPOSITORY@DIGEST`, one for each repository that it was fetched from or put into.
    repo_digests: Option<Vec<String>>,
}

/// The digest in its registry of an image, by its id and as a container names it; `None`: it is of none. Of several that are equally
/// good it is the first.
///
/// # Errors
/// The service does not answer, or not as it should.
pub async fn digest(socket: &Path, id: &str, name: &str) -> io::Result<Option<String>> {
    let stream = UnixStream::connect(socket).await?;
    let request = Request {
        method: "GET",
        path: &format!("/images/{id}/json"),
        host: "localhost",
        headers: &[],
    };
    let answer = ask(stream, request, ANSWER_MAX).await?;
    match answer.status {
        404 => return Ok(None),
        200 => {}
        status => return Err(io::Error::other(format!("it answers with status {status}"))),
    }
    let image: Image = serde_json::from_slice(&answer.body)?;
    let digests = image.repo_digests.unwrap_or_default();
    let digests: Vec<_> = digests
        .iter()
        .filter_map(|one| one.split_once('@'))
        .collect();
    let (name, tag) = reference(name);
    let repository = name.split('@').next().unwrap_or_default();
    let repository = repository
        .strip_suffix(&format!(":{tag}"))
        .unwrap_or(repository);
    let named = digests.iter().find(|(of, _)| *of == repository);
    Ok(named
        .or(digests.first())
        .map(|(_, digest)| (*digest).to_owned()))
}

/// What ECS's agent tells of a task by labels of its containers.
fn of_task(facts: &mut Facts, labels: &BTreeMap<String, String>) {
    let told = |name: &str| labels.get(&format!("com.amazonaws.ecs.{name}")).cloned();
    facts.ecs_cluster = told("cluster").unwrap_or_default();
    facts.ecs_task_arn = told("task-arn").unwrap_or_default();
    facts.ecs_family = told("task-definition-family").unwrap_or_default();
    facts.ecs_container = told("container-name").unwrap_or_default();
}

/// Asks the service behind a socket of a container; `None` if it does not know it. Of one whose description is too long nothing is
/// known but that it is its: whoever starts containers writes their environment and labels.
///
/// # Errors
/// The service does not answer, or not as it should.
pub async fn container(socket: &Path, source: &str, id: &str) -> io::Result<Option<Facts>> {
    let stream = UnixStream::connect(socket).await?;
    let request = Request {
        method: "GET",
        path: &format!("/containers/{id}/json"),
        host: "localhost",
        headers: &[],
    };
    let answer = match ask(stream, request, ANSWER_MAX).await {
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            return Ok(Some(untold(source)));
        }
        answer => answer?,
    };
    match answer.status {
        404 => return Ok(None),
        200 => {}
        status => return Err(io::Error::other(format!("it answers with status {status}"))),
    }
    let container: Container = serde_json::from_slice(&answer.body)?;
    let mut facts = Facts {
        source: source.into(),
        container_name: container.name.trim_start_matches('/').to_owned(),
        image_digest: container.image.clone(),
        image_id: container.image,
        ..Facts::default()
    };
    (facts.image, facts.image_tag) = reference(&container.config.image);
    let told = container.config.labels.unwrap_or_default();
    of_task(&mut facts, &told);
    (facts.container_labels, facts.container_labels_flaws) = labels(told);
    Ok(Some(facts))
}

#[derive(Deserialize)]
struct Stored {
    #[serde(default)]
    id: String,
    /// JSON in JSON.
    #[serde(default)]
    metadata: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Metadata {
    image_name: String,
    image_id: String,
    name: String,
}

/// Looks for a container in the files of a store of containers/storage, which are podman's and CRI-O's.
///
/// # Errors
/// They cannot be read.
pub fn stored(store: &Path, id: &str) -> io::Result<Option<Facts>> {
    for driver in ["overlay", "vfs", "btrfs"] {
        let list = store.join(format!("{driver}-containers/containers.json"));
        let Ok(metadata) = std::fs::metadata(&list) else {
            continue;
        };
        if metadata.len() > LIST_MAX {
            return Err(io::Error::other(format!("{} is too long", list.display())));
        }
        let stored: Vec<Stored> = serde_json::from_slice(&std::fs::read(&list)?)?;
        let Some(found) = stored.into_iter().find(|stored| stored.id == id) else {
            continue;
        };
        let Ok(metadata) = serde_json::from_str::<Metadata>(&found.metadata) else {
            return Ok(Some(untold("podman")));
        };
        let (image, image_tag) = reference(&metadata.image_name);
        let image_id = match metadata.image_id.is_empty() {
            true => String::new(),
            false => format!("sha256:{}", metadata.image_id),
        };
        let images = store.join(format!("{driver}-images/images.json"));
        let digest = stored_digest(&images, &metadata.image_id);
        return Ok(Some(Facts {
            source: "podman".into(),
            container_name: metadata.name,
            image,
            image_tag,
            image_digest: digest.unwrap_or_else(|| image_id.clone()),
            image_id,
            // They are in another file, of another format: they are not known, which is not that there are none.
            container_labels_flaws: u32::from(FLAW_LOST),
            ..Facts::default()
        }));
    }
    Ok(None)
}

#[derive(Deserialize)]
struct StoredImage {
    #[serde(default)]
    id: String,
    #[serde(default)]
    digest: String,
}

/// The digest of an image of a store. Whose cannot be read is known by its id all the same.
fn stored_digest(list: &Path, id: &str) -> Option<String> {
    let metadata = std::fs::metadata(list).ok()?;
    if metadata.len() > LIST_MAX {
        return None;
    }
    let images: Vec<StoredImage> = serde_json::from_slice(&std::fs::read(list).ok()?).ok()?;
    let image = images.into_iter().find(|image| image.id == id)?;
    (!image.digest.is_empty()).then_some(image.digest)
}
