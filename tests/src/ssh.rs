//! A real OpenSSH on loopback, which lets root in by a key of the test's.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

const SSHD: &str = "/usr/sbin/sshd";
/// Where it separates what is not trusted yet; made at boot by the package's service.
const EMPTY: &str = "/run/sshd";
const LIMIT: Duration = Duration::from_secs(20);
/// What a login goes through; of Debian's it is that every process of it bears who has logged in.
const PAM: &str = "/etc/pam.d/sshd";

/// Whether it is installed.
#[must_use]
pub fn has() -> bool {
    Path::new(SSHD).exists() && Command::new("ssh").arg("-V").output().is_ok()
}

/// The server; it ends with this.
#[derive(Debug)]
pub struct Sshd {
    child: Child,
    address: SocketAddr,
    dir: PathBuf,
    made: bool,
}

impl Sshd {
    /// Starts one that listens here, with its files in this folder.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(dir: &Path, ip: &str) -> Result<Self> {
        fs::create_dir_all(dir)?;
        for key in ["host", "key"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(dir.join(key))
                .output()?;
            ensure!(made.status.success(), "ssh-keygen: {made:?}");
        }
        fs::copy(dir.join("key.pub"), dir.join("authorized"))?;
        fs::set_permissions(dir.join("authorized"), fs::Permissions::from_mode(0o600))?;
        let free = TcpListener::bind((ip, 0)).context("a free port")?;
        let address = free.local_addr()?;
        drop(free);
        let place = |name: &str| dir.join(name).display().to_string();
        let pam = if Path::new(PAM).exists() { "yes" } else { "no" };
        let config = format!(
            "Port {}\nListenAddress {ip}\nHostKey {}\nAuthorizedKeysFile {}\nPermitRootLogin yes\nStrictModes no\n\
             UsePAM {pam}\nPidFile none\nLogLevel ERROR\n",
            address.port(),
            place("host"),
            place("authorized")
        );
        fs::write(dir.join("config"), config)?;
        let made = fs::DirBuilder::new().mode(0o755).create(EMPTY).is_ok();
        let log = fs::File::create(dir.join("log"))?;
        let child = Command::new(SSHD)
            .args(["-D", "-e", "-f"])
            .arg(dir.join("config"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()?;
        let mut server = Self {
            child,
            address,
            dir: dir.to_owned(),
            made,
        };
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            let ended = server.child.try_wait()?;
            let log = || fs::read_to_string(dir.join("log")).unwrap_or_default();
            ensure!(
                ended.is_none() && begun.elapsed() < LIMIT,
                "sshd: {}",
                log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// A login that runs this.
    #[must_use]
    pub fn login(&self, remote: &str) -> Command {
        self.ssh("-T", remote)
    }

    /// One that runs it on a terminal of its own.
    #[must_use]
    pub fn login_on_terminal(&self, remote: &str) -> Command {
        let mut command = self.ssh("-tt", remote);
        command.stdin(Stdio::null());
        command
    }

    fn ssh(&self, terminal: &str, remote: &str) -> Command {
        let mut command = Command::new("ssh");
        command
            .args([
                terminal,
                "-F",
                "/dev/null",
                "-o",
                "BatchMode=yes",
                "-o",
                "IdentitiesOnly=yes",
            ])
            .args([
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "UserKnownHostsFile=/dev/null",
            ])
            .args(["-o", "LogLevel=ERROR", "-l", "root", "-p"])
            .arg(self.address.port().to_string())
            .arg("-i")
            .arg(self.dir.join("key"))
            .arg(self.address.ip().to_string())
            .arg(remote);
        command
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if self.made {
            let _ = fs::remove_dir(EMPTY);
        }
    }
}
