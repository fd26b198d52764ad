//! The values that rules ask for, and the nodes that they lead to.

use std::net::IpAddr;

use sumun_policy::needs::{Key, PART_MIN, Probed};

use super::NodeId;
use super::hash::Map;

/// What the values of one source lead to.
#[derive(Debug, Default)]
pub(super) struct Table {
    texts: Map<Box<[u8]>, NodeId>,
    starts: Starts,
    parts: Parts,
    numbers: Blocks,
    four: Blocks,
    six: Blocks,
}

impl Table {
    /// The keys have to be sorted and each there once.
    pub(super) fn new(keys: impl Iterator<Item = (Key, NodeId)>) -> Self {
        let mut table = Self::default();
        let (mut starts, mut parts) = (Vec::new(), Vec::new());
        for (key, node) in keys {
            match key {
                Key::Text(text) => {
                    table.texts.insert(text, node);
                }
                Key::Start(text) => starts.push((text, node)),
                Key::Part(text) => parts.push((text, node)),
                Key::Range(first, last) => {
                    table.numbers.range(ordered(first), ordered(last), node);
                }
                Key::Net(IpAddr::V4(first), length) => {
                    let open = 32_u8.saturating_sub(length);
                    table.four.add(open, u32::from(first).into(), node);
                }
                Key::Net(IpAddr::V6(first), length) => {
                    table
                        .six
                        .add(128_u8.saturating_sub(length), first.into(), node);
                }
            }
        }
        table.starts = Starts::new(starts);
        table.parts = Parts::new(parts);
        table
    }

    /// True if a single value can lead to one node more than once.
    pub(super) fn looks_within(&self) -> bool {
        !self.parts.by_gram.is_empty()
    }

    /// Calls `found` with the nodes of a value.
    pub(super) fn look_up(&self, value: Probed<'_>, mut found: impl FnMut(NodeId)) {
        match value {
            Probed::Text(text) => {
                if !self.texts.is_empty()
                    && let Some(node) = self.texts.get(text)
                {
                    found(*node);
                }
                self.starts.look_up(text, &mut found);
                self.parts.look_up(text, &mut found);
            }
            Probed::Int(number) => self.numbers.look_up(ordered(number), &mut found),
            Probed::Address(IpAddr::V4(address)) => {
                self.four.look_up(u32::from(address).into(), &mut found);
            }
            Probed::Address(IpAddr::V6(address)) => {
                self.six.look_up(address.into(), &mut found);
            }
        }
    }

    /// Bytes that it takes, about.
    pub(super) fn bytes(&self) -> usize {
        let of_texts = self.texts.capacity() * size_of::<(Box<[u8]>, NodeId)>()
            + self.texts.keys().map(|text| text.len()).sum::<usize>();
        let of_blocks = [&self.numbers, &self.four, &self.six]
            .map(|blocks| blocks.nodes.capacity() * size_of::<((u8, u128), Vec<NodeId>)>());
        of_texts
            + self.starts.bytes.len()
            + self.starts.items.len() * size_of::<Start>()
            + self.parts.bytes()
            + of_blocks.iter().sum::<usize>()
    }
}

/// A signed number as an unsigned one, in the same order.
fn ordered(number: i64) -> u128 {
    u128::from(number.cast_unsigned() ^ 1 << 63)
}

/// Texts that values start with, sorted. Each names the longest other one that it starts with itself, so
/// those that a value starts with are the chain from the last one that is not behind it.
#[derive(Debug, Default)]
struct Starts {
    bytes: Vec<u8>,
    items: Vec<Start>,
}

#[derive(Clone, Copy, Debug)]
struct Start {
    /// In `Starts::bytes`.
    first: u32,
    end: u32,
    /// One more than the index of the longest other that it starts with.
    shorter: u32,
    node: NodeId,
}

