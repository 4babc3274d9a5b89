"""Pods on the embedded cluster: from images and environment to phases, restarts, termination and resources."""

import base64
import contextlib
import json
import os
import socket
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.support.agent_pods import Kubectl, Object, Pods, container, pod, until

pytestmark = pytest.mark.integration

SLEEP = "import time; time.sleep(600)"
DUMP = "import json, os, sys; print(json.dumps({'env': dict(os.environ), 'argv': sys.argv[1:], 'cwd': os.getcwd()}))"
SERVE = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(500 if os.path.exists(self.path[1:]) else 200); self.end_headers(); self.wfile.write(b'fine')
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer((os.environ['POD_IP'], 8080), Handler).serve_forever()
"""
POD_IP = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}


@pytest.fixture
def pods(kubectl: Kubectl, namespace: str) -> Pods:
    return Pods(kubectl, namespace)


def config_map(name: str, **data: str) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def secret(name: str, **data: str) -> Object:
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": encoded}


def pid_of(status: Object, cluster_state: Path) -> int:
    """The process of a running container, from the agent's record."""
    uid = status["containerID"].removeprefix("splitplane-process://").split(".")[0]
    [record] = cluster_state.glob(f"splitplane/*/nodes/*/pods/{uid}/record.json")
    return int(json.loads(record.read_text())["containers"][status["name"]]["run"]["pid"])


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_a_pod_completes_with_a_clean_environment_of_its_own(pods: Pods) -> None:
    pods.apply(
        config_map("settings", LEVEL="debug", FILE="/data/file"),
        secret("keys", TOKEN="s3cret"),
        pod(
            "env",
            container(
                DUMP, "$(GREETING)", "--dir=/data/sub", "/database",
                env=[
                    {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                    {"name": "GREETING", "value": "hello $(NAME)"},
                    {"name": "MODEL", "value": '{"uri": "file:///data/w"}'},
                    {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "TOKEN"}}},
                    {"name": "MIB", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
                    POD_IP,
                ],
                envFrom=[{"configMapRef": {"name": "settings"}}],
                volumeMounts=[{"name": "data", "mountPath": "/data"}],
                resources={"limits": {"memory": "96Mi"}},
            ),
            volumes=[{"name": "data", "emptyDir": {}}],
            nodeSelector={"kubernetes.io/hostname": "edge-1"},
        ),
    )  # fmt: skip
    seen = pods.output("env")
    env = seen["env"]
    shown = pods.get("env")
    data = env["FILE"].removesuffix("/file")
    assert Path(data).is_absolute()
    assert data != "/data"
    assert seen["argv"] == ["hello env", f"--dir={data}/sub", "/database"]
    assert json.loads(env["MODEL"]) == {"uri": f"file://{data}/w"}
    assert (env["LEVEL"], env["SECRET"], env["MIB"], env["NODE"]) == ("debug", "s3cret", "96", "edge-1")
    assert env["POD_IP"] == shown["status"]["podIP"]
    assert env["HOME"].startswith(seen["cwd"].rpartition("/")[0])
    assert env["OMP_NUM_THREADS"] == "1"
    assert env["SPLITPLANE_SPEED_FACTOR"] == "1"
    assert env["grpc_proxy"].startswith("http://127.")
    assert not {"USER", "XDG_STATE_HOME", "PYTEST_CURRENT_TEST"} & env.keys()
    own = shown["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (own["exitCode"], own["reason"]) == (0, "Completed")


def test_an_unknown_image_and_a_missing_command_say_what_to_do(pods: Pods) -> None:
    nothing = {"name": "main", "image": "splitplane/runtime:1"}
    pods.apply(pod("foreign", {**container(SLEEP), "image": "nginx:1.29"}), pod("silent", nothing))
    assert "'nginx:1.29' is not present" in pods.waiting("foreign", "ErrImageNeverPull")
    assert 'a "command" or "args"' in pods.waiting("silent", "RunContainerError")
    assert "not present" in pods.event("foreign", "Failed")
    assert pods.get("foreign")["status"]["phase"] == "Pending"


def test_a_program_that_does_not_exist_is_a_start_error(pods: Pods) -> None:
    pods.apply(pod("missing", {**container(SLEEP), "command": ["no-such-program"]}))
    ended = pods.phase("missing", "Failed")["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (128, "StartError")
    assert "cannot execute 'no-such-program'" in ended["message"]


def test_a_pod_waits_for_its_configuration_and_starts_when_it_comes(pods: Pods) -> None:
    reference = {"name": "V", "valueFrom": {"configMapKeyRef": {"name": "later", "key": "v"}}}
    pods.apply(pod("patient", container("import os; print('{\"v\": \"%s\"}' % os.environ['V'])", env=[reference])))
    assert pods.waiting("patient", "CreateContainerConfigError") == 'configmap "later" not found'
    pods.apply(config_map("later", v="here"))
    assert pods.output("patient") == {"v": "here"}


def test_init_containers_run_first_and_share_volumes(pods: Pods) -> None:
    mount = [{"name": "work", "mountPath": "/work"}]
    write = "import sys; open(sys.argv[1], 'a').write(sys.argv[2])"
    read = "import json; print(json.dumps(open(__import__('sys').argv[1]).read()))"
    pods.apply(
        pod(
            "ordered",
            container(read, "/work/log", volumeMounts=mount),
            initContainers=[
                container(write, "/work/log", "one ", name="first", volumeMounts=mount),
                container(write, "/work/log", "two", name="second", volumeMounts=mount),
            ],
            volumes=[{"name": "work", "emptyDir": {}}],
        )
    )
    pods.phase("ordered", "Succeeded")
    assert json.loads(pods("logs", "ordered", "-c", "main")) == "one two"
    assert pods.status("ordered", "first")["state"]["terminated"]["exitCode"] == 0


def test_a_failed_init_container_fails_the_pod(pods: Pods) -> None:
    pods.apply(pod("doomed", container(SLEEP), initContainers=[container("raise SystemExit(3)", name="setup")]))
    pods.phase("doomed", "Failed")
    assert pods.status("doomed", "setup")["state"]["terminated"]["exitCode"] == 3
    assert "terminated" not in pods.status("doomed")["state"]


def test_a_sidecar_serves_until_the_main_container_has_finished(pods: Pods) -> None:
    sidecar = container(SLEEP, name="helper", restartPolicy="Always")
    pods.apply(pod("assisted", container("print('{}')"), initContainers=[sidecar]))
    pods.phase("assisted", "Succeeded")
    assert "terminated" in pods.status("assisted", "helper")["state"]


def test_a_crashing_container_backs_off_and_leaves_its_last_words(pods: Pods) -> None:
    program = "import time; print('about to fail', flush=True); raise SystemExit(7)"
    pods.apply(
        pod("crash", container(program, terminationMessagePolicy="FallbackToLogsOnError"), restartPolicy="Always")
    )
    assert "back-off 10s restarting failed container=main" in pods.waiting("crash", "CrashLoopBackOff")
    status = pods.status("crash")
    last = status["lastState"]["terminated"]
    assert (last["exitCode"], last["reason"], last["message"]) == (7, "Error", "about to fail\n")
    assert status["restartCount"] == 1
    assert pods.get("crash")["status"]["phase"] == "Running"
    assert "back-off" in pods.event("crash", "BackOff")
    assert pods("logs", "crash", "--previous") == "about to fail\n"


def test_a_termination_message_file_is_read(pods: Pods) -> None:
    write = "import sys; open(sys.argv[1], 'w').write('model not found'); raise SystemExit(1)"
    pods.apply(
        pod("default", container(write, "/dev/termination-log")),
        pod("own", container(write, "/tmp/why", terminationMessagePath="/tmp/why")),
    )
    for name in ("default", "own"):
        ended = pods.phase(name, "Failed")["status"]["containerStatuses"][0]["state"]["terminated"]
        assert ended["message"] == "model not found"


def test_deletion_asks_first_and_kills_after_the_grace_period(pods: Pods, state_home: Path) -> None:
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    # A shell that does not pass signals on, and a grandchild: the whole group must get the signal.
    shell = {**container(""), "command": ["sh", "-c", f"python -c '{SLEEP}' & python -c '{SLEEP}'; true"]}
    pods.apply(pod("stubborn", container(stubborn), terminationGracePeriodSeconds=2), pod("shell", shell))
    for name in ("stubborn", "shell"):
        pods.ready(name)
    until("the handler is set", lambda: pods("logs", "stubborn") == "up\n")
    pids = [pid_of(pods.status(name), state_home) for name in ("stubborn", "shell")]
    began = time.monotonic()
    pods("delete", "pod", "stubborn", "shell")
    assert time.monotonic() - began >= 2
    assert not any(alive(pid) for pid in pids)
    assert pods("get", "pods", "-o", "name") == ""


def test_prestop_runs_before_the_signal(pods: Pods, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    program = (
        "import signal, sys, time\n"
        "def end(*_): open(sys.argv[1], 'a').write('term '); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\nprint('up', flush=True)\ntime.sleep(600)"
    )
    hook = {"exec": {"command": ["python", "-c", "import sys; open(sys.argv[1], 'a').write('hook ')", str(trace)]}}
    pods.apply(pod("polite", container(program, str(trace), lifecycle={"preStop": hook})))
    until("the handler is set", lambda: pods.get("polite")["status"]["phase"] == "Running" and pods("logs", "polite"))
    pods("delete", "pod", "polite")
    assert trace.read_text() == "hook term "


def test_force_deletion_leaves_no_process(pods: Pods, state_home: Path) -> None:
    pods.apply(pod("forced", container(SLEEP)))
    pods.ready("forced")
    pid = pid_of(pods.status("forced"), state_home)
    pods("delete", "pod", "forced", "--force", "--grace-period=0")
    until("the process to end", lambda: not alive(pid))


def test_an_active_deadline_ends_the_pod(pods: Pods) -> None:
    pods.apply(pod("late", container(SLEEP), activeDeadlineSeconds=2))
    assert pods.phase("late", "Failed")["status"]["reason"] == "DeadlineExceeded"


def test_a_container_over_its_memory_limit_is_killed_and_one_within_it_is_not(pods: Pods) -> None:
    hold = "import time; block = bytearray(int(float(__import__('sys').argv[1])) << 20); time.sleep(4)"
    limits = {"limits": {"memory": "120Mi"}}
    pods.apply(
        pod("greedy", container(hold, "200", resources=limits)), pod("modest", container(hold, "40", resources=limits))
    )
    ended = pods.phase("greedy", "Failed")["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (ended["reason"], ended["exitCode"]) == ("OOMKilled", 137)
    pods.phase("modest", "Succeeded")


def test_a_pod_that_does_not_fit_is_refused(pods: Pods) -> None:
    big = container(SLEEP, resources={"requests": {"cpu": "64"}})
    pods.apply(pod("big", big, nodeName="cloud-1"))
    shown = pods.phase("big", "Failed")
    assert shown["status"]["reason"] == "OutOfcpu"
    assert "requested: 64000" in shown["status"]["message"]


def test_readiness_follows_the_probe_both_ways(pods: Pods) -> None:
    probe = {"httpGet": {"path": "/not-ready", "port": "http"}, "periodSeconds": 1, "failureThreshold": 1}
    serve = container(SERVE, env=[POD_IP], readinessProbe=probe, ports=[{"name": "http", "containerPort": 8080}])
    pods.apply(pod("web", serve))
    shown = pods.ready("web")
    root = Path(f"/proc/{_pid_listening(shown['status']['podIP'], 8080)}/cwd").readlink()
    with urllib.request.urlopen(f"http://{shown['status']['podIP']}:8080/") as answer:
        assert answer.read() == b"fine"
    (root / "not-ready").touch()
    until("not ready", lambda: pods.status("web")["ready"] is False)
    assert "HTTP probe failed with statuscode: 500" in pods.event("web", "Unhealthy")
    (root / "not-ready").unlink()
    pods.ready("web")
    assert pods.status("web")["restartCount"] == 0


def _pid_listening(address: str, port: int) -> int:
    want = f"{socket.inet_aton(address)[::-1].hex().upper()}:{port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    [inode] = [row[9] for row in rows if row[1] == want and row[3] == "0A"]
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if str(link.readlink()) == f"socket:[{inode}]":
                return int(link.parts[2])
    raise LookupError(want)


def test_a_failed_liveness_probe_restarts_the_container(pods: Pods) -> None:
    probe = {"exec": {"command": ["python", "-c", "raise SystemExit('stuck')"]}, "periodSeconds": 1}
    sick = container(SLEEP, livenessProbe={**probe, "failureThreshold": 2, "timeoutSeconds": 5})
    pods.apply(pod("sick", sick, restartPolicy="Always"))
    until("a restart", lambda: pods.status("sick").get("restartCount", 0) >= 1)
    assert "Liveness probe failed: stuck" in pods.event("sick", "Unhealthy")
    assert "failed liveness probe, will be restarted" in pods.event("sick", "Killing")


def test_a_container_that_was_restarted_can_still_be_stopped(pods: Pods) -> None:
    """Its second run must not be lost track of while the first one's end is recorded."""
    mount = [{"name": "work", "mountPath": "/work"}]
    once = (
        "import os, sys, time\nif not os.path.exists(sys.argv[1]): open(sys.argv[1], 'w'); sys.exit(1)\ntime.sleep(600)"
    )
    work = [{"name": "work", "emptyDir": {}}]
    whole = pod("twice", container(once, "/work/f", volumeMounts=mount), restartPolicy="Always", volumes=work)
    pods.apply(whole)
    until("the second run", lambda: pods.status("twice").get("restartCount") == 1 and pods.status("twice")["ready"])
    pods("delete", "pod", "twice", "--timeout=120s")
    assert "NodeAgentFault" not in {reason for reason, _ in pods.events("twice")}


def test_a_daemon_set_runs_on_every_node(pods: Pods) -> None:
    whole = pod("every", container(SLEEP), restartPolicy="Always")
    template = {"metadata": whole["metadata"], "spec": whole["spec"]}
    spec = {"selector": {"matchLabels": {"app": "every"}}, "template": template}
    pods.apply({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "every"}, "spec": spec})
    pods("rollout", "status", "daemonset/every", "--timeout=120s")
    nodes = pods("get", "pods", "-l", "app=every", "-o", "jsonpath={.items[*].spec.nodeName}").split()
    assert sorted(nodes) == ["cloud-1", "edge-1", "edge-2", "system-1"]


def test_a_startup_probe_holds_the_others_back(pods: Pods, tmp_path: Path) -> None:
    marker = tmp_path / "started"
    look = {"exec": {"command": ["test", "-e", str(marker)]}}
    pods.apply(
        pod(
            "slow",
            container(
                SLEEP, startupProbe={**look, "periodSeconds": 1, "failureThreshold": 60},
                livenessProbe={**look, "periodSeconds": 1, "failureThreshold": 1},
            ),
        )
    )  # fmt: skip
    until("failed checks", lambda: any(reason == "Unhealthy" for reason, _ in pods.events("slow")))
    status = pods.status("slow")
    assert (status["started"], status["ready"], status["restartCount"]) == (False, False, 0)
    marker.touch()
    pods.ready("slow")
    assert pods.status("slow")["started"] is True


BURN = """
import pathlib, time
print(time.time(), flush=True)
while time.process_time() < 1.5: pass
print(time.time(), flush=True)
pathlib.Path('ready').touch()
time.sleep(600)
"""


def test_containers_of_all_nodes_start_in_turns_that_leave_a_core(pods: Pods) -> None:
    turns = max(1, len(os.sched_getaffinity(0)) - 1)
    nodes = ["edge-1", "edge-2", "cloud-1"]
    names = [f"burner-{number}" for number in range(turns + 2)]
    probe = {"exec": {"command": ["test", "-f", "ready"]}, "periodSeconds": 1}
    burner = container(BURN, readinessProbe=probe)
    pods.apply(*(pod(name, burner, nodeName=nodes[k % len(nodes)]) for k, name in enumerate(names)))

    def queueing() -> list[str]:
        waiting = [pods.status(name).get("state", {}).get("waiting", {}) for name in names]
        return [state["message"] for state in waiting if "other containers" in state.get("message", "")]

    assert until("a container that waits for its turn", queueing)
    for name in names:
        pods.ready(name)
    spans = [[float(line) for line in pods("logs", name).split()] for name in names]
    for began, _ in spans:
        assert sum(first <= began < last for first, last in spans) <= turns


def test_tcp_and_grpc_probes(pods: Pods) -> None:
    program = """
import grpc, os
from concurrent.futures import ThreadPoolExecutor
def check(request, context): return b'\\x08\\x01' if request[2:] == b'ready' else b'\\x08\\x02'
methods = {'Check': grpc.unary_unary_rpc_method_handler(check)}
handler = grpc.method_handlers_generic_handler('grpc.health.v1.Health', methods)
server = grpc.server(ThreadPoolExecutor(2)); server.add_generic_rpc_handlers([handler])
server.add_insecure_port(os.environ['POD_IP'] + ':9000'); server.start(); server.wait_for_termination()
"""
    common = {"periodSeconds": 1, "timeoutSeconds": 3}
    for name, service in (("serving", "ready"), ("refusing", "other")):
        probe = {"grpc": {"port": 9000, "service": service}, **common}
        startup = {"tcpSocket": {"port": 9000}, "failureThreshold": 30, **common}
        pods.apply(pod(name, container(program, env=[POD_IP], readinessProbe=probe, startupProbe=startup)))
    pods.ready("serving")
    until("an unhealthy answer", lambda: any("not SERVING" in message for _, message in pods.events("refusing")))
    assert pods.status("refusing")["ready"] is False


def test_jobs_and_deployments_work(pods: Pods) -> None:
    def template(name: str, program: str, **spec: Any) -> Object:
        whole = pod(name, container(program), **spec)
        return {"metadata": whole["metadata"], "spec": whole["spec"]}

    selector = {"matchLabels": {"app": "many"}}
    pods.apply(
        {
            "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "sum"},
            "spec": {"completions": 2, "parallelism": 2, "template": template("sum", "print(1 + 1)")},
        },
        {
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "many"},
            "spec": {"replicas": 3, "selector": selector, "template": template("many", SLEEP, restartPolicy="Always")},
        },
    )  # fmt: skip
    pods("wait", "--for=condition=Complete", "job/sum", "--timeout=120s")
    pods("rollout", "status", "deployment/many", "--timeout=120s")
    addresses = pods("get", "pods", "-l", "app=many", "-o", "jsonpath={.items[*].status.podIP}").split()
    assert len(set(addresses)) == 3
    assert all(a.startswith("127.") and not a.endswith((".0.0", ".0.1")) for a in addresses)
    pods("scale", "deployment/many", "--replicas=1")
    until("two pods fewer", lambda: len(pods("get", "pods", "-l", "app=many", "-o", "name").split()) == 1)


def test_describe_tells_the_story(pods: Pods) -> None:
    pods.apply(pod("story", container("print('{}')")))
    pods.output("story")
    until(
        "the events", lambda: {"Scheduled", "Pulled", "Created", "Started"} <= {why for why, _ in pods.events("story")}
    )
    text = pods("describe", "pod", "story")
    assert "is the local environment" in text
    assert "Container started: main" in text
