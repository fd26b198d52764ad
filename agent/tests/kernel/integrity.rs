//! Tables of functions in the kernel's memory: those of a sound kernel lead nowhere else, and one entry that does is found. What is
//! foreign is so by what the test says of the kernel's code and calls; the memory is read as ever.

use std::collections::BTreeMap;

use sumun_agent::{integrity::tables, kernel::memory::Memory};

use crate::bench::{self, Bench};

fn memory(name: &str) -> Option<(Bench, Memory)> {
    let mut bench = bench::take(name)?;
    match bench.kernel().memory() {
        Ok(memory) => Some((bench, memory)),
        Err(reason) => {
            assert!(reason.contains("/proc/kallsyms"), "{reason}");
            eprintln!("SKIPPED {name}: {reason}");
            None
        }
    }
}

#[test]
fn the_tables_of_a_sound_kernel_lead_nowhere_else() {
    let Some((_bench, mut memory)) = memory("integrity-sound") else {
        return;
    };
    let symbols = &memory.symbols;
    eprintln!(
        "{:?}, {} functions of calls, {:?}",
        symbols.tables.keys(),
        symbols.calls.len(),
        symbols.functions.keys()
    );
    assert_eq!(tables::of_proc(&mut memory), Ok(BTreeMap::new()));
    match tables::calls(&mut memory) {
        Ok(found) => assert_eq!(found, BTreeMap::new()),
        Err(reason) => eprintln!("SKIPPED integrity-sound: system calls: {reason}"),
    }
}

#[test]
fn a_call_that_leads_elsewhere_is_found() {
    let Some((_bench, mut memory)) = memory("integrity-calls") else {
        return;
    };
    let Some(table) = memory.symbols.tables.get("sys_call_table").cloned() else {
        eprintln!("SKIPPED integrity-calls: the kernel does not list its table");
        return;
    };
    let number = u64::try_from(libc::SYS_getdents64).unwrap();
    let function = memory.pointers(table.start + 8 * number, 1).unwrap()[0];
    // The kernel's own, and no call's any more.
    memory.symbols.calls.retain(|call| *call != function);
    let object = format!("sys_call_table[{number}]");
    let found = tables::calls(&mut memory).unwrap();
    assert!(
        found.len() <= 3,
        "the same function in other tables: {found:?}"
    );
    assert!(
        found[&object].contains("in the kernel's own code"),
        "{found:?}"
    );
    // Not its own, either.
    memory.symbols.text.end = function;
    let found = tables::calls(&mut memory).unwrap();
    assert!(
        found[&object].contains("outside the kernel's own code"),
        "{found:?}"
    );
    // A table that begins with something else.
    memory.symbols.calls.push(function);
    memory.symbols.calls.sort_unstable();
    assert_eq!(tables::calls(&mut memory).unwrap(), BTreeMap::new());
    let before = table.start - 8..table.end;
    memory.symbols.tables = BTreeMap::from([("sys_call_table", before)]);
    let found = tables::calls(&mut memory).unwrap();
    assert!(found.contains_key("sys_call_table[0]"), "{found:?}");
    // Nowhere is anything to be read.
    memory.symbols.tables = BTreeMap::from([("sys_call_table", 8..16)]);
    let reason = tables::calls(&mut memory).unwrap_err();
    assert!(reason.contains("sys_call_table: "), "{reason}");
}

#[test]
fn a_function_of_proc_that_leads_elsewhere_is_found() {
    let Some((_bench, mut memory)) = memory("integrity-proc") else {
        return;
    };
    let sound = memory.symbols.clone();
    for (function, object) in [
        ("proc_root_readdir", "/proc file_operations iterate_shared"),
        ("proc_root_lookup", "/proc inode_operations lookup"),
        (
            "proc_tgid_base_readdir",
            "/proc/PID file_operations iterate_shared",
        ),
        ("proc_tgid_base_lookup", "/proc/PID inode_operations lookup"),
        ("tcp4_seq_show", "/proc/net/tcp seq_operations show"),
        ("udp4_seq_show", "/proc/net/udp seq_operations show"),
    ] {
        // Another one of the kernel's.
        let addresses = memory.symbols.functions.get_mut(function);
        let addresses = addresses.unwrap_or_else(|| panic!("{function} is not listed"));
        addresses.iter_mut().for_each(|address| *address += 16);
        let found = tables::of_proc(&mut memory).unwrap();
        let [(name, detail)] = &Vec::from_iter(found)[..] else {
            panic!("{function}: not one finding")
        };
        assert_eq!(name, object);
        assert!(
            detail.starts_with(&format!("expected {function}; found _stext+")),
            "{detail}"
        );
        memory.symbols = sound.clone();
    }
    // Code of nobody's, wherever a structure names it.
    memory.symbols.text = 0..1;
    let found = tables::of_proc(&mut memory).unwrap();
    assert!(found.len() > 6, "{found:?}");
    assert!(
        found.values().all(|detail| detail.contains("outside")),
        "{found:?}"
    );
}
