//! Where the kernel's own functions and tables lie, as its list of symbols says.

use std::collections::BTreeMap;
use std::ops::Range;

/// Tables of system calls: native, 32-bit, x32. Which of them there are depends on processor and kernel: of x86, kernels that
/// have the mitigation of April 2024 call by a switch, and keep the native one to name calls.
pub const TABLES: [&str; 4] = [
    "sys_call_table",
    "ia32_sys_call_table",
    "x32_sys_call_table",
    "compat_sys_call_table",
];

/// Functions by which `/proc` lists and finds processes, and lists sockets.
pub const FUNCTIONS: [&str; 6] = [
    "proc_root_readdir",
    "proc_root_lookup",
    "proc_tgid_base_readdir",
    "proc_tgid_base_lookup",
    "tcp4_seq_show",
    "udp4_seq_show",
];

/// What of the kernel's list of symbols is of use to look at its tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbols {
    /// The kernel's own code, without that of modules.
    pub text: Range<u64>,
    /// Those of [`TABLES`] that it has, and lists, each up to the next symbol.
    pub tables: BTreeMap<&'static str, Range<u64>>,
    /// Addresses of functions that are named like system calls, sorted.
    pub calls: Vec<u64>,
    /// Those of [`FUNCTIONS`] that it lists: more than one address where a compiler has put a jump before it.
    pub functions: BTreeMap<&'static str, Vec<u64>>,
}

impl Symbols {
    /// Reads the text of `/proc/kallsyms`.
    ///
    /// # Errors
    /// It shows no addresses; for people.
    pub fn parse(kallsyms: &str) -> Result<Self, String> {
        let (mut start, mut end) = (0, 0);
        let mut symbols = Self {
            text: 0..0,
            tables: BTreeMap::new(),
            calls: Vec::new(),
            functions: BTreeMap::new(),
        };
        // The table that has just begun: symbols are listed in the order of their addresses.
        let mut begun: Option<(&'static str, u64)> = None;
        for line in kallsyms.lines() {
            let mut words = line.split_ascii_whitespace();
            // Modules' symbols have a fourth word.
            let (Some(address), Some(kind), Some(name), None) =
                (words.next(), words.next(), words.next(), words.next())
            else {
                continue;
            };
            let address = u64::from_str_radix(address, 16).unwrap_or(0);
            if address == 0 {
                continue;
            }
            if let Some((table, from)) = begun.take_if(|(_, from)| *from < address) {
                symbols.tables.insert(table, from..address);
            }
            // What a compiler has made of a function has more behind a dot.
            let bare = name.split('.').next().unwrap_or_default();
            let known = |names: &[&'static str]| names.iter().copied().find(|one| *one == bare);
            match name {
                "_stext" => start = address,
                "_etext" => end = address,
                _ if !matches!(kind, "t" | "T" | "w" | "W") => {
                    begun = known(&TABLES).map(|table| (table, address)).or(begun);
                }
                _ if is_call(bare) => symbols.calls.push(address),
                // A part of it (`.cold`, `.part.0`) is not what is called.
                _ if is_whole(&name[bare.len()..]) => {
                    if let Some(function) = known(&FUNCTIONS) {
                        symbols.functions.entry(function).or_default().push(address);
                    }
                }
                _ => (),
            }
        }
        if start == 0 || end <= start {
            return Err("/proc/kallsyms shows no addresses: that needs CAP_SYSLOG, and kernel.kptr_restrict below 2".into());
        }
        symbols.text = start..end;
        symbols.calls.sort_unstable();
        symbols.calls.dedup();
        Ok(symbols)
    }
}

/// True if what follows the name of a function leaves it what is called by that name: nothing, or what Clang adds to local ones and to the jumps of its
/// first control-flow integrity.
fn is_whole(rest: &str) -> bool {
    let added = [".llvm.", ".__uniq.", ".cfi"];
    rest.is_empty() || added.iter().any(|added| rest.starts_with(added))
}

/// True for the function of a system call: `__x64_sys_kill`, `__ia32_compat_sys_execve`, `__arm64_sys_ni_syscall`, `sys_ni_syscall`.
fn is_call(name: &str) -> bool {
    let mut rest = name;
    for before in ["__x64_", "__ia32_", "__x32_", "__arm64_"] {
        rest = rest.strip_prefix(before).unwrap_or(rest);
    }
    rest.strip_prefix("compat_")
        .unwrap_or(rest)
        .starts_with("sys_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_symbols_are_taken_and_no_modules() {
        let text = "\
ffffffff81000000 T _stext
ffffffff81000010 T __x64_sys_kill
ffffffff81000020 T __ia32_compat_sys_execve
ffffffff81000020 t __ia32_compat_sys_execve_too
ffffffff81000030 T __do_sys_kill
ffffffff81000038 t proc_root_readdir.cold
ffffffff81000040 t proc_root_readdir.llvm.123
ffffffff81000048 t proc_root_readdir.llvm.123.cfi_jt
ffffffff81000050 t tcp4_seq_show
ffffffff81000058 t tcp4_seq_show.part.0
ffffffff81000059 t proc_root_lookup.cold
ffffffffc0000050 t udp4_seq_show\t[rootkit]
ffffffffc0000060 t __x64_sys_kill\t[rootkit]
ffffffff82000000 T _etext
ffffffff82400000 D sys_call_table
ffffffff82400000 D sys_call_table_too
ffffffff82400e00 R ia32_sys_call_table
ffffffff82401c00 t x32_sys_call_table
broken
";
        let symbols = Symbols::parse(text).expect("addresses");
        assert_eq!(symbols.text, 0xffff_ffff_8100_0000..0xffff_ffff_8200_0000);
        let tables = BTreeMap::from([
            (
                "sys_call_table",
                0xffff_ffff_8240_0000..0xffff_ffff_8240_0e00,
            ),
            (
                "ia32_sys_call_table",
                0xffff_ffff_8240_0e00..0xffff_ffff_8240_1c00,
            ),
        ]);
        assert_eq!(symbols.tables, tables);
        let calls = [0xffff_ffff_8100_0010, 0xffff_ffff_8100_0020];
        assert_eq!(symbols.calls, calls);
        let functions = BTreeMap::from([
            (
                "proc_root_readdir",
                vec![0xffff_ffff_8100_0040, 0xffff_ffff_8100_0048],
            ),
            ("tcp4_seq_show", vec![0xffff_ffff_8100_0050]),
        ]);
        assert_eq!(symbols.functions, functions);
        let hidden = |line: &str| format!("{:016}{}\n", 0, line.get(16..).unwrap_or_default());
        let hidden: String = text.lines().map(hidden).collect();
        for text in ["", hidden.as_str()] {
            let reason = Symbols::parse(text).expect_err("no addresses");
            assert!(reason.contains("CAP_SYSLOG"), "{reason}");
        }
    }
}
