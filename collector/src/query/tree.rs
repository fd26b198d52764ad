//! The tree of a process: what it did, what it came from, what came from it.
//!
//! The rows are those of table process (fork, exec, exit) of the process, of
//! its ancestors and of everything below it, in the range; `proc.exec_id` and
//! `proc.parent.exec_id` link them.

use std::collections::BTreeSet;

use sumun_lake::engine::{Query, Range};
use sumun_lake::{Family, ImageRow, scan};
use sumun_policy::Predicate;
use sumun_policy::ir::{Compare, Expr, Operand, Quantifier, Set};
use sumun_proto::FieldId;
use sumun_proto::v1::tree_request::Process;
use sumun_proto::v1::{Kind, TreeRequest};
use tonic::Status;

use crate::query::completeness::Asked;
use crate::query::{QueryService, Replies, failed, lane_of_kind, range};
use crate::store::Snapshot;

/// Rows looked at to find the process: a process that has executed more often
/// than this is shown in part.
const IMAGES: usize = 100_000;
/// Rows of a tree, the newest ones.
const ROWS: usize = 100_000;

impl QueryService {
    pub(super) async fn run_tree(
        &self,
        tenant: &str,
        request: TreeRequest,
    ) -> Result<Replies, Status> {
        let Some(wanted) = request.process else {
            return Err(Status::invalid_argument("a pid or an exec_id is needed"));
        };
        let range = range(request.since_ns, request.until_ns)?;
        let host = self.host(tenant, &request.host)?;
        let asked = Asked {
            predicate: Predicate::everything(),
            range,
            lanes: vec![lane_of_kind(Kind::Exec)],
            kinds: vec![Kind::Fork, Kind::Exec, Kind::Exit],
            names: None,
            ids: Some(vec![host.clone()]),
            gaps: true,
        };
        let turn = self.turn().await?;
        let (hosts, snapshot) = self.look(tenant, &asked, request.until_ns.is_none()).await;
        let looking = Looking {
            service: self,
            snapshot: &snapshot,
            range,
            host: &host,
        };
        let root = looking.find(&wanted).await?;
        let mut ancestors: BTreeSet<i64> = BTreeSet::new();
        let mut images: BTreeSet<i64> = BTreeSet::new();
        for row in &root {
            images.insert(row.exec_id);
            ancestors.extend(&row.ancestors);
        }
        ancestors.extend(&images);
        let below = Expr::Each {
            quantifier: Quantifier::Exists,
            list: FieldId::ProcAncestors,
            body: Box::new(Expr::In {
                value: Operand::Ancestor(FieldId::ProcExecId),
                set: Set::Int(images.into_iter().collect()),
            }),
        };
        let itself_and_above = Expr::In {
            value: Operand::Field(FieldId::ProcExecId),
            set: Set::Int(ancestors.into_iter().collect()),
        };
        let rows = looking.query(vec![Expr::Or(vec![itself_and_above, below])])?;
        let queries = match root.is_empty() {
            true => Vec::new(),
            false => vec![rows],
        };
        Ok(self.answer(turn, asked, hosts, snapshot, queries, ROWS))
    }

    /// The id of a host by id or name.
    fn host(&self, tenant: &str, wanted: &str) -> Result<String, Status> {
        let hosts = self.registry.snapshot(tenant);
        let mut found = hosts
            .iter()
            .filter(|host| host.id == wanted || host.name == wanted);
        let Some(host) = found.next() else {
            return Err(Status::not_found(format!(
                "no host is called {wanted:?}: see sumunctl agents list"
            )));
        };
        if found.next().is_some() {
            return Err(Status::failed_precondition(format!(
                "several hosts are called {wanted:?}: give the id, see sumunctl agents list"
            )));
        }
        Ok(host.id.clone())
    }
}

struct Looking<'a> {
    service: &'a QueryService,
    snapshot: &'a Snapshot,
    range: Range,
    host: &'a str,
}

impl Looking<'_> {
    /// All rows of the process: of a pid that was used again, the newest one.
    async fn find(&self, wanted: &Process) -> Result<Vec<ImageRow>, Status> {
        let given = match wanted {
            Process::Pid(pid) => equals(FieldId::ProcPid, i64::from(*pid)),
            Process::ExecId(id) => equals(FieldId::ProcExecId, id.cast_signed()),
        };
        let rows = self.images(vec![given]).await?;
        let Some(newest) = rows.into_iter().next_back() else {
            return Ok(Vec::new());
        };
        let same = vec![
            equals(FieldId::ProcPid, newest.pid),
            equals(FieldId::ProcStart, newest.start),
            Expr::Compare {
                op: Compare::Eq,
                left: Operand::Field(FieldId::BootId),
                right: Operand::Str(newest.boot),
            },
        ];
        self.images(same).await
    }

    async fn images(&self, parts: Vec<Expr>) -> Result<Vec<ImageRow>, Status> {
        let query = self.query(parts)?;
        let engine = std::sync::Arc::clone(&self.service.engine);
        let found = self
            .service
            .engine
            .spawn(async move { engine.images(&query, IMAGES).await });
        match found.await {
            Ok(found) => found.map_err(|error| failed(&error)),
            Err(_) => Err(Status::internal("the query ended early")),
        }
    }

    fn query(&self, mut parts: Vec<Expr>) -> Result<Query, Status> {
        parts.insert(
            0,
            Expr::Compare {
                op: Compare::Eq,
                left: Operand::Field(FieldId::HostId),
                right: Operand::Str(self.host.to_owned()),
            },
        );
        let filter = scan::exact(&Expr::And(parts), Family::Process);
        Ok(Query {
            source: self
                .snapshot
                .table_of(Family::Process, Some(&[self.host.to_owned()])),
            range: self.range,
            filter: filter.map_err(|error| failed(&error))?,
        })
    }
}

fn equals(field: FieldId, value: i64) -> Expr {
    Expr::Compare {
        op: Compare::Eq,
        left: Operand::Field(field),
        right: Operand::Int(value),
    }
}
