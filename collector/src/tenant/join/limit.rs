//! How often somebody may try to enrol, and how many are judged at a time: proofs and tokens cannot be tried out at will, and
//! nobody keeps the collector busy for nothing.
//!
//! A try counts before anything is done for it. It is given back to its address once it has proved who it is: a
//! fleet behind one address is not held up. So that this is no way around, whoever is proved counts by itself
//! then, and beyond that again by its address.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};

/// Tries of one address within [`WINDOW`] that proved nothing; more are not even looked at.
const TRIES_MAX: u32 = 60;
/// Tries of one host within [`WINDOW`] that its address is given back.
const PROVED_MAX: u32 = 10;
/// How long a try counts.
const WINDOW: Duration = Duration::from_secs(60);
/// Addresses, and hosts, that are remembered at most. Beyond, those whose time is over are forgotten. If there are none, an address
/// that is new is not counted (the limit is of less use then, but nobody is kept out), and a host that is new gets nothing back.
const REMEMBERED_MAX: usize = 4096;
/// Signatures that are verified and certificates that are issued at a time. Others wait for their turn …
const TURNS: usize = 4;
/// … so long.
const PATIENCE: Duration = Duration::from_secs(5);

/// Tries of late.
#[derive(Debug)]
pub struct Limit {
    tries: Mutex<Counts<IpAddr>>,
    proved: Mutex<Counts<String>>,
    turns: Semaphore,
    patience: Duration,
}

impl Default for Limit {
    fn default() -> Self {
        Self {
            tries: Mutex::default(),
            proved: Mutex::default(),
            turns: Semaphore::new(TURNS),
            patience: PATIENCE,
        }
    }
}

impl Limit {
    /// Counts a try of this address; false if it has to wait.
    #[must_use]
    pub fn begin(&self, address: IpAddr) -> bool {
        let count = lock(&self.tries).add(network(address));
        count.is_none_or(|count| count <= TRIES_MAX)
    }

    /// A turn at what takes time; `None` if too many others wait. The try was for nothing then, and is given back.
    pub async fn turn(&self, address: IpAddr) -> Option<SemaphorePermit<'_>> {
        match tokio::time::timeout(self.patience, self.turns.acquire()).await {
            Ok(Ok(turn)) => Some(turn),
            _ => {
                lock(&self.tries).give_back(&network(address));
                None
            }
        }
    }

    /// The try has proved who it is: this host, or somebody with a token, whose uses are counted.
    pub fn proved(&self, address: IpAddr, host: Option<&str>) {
        let given_back = match host {
            None => true,
            Some(host) => {
                let count = lock(&self.proved).add(host.to_owned());
                count.is_some_and(|count| count <= PROVED_MAX)
            }
        };
        if given_back {
            lock(&self.tries).give_back(&network(address));
        }
    }
}

/// How often within [`WINDOW`], since when.
#[derive(Debug)]
struct Counts<K>(HashMap<K, (Instant, u32)>);

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Counts<K> {
    /// Once more; `None` if there is no room to count it.
    fn add(&mut self, key: K) -> Option<u32> {
        if self.0.len() >= REMEMBERED_MAX && !self.0.contains_key(&key) {
            self.0.retain(|_, (since, _)| since.elapsed() < WINDOW);
            if self.0.len() >= REMEMBERED_MAX {
                return None;
            }
        }
        let (since, count) = self.0.entry(key).or_insert((Instant::now(), 0));
        if since.elapsed() >= WINDOW {
            (*since, *count) = (Instant::now(), 0);
        }
        *count = count.saturating_add(1);
        Some(*count)
    }

    fn give_back(&mut self, key: &K) {
        if let Some((_, count)) = self.0.get_mut(key) {
            *count = count.saturating_sub(1);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn who_tries_too_often_has_to_wait_and_nobody_else() {
        let limit = Limit::default();
        let [bad, neighbour, other] = ["2001:db8::1", "2001:db8::2", "192.0.2.1"]
            .map(|text| text.parse().expect("an address"));
        for _ in 0..TRIES_MAX {
            assert!(limit.begin(bad));
        }
        assert!(!limit.begin(bad));
        assert!(!limit.begin(neighbour));
        assert!(limit.begin(other));
    }

    #[test]
    fn a_fleet_behind_one_address_is_not_held_up_and_one_host_does_not_go_on_for_ever() {
        let limit = Limit::default();
        let [nat, other] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().expect("an address"));
        for node in 0..10 * TRIES_MAX {
            assert!(limit.begin(nat), "node {node}");
            limit.proved(nat, Some(&format!("here/node/{node}")));
        }
        for _ in 0..10 * TRIES_MAX {
            assert!(limit.begin(nat));
            limit.proved(nat, None);
        }
        let mut tries = 0;
        while limit.begin(other) {
            limit.proved(other, Some("here/node/again-and-again"));
            tries += 1;
        }
        assert_eq!(tries, TRIES_MAX + PROVED_MAX);
    }

    #[tokio::test]
    async fn who_waits_for_a_turn_in_vain_has_lost_nothing() {
        let limit = Limit {
            patience: Duration::from_millis(1),
            ..Limit::default()
        };
        let address = "192.0.2.1".parse().expect("an address");
        assert!(limit.begin(address));
        let mut taken = Vec::new();
        for _ in 0..TURNS {
            taken.push(limit.turn(address).await.expect("a turn"));
        }
        for _ in 0..2 * TRIES_MAX {
            assert!(limit.begin(address));
            assert!(limit.turn(address).await.is_none());
        }
        drop(taken);
        assert!(limit.turn(address).await.is_some());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let limit = Limit::default();
        for number in 0..2 * REMEMBERED_MAX as u32 {
            let address = IpAddr::V4(number.into());
            assert!(limit.begin(address));
            limit.proved(address, Some(&number.to_string()));
        }
        assert_eq!(lock(&limit.tries).0.len(), REMEMBERED_MAX);
        assert_eq!(lock(&limit.proved).0.len(), REMEMBERED_MAX);
    }
}
