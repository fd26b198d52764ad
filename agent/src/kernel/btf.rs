//! A reader of the kernel's BTF (BPF Type Format), for what the loader asks:
//! where a field lies, what an enumerator is worth, how many arguments a
//! tracepoint has, which number a structure or a function has.
//!
//! Format: <https://github.com/torvalds/linux/blob/v6.12/Documentation/bpf/btf.rst>.
//! aya-obj parses it too, but keeps the types to itself.

use std::collections::{HashMap, HashSet};

const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

/// The data is not BTF, or cut.
#[derive(Debug, thiserror::Error)]
#[error("malformed BTF at byte {at}: {what}")]
pub struct Malformed {
    /// Where.
    pub at: usize,
    /// What was expected there.
    pub what: &'static str,
}

/// Parsed enough to look types up.
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Offset of each type in `types`; id 0 is void.
    offsets: Vec<usize>,
    /// Ids of the structures, enumerations, typedefs and functions that were asked for.
    by_name: HashMap<&'a str, Vec<u32>>,
}

#[derive(Clone, Copy)]
struct Type {
    name: u32,
    info: u32,
    size_or_type: u32,
    /// Offset of what follows the common part.
    rest: usize,
}

impl Type {
    fn kind(self) -> u32 {
        self.info >> 24 & 0x1f
    }
    fn len(self) -> usize {
        (self.info & 0xffff) as usize
    }
    fn has_bit_fields(self) -> bool {
        self.info >> 31 != 0
    }
}

fn word(data: &[u8], at: usize) -> Result<u32, Malformed> {
    let bytes = data.get(at..).and_then(|rest| rest.first_chunk::<4>());
    bytes
        .map(|bytes| u32::from_ne_bytes(*bytes))
        .ok_or(Malformed {
            at,
            what: "four more bytes",
        })
}

