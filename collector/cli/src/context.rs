//! `admin.toml`: which collector, and as whom.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize;

use crate::failure::Failure;

/// The file as it is written by `sumun-collector init`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    address: String,
    ca: PathBuf,
    token: String,
}

/// A checked context.
pub(crate) struct Context {
    /// `HOST:PORT`.
    pub(crate) address: String,
    /// Host of the address, without brackets: the name its certificate must have.
    pub(crate) host: String,
    /// PEM of the CA that signed the collector's certificate.
    pub(crate) ca_pem: String,
    /// The administrator's token.
    pub(crate) token: String,
}

impl Context {
    /// Reads and checks a context file.
    pub(crate) fn load(path: &Path) -> Result<Self, Failure> {
        Self::read(path).map_err(Failure::Failed)
    }

    fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| {
            format!(
                "cannot read the context {}; give the admin.toml that `sumun-collector init` \
                 wrote with --config",
                path.display()
            )
        })?;
        let file: File =
            toml::from_str(&text).with_context(|| format!("{} is wrong", path.display()))?;
        let host = host_of(&file.address).with_context(|| {
            format!(
                "{}: address {:?} is not HOST:PORT",
                path.display(),
                file.address
            )
        })?;
        let ca = path.parent().unwrap_or(Path::new("")).join(&file.ca);
        let ca_pem = fs::read_to_string(&ca)
            .with_context(|| format!("cannot read the CA {}", ca.display()))?;
        Ok(Self {
            host,
            address: file.address,
            ca_pem,
            token: file.token.trim().to_owned(),
        })
    }
}

/// The host of `HOST:PORT` or `[IPV6]:PORT`.
fn host_of(address: &str) -> Option<String> {
    let (host, port) = address.rsplit_once(':')?;
    port.parse::<u16>().ok().filter(|port| *port != 0)?;
    let host = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    (!host.is_empty()).then(|| host.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_addresses() {
        assert_eq!(host_of("127.0.0.1:7000").as_deref(), Some("127.0.0.1"));
        assert_eq!(host_of("[::1]:7000").as_deref(), Some("::1"));
        assert_eq!(
            host_of("collector.example:7000").as_deref(),
            Some("collector.example")
        );
        for wrong in ["127.0.0.1", "::1:7000", ":7000", "a:0", "a:x", "[::1:7000"] {
            assert_eq!(host_of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_ca_is_relative_to_the_file_and_unknown_keys_are_refused() {
        let folder = std::env::temp_dir().join(format!("sumunctl-context-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder for the test");
        fs::write(folder.join("ca.pem"), "PEM").expect("the CA");
        let path = folder.join("admin.toml");
        fs::write(
            &path,
            "address = \"127.0.0.1:1\"\nca = \"ca.pem\"\ntoken = \"t\"\n",
        )
        .expect("the context");
        let context = Context::read(&path).expect("a good context");
        assert_eq!(context.ca_pem, "PEM");
        assert_eq!(context.host, "127.0.0.1");
        fs::write(&path, "adress = \"127.0.0.1:1\"\n").expect("the context");
        let error = format!("{:#}", Context::read(&path).err().expect("an unknown key"));
        assert!(
            error.contains("line 1") && error.contains("adress"),
            "{error}"
        );
        fs::remove_dir_all(&folder).expect("clean up");
    }
}
