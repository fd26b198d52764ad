//! A web server that is asked for one page a connection.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::rate;
use crate::container::find;
use crate::process::Process;

/// How long it may take until it answers.
const READY: Duration = Duration::from_secs(10);
const REQUEST: &[u8] = b"GET /page HTTP/1.0\r\nHost: localhost\r\n\r\n";

/// nginx in one process, on loopback, without logs.
#[derive(Debug)]
pub struct Nginx {
    process: Process,
    address: SocketAddr,
    _dir: TempDir,
}

/// Why it cannot run here, if it cannot.
#[must_use]
pub fn hindered() -> Option<String> {
    let missing = find("nginx").is_none();
    missing.then(|| "nginx is not installed: run 'make setup-bench'".to_owned())
}

impl Nginx {
    /// Returns when it answers.
    ///
    /// # Errors
    /// It does not.
    pub fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join("page"), [b'x'; 1024])?;
        // It cannot be told to take any that is free.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let folder = dir.path().display();
        let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|name| format!("{name}_temp_path {folder}/{name};\n"))
            .collect();
        let config = format!(
            "daemon off;\nmaster_process off;\nuser root;\npid {folder}/pid;\nerror_log {folder}/error.log;\n\
             events {{ worker_connections 64; }}\n\
             http {{\naccess_log off;\n{paths}server {{ listen {address}; root {folder}; }}\n}}\n"
        );
        let path = dir.path().join("nginx.conf");
        fs::write(&path, config)?;
        let log = dir.path().join("log");
        let mut command = Command::new(find("nginx").context("nginx is not installed")?);
        command.arg("-c").arg(&path).arg("-p").arg(dir.path());
        let process = Process::start("nginx", &mut command, &log)?;
        let mut nginx = Self {
            process,
            address,
            _dir: dir,
        };
        let begun = Instant::now();
        while let Err(error) = nginx.request() {
            ensure!(
                begun.elapsed() < READY && nginx.process.ended().is_none(),
                "nginx does not answer: {error:#}: {}",
                fs::read_to_string(&log).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(nginx)
    }

    /// Connects, asks for the page, reads it to its end.
    ///
    /// # Errors
    /// It does not come.
    pub fn request(&self) -> Result<()> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.write_all(REQUEST)?;
        let mut answer = [0; 4096];
        let mut length = 0;
        loop {
            match stream.read(&mut answer[length..])? {
                0 => break,
                more => length += more,
            }
        }
        ensure!(
            answer.starts_with(b"HTTP/1.1 200 ") && length > 1024,
            "{}",
            String::from_utf8_lossy(&answer[..length])
        );
        Ok(())
    }

    /// Nanoseconds of processor time that it has had.
    ///
    /// # Errors
    /// It has ended.
    pub fn cpu_ns(&self) -> Result<u64> {
        rate::cpu_ns(self.process.pid())
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.process.signal(Signal::SIGQUIT);
    }
}
