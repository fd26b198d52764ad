//! Answers and what is said of them, over a real store and registry.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::path::Path;

use futures::StreamExt;
use serde_json::Value;
use sumun_proto::catalogue::KINDS;
use sumun_proto::v1::scope::Mode;
use sumun_proto::v1::search_reply::Message;
use sumun_proto::v1::tree_request::Process;
use sumun_proto::v1::{
    Batch, Completeness, Event, Exit, Gap, Heartbeat, Hello, Image, LaneState, Origin, Scope,
};
use uuid::Uuid;

use super::*;
use crate::ingest::Checkpoint;
use crate::store::tests::{BOOT, WALL, applied, open_with, opens, told};
use crate::store::{Bounds, Kept};
use crate::tenant::identity::Identity;
use crate::tenant::registry::Session;

const SECOND: i64 = 1_000_000_000;

struct World {
    store: Store,
    registry: Registry,
    service: QueryService,
}

impl World {
    async fn new(dir: &Path) -> World {
        World::with(dir, Bounds::default()).await
    }

    async fn with(dir: &Path, bounds: Bounds) -> World {
        let store = open_with(dir, bounds).await;
        let database = crate::state::open(&dir.join("state.db")).await.unwrap();
        sqlx::query("INSERT OR IGNORE INTO tenant (name, created_ns) VALUES ('default', 1)")
            .execute(&database)
            .await
            .unwrap();
        let registry = Registry::load(database).await.unwrap();
        let limits = Limits {
            memory_bytes: 64 * 1024 * 1024,
            threads: 2,
            ..Limits::new(dir.join("spill"))
        };
        let service = QueryService::new(store.clone(), registry.clone(), &limits).unwrap();
        World {
            store,
            registry,
            service,
        }
    }

    /// An agent that is connected and has said how far its lanes are.
    fn agent(&self, number: u128, name: &str, through_boot_ns: u64) -> (String, Session) {
        let identity = identity(number);
        self.registry.enrolled(&identity, name, i64::MAX, 1);
        let session = self.registry.connect(
            &identity,
            &Hello {
                host_name: name.into(),
                boot_id: BOOT.to_vec(),
                ..Hello::default()
            },
        );
        beat(&session, through_boot_ns, 0);
        (identity.agent.hyphenated().to_string(), session)
    }

    fn apply(&self, seq: u64, host: &str, batch: Batch) {
        self.store.apply(applied(1, seq, host, batch));
    }

    async fn search(&self, request: SearchRequest) -> Result<(Vec<Value>, Completeness), Status> {
        let mut request = Request::new(request);
        request.extensions_mut().insert(Admin {
            tenant: "default".into(),
            name: "test".into(),
        });
        collect(self.service.search(request).await?.into_inner()).await
    }
}

fn identity(number: u128) -> Identity {
    Identity {
        tenant: "default".into(),
        agent: Uuid::from_u128(number),
    }
}

fn beat(session: &Session, through_boot_ns: u64, spooled_events: u64) {
    let lanes = [Lane::Alert, Lane::Life, Lane::Bulk].map(|lane| LaneState {
        lane: lane.into(),
        through_boot_ns,
        spooled_events,
        ..LaneState::default()
    });
    session.heartbeat(&Heartbeat {
        boot_ns: through_boot_ns,
        wall_offset_ns: WALL,
        boot_id: BOOT.to_vec(),
        lanes: lanes.to_vec(),
        attached: true,
        bootstrapped: true,
        ..Heartbeat::default()
    });
}

async fn collect(mut replies: Replies) -> Result<(Vec<Value>, Completeness), Status> {
    let mut rows = Vec::new();
    let mut completeness = None;
    while let Some(reply) = replies.next().await {
        match reply?.message {
            Some(Message::Rows(more)) => {
                assert!(completeness.is_none(), "rows after the completeness");
                rows.extend(
                    more.json
                        .iter()
                        .map(|row| serde_json::from_str::<Value>(row).expect("JSON")),
                );
            }
            Some(Message::Completeness(said)) => completeness = Some(said),
            None => panic!("an empty message"),
        }
    }
    Ok((rows, completeness.expect("the last message")))
}

