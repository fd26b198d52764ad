//! `sumun-collector init`: everything a collector needs, in one directory.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::{Config, is_server_name};
use crate::state::{self, now_ns};
use crate::tenant::DEFAULT_TENANT;
use crate::tenant::ca::{CA_CERTIFICATE, CA_KEY, Ca};
use crate::tenant::token::{Purpose, Tokens};

/// The configuration.
pub const CONFIG: &str = "collector.toml";
/// The first admin's context for `sumunctl`.
pub const ADMIN: &str = "admin.toml";
/// The first enrolment token.
pub const ENROLL_TOKEN: &str = "enroll.token";
/// The configuration before it is in its place.
const CONFIG_NEXT: &str = "collector.toml.new";
/// There while [`init`] is at work: what it finds beside this file is what an interrupted one has left, which nobody can have used.
const UNFINISHED: &str = "init.unfinished";

/// Where the packages' service has its configuration. State and runtime files have places of their own
/// then, as the file system's standard wants, and are the service's user's.
pub const SYSTEM: &str = "/etc/sumun";
/// The state of the packages' service.
const SYSTEM_STATE: &str = "/var/lib/sumun/collector";
/// Runtime files of the packages' service.
const SYSTEM_RUN: &str = "/run/sumun/collector";
/// The user of the packages' service.
const SYSTEM_USER: &str = "sumun-collector";

const ENROLL_USES: u32 = 100;
const ENROLL_VALID: Duration = Duration::from_secs(24 * 3600);

