//! The bounds-checked reader of kernel records.
//!
//! Pinned rings can hold records that another build wrote, so nothing here is taken
//! on trust: lengths, kinds and spans are checked, and what does not fit is an error that the
//! pipeline counts and reports as a gap, never a panic.

use sumun_abi::event::cgroup::Cgroup;
use sumun_abi::event::deny::Asked;
use sumun_abi::event::file::{Change, FailedOpen, Names, Open};
use sumun_abi::event::kernel::{Module, Mount, Program, Setting, Setup};
use sumun_abi::event::kind;
use sumun_abi::event::network::{Connection, Datagram, Dns, Socket, UnixConnect};
use sumun_abi::event::privilege::{Control, Credentials, Memory, Reach, Spaces};
use sumun_abi::event::process::{Actor, Exec, Exit, Fork};
use sumun_abi::plain::{Plain, read};
use sumun_abi::record::{Header, LEVELS, RECORD_MAX, RINGS, Span};
use sumun_proto::v1::Kind;

/// Why bytes are not a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Shorter than its header or fixed part says.
    #[error("record of {len} bytes is cut short")]
    Short {
        /// Bytes there are.
        len: usize,
    },
    /// The header's length is not that of the bytes.
    #[error("record of {len} bytes says it has {claimed}")]
    Length {
        /// Bytes there are.
        len: usize,
        /// What the header says.
        claimed: u32,
    },
    /// A kind this build does not know.
    #[error("unknown record kind {0}")]
    Kind(u16),
    /// Ring or level out of range.
    #[error("record of ring {ring}, level {level}")]
    Stream {
        /// Ring.
        ring: u8,
        /// Level.
        level: u8,
    },
    /// A span that does not lie in the tail.
    #[error("a string at {offset}+{len} lies outside its record")]
    Span {
        /// Offset of the span.
        offset: u16,
        /// Length of the span.
        len: u16,
    },
}

/// A record, with its strings still in the ring.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    bytes: &'a [u8],
    /// Its header.
    pub header: Header,
    /// Its fixed part.
    pub body: Body,
}

/// The fixed part by kind.
#[derive(Clone, Copy, Debug)]
pub enum Body {
    /// A fork.
    Fork(Fork),
    /// An exec.
    Exec(Exec),
    /// A process found by the task iterator.
    Task(Exec),
    /// An exit.
    Exit(Exit),
    /// A cgroup was made, renamed or removed.
    Cgroup(Cgroup),
    /// An open.
    Open(Open),
    /// An explicit close after writing.
    CloseWrite(Open),
    /// A file was mapped to be executed.
    Mapped(Open),
    /// A rename.
    Rename(Names),
    /// An unlink or rmdir.
    Unlink(Names),
    /// A TCP connect.
    Connect(Connection),
    /// An accepted TCP connection.
    Accept(Connection),
    /// A change of a file.
    Change(Kind, Change),
    /// A socket was bound or listens.
    OwnEnd(Kind, Connection),
    /// Talk by UDP.
    Datagram(Datagram),
    /// A connect of a Unix socket.
    Unix(UnixConnect),
    /// An unusual socket.
    Socket(Socket),
    /// A DNS message.
    Dns(Dns),
    /// An open that failed.
    FailedOpen(FailedOpen),
    /// A change of credentials.
    Credentials(Kind, Credentials),
    /// A reach into another process.
    Reach(Kind, Reach),
    /// Namespaces made or entered.
    Spaces(Kind, Spaces),
    /// Memory that can hold code.
    Memory(Kind, Memory),
    /// How a process is treated.
    Control(Kind, Control),
    /// A kernel module.
    Module(Kind, Module),
    /// A BPF program.
    Program(Kind, Program),
    /// A mount or a root.
    Mount(Kind, Mount),
    /// Another kernel, or an io_uring.
    Setup(Kind, Setup),
    /// A setting of the kernel.
    Setting(Setting),
    /// A call that rules which deny were asked about.
    Asked(Asked),
}

impl Body {
    /// Who did it; of a cgroup, nobody.
    #[must_use]
    pub fn actor(&self) -> Actor {
        match self {
            Body::Fork(fork) => fork.actor,
            Body::Exec(exec) | Body::Task(exec) => exec.actor,
            Body::Exit(exit) => exit.actor,
            Body::Cgroup(_) => Actor::default(),
            Body::Open(open) | Body::CloseWrite(open) | Body::Mapped(open) => open.actor,
            Body::Rename(names) | Body::Unlink(names) => names.actor,
            Body::Connect(connection) | Body::Accept(connection) | Body::OwnEnd(_, connection) => {
                connection.actor
            }
            Body::Datagram(datagram) => datagram.connection.actor,
            Body::Unix(connect) => connect.actor,
            Body::Socket(socket) => socket.actor,
            Body::Dns(dns) => dns.actor,
            Body::FailedOpen(open) => open.actor,
            Body::Change(_, change) => change.actor,
            Body::Credentials(_, credentials) => credentials.actor,
            Body::Reach(_, reach) => reach.actor,
            Body::Spaces(_, spaces) => spaces.actor,
            Body::Memory(_, memory) => memory.actor,
            Body::Control(_, control) => control.actor,
            Body::Module(_, module) => module.actor,
            Body::Program(_, program) => program.actor,
            Body::Mount(_, mount) => mount.actor,
            Body::Setup(_, setup) => setup.actor,
            Body::Setting(setting) => setting.actor,
            Body::Asked(asked) => asked.actor,
        }
    }
}