fn events(text: &str) -> SearchRequest {
    SearchRequest {
        table: Table::Events.into(),
        r#where: text.into(),
        since_ns: WALL,
        until_ns: Some(WALL + SECOND),
        limit: 0,
    }
}

fn scope(kind: Kind, mode: Mode, from_boot_ns: u64) -> Scope {
    Scope {
        kind: kind.into(),
        mode: mode.into(),
        from_boot_ns,
        ..Scope::default()
    }
}

fn scopes(scopes: Vec<Scope>) -> Batch {
    Batch {
        format: 1,
        boot_id: BOOT.to_vec(),
        wall_offset_ns: WALL,
        scopes,
        ..Batch::default()
    }
}

/// init (10) → shell (20, fork then exec) → child (30); and a stranger (40).
fn family_tree() -> Batch {
    let image = |exec_id, pid, parent, path: &str| Image {
        exec_id,
        pid,
        start_ns: u64::from(pid) * 10,
        parent,
        parent_pid: if parent == 0 { 0 } else { 1 },
        seen: true,
        exe_path: path.into(),
        args: vec![path.into(), "\\xff".into()],
        ..Image::default()
    };
    let event = |kind: Kind, boot_ns, image| Event {
        kind: kind.into(),
        boot_ns,
        image,
        tid: 1,
        origin: Some(Origin {
            seq: boot_ns,
            ..Origin::default()
        }),
        exit: (kind == Kind::Exit).then_some(Exit { code: 0x100 }),
        ..Event::default()
    };
    Batch {
        format: 1,
        lane: Lane::Life.into(),
        boot_id: BOOT.to_vec(),
        wall_offset_ns: WALL,
        images: vec![
            image(1, 10, 0, "/sbin/init"),
            image(2, 20, 1, "/sbin/init"),
            image(3, 20, 1, "/bin/sh"),
            image(4, 30, 3, "/bin/sh"),
            image(5, 30, 3, "/usr/bin/id"),
            image(6, 40, 1, "/usr/bin/stranger"),
        ],
        events: vec![
            event(Kind::Exec, 1, 1),
            event(Kind::Fork, 2, 2),
            event(Kind::Exec, 3, 3),
            event(Kind::Fork, 4, 4),
            event(Kind::Exec, 5, 5),
            event(Kind::Exec, 6, 6),
            event(Kind::Exit, 7, 5),
        ],
        ..Batch::default()
    }
}

#[tokio::test]
async fn rows_are_json_in_the_catalogues_nesting() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let (host, _session) = world.agent(1, "web-1", 2 * SECOND as u64);
    world.apply(1, &host, family_tree());
    for sealed in [false, true] {
        if sealed {
            world.store.seal(1, &Checkpoint::default()).await.unwrap();
        }
        let (rows, _) = world.search(events("proc.exe.name == 'id'")).await.unwrap();
        assert_eq!(rows.len(), 2);
        let expected = serde_json::json!({
            "time": "2023-11-14T22:13:20.000000007Z",
            "boot_ns": "7",
            "boot_id": "07070707-0707-0707-0707-070707070707",
            "host": {"id": host, "name": format!("name-{host}")},
            "kind": "exit",
            "origin": {"pin": "0", "ring": 0, "cpu": 0, "level": 0, "seq": "7"},
            "rules": [],
            "proc": {
                "pid": 30, "tid": 1, "start": "300", "exec_id": "5",
                "exe": {"path": "/usr/bin/id", "name": "id", "flaws": [], "deleted": false},
                "args": ["/usr/bin/id", "\\xff"], "args_flaws": [], "cwd": "",
                "uid": 0, "gid": 0, "euid": 0, "egid": 0,
                "cap_effective": "0", "cap_permitted": "0",
                "parent": {"pid": 1, "exe": {"path": "/bin/sh", "name": "sh"}},
                "ancestors": [
                    {"pid": 20, "exec_id": "3", "exe": {"path": "/bin/sh", "name": "sh"}},
                    {"pid": 10, "exec_id": "1", "exe": {"path": "/sbin/init", "name": "init"}},
                ],
            },
            "exit": {"code": 1},
            "exceptions": [],
        });
        assert_eq!(rows[1], expected);
        assert_eq!(rows[0]["kind"], "exec");
    }
}

