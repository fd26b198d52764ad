//! Functions of the kernel that lead somewhere else: by ftrace, which is how rootkits take them over today, and probes on
//! those that they take.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::PathBuf;

/// Where the functions are listed that something is called from: tracefs by itself, or below debugfs.
const FUNCTIONS: [&str; 2] = [
    "/sys/kernel/tracing/enabled_functions",
    "/sys/kernel/debug/tracing/enabled_functions",
];
/// Where probes are.
const PROBES: &str = "/sys/kernel/debug/kprobes/list";
/// Bytes that are read of either: with a tracer on all functions there are tens of thousands of lines.
const LIST_MAX: u64 = 16 << 20;
/// Longest text of a detail, in characters.
const DETAIL_MAX: usize = 240;

/// Functions by which is hidden or let through: a probe on one of them is told. Those of calls have the name of the
/// architecture before them.
const WATCHED: &[&str] = &[
    "filldir",
    "filldir64",
    "iterate_dir",
    "proc_pid_readdir",
    "proc_pid_lookup",
    "sys_getdents",
    "sys_getdents64",
    "sys_kill",
    "tcp4_seq_show",
    "tcp6_seq_show",
    "udp4_seq_show",
    "udp6_seq_show",
    "kallsyms_lookup_name",
    "find_task_by_vpid",
    "commit_creds",
    "prepare_kernel_cred",
    "audit_log_start",
    "security_bpf",
    "security_file_open",
    "security_inode_getattr",
    "bpf_ringbuf_output",
    "bpf_perf_event_output",
];

/// A function, and what is known of what it leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hooked {
    /// Its name.
    pub function: String,
    /// What the kernel says of it.
    pub detail: String,
}

/// Functions that ftrace leads to somewhere else than its own, a live patch's or a BPF program's.
///
/// # Errors
/// The kernel does not list them, or the list is not mounted.
pub fn redirected() -> Result<Vec<Hooked>, String> {
    for path in FUNCTIONS {
        match read(path) {
            Ok(text) => return Ok(of_functions(&text, &patched())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("{path} cannot be read: {error}")),
        }
    }
    Err("there is no enabled_functions: tracefs is not mounted, or the kernel has no dynamic ftrace".into())
}

