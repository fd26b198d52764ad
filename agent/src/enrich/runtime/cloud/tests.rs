//! Against a strict double of EC2's service: no answer without a session's token, as where version 1 is off.

use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

/// How the double behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    /// As it should.
    Strict,
    /// Its first token is not taken any more.
    Forgetful,
    /// Tags and roles are not there.
    Bare,
    /// It takes a question and says nothing.
    Silent,
    /// 200 and no JSON.
    Garbage,
    /// Only version 1: no tokens.
    Old,
    /// A key of a tag that no path holds as it is, and one that the service itself cannot serve.
    Odd,
    /// After its first whole word, roles, tags and then documents are answered with an error.
    Flaky,
}

struct Double {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

async fn double(mood: Mood) -> Double {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let asked = Arc::new(Mutex::new(Vec::new()));
    let tokens = Arc::new(AtomicUsize::new(0));
    let log = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = vec![0; 4096];
            let mut len = 0;
            while !bytes[..len].windows(4).any(|end| end == b"\r\n\r\n") {
                match stream.read(&mut bytes[len..]).await {
                    Ok(0) | Err(_) => break,
                    Ok(more) => len += more,
                }
            }
            let request = String::from_utf8_lossy(&bytes[..len]).into_owned();
            let line = request.lines().next().unwrap_or_default().to_owned();
            log.lock().expect("a lock").push(line.clone());
            if mood == Mood::Silent {
                tokio::time::sleep(Duration::from_secs(60)).await;
                continue;
            }
            let turns = log
                .lock()
                .expect("a lock")
                .iter()
                .filter(|line| line.starts_with("PUT "))
                .count();
            let (status, body) = match mood {
                Mood::Flaky if turns > 1 => {
                    flaky(turns, &line).unwrap_or_else(|| answer(mood, &tokens, &request))
                }
                _ => answer(mood, &tokens, &request),
            };
            let text = format!(
                "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(text.as_bytes()).await;
        }
    });
    Double { address, asked }
}

/// What fails of a look that is not the first.
fn flaky(turn: usize, line: &str) -> Option<(u16, String)> {
    let failed = match turn {
        2 => line.contains("/iam/"),
        3 => line.contains("/tags/instance "),
        4 => line.contains("/tags/instance/role "),
        5 => line.contains("/document "),
        6 => line.starts_with("PUT "),
        // No failure: the role is another now.
        7 if line.contains("/tags/instance/role ") => return Some((200, "db".into())),
        _ => false,
    };
    let status = [500, 503, 401, 429][turn % 4];
    failed.then(|| (status, "<html>".into()))
}

fn answer(mood: Mood, tokens: &AtomicUsize, request: &str) -> (u16, String) {
    let line = request.lines().next().unwrap_or_default();
    let header = |name: &str| {
        request
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.to_owned())
    };
    if line.starts_with("PUT /latest/api/token ") {
        let ttl = header("X-aws-ec2-metadata-token-ttl-seconds").and_then(|ttl| ttl.parse().ok());
        return match ttl {
            _ if mood == Mood::Old => (404, String::new()),
            _ if header("X-Forwarded-For").is_some() => (403, String::new()),
            Some(1..=21_600_u32) => (200, format!("token-{}", tokens.fetch_add(1, Relaxed))),
            _ => (400, String::new()),
        };
    }
    let wanted = match mood {
        Mood::Forgetful => "token-1",
        _ => "token-",
    };
    if !header("X-aws-ec2-metadata-token").is_some_and(|token| token.starts_with(wanted)) {
        return (401, String::new());
    }
    if mood == Mood::Garbage {
        return (200, "<html>".into());
    }
    let path = line.split(' ').nth(1).unwrap_or_default();
    let body = match path {
        "/latest/dynamic/instance-identity/document" => {
            r#"{"accountId":"123456789012","region":"eu-west-1","availabilityZone":"eu-west-1b","instanceId":"i-0abc","instanceType":"m7g.large","imageId":"ami-0def","pendingTime":"2026-01-01T00:00:00Z","version":"2017-09-30"}"#
        }
        _ if mood == Mood::Bare => return (404, String::new()),
        "/latest/meta-data/iam/info" => {
            r#"{"Code":"Success","InstanceProfileArn":"arn:aws:iam::123456789012:instance-profile/path/web","InstanceProfileId":"X"}"#
        }
        "/latest/meta-data/tags/instance" if mood == Mood::Odd => {
            "of the day\nbroken\naws:autoscaling:groupName\nrole\n../iam"
        }
        "/latest/meta-data/tags/instance/of%20the%20day" => "Friday\\",
        "/latest/meta-data/tags/instance/broken" => return (400, String::new()),
        "/latest/meta-data/tags/instance" => "role\naws:autoscaling:groupName",
        "/latest/meta-data/tags/instance/role" => "web",
        "/latest/meta-data/tags/instance/aws:autoscaling:groupName" => "web-asg",
        _ => return (404, String::new()),
    };
    (200, body.to_owned())
}