impl Starts {
    fn new(texts: Vec<(Box<[u8]>, NodeId)>) -> Self {
        let mut starts = Self::default();
        let mut open: Vec<u32> = Vec::new();
        for (text, node) in texts {
            while let Some(last) = open.last()
                && !text.starts_with(starts.text(&starts.items[*last as usize]))
            {
                open.pop();
            }
            let shorter = open.last().map_or(0, |last| last + 1);
            let first = number(starts.bytes.len());
            starts.bytes.extend_from_slice(&text);
            open.push(number(starts.items.len()));
            starts.items.push(Start {
                first,
                end: number(starts.bytes.len()),
                shorter,
                node,
            });
        }
        starts
    }

    fn text(&self, item: &Start) -> &[u8] {
        &self.bytes[item.first as usize..item.end as usize]
    }

    fn look_up(&self, text: &[u8], found: &mut impl FnMut(NodeId)) {
        // One more than an index, as `shorter` is.
        let mut at = self.items.partition_point(|item| self.text(item) <= text);
        let mut within = false;
        while let Some(item) = at.checked_sub(1).and_then(|index| self.items.get(index)) {
            within = within || text.starts_with(self.text(item));
            if within {
                found(item.node);
            }
            at = item.shorter as usize;
        }
    }
}

/// Bytes of which one place in a text is known to have them.
type Gram = [u8; PART_MIN];

/// Texts that stand anywhere in values, found by four of their bytes.
#[derive(Debug)]
struct Parts {
    by_gram: Map<Gram, Vec<Part>>,
    /// Bits by [`Parts::bit`]: most grams of a value are no key.
    seen: [u64; 64],
}

#[derive(Debug)]
struct Part {
    text: Box<[u8]>,
    /// Where in it the gram stands.
    at: usize,
    node: NodeId,
}

impl Default for Parts {
    fn default() -> Self {
        Self {
            by_gram: Map::default(),
            seen: [0; 64],
        }
    }
}

impl Parts {
    fn new(texts: Vec<(Box<[u8]>, NodeId)>) -> Self {
        let mut parts = Self::default();
        // The rarest gram of each, so that what many have in common (`/usr/lib/`) is no key.
        let mut uses: Map<Gram, u32> = Map::default();
        for (_, gram) in texts.iter().flat_map(|(text, _)| grams(text)) {
            *uses.entry(gram).or_default() += 1;
        }
        for (text, node) in texts {
            let rarest = grams(&text).min_by_key(|(_, gram)| uses.get(gram));
            if let Some((at, gram)) = rarest {
                let (word, bit) = Self::bit(gram);
                parts.seen[word] |= bit;
                let part = Part { text, at, node };
                parts.by_gram.entry(gram).or_default().push(part);
            }
        }
        parts
    }

    fn bit(gram: Gram) -> (usize, u64) {
        let mixed = u32::from_le_bytes(gram).wrapping_mul(0x9e37_79b1) >> 20;
        (mixed as usize / 64, 1 << (mixed % 64))
    }

    fn look_up(&self, text: &[u8], found: &mut impl FnMut(NodeId)) {
        if self.by_gram.is_empty() {
            return;
        }
        for (at, gram) in grams(text) {
            let (word, bit) = Self::bit(gram);
            if self.seen[word] & bit == 0 {
                continue;
            }
            for part in self.by_gram.get(&gram).into_iter().flatten() {
                let rest = at.checked_sub(part.at).and_then(|first| text.get(first..));
                if rest.is_some_and(|rest| rest.starts_with(&part.text)) {
                    found(part.node);
                }
            }
        }
    }

    fn bytes(&self) -> usize {
        let parts = self.by_gram.values().flatten();
        self.by_gram.capacity() * size_of::<(Gram, Vec<Part>)>()
            + parts
                .map(|part| size_of::<Part>() + part.text.len())
                .sum::<usize>()
    }
}

/// Each place in a text with the bytes that stand there.
fn grams(text: &[u8]) -> impl Iterator<Item = (usize, Gram)> {
    text.windows(PART_MIN)
        .filter_map(|window| window.try_into().ok())
        .enumerate()
}

/// Blocks of numbers: those that are equal but for some low bits.
#[derive(Debug, Default)]
struct Blocks {
    /// Numbers of low bits that blocks leave open.
    levels: Vec<u8>,
    /// By open bits, and the number without these.
    nodes: Map<(u8, u128), Vec<NodeId>>,
}

