//! The fields that others than the kernel tell: runtimes of workloads, the cloud and the system of the host.

use std::time::Duration;

use super::{Items, UNKNOWN_TEXT, Value, View, list, text};
use crate::catalogue::FieldId;
use crate::v1::{Cloud, Facts};

/// An agent tells what it knows of living workloads again after so long, so that what nobody tells any more can be given up.
pub const TOLD_AGAIN: Duration = Duration::from_secs(6 * 3600);

/// Of [`OF_FACTS`] so many are of workloads.
const OF_WORKLOADS: usize = 21;

/// Those of workloads, then those of hosts.
pub const OF_FACTS: [FieldId; 36] = [
    FieldId::WorkloadSource,
    FieldId::WorkloadPendingMs,
    FieldId::ContainerName,
    FieldId::ContainerImage,
    FieldId::ContainerImageTag,
    FieldId::ContainerImageDigest,
    FieldId::ContainerImageId,
    FieldId::ContainerLabels,
    FieldId::ContainerLabelsFlaws,
    FieldId::EcsCluster,
    FieldId::EcsTaskArn,
    FieldId::EcsTaskFamily,
    FieldId::EcsContainerName,
    FieldId::K8sPodName,
    FieldId::K8sNamespace,
    FieldId::K8sLabels,
    FieldId::K8sLabelsFlaws,
    FieldId::K8sOwnerKind,
    FieldId::K8sOwnerName,
    FieldId::K8sServiceAccount,
    FieldId::K8sNode,
    FieldId::CloudProvider,
    FieldId::CloudAccount,
    FieldId::CloudRegion,
    FieldId::CloudZone,
    FieldId::CloudInstanceId,
    FieldId::CloudInstanceType,
    FieldId::CloudImage,
    FieldId::CloudRole,
    FieldId::CloudScalingGroup,
    FieldId::CloudTags,
    FieldId::CloudTagsFlaws,
    FieldId::HostOs,
    FieldId::HostOsId,
    FieldId::HostKernel,
    FieldId::HostMachineId,
];

/// Whether the field is told of workloads.
#[must_use]
pub fn is_of_workload(id: FieldId) -> bool {
    OF_FACTS[..OF_WORKLOADS].contains(&id)
}

/// Whether it is the kubelet that tells it, after the runtime.
fn is_of_kubelet(id: FieldId) -> bool {
    matches!(
        id,
        FieldId::K8sOwnerKind
            | FieldId::K8sOwnerName
            | FieldId::K8sServiceAccount
            | FieldId::K8sNode
    )
}

/// Newer facts, with what the kubelet has said of the pod before if they say nothing of it: that does not change, and who tells of the
/// pod again may not have asked yet.
#[must_use]
pub fn with_pod_of(mut facts: Facts, before: &Facts) -> Facts {
    fn of_kubelet(facts: &mut Facts) -> [&mut String; 4] {
        [
            &mut facts.owner_kind,
            &mut facts.owner_name,
            &mut facts.service_account,
            &mut facts.node,
        ]
    }
    let same = !facts.pod_uid.is_empty() && facts.pod_uid == before.pod_uid;
    if same && of_kubelet(&mut facts).iter().all(|told| told.is_empty()) {
        let mut before = before.clone();
        for (told, before) in of_kubelet(&mut facts)
            .into_iter()
            .zip(of_kubelet(&mut before))
        {
            *told = std::mem::take(before);
        }
    }
    facts
}

/// Whether the field is told of hosts.
#[must_use]
pub fn is_of_host(id: FieldId) -> bool {
    OF_FACTS[OF_WORKLOADS..].contains(&id)
}

