"""Renders the chart with Helm's own engine, as `helm template` does:

    $SUMUN_VENV/bin/python deploy/helm/render.py            writes deploy/kubernetes, for `kubectl apply -k`
    $SUMUN_VENV/bin/python deploy/helm/render.py --check    says whether it is as it would be written
    $SUMUN_VENV/bin/python deploy/helm/render.py --json     prints what is written there as one JSON array
    $SUMUN_VENV/bin/python deploy/helm/render.py --json F   prints what the chart gives with the values of a YAML file

The engine is in the package helm-python-sdk of deploy/setup/requirements.txt."""

import json
import pathlib
import re
import sys

import helm_python as helm
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/sumun"
PLAIN = ROOT / "deploy/kubernetes"
NAMESPACE = "sumun"
# In this order they are applied; the namespace is written by hand, and first.
PARTS = ["agent", "collector", "network"]


def render(values: dict | None = None) -> dict[str, str]:
    """Each template's text, by its name."""
    with helm.Chart.load(CHART) as chart:
        chart.validate_schema(values or {})
        texts = chart.render(values or {}, name="sumun", namespace=NAMESPACE)
    return {pathlib.PurePath(path).stem: text for path, text in texts.items() if path.endswith(".yaml")}


def documents(texts: dict[str, str]) -> list[dict]:
    return [document for text in texts.values() for document in yaml.safe_load_all(text) if document]


def plain() -> dict[str, str]:
    """The files of deploy/kubernetes that are made from the chart with its own values."""
    made = {}
    for part, text in render().items():
        text = re.sub(r"[ \t]+$", "", text, flags=re.M).strip().replace("managed-by: Helm", "managed-by: kustomize")
        made[f"{part}.yaml"] = f"# Made by deploy/helm/render.py from deploy/helm/sumun: change it there.\n{text}\n"
    return made


def main() -> None:
    version = re.search(r'^\[workspace\.package\]\nversion = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    text = (CHART / "Chart.yaml").read_text()
    if sys.argv[1:] == ["--json"]:
        files = yaml.safe_load((PLAIN / "kustomization.yaml").read_text())["resources"]
        print(json.dumps(documents({name: (PLAIN / name).read_text() for name in files})))
        return
    if sys.argv[1:2] == ["--json"]:
        values = yaml.safe_load(pathlib.Path(sys.argv[2]).read_text())
        print(json.dumps(documents(render(values))))
        return
    if sys.argv[1:] == ["--check"]:
        wrong = [name for name, made in plain().items() if not (PLAIN / name).exists() or (PLAIN / name).read_text() != made]
        if wrong:
            sys.exit(f"render: {', '.join(wrong)} in deploy/kubernetes are not what the chart gives: run deploy/helm/render.py")
        if re.findall(r"^(?:version|appVersion): (.*)$", text, re.M) != [version, version]:
            sys.exit(f"render: Chart.yaml has another version than Cargo.toml ({version}): run deploy/helm/render.py")
        return
    (CHART / "Chart.yaml").write_text(re.sub(r"^(version|appVersion): .*$", rf"\1: {version}", text, flags=re.M))
    for name, made in plain().items():
        (PLAIN / name).write_text(made)


if __name__ == "__main__":
    main()
