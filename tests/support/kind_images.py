"""Images that a kind cluster has, and other names for them."""

from kindcluster.cluster import NAMESPACE, RELEASE, Cluster
from kindcluster.product_images import Images


def images_in_use(kind: Cluster) -> Images:
    """Those that the chart was installed with."""
    pod = kind.get("deployment", RELEASE, f"--namespace={NAMESPACE}")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = {variable["name"]: variable.get("value", "") for variable in container["env"]}
    return Images(container["image"], environment["SPLITPLANE_RUNTIME_IMAGE"])


def tag_on_nodes(kind: Cluster, image: str, another: str) -> None:
    """Another name of an image on every node that has it: to the cluster, a new release."""
    for node in kind.nodes():
        ctr = ("exec", node, "ctr", "--namespace=k8s.io", "images")
        if f"docker.io/{image}" in kind.engine.run(*ctr, "list", "--quiet").split():
            kind.engine.run(*ctr, "tag", "--force", f"docker.io/{image}", f"docker.io/{another}")