#[tokio::test]
async fn the_limit_keeps_the_newest_and_says_exactly_whether_it_cut() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let (host, _session) = world.agent(1, "web-1", 2 * SECOND as u64);
    world.apply(1, &host, opens(0, 30));
    world.store.seal(1, &Checkpoint::default()).await.unwrap();
    world.store.apply(applied(2, 2, &host, opens(30, 20)));
    // Rows of another table and of the same time in between.
    world.store.apply(applied(2, 3, &host, family_tree()));
    let seqs = |rows: &[Value]| -> Vec<String> {
        let seq = |row: &Value| row["origin"]["seq"].as_str().unwrap().to_owned();
        rows.iter().map(seq).collect()
    };
    for (limit, truncated) in [(0, false), (57, false), (56, true), (100, false), (1, true)] {
        let request = SearchRequest {
            limit,
            ..events("")
        };
        let (rows, said) = world.search(request).await.unwrap();
        let whole = if limit == 0 {
            57
        } else {
            57.min(limit as usize)
        };
        assert_eq!(rows.len(), whole, "limit {limit}");
        assert_eq!(said.truncated, truncated, "limit {limit}");
        let times: Vec<_> = rows
            .iter()
            .map(|row| row["time"].as_str().unwrap())
            .collect();
        assert!(times.is_sorted(), "oldest first");
    }
    let request = SearchRequest {
        limit: 3,
        ..events("kind == 'open' && file.path.startsWith('/srv/')")
    };
    let (rows, said) = world.search(request).await.unwrap();
    assert_eq!(seqs(&rows), ["47", "48", "49"]);
    assert!(said.truncated);
    // The range is half open.
    let request = SearchRequest {
        since_ns: WALL + 29,
        until_ns: Some(WALL + 31),
        ..events("kind == 'open'")
    };
    let (rows, _) = world.search(request).await.unwrap();
    assert_eq!(seqs(&rows), ["29", "30"]);
}

#[tokio::test]
async fn an_answer_is_complete_only_if_every_host_has_delivered_it() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let (near, _near) = world.agent(1, "near", 2 * SECOND as u64);
    let (_far, far) = world.agent(2, "far", 10);
    world.apply(1, &near, scopes(vec![scope(Kind::Exec, Mode::All, 0)]));
    let exec = "kind == 'exec'";
    let (_, said) = world.search(events(exec)).await.unwrap();
    assert!(!said.complete);
    assert_eq!(said.through_ns, WALL + 10);
    let hosts: Vec<_> = said
        .hosts
        .iter()
        .map(|host| (&*host.name, host.complete))
        .collect();
    assert_eq!(hosts, [("far", false), ("near", true)]);
    let reason = &said.hosts[0].reason;
    assert!(
        reason.contains("data to 2023-11-14T22:13:20Z, then not delivered yet"),
        "{reason}"
    );

    // A question about the other host alone is complete.
    let (_, said) = world
        .search(events("kind == 'exec' && host.name == 'near'"))
        .await
        .unwrap();
    assert!(said.complete, "{said:?}");
    assert_eq!(said.hosts.len(), 1);

    beat(&far, 10, 41_000);
    drop(far);
    let (_, said) = world.search(events(exec)).await.unwrap();
    let reason = &said.hosts[0].reason;
    assert!(reason.contains("then silent, 41000 spooled"), "{reason}");
    assert_eq!(said.hosts[0].state, "offline");
}

