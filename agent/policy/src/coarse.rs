//! What the kernel's filter takes of a list too long to be written out: its items if they are few
//! enough, else something coarser that lets all of them through.

use std::fmt;
use std::net::IpAddr;
use std::sync::OnceLock;

use sumun_proto::FieldId;

use crate::clause::{filled, without_longer};
use crate::condition::{Part, exact_texts, whole_prefix};
use crate::list::List;
use crate::plan::Clause;

/// Most items of a list that the filter takes one by one: a quarter of what it has room for.
pub const EXACT_MAX: usize = 4096;
/// Most entries of what stands for a longer list.
pub const COARSE_MAX: usize = 1024;
/// Deepest folders that are looked at for a longer list.
const DEPTH_MAX: usize = 16;

/// What the kernel's filter takes of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Its items, so many.
    Items(usize),
    /// The folders that they are in, on some level.
    Folders(usize),
    /// Networks around the addresses.
    Networks(usize),
    /// Ports, in so many blocks.
    Ports(usize),
    /// Nothing.
    Nothing,
}

impl Taken {
    /// Entries of the kernel's map for it, at most.
    #[must_use]
    pub fn entries(self) -> usize {
        match self {
            // A path takes one for its folder, too.
            Taken::Items(count) => 2 * count,
            Taken::Folders(count) => 2 * count,
            Taken::Networks(count) | Taken::Ports(count) => count,
            Taken::Nothing => 0,
        }
    }
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Taken::Items(count) => write!(f, "its {count} items"),
            Taken::Folders(count) => write!(f, "the {count} folders that they are below"),
            Taken::Networks(count) => write!(f, "{count} networks around them"),
            Taken::Ports(count) => write!(f, "its ports, in {count} blocks"),
            Taken::Nothing => write!(f, "nothing"),
        }
    }
}

/// The fields whose texts the filter judges.
const FIELDS: [FieldId; 5] = [
    FieldId::FilePath,
    FieldId::ProcExePath,
    FieldId::ProcExeName,
    FieldId::NetSrcIp,
    FieldId::NetDstIp,
];

/// What the filter takes of a list, by field, found once for all rules that name it.
#[derive(Default)]
pub(crate) struct Filters([OnceLock<(Part, Taken)>; FIELDS.len()]);

/// The condition that a field is an item of a list.
pub(crate) fn listed(field: FieldId, list: &List) -> (Part, Taken) {
    match FIELDS.iter().position(|known| *known == field) {
        Some(place) => list.filters.0[place]
            .get_or_init(|| found(field, list))
            .clone(),
        None => (Part::looser(Clause::default()), Taken::Nothing),
    }
}

fn found(field: FieldId, list: &List) -> (Part, Taken) {
    let nothing = || (Part::looser(Clause::default()), Taken::Nothing);
    if list.len() <= EXACT_MAX {
        let texts: Vec<String> = list.texts().map(str::to_owned).collect();
        let part = exact_texts(field, &texts);
        return match part.clause.is_everything() {
            true => nothing(),
            false => (part, Taken::Items(texts.len())),
        };
    }
    let (clause, taken) = match field {
        FieldId::FilePath => {
            let prefixes = folders(list);
            let count = prefixes.as_ref().map_or(0, Vec::len);
            let clause = Clause {
                path_prefixes: prefixes,
                ..Clause::default()
            };
            (clause, Taken::Folders(count))
        }
        FieldId::NetSrcIp | FieldId::NetDstIp => {
            let nets = networks(list);
            let taken = Taken::Networks(nets.as_ref().map_or(0, Vec::len));
            let clause = match field {
                FieldId::NetSrcIp => Clause {
                    src_nets: nets,
                    ..Clause::default()
                },
                _ => Clause {
                    dst_nets: nets,
                    ..Clause::default()
                },
            };
            (clause, taken)
        }
        // By the last names of executables less could be sent than the matcher leaves undecided.
        _ => return nothing(),
    };
    match clause.is_everything() {
        true => nothing(),
        false => (Part::looser(clause), taken),
    }
}

