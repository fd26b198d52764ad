//! Is a connection of interest?

use core::ptr::addr_of;

use sumun_abi::{
    event::network::{Connection, FAMILY_INET},
    policy::{Filter, tag},
    record::LEVELS,
};

use super::{ALL, copy, exe as image, find, first};
use crate::run::scratch;

/// Clauses of a kind (`policy::filtered`) that the current process's executable satisfies.
#[inline(always)]
pub(crate) fn exe(level: u32, index: u32, filter: &Filter, kind: usize) -> u64 {
    let clauses = filter.clauses[kind];
    let left = clauses & !filter.any_exe_net;
    if left == 0 {
        return clauses;
    }
    clauses & (filter.any_exe_net | image::sumun_exe_clauses(level, index, image::NET))
}

/// The same for programs of cgroups (`Task::current_plain`).
#[inline(always)]
pub(crate) fn exe_plain(level: u32, index: u32, filter: &Filter, kind: usize) -> u64 {
    let clauses = filter.clauses[kind];
    let left = clauses & !filter.any_exe_net;
    if left == 0 {
        return clauses;
    }
    clauses & (filter.any_exe_net | image::sumun_exe_clauses_plain(level, index, image::NET))
}

/// Those of `exe` that this connection satisfies too.
#[inline(always)]
pub(crate) fn clauses(
    level: u32,
    index: u32,
    filter: &Filter,
    kind: usize,
    exe: u64,
    connection: *const Connection,
) -> u64 {
    let mut left = filter.clauses[kind] & exe;
    // SAFETY: callers pass their record.
    let (family, src_port, dst_port, src, dst) = unsafe {
        (
            (*connection).family,
            (*connection).src_port,
            (*connection).dst_port,
            addr_of!((*connection).src) as u64,
            addr_of!((*connection).dst) as u64,
        )
    };
    let (len, src_tag, dst_tag) = if family == FAMILY_INET {
        (4, tag::SRC_NET4, tag::DST_NET4)
    } else {
        (16, tag::SRC_NET6, tag::DST_NET6)
    };
    // From what a clause asks for most often to what it seldom does.
    if left & !filter.any_dst_port != 0 {
        left &= filter.any_dst_port | port(level, index, tag::DST_PORT, dst_port);
    }
    if left & !filter.any_dst_net != 0 {
        left &= filter.any_dst_net | address(level, index, dst_tag, dst, len);
    }
    if left & !filter.any_src_net != 0 {
        left &= filter.any_src_net | address(level, index, src_tag, src, len);
    }
    if left & !filter.any_src_port != 0 {
        left &= filter.any_src_port | port(level, index, tag::SRC_PORT, src_port);
    }
    left
}

#[inline(always)]
fn port(level: u32, index: u32, tag: u8, port: u16) -> u64 {
    if level >= LEVELS {
        return ALL;
    }
    let Some(scratch) = scratch(level) else {
        return ALL;
    };
    // SAFETY: two bytes of the key's text.
    unsafe {
        super::text(scratch)
            .cast::<u16>()
            .write_unaligned(port.to_be())
    };
    find(scratch, first(index, tag), 2).map_or(0, |(found, _)| found.net)
}

#[inline(always)]
fn address(level: u32, index: u32, tag: u8, source: u64, len: u64) -> u64 {
    if level >= LEVELS {
        return ALL;
    }
    let Some(scratch) = scratch(level) else {
        return ALL;
    };
    let copied = copy(scratch, 0, source, len);
    find(scratch, first(index, tag), copied).map_or(0, |(found, _)| found.net)
}
