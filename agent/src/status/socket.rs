//! `run/agent.sock`: whoever may connect is sent the status as one JSON object. `run/command.sock`: whoever may connect says one
//! word, and is told what became of it.

use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tracing::warn;

use super::{Status, page};
use crate::pipeline::Control;

/// Longest wait for either side.
const PATIENCE: Duration = Duration::from_secs(5);

/// Largest answer that is believed.
const ANSWER_MAX: u64 = 16 << 20;

/// A socket that does not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be made.
    #[error("cannot make the socket {path}")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Nobody answers.
    #[error("no agent answers at {path}; is it running?")]
    Ask {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The answer is not JSON.
    #[error("the agent at {path} answered something else than JSON")]
    Answer {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

/// Where the socket is.
fn place(run: &Path) -> PathBuf {
    run.join("agent.sock")
}

/// Where commands are taken.
fn commands(run: &Path) -> PathBuf {
    run.join("command.sock")
}

/// The one that there is.
const LIFT: &[u8] = b"lift\n";

/// Makes the socket, only for its owner, and answers on it until the future is
/// dropped. A socket that a killed agent left is replaced: the kernel-wide lock has
/// made sure that no other agent runs.
///
/// # Errors
/// [`Error::Listen`] when the folder or the socket cannot be made.
pub fn serve(
    run: &Path,
    status: Arc<Status>,
) -> Result<impl Future<Output = ()> + Send + use<>, Error> {
    let path = place(run);
    let listener = listen(run, &path).map_err(|source| Error::Listen { path, source })?;
    Ok(async move {
        loop {
            let mut connection = match listener.accept().await {
                Ok((connection, _)) => connection,
                Err(error) => {
                    warn!(%error, "failed to accept on the status socket");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            // One at a time, with a deadline: nobody can pile up connections.
            let answer = format!("{}\n", page::json(&status));
            let _ = tokio::time::timeout(PATIENCE, async {
                connection.write_all(answer.as_bytes()).await?;
                connection.shutdown().await
            })
            .await;
        }
    })
}

/// Makes the socket of commands, likewise, and does what they say until the future is dropped.
///
/// # Errors
/// As [`serve`].
pub fn serve_commands(
    run: &Path,
    status: Arc<Status>,
    control: Arc<Control>,
) -> Result<impl Future<Output = ()> + Send + use<>, Error> {
    let path = commands(run);
    let listener = listen(run, &path).map_err(|source| Error::Listen { path, source })?;
    Ok(async move {
        loop {
            let mut connection = match listener.accept().await {
                Ok((connection, _)) => connection,
                Err(error) => {
                    warn!(%error, "failed to accept on the socket of commands");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            // One at a time, with a deadline, as above.
            let _ = tokio::time::timeout(PATIENCE, async {
                let mut word = [0; LIFT.len()];
                connection.read_exact(&mut word).await?;
                if word != LIFT {
                    return Ok(());
                }
                let lifted = lifted(&status, &control).await;
                let answer = format!("{}\n", serde_json::json!({ "lifted": lifted }));
                connection.write_all(answer.as_bytes()).await?;
                connection.shutdown().await
            })
            .await;
        }
    })
}

/// Has the reading thread end the isolation; the rule that it was for.
async fn lifted(status: &Status, control: &Control) -> Option<String> {
    let now = status.isolation();
    control.lift.store(true, Ordering::Release);
    while control.lift.load(Ordering::Acquire) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    now.map(|now| format!("{}/{}", now.policy, now.rule))
}

/// Asks the running agent to end the isolation of the host. The answer has the rule it was for under `lifted`.
///
/// # Errors
/// As [`ask`].
pub fn lift(run: &Path) -> Result<serde_json::Value, Error> {
    talk(commands(run), LIFT)
}

fn listen(run: &Path, path: &Path) -> io::Result<UnixListener> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(run)?;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Asks the running agent for its status.
///
/// # Errors
/// [`Error::Ask`] when none answers, [`Error::Answer`] when it is not JSON.
pub fn ask(run: &Path) -> Result<serde_json::Value, Error> {
    talk(place(run), b"")
}

fn talk(path: PathBuf, word: &[u8]) -> Result<serde_json::Value, Error> {
    let answer = UnixStream::connect(&path)
        .and_then(|mut stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(word)?;
            let mut answer = String::new();
            stream.take(ANSWER_MAX).read_to_string(&mut answer)?;
            Ok(answer)
        })
        .map_err(|source| Error::Ask {
            path: path.clone(),
            source,
        })?;
    serde_json::from_str(&answer).map_err(|source| Error::Answer { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Run;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_running_agent_answers_and_a_left_socket_is_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let run = folder.path().join("run");
        let error = ask(&run).expect_err("nobody there");
        assert!(error.to_string().contains("is it running"), "{error}");
        let status = Arc::new(Status::new(Run {
            agent_id: "u".into(),
            ..Run::default()
        }));
        // The first is dropped without removing its socket, as by a kill.
        drop(serve(&run, status.clone()).expect("a socket"));
        let server = tokio::spawn(serve(&run, status).expect("the socket again"));
        let mode = std::fs::metadata(place(&run))
            .expect("the socket")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let asked = run.clone();
        let answer = tokio::task::spawn_blocking(move || ask(&asked))
            .await
            .expect("the asking thread")
            .expect("an answer");
        assert_eq!(answer["agent_id"], "u");
        assert_eq!(answer["state"], "starting");
        server.abort();
    }
}
