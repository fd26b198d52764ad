"""What is installed by others' tools is checked by those tools' own rules: the chart by Helm and by the types of each
Kubernetes it is for, what is for AWS by moto's, Terraform's grammar and cloud-init's schema. Prints a line for each, and fails at
the first that does not hold."""

import base64
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

import hcl2
import helm_python as helm
import jsonschema
import kubernetes_validate
import kubernetes_validate.utils
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Nothing is left in the clone.
sys.dont_write_bytecode = True
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
            "kubelet": {"enabled": True, "certificate": "/var/lib/kubelet/pki/kubelet.crt"},
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
            "askIssuer": True,
            "service": {"type": "LoadBalancer", "port": 443, "annotations": {"a": "b"}},
            "storage": {"size": "1Ti", "className": "fast"},
        },
        "networkPolicy": {"enabled": True, "collectorFrom": ["10.0.0.0/8", "fd00::/8"], "collectorTo": ["10.96.0.1/32"]},
    },
    "agents on the nodes' network": {
        "agent": {"hostNetwork": True, "join": {"method": "ec2"}, "kubelet": {"enabled": True}},
        "networkPolicy": {"collectorFrom": ["10.0.0.0/16"]},
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
    {"networkPolicy": {"collectorTo": ["everybody"]}},
    {"collector": {"service": {"externalTrafficPolicy": "Nearest"}}},
    # Its agents would not reach the collector.
    {"agent": {"hostNetwork": True}},
    {"agent": {"kubelet": {"enabled": True, "resource": "pods"}}},
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
    # Where a chart's own policies were and are no more, nodes do not go without any.
    enrolment = agent["initContainers"][0]["args"]
    own = "policies" in {volume["name"] for volume in agent["volumes"]}
    assert ("--no-policies" in enrolment) == own and ("--starter-policies" in enrolment) != own
    service = one(documents, "Service", "sumun-collector")
    if service and service["spec"]["type"] != "ClusterIP":
        assert service["spec"]["externalTrafficPolicy"] == "Local"
    # Roles would be the way from a node to the cluster: there are none, but the one to ask the kubelet, where that is wanted.
    asked = "kubelet" in {volume["name"] for volume in agent["volumes"]}
    assert sum("Role" in document["kind"] for document in documents) == (2 if asked else 0)
    if asked:
        assert one(documents, "ClusterRole", "sumun-agent")["rules"] == [{"apiGroups": [""], "resources": ["nodes/pods"], "verbs": ["get"]}]
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


    if not shutil.which("kubectl"):
        print("SKIPPED kubernetes, by kustomize: kubectl is not installed")
        return
    built = subprocess.run(["kubectl", "kustomize", render.PLAIN], check=True, capture_output=True, text=True).stdout
    name = lambda document: (document["kind"], document["metadata"]["name"])  # noqa: E731
    by_kustomize = {name(document): document for document in yaml.safe_load_all(built)}
    written = {name(document): document for file in files for document in yaml.safe_load_all((render.PLAIN / file).read_text())}
    assert by_kustomize == written, set(by_kustomize) ^ set(written)
    print(f"kubernetes: kustomize makes the same {len(written)} objects of them")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


def kubernetes_page() -> None:
    """What docs/install-kubernetes.md has people write is taken, together and each alone."""
    told = [yaml.safe_load(block) for block in blocks("install-kubernetes.md", "yaml")]
    assert len(told) == 4, len(told)
    for values in told:
        documents = render.documents(render.render(values))
        for document in documents:
            kubernetes_validate.validate(document, KUBERNETES[-1], strict=True)
        bounds(str(values), documents)
        text = "\n".join(value for d in documents if d["kind"] in ("ConfigMap", "Secret") for value in (d.get("data") or {}).values())
        agent, collector = values.get("agent", {}), values.get("collector", {})
        # What was written is where it is read.
        for wanted in [*agent.get("policies", {}).values(), *collector.get("joinFiles", {}).values(), collector.get("joins", "")]:
            assert wanted.strip() in text, wanted
        containers = [c for d in documents if d["kind"] == "DaemonSet" for c in d["spec"]["template"]["spec"]["initContainers"]]
        if "join" in agent:
            assert f"--join={agent['join']['method']}" in containers[0]["args"], containers[0]["args"]
        assert ("kubelet" in agent) == (one(documents, "ClusterRole", "sumun-agent") is not None)
    [line] = [line for block in blocks("install-kubernetes.md", "sh") for line in block.splitlines() if line.startswith("helm install")]
    words = shlex.split(line)
    values: dict = {}
    for key, value in (word.split("=", 1) for flag, word in zip(words, words[1:]) if flag == "--set"):
        *folders, last = key.split(".")
        place = values
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = value
    assert (ROOT / words[3] / "Chart.yaml").is_file(), words
    pods = [d["spec"]["template"]["spec"] for d in render.documents(render.render(values)) if d["kind"] in ("DaemonSet", "StatefulSet")]
    images = [c["image"] for pod in pods for c in pod.get("initContainers", []) + pod["containers"]]
    assert all(image.startswith("registry.example/sumun/sumun-") for image in images), images
    print(f"kubernetes: {len(told)} sets of values and the installation of docs/install-kubernetes.md are good")


AWS = ROOT / "deploy/aws"


def command(client_of, line: str, change: dict[str, str]) -> dict:
    """An `aws` command as its program reads it: options are the members of the request, `file://` is a file's content, and lists and maps
    have their short form."""
    from botocore import xform_name

    _, service, operation, *options = shlex.split(line)
    client = client_of(service)
    method = operation.replace("-", "_")
    shape = client.meta.service_model.operation_model(client.meta.method_to_api_mapping[method]).input_shape
    members = {"--" + xform_name(name, "-"): (name, member) for name, member in shape.members.items()}
    request: dict = {}
    for option, value in zip(options[::2], options[1::2], strict=True):
        for name, wanted in change.items():
            value = value.replace(name, wanted)
        if value.startswith("file://"):
            value = (ROOT / value.removeprefix("file://")).read_text()
        if option == "--cli-input-json":
            request |= json.loads(value)
            continue
        name, member = members[option]
        pairs = dict(pair.split("=", 1) for pair in value.split(",")) if member.type_name in ("list", "map") else {}
        if member.type_name == "map":
            value = {key: [item] for key, item in pairs.items()}
        elif member.type_name == "list":
            value = [{key: item if key == "Key" else [item] for key, item in pairs.items()}]
        request[name] = value
    return getattr(client, method)(**request)


def ecs_page() -> None:
    """docs/install-ecs.md: its commands as they stand, answered by moto. (What is for a shell of the instance, its user data and its
    entry for the collector: tests/tests/install/cloud.rs.)"""
    import boto3
    import moto

    lines = [line for block in blocks("install-ecs.md", "sh") for line in block.splitlines() if line.startswith("aws ")]
    change = {
        "HOST:PORT": "collector.example:7443",
        "CLUSTER": "c",
        "caBase64=…": "caBase64=" + base64.b64encode(b"-----BEGIN CERTIFICATE-----").decode().rstrip("="),
        "packageUrl=https://…": "packageUrl=https://packages.example/sumun-agent_0.1.0_amd64.deb",
        "packageSha256=…": "packageSha256=" + "0" * 64,
    }
    left = set(re.findall(r"…|[A-Z]{4,}(?::[A-Z]+)?", " ".join(lines))) - {"DAEMON"}
    assert left == {"…", "HOST:PORT", "CLUSTER"}, left
    with moto.mock_aws():
        boto3.client("ecs").create_cluster(clusterName="c")
        ec2 = boto3.client("ec2")
        tagged = [{"ResourceType": "instance", "Tags": [{"Key": "role", "Value": "web"}]}]
        ami = ec2.describe_images()["Images"][0]["ImageId"]
        [instance] = ec2.run_instances(ImageId=ami, MinCount=1, MaxCount=1, TagSpecifications=tagged)["Instances"]
        answers = [command(boto3.client, line, change) for line in lines]
        document, sent, definition, service = answers
        assert document["DocumentDescription"]["Name"] == "sumun-install"
        allowed = json.loads((AWS / "ssm-install.json").read_text())["parameters"]
        given = sent["Command"]["Parameters"]
        assert set(given) == set(allowed), given
        for name, [value] in given.items():
            assert re.fullmatch(allowed[name]["allowedPattern"], value), (name, value)
        assert sent["Command"]["InstanceIds"] == [instance["InstanceId"]], sent
        assert definition["taskDefinition"]["family"] == "sumun-agent"
        assert service["service"]["launchType"] == "EC2" and service["service"]["schedulingStrategy"] == "DAEMON"
    print(f"aws: the {len(lines)} commands of docs/install-ecs.md do what it says")


def amazon() -> None:
    """By moto, which answers as SSM and ECS do, with nothing of Amazon's reached."""
    os.environ.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test", AWS_DEFAULT_REGION="eu-west-1")
    import boto3
    import moto

    script = (AWS / "install").read_text()
    document = json.loads((AWS / "ssm-install.json").read_text())
    lines = document["mainSteps"][0]["inputs"]["runCommand"]
    assert "\n".join(lines[1 : lines.index("END OF INSTALL")]) + "\n" == script, "ssm-install.json holds another deploy/aws/install"
    # Whatever stands in a parameter stays in it.
    wanted = set(re.findall(r"\{\{ (\w+) \}\}", lines[-1]))
    assert wanted == set(document["parameters"]), wanted
    for name, parameter in document["parameters"].items():
        assert not re.fullmatch(parameter["allowedPattern"], "x' ; touch /tmp/x ; '"), name
    task = json.loads((AWS / "ecs-agent.json").read_text())
    with moto.mock_aws():
        ssm = boto3.client("ssm")
        made = ssm.create_document(Content=json.dumps(document), Name="sumun-install", DocumentType="Command", DocumentFormat="JSON")
        assert made["DocumentDescription"]["SchemaVersion"] == "2.2"
        told = {p["Name"] for p in ssm.describe_document(Name="sumun-install")["Document"]["Parameters"]}
        assert told == wanted, told
        ecs = boto3.client("ecs")
        # botocore refuses what its model of the API does not have, at any depth.
        made = ecs.register_task_definition(**task)["taskDefinition"]
        assert made["status"] == "ACTIVE" and made["pidMode"] == "host"
        ecs.create_cluster(clusterName="c")
        service = ecs.create_service(cluster="c", serviceName="sumun-agent", taskDefinition="sumun-agent", schedulingStrategy="DAEMON", launchType="EC2")
        assert service["service"]["schedulingStrategy"] == "DAEMON"
    volumes = {volume["name"] for volume in task["volumes"]}
    for container in task["containerDefinitions"]:
        assert not container.get("privileged") and container["readonlyRootFilesystem"]
        assert container["linuxParameters"]["capabilities"]["drop"] == ["ALL"]
        assert {point["sourceVolume"] for point in container["mountPoints"]} <= volumes
    print("aws: the SSM document and the task definition are taken by moto")


def terraform() -> None:
    text = {path.name: path.read_text() for path in (AWS / "terraform").iterdir()}
    parsed = {name: hcl2.loads(content) for name, content in text.items() if name.endswith(".tf")}
    declared = {name.strip('"') for module in parsed.values() for block in module.get("variable", []) for name in block if not name.startswith("__")}
    used = set(re.findall(r"\bvar\.(\w+)", "".join(text.values())))
    assert used <= declared, used - declared
    assert declared <= used, f"{declared - used} are of no use"
    resources = {
        f"{kind.strip(chr(34))}.{name.strip(chr(34))}"
        for module in parsed.values()
        for block in module.get("resource", [])
        for kind, named in block.items()
        if not kind.startswith("__")
        for name in named
    }
    for kind, name in re.findall(r"\b(aws_\w+)\.(\w+)\b", "".join(text[name] for name in parsed)):
        assert f"{kind}.{name}" in resources or f"data.{kind}.{name}" in "".join(text.values()), f"{kind}.{name} is not there"
    for path in re.findall(r"\$\{path\.module\}/([^\"]+)", "".join(text.values())):
        assert (AWS / "terraform" / path).exists(), path
    print(f"terraform: {len(parsed)} files, {len(resources)} resources, {len(declared)} variables fit together")


def fill(template: str, values: dict) -> str:
    """As templatefile() does, of which only this much is used."""

    def loops(match: re.Match) -> str:
        names, over, body = match[1], match[2], match[3]
        items = values[over].items() if isinstance(values[over], dict) else [(item,) for item in values[over]]
        names = [name.strip() for name in names.split(",")]
        return "".join(fill(body, {**values, **dict(zip(names, item))}) for item in items)

    template = re.sub(r"^%\{ for ([\w, ]+) in (\w+) ~\}\n(.*?)^%\{ endfor ~\}\n", loops, template, flags=re.S | re.M)

    def one(match: re.Match) -> str:
        expression = match[1]
        if inner := re.fullmatch(r"(jsonencode|basename)\((.*)\)", expression):
            value = look(inner[2])
            return json.dumps(value) if inner[1] == "jsonencode" else pathlib.PurePath(value).name
        return str(look(expression))

    def look(path: str):
        value = values
        for key in path.split("."):
            value = value[key]
        return value

    return re.sub(r"(?<!\$)\$\{([^}]+)\}", one, template)


def cloud_init() -> None:
    package = {"url": "https://packages.example/sumun.deb", "sha256": "0" * 64}
    join = fill((AWS / "terraform/join.toml.tftpl").read_text(), {"accounts": ["123456789012"], "regions": ["eu-west-1"], "max_age_seconds": 3600})
    agent = {
        "install_base64": base64.b64encode((AWS / "install").read_bytes()).decode(),
        "collector": "collector.example:7443",
        "ca_base64": base64.b64encode(b"-----BEGIN").decode(),
        "package_url": package["url"],
        "package_sha256": package["sha256"],
    }
    collector = {
        "dns_name": "collector.example",
        "packages": [package],
        "region_certificates": {"eu-west-1": "eA==", "us-east-1": "eA=="},
        "join_base64": base64.b64encode(join.encode()).decode(),
    }
    scripts = [(AWS / "install").read_text()]
    schema = pathlib.Path(os.environ.get("SUMUN_CACHE", pathlib.Path.home() / ".cache/sumun")) / "cloud-init-schema.json"
    schema = json.loads(schema.read_text()) if schema.exists() else None
    if not schema:
        print("SKIPPED the schema of cloud-init: it is not there (make setup-test)")
    for name, values in (("user-data.yaml.tftpl", agent), ("terraform/collector-user-data.yaml.tftpl", collector)):
        text = fill((AWS / name).read_text(), values)
        assert text.startswith("#cloud-config\n") and "${" not in re.sub(r"\$\{[a-z_]+##", "", text), name
        files = yaml.safe_load(text)["write_files"]
        scripts += [file["content"] for file in files if file.get("encoding") != "b64"]
        if schema:
            jsonschema.validate(yaml.safe_load(text), schema)
            bad = {"write_files": [{"content": 1}]}
            assert not jsonschema.Draft4Validator(schema).is_valid(bad), "the schema takes anything"
    for script in scripts:
        subprocess.run(["sh", "-n"], input=script.encode(), check=True)
    # The entry that the collector of the module gets is checked by the collector, in tests/tests/joining.rs.
    print(f"cloud-init: user data of agents and of the collector are good, and {len(scripts)} scripts are shell")


def ansible() -> None:
    playbook = ROOT / "deploy/ansible/site.yml"
    role = ROOT / "deploy/ansible/roles/sumun_agent"
    with tempfile.TemporaryDirectory() as home:
        program = pathlib.Path(sys.executable).with_name("ansible-playbook")
        environment = {**os.environ, "ANSIBLE_HOME": home, "ANSIBLE_LOCALHOST_WARNING": "False"}
        subprocess.run([program, "--syntax-check", "-i", "localhost,", playbook], check=True, env=environment, stdout=subprocess.DEVNULL)
    asked = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    usual = yaml.safe_load((role / "defaults/main.yml").read_text())
    assert usual == {name: option["default"] for name, option in asked.items() if not option.get("required")}
    tasks = (role / "tasks/main.yml").read_text()
    used = set(re.findall(r"sumun_agent_[a-z]+", tasks)) - {"sumun_agent_known", "sumun_agent_enrolment", "sumun_agent_status"}
    assert used == set(asked), used ^ set(asked)
    options = (ROOT / "agent/src/cli.rs").read_text()
    for option in re.findall(r'"--([a-z-]+)[="]', tasks):
        assert re.search(rf"pub {option.replace('-', '_')}: ", options), f"the agent has no --{option}"
    print(f"ansible: the role is read by Ansible, and its {len(asked)} variables are those that it asks for")


def main() -> None:
    for check in (chart, plain, kubernetes_page, amazon, ecs_page, terraform, cloud_init, ansible):
        check()


main()
