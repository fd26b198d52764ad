//! The pages of the program that only its start needed.
//!
//! The kernel side lies in the program, and a good part of its code runs once. Both stay mapped after the start, though
//! nobody looks at them again: a third of what the agent takes. What is given back is read from the file again if it is needed.

use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;

use super::OBJECT;

/// Gives them back: bytes that are no longer mapped to be at hand.
///
/// # Errors
/// `/proc/self` cannot be read, or the kernel refuses.
pub fn give_back() -> io::Result<usize> {
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?;
    let page = page.and_then(|page| usize::try_from(page).ok());
    let page = page.ok_or_else(|| io::Error::other("no page size is known"))?;
    let object = OBJECT.bytes.as_ptr_range();
    let first = (object.start as usize).next_multiple_of(page);
    let mut ranges = code(
        &fs::read_to_string("/proc/self/maps")?,
        fs::metadata("/proc/self/exe")?.ino(),
    );
    ranges.push(first..(object.end as usize) / page * page);
    let mut bytes = 0;
    for range in ranges {
        if !range.is_empty() {
            drop_pages(&range)?;
            bytes += range.len();
        }
    }
    Ok(bytes)
}

/// Where the code of this file is mapped: nothing writes there, so the file has all of it.
fn code(maps: &str, inode: u64) -> Vec<Range<usize>> {
    let of = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (from, to) = words.next()?.split_once('-')?;
        let range = usize::from_str_radix(from, 16).ok()?..usize::from_str_radix(to, 16).ok()?;
        let permissions = words.next()?;
        let found: u64 = words.nth(2)?.parse().ok()?;
        (permissions == "r-xp" && found == inode).then_some(range)
    };
    maps.lines().filter_map(of).collect()
}

#[expect(unsafe_code, reason = "tells the kernel about memory")]
fn drop_pages(range: &Range<usize>) -> io::Result<()> {
    // SAFETY: whole pages of a private mapping of the program's file to which nothing was written (code, and a constant that
    // needs no relocation): what is read there next comes from the file and is the same.
    let result = unsafe {
        libc::madvise(
            range.start as *mut libc::c_void,
            range.len(),
            libc::MADV_DONTNEED,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_the_program_is_named() {
        let maps = "\
55d0a0000000-55d0a0100000 r--p 00000000 fe:00 77 /usr/bin/sumun-agent
55d0a0100000-55d0a0200000 r-xp 00100000 fe:00 77 /usr/bin/sumun-agent
55d0a0200000-55d0a0300000 rw-p 00200000 fe:00 77 /usr/bin/sumun-agent
7f0000000000-7f0000001000 r-xp 00000000 fe:00 78 /usr/lib/libc.so.6
7f0000002000-7f0000003000 r-xp 00000000 00:00 0 [vdso]
";
        let found = code(maps, 77);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0], 0x55d0_a010_0000..0x55d0_a020_0000);
    }

    #[test]
    fn what_was_given_back_is_still_there() {
        let before: u64 = OBJECT.bytes.iter().map(|byte| u64::from(*byte)).sum();
        let bytes = give_back().expect("the kernel takes it");
        assert!(bytes > OBJECT.bytes.len() / 2, "{bytes}");
        let after: u64 = OBJECT.bytes.iter().map(|byte| u64::from(*byte)).sum();
        assert_eq!(before, after);
    }
}
