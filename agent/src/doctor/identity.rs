//! Who tells what containers and the host are: the hierarchy of cgroups, container runtimes, the kubelet, the cloud. Each is
//! asked once, all of them at the same time, and none is waited for longer than [`LIMIT`].

use std::future::Future;
use std::io;
use std::time::Duration;

use super::Diagnosis;
use crate::enrich::runtime::cloud::{self, Tried};
use crate::enrich::runtime::kubelet::Kubelet;
use crate::enrich::runtime::{Settings, try_runtimes};
use crate::enrich::workload::path::{Kind, classify};
use crate::kernel::cgroup;

/// How long each may take to answer.
const LIMIT: Duration = Duration::from_secs(5);

/// Asks all of them.
pub(super) fn look(told: &mut Diagnosis, settings: &Settings) {
    let containers = cgroups(told);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(ask(told, settings, containers)),
        Err(error) => told.lacking(
            "identity",
            format!("nobody could be asked: {error}"),
            "there is no room for a socket: look at the limits of files and memory",
        ),
    }
}

/// The root of all cgroups, and how many containers are below it.
fn cgroups(told: &mut Diagnosis) -> usize {
    let controller = cgroup::controller();
    let mut containers = 0;
    let walked = cgroup::walk(
        controller,
        |_, path| {
            let place = classify(path);
            containers += usize::from(place.kind == Kind::Container && place.root == path.len());
        },
        |_| {},
    );
    let apart = cgroup::services_apart(controller);
    if let Some(first) = apart.first() {
        told.lacking(
            "units",
            format!("systemd keeps {} services out of the cgroups of {controller}, as {first}: what they do is of no unit", apart.len()),
            "DefaultTasksAccounting=yes in /etc/systemd/system.conf, then restart the services or the host",
        );
    }
    match walked {
        Ok(walked) if walked.left_out == 0 => told.good(
            "cgroups",
            format!(
                "{} ({controller}), of them {containers} containers",
                walked.cgroups
            ),
        ),
        Ok(walked) => told.lacking(
            "cgroups",
            format!("{} of {controller} were not read", walked.left_out),
            "there are more, or they are deeper, than are told apart: what runs in them is taken for that of the cgroup above",
        ),
        Err(error) => told.lacking(
            "cgroups",
            format!("{error}: what runs already has no names"),
            "mount the hierarchy with its root: in a container, the host's /sys/fs/cgroup, and no cgroup namespace of its own",
        ),
    }
    containers
}

async fn ask(told: &mut Diagnosis, settings: &Settings, containers: usize) {
    let kubelet = async {
        let settings = settings.kubelet.clone()?;
        let kubelet = Kubelet::new(settings);
        Some(within(kubelet.count()).await)
    };
    let cloud = async {
        let settings = settings.cloud.as_ref()?;
        let late = || Err("it does not answer in time".to_owned());
        let tried = tokio::time::timeout(LIMIT, cloud::try_once(settings)).await;
        Some(tried.unwrap_or_else(|_| late()))
    };
    let (runtimes, kubelet, cloud) = tokio::join!(try_runtimes(settings), kubelet, cloud);
    of_runtimes(told, runtimes, containers);
    match kubelet {
        None => {}
        Some(Ok(pods)) => told.good("kubelet", format!("answers: {pods} pods")),
        Some(Err(error)) => told.lacking(
            "kubelet",
            format!("{error}: owners and service accounts of pods stay unknown"),
            "[identity.kubelet] of agent.toml: address, name and ca have to fit its certificate, and token a service account that may get nodes/pods",
        ),
    }
    match cloud {
        None => told.good("cloud", "not asked: [identity] cloud is \"off\""),
        Some(tried) => of_cloud(told, tried),
    }
}

async fn within<T>(work: impl Future<Output = io::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(LIMIT, work).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_) => Err("it does not answer in time".into()),
    }
}