/// What facts say of a field; `None` if nothing. Of a pod's uid, too: a runtime's word counts more than a path.
/// What somebody is still asked for, or has told so that it could not be read, is unknown, not absent: to rules in the agent and
/// to searches at the collector.
#[must_use]
pub fn value(facts: &Facts, id: FieldId) -> Option<Value<'_>> {
    let asked = match id {
        FieldId::ContainerName
        | FieldId::ContainerImage
        | FieldId::ContainerImageTag
        | FieldId::ContainerImageDigest
        | FieldId::ContainerImageId
        | FieldId::ContainerLabels
        | FieldId::EcsCluster
        | FieldId::EcsTaskArn
        | FieldId::EcsTaskFamily
        | FieldId::EcsContainerName
        | FieldId::K8sPodName
        | FieldId::K8sNamespace
        | FieldId::K8sLabels => facts.untold,
        _ if is_of_kubelet(id) => facts.pod_pending,
        FieldId::CloudRole => {
            facts.cloud_pending || facts.cloud.as_ref().is_some_and(|cloud| cloud.role_untold)
        }
        // On EC2 it is a tag.
        FieldId::CloudScalingGroup => {
            let cut = |cloud: &Cloud| is_cut(cloud.tags_flaws) && cloud.provider == "aws";
            facts.cloud_pending || facts.cloud.as_ref().is_some_and(cut)
        }
        _ => facts.cloud_pending && id.info().name.starts_with("cloud."),
    };
    told(facts, id).or_else(|| asked.then_some(Value::Unknown))
}

/// Whether something is missing of a list with these flaws.
fn is_cut(flaws: u32) -> bool {
    flaws & UNKNOWN_TEXT != 0
}

fn told(facts: &Facts, id: FieldId) -> Option<Value<'_>> {
    let told = |told| string(told);
    let cloud = || facts.cloud.as_ref();
    let system = || facts.system.as_ref();
    // Of a name that is not whole it is not told which.
    let labels = |labels, flaws| list(Items::Strings(labels), !facts.cut && !is_cut(flaws));
    let flaws = |flaws| list(Items::Flaws(flaws), true);
    let has_container = !facts.container_name.is_empty();
    let has_pod = !facts.pod_name.is_empty();
    match id {
        FieldId::WorkloadSource => told(&facts.source),
        FieldId::WorkloadPendingMs => (facts.pending_ns != 0).then(|| {
            Value::Int(
                (facts.pending_ns / 1_000_000)
                    .try_into()
                    .unwrap_or(i64::MAX),
            )
        }),
        FieldId::ContainerName => told(&facts.container_name),
        FieldId::ContainerImage => told(&facts.image),
        FieldId::ContainerImageTag => told(&facts.image_tag),
        FieldId::ContainerImageDigest => told(&facts.image_digest),
        FieldId::ContainerImageId => told(&facts.image_id),
        FieldId::EcsCluster => told(&facts.ecs_cluster),
        FieldId::EcsTaskArn => told(&facts.ecs_task_arn),
        FieldId::EcsTaskFamily => told(&facts.ecs_family),
        FieldId::EcsContainerName => told(&facts.ecs_container),
        FieldId::ContainerLabels => {
            has_container.then(|| labels(&facts.container_labels, facts.container_labels_flaws))
        }
        FieldId::ContainerLabelsFlaws => {
            (has_container || facts.untold).then(|| flaws(facts.container_labels_flaws))
        }
        FieldId::K8sPodName => told(&facts.pod_name),
        FieldId::K8sPodUid => told(&facts.pod_uid),
        FieldId::K8sNamespace => told(&facts.namespace),
        FieldId::K8sLabels => has_pod.then(|| labels(&facts.pod_labels, facts.pod_labels_flaws)),
        FieldId::K8sLabelsFlaws => (has_pod || facts.untold).then(|| flaws(facts.pod_labels_flaws)),
        FieldId::K8sOwnerKind => told(&facts.owner_kind),
        FieldId::K8sOwnerName => told(&facts.owner_name),
        FieldId::K8sServiceAccount => told(&facts.service_account),
        FieldId::K8sNode => told(&facts.node),
        FieldId::CloudProvider => told(&cloud()?.provider),
        FieldId::CloudAccount => told(&cloud()?.account),
        FieldId::CloudRegion => told(&cloud()?.region),
        FieldId::CloudZone => told(&cloud()?.zone),
        FieldId::CloudInstanceId => told(&cloud()?.instance_id),
        FieldId::CloudInstanceType => told(&cloud()?.instance_type),
        FieldId::CloudImage => told(&cloud()?.image),
        FieldId::CloudRole => told(&cloud()?.role),
        FieldId::CloudScalingGroup => told(&cloud()?.scaling_group),
        FieldId::CloudTags => {
            let cloud = cloud()?;
            let whole = !is_cut(cloud.tags_flaws);
            Some(list(Items::Strings(&cloud.tags), whole))
        }
        FieldId::CloudTagsFlaws => Some(flaws(cloud()?.tags_flaws)),
        FieldId::HostOs => told(&system()?.os),
        FieldId::HostOsId => told(&system()?.os_id),
        FieldId::HostKernel => told(&system()?.kernel),
        FieldId::HostMachineId => told(&system()?.machine_id),
        _ => None,
    }
}

