"""What the chart renders: the operator's rights, its surroundings, and the CRDs."""

import datetime as dt
import itertools
import json
import re
import subprocess
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from splitplane.adapters.kinds import kind_of
from splitplane.api.pipelines import InferencePipeline
from splitplane.controller import children, network_policies
from splitplane.controller.authority import Authority, new_authority
from splitplane.controller.certificates import AUTHORITY_SECRET, DEFAULT_TIMES, secret
from splitplane.controller.objects import MACHINE_LABEL
from splitplane.controller.settings import Settings
from splitplane.domain.peers import ROLES
from splitplane.domain.quantities import parse_quantity
from tests.support.chart import CHART, PROMETHEUS, ROOT, helm, one, pod, render, template
from tests.support.controller_cases import pipeline

Right = tuple[str, str, str]


@pytest.fixture(scope="module")
def rendered() -> list[dict[str, Any]]:
    return render()


def _rights(rules: Iterable[dict[str, Any]]) -> set[Right]:
    """Every (group, resource, verb) that the rules grant."""
    return {right for rule in rules for right in itertools.product(rule["apiGroups"], rule["resources"], rule["verbs"])}


def _documented_rights() -> set[Right]:
    """The table "What the operator asks of the API server" of docs/architecture.md."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = text.split("### What the operator asks of the API server", 1)[1].split("\n#", 1)[0]
    rights: set[Right] = set()
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|") or cells[0] in ("group", "---"):
            continue
        groups = ["" if group == "core" else group for group in cells[0].split(" / ")]
        resources = cells[1].split(" / ") if len(groups) > 1 else [", ".join(cells[1].split(" / "))]
        for group, names in zip(groups, resources, strict=True):
            rights |= set(itertools.product([group], names.split(", "), cells[2].split(", ")))
    return rights


def _operator_rules(rendered: list[dict[str, Any]]) -> list[dict[str, Any]]:
    binding = one(rendered, "ClusterRoleBinding")
    deployment, _ = pod(one(rendered, "Deployment"))
    assert [subject["name"] for subject in binding["subjects"]] == [deployment["serviceAccountName"]]
    rules: list[dict[str, Any]] = one(rendered, "ClusterRole", binding["roleRef"]["name"])["rules"]
    return rules


def test_the_operator_may_do_exactly_what_the_architecture_says(rendered: list[dict[str, Any]]) -> None:
    assert _rights(_operator_rules(rendered)) == _documented_rights()


def test_the_operator_holds_every_right_that_it_grants(rendered: list[dict[str, Any]]) -> None:
    resource = yaml.safe_load((ROOT / "examples" / "pitch-tracker.yaml").read_text())
    resource["metadata"] |= {"uid": "1", "namespace": "default"}
    pipeline = InferencePipeline.parse(resource)
    settings = Settings(prometheus_url="http://p", runtime_image="r", operator_image="o")
    made = children.gateway_objects(pipeline, settings)
    made += children.profile_objects(
        pipeline, pipeline.spec.tiers[0], name="n", profile="f", attempt=1, settings=settings
    )
    granted = _rights(rule for item in made if item["kind"] == "Role" for rule in item["rules"])
    assert granted
    assert granted <= _rights(_operator_rules(rendered))


def test_secrets_are_reached_only_where_the_operator_issues_certificates() -> None:
    for mode in ("Off", "Secrets"):
        rights = {right for d in render("--set", f"mtls.mode={mode}") for right in _rights(d.get("rules", ()))}
        assert not any(resource == "secrets" for _, resource, _ in rights)
    documents = render("--set", "mtls.mode=Authority")
    assert {verb for _, resource, verb in _rights(_operator_rules(documents)) if resource == "secrets"} == {
        "create", "patch",
    }  # fmt: skip
    (role,) = (d for d in documents if d["kind"] == "Role")
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["splitplane-authority"], "verbs": ["get"]}
    ]
    _, container = pod(one(documents, "Deployment"))
    assert {"name": "SPLITPLANE_MTLS", "value": "Authority"} in container["env"]


def test_no_right_is_a_wildcard_or_reaches_secrets(rendered: list[dict[str, Any]]) -> None:
    for group, resource, verb in _rights(_operator_rules(rendered)):
        assert "*" not in (group, resource, verb)
        assert resource != "secrets"
        assert verb not in ("escalate", "bind", "impersonate")


def test_editors_of_a_namespace_may_edit_pipelines_but_not_what_the_operator_writes(
    rendered: list[dict[str, Any]],
) -> None:
    edit = one(rendered, "ClusterRole", ":edit")
    assert edit["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-edit"] == "true"
    assert {resource for _, resource, _ in _rights(edit["rules"])} == {"inferencepipelines"}


def test_the_operator_finds_its_settings_in_the_environment(rendered: list[dict[str, Any]]) -> None:
    _, container = pod(one(rendered, "Deployment"))
    environment = {variable["name"]: variable.get("value", "10.0.0.1") for variable in container["env"]}
    settings = Settings.from_environment(environment)
    assert settings.prometheus_url == "http://prometheus.example:9090"
    assert (settings.window, settings.demand_window) == (60, 30)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert settings.operator_image == container["image"] == f"splitplane/operator:{version}"
    assert settings.runtime_image == f"splitplane/runtime:{version}"


def test_the_chart_carries_the_generated_crds_and_keeps_them_on_uninstall(rendered: list[dict[str, Any]]) -> None:
    found = {d["metadata"]["name"]: d for d in rendered if d["kind"] == "CustomResourceDefinition"}
    for path in (ROOT / "crds").glob("*.yaml"):
        wanted = yaml.safe_load(path.read_text())
        kept = found.pop(wanted["metadata"]["name"])
        assert kept["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        assert json.dumps(kept) == json.dumps(wanted)
    assert found == {}


def test_crds_can_be_left_to_somebody_else() -> None:
    documents = render("--set", "crds.install=false")
    assert "CustomResourceDefinition" not in {document["kind"] for document in documents}


def test_values_of_the_user_reach_the_operator() -> None:
    documents = render(
        "--set", "image.operator.repository=mirror.example/splitplane/operator,image.operator.tag=v9",
        "--set", "imagePullSecrets={pull}", "--set", "nodeSelector.disk=ssd",
        "--set", "tolerations[0].operator=Exists", "--set", "prometheus.demandWindowSeconds=12",
    )  # fmt: skip
    spec, container = pod(one(documents, "Deployment"))
    assert container["image"] == "mirror.example/splitplane/operator:v9"
    assert spec["imagePullSecrets"] == [{"name": "pull"}]
    assert spec["nodeSelector"] == {"disk": "ssd"}
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert {"name": "SPLITPLANE_DEMAND_WINDOW_SECONDS", "value": "12"} in container["env"]


DIGEST = f"sha256:{'5e' * 32}"


def test_images_can_be_pinned_by_digest() -> None:
    documents = render("--set", f"image.operator.digest={DIGEST},image.runtime.digest={DIGEST},image.runtime.tag=v9")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    _, target = pod(one(documents, "DaemonSet"))
    _, operator = pod(one(documents, "Deployment"))
    named = {variable["name"]: variable.get("value") for variable in operator["env"]}
    pinned = f"splitplane/operator:{version}@{DIGEST}"
    assert (operator["image"], target["image"], named["SPLITPLANE_OPERATOR_IMAGE"]) == (pinned,) * 3
    assert named["SPLITPLANE_RUNTIME_IMAGE"] == f"splitplane/runtime:v9@{DIGEST}"


def test_values_may_have_the_forms_that_kubernetes_has(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "resources": {"requests": {"cpu": 0.5, "memory": "256Mi"}, "limits": {"cpu": 2, "memory": 1073741824}},
        "linkTarget": {"resources": {"requests": {"cpu": "10m"}}},
        "imagePullSecrets": [{"name": "one"}, "two"],
    }
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    documents = render("--values", str(file))
    for kind in ("Deployment", "DaemonSet"):
        assert pod(one(documents, kind))[0]["imagePullSecrets"] == [{"name": "one"}, {"name": "two"}]
    _, container = pod(one(documents, "Deployment"))
    (told,) = (each["value"] for each in container["env"] if each["name"] == "SPLITPLANE_IMAGE_PULL_SECRETS")
    assert told == "one two"
    assert container["resources"]["requests"] == values["resources"]["requests"]
    assert parse_quantity(str(container["resources"]["limits"]["memory"])) == 2**30
    lint = helm("lint", "--strict", str(CHART), *PROMETHEUS, "--values", str(file))
    assert lint.returncode == 0, lint.stdout + lint.stderr


@pytest.mark.parametrize(
    "name", ["operator", "reg:5000/x", "reg.example:5000/a-b/c__d/e.f", "localhost/x", "10.0.0.1:80/x"]
)
def test_a_repository_may_name_a_port(name: str) -> None:
    documents = render("--set", f"image.operator.repository={name},image.operator.tag=1.2")
    assert pod(one(documents, "Deployment"))[1]["image"] == f"{name}:1.2"


def test_resources_of_all_kinds_that_nodes_have_may_be_asked_for() -> None:
    asked = {"cpu": 1, "memory": "1Gi", "ephemeral-storage": "1Gi", "hugepages-2Mi": "4Mi", "vendor.example/x": 1}
    documents = render("--set-json", f"resources.limits={json.dumps(asked)}")
    assert pod(one(documents, "Deployment"))[1]["resources"]["limits"] == asked


def test_null_takes_away_what_a_default_sets_and_leaves_no_null() -> None:
    nulls = ["resources", "linkTarget.resources", "image.operator.pullPolicy", "affinity", "runAsUser"]
    documents = render("--set", ",".join(f"{name}=null" for name in nulls))
    for kind in ("Deployment", "DaemonSet"):
        workload = one(documents, kind)
        assert not {"resources", "imagePullPolicy"} & pod(workload)[1].keys()
        assert "null" not in json.dumps(workload)
    assert "affinity" not in pod(one(documents, "Deployment"))[0]


@pytest.mark.parametrize(("written", "told"), [("0.5", "0.5"), ("'0.5'", "0.5"), ("1", "1"), ("0", "0"), ("1.0", "1")])
def test_the_traced_share_may_be_a_number_or_text(tmp_path: Path, written: str, told: str) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(f"tracing: {{endpoint: 'http://otel:4318', ratio: {written}}}\n")
    _, container = pod(one(render("--values", str(file)), "Deployment"))
    assert {"name": "SPLITPLANE_TRACING_RATIO", "value": told} in container["env"]


def test_installing_without_prometheus_says_what_to_set() -> None:
    done = template()
    assert done.returncode != 0
    assert re.search(r"prometheus\.url is required: --set prometheus\.url=http://", done.stderr)


def _notes(*arguments: str) -> str:
    done = helm("install", "splitplane", str(CHART), "--namespace=n", "--dry-run=client", *PROMETHEUS, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\nNOTES:\n", 1)[1]


def test_the_notes_tell_what_an_uninstall_keeps_and_how_to_remove_it() -> None:
    crds = {yaml.safe_load(path.read_text())["metadata"]["name"] for path in (ROOT / "crds").glob("*.yaml")}
    plain, own_authority = _notes(), _notes("--set", "mtls.mode=Authority")
    for notes in (plain, own_authority):
        (line,) = [line for line in notes.splitlines() if "kubectl delete crd" in line]
        assert crds == set(line.split()[3:])
        assert "kubectl delete namespace n" in notes
    command = f"kubectl delete secret {AUTHORITY_SECRET} --namespace n"
    assert command in own_authority
    assert command not in plain


def test_notes_and_docs_wait_for_every_kind_that_the_operator_makes_before_the_definitions_go() -> None:
    """A child whose owner's definition has gone stays for ever."""
    resource, settings = pipeline(), Settings(prometheus_url="http://p", runtime_image="r", operator_image="o")
    made = [network_policies.stages_policy(resource), *children.gateway_objects(resource, settings)]
    made += children.profile_objects(
        resource, resource.spec.tiers[0], name="n", profile="f", attempt=1, settings=settings
    )
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    signer = Authority.of(new_authority("n", now=now, lifetime=DEFAULT_TIMES.authority))
    made += [secret(resource, role, signer, now=now, lifetime=DEFAULT_TIMES.lifetime) for role in ROLES]
    assert all(each["metadata"]["ownerReferences"] for each in made)
    assert all("splitplane.dev/pipeline" in each["metadata"]["labels"] for each in made)  # what the command selects
    kinds = {kind_of(each["apiVersion"], each["kind"]).plural for each in made}
    for text in (_notes(), (ROOT / "docs" / "install.md").read_text()):
        command = text.split("kubectl wait --for=delete ", 1)[1].split("\n\n", 1)[0]
        assert set(command.split(maxsplit=1)[0].split(",")) == kinds
        assert "--timeout=2m" in command
        assert text.index("kubectl delete ipipe") < text.index("kubectl wait") < text.index("kubectl delete crd")


