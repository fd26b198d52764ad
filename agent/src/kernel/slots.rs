//! Resolves the slot table against the running kernel.

use std::collections::HashSet;

use sumun_abi::slot::{self, Place, symbol};

use super::btf::{Btf, Malformed};

/// What the programs' read-only data is filled with.
#[derive(Clone, Debug)]
pub struct Slots {
    /// Value of each slot, `slot::NONE` where the kernel has no such place.
    pub values: [u32; slot::COUNT],
    /// Addresses of kernel variables, 0 where they are not shown.
    pub symbols: [u64; symbol::COUNT],
}

impl Slots {
    /// Resolves every slot.
    ///
    /// # Errors
    /// The BTF is malformed. Slots that do not resolve are no error here: the hooks
    /// that need them are not attached.
    pub fn resolve(btf: &[u8], kallsyms: &str) -> Result<Self, Malformed> {
        let mut wanted = HashSet::new();
        let mut tracepoints = Vec::new();
        for slot in &slot::TABLE {
            for place in slot.places {
                match place {
                    Place::Field(name, _)
                    | Place::Bit(name, _)
                    | Place::Value(name, _)
                    | Place::Size(name)
                    | Place::Type(name)
                    | Place::Function(name)
                    | Place::Parameters(name) => {
                        wanted.insert(*name);
                    }
                    Place::Arguments(name) => tracepoints.push(format!("btf_trace_{name}")),
                }
            }
        }
        wanted.extend(tracepoints.iter().map(String::as_str));
        let btf = Btf::parse(btf, &wanted)?;
        let mut values = [slot::NONE; slot::COUNT];
        for (value, slot) in values.iter_mut().zip(&slot::TABLE) {
            *value = slot
                .places
                .iter()
                .find_map(|place| match place {
                    Place::Field(structure, path) => {
                        btf.field_bit(structure, path).map(|bit| bit / 8)
                    }
                    Place::Bit(structure, path) => btf.field_bit(structure, path),
                    Place::Value(enumeration, name) => btf.enumerator(enumeration, name),
                    Place::Arguments(tracepoint) => btf.tracepoint_arguments(tracepoint),
                    Place::Size(name) => btf.structure_size(name),
                    Place::Type(name) => btf.structure(name),
                    Place::Function(name) => btf.function(name),
                    Place::Parameters(name) => btf.function_parameters(name),
                })
                .unwrap_or(slot::NONE);
        }
        Ok(Slots {
            values,
            symbols: symbols(kallsyms),
        })
    }

    /// Names of the slots in `required` that this kernel does not have.
    #[must_use]
    pub fn missing(&self, required: &[usize]) -> Vec<&'static str> {
        required
            .iter()
            .filter(|index| self.values[**index] == slot::NONE)
            .map(|index| slot::TABLE[*index].name)
            .collect()
    }
}

/// Addresses from `/proc/kallsyms`. Kernels built without `CONFIG_KALLSYMS_ALL`
/// do not list variables, and hardened ones show zeros.
fn symbols(kallsyms: &str) -> [u64; symbol::COUNT] {
    let mut found = [0; symbol::COUNT];
    for line in kallsyms.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(address), Some(_), Some(name), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            continue;
        };
        if let Some(index) = symbol::NAMES.iter().position(|known| *known == name) {
            found[index] = u64::from_str_radix(address, 16).unwrap_or(0);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_are_found_by_whole_name() {
        let text = "ffffffff81000000 T rename_locked\nffffffff82a4c0c0 d rename_lock\n\
                    ffffffffc0000000 t mount_lock\t[module]\n";
        assert_eq!(symbols(text), [0xffff_ffff_82a4_c0c0, 0]);
    }

    #[test]
    fn cut_type_data_is_refused() {
        let Ok(data) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            eprintln!("skipping: this kernel has no BTF");
            return;
        };
        for len in [0, 3, 23, 24, 1000, data.len() / 2] {
            assert!(Slots::resolve(&data[..len], "").is_err(), "{len} bytes");
        }
        let slots = Slots::resolve(&data, "").expect("the kernel's own BTF is well-formed");
        assert_eq!(
            slots.missing(&[slot::TASK_PID, slot::FILE_DENTRY]),
            Vec::<&str>::new()
        );
    }
}