/// Whether what facts say of a field is not known, or not whole: of a list its end is missing.
#[must_use]
pub fn is_unknown(facts: &Facts, id: FieldId) -> bool {
    match value(facts, id) {
        Some(Value::Unknown) => true,
        Some(Value::List(items)) => !items.complete,
        _ => false,
    }
}

fn string(told: &str) -> Option<Value<'_>> {
    (!told.is_empty()).then(|| text(told))
}

impl<'a> View<'a> {
    /// Inside the agent: at the collector facts are joined to rows, not to events.
    pub(super) fn told(&self, id: FieldId) -> Option<Value<'a>> {
        if is_of_host(id) {
            return value(self.batch.host.as_ref()?, id);
        }
        if !is_of_workload(id) {
            return None;
        }
        match self.in_workload() {
            // Which one it is is not known, and so what would be told of it.
            None => self.image().map(|_| Value::Unknown),
            Some(workload) => match &workload.facts {
                // Of a container that is not named yet its pod may be.
                Some(facts) => {
                    value(facts, id).or_else(|| workload.pending.then_some(Value::Unknown))
                }
                None => workload.pending.then_some(Value::Unknown),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Host;
    use crate::v1::{Batch, Event, Image, Workload};

    #[test]
    fn what_the_kubelet_has_said_of_a_pod_outlives_who_tells_of_it_again() {
        let told = |pod: &str, owner: &str, name: &str| Facts {
            pod_uid: pod.into(),
            owner_kind: owner.into(),
            container_name: name.into(),
            ..Facts::default()
        };
        let before = told("u-1", "Job", "old");
        let after = |pod, owner| with_pod_of(told(pod, owner, "new"), &before);
        assert_eq!(after("u-1", ""), told("u-1", "Job", "new"));
        assert_eq!(after("u-1", "ReplicaSet"), told("u-1", "ReplicaSet", "new"));
        assert_eq!(after("u-2", ""), told("u-2", "", "new"));
        let nothing = with_pod_of(Facts::default(), &told("", "Job", "old"));
        assert_eq!(nothing, Facts::default());
    }

    #[test]
    fn what_the_kubelet_is_asked_for_is_unknown_until_it_has_answered() {
        let judged = |pod_pending, owner: &str, id| {
            let facts = Facts {
                pod_name: "cart-1".into(),
                owner_kind: owner.into(),
                pod_pending,
                ..Facts::default()
            };
            let batch = Batch {
                workloads: vec![Workload {
                    facts: Some(facts),
                    ..Workload::default()
                }],
                images: vec![Image {
                    workload: 1,
                    ..Image::default()
                }],
                ..Batch::default()
            };
            let event = Event {
                image: 1,
                ..Event::default()
            };
            let view = View {
                host: &Host::default(),
                batch: &batch,
                event: &event,
                alert: None,
            };
            format!("{:?}", view.get(id))
        };
        let kind = FieldId::K8sOwnerKind;
        assert_eq!(judged(true, "", kind), "Unknown");
        assert_eq!(judged(false, "", kind), "Absent");
        assert!(judged(true, "Job", kind).contains("Job"));
        assert!(judged(true, "", FieldId::K8sPodName).contains("cart-1"));
        assert_eq!(judged(true, "", FieldId::ContainerName), "Absent");
    }
}
