//! Large lists: packed once, shared by every rule that names one, looked up by hash.
//!
//! A short list is written out in each predicate that names it. One whose text is longer than
//! [`INLINE_BYTES`] is known by its name and a hash of its items instead: predicates stay small, in
//! memory as in the records that say what was collected.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::OnceLock;

use sha2::{Digest as _, Sha256};
use sumun_proto::FieldId;

use crate::coarse::Filters;
use crate::ir::{Operand, Set, Type};
use crate::literal;

/// Longest canonical text of a list that is written out in predicates, in bytes.
pub const INLINE_BYTES: usize = 16 * 1024;
/// Most items of a list.
pub const ITEMS_MAX: usize = 100_000;
/// Most bytes of a list's items together.
pub const BYTES_MAX: usize = 8 * 1024 * 1024;
/// Most bytes that the large lists of policies loaded together may take in the matcher.
pub const TOTAL_MAX: usize = 32 * 1024 * 1024;

/// A list of a policy that is too long to be written out. Two are equal if their items are,
/// whatever they are called.
pub struct List {
    name: String,
    /// Of type and items.
    sha256: [u8; 32],
    items: Items,
    /// Found once for all rules that name it: number of the first text with an upper-case letter.
    capital: OnceLock<Option<usize>>,
    /// Number of the first text that no field of an address has.
    no_address: OnceLock<Option<usize>>,
    /// What the kernel's filter takes of it.
    pub(crate) filters: Filters,
}

enum Items {
    Texts(Texts),
    Numbers {
        sorted: Box<[i64]>,
        slots: Slots,
    },
    /// Read from a canonical text, which has only the hash.
    Elsewhere,
}

/// Sorted texts, one behind the other.
struct Texts {
    all: Box<str>,
    /// Where each ends.
    ends: Box<[u32]>,
    slots: Slots,
}

impl Texts {
    fn get(&self, number: usize) -> &str {
        let start = match number.checked_sub(1) {
            Some(before) => self.ends[before],
            None => 0,
        };
        &self.all[start as usize..self.ends[number] as usize]
    }
}

/// Numbers of items by the hash of the item: open addressing, at most three quarters full.
struct Slots {
    /// One more than the number; 0 = free.
    slots: Box<[u32]>,
    /// Keyed afresh in each process: whoever writes a list does not choose where its items fall.
    hasher: RandomState,
}

impl Slots {
    fn new<T: Hash + ?Sized>(items: &mut dyn Iterator<Item = &T>, count: usize) -> Self {
        let size = (count + count / 3 + 1).next_power_of_two();
        let mut slots = vec![0; size].into_boxed_slice();
        let hasher = RandomState::new();
        let mut number = 0;
        for item in items {
            let mut at = hasher.hash_one(item) as usize & (size - 1);
            while slots[at] != 0 {
                at = (at + 1) & (size - 1);
            }
            number += 1;
            slots[at] = number;
        }
        Self { slots, hasher }
    }

    fn has<T: Hash + ?Sized>(&self, wanted: &T, is: impl Fn(usize) -> bool) -> bool {
        let mask = self.slots.len() - 1;
        let mut at = self.hasher.hash_one(wanted) as usize & mask;
        // There are free slots, so this ends.
        while let Some(number) = self.slots[at].checked_sub(1) {
            if is(number as usize) {
                return true;
            }
            at = (at + 1) & mask;
        }
        false
    }

    fn bytes(&self) -> usize {
        size_of_val(&*self.slots)
    }
}

impl List {
    /// Packs items that are sorted and without repeats; `None` if the set is one already.
    pub(crate) fn pack(name: &str, set: &Set) -> Option<Self> {
        let mut hash = Sha256::new();
        let items = match set {
            Set::Str(items) => {
                hash.update(b"string\0");
                let mut all = String::with_capacity(items.iter().map(String::len).sum());
                let mut ends = Vec::with_capacity(items.len());
                for item in items {
                    hash.update((item.len() as u64).to_le_bytes());
                    hash.update(item);
                    all.push_str(item);
                    // A list has far fewer bytes.
                    ends.push(u32::try_from(all.len()).ok()?);
                }
                let slots = Slots::new(&mut items.iter().map(String::as_str), items.len());
                Items::Texts(Texts {
                    all: all.into(),
                    ends: ends.into(),
                    slots,
                })
            }
            Set::Int(items) => {
                hash.update(b"int\0");
                for item in items {
                    hash.update(item.to_le_bytes());
                }
                Items::Numbers {
                    sorted: items.as_slice().into(),
                    slots: Slots::new(&mut items.iter(), items.len()),
                }
            }
            Set::List(_) => return None,
        };
        Some(Self::new(name, hash.finalize().into(), items))
    }

