"""New images under a pipeline that serves."""

import asyncio
from collections.abc import Callable

from kindcluster.cluster import Cluster
from kindcluster.product_images import Images
from tests.kind.conftest import whole
from tests.support import operator_cases as cases
from tests.support.kind_images import images_in_use, tag_on_nodes
from tests.support.operator_requests import asking

Kubectl = Callable[..., str]


def pods_images(ns: cases.Namespace) -> set[str]:
    """Images of the pipeline's pods that are to stay."""
    found = [pod for pod in ns.items("pods") if "deletionTimestamp" not in pod["metadata"]]
    return {pod["spec"]["containers"][0]["image"] for pod in found}


async def test_new_images_of_operator_and_runtime_take_over_without_a_failed_request(
    kind: Cluster, kubectl: Kubectl, serving: cases.Measured, address: str
) -> None:
    old = images_in_use(kind)
    new = Images(f"{old.operator}-next", f"{old.runtime}-next")
    for image, another in ((old.operator, new.operator), (old.runtime, new.runtime)):
        tag_on_nodes(kind, image, another)
    try:
        async with asking(address, serving.name) as requests:
            await asyncio.to_thread(kind.install_chart, new)
            await asyncio.to_thread(
                cases.wait,
                lambda: pods_images(serving.ns) == {new.operator, new.runtime},
                seconds=240, what=lambda: f"pods of the new images only, not {pods_images(serving.ns)}",
            )  # fmt: skip
            await asyncio.to_thread(whole, serving.ns)
        assert requests.failures == []
        assert requests.answered > 100
    finally:
        await asyncio.to_thread(kind.install_chart, old)
        await asyncio.to_thread(cases.wait, lambda: pods_images(serving.ns) == {old.operator, old.runtime},
                                seconds=240, what="pods of the images as before")  # fmt: skip
