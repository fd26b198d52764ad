//! What can go wrong between the agent and the kernel.

use std::{io, path::PathBuf};

use super::btf::Malformed;

/// An error of the kernel boundary.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel shows no type information.
    #[error(
        "cannot read {path}: the kernel needs CONFIG_DEBUG_INFO_BTF; choose a kernel that has it"
    )]
    NoBtf {
        /// The file that is missing.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The type information cannot be understood.
    #[error("cannot understand the kernel's BTF")]
    Btf(#[from] Malformed),
    /// aya's own reading of the type information failed.
    #[error("cannot load the kernel's BTF")]
    BtfLoad(#[source] aya::BtfError),
    /// Rights are missing.
    #[error("missing {}: run the agent as root, or give it these", .0.join(", "))]
    NotPermitted(Vec<String>),
    /// Another agent watches this kernel.
    #[error("another agent runs on this kernel{}: stop it first", .pid.map_or_else(String::new, |pid| format!(" (pid {pid})")))]
    Running {
        /// Its pid, if it is visible from here.
        pid: Option<u32>,
    },
    /// What was removed is still in use.
    #[error(
        "the agent's pins are removed, but its programs are still in the kernel after {} s: another process holds them; end it (`bpftool prog show` tells which) and run this again",
        .0.as_secs()
    )]
    Held(std::time::Duration),
    /// A file operation failed.
    #[error("cannot {op} {path}")]
    File {
        /// Verb.
        op: &'static str,
        /// Object.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A system call on an anonymous object failed.
    #[error("cannot {op}")]
    Call {
        /// What was tried.
        op: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The object could not be loaded.
    #[error("cannot load the kernel side")]
    Load(#[source] Box<aya::EbpfError>),
    /// A map operation failed.
    #[error("cannot {op} map {map}")]
    Map {
        /// Verb.
        op: &'static str,
        /// Which.
        map: &'static str,
        /// Why.
        #[source]
        source: Box<aya::maps::MapError>,
    },
    /// The object lacks a map or a program that this agent expects: a build that does not fit.
    #[error("the kernel side has no {0}: build both sides from one source")]
    Absent(&'static str),
    /// A program without which nothing works was refused.
    #[error("cannot attach {hook}: {reason}")]
    Hook {
        /// Its name.
        hook: &'static str,
        /// Why.
        reason: String,
    },
    /// A program stayed under way for longer than any can.
    #[error("programs of the previous filter are still under way after {0} ms: try again")]
    Busy(u64),
}

impl Error {
    pub(super) fn file(
        op: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Error::File { op, path, source }
    }

    pub(super) fn call(op: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Error::Call { op, source }
    }

    pub(super) fn map(
        op: &'static str,
        map: &'static str,
    ) -> impl FnOnce(aya::maps::MapError) -> Self {
        move |source| Error::Map {
            op,
            map,
            source: Box::new(source),
        }
    }
}