impl<'a> Record<'a> {
    /// Reads a record.
    ///
    /// # Errors
    /// When the bytes are not exactly one record of a known kind with all its strings inside.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let header: Header = read(bytes).ok_or(Malformed::Short { len: bytes.len() })?;
        let claimed = header.len;
        if claimed as usize != bytes.len() || bytes.len() > RECORD_MAX {
            return Err(Malformed::Length {
                len: bytes.len(),
                claimed,
            });
        }
        if u32::from(header.ring) >= RINGS || u32::from(header.level) >= LEVELS {
            return Err(Malformed::Stream {
                ring: header.ring,
                level: header.level,
            });
        }
        let body = match header.kind {
            kind::FORK => Body::Fork(fixed(bytes)?),
            kind::EXEC => Body::Exec(fixed(bytes)?),
            kind::TASK => Body::Task(fixed(bytes)?),
            kind::EXIT => Body::Exit(fixed(bytes)?),
            kind::CGROUP_MKDIR | kind::CGROUP_RMDIR | kind::CGROUP_RENAME => {
                Body::Cgroup(fixed(bytes)?)
            }
            kind::OPEN => Body::Open(fixed(bytes)?),
            kind::CLOSE_WRITE => Body::CloseWrite(fixed(bytes)?),
            kind::MAP_EXEC => Body::Mapped(fixed(bytes)?),
            kind::RENAME => Body::Rename(fixed(bytes)?),
            kind::UNLINK => Body::Unlink(fixed(bytes)?),
            kind::CONNECT => Body::Connect(fixed(bytes)?),
            kind::ACCEPT => Body::Accept(fixed(bytes)?),
            kind::ASKED => Body::Asked(fixed(bytes)?),
            kind::OPEN_FAILED => Body::FailedOpen(fixed(bytes)?),
            number => match Kind::try_from(i32::from(number)) {
                Ok(kind) => later(kind, bytes)?,
                Err(_) => return Err(Malformed::Kind(number)),
            },
        };
        let record = Self {
            bytes,
            header,
            body,
        };
        for span in record.spans() {
            record.check(span)?;
        }
        Ok(record)
    }

    /// The bytes of a span of this record.
    #[must_use]
    pub fn text(&self, span: Span) -> &'a [u8] {
        let start = usize::from(span.offset);
        self.bytes
            .get(start..start + usize::from(span.len))
            .unwrap_or_default()
    }

    fn spans(&self) -> Vec<Span> {
        match &self.body {
            Body::Exec(exec) | Body::Task(exec) => vec![exec.exe, exec.cwd, exec.args],
            Body::Cgroup(cgroup) => vec![cgroup.path],
            Body::Open(open) | Body::CloseWrite(open) | Body::Mapped(open) => vec![open.path],
            Body::Rename(names) | Body::Unlink(names) => {
                vec![names.base, names.name, names.to_base, names.to_name]
            }
            Body::Change(_, change) => {
                vec![change.base, change.name, change.to_base, change.to_name]
            }
            Body::FailedOpen(open) => vec![open.base, open.name],
            Body::Unix(connect) => vec![connect.path],
            Body::Dns(dns) => vec![dns.message],
            Body::Reach(_, reach) => vec![reach.exe],
            Body::Memory(_, memory) => vec![memory.path],
            Body::Module(_, module) => vec![module.path, module.parameters],
            Body::Mount(_, mount) => vec![
                mount.source_base,
                mount.source,
                mount.base,
                mount.target,
                mount.fs,
            ],
            Body::Setting(setting) => vec![setting.name, setting.value],
            Body::Asked(asked) => vec![asked.path, asked.to_path],
            Body::Fork(_)
            | Body::Exit(_)
            | Body::Connect(_)
            | Body::Accept(_)
            | Body::OwnEnd(..)
            | Body::Datagram(_)
            | Body::Socket(_)
            | Body::Credentials(..)
            | Body::Spaces(..)
            | Body::Control(..)
            | Body::Program(..)
            | Body::Setup(..) => Vec::new(),
        }
    }

    fn check(&self, span: Span) -> Result<(), Malformed> {
        let (start, len) = (usize::from(span.offset), usize::from(span.len));
        if len == 0 || start >= size_of::<Header>() && start + len <= self.bytes.len() {
            return Ok(());
        }
        Err(Malformed::Span {
            offset: span.offset,
            len: span.len,
        })
    }
}

