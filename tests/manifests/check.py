"""What is installed by others' tools is checked by those tools' own rules: the chart by Helm and by the types of each
Kubernetes it is for, what is for AWS by moto's, Terraform's grammar and cloud-init's schema. Prints a line for each, and fails at
the first that does not hold."""

import pathlib
import re
import subprocess
import sys

import helm_python as helm
import kubernetes_validate
import kubernetes_validate.utils
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "deploy/helm"))
import render  # noqa: E402

# The oldest that Chart.yaml is for, and all that the types are there for.
KUBERNETES = sorted({version for version in kubernetes_validate.utils.all_versions() if version >= "1.30"})

# What an operator may ask for, and what has to come out of it.
VALUES = {
    "as it is": {},
    "agents only, elsewhere's collector": {
        "collector": {"enabled": False},
        "agent": {"collector": "collector.example:7443", "join": {"method": "ec2"}, "hostNetwork": True},
    },
    "everything": {
        "image": {"registry": "registry.example/sumun", "tag": "1.2.3@sha256:" + "0" * 64, "pullSecrets": ["pull"]},
        "agent": {
            "join": {"method": "kubernetes", "audience": "x"},
            "settings": '[log]\nlevel = "debug"\n',
            "policies": {"web.toml": '[policy]\nname = "web"\nversion = 1\n'},
            "runtimes": ["/run/crio", "/run/k3s/containerd"],
            "nodeSelector": {"a": "b"},
            "affinity": {"nodeAffinity": {}},
            "podAnnotations": {"a": "1"},
            "maxUnavailable": 1,
            "priorityClass": {"name": "system-node-critical", "value": None},
        },
        "collector": {
            "names": ["collector.example"],
            "joins": '[[join]]\nname = "here"\nmethod = "kubernetes"\n',
            "joinFiles": {"keys.json": '{"keys": []}'},
            "service": {"type": "LoadBalancer", "port": 443, "annotations": {"a": "b"}},
            "storage": {"size": "1Ti", "className": "fast"},
        },
        "networkPolicy": {"enabled": True, "collectorFrom": ["10.0.0.0/8", "fd00::/8"]},
    },
}

# What must not pass.
WRONG = [
    {"agents": {}},
    {"agent": {"capabilities": ["ALL"]}},
    {"agent": {"capabilities": ["CAP_ALL"]}},
    {"agent": {"join": {"method": "password"}}},
    {"agent": {"join": {"token": "x"}}},
    {"agent": {"collector": "collector.example"}},
    {"agent": {"runtimes": ["run/containerd"]}},
    {"agent": {"policies": {"../web.toml": "x"}}},
    {"agent": {"bpffs": "/tmp"}},
    {"agent": {"privileged": True}},
    {"agent": {"resources": {"limits": {"memory": "much"}}}},
    {"agent": {"priorityClass": {"name": "x", "value": 2000000000}}},
    {"collector": {"service": {"port": 0}}},
    {"collector": {"storage": {"size": "50"}}},
    {"collector": {"replicas": 2}},
    {"networkPolicy": {"collectorFrom": ["everybody"]}},
    {"image": {"tag": "a b"}},
]


def one(documents: list[dict], kind: str, name: str) -> dict | None:
    found = [d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name]
    assert len(found) <= 1, f"{kind} {name} is there {len(found)} times"
    return found[0] if found else None


def chart() -> None:
    told = helm.lint(str(render.CHART))
    assert not told["errors"] and all(message["severity"] < 3 for message in told["messages"]), told
    for name, values in VALUES.items():
        documents = render.documents(render.render(values))
        for document in documents:
            for version in KUBERNETES:
                kubernetes_validate.validate(document, version, strict=True)
        bounds(name, documents)
        print(f"chart, {name}: {len(documents)} objects are good for Kubernetes {KUBERNETES[0]} to {KUBERNETES[-1]}")
    for values in WRONG:
        try:
            render.render(values)
        except helm.HelmError:
            continue
        raise AssertionError(f"{values} was taken")
    print(f"chart: {len(WRONG)} wrong values are refused by the schema")


def bounds(name: str, documents: list[dict]) -> None:
    """What an agent and a collector may do on a node, whatever is asked for."""
    pods = {d["metadata"]["name"]: d["spec"]["template"]["spec"] for d in documents if d["kind"] in ("DaemonSet", "StatefulSet")}
    for part, pod in pods.items():
        for container in pod.get("initContainers", []) + pod["containers"]:
            context = container["securityContext"]
            assert not context.get("privileged"), f"{name}: {part} is privileged"
            assert context["allowPrivilegeEscalation"] is False and context["readOnlyRootFilesystem"] is True
            assert context["capabilities"]["drop"] == ["ALL"]
            assert "memory" in container["resources"]["limits"], f"{name}: {container['name']} has no ceiling"
            known = {volume["name"] for volume in pod["volumes"]} | {"data"}
            assert {mount["name"] for mount in container["volumeMounts"]} <= known
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    if collector := pods.get("sumun-collector"):
        assert collector["securityContext"]["runAsNonRoot"] and "hostPID" not in collector
        assert not any("hostPath" in volume for volume in collector["volumes"])
        assert all("add" not in c["securityContext"]["capabilities"] for c in collector["containers"])
    agent = pods["sumun-agent"]
    assert agent["hostPID"] and "hostIPC" not in agent
    written = {m["mountPath"] for c in agent["containers"] for m in c["volumeMounts"] if not m.get("readOnly")}
    assert written == {"/etc/sumun", "/var/lib/sumun/agent", "/run/sumun", "/tmp", "/sys/fs/bpf"}, written
    # Roles would be the way from a node to the cluster: there are none.
    assert not any("Role" in document["kind"] for document in documents)
    # What a policy selects has to be what there is.
    for policy in (d for d in documents if d["kind"] == "NetworkPolicy"):
        wanted = policy["spec"]["podSelector"]["matchLabels"].items()
        owner = one(documents, "DaemonSet", policy["metadata"]["name"]) or one(documents, "StatefulSet", policy["metadata"]["name"])
        assert wanted <= owner["spec"]["template"]["metadata"]["labels"].items()


def plain() -> None:
    subprocess.run([sys.executable, ROOT / "deploy/helm/render.py", "--check"], check=True)
    kustomization = yaml.safe_load((render.PLAIN / "kustomization.yaml").read_text())
    files = {path.name for path in render.PLAIN.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == files, files
    for name in files:
        for document in yaml.safe_load_all((render.PLAIN / name).read_text()):
            kubernetes_validate.validate(document, KUBERNETES[-1], strict=True)
    print(f"kubernetes: {len(files)} files are what the chart gives")


def main() -> None:
    for check in (chart, plain):
        check()


main()