/// Initialisation failed. What was written stays until it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is one already.
    #[error("{} exists: this directory is initialised; remove it or choose another one", .0.display())]
    Exists(PathBuf),
    /// Another one is at work there.
    #[error("another 'init' is at work in {}: wait for it", .0.display())]
    Busy(PathBuf),
    /// A file or directory cannot be made.
    #[error("failed to write {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// No port.
    #[error("failed to find a free port on {address}: choose another address with --listen")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// A name that no certificate can carry.
    #[error("`{0}` is not a host name or an address: it cannot stand in the server certificate")]
    Name(String),
    /// The certificate authority.
    #[error(transparent)]
    Ca(#[from] crate::tenant::ca::Error),
    /// The state database.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The tenant cannot be written.
    #[error("failed to write the tenant to the state database")]
    Tenant(#[source] sqlx::Error),
    /// A token.
    #[error(transparent)]
    Token(#[from] crate::tenant::token::Error),
    /// Files cannot be handed to the service's user.
    #[error("failed to give {} to the user {SYSTEM_USER}", path.display())]
    Give {
        /// Which.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// The configuration just written is not accepted.
    #[error(transparent)]
    Config(#[from] crate::config::Error),
}

/// What was made.
#[derive(Debug)]
pub struct Made {
    /// The address that agents and admins use.
    pub address: SocketAddr,
}

/// Makes configuration, CA, tenant and first tokens in `dir`. A port of 0 is
/// replaced by one that is free now. `names` are added to the certificate. In [`SYSTEM`], what the
/// service reads is given to its user, if there is one; the first tokens stay root's. What an interrupted one
/// has left is made anew.
///
/// # Errors
/// The directory is initialised already, or something cannot be written.
pub async fn init(dir: &Path, listen: SocketAddr, names: &[String]) -> Result<Made, Error> {
    let config_path = dir.join(CONFIG);
    let unfinished = dir.join(UNFINISHED);
    let resumed = unfinished.symlink_metadata().is_ok();
    for path in [
        &config_path,
        &dir.join("ca"),
        &dir.join("state"),
        &dir.join(ADMIN),
    ] {
        // Of an interrupted one all but the configuration may be there.
        let left = resumed && path != &config_path;
        if !left && path.symlink_metadata().is_ok() {
            return Err(Error::Exists(path.clone()));
        }
    }
    if let Some(bad) = names.iter().find(|name| !is_server_name(name)) {
        return Err(Error::Name(bad.clone()));
    }
    let listen = free(listen)?;
    // The system's folder is walked through by the service's user; what is secret in it is closed by itself.
    let system = dir == Path::new(SYSTEM);
    make_dir_of(dir, if system { 0o755 } else { 0o700 })?;
    let names = server_names(listen, names);
    let text = config_text(listen, &names, system);
    let config = Config::parse(&config_path, &text)?;
    // Held to the end: only what nobody holds is an interrupted one's.
    let _mark = mark(&unfinished, dir)?;
    if config_path.symlink_metadata().is_ok() {
        finish(dir)?;
        return Err(Error::Exists(config_path));
    }
    if resumed {
        remove_rest(&config, dir)?;
    } else if config.database().symlink_metadata().is_ok() {
        finish(dir)?;
        return Err(Error::Exists(config.database()));
    } else {
        sync_dir(dir)?;
    }

    make_dir(&config.ca_dir())?;
    let (certificate, key) = Ca::generate()?;
    let ca_path = config.ca_dir().join(CA_CERTIFICATE);
    write(&config.ca_dir().join(CA_KEY), key.as_bytes(), 0o600)?;
    write(&ca_path, certificate.as_bytes(), 0o644)?;

    make_dir(&config.state_dir())?;
    // SQLite gives its other files the mode of this one.
    write(&config.database(), b"", 0o600)?;
    let database = state::open(&config.database()).await?;
    sqlx::query("INSERT INTO tenant (name, created_ns) VALUES (?, ?)")
        .bind(DEFAULT_TENANT)
        .bind(now_ns())
        .execute(&database)
        .await
        .map_err(Error::Tenant)?;
    let tokens = Tokens::load(database.clone()).await?;
    let first = "init";
    let admin = tokens
        .create(DEFAULT_TENANT, Purpose::Admin, first, 0, Duration::ZERO)
        .await?;
    let enroll = tokens
        .create(
            DEFAULT_TENANT,
            Purpose::Enroll,
            first,
            ENROLL_USES,
            ENROLL_VALID,
        )
        .await?;
    drop(tokens);
    database.close().await;

    let address = reachable(listen);
    let ca_path = std::path::absolute(&ca_path).map_err(|source| Error::Write {
        path: ca_path.clone(),
        source,
    })?;
    let context = format!(
        "# Context for sumunctl. The token is a secret.\naddress = {}\nca = {}\ntoken = {}\n",
        quoted(&address.to_string()),
        quoted(&ca_path.to_string_lossy()),
        quoted(&admin.token),
    );
    write(&dir.join(ADMIN), context.as_bytes(), 0o600)?;
    write(
        &dir.join(ENROLL_TOKEN),
        format!("{}\n", enroll.token).as_bytes(),
        0o600,
    )?;
    if system {
        give(&config.ca_dir())?;
        give(config.state_dir().as_path())?;
    }
    // Last, and whole: its presence says that everything else is there.
    let next = dir.join(CONFIG_NEXT);
    write(&next, text.as_bytes(), 0o600)?;
    if system {
        give(&next)?;
    }
    fs::rename(&next, &config_path).map_err(|source| Error::Write {
        path: config_path.clone(),
        source,
    })?;
    sync_dir(dir)?;
    finish(dir)?;
    Ok(Made { address })
}

/// The mark of one that is at work, locked.
fn mark(path: &Path, dir: &Path) -> Result<fs::File, Error> {
    let write = |source| Error::Write {
        path: path.to_owned(),
        source,
    };
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    let file = options.open(path).map_err(write)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Error::Busy(dir.to_owned())),
        Err(fs::TryLockError::Error(source)) => Err(write(source)),
    }
}

/// Removes the mark of one that is at work.
///
/// # Errors
/// It cannot be removed.
pub fn finish(dir: &Path) -> Result<(), Error> {
    remove(&dir.join(UNFINISHED))?;
    sync_dir(dir)
}

/// Removes what an interrupted [`init`] may have written, and nothing else; nothing at all where a collector has run since.
fn remove_rest(config: &Config, dir: &Path) -> Result<(), Error> {
    if config.log_dir().symlink_metadata().is_ok() {
        return Err(Error::Exists(config.log_dir()));
    }
    let database = config.database();
    let beside = ["-wal", "-shm", "-journal"].map(|end| {
        let mut path = database.clone().into_os_string();
        path.push(end);
        PathBuf::from(path)
    });
    let ours = [
        dir.join(CONFIG_NEXT),
        dir.join(ADMIN),
        dir.join(ENROLL_TOKEN),
        config.ca_dir().join(CA_KEY),
        config.ca_dir().join(CA_CERTIFICATE),
        database,
    ];
    ours.iter().chain(&beside).try_for_each(|path| remove(path))
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::Write {
            path: path.to_path_buf(),
            source,
        }),
        _ => Ok(()),
    }
}

/// Whether [`init`] has done its work in `dir`: the configuration is written last.
#[must_use]
pub fn is_done(dir: &Path) -> bool {
    dir.join(CONFIG).is_file()
}