#[tokio::test]
async fn gaps_in_the_range_and_in_the_lane_make_it_incomplete() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let (host, _session) = world.agent(1, "web-1", 2 * SECOND as u64);
    let kinds = [Kind::Exec, Kind::Open].map(|kind| scope(kind, Mode::All, 0));
    world.apply(1, &host, scopes(kinds.to_vec()));
    let gap = Batch {
        lane: Lane::Bulk.into(),
        gaps: vec![Gap {
            reason: "ring_full".into(),
            count: Some(7),
            from_boot_ns: 100,
            to_boot_ns: 200,
            ..Gap::default()
        }],
        ..scopes(Vec::new())
    };
    world.apply(2, &host, gap);
    for sealed in [false, true] {
        if sealed {
            world.store.seal(1, &Checkpoint::default()).await.unwrap();
        }
        let (_, said) = world.search(events("kind == 'open'")).await.unwrap();
        assert!(!said.complete);
        assert_eq!(said.gaps.len(), 1);
        assert_eq!((said.gaps[0].count, &*said.gaps[0].lane), (Some(7), "bulk"));
        let reason = &said.hosts[0].reason;
        assert!(
            reason.contains("gap") && reason.contains("7 missing"),
            "{reason}"
        );
        // Another lane, and a range beside it.
        let (_, said) = world.search(events("kind == 'exec'")).await.unwrap();
        assert!(said.complete, "{said:?}");
        let beside = SearchRequest {
            since_ns: WALL + 201,
            ..events("kind == 'open'")
        };
        let (_, said) = world.search(beside).await.unwrap();
        assert!(said.complete, "{said:?}");
        let listed = SearchRequest {
            table: Table::Gaps.into(),
            ..events("gap.reason == 'ring_full'")
        };
        let (rows, said) = world.search(listed).await.unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0]["gap"]["count"], "7");
        assert_eq!(rows[0]["gap"]["lane"], "bulk");
        assert!(said.complete, "gaps are the rows here: {said:?}");
    }
}

#[tokio::test]
async fn what_was_not_collected_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let (host, _session) = world.agent(1, "web-1", 2 * SECOND as u64);
    let kinds = vec![
        scope(Kind::Exec, Mode::All, 50),
        scope(Kind::Open, Mode::None, 50),
        scope(Kind::Open, Mode::All, 500),
    ];
    world.apply(1, &host, scopes(kinds));
    let (_, said) = world
        .search(events("kind in ['exec', 'open']"))
        .await
        .unwrap();
    assert!(!said.complete);
    assert_eq!(said.scope.len(), 1);
    let missing = &said.scope[0];
    assert_eq!((&*missing.kind, &*missing.mode), ("open", "none"));
    assert_eq!((missing.from_ns, missing.to_ns), (WALL + 50, WALL + 500));
    // Nothing was promised before the host was watched.
    let (_, said) = world.search(events("kind == 'exec'")).await.unwrap();
    assert!(said.complete, "{said:?}");
    assert!(said.hosts[0].reason.contains("watched since"));
}

