//! Rows whose values follow from their number.
#![allow(dead_code, reason = "each test uses its part")]

use std::path::Path;
use std::sync::Arc;

use sumun_lake::{Engine, EngineOptions, Lake, RowSet};
use sumun_proto::Host;
use sumun_proto::v1::{Batch, Event, File, Image, Kind, Lane, Origin, Source, Workload};

/// Wall clock at boot.
pub(crate) const WALL: i64 = 1_767_225_600_000_000_000;

pub(crate) fn lake(dir: &Path) -> Lake {
    Lake::open(dir.join("lake").to_str().expect("UTF-8")).expect("a lake")
}

pub(crate) fn engine(lake: &Lake, dir: &Path, memory_bytes: usize) -> Engine {
    let options = EngineOptions {
        memory_bytes,
        spill_dir: dir.join("spill"),
        spill_bytes: 4 * 1024 * 1024 * 1024,
        threads: 2,
    };
    Engine::new(lake, &options).expect("an engine")
}

/// One of fifty folders has what LIKE and the catalogue's form of text escape.
pub(crate) fn path(number: u64) -> String {
    match number % 50 {
        7 => format!("/srv/a_b%c\\\\/file-{number:09}"),
        folder => format!("/srv/{folder}/file-{number:09}"),
    }
}

/// Opens numbered from `first`, a microsecond apart; every tenth path is cut.
pub(crate) fn opens(host: &str, first: u64, count: u64) -> Vec<Arc<RowSet>> {
    let image = |exec_id, parent, path: &str| Image {
        exec_id,
        // The chain ends at the first process.
        pid: 1 + (exec_id as u32 - 1) * 101,
        parent,
        parent_pid: parent,
        seen: true,
        exe_path: path.into(),
        args: vec!["cat".into(), "\\xff".into()],
        workload: 1,
        ..Image::default()
    };
    let event = |number: u64| Event {
        kind: Kind::Open.into(),
        boot_ns: number * 1000,
        image: 2,
        tid: 102,
        origin: Some(Origin {
            ring: 1,
            seq: number,
            ..Origin::default()
        }),
        file: Some(File {
            path: Some(path(number)),
            source: Source::Object.into(),
            flaws: if number % 10 == 3 {
                sumun_abi::record::FLAW_TRUNCATED.into()
            } else {
                0
            },
            dev: 1,
            ino: number,
            ..File::default()
        }),
        ..Event::default()
    };
    let batch = Batch {
        format: 1,
        lane: Lane::Bulk.into(),
        boot_id: vec![7; 16],
        wall_offset_ns: WALL,
        images: vec![image(1, 0, "/bin/sh"), image(2, 1, "/bin/cat")],
        workloads: vec![Workload {
            id: 1,
            kind: "host".into(),
            cgroup: "/".into(),
            ..Workload::default()
        }],
        events: (first..first + count).map(event).collect(),
        ..Batch::default()
    };
    let host = Arc::new(Host {
        id: host.into(),
        name: format!("name-{host}"),
    });
    let sets = sumun_lake::rows(&host, &batch).expect("well-formed");
    sets.into_iter().map(Arc::new).collect()
}
