//! The fields of workloads: whose an event is.

use super::{Value, View, at, int, text};
use crate::catalogue::FieldId;
use crate::v1::Workload;

/// What the path of a cgroup tells. The same for all events of an image.
pub const OF_WORKLOAD: [FieldId; 13] = [
    FieldId::WorkloadId,
    FieldId::WorkloadKind,
    FieldId::WorkloadCgroup,
    FieldId::ContainerId,
    FieldId::ContainerRuntime,
    FieldId::ContainerNestedId,
    FieldId::K8sPodUid,
    FieldId::K8sPodQos,
    FieldId::EcsTaskId,
    FieldId::Unit,
    FieldId::Slice,
    FieldId::LoginUid,
    FieldId::LoginSession,
];

impl<'a> View<'a> {
    /// The workload of the image.
    #[must_use]
    pub fn in_workload(&self) -> Option<&'a Workload> {
        at(&self.batch.workloads, self.image()?.workload)
    }

    pub(super) fn workload(&self, id: FieldId) -> Option<Value<'a>> {
        if !OF_WORKLOAD.contains(&id) {
            return None;
        }
        let Some(workload) = self.in_workload() else {
            // Every process is in one: which is not known, if its cgroup's record was lost.
            return self.image().map(|_| Value::Unknown);
        };
        let told = |told: &'a String| (!told.is_empty()).then(|| text(told));
        match id {
            FieldId::WorkloadId => Some(int(workload.id)),
            FieldId::WorkloadKind => told(&workload.kind),
            FieldId::WorkloadCgroup => told(&workload.cgroup),
            FieldId::ContainerId => told(&workload.container_id),
            FieldId::ContainerRuntime => told(&workload.runtime),
            FieldId::ContainerNestedId => told(&workload.nested),
            // A path can be made up by root of the host; a runtime is believed more.
            FieldId::K8sPodUid => workload
                .facts
                .as_ref()
                .and_then(|facts| super::facts::value(facts, id))
                .or_else(|| told(&workload.pod_uid)),
            FieldId::K8sPodQos => told(&workload.pod_qos),
            FieldId::EcsTaskId => told(&workload.ecs_task),
            FieldId::Unit => told(&workload.unit),
            FieldId::Slice => told(&workload.slice),
            FieldId::LoginUid => Some(Value::Int(workload.login_uid?.into())),
            FieldId::LoginSession => told(&workload.login_session),
            _ => None,
        }
    }
}
