"""Which physical machines a measurement may run on: two that share none may run side by side. Pure.

Two nodes may be one machine, as on kind and on an embedded cluster, and nothing in a Node tells so for certain. So a
label says which machine a node is on, and nodes without it count as sharing one with every other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from splitplane.controller.capacity import matches
from splitplane.controller.objects import Object, condition_of, labels_of

Machines = frozenset[str] | None
"""Names of machines; ``None`` may be any of them, as some node does not say which it is on."""


@dataclass(frozen=True, slots=True)
class Running:
    """A job that may be measuring, or a pod that a deleted one has left, and where."""

    body: Object
    machines: Machines


@dataclass(frozen=True, slots=True)
class Nodes:
    """The cluster's nodes, and the ``label`` that names the machine of each."""

    nodes: Sequence[Object]
    label: str

    def behind(self, selector: Mapping[str, str]) -> Machines:
        """Where a pod with this node selector may come to run, ready or not: a node may be ready by then."""
        return self._machines([node for node in self.nodes if matches(node, selector)])

    def of(self, body: Object, pods: Sequence[Object]) -> Machines:
        """Where a job runs, or may come to run; or a pod. ``pods`` are the job's own."""
        names = {pod["spec"].get("nodeName", "") for pod in (pods if body["kind"] == "Job" else [body])} - {""}
        if names:
            return self._machines([node for node in self.nodes if node["metadata"]["name"] in names])
        spec = body["spec"]["template"]["spec"] if body["kind"] == "Job" else body["spec"]
        return self.behind(spec.get("nodeSelector") or {})

    def lost(self, job: Object, pods: Sequence[Object]) -> str:
        """The node that is lost with all that a job has running, or with a pod of its own; else empty.

        Such a pod stays for ever: nobody confirms that it has ended, and until then its Job doesn't fail. A node counts
        as lost once the control plane has not heard from it for some 40 seconds.
        """
        own = [pod for pod in pods if belongs(pod, job)] if job["kind"] == "Job" else [job]
        running = [pod for pod in own if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")]
        answering = {
            node["metadata"]["name"] for node in self.nodes if condition_of(node, "Ready").get("status") != "Unknown"
        }
        where = [pod["spec"].get("nodeName", "") for pod in running]
        return where[0] if where and all(name and name not in answering for name in where) else ""

    def _machines(self, nodes: Sequence[Object]) -> Machines:
        found = frozenset(labels_of(node).get(self.label, "") for node in nodes)
        return None if not found or "" in found else found


def belongs(pod: Object, job: Object) -> bool:
    """Whether a pod is a Job's, and not one that an earlier Job of that name has left."""
    uid: str = job["metadata"].get("uid", "")
    return labels_of(pod).get("batch.kubernetes.io/controller-uid") == uid


def share(one: Machines, other: Machines) -> bool:
    """Whether two measurements may meet on a machine."""
    return one is None or other is None or not one.isdisjoint(other)
