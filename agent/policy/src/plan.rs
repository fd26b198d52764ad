//! What the kernel has to send: the plan its pre-filter is loaded with.
//!
//! The plan lets through every event that some rule could match or could not
//! decide; it may let through more. An event passes a kind's plan if
//! one clause holds; a clause holds if each of its conditions does; a condition
//! whose field the kernel could not judge (lost, truncated, a map full) holds.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use sumun_proto::v1::Kind;

/// Most clauses of one kind; a plan that would need more is widened.
pub const CLAUSES_MAX: usize = 64;

/// The plan of all kinds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Every kind of the catalogue once, in the order of their numbers.
    pub kinds: Vec<(Kind, KindPlan)>,
}

/// The plan of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum KindPlan {
    /// No rule asks for it: nothing is sent.
    #[default]
    None,
    /// Everything is sent.
    All,
    /// Sent if one of these holds. One to [`CLAUSES_MAX`], none of them empty.
    Clauses(Vec<Clause>),
}

/// Conditions that must all hold; a `None` asks for nothing. All lists are sorted and not empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Clause {
    /// Paths, as bytes, that start with one of these; with `path_exact`
    /// one condition: one of either holds.
    pub path_prefixes: Option<Vec<Vec<u8>>>,
    /// Paths, as bytes, that equal one of these.
    pub path_exact: Option<Vec<Vec<u8>>>,
    /// Last component of the executable's path; with `exe_paths` one condition.
    pub exe_names: Option<Vec<Vec<u8>>>,
    /// Path of the executable.
    pub exe_paths: Option<Vec<Vec<u8>>>,
    /// One of these bits (`sumun_abi::event::file`: `ACCESS_*`, `OPEN_*`) is set.
    pub access_any: Option<u32>,
    /// Source ports, in disjoint ranges.
    pub src_ports: Option<Vec<Ports>>,
    /// Destination ports, in disjoint ranges.
    pub dst_ports: Option<Vec<Ports>>,
    /// Source networks: address with zero host bits, prefix length.
    pub src_nets: Option<Vec<(IpAddr, u8)>>,
    /// Destination networks.
    pub dst_nets: Option<Vec<(IpAddr, u8)>>,
}

/// Ports from the first to the last, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ports {
    /// First port.
    pub first: u16,
    /// Last port, not below the first.
    pub last: u16,
}

impl Ports {
    /// The same as a range.
    #[must_use]
    pub fn range(self) -> RangeInclusive<u16> {
        self.first..=self.last
    }
}

impl Plan {
    /// The plan of a kind.
    #[must_use]
    pub fn kind(&self, kind: Kind) -> &KindPlan {
        self.kinds
            .iter()
            .find(|(known, _)| *known == kind)
            .map_or(&KindPlan::None, |(_, plan)| plan)
    }
}

impl Clause {
    /// True when nothing is asked for.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        *self == Self::default()
    }
}