/// The kinds that several share one layout: their numbers are those of the wire format.
fn later(kind: Kind, bytes: &[u8]) -> Result<Body, Malformed> {
    Ok(match kind {
        Kind::Chmod
        | Kind::Chown
        | Kind::Truncate
        | Kind::Link
        | Kind::Symlink
        | Kind::Setxattr => Body::Change(kind, fixed(bytes)?),
        Kind::Bind | Kind::Listen => Body::OwnEnd(kind, fixed(bytes)?),
        Kind::ConnectUdp => Body::Datagram(fixed(bytes)?),
        Kind::ConnectUnix => Body::Unix(fixed(bytes)?),
        Kind::Socket => Body::Socket(fixed(bytes)?),
        Kind::Dns => Body::Dns(fixed(bytes)?),
        Kind::Setid | Kind::Capset => Body::Credentials(kind, fixed(bytes)?),
        Kind::Ptrace | Kind::ProcessVmReadv | Kind::ProcessVmWritev | Kind::PidfdGetfd => {
            Body::Reach(kind, fixed(bytes)?)
        }
        Kind::Unshare | Kind::Setns => Body::Spaces(kind, fixed(bytes)?),
        Kind::MemfdCreate | Kind::MapWx => Body::Memory(kind, fixed(bytes)?),
        Kind::Prctl | Kind::Userfaultfd => Body::Control(kind, fixed(bytes)?),
        Kind::ModuleLoad | Kind::ModuleUnload => Body::Module(kind, fixed(bytes)?),
        Kind::Bpf => Body::Program(kind, fixed(bytes)?),
        Kind::Mount | Kind::Umount | Kind::PivotRoot | Kind::Chroot => {
            Body::Mount(kind, fixed(bytes)?)
        }
        Kind::KexecLoad | Kind::IoUringSetup => Body::Setup(kind, fixed(bytes)?),
        Kind::Sysctl => Body::Setting(fixed(bytes)?),
        Kind::Unspecified
        | Kind::Fork
        | Kind::Exec
        | Kind::Exit
        | Kind::Integrity
        | Kind::Open
        | Kind::CloseWrite
        | Kind::MapExec
        | Kind::Rename
        | Kind::Unlink
        | Kind::Connect
        | Kind::Accept => return Err(Malformed::Kind(kind as u16)),
    })
}

fn fixed<T: Plain>(bytes: &[u8]) -> Result<T, Malformed> {
    read(bytes).ok_or(Malformed::Short { len: bytes.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit_record() -> Vec<u8> {
        let mut bytes = vec![0; size_of::<Exit>()];
        bytes[0..4].copy_from_slice(&(size_of::<Exit>() as u32).to_ne_bytes());
        bytes[4..6].copy_from_slice(&kind::EXIT.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_record_is_read_and_a_cut_one_refused() {
        let bytes = exit_record();
        assert!(matches!(
            Record::parse(&bytes).expect("a record").body,
            Body::Exit(_)
        ));
        for len in 0..bytes.len() {
            assert!(Record::parse(&bytes[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn unknown_kinds_streams_and_spans_are_refused() {
        let mut bytes = exit_record();
        bytes[4..6].copy_from_slice(&999u16.to_ne_bytes());
        assert_eq!(Record::parse(&bytes).err(), Some(Malformed::Kind(999)));
        let mut bytes = exit_record();
        bytes[7] = 200;
        assert!(matches!(
            Record::parse(&bytes),
            Err(Malformed::Stream { .. })
        ));
        let mut open = vec![0; size_of::<Open>()];
        let len = u32::try_from(open.len()).expect("a small record");
        open[0..4].copy_from_slice(&len.to_ne_bytes());
        open[4..6].copy_from_slice(&kind::OPEN.to_ne_bytes());
        assert!(Record::parse(&open).is_ok());
        let path = std::mem::offset_of!(Open, path);
        let last = u16::try_from(len - 1).expect("a small record");
        open[path..path + 2].copy_from_slice(&last.to_ne_bytes());
        open[path + 2..path + 4].copy_from_slice(&2u16.to_ne_bytes());
        assert!(matches!(Record::parse(&open), Err(Malformed::Span { .. })));
    }

    /// Whatever the bytes are: an error or a record whose strings can be read.
    #[test]
    fn arbitrary_bytes_never_panic() {
        bolero::check!().for_each(|bytes: &[u8]| {
            // The length is corrected so that most inputs come past it.
            let mut bytes = bytes.to_vec();
            if let Some(len) = bytes.get_mut(..4) {
                len.copy_from_slice(&0u32.to_ne_bytes());
            }
            let len = u32::try_from(bytes.len()).unwrap_or(0);
            if let Some(field) = bytes.get_mut(..4) {
                field.copy_from_slice(&len.to_ne_bytes());
            }
            if let Ok(record) = Record::parse(&bytes) {
                for span in record.spans() {
                    assert_eq!(record.text(span).len(), usize::from(span.len));
                }
            }
        });
    }
}
