//! How often somebody may be refused: proofs and tokens cannot be tried out at will.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Refusals of one address within [`WINDOW`]; more are not even looked at. A fleet behind one address is not
/// held up: who is let in does not count.
const REFUSALS_MAX: u32 = 60;
/// How long a refusal counts.
const WINDOW: Duration = Duration::from_secs(60);
/// Addresses that are remembered at most. Beyond, those whose time is over are forgotten, and if there are none, nobody new is
/// counted: then the limit is of less use, but nobody is kept out.
const ADDRESSES_MAX: usize = 4096;

/// Refusals of late, by address.
#[derive(Debug, Default)]
pub struct Limit {
    refused: Mutex<HashMap<IpAddr, (Instant, u32)>>,
}

impl Limit {
    /// Whether this address may try now.
    #[must_use]
    pub fn allows(&self, address: IpAddr) -> bool {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused
            .get(&network(address))
            .is_none_or(|(since, count)| since.elapsed() >= WINDOW || *count < REFUSALS_MAX)
    }

    /// Counts a refusal.
    pub fn refused(&self, address: IpAddr) {
        let address = network(address);
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.len() >= ADDRESSES_MAX && !refused.contains_key(&address) {
            refused.retain(|_, (since, _)| since.elapsed() < WINDOW);
            if refused.len() >= ADDRESSES_MAX {
                return;
            }
        }
        let (since, count) = refused.entry(address).or_insert((Instant::now(), 0));
        if since.elapsed() >= WINDOW {
            (*since, *count) = (Instant::now(), 0);
        }
        *count = count.saturating_add(1);
    }
}

/// Whoever has an address of IPv6 has all of its network.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            std::net::Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_refused_too_often_has_to_wait_and_nobody_else() {
        let limit = Limit::default();
        let [bad, neighbour, other] = ["2001:db8::1", "2001:db8::2", "192.0.2.1"]
            .map(|text| text.parse().expect("an address"));
        for _ in 0..REFUSALS_MAX {
            assert!(limit.allows(bad));
            limit.refused(bad);
        }
        assert!(!limit.allows(bad));
        assert!(!limit.allows(neighbour));
        assert!(limit.allows(other));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let limit = Limit::default();
        for number in 0..2 * ADDRESSES_MAX as u32 {
            limit.refused(IpAddr::V4(number.into()));
        }
        let remembered = limit.refused.lock().expect("a lock").len();
        assert_eq!(remembered, ADDRESSES_MAX);
    }
}
