//! Programs of a few instructions: the cheapest things that can be executed.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// `exit_group(argc)`: the exit status is the number of arguments (its low byte).
#[cfg(target_arch = "x86_64")]
const CODE: &[u8] = &[
    0x8b, 0x3c, 0x24, // mov edi, [rsp]
    0xb8, 0xe7, 0, 0, 0, // mov eax, 231
    0x0f, 0x05, // syscall
];
/// `exit_group(argc)`.
#[cfg(target_arch = "aarch64")]
const CODE: &[u8] = &[
    0xe0, 0x03, 0x40, 0xf9, // ldr x0, [sp]
    0xc8, 0x0b, 0x80, 0xd2, // mov x8, #94
    0x01, 0x00, 0x00, 0xd4, // svc #0
];
#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;

const BASE: u64 = 0x40_0000;
const HEADERS: u64 = 64 + 56;

/// Writes the program: a static executable of some 130 bytes that ends at
/// once with the number of its arguments (the program's own name included).
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path) -> io::Result<()> {
    write_code(path, CODE)
}

/// Writes a program that forks so often, writes one byte to its standard output when all of them are there, and
/// ends when all of them have: each waits until its standard input has an end. The status is how
/// many could not be made, at most 255.
///
/// # Errors
/// The file cannot be written.
#[cfg(target_arch = "x86_64")]
pub fn write_forks(path: &Path, count: u32) -> io::Result<()> {
    let mut code = vec![0xbb]; // mov ebx, count
    code.extend(count.to_le_bytes());
    code.extend([
        0xb8, 57, 0, 0, 0, 0x0f, 0x05, // fork:  mov eax, 57; syscall
        0x85, 0xc0, // test eax, eax
        0x74, 0x4b, // jz child
        0x78, 0x04, // js told
        0xff, 0xcb, // dec ebx
        0x75, 0xef, // jnz fork
        0x6a, 0x2e, // told:  push '.'
        0xb8, 1, 0, 0, 0, // mov eax, 1 (write)
        0xbf, 1, 0, 0, 0, // mov edi, 1
        0x48, 0x89, 0xe6, // mov rsi, rsp
        0xba, 1, 0, 0, 0, // mov edx, 1
        0x0f, 0x05, // syscall
        0xb8, 61, 0, 0, 0, // wait:  mov eax, 61 (wait4)
        0x48, 0xc7, 0xc7, 0xff, 0xff, 0xff, 0xff, // mov rdi, -1
        0x31, 0xf6, // xor esi, esi
        0x31, 0xd2, // xor edx, edx
        0x4d, 0x31, 0xd2, // xor r10, r10
        0x0f, 0x05, // syscall
        0x85, 0xc0, // test eax, eax
        0x79, 0xe7, // jns wait
        0x81, 0xfb, 0xff, 0, 0, 0, // cmp ebx, 255
        0x76, 0x05, // jbe end
        0xbb, 0xff, 0, 0, 0, // mov ebx, 255
        0xb8, 231, 0, 0, 0, // end:   mov eax, 231 (exit_group)
        0x89, 0xdf, // mov edi, ebx
        0x0f, 0x05, // syscall
        0x31, 0xc0, // child: xor eax, eax (read)
        0x31, 0xff, // xor edi, edi
        0x48, 0x89, 0xe6, // mov rsi, rsp
        0xba, 1, 0, 0, 0, // mov edx, 1
        0x0f, 0x05, // syscall
        0xb8, 231, 0, 0, 0, // mov eax, 231
        0x31, 0xff, // xor edi, edi
        0x0f, 0x05, // syscall
    ]);
    write_code(path, &code)
}

fn write_code(path: &Path, code: &[u8]) -> io::Result<()> {
    let size = HEADERS + code.len() as u64;
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend(2u16.to_le_bytes()); // executable
    file.extend(MACHINE.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    file.extend((BASE + HEADERS).to_le_bytes()); // entry
    file.extend(64u64.to_le_bytes()); // program headers follow
    file.extend(0u64.to_le_bytes()); // no section headers
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes()); // PT_LOAD
    file.extend(5u32.to_le_bytes()); // readable, executable
    for word in [0, BASE, BASE, size, size, 0x1000] {
        file.extend(u64::to_le_bytes(word));
    }
    file.extend(code);
    fs::write(path, file)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    #[test]
    fn it_runs_and_counts_its_arguments() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("tiny");
        super::write(&path).expect("the program is written");
        let status = Command::new(&path)
            .args(["a", "b"])
            .status()
            .expect("it runs");
        assert_eq!(status.code(), Some(3));
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn forks_wait_for_their_end() {
        use std::io::Read;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("forks");
        super::write_forks(&path, 300).expect("the program is written");
        let mut child = Command::new(&path)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("it runs");
        let mut byte = [0];
        let told = child.stdout.as_mut().expect("is piped");
        told.read_exact(&mut byte).expect("it tells");
        let children = format!("/proc/{0}/task/{0}/children", child.id());
        let children = std::fs::read_to_string(children).expect("it has children");
        assert_eq!(children.split_whitespace().count(), 300);
        drop(child.stdin.take());
        assert_eq!(child.wait().expect("it ends").code(), Some(0));
    }
}
