//! A host that is cut off from the network, but for what is listed.

use crate::assert_size;

/// Most entries of a list.
pub const ALLOWED_MAX: usize = 64;

/// Plans in the array `ISOLATION`: one that is in force, and one that can be written.
pub const PLANS: u32 = 2;

/// Entry of the array `ISOLATING`: 0 if nothing is cut off, else one more than the plan that is in force.
pub const STATE: u32 = 0;
/// Entry of `ISOLATING`: the agent's own test, see [`canary`]; 0 if there is none.
pub const CANARY: u32 = 1;
/// Entries of `ISOLATING`.
pub const STATES: u32 = 2;

/// What was kept back, in the per-CPU array `DROPPED`.
pub mod dropped {
    /// Packets that were sent.
    pub const OUT: u32 = 0;
    /// Packets that came in.
    pub const IN: u32 = 1;
    /// Number of these.
    pub const COUNT: u32 = 2;
}

/// [`Allowed::flags`]: whatever the ports, and also packets that have none.
pub const ANY_PORT: u16 = 1;

/// The packet that a test keeps back: one of UDP between these ports, on its way out or in.
#[must_use]
pub const fn canary(incoming: bool, source: u16, destination: u16) -> u64 {
    let way = if incoming { 2 } else { 1 };
    way << 32 | (source as u64) << 16 | destination as u64
}

/// Packets that pass, in both directions. Ports in host order, both ends of a range included.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Address of the other end, as it lies in the packet, the host bits zero; IPv4 in the first four bytes.
    pub address: [u64; 2],
    /// Which of its bits count.
    pub mask: [u64; 2],
    /// `event::network::FAMILY_*`.
    pub family: u16,
    /// IP protocol; 0 = any.
    pub protocol: u16,
    /// Lowest port of the other end.
    pub port_first: u16,
    /// Highest port of the other end.
    pub port_last: u16,
    /// Lowest port of this end.
    pub local_first: u16,
    /// Highest port of this end.
    pub local_last: u16,
    /// [`ANY_PORT`].
    pub flags: u16,
    /// Zero.
    pub pad: u16,
}
assert_size!(Allowed, 48);

/// One plan (array `ISOLATION`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isolation {
    /// Boot time in ns at which it is over by itself; 0 = it has no end. Whatever it says, it is over with the lease of the
    /// rules that kill and deny.
    pub until_ns: u64,
    /// Entries in use, from the first.
    pub count: u32,
    /// Zero.
    pub pad: u32,
    /// What passes.
    pub list: [Allowed; ALLOWED_MAX],
}
assert_size!(Isolation, 16 + 48 * ALLOWED_MAX);

impl Default for Isolation {
    fn default() -> Self {
        Isolation {
            until_ns: 0,
            count: 0,
            pad: 0,
            list: [Allowed::default(); ALLOWED_MAX],
        }
    }
}
