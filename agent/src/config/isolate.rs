//! `[enforce.isolate]`: what goes on while the host is cut off, and whose sockets are.

use std::net::IpAddr;
use std::path::{Component, PathBuf};

use serde::Deserialize;
use sumun_policy::problem::Problem;
use toml::Spanned;

use crate::enforce::isolate::Settings;
use crate::enforce::isolate::allow::{Allow, CONFIGURED_MAX, Protocol};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    cgroup: Option<Spanned<PathBuf>>,
    mounts: Option<bool>,
    #[serde(default)]
    allow: Vec<RawAllow>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAllow {
    net: Spanned<String>,
    protocol: Option<Spanned<String>>,
    port: Option<u16>,
    local_port: Option<u16>,
}

pub(super) fn check(raw: Raw, at: impl Fn(usize, String) -> Problem) -> Result<Settings, Problem> {
    let usual = Settings::default();
    if let Some(more) = raw.allow.get(CONFIGURED_MAX) {
        let message = format!("[enforce.isolate] allow has more than {CONFIGURED_MAX} entries");
        return Err(at(more.net.span().start, message));
    }
    let cgroup = match raw.cgroup {
        None => usual.cgroup,
        Some(cgroup) => {
            let mut parts = cgroup.get_ref().components();
            let absolute = parts.next() == Some(Component::RootDir);
            if !absolute || !parts.all(|part| matches!(part, Component::Normal(_))) {
                let message = format!(
                    "cgroup {:?} is no path from the root of the unified hierarchy such as \"/workloads.slice\"",
                    cgroup.get_ref()
                );
                return Err(at(cgroup.span().start, message));
            }
            cgroup.into_inner()
        }
    };
    let allow = raw.allow.into_iter().map(|raw| {
        let (net, bits) = network(raw.net.get_ref()).ok_or_else(|| {
            let message = format!(
                "net {:?} is no address or network such as \"10.0.0.5\" or \"10.0.0.0/8\"",
                raw.net.get_ref()
            );
            at(raw.net.span().start, message)
        })?;
        let protocol = match raw.protocol {
            None => None,
            Some(protocol) => match protocol.get_ref().as_str() {
                "tcp" => Some(Protocol::Tcp),
                "udp" => Some(Protocol::Udp),
                other => {
                    let message = format!("protocol {other:?} is neither tcp nor udp");
                    return Err(at(protocol.span().start, message));
                }
            },
        };
        Ok(Allow {
            why: "configured",
            net,
            bits,
            protocol,
            port: raw.port,
            local_port: raw.local_port,
        })
    });
    Ok(Settings {
        cgroup,
        allow: allow.collect::<Result<_, _>>()?,
        mounts: raw.mounts.unwrap_or(usual.mounts),
    })
}

/// An address, or a network without host bits.
fn network(text: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = match text.split_once('/') {
        None => (text, None),
        Some((address, bits)) => (address, Some(bits.parse::<u8>().ok()?)),
    };
    let address: IpAddr = address.parse().ok()?;
    let (most, value) = match address {
        IpAddr::V4(address) => (32, u128::from(u32::from(address)) << 96),
        IpAddr::V6(address) => (128, u128::from(address)),
    };
    let bits = bits.unwrap_or(most);
    let host = u128::MAX.checked_shr(bits.into()).unwrap_or(0);
    (bits <= most && value & host == 0).then_some((address, bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_no_host_bits() {
        for (text, wanted) in [
            ("10.0.0.0/8", Some(8)),
            ("10.0.0.5", Some(32)),
            ("0.0.0.0/0", Some(0)),
            ("fd00::/8", Some(8)),
            ("fd00::5", Some(128)),
            ("::/0", Some(0)),
            ("10.0.0.1/8", None),
            ("10.0.0.0/33", None),
            ("10.0.0.0/-1", None),
            ("host/8", None),
            ("", None),
        ] {
            assert_eq!(network(text).map(|(_, bits)| bits), wanted, "{text}");
        }
    }
}