/// Probes on functions that rootkits probe. Tools that watch the host probe some of them, too.
///
/// # Errors
/// The kernel does not list them, or debugfs is not mounted.
pub fn probed() -> Result<Vec<Hooked>, String> {
    match read(PROBES) {
        Ok(text) => Ok(of_probes(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(
            "there is no list of kprobes: debugfs is not mounted, or the kernel has none".into(),
        ),
        Err(error) => Err(format!("{PROBES} cannot be read: {error}")),
    }
}

fn read(path: &str) -> io::Result<String> {
    let mut text = Vec::new();
    File::open(path)?.take(LIST_MAX).read_to_end(&mut text)?;
    if text.len() as u64 == LIST_MAX {
        return Err(io::Error::other(format!(
            "it has more than {LIST_MAX} bytes"
        )));
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// kernel/trace/ftrace.c, `t_show`: `NAME (COUNT) FLAGS tramp: …`, and more lines that begin with a tab. `I`: whoever is
/// called from there says where it goes on; `D`: something is called without ftrace. Who is called has the form of `%pS`,
/// `SYMBOL+OFFSET/SIZE [MODULE]`, and is a bare address if the kernel knows no symbol. Of several it names none but the one
/// that is called without ftrace; some processors name nobody.
fn of_functions(text: &str, patched: &HashSet<String>) -> Vec<Hooked> {
    let hooks = listed(text);
    // Before 6.0 what BPF calls without ftrace has `I` by itself.
    let bpf_says_i = hooks
        .iter()
        .any(|hook| hook.count == 1 && hook.elsewhere && hook.is_bpf());
    let mut found = Vec::new();
    for hook in hooks {
        let bare = hook.name.split(' ').next().unwrap_or_default();
        let patch = hook.count == 1 && hook.calls.contains(&"klp_ftrace_handler");
        let bpf = hook.is_bpf() && bpf_says_i;
        // Nobody but a module, or what has no symbol, is called in its own name: a tracer of the kernel's, a live patch and
        // BPF are not. Without `I` it can lead elsewhere as well.
        let detail = if hook.is_foreign() {
            short(&hook.said)
        } else if hook.elsewhere && !patch && !bpf && !patched.contains(bare) {
            short(&format!(
                "it leads elsewhere, and is no live patch; whose it is the kernel may not say: {}",
                hook.said
            ))
        } else {
            continue;
        };
        found.push(Hooked {
            function: hook.name.to_owned(),
            detail,
        });
    }
    found
}

/// A function from which something is called.
#[derive(Debug)]
struct Hook<'a> {
    name: &'a str,
    /// How many are called.
    count: u64,
    /// One of them says where it goes on.
    elsewhere: bool,
    /// All that the kernel says of it.
    said: String,
    /// Symbols of those that are called by ftrace, as far as they are named.
    calls: Vec<&'a str>,
    /// And of the one without.
    direct: Option<&'a str>,
}

impl Hook<'_> {
    /// True if some code is called that is a module's, nobody's, or by another way than the kernel's own.
    fn is_foreign(&self) -> bool {
        // No symbol of the kernel's or of BPF's has a module behind it.
        let of_module = self.said.contains(" [");
        let of_nobody = self.calls.iter().any(|symbol| symbol.starts_with("0x"));
        of_module || of_nobody || self.direct.is_some() && !self.is_bpf()
    }

    fn is_bpf(&self) -> bool {
        let direct = self.direct.unwrap_or_default();
        direct.starts_with("bpf_trampoline_") && !self.said.contains(" [")
    }
}

/// The lines of the list.
fn listed(text: &str) -> Vec<Hook<'_>> {
    let mut hooks = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let mut all = Vec::new();
        let head = parted(line);
        all.extend(head.map(|(_, _, said)| said));
        while let Some(more) = lines.next_if(|next| next.starts_with([' ', '\t'])) {
            all.push(more);
        }
        let Some((name, count, said)) = head else {
            continue;
        };
        let mut flags = said.split_whitespace().take_while(|word| word.len() == 1);
        let elsewhere = flags.any(|flag| flag == "I");
        let (mut calls, mut direct) = (Vec::new(), None);
        for part in &all {
            // In brackets behind where it is called from, which is made for it and has no symbol; and behind arrows.
            calls.extend(part.split('(').skip(1).map(symbol));
            for (at, arrow) in part.match_indices("->") {
                let (before, after) = (part.get(..at), part.get(at + arrow.len()..));
                let called = symbol(after.unwrap_or_default());
                match before.is_some_and(|before| before.ends_with("direct-")) {
                    true => direct = Some(called),
                    false => calls.push(called),
                }
            }
        }
        hooks.push(Hook {
            name,
            count,
            elsewhere,
            said: all
                .iter()
                .map(|part| part.trim())
                .collect::<Vec<_>>()
                .join(" "),
            calls,
            direct,
        });
    }
    hooks
}

/// The name at the begin of what `%pS` writes.
fn symbol(text: &str) -> &str {
    let ends = |c: char| matches!(c, '+' | ')') || c.is_whitespace();
    text.split(ends).next().unwrap_or_default()
}

