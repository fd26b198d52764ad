//! Fixed parts of the records, one file per event family.

pub mod file;
pub mod network;
pub mod process;

/// Kinds of records. Ranges: 1-99 process, 100-199 file, 200-299 network,
/// 300-399 privilege, 400-499 kernel; never reused.
pub mod kind {
    /// [`super::process::Fork`]
    pub const FORK: u16 = 1;
    /// [`super::process::Exec`]
    pub const EXEC: u16 = 2;
    /// [`super::process::Exit`]
    pub const EXIT: u16 = 3;
    /// A process found by the task iterator: the same fixed part as `EXEC`.
    pub const TASK: u16 = 4;
    /// [`super::file::Open`]
    pub const OPEN: u16 = 100;
    /// [`super::file::Open`], at an explicit close of a file open for writing.
    pub const CLOSE_WRITE: u16 = 101;
    /// [`super::file::Names`]
    pub const RENAME: u16 = 102;
    /// [`super::file::Names`]
    pub const UNLINK: u16 = 103;
    /// [`super::network::Connection`]
    pub const CONNECT: u16 = 200;
    /// [`super::network::Connection`]
    pub const ACCEPT: u16 = 201;
}
