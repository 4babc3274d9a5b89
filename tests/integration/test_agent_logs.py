"""Logs and the kubelet endpoint of embedded nodes, through kubectl and without it."""

import json
import re
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request

import pytest

from splitplane.local import binaries
from tests.support.agent_pods import Kubectl, Pods, container, pod, until

pytestmark = pytest.mark.integration

COUNT = "import sys\nfor i in range(int(sys.argv[1])): print('line', i, flush=True)"


@pytest.fixture
def pods(kubectl: Kubectl, namespace: str) -> Pods:
    return Pods(kubectl, namespace)


def test_parts_of_a_log(pods: Pods) -> None:
    both = "import sys; print('out', flush=True); print('err', file=sys.stderr, flush=True); print('rest', end='')"
    pods.apply(pod("many", container(COUNT, "500")), pod("both", container(both)))
    pods.phase("many", "Succeeded")
    pods.phase("both", "Succeeded")
    assert pods("logs", "many").splitlines() == [f"line {i}" for i in range(500)]
    assert pods("logs", "many", "--tail=2").splitlines() == ["line 498", "line 499"]
    assert pods("logs", "many", "--tail=0") == ""
    assert pods("logs", "many", "--limit-bytes=10") == "line 0\nlin"
    [stamped] = pods("logs", "many", "--tail=1", "--timestamps").splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z line 499", stamped)
    assert pods("logs", "both") == "out\nerr\nrest\n"


def test_since_leaves_older_lines_out(pods: Pods) -> None:
    program = "import time; print('old', flush=True); time.sleep(4); print('new', flush=True); time.sleep(60)"
    pods.apply(pod("aging", container(program)))
    until("both lines", lambda: pods("logs", "aging") == "old\nnew\n")
    assert pods("logs", "aging", "--since=3s") == "new\n"


def test_following_ends_with_the_container(pods: Pods) -> None:
    program = "import time\nfor i in range(5): print(i, flush=True); time.sleep(0.3)"
    pods.apply(pod("live", container(program)))
    pods.phase("live", "Running", "Succeeded")
    assert pods("logs", "live", "-f") == "0\n1\n2\n3\n4\n"


def test_a_follower_that_leaves_costs_nothing_more(pods: Pods, kubeconfig: str) -> None:
    pods.apply(pod("quiet", container("import time; print('here', flush=True); time.sleep(600)")))
    pods.ready("quiet")
    command = [
        str(binaries.ensure("kubectl")),
        f"--kubeconfig={kubeconfig}",
        "-n",
        pods.namespace,
        "logs",
        "-f",
        "quiet",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == "here\n"
        follower.terminate()
    began = time.monotonic()
    assert pods("logs", "quiet") == "here\n"
    assert time.monotonic() - began < 20


def test_a_container_that_has_not_started_and_a_previous_one_that_never_was(pods: Pods) -> None:
    pods.apply(pod("foreign", {**container(""), "image": "nginx"}), pod("first", container("print(1)")))
    pods.waiting("foreign", "ErrImageNeverPull")
    assert "is waiting to start" in pods("logs", "foreign", check=False)
    pods.phase("first", "Succeeded")
    assert "not found" in pods("logs", "first", "--previous", check=False)


def test_exec_attach_and_port_forward_say_what_to_do_instead(pods: Pods) -> None:
    pods.apply(pod("plain", container("import time; time.sleep(600)")))
    address = pods.ready("plain")["status"]["podIP"]
    reason = f"not offered by the embedded cluster; the pod's address {address} is reachable directly"
    assert reason in pods("exec", "plain", "--", "true", check=False)
    assert reason in pods("attach", "plain", check=False)


def test_the_endpoint_refuses_clients_without_a_certificate(kubectl: Kubectl) -> None:
    node = json.loads(kubectl("get", "node", "cloud-1", "-o", "json"))["status"]
    address, port = node["addresses"][0]["address"], node["daemonEndpoints"]["kubeletEndpoint"]["Port"]
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with pytest.raises((ssl.SSLError, urllib.error.URLError, ConnectionError)):
        urllib.request.urlopen(f"https://{address}:{port}/healthz", context=context, timeout=10).read()
    with socket.create_connection((address, port), timeout=10):
        pass


def test_logs_are_read_by_the_users_who_may_not_by_others(pods: Pods) -> None:
    pods.apply(pod("private", container("print(1)")))
    pods.phase("private", "Succeeded")
    other = "--as=system:serviceaccount:default:default"
    assert "forbidden" in pods("logs", "private", other, check=False)