    fn new(name: &str, sha256: [u8; 32], items: Items) -> Self {
        Self {
            name: name.to_owned(),
            sha256,
            items,
            capital: OnceLock::new(),
            no_address: OnceLock::new(),
            filters: Filters::default(),
        }
    }

    /// From what stands in a canonical text: a name and a hash.
    pub(crate) fn referred(reference: &str) -> Option<Self> {
        let (name, hash) = reference.split_once('#')?;
        let digits = hash.len() == 64 && hash.bytes().all(|digit| digit.is_ascii_hexdigit());
        let named = !name.is_empty()
            && name.len() <= crate::read::NAME_MAX
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !digits || !named || hash.bytes().any(|digit| digit.is_ascii_uppercase()) {
            return None;
        }
        let mut sha256 = [0; 32];
        for (byte, pair) in sha256.iter_mut().zip(hash.as_bytes().chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self::new(name, sha256, Items::Elsewhere))
    }

    /// What it is called in its policy.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// SHA-256 over the type and the items in order, hex.
    #[must_use]
    pub fn sha256(&self) -> String {
        self.sha256
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// Type of the items; `None` if only the hash is known.
    #[must_use]
    pub fn ty(&self) -> Option<Type> {
        match &self.items {
            Items::Texts(_) => Some(Type::Str),
            Items::Numbers { .. } => Some(Type::Int),
            Items::Elsewhere => None,
        }
    }

    /// Number of items; 0 if only the hash is known.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.items {
            Items::Texts(texts) => texts.ends.len(),
            Items::Numbers { sorted, .. } => sorted.len(),
            Items::Elsewhere => 0,
        }
    }

    /// True if no item is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that it takes in memory, however many rules name it.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.items {
            Items::Texts(texts) => {
                texts.all.len() + size_of_val(&*texts.ends) + texts.slots.bytes()
            }
            Items::Numbers { sorted, slots } => size_of_val(&**sorted) + slots.bytes(),
            Items::Elsewhere => 0,
        }
    }

    /// Whether a text is an item; `None` if only the hash is known.
    #[must_use]
    pub fn has_text(&self, text: &str) -> Option<bool> {
        match &self.items {
            Items::Texts(texts) => {
                let is = |number| texts.get(number) == text;
                Some(texts.slots.has(text, is))
            }
            Items::Numbers { .. } => Some(false),
            Items::Elsewhere => None,
        }
    }

    /// Whether a number is an item; `None` if only the hash is known.
    #[must_use]
    pub fn has_number(&self, number: i64) -> Option<bool> {
        match &self.items {
            Items::Texts(_) => Some(false),
            Items::Numbers { sorted, slots } => Some(slots.has(&number, |at| sorted[at] == number)),
            Items::Elsewhere => None,
        }
    }

    /// The texts, sorted; none if they are numbers or not known.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        let texts = match &self.items {
            Items::Texts(texts) => Some(texts),
            _ => None,
        };
        texts
            .into_iter()
            .flat_map(|texts| (0..texts.ends.len()).map(|number| texts.get(number)))
    }

    /// Why one of the texts can never equal an operand; `None` if all can.
    pub(crate) fn unfit(&self, operand: &Operand) -> Option<String> {
        let first = |is: &dyn Fn(&str) -> bool| self.texts().position(is);
        let number = match operand {
            Operand::Lower(_) => *self
                .capital
                .get_or_init(|| first(&|text| literal::capital(text).is_some())),
            Operand::Field(FieldId::NetSrcIp | FieldId::NetDstIp) => *self
                .no_address
                .get_or_init(|| first(&|text| literal::fits(operand, text).is_err())),
            // There are fewer kinds than a list has items.
            operand => first(&|text| literal::fits(operand, text).is_err()),
        };
        literal::fits(operand, self.texts().nth(number?)?).err()
    }

    /// The numbers, sorted; none if they are texts or not known.
    #[must_use]
    pub fn numbers(&self) -> &[i64] {
        match &self.items {
            Items::Numbers { sorted, .. } => sorted,
            _ => &[],
        }
    }
}