impl Blocks {
    fn add(&mut self, open: u8, first: u128, node: NodeId) {
        if !self.levels.contains(&open) {
            self.levels.push(open);
        }
        let block = (open, without(first, open));
        self.nodes.entry(block).or_default().push(node);
    }

    /// All from the first to the last, in as few blocks as there can be: two for each bit.
    fn range(&mut self, mut first: u128, last: u128, node: NodeId) {
        while first <= last {
            let width = last - first + 1;
            let open = first.trailing_zeros().min(width.ilog2());
            self.add(u8::try_from(open).unwrap_or(0), first, node);
            first += 1 << open;
        }
    }

    fn look_up(&self, number: u128, found: &mut impl FnMut(NodeId)) {
        for open in &self.levels {
            for node in self
                .nodes
                .get(&(*open, without(number, *open)))
                .into_iter()
                .flatten()
            {
                found(*node);
            }
        }
    }
}

/// The bits above those that are open.
fn without(number: u128, open: u8) -> u128 {
    number.checked_shr(open.into()).unwrap_or(0)
}

/// An index; tables of more than four billion items are not made.
pub(super) fn number(index: usize) -> u32 {
    u32::try_from(index).expect("policies are smaller than that")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(table: &Table, value: Probed<'_>) -> Vec<NodeId> {
        let mut nodes = Vec::new();
        table.look_up(value, |node| nodes.push(node));
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    fn table(mut keys: Vec<(Key, NodeId)>) -> Table {
        keys.sort();
        Table::new(keys.into_iter())
    }

    #[test]
    fn texts_are_found_whole_by_their_start_and_within() {
        let text = |text: &str| text.as_bytes().into();
        let table = table(vec![
            (Key::Text(text("/etc/passwd")), 1),
            (Key::Start(text("/etc/")), 2),
            (Key::Start(text("/etc/p")), 3),
            (Key::Start(text("/etc/pam.d/")), 4),
            (Key::Start(text("/opt/")), 5),
            (Key::Part(text("pass")), 6),
            (Key::Part(text("sswd-")), 7),
            (Key::Text(text("")), 8),
        ]);
        for (value, nodes) in [
            ("/etc/passwd", &[1, 2, 3, 6][..]),
            ("/etc/passwd-", &[2, 3, 6, 7]),
            ("/etc/pam.d/x", &[2, 3, 4]),
            ("/etc/q", &[2]),
            ("/etc", &[]),
            ("/opt/", &[5]),
            ("/pq", &[]),
            ("passpass", &[6]),
            ("", &[8]),
        ] {
            let value = Probed::Text(value.as_bytes());
            assert_eq!(found(&table, value), nodes, "{value:?}");
        }
    }

    #[test]
    fn ranges_and_networks_are_found_at_their_ends() {
        let net = |first: &str, length| Key::Net(first.parse().expect("an address"), length);
        let table = table(vec![
            (Key::Range(-3, 5), 1),
            (Key::Range(5, 5), 2),
            (Key::Range(i64::MAX - 1, i64::MAX), 3),
            (Key::Range(i64::MIN, i64::MIN), 4),
            (net("10.0.0.0", 8), 5),
            (net("10.1.0.0", 16), 6),
            (net("0.0.0.0", 0), 7),
            (net("::", 0), 8),
            (net("2001:db8::1", 128), 9),
        ]);
        for (value, nodes) in [
            (-4, &[][..]),
            (-3, &[1]),
            (0, &[1]),
            (5, &[1, 2]),
            (6, &[]),
            (i64::MAX, &[3]),
            (i64::MIN, &[4]),
        ] {
            assert_eq!(found(&table, Probed::Int(value)), nodes, "{value}");
        }
        for (value, nodes) in [
            ("10.1.2.3", &[5, 6, 7][..]),
            ("10.2.0.0", &[5, 7]),
            ("11.0.0.0", &[7]),
            ("2001:db8::1", &[8, 9]),
            ("::ffff:10.1.2.3", &[8]),
        ] {
            let address = value.parse().expect("an address");
            assert_eq!(found(&table, Probed::Address(address)), nodes, "{value}");
        }
    }
}
