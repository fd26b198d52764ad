//! The entries of the map `MATCH` for one filter.
//!
//! The kernel's trie answers with the longest key that begins the looked-up
//! one, and with nothing else; so every value stands for all shorter keys too.

use std::{collections::BTreeMap, net::IpAddr};

use sumun_abi::policy::{MATCH_TEXT, Match, tag};
use sumun_policy::plan::Ports;

/// Bytes of a file name that a key holds beside the directory's number.
const NAME_TEXT: usize = MATCH_TEXT - 4;

/// A key: its bytes (zero beyond the bits) and how many bits count.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) data: Vec<u8>,
    pub(super) bits: u32,
}

impl Key {
    fn text(tag: u8, text: &[u8]) -> Self {
        let mut data = vec![tag];
        data.extend_from_slice(text);
        let bits = data.len() as u32 * 8;
        Key { data, bits }
    }

    fn number(tag: u8, number: &[u8], bits: u32) -> Self {
        let mut data = vec![tag];
        data.extend_from_slice(number);
        for (index, byte) in data.iter_mut().enumerate().skip(1) {
            let kept = bits.saturating_sub((index as u32 - 1) * 8).min(8);
            *byte &= !(0xff_u16 >> kept) as u8;
        }
        Key {
            data,
            bits: bits + 8,
        }
    }

    fn begins(&self, other: &Key) -> bool {
        if self.bits > other.bits {
            return false;
        }
        let whole = (self.bits / 8) as usize;
        let mask = !(0xff_u16 >> (self.bits % 8)) as u8;
        self.data[..whole] == other.data[..whole]
            && (mask == 0 || (self.data[whole] ^ other.data[whole]) & mask == 0)
    }
}

/// Which of a value's sets a clause goes into.
#[derive(Clone, Copy)]
pub(super) enum Space {
    File,
    Net,
}

/// Entries under construction.
#[derive(Clone, Debug, Default)]
pub(super) struct Trie {
    entries: BTreeMap<Key, Match>,
    dirs: BTreeMap<Vec<u8>, u32>,
}

impl Trie {
    fn entry(&mut self, key: Key) -> &mut Match {
        let len = key.data.len() as u32;
        let found = self.entries.entry(key).or_default();
        found.len = len;
        found
    }

    /// `clause` is satisfied by paths that begin with `prefix`.
    pub(super) fn path_prefix(&mut self, prefix: &[u8], clause: u64) {
        let Some(slash) = prefix.iter().rposition(|byte| *byte == b'/') else {
            return;
        };
        // Everything below directories that begin so; what is longer than a key is widened.
        let below = &prefix[..prefix.len().min(MATCH_TEXT)];
        self.entry(Key::text(tag::DIR, below)).file |= clause;
        let (dir, name) = prefix.split_at(slash + 1);
        if dir.len() < MATCH_TEXT && !name.is_empty() {
            let key = self.name(dir, name);
            self.entry(key).file |= clause;
        }
    }

    /// `clause` is satisfied by this very path.
    pub(super) fn path_exact(&mut self, path: &[u8], clause: u64) {
        let Some(slash) = path.iter().rposition(|byte| *byte == b'/') else {
            return;
        };
        self.entry(Key::text(tag::ROOT, &[])).file |= clause;
        let (dir, name) = path.split_at(slash + 1);
        if dir.len() >= MATCH_TEXT {
            self.entry(Key::text(tag::DIR, &dir[..MATCH_TEXT])).file |= clause;
            return;
        }
        let key = self.name(dir, name);
        let entry = self.entry(key);
        if name.len() > NAME_TEXT {
            entry.file |= clause;
        } else {
            entry.file_exact |= clause;
        }
    }

    /// The key of a name in a directory, which gets a number for it.
    fn name(&mut self, dir: &[u8], name: &[u8]) -> Key {
        let next = self.dirs.len() as u32 + 1;
        let number = *self.dirs.entry(dir.to_vec()).or_insert(next);
        self.entry(Key::text(tag::DIR, dir)).dir = number;
        let mut text = number.to_ne_bytes().to_vec();
        text.extend_from_slice(&name[..name.len().min(NAME_TEXT)]);
        Key::text(tag::NAME, &text)
    }

    /// `clause` is satisfied by an executable of this path or name.
    pub(super) fn exe(&mut self, tag: u8, text: &[u8], clause: u64, space: Space) {
        let cut = text.len() > MATCH_TEXT;
        let entry = self.entry(Key::text(tag, &text[..text.len().min(MATCH_TEXT)]));
        *match (space, cut) {
            (Space::File, true) => &mut entry.file,
            (Space::File, false) => &mut entry.file_exact,
            (Space::Net, true) => &mut entry.net,
            (Space::Net, false) => &mut entry.net_exact,
        } |= clause;
    }

    /// `atom` is satisfied by a file of this path or name, or if `prefix` by one that
    /// begins so. The text is shorter than a key.
    pub(super) fn verdict(&mut self, tag: u8, text: &[u8], prefix: bool, atom: u64, space: Space) {
        let entry = self.entry(Key::text(tag, text));
        *match (space, prefix) {
            (Space::File, true) => &mut entry.file,
            (Space::File, false) => &mut entry.file_exact,
            (Space::Net, true) => &mut entry.net,
            (Space::Net, false) => &mut entry.net_exact,
        } |= atom;
    }

