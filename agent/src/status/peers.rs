//! Where the collector is, for whoever has to keep it reachable.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use super::locked;

/// Addresses of the collector.
#[derive(Clone, Debug, Default)]
pub struct Peers(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// Of the last connection whose other end proved that it is the collector.
    connected: Option<SocketAddr>,
    /// What its name leads to, while there is no such connection.
    candidates: Vec<SocketAddr>,
}

impl Peers {
    /// These are being tried.
    pub fn tried(&self, addresses: &[SocketAddr]) {
        locked(&self.0).candidates = addresses.to_vec();
    }

    /// This one is it.
    pub fn reached(&self, address: SocketAddr) {
        let known = &mut locked(&self.0);
        known.connected = Some(address);
        known.candidates.clear();
    }

    /// True if the other end of the last connection proved that it is the collector.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        locked(&self.0).connected.is_some()
    }

    /// Where it was last, then where it may be.
    #[must_use]
    pub fn all(&self) -> Vec<SocketAddr> {
        let known = locked(&self.0);
        let mut all: Vec<_> = known.connected.into_iter().collect();
        let more = known.candidates.iter().copied();
        all.extend(more.filter(|address| known.connected != Some(*address)));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_reached_stays_while_others_are_tried() {
        let peers = Peers::default();
        let [one, two] = [1, 2].map(|port| SocketAddr::from(([10, 0, 0, 1], port)));
        assert!(peers.all().is_empty() && !peers.is_connected());
        peers.tried(&[one, two]);
        assert_eq!(peers.all(), [one, two]);
        assert!(!peers.is_connected());
        peers.reached(two);
        assert_eq!(peers.all(), [two]);
        peers.tried(&[one, two]);
        assert_eq!(peers.all(), [two, one]);
        assert!(peers.is_connected());
    }
}
