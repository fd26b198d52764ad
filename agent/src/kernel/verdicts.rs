//! The rules that kill: their plan in the kernel, whom they may not kill, how long they hold, and
//! what is known of the ancestors of processes that are older than the plan.

use aya::maps::{Array, HashMap, MapData, MapError};
use sumun_abi::{
    policy::tag,
    verdict::{CLAUSES, Clause, Guard, Lineage, LineageKey, NUMBERS, Number, Verdicts, id},
};
use sumun_policy::verdict::{Atom, Id, TEXT_MAX, Texts, VerdictPlan};

use super::{
    Error, Kernel, Of,
    trie::{Space, Trie},
};

#[expect(unsafe_code, reason = "aya wants to know that a value is plain data")]
// SAFETY: `repr(C)`, integers only, without implicit padding (size asserted in the abi).
unsafe impl aya::Pod for Of<Verdicts> {}
#[expect(unsafe_code, reason = "as above")]
// SAFETY: as above.
unsafe impl aya::Pod for Of<Lineage> {}
#[expect(unsafe_code, reason = "as above")]
// SAFETY: as above.
unsafe impl aya::Pod for Of<LineageKey> {}
#[expect(unsafe_code, reason = "as above")]
// SAFETY: as above.
unsafe impl aya::Pod for Of<Guard> {}

/// The maps of verdicts.
pub(super) struct Maps {
    pub(super) plans: Array<MapData, Of<Verdicts>>,
    pub(super) lineage: HashMap<MapData, Of<LineageKey>, Of<Lineage>>,
    pub(super) seeds: HashMap<MapData, Of<LineageKey>, Of<Lineage>>,
    pub(super) guard: Array<MapData, Of<Guard>>,
    pub(super) lease: Array<MapData, u64>,
}

/// A process and what is known of it for the atoms about ancestors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed {
    /// Process id.
    pub pid: u32,
    /// Start, ns since boot.
    pub start_ns: u64,
    /// The words; the generation is filled in.
    pub lineage: Lineage,
}

/// The plan in the kernel's form, its texts added to the trie. `None`: a text is too long or a
/// number of things too large, which the policy compiler does not make.
pub(super) fn compile(plan: &VerdictPlan, generation: u32, trie: &mut Trie) -> Option<Verdicts> {
    let mut verdicts = Verdicts {
        generation,
        ..Verdicts::default()
    };
    for (place, atom) in plan.atoms.iter().enumerate() {
        let bit = 1_u64.checked_shl(u32::try_from(place).ok()?)?;
        match atom {
            Atom::Exe(asked) => {
                verdicts.exe |= bit;
                texts(trie, asked, bit, Space::File)?;
                verdicts.named |= if asked.names.is_empty() { 0 } else { bit };
            }
            Atom::Ancestor(asked) => {
                verdicts.lineage |= bit;
                texts(trie, asked, bit, Space::Net)?;
                verdicts.named |= if asked.names.is_empty() { 0 } else { bit };
            }
            Atom::Number { id, range } => {
                let number = verdicts.number.get_mut(verdicts.numbers as usize)?;
                *number = Number {
                    id: match id {
                        Id::Uid => id::UID,
                        Id::Gid => id::GID,
                        Id::Euid => id::EUID,
                        Id::Egid => id::EGID,
                    },
                    first: range.0,
                    last: range.1,
                    pad: 0,
                    atom: bit,
                };
                verdicts.numbers += 1;
            }
        }
    }
    for clause in &plan.clauses {
        *verdicts.clause.get_mut(verdicts.clauses as usize)? = Clause {
            need: clause.need,
            forbid: clause.forbid,
            rule: u32::try_from(clause.rule).ok()?,
            pad: 0,
        };
        verdicts.clauses += 1;
    }
    Some(verdicts)
}

const _: () = assert!(
    NUMBERS == sumun_policy::verdict::NUMBERS_MAX && CLAUSES == sumun_policy::verdict::CLAUSES_MAX
);
const _: () = assert!(TEXT_MAX < sumun_abi::policy::MATCH_TEXT);

fn texts(trie: &mut Trie, asked: &Texts, bit: u64, space: Space) -> Option<()> {
    for (tag, texts, prefix) in [
        (tag::VERDICT_NAME, &asked.names, false),
        (tag::VERDICT_PATH, &asked.paths, false),
        (tag::VERDICT_PATH, &asked.prefixes, true),
    ] {
        for text in texts {
            if text.len() > TEXT_MAX {
                return None;
            }
            // A last component has no slash: nothing is called so.
            if tag == tag::VERDICT_PATH || !text.contains(&b'/') {
                trie.verdict(tag, text, prefix, bit, space);
            }
        }
    }
    Some(())
}

impl Kernel {
    /// Keeps this process, and whatever runs its executable, from being killed by a rule.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn guard(&mut self, guard: Guard) -> Result<(), Error> {
        self.verdicts
            .guard
            .set(0, Of(guard), 0)
            .map_err(Error::map("write", "GUARD"))
    }

    /// Rules go on killing until this boot time, whether or not an agent is there.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn hold_until(&mut self, boot_ns: u64) -> Result<(), Error> {
        self.verdicts
            .lease
            .set(0, boot_ns, 0)
            .map_err(Error::map("write", "LEASE"))
    }

    /// Tells the kernel of a process's ancestors, for the active plan.
    ///
    /// # Errors
    /// The map is full or cannot be written: such processes are judged late.
    pub fn seed(&mut self, seed: &Seed) -> Result<(), Error> {
        let generation = self.filter_generation();
        self.seed_for(self.active, generation, seed)
    }

    /// The process has ended.
    pub fn unseed(&mut self, pid: u32, start_ns: u64) {
        for plan in [0, 1] {
            let key = LineageKey {
                start_ns,
                pid,
                plan,
            };
            // Mostly there is none.
            let _ = self.verdicts.seeds.remove(&Of(key));
        }
    }

    pub(super) fn seed_for(
        &mut self,
        plan: u32,
        generation: u32,
        seed: &Seed,
    ) -> Result<(), Error> {
        let key = LineageKey {
            start_ns: seed.start_ns,
            pid: seed.pid,
            plan,
        };
        let lineage = Lineage {
            generation,
            ..seed.lineage
        };
        self.verdicts
            .seeds
            .insert(Of(key), Of(lineage), 0)
            .map_err(Error::map("write", "SEEDS"))
    }

    /// Removes the seeds of a plan that is not active any more.
    pub(super) fn clear_seeds(&mut self, plan: u32) -> Result<(), Error> {
        let keys: Result<Vec<_>, MapError> = self.verdicts.seeds.keys().collect();
        for key in keys.map_err(Error::map("list", "SEEDS"))? {
            if key.0.plan == plan {
                let _ = self.verdicts.seeds.remove(&key);
            }
        }
        Ok(())
    }

    /// Removes what processes have inherited, if the active plan asks for nothing of the kind: their exits
    /// would leave it there.
    pub(super) fn forget_lineage(&mut self) -> Result<(), Error> {
        let plan = self.verdicts.plans.get(&self.active, 0);
        if plan.map_err(Error::map("read", "VERDICTS"))?.0.lineage != 0 {
            return Ok(());
        }
        let keys: Result<Vec<_>, MapError> = self.verdicts.lineage.keys().collect();
        for key in keys.map_err(Error::map("list", "LINEAGE"))? {
            let _ = self.verdicts.lineage.remove(&key);
        }
        Ok(())
    }
}