    /// `clause` is satisfied by these ports.
    pub(super) fn ports(&mut self, tag: u8, ports: Ports, clause: u64) {
        // The fewest aligned blocks that make up the range.
        let mut first = u32::from(ports.first);
        let last = u32::from(ports.last);
        while first <= last {
            let aligned = if first == 0 {
                16
            } else {
                first.trailing_zeros().min(16)
            };
            let fits = (last - first + 1).ilog2();
            let size = aligned.min(fits);
            let bytes = (first as u16).to_be_bytes();
            self.entry(Key::number(tag, &bytes, 16 - size)).net |= clause;
            first += 1 << size;
        }
    }

    /// `clause` is satisfied by addresses of this network.
    pub(super) fn net(&mut self, tags: (u8, u8), address: IpAddr, bits: u8, clause: u64) {
        let (tag_v4, tag_v6) = tags;
        let key = match address {
            IpAddr::V4(address) => Key::number(tag_v4, &address.octets(), u32::from(bits.min(32))),
            // The kernel side writes mapped addresses as IPv4.
            IpAddr::V6(address) => match address.to_ipv4_mapped() {
                Some(mapped) if bits >= 96 => {
                    Key::number(tag_v4, &mapped.octets(), u32::from(bits.min(128) - 96))
                }
                _ => Key::number(tag_v6, &address.octets(), u32::from(bits.min(128))),
            },
        };
        self.entry(key).net |= clause;
    }

    /// Number of entries.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The finished entries: each also says what its shorter keys say.
    pub(super) fn finish(self) -> Vec<(Key, Match)> {
        let mut finished: Vec<(Key, Match)> = Vec::with_capacity(self.entries.len());
        // In this order a key comes after all keys that begin it.
        let mut above: Vec<usize> = Vec::new();
        for (key, mut value) in self.entries {
            while above
                .last()
                .is_some_and(|last| !finished[*last].0.begins(&key))
            {
                above.pop();
            }
            if let Some(last) = above.last() {
                value.file |= finished[*last].1.file;
                value.net |= finished[*last].1.net;
            }
            above.push(finished.len());
            finished.push((key, value));
        }
        finished
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel does: the longest key that begins the looked-up one.
    fn find<'a>(entries: &'a [(Key, Match)], key: &Key) -> Option<&'a Match> {
        entries
            .iter()
            .filter(|(known, _)| known.begins(key))
            .max_by_key(|(known, _)| known.bits)
            .map(|(_, value)| value)
    }

    #[test]
    fn every_port_of_a_range_and_no_other() {
        for (first, last) in [
            (0, 65535),
            (1, 1),
            (0, 0),
            (80, 443),
            (1024, 65535),
            (65535, 65535),
            (7, 8),
        ] {
            let mut trie = Trie::default();
            trie.ports(tag::DST_PORT, Ports { first, last }, 1);
            trie.ports(
                tag::DST_PORT,
                Ports {
                    first: 100,
                    last: 200,
                },
                2,
            );
            let entries = trie.finish();
            for port in 0..=u16::MAX {
                let found = find(
                    &entries,
                    &Key::number(tag::DST_PORT, &port.to_be_bytes(), 16),
                );
                let bits = found.map_or(0, |found| found.net);
                assert_eq!(
                    bits & 1 != 0,
                    (first..=last).contains(&port),
                    "{port} in {first}-{last}"
                );
                assert_eq!(bits & 2 != 0, (100..=200).contains(&port), "{port}");
            }
        }
    }

    #[test]
    fn shorter_keys_count_too() {
        let mut trie = Trie::default();
        trie.path_prefix(b"/", 1);
        trie.path_prefix(b"/srv/da", 2);
        trie.path_prefix(b"/srv/data/", 4);
        trie.path_exact(b"/srv/data/x", 8);
        let dirs = trie.dirs.clone();
        let entries = trie.finish();
        let dir = |text: &str| find(&entries, &Key::text(tag::DIR, text.as_bytes())).copied();
        assert_eq!(dir("/etc/").map(|found| found.file), Some(1));
        assert_eq!(dir("/srv/data/").map(|found| found.file), Some(7));
        assert_eq!(dir("/srv/data/deep/").map(|found| found.file), Some(7));
        assert_eq!(dir("/srv/dat/").map(|found| found.file), Some(3));
        let number = dir("/srv/data/").expect("it has a number").dir;
        assert_eq!(number, dirs[&b"/srv/data/"[..]]);
        let mut text = number.to_ne_bytes().to_vec();
        text.extend_from_slice(b"x");
        assert_eq!(
            find(&entries, &Key::text(tag::NAME, &text)).map(|found| found.file_exact),
            Some(8)
        );
    }

    #[test]
    fn networks_are_masked_and_nested() {
        let mut trie = Trie::default();
        let tags = (tag::DST_NET4, tag::DST_NET6);
        trie.net(tags, "10.1.2.3".parse().expect("an address"), 8, 1);
        trie.net(tags, "10.1.0.0".parse().expect("an address"), 17, 2);
        trie.net(
            tags,
            "::ffff:10.1.128.0".parse().expect("an address"),
            113,
            4,
        );
        trie.net(tags, "2001:db8::".parse().expect("an address"), 33, 8);
        let entries = trie.finish();
        let v4 = |octets: [u8; 4]| {
            find(&entries, &Key::number(tag::DST_NET4, &octets, 32)).map_or(0, |found| found.net)
        };
        assert_eq!(v4([10, 9, 9, 9]), 1);
        assert_eq!(v4([10, 1, 127, 1]), 3);
        assert_eq!(v4([10, 1, 128, 1]), 5);
        assert_eq!(v4([11, 1, 128, 1]), 0);
    }
}
