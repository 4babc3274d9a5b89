"""The kinds of Kubernetes objects that Splitplane touches, so that no request depends on discovery.

Discovery would cost a round trip per API group at start-up, and the client would keep its answer in a world-readable
temporary file that outlives an upgrade of the custom resources.
"""

from dataclasses import dataclass

GROUP = "splitplane.dev"
VERSION = "v1alpha1"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind as the API server addresses it. ``group`` is empty for the core group."""

    group: str
    version: str
    name: str
    plural: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def __str__(self) -> str:
        return self.name


POD = Kind("", "v1", "Pod", "pods")
NODE = Kind("", "v1", "Node", "nodes", namespaced=False)
NAMESPACE = Kind("", "v1", "Namespace", "namespaces", namespaced=False)
SERVICE = Kind("", "v1", "Service", "services")
SERVICE_ACCOUNT = Kind("", "v1", "ServiceAccount", "serviceaccounts")
CONFIG_MAP = Kind("", "v1", "ConfigMap", "configmaps")
SECRET = Kind("", "v1", "Secret", "secrets")
EVENT = Kind("", "v1", "Event", "events")
ROLE = Kind("rbac.authorization.k8s.io", "v1", "Role", "roles")
ROLE_BINDING = Kind("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings")
DEPLOYMENT = Kind("apps", "v1", "Deployment", "deployments")
JOB = Kind("batch", "v1", "Job", "jobs")
DISRUPTION_BUDGET = Kind("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")
NETWORK_POLICY = Kind("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies")
PIPELINE = Kind(GROUP, VERSION, "InferencePipeline", "inferencepipelines")
MODEL_PROFILE = Kind(GROUP, VERSION, "ModelProfile", "modelprofiles")
ROUTE_TABLE = Kind(GROUP, VERSION, "RouteTable", "routetables")

_KINDS = {
    (kind.api_version, kind.name): kind
    for kind in (
        POD, NODE, NAMESPACE, SERVICE, SERVICE_ACCOUNT, CONFIG_MAP, SECRET, EVENT, ROLE, ROLE_BINDING, DEPLOYMENT, JOB,
        DISRUPTION_BUDGET, NETWORK_POLICY, PIPELINE, MODEL_PROFILE, ROUTE_TABLE,
    )
}  # fmt: skip


def kind_of(api_version: str, name: str) -> Kind:
    """The kind of an object's ``apiVersion`` and ``kind``.

    Raises:
        KeyError: Splitplane does not know this kind; add it to this module.
    """
    return _KINDS[(api_version, name)]
