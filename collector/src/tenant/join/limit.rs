//! How often somebody may try to enrol, and how many are judged at a time: proofs and tokens cannot be tried out at will, and
//! nobody keeps the collector busy for nothing.
//!
//! A try that proves nothing counts against its address, also one that is given up half way; tries under way do not, so a fleet behind
//! one address is not held up, however many of it come at once: they wait for turns. So that this is no way around, whoever is
//! proved counts by itself, and beyond that again by its address.

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
    /// A try of this address; `None` if it has to wait.
    #[must_use]
    pub fn begin(&self, address: IpAddr) -> Option<Try<'_>> {
        let address = network(address);
        // Lazily: one that is made counts.
        self.may(&address).then(|| Try {
            limit: self,
            address,
            counts: true,
        })
    }

    fn may(&self, address: &IpAddr) -> bool {
        lock(&self.tries).of(address) < TRIES_MAX
    }
}

/// A try under way. It has failed if it is dropped before it has proved anything.
#[derive(Debug)]
pub struct Try<'a> {
    limit: &'a Limit,
    address: IpAddr,
    counts: bool,
}

impl<'a> Try<'a> {
    /// A turn at what takes time; `None` if too many others wait, or too many of the address have failed meanwhile. The try was for
    /// nothing then, and does not count.
    pub async fn turn(&mut self) -> Option<SemaphorePermit<'a>> {
        let turn = tokio::time::timeout(self.limit.patience, self.limit.turns.acquire()).await;
        let turn = turn.ok().and_then(Result::ok);
        let turn = turn.filter(|_| self.limit.may(&self.address));
        self.counts = turn.is_some();
        turn
    }

    /// It has proved who it is: this host, or somebody with a token, whose uses are counted.
    pub fn proved(mut self, host: Option<&str>) {
        self.counts = host.is_some_and(|host| {
            let count = lock(&self.limit.proved).add(host.to_owned());
            count.is_none_or(|count| count > PROVED_MAX)
        });
    }
}

impl Drop for Try<'_> {
    fn drop(&mut self) {
        if self.counts {
            lock(&self.limit.tries).add(self.address);
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

    fn of(&self, key: &K) -> u32 {
        match self.0.get(key) {
            Some((since, count)) if since.elapsed() < WINDOW => *count,
            _ => 0,
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
            drop(limit.begin(bad).expect("a try"));
        }
        // What is refused makes it no longer.
        for _ in 0..2 * TRIES_MAX {
            assert!(limit.begin(bad).is_none() && limit.begin(neighbour).is_none());
        }
        assert!(limit.begin(other).is_some());
        assert_eq!(lock(&limit.tries).of(&network(bad)), TRIES_MAX);
    }

    #[test]
    fn a_fleet_behind_one_address_is_not_held_up_and_one_host_does_not_go_on_for_ever() {
        let limit = Limit::default();
        let [nat, other] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().expect("an address"));
        // All at once, and then one after the other.
        let fleet: Vec<_> = (0..10 * TRIES_MAX)
            .map(|node| limit.begin(nat).unwrap_or_else(|| panic!("node {node}")))
            .collect();
        for (node, tried) in fleet.into_iter().enumerate() {
            tried.proved(Some(&format!("here/node/{node}")));
        }
        for _ in 0..10 * TRIES_MAX {
            limit.begin(nat).expect("a try").proved(None);
        }
        let mut tries = 0;
        while let Some(tried) = limit.begin(other) {
            tried.proved(Some("here/node/again-and-again"));
            tries += 1;
        }
        assert_eq!(tries, TRIES_MAX + PROVED_MAX);
    }

    #[tokio::test]
    async fn who_waits_for_a_turn_in_vain_has_lost_nothing_and_many_at_once_try_no_more_than_others()
     {
        let limit = Limit {
            patience: Duration::from_millis(1),
            ..Limit::default()
        };
        let address = "192.0.2.1".parse().expect("an address");
        let begin = || limit.begin(address).expect("a try");
        let mut first: Vec<_> = (0..TURNS).map(|_| begin()).collect();
        let mut taken = Vec::new();
        for tried in &mut first {
            taken.push(tried.turn().await.expect("a turn"));
        }
        for _ in 0..2 * TRIES_MAX {
            assert!(begin().turn().await.is_none());
        }
        drop((taken, first));
        // All of them are under way before the first has failed.
        let mut many: Vec<_> = (0..2 * TRIES_MAX).map(|_| begin()).collect();
        let mut turns = TURNS as u32;
        for mut tried in many.drain(..) {
            turns += u32::from(tried.turn().await.is_some());
        }
        assert_eq!(turns, TRIES_MAX);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let limit = Limit::default();
        for number in 0..2 * REMEMBERED_MAX as u32 {
            let address = IpAddr::V4(number.into());
            let begin = || limit.begin(address).expect("a try");
            begin().proved(Some(&number.to_string()));
            drop(begin());
        }
        assert_eq!(lock(&limit.tries).0.len(), REMEMBERED_MAX);
        assert_eq!(lock(&limit.proved).0.len(), REMEMBERED_MAX);
    }
}