/// Functions of live patches: `/sys/kernel/livepatch/PATCH/OBJECT/FUNCTION,POSITION`. Without live patches there are none.
fn patched() -> HashSet<String> {
    let below = |path: PathBuf| -> Vec<PathBuf> {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let patches = below("/sys/kernel/livepatch".into()).into_iter();
    let functions = patches.flat_map(below).flat_map(below);
    let names = functions.filter_map(|path| {
        let (name, _) = path.file_name()?.to_str()?.rsplit_once(',')?;
        Some(name.to_owned())
    });
    names.collect()
}

/// A line in front of its count, that, and behind it: `vfs_read (1) R I`; of a module's function `read [nfs] (1)`.
fn parted(line: &str) -> Option<(&str, u64, &str)> {
    let mut from = 0;
    while let Some(at) = line.get(from..)?.find(" (") {
        let (name, count) = (line.get(..from + at)?, line.get(from + at + 2..)?);
        if let Some((digits, said)) = count.split_once(')')
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && let Ok(count) = digits.parse()
        {
            return Some((name, count, said));
        }
        from += at + 2;
    }
    None
}

/// kernel/kprobes.c, `report_probe`: `ADDRESS TYPE SYMBOL+OFFSET  [MODULE][FLAGS]`.
fn of_probes(text: &str) -> Vec<Hooked> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(_), Some(kind), Some(place)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let name = place.split('+').next().unwrap_or_default();
        if kind.len() != 1 || !is_watched(name) || line.contains("[DISABLED]") {
            continue;
        }
        found.push(Hooked {
            function: name.to_owned(),
            detail: short(line),
        });
    }
    found
}

fn is_watched(name: &str) -> bool {
    // What a compiler has made of one has more behind a dot.
    let mut bare = name.split('.').next().unwrap_or_default();
    for before in ["__x64_", "__ia32_", "__arm64_", "__se_", "__do_", "compat_"] {
        bare = bare.strip_prefix(before).unwrap_or(bare);
    }
    WATCHED.contains(&bare)
}

