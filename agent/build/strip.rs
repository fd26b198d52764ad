//! Takes out of the kernel side's object what only a debugger reads: most of what the linker writes.
//!
//! The types (`.BTF`) and the functions' (`.BTF.ext`) stay. The source lines of instructions, which the kernel shows in its
//! verifier's log, go: the agent would hold them for each program for as long as it runs, and the kernel, too.
//! A section keeps its number, so that symbols and relocations stay as they are.

use std::ops::Range;

// include/uapi/linux/elf.h
const SECTIONS_AT: usize = 0x28;
const SECTIONS: usize = 0x3c;
const NAMES: usize = 0x3e;
const HEADER: usize = 64;
const SHT_NULL: u32 = 0;
const SHT_NOBITS: u32 = 8;
// Fields of a section's header.
const NAME: usize = 0;
const TYPE: usize = 4;
const OFFSET: usize = 24;
const SIZE: usize = 32;
const ALIGN: usize = 48;
// Fields of the header of `.BTF.ext`, see include/uapi/linux/btf.h and the kernel's Documentation/bpf/btf.rst.
const EXT_HEADER: usize = 4;
const LINES_AT: usize = 16;
const LINES: usize = 20;
const FIELDS_AT: usize = 24;
const FIELDS: usize = 28;

/// The object without it; `None` if it is no 64-bit little-endian ELF file as this expects it.
pub fn strip(elf: &[u8]) -> Option<Vec<u8>> {
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = long(elf, SECTIONS_AT)?;
    let count = usize::from(short(elf, SECTIONS)?);
    let headers = elf.get(table..table.checked_add(count * HEADER)?)?;
    let mut headers: Vec<Vec<u8>> = headers.chunks(HEADER).map(<[u8]>::to_vec).collect();
    let names = contents(elf, headers.get(usize::from(short(elf, NAMES)?))?)?.to_vec();
    let mut out = elf.get(..HEADER)?.to_vec();
    for header in &mut headers {
        let name = names.get(word(header, NAME)? as usize..)?;
        let name = name.split(|byte| *byte == 0).next()?;
        let unread = [&b".debug"[..], b".rel.debug", b".rel.BTF"];
        if unread.iter().any(|unread| name.starts_with(unread)) {
            // All of a header is zero where there is no section.
            header.fill(0);
            continue;
        }
        if matches!(word(header, TYPE)?, SHT_NULL | SHT_NOBITS) {
            continue;
        }
        let mut data = contents(elf, header)?.to_vec();
        if name == b".BTF.ext" {
            without_lines(&mut data)?;
        }
        align(&mut out, long(header, ALIGN)?);
        put(
            header,
            OFFSET..OFFSET + 8,
            &(out.len() as u64).to_le_bytes(),
        )?;
        put(header, SIZE..SIZE + 8, &(data.len() as u64).to_le_bytes())?;
        out.extend(data);
    }
    align(&mut out, 8);
    let table = (out.len() as u64).to_le_bytes();
    put(&mut out, SECTIONS_AT..SECTIONS_AT + 8, &table)?;
    out.extend(headers.concat());
    Some(out)
}

/// They are the last part: the linker writes no relocations for fields of the kernel's types.
fn without_lines(ext: &mut Vec<u8>) -> Option<()> {
    let lines_at = word(ext, LINES_AT)?;
    let from = word(ext, EXT_HEADER)? as usize + lines_at as usize;
    if from + word(ext, LINES)? as usize != ext.len() || word(ext, FIELDS)? != 0 {
        return None;
    }
    ext.truncate(from);
    put(ext, LINES..LINES + 4, &0_u32.to_le_bytes())?;
    // Of no length, and yet it has to lie inside.
    put(ext, FIELDS_AT..FIELDS_AT + 4, &lines_at.to_le_bytes())
}

fn contents<'elf>(elf: &'elf [u8], header: &[u8]) -> Option<&'elf [u8]> {
    let from = long(header, OFFSET)?;
    elf.get(from..from.checked_add(long(header, SIZE)?)?)
}

fn align(out: &mut Vec<u8>, to: usize) {
    out.resize(out.len().next_multiple_of(to.max(1)), 0);
}

fn put(bytes: &mut [u8], at: Range<usize>, value: &[u8]) -> Option<()> {
    bytes.get_mut(at)?.copy_from_slice(value);
    Some(())
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    let value = bytes.get(at..at + 2)?.try_into().ok()?;
    Some(u16::from_le_bytes(value))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let value = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_le_bytes(value))
}

fn long(bytes: &[u8], at: usize) -> Option<usize> {
    let value = bytes.get(at..at + 8)?.try_into().ok()?;
    usize::try_from(u64::from_le_bytes(value)).ok()
}