fn of_runtimes(told: &mut Diagnosis, tried: Vec<(String, Result<(), String>)>, containers: usize) {
    if tried.is_empty() && containers > 0 {
        return told.lacking(
            "runtimes",
            format!("none is found, and {containers} containers run: they have no names, images and labels"),
            "name its socket in [identity] of agent.toml; in a container, mount the host's folder of it (/run/containerd, /run/crio, /run/docker.sock, /run/podman, /var/lib/containers/storage), read only",
        );
    }
    if tried.is_empty() {
        return told.good("runtimes", "no container runtime, and no containers");
    }
    for (place, answer) in tried {
        match answer {
            Ok(()) => told.good("runtimes", format!("{place} answers")),
            Err(why) => {
                let mend = of_runtime(&why);
                told.lacking(
                    "runtimes",
                    format!("{place}: {why}: its containers stay without names"),
                    mend,
                );
            }
        }
    }
}

/// How to mend a runtime that does not answer well.
fn of_runtime(why: &str) -> &'static str {
    if why.contains("ermission denied") {
        "the agent has to be root with CAP_DAC_OVERRIDE or CAP_DAC_READ_SEARCH, and no security module between"
    } else if why.contains("refused") {
        "nobody listens there: start the runtime; a socket that is left of one that is gone can be removed"
    } else {
        "is it healthy? `crictl ps`, `docker ps` or `podman ps` have to answer; then restart it. Until then what it would tell is unknown to rules, not absent"
    }
}

fn of_cloud(told: &mut Diagnosis, tried: Result<Tried, String>) {
    match tried {
        Ok(Tried::Nowhere) => told.good("cloud", "in none that is known"),
        Ok(Tried::Instance {
            name,
            missing: None,
        }) => told.good("cloud", name),
        Ok(Tried::Instance {
            name,
            missing: Some(why),
        }) => {
            let found =
                format!("{name}, but {why}: what that would tell stays as it was, or unknown");
            let mend = of_metadata(&why);
            told.lacking("cloud", found, mend);
        }
        Err(why) => {
            let mend = of_metadata(&why);
            told.lacking(
                "cloud",
                format!("{why}: account, region and tags are unknown"),
                mend,
            );
        }
    }
}