def test_definitions_stay_where_the_wait_for_what_they_own_has_failed(tmp_path: Path) -> None:
    log, kubectl = tmp_path / "log", tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/sh\necho "$1" >> {log}\n[ "$1" != wait ]\n')
    kubectl.chmod(0o755)
    commands = re.search(r"kubectl delete ipipe.+?kubectl delete crd.+?$", _notes(), re.DOTALL | re.MULTILINE)
    assert commands is not None
    done = subprocess.run(["/bin/sh", "-c", commands[0]], env={"PATH": str(tmp_path)}, check=False, timeout=120)
    assert done.returncode != 0
    assert log.read_text().split() == ["delete", "wait"]


def test_the_namespace_is_rendered_only_for_a_file_of_its_own() -> None:
    assert "Namespace" not in {document["kind"] for document in render()}
    made = one(render("--set", "namespace.create=true"), "Namespace")["metadata"]
    assert made["name"] == "splitplane-system"
    assert made["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_gateways_use_kserves_name_of_a_metric_only_where_the_chart_says_so() -> None:
    def container(*arguments: str) -> dict[str, Any]:
        _, operator = pod(one(render(*arguments), "Deployment"))
        variables = {each["name"]: each.get("value", "") for each in operator["env"]}
        settings = Settings.from_environment(variables)
        (gateway,) = [each for each in children.gateway_objects(pipeline(), settings) if each["kind"] == "Deployment"]
        return {each["name"]: each.get("value") for each in gateway["spec"]["template"]["spec"]["containers"][0]["env"]}

    assert "SPLITPLANE_KSERVE_METRICS" not in container()
    assert container("--set", "metrics.kserveNames=true")["SPLITPLANE_KSERVE_METRICS"] == "true"


def test_the_chart_says_which_label_names_the_machine_of_a_node() -> None:
    def label(*arguments: str) -> str:
        _, operator = pod(one(render(*arguments), "Deployment"))
        return Settings.from_environment(
            {each["name"]: each.get("value", "") for each in operator["env"]}
        ).machine_label

    assert label() == MACHINE_LABEL
    assert label("--set", "profiling.machineLabel=kubernetes.io/hostname") == "kubernetes.io/hostname"


def test_tracing_variables_are_there_only_with_an_endpoint() -> None:
    def variables(*arguments: str) -> dict[str, Any]:
        _, container = pod(one(render(*arguments), "Deployment"))
        return {each["name"]: each.get("value") for each in container["env"] if "TRACING" in each["name"]}

    # An empty value would be dropped by the API server, and every `kubectl apply` would change the Deployment again.
    assert variables() == {}
    assert variables("--set", "tracing.endpoint=http://otel:4318", "--set-string", "tracing.ratio=0.5") == {
        "SPLITPLANE_TRACING_ENDPOINT": "http://otel:4318", "SPLITPLANE_TRACING_RATIO": "0.5",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("promethoos.url=http://p:9090", "promethoos"),
        ("prometheus.url=p:9090", "prometheus"),
        ("prometheus.windowSeconds=3", "windowSeconds"),
        ("image.operator.pullPolicy=Sometimes", "pullPolicy"),
        ("linkTarget.enabled=7", "enabled"),
        ("resources.request.cpu=1", "request"),
        ("resources.requests.cpu=-1", "cpu"),
        ("resources.requests.memory=256MB", "memory"),
        ("image.operator.digest=5e5e", "digest"),
        ("imagePullSecrets[0].secret=pull", "imagePullSecrets"),
        ("runAsUser=0", "runAsUser"),
        ("podAnnotations.weight=1", "podAnnotations"),
        ("priorityClassName=Very_High", "priorityClassName"),
        ("linkTarget.priorityClass=high", "priorityClass"),
        # What the API server would refuse only later, in pods that nobody looks at, or take for something else.
        ("image.operator.repository=reg:5000/x:1.2", "repository"),
        ("image.runtime.repository=x:1.2", "repository"),
        ("image.runtime.repository=reg:5000", "repository"),
        ("imagePullSecrets={a b}", "imagePullSecrets"),
        ("imagePullSecrets[0].name=Pull_Secret", "imagePullSecrets"),
        ("runAsUser=2147483648", "runAsUser"),
        ("tolerations[0].keys=a", "keys"),
        ("tolerations[0].effect=noSchedule", "effect"),
        ("affinity.nodeAfinity.x=1", "nodeAfinity"),
        ("resources.requests.ram=1Gi", "ram"),
        ("resources.limits.hugepages=1Gi", "hugepages"),
        ("prometheus.windowSeconds=null", "windowSeconds"),
        ("tracing.ratio=1.5", "ratio"),
        ("tracing.ratio=2", "ratio"),
    ],
)
def test_a_mistyped_value_is_refused_by_name(setting: str, named: str) -> None:
    done = template(*PROMETHEUS, "--set", setting)
    assert done.returncode != 0
    assert named in done.stderr


def test_the_chart_passes_helms_strict_lint() -> None:
    done = helm("lint", "--strict", str(CHART), *PROMETHEUS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_charts_readme_lists_every_value_with_its_default() -> None:
    def leaves(values: dict[str, Any], path: str = "") -> Iterable[tuple[str, Any]]:
        for key, value in values.items():
            name = f"{path}{key}"
            if isinstance(value, dict) and value and key not in ("resources", "affinity"):
                yield from leaves(value, f"{name}.")
            else:
                yield name, value

    table = dict(re.findall(r"^\| `([A-Za-z.]+)` \| (.*?) ?\| ", (CHART / "README.md").read_text(), re.MULTILINE))
    values = dict(leaves(yaml.safe_load((CHART / "values.yaml").read_text())))
    assert table.keys() == values.keys()
    told = {name: yaml.safe_load(text.strip("`")) for name, text in table.items() if text.startswith("`")}
    assert told == {name: values[name] for name in told}
    assert {name for name, value in values.items() if value not in ("", None)} - told.keys() == {
        "resources", "linkTarget.resources", "affinity",
    }  # fmt: skip