impl PartialEq for List {
    fn eq(&self, other: &Self) -> bool {
        self.sha256 == other.sha256
    }
}

impl Eq for List {}

impl Hash for List {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.sha256.hash(state);
    }
}

/// Without the items.
impl fmt::Debug for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "List({self}, {} items)", self.len())
    }
}

/// As it stands in canonical text.
impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lists[\"{}#{}\"]", self.name, self.sha256())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(items: &[&str]) -> List {
        let mut set = Set::Str(items.iter().map(|item| (*item).to_owned()).collect());
        set.tidy();
        List::pack("bad", &set).expect("no list yet")
    }

    #[test]
    fn the_hash_is_that_of_type_and_items() {
        let list = texts(&["b", "a"]);
        // printf 'string\0\1\0\0\0\0\0\0\0a\1\0\0\0\0\0\0\0b' | sha256sum
        assert_eq!(
            list.to_string(),
            "lists[\"bad#3e1c857917693fd11af6d58cb47c32d7b84e962060f21f31892186671a2eb235\"]"
        );
        assert_ne!(list, texts(&["ab"]));
        assert_ne!(list, texts(&["a", "b", ""]));
        let renamed = Set::Str(vec!["a".into(), "b".into()]);
        assert_eq!(list, List::pack("other", &renamed).expect("no list yet"));
        assert_ne!(
            List::pack("x", &Set::Str(Vec::new())),
            List::pack("x", &Set::Int(Vec::new()))
        );
    }

    proptest::proptest! {
        #[test]
        fn an_item_is_found_by_its_hash_exactly_if_it_is_found_one_by_one(
            items in proptest::collection::vec("[ab한]{0,3}", 0..60),
            numbers in proptest::collection::vec(-40_i64..40, 0..60),
            asked in proptest::collection::vec("[ab한]{0,3}", 0..60),
        ) {
            let (mut of_texts, mut of_numbers) = (Set::Str(items.clone()), Set::Int(numbers.clone()));
            of_texts.tidy();
            of_numbers.tidy();
            let texts = List::pack("t", &of_texts).expect("no list yet");
            for text in items.iter().chain(&asked) {
                proptest::prop_assert_eq!(texts.has_text(text), Some(items.contains(text)));
            }
            let packed: Vec<String> = texts.texts().map(str::to_owned).collect();
            proptest::prop_assert_eq!(Set::Str(packed), of_texts);
            let list = List::pack("n", &of_numbers).expect("no list yet");
            for number in -50..50 {
                proptest::prop_assert_eq!(list.has_number(number), Some(numbers.contains(&number)));
            }
            proptest::prop_assert_eq!(list.has_text("a"), Some(false));
            proptest::prop_assert_eq!(texts.has_number(1), Some(false));
        }
    }

    #[test]
    fn a_reference_is_equal_and_knows_no_item() {
        let list = texts(&["a"]);
        let reference = format!("bad#{}", list.sha256());
        let referred = List::referred(&reference).expect("a reference");
        assert_eq!(referred, list);
        assert_eq!(referred.to_string(), list.to_string());
        assert_eq!(
            (referred.has_text("a"), referred.has_number(1)),
            (None, None)
        );
        assert_eq!((referred.ty(), referred.len()), (None, 0));
        for broken in [
            String::new(),
            "bad".into(),
            reference.to_uppercase(),
            reference.replace("bad", ""),
            reference.replace("bad", "a\"b"),
            reference.replace('#', ""),
            reference[..reference.len() - 1].to_owned(),
            format!("{reference}0"),
            "bad#".to_owned() + &"é".repeat(32),
        ] {
            assert_eq!(List::referred(&broken), None, "{broken}");
        }
    }
}