/// How to mend what the metadata service answers.
fn of_metadata(why: &str) -> &'static str {
    if why.contains("version 1 only") {
        "have the instance give sessions (IMDSv2): aws ec2 modify-instance-metadata-options --http-endpoint enabled --http-tokens required; a proxy before the service has to pass on PUT"
    } else if why.contains("status 403") {
        "switch it on: aws ec2 modify-instance-metadata-options --http-endpoint enabled; no proxy may add X-Forwarded-For"
    } else if why.contains("status 401") {
        "its own session is not taken: who stands between and answers in its place? [identity] metadata of agent.toml says who is asked"
    } else if why.contains("no answer within") || why.contains("in time") {
        "is 169.254.169.254 reached from here? From a container's network it takes --http-put-response-hop-limit 2 (aws ec2 modify-instance-metadata-options), or the host's network; [identity] cloud = \"off\" asks nobody"
    } else {
        "is that a metadata service? [identity] metadata of agent.toml says who is asked, cloud = \"off\" that nobody is; it is asked again and again"
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;
    use std::thread;
    use std::time::Instant;

    use super::super::Grade;
    use super::*;

    /// The grade of the first finding about something.
    fn grade(told: &Diagnosis, about: &str) -> Option<(Grade, String)> {
        let finding = told
            .findings
            .iter()
            .find(|finding| finding.about == about)?;
        let mend = finding.mend.clone().unwrap_or_default();
        Some((finding.grade, format!("{} | {mend}", finding.found)))
    }

    fn nobody() -> Settings {
        Settings {
            cri: Vec::new(),
            docker: Vec::new(),
            podman: Vec::new(),
            stores: Vec::new(),
            cloud: None,
            kubelet: None,
        }
    }

    fn looked(settings: &Settings) -> Diagnosis {
        let mut told = Diagnosis {
            findings: Vec::new(),
        };
        look(&mut told, settings);
        told
    }

    /// A metadata service that answers each request with this, or takes it and says nothing.
    fn metadata(answer: Option<&'static str>) -> Settings {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        thread::spawn(move || {
            let mut kept = Vec::new();
            for stream in listener.incoming().flatten() {
                let mut stream = stream;
                let mut request = [0; 4096];
                let _ = stream.read(&mut request);
                match answer {
                    Some(answer) => _ = stream.write_all(answer.as_bytes()),
                    None => kept.push(stream),
                }
            }
        });
        Settings {
            cloud: Some(cloud::Settings {
                address,
                provider: Some(cloud::Provider::Ec2),
                ..cloud::Settings::default()
            }),
            ..nobody()
        }
    }

    #[test]
    fn a_metadata_service_is_told_by_what_it_answers_and_how_to_mend_it() {
        for (answer, wanted) in [
            (
                Some("HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n"),
                ["version 1 only", "--http-tokens required"],
            ),
            (
                Some("HTTP/1.1 401 X\r\nContent-Length: 0\r\n\r\n"),
                ["status 401", "session is not taken"],
            ),
            (
                Some("HTTP/1.1 403 X\r\nContent-Length: 0\r\n\r\n"),
                ["status 403", "--http-endpoint enabled"],
            ),
            (
                Some("HTTP/1.1 200 X\r\nContent-Length: 6\r\n\r\n<html>"),
                ["document", "is that a metadata service?"],
            ),
            (
                Some("SSH-2.0-x\r\n\r\n"),
                ["not HTTP", "is that a metadata service?"],
            ),
            (None, ["no answer within a second", "hop-limit 2"]),
        ] {
            let begun = Instant::now();
            let told = looked(&metadata(answer));
            assert!(begun.elapsed() < LIMIT + Duration::from_secs(2));
            let (found, text) = grade(&told, "cloud").expect("a finding");
            assert_eq!(found, Grade::Lacking, "{text}");
            assert!(wanted.iter().all(|wanted| text.contains(wanted)), "{text}");
        }
        let off = looked(&nobody());
        assert_eq!(
            grade(&off, "cloud").map(|(grade, _)| grade),
            Some(Grade::Good)
        );
    }

    #[test]
    fn runtimes_and_the_kubelet_are_tried_and_not_waited_for() {
        let dir = tempfile::tempdir().expect("a folder");
        let at = |name: &str| dir.path().join(name);
        // It takes a question and says nothing; nobody listens any more; it answers.
        let _hangs = UnixListener::bind(at("hangs")).expect("a socket");
        drop(UnixListener::bind(at("gone")).expect("a socket"));
        let answers = UnixListener::bind(at("answers")).expect("a socket");
        thread::spawn(move || {
            for mut stream in answers.incoming().flatten() {
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(b"HTTP/1.1 404 X\r\nContent-Length: 2\r\n\r\n{}");
            }
        });
        let settings = Settings {
            cri: vec![at("hangs"), at("never")],
            docker: vec![at("gone")],
            podman: vec![at("answers")],
            kubelet: Some(crate::enrich::runtime::kubelet::Settings {
                address: Some("127.0.0.1:1".into()),
                name: None,
                ca: at("ca.pem"),
                token: at("token"),
            }),
            ..nobody()
        };
        let begun = Instant::now();
        let text = looked(&settings).to_string();
        assert!(begun.elapsed() < LIMIT + Duration::from_secs(2));
        let line = |place: &str| {
            let mut lines = text.lines().filter(|line| line.contains(place));
            lines.next().unwrap_or_default().to_owned()
        };
        let path = |name: &str| at(name).display().to_string();
        assert!(line(&path("answers")).starts_with("good"), "{text}");
        assert!(
            line(&path("hangs")).contains("does not answer in time"),
            "{text}"
        );
        assert!(line(&path("gone")).starts_with("lacking"), "{text}");
        assert!(text.contains("nobody listens there"), "{text}");
        assert_eq!(line(&path("never")), "");
        assert!(line("kubelet ").starts_with("lacking"), "{text}");
        assert!(text.contains("may get nodes/pods"), "{text}");
    }
}