impl<'a> Btf<'a> {
    /// Reads the types and remembers those in `wanted`.
    ///
    /// # Errors
    /// `data` is not BTF of this host's byte order.
    pub fn parse(data: &'a [u8], wanted: &HashSet<&str>) -> Result<Self, Malformed> {
        if word(data, 0)? & 0xffff != 0xeb9f {
            return Err(Malformed {
                at: 0,
                what: "the magic number",
            });
        }
        let header = word(data, 4)? as usize;
        let part = |offset: usize, len: usize| -> Result<&'a [u8], Malformed> {
            let start = header + word(data, offset)? as usize;
            data.get(start..start + word(data, len)? as usize)
                .ok_or(Malformed {
                    at: offset,
                    what: "a section inside the data",
                })
        };
        let mut btf = Btf {
            types: part(8, 12)?,
            strings: part(16, 20)?,
            offsets: vec![0],
            by_name: HashMap::new(),
        };
        let mut at = 0;
        while at < btf.types.len() {
            let id = btf.offsets.len() as u32;
            btf.offsets.push(at);
            let found = btf.at(at)?;
            if matches!(
                found.kind(),
                KIND_STRUCT | KIND_UNION | KIND_ENUM | KIND_ENUM64 | KIND_TYPEDEF | KIND_FUNC
            ) && let Some(name) = btf.string(found.name)
                && wanted.contains(name)
            {
                btf.by_name.entry(name).or_default().push(id);
            }
            at = found.rest
                + trailing(found).ok_or(Malformed {
                    at,
                    what: "a known kind of type",
                })?;
        }
        Ok(btf)
    }

    fn at(&self, at: usize) -> Result<Type, Malformed> {
        Ok(Type {
            name: word(self.types, at)?,
            info: word(self.types, at + 4)?,
            size_or_type: word(self.types, at + 8)?,
            rest: at + 12,
        })
    }

    fn string(&self, offset: u32) -> Option<&'a str> {
        let rest = self.strings.get(offset as usize..)?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        std::str::from_utf8(&rest[..end]).ok()
    }

    fn get(&self, id: u32) -> Option<Type> {
        if id == 0 {
            return None;
        }
        self.at(*self.offsets.get(id as usize)?).ok()
    }

    /// The type behind typedefs and qualifiers.
    fn resolved(&self, mut id: u32) -> Option<Type> {
        for _ in 0..32 {
            let found = self.get(id)?;
            match found.kind() {
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => {
                    id = found.size_or_type;
                }
                _ => return Some(found),
            }
        }
        None
    }

    /// Id of a structure.
    #[must_use]
    pub fn structure(&self, name: &str) -> Option<u32> {
        self.id(name, KIND_STRUCT)
    }

    /// Size of a structure in bytes.
    #[must_use]
    pub fn structure_size(&self, name: &str) -> Option<u32> {
        self.size(self.structure(name)?)
    }

    /// Id of a function.
    #[must_use]
    pub fn function(&self, name: &str) -> Option<u32> {
        self.id(name, KIND_FUNC)
    }

    /// Number of parameters of a function.
    #[must_use]
    pub fn function_parameters(&self, name: &str) -> Option<u32> {
        let function = self.get(self.function(name)?)?;
        let prototype = self.get(function.size_or_type)?;
        (prototype.kind() == KIND_FUNC_PROTO).then(|| prototype.len() as u32)
    }

    fn id(&self, name: &str, kind: u32) -> Option<u32> {
        let ids = self.by_name.get(name)?;
        let is = |id: &u32| self.get(*id).is_some_and(|found| found.kind() == kind);
        ids.iter().copied().find(is)
    }

    fn named(&self, name: &str) -> impl Iterator<Item = Type> {
        self.by_name
            .get(name)
            .into_iter()
            .flatten()
            .filter_map(|id| self.get(*id))
    }

    /// Bit offset of a field of a structure; the path may name fields of
    /// fields (`a.b`) and elements of arrays (`a[2]`).
    #[must_use]
    pub fn field_bit(&self, structure: &str, path: &str) -> Option<u32> {
        self.named(structure)
            .filter(|found| matches!(found.kind(), KIND_STRUCT | KIND_UNION))
            .find_map(|found| self.walk(found, path))
    }

    fn walk(&self, within: Type, path: &str) -> Option<u32> {
        let (first, rest) = path
            .split_once('.')
            .map_or((path, None), |(a, b)| (a, Some(b)));
        let (name, index) = match first.split_once('[') {
            Some((name, index)) => (name, Some(index.strip_suffix(']')?.parse::<u32>().ok()?)),
            None => (first, None),
        };
        let (mut bit, mut type_id) = self.member(within, name, 0)?;
        if let Some(index) = index {
            let array = self.resolved(type_id)?;
            if array.kind() != KIND_ARRAY {
                return None;
            }
            type_id = word(self.types, array.rest).ok()?;
            bit += index * self.size(type_id)? * 8;
        }
        match rest {
            Some(rest) => Some(bit + self.walk(self.resolved(type_id)?, rest)?),
            None => Some(bit),
        }
    }

    /// Offset and type of a member, also of anonymous structures inside.
    fn member(&self, within: Type, name: &str, depth: u32) -> Option<(u32, u32)> {
        if !matches!(within.kind(), KIND_STRUCT | KIND_UNION) || depth > 8 {
            return None;
        }
        let mut anonymous = Vec::new();
        for index in 0..within.len() {
            let at = within.rest + index * 12;
            let (name_at, type_id, offset) = (
                word(self.types, at).ok()?,
                word(self.types, at + 4).ok()?,
                word(self.types, at + 8).ok()?,
            );
            let bit = if within.has_bit_fields() {
                offset & 0xff_ffff
            } else {
                offset
            };
            match self.string(name_at) {
                Some("") => anonymous.push((bit, type_id)),
                Some(found) if found == name => return Some((bit, type_id)),
                _ => {}
            }
        }
        anonymous.into_iter().find_map(|(bit, type_id)| {
            let (inner, found) = self.member(self.resolved(type_id)?, name, depth + 1)?;
            Some((bit + inner, found))
        })
    }

    fn size(&self, id: u32) -> Option<u32> {
        let found = self.resolved(id)?;
        match found.kind() {
            KIND_PTR => Some(8),
            KIND_ARRAY => {
                let element = word(self.types, found.rest).ok()?;
                Some(self.size(element)? * word(self.types, found.rest + 8).ok()?)
            }
            _ => Some(found.size_or_type),
        }
    }

    /// Value of an enumerator.
    #[must_use]
    pub fn enumerator(&self, enumeration: &str, name: &str) -> Option<u32> {
        self.named(enumeration).find_map(|found| {
            let step = match found.kind() {
                KIND_ENUM => 8,
                KIND_ENUM64 => 12,
                _ => return None,
            };
            (0..found.len()).find_map(|index| {
                let at = found.rest + index * step;
                let this = self.string(word(self.types, at).ok()?)?;
                if this == name {
                    word(self.types, at + 4).ok()
                } else {
                    None
                }
            })
        })
    }

    /// Number of arguments of a tracepoint.
    #[must_use]
    pub fn tracepoint_arguments(&self, tracepoint: &str) -> Option<u32> {
        self.named(&format!("btf_trace_{tracepoint}"))
            .find_map(|found| {
                let pointer = self.get(found.size_or_type)?;
                let prototype = self.get(pointer.size_or_type)?;
                if found.kind() != KIND_TYPEDEF || prototype.kind() != KIND_FUNC_PROTO {
                    return None;
                }
                // The first parameter is the tracepoint's private data.
                (prototype.len() as u32).checked_sub(1)
            })
    }
}

/// Bytes that follow the common part of a type.
fn trailing(found: Type) -> Option<usize> {
    Some(match found.kind() {
        // INT, VAR and DECL_TAG
        1 | 14 | 17 => 4,
        KIND_ARRAY => 12,
        // DATASEC has the shape of a structure.
        KIND_STRUCT | KIND_UNION | 15 | KIND_ENUM64 => found.len() * 12,
        KIND_ENUM | KIND_FUNC_PROTO => found.len() * 8,
        // FWD and FLOAT among them
        KIND_PTR | 7 | KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_FUNC
        | 16 | KIND_TYPE_TAG => 0,
        _ => return None,
    })
}
