//! Functions of the kernel that lead somewhere else: by ftrace, which is how rootkits take them over today, and probes on
//! those that they take.

use std::fs::File;
use std::io::{self, Read as _};

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
    "compat_filldir",
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
            Ok(text) => return Ok(of_functions(&text)),
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
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// kernel/trace/ftrace.c, `t_show`: `NAME (COUNT) FLAGS tramp: …`, and more lines that begin with a tab. `I`: whoever is
/// called from there says where it goes on; `D`: something is called without ftrace.
fn of_functions(text: &str) -> Vec<Hooked> {
    let mut found = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let mut rest = Vec::new();
        while let Some(more) = lines.next_if(|next| next.starts_with([' ', '\t'])) {
            rest.push(more);
        }
        let Some((name, said)) = parted(line) else {
            continue;
        };
        let flags = said.split_whitespace().take_while(|word| word.len() == 1);
        let (mut elsewhere, mut direct) = (false, false);
        for flag in flags {
            elsewhere |= flag == "I";
            direct |= flag == "D";
        }
        let all = [said]
            .into_iter()
            .chain(rest)
            .map(str::trim)
            .collect::<Vec<_>>()
            .join(" ");
        // A live patch leads elsewhere by its own handler, a BPF program hangs on a trampoline of its own.
        let patch = all.contains("klp_ftrace_handler");
        let called = all.split("direct-->").nth(1);
        let bpf = called.is_none_or(|called| called.trim_start().starts_with("bpf_trampoline_"));
        // Where both can be (6.0), what is a module's is not BPF's; before that, `I` comes with `D`.
        let trampoline = direct && called.is_some() && bpf && !all.contains(" [");
        if elsewhere && !patch && !trampoline || direct && !bpf {
            found.push(Hooked {
                function: name.to_owned(),
                detail: short(&all),
            });
        }
    }
    found
}

/// A line in front of and behind its count: `vfs_read (1) R I`; of a module's function `read [nfs] (1)`.
fn parted(line: &str) -> Option<(&str, &str)> {
    let mut from = 0;
    while let Some(at) = line.get(from..)?.find(" (") {
        let (name, count) = (line.get(..from + at)?, line.get(from + at + 2..)?);
        if let Some((digits, said)) = count.split_once(')')
            && !digits.is_empty()
            && digits.bytes().all(|byte| byte.is_ascii_digit())
        {
            return Some((name, said));
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
    let bare = name
        .strip_prefix("__x64_")
        .or_else(|| name.strip_prefix("__ia32_"))
        .or_else(|| name.strip_prefix("__arm64_"))
        .or_else(|| name.strip_prefix("__se_"))
        .unwrap_or(name);
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

    #[test]
    fn what_leads_elsewhere_is_told_from_what_watches() {
        let text = "\
vfs_open (1)         \ttramp: 0xffffffffc0a00000 (function_trace_call+0x0/0x100) ->function_trace_call+0x0/0x100
security_file_open (1) R   D   M \ttramp: ftrace_regs_caller+0x0/0x6a (call_direct_funcs+0x0/0x20)
\tdirect-->bpf_trampoline_6442475653_0+0x0/0xb4
__x64_sys_kill (1) R I     \ttramp: 0xffffffffc0b2c000 (fh_ftrace_thunk+0x0/0x40 [rootkit]) ->ftrace_ops_assist_func+0x0/0x100
cmdline_proc_show (1) R I     \ttramp: 0xffffffffc0b00000 (klp_ftrace_handler+0x0/0x1a0) ->klp_ftrace_handler+0x0/0x1a0
tcp4_seq_show (1)     D   \ttramp: ftrace_caller+0x0/0x68
\tdirect-->my_show+0x0/0x40 [rootkit]
both (2) R I D   \ttramp: 0xffffffffc0b2d000 (fh+0x0/0x40 [rootkit]) ->ftrace_ops_assist_func+0x0/0x100
\tdirect-->bpf_trampoline_1_0+0x0/0xb4
old (1) R I D   \ttramp: ftrace_regs_caller+0x0/0x6a (call_direct_funcs+0x0/0x20)
\tdirect-->bpf_trampoline_2_0+0x0/0xb4
read [nfs] (2) R I   \ttramp: 0xffffffffc0b2d000 (fh+0x0/0x40 [other])
broken line without a count
";
        let found = of_functions(text);
        assert_eq!(
            names(&found),
            ["__x64_sys_kill", "tcp4_seq_show", "both", "read [nfs]"]
        );
        assert!(found[0].detail.contains("fh_ftrace_thunk"), "{found:?}");
        assert!(found[1].detail.contains("my_show"), "{found:?}");
    }

    #[test]
    fn probes_on_what_hides_are_told() {
        let text = "\
ffffffff812b1f90  k  filldir64+0x0    [FTRACE]
ffffffff812b1f91  r  __x64_sys_getdents64+0x0    [DISABLED]
ffffffff812b1f92  r  __arm64_sys_getdents64+0x4
ffffffff812b1f93  k  vfs_read+0x0
k filldir
";
        assert_eq!(
            names(&of_probes(text)),
            ["filldir64", "__arm64_sys_getdents64"]
        );
    }

    #[test]
    fn arbitrary_lists_never_panic() {
        bolero::check!().for_each(|bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes);
            for hook in of_functions(&text).iter().chain(&of_probes(&text)) {
                assert!(hook.detail.chars().count() <= DETAIL_MAX);
                assert!(text.contains(&hook.function));
            }
        });
    }
}