/// What the paths begin with: their folders on the deepest level on which they are few enough.
fn folders(list: &List) -> Option<Vec<Vec<u8>>> {
    let mut deepest: Option<Vec<&str>> = None;
    'levels: for depth in 1..=DEPTH_MAX {
        let mut prefixes: Vec<&str> = Vec::new();
        for path in list.texts() {
            let prefix = path
                .match_indices('/')
                .nth(depth)
                .map_or(path, |(slash, _)| &path[..=slash]);
            // The paths are sorted: what begins alike stands together.
            if prefixes.last() != Some(&prefix) {
                prefixes.push(prefix);
            }
            if prefixes.len() > COARSE_MAX {
                break 'levels;
            }
        }
        deepest = Some(prefixes);
    }
    let prefixes = deepest?.into_iter().map(whole_prefix);
    without_longer(filled(prefixes.collect::<Option<_>>()?), None).0
}

/// The longest prefixes of the addresses that are few enough.
fn networks(list: &List) -> Option<Vec<(IpAddr, u8)>> {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for address in list.texts() {
        match address.parse().ok()? {
            IpAddr::V4(address) => v4.push(u32::from(address)),
            IpAddr::V6(address) => v6.push(u128::from(address)),
        }
    }
    let v4: Vec<u128> = v4.into_iter().map(u128::from).collect();
    let mut nets = Vec::new();
    for (addresses, width) in [(v4, 32_u8), (v6, 128)] {
        let (bases, bits) = around(addresses, width);
        for base in bases {
            let address = match width {
                32 => IpAddr::V4(u32::try_from(base).ok()?.into()),
                _ => IpAddr::V6(base.into()),
            };
            nets.push((address, bits));
        }
    }
    nets.sort_unstable();
    (!nets.is_empty()).then_some(nets)
}

/// The networks of one length around addresses of `width` bits, at most half of [`COARSE_MAX`].
fn around(mut addresses: Vec<u128>, width: u8) -> (Vec<u128>, u8) {
    addresses.sort_unstable();
    addresses.dedup();
    let mut bits = width;
    while addresses.len() > COARSE_MAX / 2 && bits > 1 {
        bits -= 1;
        let host = (1_u128 << (width - bits)) - 1;
        for address in &mut addresses {
            *address &= !host;
        }
        addresses.dedup();
    }
    (addresses, bits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Set;

    fn list(items: impl Iterator<Item = String>) -> List {
        let mut set = Set::Str(items.collect());
        set.tidy();
        List::pack("l", &set).expect("no list yet")
    }

    #[test]
    fn a_long_list_of_paths_is_asked_for_by_its_folders() {
        let paths =
            |count: usize| list((0..count).map(|n| format!("/srv/{}/{}/file{n}", n % 7, n % 2000)));
        let (part, taken) = listed(FieldId::FilePath, &paths(EXACT_MAX));
        assert!(part.exact);
        assert_eq!(taken, Taken::Items(EXACT_MAX));
        let (part, taken) = listed(FieldId::FilePath, &paths(EXACT_MAX + 1));
        assert!(!part.exact);
        assert_eq!(taken, Taken::Folders(7));
        let prefixes = part.clause.path_prefixes.expect("prefixes");
        assert_eq!(prefixes[6], b"/srv/6/");
        // All in the root: nothing is left to ask for.
        let (part, taken) = listed(
            FieldId::FilePath,
            &list((0..5000).map(|n| format!("/file{n}"))),
        );
        assert!(part.clause.is_everything());
        assert_eq!((taken, taken.entries()), (Taken::Nothing, 0));
    }

    #[test]
    fn a_long_list_of_addresses_is_asked_for_by_networks() {
        let addresses = (0..20_000_u32).map(|n| {
            let address = std::net::Ipv4Addr::from(0x0b00_0000 + n * 257);
            address.to_string()
        });
        let all = list(addresses.chain(std::iter::once("2001:db8::1".to_owned())));
        let (part, taken) = listed(FieldId::NetDstIp, &all);
        let nets = part.clause.dst_nets.expect("networks");
        assert_eq!(taken, Taken::Networks(nets.len()));
        assert!((2..=COARSE_MAX).contains(&nets.len()), "{}", nets.len());
        for address in all.texts() {
            let address: IpAddr = address.parse().expect("an address");
            assert!(nets.iter().any(|(base, bits)| {
                ipnet::IpNet::new(*base, *bits).is_ok_and(|net| net.contains(&address))
            }));
        }
        let private: IpAddr = "10.0.0.1".parse().expect("an address");
        assert!(nets.iter().all(|(base, bits)| {
            ipnet::IpNet::new(*base, *bits).is_ok_and(|net| !net.contains(&private))
        }));
    }
}