fn on_this_thread<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(work)
}

fn settings(address: SocketAddr, dmi: &std::path::Path) -> Settings {
    Settings {
        address,
        dmi: dmi.to_owned(),
        provider: None,
    }
}

/// Firmware of a vendor.
fn firmware(vendor: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(dir.path().join("sys_vendor"), format!("{vendor}\n")).expect("a file");
    dir
}

#[test]
fn an_instance_is_told_by_sessions_only() {
    on_this_thread(async {
        let double = double(Mood::Strict).await;
        let dmi = firmware("Amazon EC2");
        let seen = look(&settings(double.address, dmi.path()), Provider::Ec2, None).await;
        let Seen { cloud, missing } = seen.expect("an instance");
        assert!(missing.is_none() && cloud.tags_flaws == 0 && !cloud.role_untold);
        assert_eq!(
            (cloud.instance_type.as_str(), cloud.image.as_str()),
            ("m7g.large", "ami-0def")
        );
        assert_eq!(
            (cloud.account.as_str(), cloud.region.as_str()),
            ("123456789012", "eu-west-1")
        );
        assert_eq!(
            (cloud.zone.as_str(), cloud.instance_id.as_str()),
            ("eu-west-1b", "i-0abc")
        );
        assert_eq!(
            (cloud.role.as_str(), cloud.scaling_group.as_str()),
            ("web", "web-asg")
        );
        assert_eq!(
            cloud.tags,
            ["aws:autoscaling:groupName=web-asg", "role=web"]
        );
        let asked = double.asked.lock().expect("a lock").clone();
        assert!(asked[0].starts_with("PUT /latest/api/token"), "{asked:?}");
        // Where credentials lie is not gone to.
        assert!(
            asked
                .iter()
                .all(|line| !line.contains("security-credentials")),
            "{asked:?}"
        );
    });
}

#[test]
fn what_is_not_allowed_is_left_out_and_what_is_wrong_is_an_error() {
    on_this_thread(async {
        let ask = async |mood| {
            let double = double(mood).await;
            let dmi = firmware("Amazon EC2");
            let seen = look(&settings(double.address, dmi.path()), Provider::Ec2, None).await;
            let asked = double.asked.lock().expect("a lock").clone();
            seen.map(|seen| seen.cloud)
                .map_err(|failure| (failure, asked))
        };
        let bare = ask(Mood::Bare).await.expect("an instance");
        assert_eq!(
            (bare.instance_id.as_str(), bare.role.as_str()),
            ("i-0abc", "")
        );
        assert!(bare.tags.is_empty());
        for mood in [Mood::Garbage, Mood::Old, Mood::Forgetful] {
            let (failure, asked) = ask(mood).await.expect_err("no instance");
            assert!(matches!(failure, Failure::Refused(_)), "{failure}");
            if mood == Mood::Old {
                // Version 1 would have answered.
                assert_eq!(asked, ["PUT /latest/api/token HTTP/1.1"]);
                assert!(failure.to_string().contains("version 1 only"), "{failure}");
            }
        }
        let begun = Instant::now();
        let (failure, _) = ask(Mood::Silent).await.expect_err("no instance");
        assert!(failure.to_string().contains("hop limit"), "{failure}");
        assert!(begun.elapsed() < Duration::from_secs(3));
    });
}

#[test]
fn a_bad_key_of_a_tag_spoils_only_itself() {
    on_this_thread(async {
        let double = double(Mood::Odd).await;
        let dmi = firmware("Amazon EC2");
        let seen = look(&settings(double.address, dmi.path()), Provider::Ec2, None).await;
        let Seen { cloud, missing } = seen.expect("an instance");
        assert_eq!(
            cloud.tags,
            [
                "aws:autoscaling:groupName=web-asg",
                "of the day=Friday\\\\",
                "role=web",
                // In the place of those that are not told.
                ""
            ]
        );
        assert_eq!(cloud.tags_flaws, u32::from(FLAW_LOST));
        assert!(missing.is_some_and(|missing| missing.to_string().contains("/broken: status 400")));
        let asked = double.asked.lock().expect("a lock").clone();
        assert!(
            asked
                .iter()
                .any(|line| line.contains("/instance/..%2Fiam ")),
            "{asked:?}"
        );
    });
}