/// The first admin's context with the authority beside it, as for another machine.
///
/// # Errors
/// There is none, or it is not as it was written.
pub fn portable_context(dir: &Path) -> io::Result<String> {
    let text = fs::read_to_string(dir.join(ADMIN))?;
    let mut table: toml::Table = text.parse().map_err(io::Error::other)?;
    table.insert("ca".into(), CA_CERTIFICATE.into());
    Ok(table.to_string())
}

fn free(listen: SocketAddr) -> Result<SocketAddr, Error> {
    if listen.port() != 0 {
        return Ok(listen);
    }
    TcpListener::bind(listen)
        .and_then(|listener| listener.local_addr())
        .map_err(|source| Error::Listen {
            address: listen,
            source,
        })
}

/// Where clients on this machine reach a listener on all addresses.
pub(crate) fn reachable(listen: SocketAddr) -> SocketAddr {
    let mut address = listen;
    if listen.ip().is_unspecified() {
        address.set_ip(match listen {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

fn server_names(listen: SocketAddr, more: &[String]) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".into(), "::1".into()];
    if !listen.ip().is_unspecified() {
        names.push(listen.ip().to_string());
    }
    let host = nix::unistd::gethostname().ok();
    names.extend(host.and_then(|host| host.into_string().ok()));
    names.extend(more.iter().cloned());
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| is_server_name(name) && seen.insert(name.clone()));
    names
}

fn config_text(listen: SocketAddr, names: &[String], system: bool) -> String {
    let names: Vec<String> = names.iter().map(|name| quoted(name)).collect();
    let places = match system {
        true => format!(
            "# Sumun collector. The certificate authority is beside this file: ca/.\n\n\
             [paths]\nstate = {}\nrun = {}\n",
            quoted(SYSTEM_STATE),
            quoted(SYSTEM_RUN)
        ),
        false => {
            "# Sumun collector. Everything else is beside this file: ca/, state/.\n".to_owned()
        }
    };
    format!(
        r#"{places}
[server]
listen = {listen}
# Names of the server certificate: what agents and admins may call it.
names = [{names}]
# max_connections = 4096
# drain_seconds = 10

[agents]
# certificate_seconds = 86400
# For so long after its end a certificate can still be renewed.
# renewal_grace_seconds = 1209600

[ingest]
# The log is written to the lake when it has this size or age.
# segment_bytes = 33554432
# segment_seconds = 60
# Memory for batches that are not durable yet; then agents wait.
# buffer_bytes = 67108864

[facts]
# Names, images and labels of workloads: so long after they were told last, and so much, of each tenant and of all.
# days = 400
# bytes = 67108864
# all_bytes = 536870912

[metrics]
# Prometheus, loopback only; the address is written to metrics.addr.
listen = "127.0.0.1:0"
"#,
        listen = quoted(&listen.to_string()),
        names = names.join(", "),
    )
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// Makes a folder that holds secrets.
fn make_dir(path: &Path) -> Result<(), Error> {
    make_dir_of(path, 0o700)
}

fn make_dir_of(path: &Path, mode: u32) -> Result<(), Error> {
    // Parents are the user's own business.
    let made = match path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        Some(parent) => fs::create_dir_all(parent),
        None => Ok(()),
    }
    .and_then(|()| match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        made => made,
    });
    made.map_err(|source| Error::Write {
        path: path.to_path_buf(),
        source,
    })
}

/// Makes the service's user the owner of a file, or of a folder and what is in it. Without such a user,
/// as where no package was installed, everything stays root's.
fn give(path: &Path) -> Result<(), Error> {
    let failed = |source: io::Error| Error::Give {
        path: path.to_path_buf(),
        source,
    };
    let user = nix::unistd::User::from_name(SYSTEM_USER).map_err(|errno| failed(errno.into()))?;
    let Some(user) = user.filter(|_| nix::unistd::geteuid().is_root()) else {
        return Ok(());
    };
    let (uid, gid) = (Some(user.uid.as_raw()), Some(user.gid.as_raw()));
    std::os::unix::fs::lchown(path, uid, gid).map_err(failed)?;
    if path.is_dir() {
        for entry in fs::read_dir(path).map_err(failed)? {
            give(&entry.map_err(failed)?.path())?;
        }
    }
    Ok(())
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
    written.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => Error::Exists(path.to_path_buf()),
        _ => Error::Write {
            path: path.to_path_buf(),
            source,
        },
    })
}

fn sync_dir(dir: &Path) -> Result<(), Error> {
    fs::File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|source| Error::Write {
            path: dir.to_path_buf(),
            source,
        })
}