/// At a length that a row has room for, on one line.
fn short(text: &str) -> String {
    let words: Vec<_> = text.split_whitespace().collect();
    words.join(" ").chars().take(DETAIL_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(found: &[Hooked]) -> Vec<&str> {
        found.iter().map(|hook| hook.function.as_str()).collect()
    }

    /// Those that are found, with these functions of live patches.
    fn hooked(text: &str, patched: &[&str]) -> Vec<Hooked> {
        let patched = patched.iter().map(|name| (*name).to_owned()).collect();
        of_functions(text, &patched)
    }

    /// As a kernel from 6.0 on writes them.
    const LINES: &str = "\
vfs_open (1)         \ttramp: 0xffffffffc0a00000 (function_trace_call+0x0/0x100) ->function_trace_call+0x0/0x100
security_file_open (1) R   D   M \ttramp: ftrace_regs_caller+0x0/0x6a (call_direct_funcs+0x0/0x20)
\tdirect-->bpf_trampoline_6442475653_0+0x0/0xb4
__x64_sys_kill (1) R I     \ttramp: 0xffffffffc0b2c000 (fh_ftrace_thunk+0x0/0x40 [rootkit]) ->ftrace_ops_assist_func+0x0/0x100
cmdline_proc_show (1) R I     \ttramp: 0xffffffffc0b00000 (klp_ftrace_handler+0x0/0x1a0) ->klp_ftrace_handler+0x0/0x1a0
tcp4_seq_show (1)     D   \ttramp: ftrace_caller+0x0/0x68
\tdirect-->my_show+0x0/0x40 [rootkit]
without_flag (1) R       \ttramp: 0xffffffffc0b2d000 (fh+0x0/0x40 [rootkit]) ->ftrace_ops_assist_func+0x0/0x100
by_name (1) R I     \ttramp: 0xffffffffc0b2d000 (klp_ftrace_handler+0x0/0x40 [rootkit]) ->klp_ftrace_handler+0x0/0x40 [rootkit]
by_part (1) R I     \ttramp: 0xffffffffc0b2d000 (x_klp_ftrace_handler+0x0/0x40) ->x_klp_ftrace_handler+0x0/0x40
like_bpf (1)     D   \ttramp: ftrace_caller+0x0/0x68
\tdirect-->bpf_trampoline_1_0+0x0/0x40 [rootkit]
nobodys (1) R       \ttramp: 0xffffffffc0b2d000 (0xffffffffc0c00000) ->0xffffffffc0c00000
with_bpf (2) R I D   \t ->ftrace_ops_list_func+0x0/0x200
\tdirect-->bpf_trampoline_1_0+0x0/0xb4
two_tracers (2) R       \t ->ftrace_ops_list_func+0x0/0x200
patched_and_traced (2) R I     \t ->ftrace_ops_list_func+0x0/0x200
by_ops (1)       O   \tops: 0xffff800081234560 (fprobe_handler+0x0/0x100)
of_ops (1) R I   O   \tops: 0xffff800081234568 (fh+0x0/0x40 [rootkit])
read [nfs] (2) R I   \t ->ftrace_ops_list_func+0x0/0x200
nobody_named (1) R I
broken line without a count
";

    #[test]
    fn what_leads_elsewhere_is_told_from_what_watches() {
        let found = hooked(LINES, &["patched_and_traced"]);
        assert_eq!(
            names(&found),
            [
                "__x64_sys_kill",
                "tcp4_seq_show",
                "without_flag",
                "by_name",
                "by_part",
                "like_bpf",
                "nobodys",
                "with_bpf",
                "of_ops",
                "read [nfs]",
                "nobody_named"
            ]
        );
        assert!(found[0].detail.contains("fh_ftrace_thunk"), "{found:?}");
        assert!(found[1].detail.contains("my_show"), "{found:?}");
        // A patch that is also traced is known by the list of patches alone, as is one on a processor that names nobody.
        let found = hooked(LINES, &["nobody_named", "read", "with_bpf"]);
        let found = names(&found);
        assert!(found.contains(&"patched_and_traced"), "{found:?}");
        assert!(!found.contains(&"nobody_named") && !found.contains(&"read [nfs]"));
        // A patch does not excuse a module that is called, too.
        let found = hooked(LINES, &["by_name", "__x64_sys_kill"]);
        assert!(names(&found).contains(&"by_name") && names(&found).contains(&"__x64_sys_kill"));
    }

    #[test]
    fn before_6_0_bpf_leads_elsewhere_by_itself() {
        let text = "\
old (1) R I D   \ttramp: ftrace_regs_caller+0x0/0x6a (call_direct_funcs+0x0/0x20)
\tdirect-->bpf_trampoline_2_0+0x0/0xb4
and_traced (2) R I D   \t ->ftrace_ops_list_func+0x0/0x200
\tdirect-->bpf_trampoline_2_0+0x0/0xb4
__x64_sys_kill (1) R I     \ttramp: 0xffffffffc0b2c000 (fh+0x0/0x40 [rootkit]) ->fh+0x0/0x40 [rootkit]
";
        assert_eq!(names(&hooked(text, &[])), ["__x64_sys_kill"]);
    }

    #[test]
    fn probes_on_what_hides_are_told() {
        let text = "\
ffffffff812b1f90  k  filldir64+0x0    [FTRACE]
ffffffff812b1f91  r  __x64_sys_getdents64+0x0    [DISABLED]
ffffffff812b1f92  r  __arm64_sys_getdents64+0x4
ffffffff812b1f93  k  vfs_read+0x0
ffffffff812b1f94  k  filldir64.isra.0+0x0    [FTRACE]
ffffffff812b1f95  r  __do_sys_getdents64+0x0
ffffffff812b1f96  k  __ia32_compat_sys_getdents+0x0
ffffffff812b1f97  k  compat_filldir+0x4
k filldir
";
        assert_eq!(
            names(&of_probes(text)),
            [
                "filldir64",
                "__arm64_sys_getdents64",
                "filldir64.isra.0",
                "__do_sys_getdents64",
                "__ia32_compat_sys_getdents",
                "compat_filldir"
            ]
        );
    }

    #[test]
    fn arbitrary_lists_never_panic() {
        bolero::check!().for_each(|bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes);
            for hook in hooked(&text, &[]).iter().chain(&of_probes(&text)) {
                assert!(hook.detail.chars().count() <= DETAIL_MAX);
                assert!(text.contains(&hook.function));
            }
        });
    }
}
