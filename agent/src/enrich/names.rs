//! Names that addresses were resolved from, by the process that asked.
//!
//! A connection carries the name only if the same process got the address as an answer: what another process asked for says
//! nothing of this one. So what a resolver's daemon asks for its clients is not told here.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::rc::Rc;

use sumun_abi::event::process::Actor;
use sumun_proto::v1::{Event, Kind};
use sumun_proto::view::ip_from;

use crate::receive::network::Resolved;

/// Most addresses with names. Full: the oldest answer makes room, and is counted if it still held.
pub const NAMES_MAX: usize = 16 * 1024;
/// Programs keep what they have resolved for longer than it is said to hold, but not without end.
const HOLDS_AT_LEAST_NS: u64 = 60 * 1_000_000_000;
/// The longest that an answer is remembered.
const HOLDS_AT_MOST_NS: u64 = 3600 * 1_000_000_000;

/// Number and start of the process, and the address.
type Key = (u32, u64, IpAddr);

#[derive(Debug)]
struct Entry {
    name: Rc<str>,
    until_ns: u64,
    /// Its place in the order of the answers.
    number: u64,
}

/// The names.
#[derive(Debug, Default)]
pub struct Names {
    entries: HashMap<Key, Entry>,
    /// From the oldest to the newest; of an address that was answered again only the last counts.
    order: VecDeque<(Key, u64)>,
    next: u64,
    evicted: u64,
}

impl Names {
    /// A process got an answer.
    pub fn learn(&mut self, actor: &Actor, resolved: Resolved, now_ns: u64) {
        // Who asked is not known.
        if actor.pid == 0 {
            return;
        }
        let name: Rc<str> = resolved.name.into();
        for (address, seconds) in resolved.addresses {
            let holds = u64::from(seconds)
                .saturating_mul(1_000_000_000)
                .clamp(HOLDS_AT_LEAST_NS, HOLDS_AT_MOST_NS);
            let key = (actor.pid, actor.start_ns, address);
            let entry = Entry {
                name: Rc::clone(&name),
                until_ns: now_ns.saturating_add(holds),
                number: self.next,
            };
            self.entries.insert(key, entry);
            self.order.push_back((key, self.next));
            self.next += 1;
        }
        while self.entries.len() > NAMES_MAX || self.order.len() > 2 * NAMES_MAX {
            let Some((key, number)) = self.order.pop_front() else {
                break;
            };
            if let Some(entry) = self.entries.get(&key)
                && entry.number == number
            {
                self.evicted += u64::from(entry.until_ns > now_ns);
                self.entries.remove(&key);
            }
        }
    }

    /// Gives a connection the name of its other end.
    pub fn name(&self, event: &mut Event, actor: &Actor) {
        if self.entries.is_empty() || !matches!(event.kind(), Kind::Connect | Kind::ConnectUdp) {
            return;
        }
        let Some(network) = &mut event.network else {
            return;
        };
        let Some(address) = ip_from(&network.dst_ip) else {
            return;
        };
        let key = (actor.pid, actor.start_ns, address);
        network.dst_name = self
            .entries
            .get(&key)
            .filter(|entry| entry.until_ns > network.begun_boot_ns)
            .map(|entry| entry.name.to_string());
    }

    /// How many names made room while they held.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.evicted
    }
}

#[cfg(test)]
mod tests {
    use sumun_proto::v1::Network;

    use super::*;

    fn actor(pid: u32) -> Actor {
        Actor {
            pid,
            start_ns: 5,
            image: 0,
            tid: pid,
            uid: 0,
            gid: 0,
            euid: 0,
            egid: 0,
            cgroup_id: 0,
            cgroup_hierarchy: 0,
            files_shared: 0,
            cap_effective: 0,
        }
    }

    fn resolved(name: &str, address: [u8; 4], seconds: u32) -> Resolved {
        Resolved {
            name: name.into(),
            addresses: vec![(address.into(), seconds)],
        }
    }

    fn named(names: &Names, pid: u32, address: [u8; 4], now_ns: u64) -> Option<String> {
        let mut event = Event {
            kind: Kind::Connect.into(),
            network: Some(Network {
                dst_ip: address.to_vec(),
                begun_boot_ns: now_ns,
                ..Network::default()
            }),
            ..Event::default()
        };
        names.name(&mut event, &actor(pid));
        event.network.expect("a connection").dst_name
    }

    #[test]
    fn a_name_is_that_of_the_same_process_while_it_holds() {
        let mut names = Names::default();
        names.learn(&actor(1), resolved("a.example", [1; 4], 0), 10);
        assert_eq!(named(&names, 1, [1; 4], 20).as_deref(), Some("a.example"));
        assert_eq!(named(&names, 2, [1; 4], 20), None);
        assert_eq!(named(&names, 1, [2; 4], 20), None);
        names.learn(&actor(1), resolved("b.example", [1; 4], u32::MAX), 30);
        assert_eq!(named(&names, 1, [1; 4], 40).as_deref(), Some("b.example"));
        let last = 30 + HOLDS_AT_MOST_NS;
        assert!(named(&names, 1, [1; 4], last - 1).is_some());
        assert_eq!(named(&names, 1, [1; 4], last), None);
    }

    #[test]
    fn memory_is_bounded_and_what_makes_room_is_counted() {
        let mut names = Names::default();
        for turn in 0..3 {
            for number in 0..u32::try_from(NAMES_MAX).expect("a number") {
                names.learn(&actor(1), resolved("x", number.to_be_bytes(), 60), turn);
            }
        }
        assert_eq!((names.entries.len(), names.evicted()), (NAMES_MAX, 0));
        assert!(names.order.len() <= 2 * NAMES_MAX);
        names.learn(&actor(1), resolved("x", [200; 4], 60), 3);
        assert_eq!((names.entries.len(), names.evicted()), (NAMES_MAX, 1));
    }
}