#[tokio::test]
async fn a_query_that_ends_now_waits_for_hosts_that_are_online() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let (host, session) = world.agent(1, "web-1", 10);
    world.apply(1, &host, scopes(vec![scope(Kind::Exec, Mode::All, 0)]));
    let beats = tokio::spawn(async move {
        loop {
            let boot = now_ns().saturating_sub(WALL).cast_unsigned();
            beat(&session, boot, 0);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let request = SearchRequest {
        until_ns: None,
        ..events("kind == 'exec'")
    };
    let (_, said) = world.search(request).await.unwrap();
    beats.abort();
    assert!(said.complete, "{said:?}");
}

#[tokio::test]
async fn a_tree_is_the_process_with_what_is_above_and_below_it() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let (host, _session) = world.agent(1, "web-1", 2 * SECOND as u64);
    world.apply(1, &host, family_tree());
    let tree = |process: Process, host: &str| {
        let mut request = Request::new(TreeRequest {
            host: host.into(),
            process: Some(process),
            since_ns: WALL,
            until_ns: Some(WALL + SECOND),
        });
        request.extensions_mut().insert(Admin {
            tenant: "default".into(),
            name: "test".into(),
        });
        request
    };
    let ids = |rows: &[Value]| -> Vec<String> {
        let id = |row: &Value| {
            format!(
                "{} {}",
                row["kind"].as_str().unwrap(),
                row["proc"]["exec_id"].as_str().unwrap()
            )
        };
        rows.iter().map(id).collect()
    };
    let whole = ["exec 1", "fork 2", "exec 3", "fork 4", "exec 5", "exit 5"];
    for process in [Process::Pid(20), Process::ExecId(3), Process::ExecId(2)] {
        let replies = world.service.tree(tree(process, "web-1")).await.unwrap();
        let (rows, _) = collect(replies.into_inner()).await.unwrap();
        assert_eq!(ids(&rows), whole, "{process:?}");
    }
    let replies = world
        .service
        .tree(tree(Process::Pid(30), &host))
        .await
        .unwrap();
    let (rows, _) = collect(replies.into_inner()).await.unwrap();
    assert_eq!(
        ids(&rows),
        ["exec 1", "exec 3", "fork 4", "exec 5", "exit 5"]
    );
    let replies = world
        .service
        .tree(tree(Process::Pid(99), "web-1"))
        .await
        .unwrap();
    let (rows, _) = collect(replies.into_inner()).await.unwrap();
    assert!(rows.is_empty());
    let unknown = world.service.tree(tree(Process::Pid(1), "nobody")).await;
    assert_eq!(unknown.err().unwrap().code(), tonic::Code::NotFound);
}

#[tokio::test]
async fn wrong_questions_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let wrong = world
        .search(events("proc.exe.nam == 'x'"))
        .await
        .unwrap_err();
    assert_eq!(wrong.code(), tonic::Code::InvalidArgument);
    assert!(
        wrong.message().contains("proc.exe.name"),
        "{}",
        wrong.message()
    );
    let empty = SearchRequest {
        until_ns: Some(WALL),
        ..events("")
    };
    assert_eq!(
        world.search(empty).await.unwrap_err().code(),
        tonic::Code::InvalidArgument
    );
    let nobody = world.service.search(Request::new(events(""))).await;
    assert_eq!(nobody.err().unwrap().code(), tonic::Code::Unauthenticated);
}

#[tokio::test]
async fn who_asks_for_names_that_are_not_kept_any_more_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds {
        facts: Kept {
            age: std::time::Duration::ZERO,
            ..Kept::default()
        },
        ..Bounds::default()
    };
    let world = World::with(dir.path(), bounds).await;
    let (host, _session) = world.agent(1, "web-1", 2 * SECOND as u64);
    world.apply(
        1,
        &host,
        scopes(
            KINDS
                .iter()
                .map(|(_, kind)| scope(*kind, Mode::All, 0))
                .collect(),
        ),
    );
    world.apply(2, &host, told(7, 1));
    let asked = "k8s.namespace == 'space-7'";
    let (_, before) = world.search(events(asked)).await.unwrap();
    assert!(before.complete, "{before:?}");
    assert_eq!(
        world.store.seal(1, &Checkpoint::default()).await.unwrap(),
        1
    );
    let (_, after) = world.search(events(asked)).await.unwrap();
    assert!(!after.complete);
    assert!(
        after.hosts[0].reason.contains("names of workloads"),
        "{after:?}"
    );
    // Other rows are all there; that their names may not be is said.
    let (_, other) = world.search(events("proc.pid == 1")).await.unwrap();
    assert!(other.complete, "{other:?}");
    assert!(other.hosts[0].reason.contains("names of workloads"));
    // Of later rows nothing is missing.
    let mut later = events(asked);
    later.since_ns = WALL + 13 * 3600 * SECOND;
    later.until_ns = Some(later.since_ns + SECOND);
    let (_, later) = world.search(later).await.unwrap();
    assert!(!later.hosts[0].reason.contains("names"), "{later:?}");
}
