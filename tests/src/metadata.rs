//! EC2's metadata service as strict as it can be set: IMDSv2 only, tokens that end and go one hop; and a signer of documents in
//! Amazon's place.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns};

/// Runs OpenSSL in a folder.
///
/// # Errors
/// It is not there, or refuses.
pub fn openssl(folder: &Path, args: &[&str]) -> Result<Vec<u8>> {
    let output = Command::new("openssl")
        .current_dir(folder)
        .args(args)
        .output()
        .context("openssl")?;
    ensure!(
        output.status.success(),
        "openssl {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}

/// Signs documents as Amazon does for a region.
#[derive(Debug)]
pub struct Signer {
    folder: PathBuf,
}

impl Signer {
    /// Makes key and certificate in a folder: `certificates/REGION.pem`.
    ///
    /// # Errors
    /// OpenSSL is not there.
    pub fn new(folder: &Path, region: &str) -> Result<Self> {
        fs::create_dir_all(folder.join("certificates"))?;
        let new = [
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test",
        ];
        let certificate = format!("certificates/{region}.pem");
        openssl(
            folder,
            &[&new[..], &["-keyout", "amazon.key", "-out", &certificate]].concat(),
        )?;
        fs::copy(folder.join(&certificate), folder.join("amazon.pem"))?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// The signed document in base64, in the form that Amazon uses: lengths that are not known before.
    ///
    /// # Errors
    /// OpenSSL fails.
    pub fn sign(&self, document: &str) -> Result<String> {
        fs::write(self.folder.join("document"), document)?;
        let args = [
            "cms",
            "-sign",
            "-binary",
            "-nodetach",
            "-stream",
            "-md",
            "sha256",
            "-in",
            "document",
        ];
        let who = [
            "-outform",
            "DER",
            "-out",
            "signed",
            "-inkey",
            "amazon.key",
            "-signer",
            "amazon.pem",
        ];
        openssl(&self.folder, &[&args[..], &who].concat())?;
        let text = openssl(&self.folder, &["base64", "-in", "signed"])?;
        Ok(String::from_utf8(text)?)
    }
}

/// How the service behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// As it should.
    Strict,
    /// It has no sessions, as before IMDSv2.
    Old,
}

#[derive(Debug)]
struct State {
    mood: Mood,
    signed: String,
    /// What is told at other paths.
    told: HashMap<String, String>,
    /// Sessions, and when each ends.
    tokens: HashMap<String, Instant>,
    asked: Vec<String>,
}

/// A running service.
#[derive(Debug)]
pub struct Metadata {
    /// Where it is.
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Metadata {
    /// Starts it; it ends with the program.
    ///
    /// # Errors
    /// There is no port.
    pub fn start() -> Result<Self> {
        Self::serve(TcpListener::bind("127.0.0.1:0")?)
    }

    /// The same where the real one is, in the network namespace of a process that has the address.
    ///
    /// # Errors
    /// The namespace cannot be entered, or has no such address.
    pub fn start_in(pid: u32) -> Result<Self> {
        let space = fs::File::open(format!("/proc/{pid}/ns/net"))?;
        let listener = thread::spawn(move || {
            // The socket stays of the namespace it was made in; the thread ends.
            setns(space, CloneFlags::CLONE_NEWNET)?;
            anyhow::Ok(TcpListener::bind("169.254.169.254:80")?)
        });
        Self::serve(listener.join().map_err(|_| anyhow!("a panic"))??)
    }

    fn serve(listener: TcpListener) -> Result<Self> {
        let address = listener.local_addr()?;
        let state = Arc::new(Mutex::new(State {
            mood: Mood::Strict,
            signed: String::new(),
            told: HashMap::new(),
            tokens: HashMap::new(),
            asked: Vec::new(),
        }));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // Whoever breaks off has his reasons.
                let _ = answer(&stream, &shared);
            }
        });
        Ok(Self { address, state })
    }

    /// What it tells from now on.
    ///
    /// # Panics
    /// An earlier answer panicked.
    pub fn set(&self, mood: Mood, signed: &str) {
        let mut state = self.state.lock().expect("not poisoned");
        state.mood = mood;
        signed.clone_into(&mut state.signed);
    }

    /// Tells all of an instance: its document, its role, its tags.
    ///
    /// # Panics
    /// As of [`Self::set`].
    pub fn tell(&self, document: &str, role: &str, tags: &[(&str, &str)]) {
        let mut state = self.state.lock().expect("not poisoned");
        let told = &mut state.told;
        let mut tell = |path: &str, body: String| told.insert(format!("/latest/{path}"), body);
        tell("dynamic/instance-identity/document", document.to_owned());
        tell(
            "meta-data/iam/info",
            format!(
                r#"{{"Code":"Success","InstanceProfileArn":"arn:aws:iam::123456789012:instance-profile/{role}","InstanceProfileId":"AIPA"}}"#
            ),
        );
        let keys: Vec<&str> = tags.iter().map(|(key, _)| *key).collect();
        tell("meta-data/tags/instance", keys.join("\n"));
        for (key, value) in tags {
            tell(
                &format!("meta-data/tags/instance/{}", key.replace(' ', "%20")),
                (*value).to_owned(),
            );
        }
    }

    /// The first lines of all requests.
    ///
    /// # Panics
    /// As of [`Self::set`].
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        self.state.lock().expect("not poisoned").asked.clone()
    }
}

fn answer(mut stream: &TcpStream, state: &Mutex<State>) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut lines = Vec::new();
    for line in BufReader::new(stream).lines() {
        match line? {
            line if line.is_empty() => break,
            line => lines.push(line),
        }
    }
    let first = lines.first().cloned().unwrap_or_default();
    let header = |name: &str| {
        lines
            .iter()
            .filter_map(|line| line.split_once(": "))
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.to_owned())
    };
    let mut state = state.lock().expect("not poisoned");
    state.asked.push(first.clone());
    let known = header("X-aws-ec2-metadata-token")
        .and_then(|token| state.tokens.get(&token).copied())
        .is_some_and(|end| Instant::now() < end);
    let (status, body) = if first.starts_with("PUT /latest/api/token ") {
        let ttl = header("X-aws-ec2-metadata-token-ttl-seconds").and_then(|ttl| ttl.parse().ok());
        match ttl {
            _ if state.mood == Mood::Old => (404, String::new()),
            // A proxy is not the instance.
            _ if header("X-Forwarded-For").is_some() => (403, String::new()),
            Some(ttl @ 1..=21_600_u64) => {
                let token = format!("token-{}", state.tokens.len());
                let end = Instant::now() + Duration::from_secs(ttl);
                state.tokens.insert(token.clone(), end);
                (200, token)
            }
            _ => (400, String::new()),
        }
    } else if !known {
        (401, String::new())
    } else if first.starts_with("GET /latest/dynamic/instance-identity/rsa2048 ") {
        (200, state.signed.clone())
    } else {
        let path = first
            .strip_prefix("GET ")
            .and_then(|rest| rest.split(' ').next());
        let told = path.and_then(|path| state.told.get(path)).cloned();
        told.map_or_else(|| (404, String::new()), |body| (200, body))
    };
    drop(state);
    if first.starts_with("PUT ") {
        // The hop limit, as instances have it: a router drops what has the token.
        stream.set_ttl(1)?;
    }
    write!(
        stream,
        "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    Ok(stream.flush()?)
}
