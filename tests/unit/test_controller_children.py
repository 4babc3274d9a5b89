"""The objects that a pipeline is made of, pinned whole in ``controller_golden``; and what they promise.

After a wanted change: ``UPDATE_GOLDEN=1 pytest tests/unit/test_controller_children.py``, then read the difference.
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from splitplane.api.routes import RouteTableSpec
from splitplane.controller.children import StageKey, gateway_objects, profile_objects, stage_deployment
from splitplane.controller.control import Control, Draining
from splitplane.controller.disruptions import stage_budget
from splitplane.controller.naming import profile_name
from splitplane.controller.network_policies import stages_policy
from splitplane.controller.realising import realise
from splitplane.controller.route_tables import batching, links, live_routes, route_table
from splitplane.controller.statuses import routes_of
from splitplane.domain.plans import Candidate, Capacity, Plan, Prediction, Stage, Steps
from splitplane.domain.profiles import DeviceProfile, Profile, Timing
from tests.support.controller_cases import SETTINGS, pipeline, pipeline_body, serving, tier

GOLDEN = Path(__file__).parent / "controller_golden"
MODEL: dict[str, Any] = {
    "name": "tracker",
    "inputs": [{"name": "frames", "datatype": "FP32", "shape": [-1, 1024]}],
    "outputs": [{"name": "out", "datatype": "FP32", "shape": [-1, 360]}],
}
STAGE = StageKey("edge", 0, 3, "fingerprint")


def same_as_golden(name: str, objects: list[Any]) -> None:
    path = GOLDEN / f"{name}.yaml"
    text = yaml.safe_dump_all(json.loads(json.dumps(objects)), sort_keys=False, width=120)
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def test_a_stage_is_as_pinned() -> None:
    same_as_golden("stage", [stage_deployment(pipeline(), STAGE, replicas=2, settings=SETTINGS)])


def test_a_stages_budget_is_as_pinned() -> None:
    written = stage_deployment(pipeline(), STAGE, replicas=2, settings=SETTINGS)
    written["metadata"]["uid"] = "u-2"
    same_as_golden("stage-budget", [stage_budget(written)])


def test_the_policy_of_all_stages_is_as_pinned() -> None:
    same_as_golden("stages-policy", [stages_policy(pipeline())])


def test_a_gateway_is_as_pinned() -> None:
    same_as_golden("gateway", gateway_objects(pipeline(), SETTINGS))


def test_a_profile_job_is_as_pinned() -> None:
    tier = pipeline().spec.tiers[1]
    objects = profile_objects(
        pipeline(), tier, name="tracker-profile-cloud-1", profile="p", attempt=2, settings=SETTINGS
    )
    same_as_golden("profile", objects)


def test_a_route_table_is_as_pinned() -> None:
    control = Control(active=serving(), since=1.0, draining=(Draining(3, serving(4, name="b").stages, 1.0, 2.0),))
    body = route_table(
        pipeline(), control, generation=4, routes=live_routes(control, frozenset()), version="17", links=[],
        model=MODEL,
        batching={"maxSize": 8, "maxBatchMilliseconds": 50},
    )  # fmt: skip
    same_as_golden("route-table", [body])
    RouteTableSpec.parse(body["spec"])


def test_a_route_says_where_it_is_the_best_and_the_table_on_which_link() -> None:
    split, whole = serving().plan, Plan((Stage("edge", 0, 7, 0, 7, 2),))
    plan = Plan((replace(split.stages[0], resident_last=7), split.stages[1]), split.codecs)
    routes = [Candidate(each, Prediction(0.1, 0.08, 0.4, 10.0)) for each in (plan, whole)]
    steps = Steps("edge", "cloud", (0.0, 1999.5), (1, 0), (Capacity(12.0, 2500.5), Capacity(4.0)))
    served = realise(routes[0], routes, steps, pipeline=pipeline(), fingerprint="f", model="m", settings=SETTINGS)
    control = Control(active=served)
    table = route_table(
        pipeline(), control, generation=4, routes=live_routes(control, frozenset()), version="17", links=[],
        model=MODEL, batching={"maxSize": 1},
    )  # fmt: skip
    spec = table["spec"]
    assert spec["link"] == {"source": "edge", "target": "cloud"}
    assert [route["bestBetween"] for route in spec["routes"]] == [
        [{"fromBytesPerSecond": 2000}],
        [{"fromBytesPerSecond": 0, "belowBytesPerSecond": 2000}],
    ]
    limits = [("12", 2501), ("4", 0)]  # at any bandwidth, not only at that for which it was predicted
    for told in (spec["routes"], routes_of(control)):
        assert [(route["maxRatePerSecond"], route["linkBytesPerRequest"]) for route in told] == limits
    assert [route["bestBetween"] for route in routes_of(control)] == [["from 0.016 Mbit/s"], ["below 0.016 Mbit/s"]]


def test_batches_are_bounded_by_the_spec_the_latency_limit_and_the_memory_of_the_narrowest_stage() -> None:
    control = Control(active=serving(), since=1.0)
    device = DeviceProfile("edge-device", (0.0,) * 8, 0.0, 0.0, {}, base_memory_bytes=1_000_000)
    whole = Profile("f", (), (100,) * 7, activation_bytes=10_000_000, devices={"edge-device": device})
    assert batching(pipeline(), Control(), whole) == {"maxSize": 8, "maxBatchMilliseconds": 50}
    asked = pipeline(batching={"maxSize": 4, "maxWaitMilliseconds": 3}, objectives={})
    assert batching(asked, control, whole) == {"maxSize": 4, "maxWaitMilliseconds": 3}
    for memory, most in (("31000301", 3), ("31000299", 2), ("1", 1)):
        narrow = tier("edge", resources={"limits": {"memory": memory}})
        assert batching(pipeline(tiers=[narrow, tier("cloud")]), control, whole)["maxSize"] == most


def test_stages_begin_at_the_batch_that_pays_on_each_of_them_as_measured_within_the_latency_limit() -> None:
    control = Control(active=serving(), since=1.0)

    def device(name: str, threads: int = 1, **whole: float) -> DeviceProfile:
        timings = tuple(
            Timing(int(batch[1:]), threads, tuple(seconds * at / 7 for at in range(8)), 0.0)
            for batch, seconds in whole.items()
        )
        return DeviceProfile(name, tuple(0.007 * at / 7 for at in range(8)), 0.0, 0.0, {}, 1_000_000, 1, timings)

    def first(edge: DeviceProfile, cloud: DeviceProfile, **spec: Any) -> int | None:
        devices = {"edge-device": edge, "cloud-device": cloud}
        profile = Profile("f", (), (100,) * 7, activation_bytes=1000, devices=devices)
        return batching(pipeline(batching={"maxSize": 16}, **spec), control, profile).get("firstSize")

    best = device("x", b4=0.016, b16=0.048)
    assert first(best, best) == 16
    assert first(best, device("x", b4=0.016, b16=0.112)) == 4, "the other stage gains nothing beyond 4"
    assert first(best, device("x", b4=0.028, b16=0.112)) is None, "batches do not pay there"
    assert first(best, device("x", threads=2, b4=0.016)) is None, "measured on other threads"
    assert first(best, best, objectives={"latencyP95Milliseconds": 100}) == 4, "16 could take over 25 ms"
    assert first(best, device("x")) is None


def name(body: Any) -> str:
    return str(body["metadata"]["name"])


def test_a_stages_name_covers_its_pods_but_not_their_number() -> None:
    base = stage_deployment(pipeline(), STAGE, replicas=1, settings=SETTINGS)
    assert name(stage_deployment(pipeline(), STAGE, replicas=3, settings=SETTINGS)) == name(base)
    others = [
        stage_deployment(pipeline(), replace(STAGE, resident_last=4), replicas=1, settings=SETTINGS),
        stage_deployment(pipeline(), replace(STAGE, fingerprint="other"), replicas=1, settings=SETTINGS),
        stage_deployment(pipeline(), STAGE, replicas=1, settings=replace(SETTINGS, runtime_image="other:2")),
        stage_deployment(
            pipeline(model=pipeline_body()["spec"]["model"] | {"factory": "pitch:other"}), STAGE, replicas=1,
            settings=SETTINGS,
        ),
    ]  # fmt: skip
    assert len({name(base), *map(name, others)}) == 5


@pytest.mark.parametrize(
    ("resources", "threads"),
    [({"requests": {"cpu": "4"}}, "1"), ({"limits": {"cpu": "500m"}}, "1"), ({"limits": {"cpu": "2500m"}}, "2"),
     ({"limits": {"cpu": 4}}, "4")],
)  # fmt: skip
def test_a_model_computes_and_is_measured_with_the_whole_cores_of_its_cpu_limit(resources: Any, threads: str) -> None:
    body = pipeline(tiers=[tier("edge", resources=resources), tier("cloud")])
    stage = stage_deployment(body, STAGE, replicas=1, settings=SETTINGS)
    job = profile_objects(body, body.spec.tiers[0], name="n", profile="p", attempt=1, settings=SETTINGS)[-1]
    for pod in (stage, job):
        [container] = pod["spec"]["template"]["spec"]["containers"]
        assert {"name": "SPLITPLANE_THREADS", "value": threads} in container["env"]


def test_pods_that_download_weights_find_their_cache_and_credentials() -> None:
    weights = {"uri": "s3://models/a", "sha256": "a" * 64, "secretRef": {"name": "keys"}}
    model = pipeline_body()["spec"]["model"] | {"weights": weights}
    body = pipeline(model=model, tiers=[tier("edge", weightsCache={"claimName": "kept"}), tier("cloud")])
    cached = stage_deployment(body, STAGE, replicas=1, settings=SETTINGS)["spec"]["template"]["spec"]
    [container] = cached["containers"]
    assert {"name": "SPLITPLANE_WEIGHTS_CACHE", "value": "/weights/.cache"} in container["env"]
    assert {"name": "SPLITPLANE_WEIGHTS_CREDENTIALS", "value": "/weights/.credentials"} in container["env"]
    volumes = {volume["name"]: volume for volume in cached["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert mounts["/weights/.cache"]["persistentVolumeClaim"] == {"claimName": "kept"}
    assert mounts["/weights/.credentials"]["secret"] == {"secretName": "keys"}
    assert cached["securityContext"]["fsGroup"] == cached["securityContext"]["runAsGroup"]
    job = profile_objects(body, body.spec.tiers[1], name="n", profile="p", attempt=1, settings=SETTINGS)[-1]
    plain = job["spec"]["template"]["spec"]
    assert {"name": "SPLITPLANE_WEIGHTS_CACHE", "value": "/tmp/weights"} in plain["containers"][0]["env"]
    assert "fsGroup" not in plain["securityContext"]


def profile_of(**changes: Any) -> str:
    return profile_name(pipeline(model=pipeline_body()["spec"]["model"] | changes).spec, "image:1")


@pytest.mark.parametrize(
    "changes",
    [
        {"factory": "pitch:other"},
        {"weights": {"uri": "file:///w", "sha256": "b" * 64}},
        {"env": [{"name": "PYTHONPATH", "value": "/other"}]},
        {"volumes": [{"name": "code", "configMap": {"name": "other"}}]},
        {"volumes": [{"name": "code", "configMap": {"name": "code", "items": [{"key": "v2.py", "path": "pitch.py"}]}}]},
        {"volumes": [{"name": "code", "persistentVolumeClaim": {"claimName": "code"}}]},
        {"volumeMounts": [{"name": "code", "mountPath": "/code", "subPath": "v2"}]},
    ],
    ids=["factory", "weights", "environment", "ConfigMap", "keys", "claim", "sub-path"],
)
def test_models_of_other_code_or_weights_do_not_share_a_profile(changes: Any) -> None:
    assert profile_of(**changes) != profile_of()
    spec = pipeline().spec
    assert profile_name(spec, "image:2") != profile_name(spec, "image:1")


def test_models_made_alike_share_a_profile_whatever_their_volumes_are_called() -> None:
    renamed = {
        "volumes": [{"name": "src", "configMap": {"name": "code"}}, {"name": "unused", "emptyDir": {}}],
        "volumeMounts": [{"name": "src", "mountPath": "/code", "readOnly": True}],
        "weights": {"uri": "file:///elsewhere.safetensors", "sha256": "a" * 64},
    }
    assert profile_of(**renamed) == profile_of()


def every_pod() -> list[Any]:
    bodies = [
        stage_deployment(pipeline(), STAGE, replicas=1, settings=SETTINGS),
        *gateway_objects(pipeline(), SETTINGS),
        *profile_objects(
            pipeline(), pipeline().spec.tiers[0], name="n", profile="p", attempt=1, settings=SETTINGS
        ),
    ]  # fmt: skip
    return [pytest.param(body, id=body["kind"]) for body in bodies if body["kind"] in ("Deployment", "Job")]


@pytest.mark.parametrize("body", every_pod())
def test_every_pod_is_restricted_labelled_and_leaves_its_last_words(body: Any) -> None:
    pod = body["spec"]["template"]
    [container] = pod["spec"]["containers"]
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
    assert pod["metadata"]["labels"]["splitplane.dev/pipeline"] == "tracker"
    assert pod["spec"]["nodeSelector"]


@pytest.mark.parametrize("body", every_pod()[:2])
def test_a_server_whose_loop_is_stuck_is_restarted_in_minutes_and_one_short_of_cpu_is_not(body: Any) -> None:
    [container] = body["spec"]["template"]["spec"]["containers"]
    starting, living = container["startupProbe"], container["livenessProbe"]
    assert starting["periodSeconds"] * starting["failureThreshold"] >= 300
    assert 60 <= living["periodSeconds"] * living["failureThreshold"] <= 180
    assert living["failureThreshold"] >= 3
    assert living["timeoutSeconds"] >= 5
    # Else a stuck loop, which hears no signal, would keep the container for all of the pod's grace.
    assert living["terminationGracePeriodSeconds"] < body["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("body", [*gateway_objects(pipeline(), SETTINGS)], ids=lambda body: body["kind"])
def test_everything_goes_with_its_pipeline_whether_or_not_the_operator_runs(body: Any) -> None:
    [owner] = body["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("InferencePipeline", "u-1")
    assert "finalizers" not in body["metadata"]


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ({}, ["mirror"]),
        ({"imagePullSecrets": [{"name": "own"}]}, ["own"]),
        ({"image": "own.example/runtime:1"}, []),
        ({"image": "own.example/runtime:1", "imagePullSecrets": [{"name": "own"}]}, ["own"]),
    ],
)
def test_images_of_the_operators_are_pulled_with_its_secrets_and_a_pipelines_own_with_its_own(
    model: Any, wanted: list[str]
) -> None:
    settings = replace(SETTINGS, pull_secrets=("mirror",))
    given = pipeline(model=pipeline_body()["spec"]["model"] | model)

    def secrets(body: Any) -> list[str]:
        return [each["name"] for each in body["spec"]["template"]["spec"].get("imagePullSecrets", ())]

    assert secrets(stage_deployment(given, StageKey("edge", 0, 3, "f"), replicas=1, settings=settings)) == wanted
    tier = given.spec.tiers[0]
    *_, job = profile_objects(given, tier, name="p-1", profile="p", attempt=1, settings=settings)
    assert secrets(job) == wanted
    (gateway,) = (body for body in gateway_objects(given, settings) if body["kind"] == "Deployment")
    assert secrets(gateway) == ["mirror"]


def test_a_jobs_rights_end_at_its_result() -> None:
    objects = profile_objects(pipeline(), pipeline().spec.tiers[0], name="n", profile="p", attempt=1, settings=SETTINGS)
    [role] = [body for body in objects if body["kind"] == "Role"]
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["n"], "verbs": ["patch"]}
    ]


def test_links_are_probed_at_ready_targets_on_the_other_tiers_nodes() -> None:
    def target(name: str, node: str, ip: str, ready: str = "True") -> Any:
        conditions = [{"type": "Ready", "status": ready}]
        return {
            "metadata": {"name": name},
            "spec": {"nodeName": node},
            "status": {"podIP": ip, "conditions": conditions},
        }

    nodes = [
        {"metadata": {"name": host, "labels": {"splitplane.dev/tier": tier}}}
        for host, tier in (("e1", "edge"), ("c1", "cloud"), ("c2", "cloud"))
    ]
    targets = [target("a", "e1", "10.0.0.1"), target("b", "c1", "10.0.0.2"), target("c", "c2", "fd00::3"),
               target("d", "c2", "10.0.0.4", ready="False")]  # fmt: skip
    assert links(pipeline(), link_targets=targets, nodes=nodes) == [
        {"source": "edge", "target": "cloud", "probes": ["10.0.0.2:9000", "[fd00::3]:9000"]}
    ]


def test_a_defence_is_told_to_stages_with_the_tiers_that_it_is_for_and_has_a_profile_of_its_own() -> None:
    plain, body = pipeline(), pipeline(objectives={"defence": {"noise": "0.5"}})
    key = StageKey("edge", 0, 3, "f")

    def told(deployment: Any) -> list[str]:
        variables = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
        return [each["value"] for each in variables if each["name"] == "SPLITPLANE_DEFENCE"]

    assert told(stage_deployment(plain, key, replicas=1, settings=SETTINGS)) == []
    [text] = told(stage_deployment(body, key, replicas=1, settings=SETTINGS))
    assert json.loads(text) == {"noise": 0.5, "dropout": 0.0, "tiers": ["cloud"]}
    assert profile_name(body.spec, "image:1") != profile_name(plain.spec, "image:1")
