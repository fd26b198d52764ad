//! Paths as runtimes and systemd make them, and such as others would like to.

use super::*;

const ID: &str = "4f0a5a3b1c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f607";
const INNER: &str = "aaaaaaaabbbbbbbbccccccccddddddddeeeeeeeeffffffff0000000011111111";
const UID: &str = "8a5f1e0c-6b1d-4d57-9f5d-0c5b7c3e2a11";
const TASK: &str = "0123456789abcdef0123456789abcdef";

/// Kind, container, runtime, pod, its quality, unit, slice, and what is below the workload's own cgroup.
fn told(path: &str) -> (String, String, String, String, String, String) {
    let place = classify(path);
    (
        format!("{} {}", place.kind, place.runtime)
            .trim()
            .to_owned(),
        place.container.into(),
        format!("{} {}", place.pod_uid, place.pod_qos)
            .trim()
            .to_owned(),
        place.unit.into(),
        place.slice.into(),
        path[place.root..].into(),
    )
}

fn expect(path: &str, wanted: [&str; 6]) {
    let [kind, container, pod, unit, slice, rest] = wanted.map(str::to_owned);
    assert_eq!(
        told(path),
        (kind, container, pod, unit, slice, rest),
        "{path}"
    );
}

#[test]
fn what_runtimes_and_systemd_name_is_told() {
    let under = UID.replace('-', "_");
    let burst = format!("{UID} burstable");
    let guaranteed = format!("{UID} guaranteed");
    let best = format!("{UID} besteffort");
    expect("/", ["host", "", "", "", "", ""]);
    expect(
        &format!("/docker/{ID}"),
        ["container docker", ID, "", "", "", ""],
    );
    expect(
        &format!("/docker/{ID}/init.scope/x"),
        ["container docker", ID, "", "", "", "/init.scope/x"],
    );
    expect(
        &format!("/system.slice/docker-{ID}.scope"),
        ["container docker", ID, "", "", "system.slice", ""],
    );
    expect(
        &format!("/kubepods/burstable/pod{UID}/{ID}"),
        ["container", ID, &burst, "", "", ""],
    );
    expect(
        &format!("/kubepods/burstable/pod{UID}"),
        ["pod", "", &burst, "", "", ""],
    );
    expect(
        &format!("/kubelet/kubepods/pod{UID}/{ID}/sub"),
        ["container", ID, &guaranteed, "", "", "/sub"],
    );
    let slice = format!("kubepods-besteffort-pod{under}.slice");
    expect(
        &format!("/kubepods.slice/kubepods-besteffort.slice/{slice}/cri-containerd-{ID}.scope"),
        ["container containerd", ID, &best, "", &slice, ""],
    );
    let slice = format!("kubepods-pod{under}.slice");
    expect(
        &format!("/kubepods.slice/{slice}/crio-{ID}.scope"),
        ["container cri-o", ID, &guaranteed, "", &slice, ""],
    );
    // What watches over a pod's containers is not the pod.
    expect(
        &format!("/kubepods.slice/{slice}/crio-conmon-{ID}.scope"),
        ["cgroup", "", "", "", &slice, ""],
    );
    expect(
        &format!(
            "/system.slice/containerd.service/kubepods-burstable-pod{under}.slice:cri-containerd:{ID}"
        ),
        [
            "container containerd",
            ID,
            &burst,
            "containerd.service",
            "system.slice",
            "",
        ],
    );
    expect(
        &format!("/machine.slice/libpod-{ID}.scope/container"),
        [
            "container podman",
            ID,
            "",
            "",
            "machine.slice",
            "/container",
        ],
    );
    expect(
        &format!("/libpod_parent/libpod-{ID}"),
        ["container podman", ID, "", "", "", ""],
    );
    expect(
        &format!("/machine.slice/libpod-conmon-{ID}.scope"),
        [
            "unit",
            "",
            "",
            &format!("libpod-conmon-{ID}.scope"),
            "machine.slice",
            "",
        ],
    );
    expect("/lxc.payload.web", ["container lxc", "web", "", "", "", ""]);
    expect(
        "/machine.slice/systemd-nspawn@web.service/payload/init.scope",
        [
            "machine nspawn",
            "web",
            "",
            "systemd-nspawn@web.service",
            "machine.slice",
            "/payload/init.scope",
        ],
    );
    expect(
        "/system.slice/nginx.service/worker",
        ["unit", "", "", "nginx.service", "system.slice", "/worker"],
    );
    expect("/system.slice", ["slice", "", "", "", "system.slice", ""]);
    expect("/mine/of/all", ["cgroup", "", "", "", "", ""]);
}

#[test]
fn tasks_of_ecs_and_logins_are_told() {
    let path = format!("/ecs/{TASK}/{ID}");
    assert_eq!(
        (classify(&path).ecs_task, classify(&path).container),
        (TASK, ID)
    );
    let path = format!("/ecs/{TASK}/{TASK}-1234567890");
    assert_eq!(classify(&path).ecs_task, TASK);
    assert_eq!(classify(&path).container, &path[path.len() - 43..]);
    let path = format!("/ecstasks.slice/ecstasks-{TASK}.slice/docker-{ID}.scope");
    assert_eq!(
        (classify(&path).ecs_task, classify(&path).runtime),
        (TASK, "docker")
    );
    let place = classify("/user.slice/user-1000.slice/session-3.scope");
    assert_eq!((place.login_uid, place.login_session), (Some(1000), "3"));
    assert_eq!((place.kind, place.unit), (Kind::Session, "session-3.scope"));
}

/// Who cannot make a cgroup at the top cannot take another's name.
#[test]
fn an_imitation_is_not_believed() {
    // A user's manager hands its cgroups to the user.
    let path =
        format!("/user.slice/user-1000.slice/user@1000.service/kubepods/burstable/pod{UID}/{ID}");
    let place = classify(&path);
    assert_eq!(
        (place.pod_uid.as_str(), place.unit, place.by_host),
        ("", "user@1000.service", false)
    );
    // So does a unit with Delegate= to its user.
    let path = format!("/system.slice/app.service/kubepods/pod{UID}/{ID}");
    let place = classify(&path);
    assert_eq!(
        (place.pod_uid.as_str(), place.unit, place.by_host),
        ("", "app.service", false)
    );
    let under = UID.replace('-', "_");
    let path = format!("/system.slice/app.service/kubepods-pod{under}.slice:cri-containerd:{ID}");
    assert_eq!(classify(&path).pod_uid, "");
    // A container that may make cgroups makes them below its own.
    let path = format!("/docker/{ID}/kubepods/burstable/pod{UID}/{INNER}");
    let place = classify(&path);
    assert_eq!(
        (place.container, place.nested, place.pod_uid.as_str()),
        (ID, INNER, "")
    );
    assert_eq!(&path[..place.root], format!("/docker/{ID}"));
    // A user's unit of the name of a system's.
    let place = classify("/user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service");
    assert_eq!(place.unit, "user@1000.service");
    assert_eq!(place.slice, "user-1000.slice");
}

#[test]
fn arbitrary_paths_never_panic() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let path = String::from_utf8_lossy(bytes);
        let place = classify(&path);
        assert!(path.get(..place.root).is_some());
    });
}