/// So fast that a test can wait for it.
const PACE: Pace = Pace {
    retry: Duration::from_millis(50),
    retry_max: Duration::from_millis(400),
    refresh: Duration::from_millis(100),
};

#[test]
fn what_was_told_before_stays_until_the_service_says_something_else() {
    on_this_thread(async {
        let double = double(Mood::Flaky).await;
        let dmi = firmware("Amazon EC2");
        let (answers, mut learned) = mpsc::channel(9);
        let told = Arc::new(Told::default());
        let asking = tokio::spawn({
            let (settings, told) = (settings(double.address, dmi.path()), Arc::clone(&told));
            async move { serve_at(PACE, settings, &told, answers).await }
        });
        let mut next = async || {
            let learned = tokio::time::timeout(Duration::from_secs(20), learned.recv()).await;
            let facts = learned.expect("in time").and_then(|learned| learned.facts);
            facts.and_then(|facts| facts.cloud).expect("an instance")
        };
        let first = next().await;
        assert_eq!((first.role.as_str(), first.tags_flaws), ("web", 0));
        // Of five failures there is no word; what is refreshed after them is the next.
        let second = next().await;
        let looks = |asked: &Mutex<Vec<String>>| {
            let asked = asked.lock().expect("a lock");
            asked.iter().filter(|line| line.starts_with("PUT ")).count()
        };
        assert_eq!(looks(&double.asked), 7);
        assert_eq!(
            second.tags,
            ["aws:autoscaling:groupName=web-asg", "role=db"]
        );
        let changed = Cloud {
            tags: first.tags.clone(),
            ..second
        };
        assert_eq!(changed, first);
        // And again and again.
        let begun = Instant::now();
        while looks(&double.asked) < 10 {
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "it is not refreshed"
            );
            tokio::time::sleep(PACE.retry).await;
        }
        asking.abort();
    });
}

