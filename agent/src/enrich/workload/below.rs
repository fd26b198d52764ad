//! What is the same for all cgroups below one, those to come included.
//!
//! Nobody can change it by the name of a cgroup further down: what stands below a container, a pod or a unit of the host
//! belongs to it ([`super::path`]). So rules can be answered for a container before its cgroup is there.

use sumun_proto::FieldId;
use sumun_proto::v1;
use sumun_proto::view::facts::{is_of_host, is_of_workload};

use super::path::{Kind, Place, is_runtime};

/// Whether what a field says of the workload of a cgroup, it says of all cgroups below.
#[must_use]
pub fn holds_below(field: FieldId, place: &Place<'_>, told: &v1::Workload) -> bool {
    use FieldId::{
        ContainerNestedId, EcsTaskId, HostId, HostName, K8sLabels, K8sLabelsFlaws, K8sNamespace,
        K8sPodName, K8sPodQos, K8sPodUid, LoginSession, LoginUid, Slice, Unit,
    };
    if is_of_host(field) || matches!(field, HostId | HostName) {
        return true;
    }
    // Runtimes are asked only of containers that they, or root, have made: of others there is never anything.
    let never_told = is_of_workload(field) || matches!(field, K8sPodUid | K8sPodQos);
    let of_place = matches!(field, Unit | Slice | LoginUid | LoginSession);
    match place.kind {
        Kind::Container | Kind::Machine => field != ContainerNestedId,
        Kind::Pod => match field {
            K8sPodName | K8sNamespace | K8sLabels | K8sLabelsFlaws | K8sPodUid => {
                told.facts.is_some()
            }
            K8sPodQos | EcsTaskId => true,
            _ => of_place,
        },
        Kind::Unit | Kind::Session if !is_runtime(place.unit) => of_place || never_told,
        _ => place.login_uid.is_some() && never_told,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enrich::workload::{Workload, Workloads};
    use sumun_proto::view::facts::OF_FACTS;
    use sumun_proto::view::workload::OF_WORKLOAD;
    use sumun_proto::{Host, View};

    const ID: &str = "4f0a5a3b1c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f607";
    const INNER: &str = "aaaaaaaabbbbbbbbccccccccddddddddeeeeeeeeffffffff0000000011111111";
    const UID: &str = "8a5f1e0c-6b1d-4d57-9f5d-0c5b7c3e2a11";

    /// What the fields say.
    fn values(fields: &[FieldId], workload: &Workload) -> Vec<String> {
        let batch = v1::Batch {
            workloads: vec![workload.told.clone()],
            images: vec![v1::Image {
                workload: 1,
                ..v1::Image::default()
            }],
            ..v1::Batch::default()
        };
        let event = v1::Event {
            image: 1,
            ..v1::Event::default()
        };
        let view = View {
            host: &Host::default(),
            batch: &batch,
            event: &event,
            alert: None,
        };
        let all = fields.iter().map(|field| format!("{:?}", view.get(*field)));
        all.collect()
    }

    /// Every path of up to four of these, below each of those.
    #[test]
    fn what_holds_below_holds_for_every_path_below() {
        let under = UID.replace('-', "_");
        let other = under.replace('8', "9");
        let names: Vec<String> = [
            "a",
            "docker",
            ID,
            "system.slice",
            "user-7.slice",
            "nginx.service",
            "containerd.service",
            "session-3.scope",
            "user@7.service",
            "kubepods",
            "burstable",
            "ecs",
            "lxc",
            "machine.slice",
            "machine-x.scope",
            "systemd-nspawn@y.service",
            "ecstasks-t.slice",
        ]
        .into_iter()
        .map(str::to_owned)
        .chain([
            format!("docker-{ID}.scope"),
            format!("cri-containerd-{INNER}.scope"),
            format!("pod{UID}"),
            format!("kubepods-besteffort-pod{under}.slice"),
            format!("kubepods-pod{other}.slice:cri-containerd:{ID}"),
        ])
        .collect();
        let fields: Vec<FieldId> = OF_WORKLOAD.into_iter().chain(OF_FACTS).collect();
        let at = |path: &str| {
            let mut all = Workloads {
                asking: true,
                ..Workloads::default()
            };
            all.made(7, path, 0);
            let pod = v1::Facts {
                source: "cri".into(),
                pod_name: "cart-0".into(),
                pod_uid: UID.into(),
                pod_labels: vec!["app=cart".into()],
                ..v1::Facts::default()
            };
            all.named(7, &pod);
            all.of(7).expect("it was made")
        };
        let mut checked = 0;
        let mut check = |path: &str, below: &str| {
            let place = super::super::path::classify(path);
            let above = at(path);
            let holds = fields.iter().copied().filter(|field| {
                // Pods are named one by one.
                let of_pod = place.kind == Kind::Pod && is_of_workload(*field);
                !of_pod && holds_below(*field, &place, &above.told)
            });
            let holds: Vec<FieldId> = holds.collect();
            if !holds.is_empty() {
                checked += holds.len();
                let found = at(below);
                assert_eq!(
                    values(&holds, &above),
                    values(&holds, &found),
                    "{holds:?} of {path} and {below}"
                );
            }
        };
        for (number, first) in names.iter().enumerate() {
            for second in &names {
                let top = format!("/{first}/{second}");
                for third in &names {
                    let middle = format!("{top}/{third}");
                    check(&top, &middle);
                    check(&format!("/{first}"), &middle);
                    // A quarter of the others, each with some.
                    for fourth in names.iter().skip(number % 4).step_by(4) {
                        check(&middle, &format!("{middle}/{fourth}"));
                    }
                }
            }
        }
        assert!(checked > 100_000, "{checked}");
    }
}
