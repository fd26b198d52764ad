//! The hash of the index's tables.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A table that is looked into on each event.
pub(super) type Map<K, V> = HashMap<K, V, BuildHasherDefault<Folded>>;

/// Folded multiplication, eight bytes at a time. It resists no one who chooses the keys; these are the policies' own, and
/// the texts of events are only looked up.
#[derive(Debug, Default)]
pub(super) struct Folded(u64);

impl Folded {
    fn add(&mut self, word: u64) {
        const FACTOR: u128 = 0x9e37_79b9_7f4a_7c15;
        let wide = u128::from(self.0.rotate_left(23) ^ word) * FACTOR;
        let bytes = wide.to_le_bytes();
        let (low, high) = bytes.split_at(8);
        self.0 = word_of(low) ^ word_of(high);
    }
}

impl Hasher for Folded {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            self.add(word_of(word));
        }
        if !words.remainder().is_empty() {
            self.add(word_of(words.remainder()));
        }
    }

    fn write_u8(&mut self, number: u8) {
        self.add(number.into());
    }

    fn write_u32(&mut self, number: u32) {
        self.add(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        self.add(number);
    }

    fn write_usize(&mut self, number: usize) {
        self.add(number as u64);
    }
}

/// Up to eight bytes as a number.
fn word_of(bytes: &[u8]) -> u64 {
    match bytes.try_into() {
        Ok(eight) => u64::from_le_bytes(eight),
        Err(_) => bytes
            .iter()
            .fold(0, |word, byte| word << 8 | u64::from(*byte)),
    }
}