#[test]
fn it_is_asked_less_and_less_often_while_it_fails_and_that_is_told() {
    on_this_thread(async {
        let double = double(Mood::Old).await;
        let dmi = firmware("Amazon EC2");
        let (answers, _learned) = mpsc::channel(9);
        let told = Arc::new(Told::default());
        let asking = tokio::spawn({
            let (settings, told) = (settings(double.address, dmi.path()), Arc::clone(&told));
            async move { serve_at(PACE, settings, &told, answers).await }
        });
        let begun = Instant::now();
        let mut times = Vec::new();
        while times.len() < 6 {
            assert!(begun.elapsed() < Duration::from_secs(20), "{times:?}");
            let asked = double.asked.lock().expect("a lock").len();
            times.resize(asked, begun.elapsed());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // 50, 100, 200, 400 and 400 ms: never sooner.
        let pauses: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let least = [50, 100, 200, 400, 400].map(|ms| Duration::from_millis(ms - 10));
        assert!(
            pauses
                .iter()
                .zip(least)
                .all(|(pause, least)| *pause >= least),
            "{pauses:?}"
        );
        let troubles = told.troubles();
        assert!(troubles["cloud"].contains("version 1 only"), "{troubles:?}");
        asking.abort();
    });
}

/// moto's service, as its own server would call it: it has single values and no document.
const MOTO: &str = r#"
import http.server
from moto.instance_metadata.responses import InstanceMetadataResponse as Service
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        try:
            status, _, text = Service.metadata_response(None, "http://169.254.169.254" + self.path, self.headers)
        except NotImplementedError:
            status, text = 404, ""
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_PUT = do_GET
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"#;

#[test]
fn an_instance_of_moto_is_told_without_an_account() {
    use std::io::BufRead as _;
    let python = std::env::var_os("SUMUN_VENV").map(|venv| Path::new(&venv).join("bin/python3"));
    let Some(python) = python.filter(|python| python.exists()) else {
        println!("SKIPPED an instance of moto: no Python for tests, run 'make setup-test'");
        return;
    };
    let mut server = std::process::Command::new(python)
        .args(["-c", MOTO])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("Python starts");
    let mut line = String::new();
    let said = server.stdout.take().expect("a pipe");
    std::io::BufReader::new(said)
        .read_line(&mut line)
        .expect("a line");
    let told = on_this_thread(async {
        let port: u16 = line.trim().parse().expect("a port");
        let dmi = firmware("Amazon EC2");
        let settings = settings(([127, 0, 0, 1], port).into(), dmi.path());
        look(&settings, Provider::Ec2, None).await
    });
    server.kill().expect("it runs");
    server.wait().expect("it ends");
    let Seen { cloud, missing } = told.expect("an instance");
    assert!(missing.is_none(), "{missing:?}");
    assert_eq!(
        (cloud.instance_id.as_str(), cloud.instance_type.as_str()),
        ("i-fake", "moto.virtual")
    );
    assert_eq!(
        (cloud.region.as_str(), cloud.zone.as_str()),
        ("us-east-1", "us-east-1a")
    );
    assert_eq!((cloud.account.as_str(), cloud.role.as_str()), ("", ""));
    assert!(cloud.tags.is_empty() && cloud.tags_flaws == 0);
}

#[test]
fn a_token_that_is_not_taken_is_asked_for_anew() {
    on_this_thread(async {
        let double = double(Mood::Forgetful).await;
        let dmi = firmware("Amazon EC2");
        let (answers, mut learned) = mpsc::channel(1);
        let settings = settings(double.address, dmi.path());
        let asking = tokio::spawn(async move { serve(settings, &Told::default(), answers).await });
        let told = tokio::time::timeout(Duration::from_secs(20), learned.recv()).await;
        let facts = told
            .expect("in time")
            .and_then(|told| told.facts)
            .expect("facts");
        assert_eq!(facts.cloud.expect("an instance").instance_id, "i-0abc");
        asking.abort();
    });
}

#[test]
fn off_the_cloud_nobody_is_asked_or_only_for_a_moment() {
    on_this_thread(async {
        let double = double(Mood::Silent).await;
        let (answers, mut learned) = mpsc::channel(2);
        let other = firmware("QEMU");
        let told = Told::default();
        serve(
            settings(double.address, other.path()),
            &told,
            answers.clone(),
        )
        .await;
        assert!(double.asked.lock().expect("a lock").is_empty());
        // No firmware to ask, and nobody who answers.
        let none = tempfile::tempdir().expect("a folder");
        let begun = Instant::now();
        serve(settings(double.address, none.path()), &told, answers).await;
        // PATIENCE, and a little for a busy machine.
        assert!(begun.elapsed() < Duration::from_millis(1_500));
        assert!(told.troubles().is_empty());
        // Each time that is said.
        for _ in 0..2 {
            let told = learned.recv().await.expect("a word");
            assert!(told.workload == 0 && told.facts.is_none());
        }
        assert!(learned.recv().await.is_none());
    });
}

#[test]
fn the_other_clouds_are_read_from_their_own_answers() {
    on_this_thread(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut bytes = vec![0; 4096];
                let len = stream.read(&mut bytes).await.unwrap_or(0);
                let request = String::from_utf8_lossy(&bytes[..len]).into_owned();
                let path = request.split(' ').nth(1).unwrap_or_default();
                let body = match path {
                    path if path.starts_with("/metadata/")
                        && request.contains("Metadata: true") =>
                    {
                        r#"{"subscriptionId":"sub","location":"westeurope","zone":"2","vmId":"vm-1","vmSize":"Standard_D2s_v5","vmScaleSetName":"set","storageProfile":{"imageReference":{"id":"img"}},"tagsList":[{"name":"role","value":"db"}]}"#
                    }
                    "/computeMetadata/v1/project/project-id" => "my-project",
                    path if path.starts_with("/computeMetadata/v1/instance/")
                        && request.contains("Metadata-Flavor: Google") =>
                    {
                        r#"{"id":4520031799277581759,"zone":"projects/1/zones/us-central1-a","machineType":"projects/1/machineTypes/e2-small","image":"projects/x/global/images/debian-12","tags":["web"],"serviceAccounts":{"default":{"email":"sa@x"}}}"#
                    }
                    _ => "",
                };
                let text = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                let _ = stream.write_all(text.as_bytes()).await;
            }
        });
        let settings = Settings {
            address,
            ..Settings::default()
        };
        let azure = look(&settings, Provider::Azure, None).await;
        let azure = azure.expect("an instance").cloud;
        assert_eq!(
            (azure.account.as_str(), azure.region.as_str()),
            ("sub", "westeurope")
        );
        assert_eq!(
            (azure.instance_id.as_str(), azure.scaling_group.as_str()),
            ("vm-1", "set")
        );
        assert_eq!(azure.tags, ["role=db"]);
        let google = look(&settings, Provider::Google, None).await;
        let google = google.expect("an instance").cloud;
        assert_eq!(
            (google.account.as_str(), google.region.as_str()),
            ("my-project", "us-central1")
        );
        assert_eq!(
            (google.instance_id.as_str(), google.instance_type.as_str()),
            ("4520031799277581759", "e2-small")
        );
    });
}
