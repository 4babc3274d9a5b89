"""The pipelines that a pipeline with ``spec.sites`` is operated as: one for each site that its nodes name. Pure.

A site's pipeline is the user's, but for the gateway's tier, which is that site's nodes alone. So a site has all that a
pipeline has (gateway, Service, RouteTable, plan, switch, status, events) by the same code.
"""

import copy
import re
from collections.abc import Iterable
from dataclasses import dataclass

from splitplane.api.pipelines import NAMES_LENGTH, InferencePipeline
from splitplane.controller.capacity import matches
from splitplane.controller.children import finished
from splitplane.controller.naming import digest, tier_of
from splitplane.controller.objects import SHARED_LABEL, SITE, SITE_LABEL, Key, Object, labels_of
from splitplane.controller.pods import labels, owner

_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Found:
    """Names of the sites, and of the gateway's tier's nodes that name none."""

    sites: frozenset[str]
    unnamed: tuple[str, ...]


def find(pipeline: InferencePipeline, nodes: Iterable[Object]) -> Found:
    """The sites that nodes of the gateway's tier name, ready or not: a site that is dark is still there."""
    assert pipeline.spec.sites is not None
    selector = tier_of(pipeline.spec, pipeline.spec.gateway.tier).node_selector
    named = {
        node["metadata"]["name"]: labels_of(node).get(pipeline.spec.sites.topology_key, "")
        for node in nodes
        if matches(node, selector)
    }
    return Found(frozenset(named.values()) - {""}, tuple(sorted(name for name, site in named.items() if not site)))


def site_pipeline(body: Object, pipeline: InferencePipeline, site: str) -> Object:
    """The pipeline of one site, made of the user's (``body``, and the same as ``pipeline``)."""
    assert pipeline.spec.sites is not None
    spec = copy.deepcopy(body["spec"])
    del spec["sites"]
    for tier in spec["tiers"]:
        if tier["name"] == pipeline.spec.gateway.tier:
            tier["nodeSelector"][pipeline.spec.sites.topology_key] = site
    shared = pipeline.spec.sites.shared_tier
    more = {SITE_LABEL: site, **({SHARED_LABEL: shared} if shared else {})}
    return finished(
        {
            "apiVersion": body["apiVersion"],
            "kind": body["kind"],
            "metadata": {
                "name": site_name(pipeline, site),
                "namespace": pipeline.metadata.namespace,
                "labels": labels(pipeline.metadata.name, SITE, **more),
                "ownerReferences": [owner(pipeline)],
            },
            "spec": spec,
        }
    )


def site_name(pipeline: InferencePipeline, site: str) -> str:
    """Name of a site's pipeline: the label's value as far as it makes a name, with a digest where that is not all."""
    name = pipeline.metadata.name
    room = NAMES_LENGTH - len(name) - 1 - max(len(tier.name) for tier in pipeline.spec.tiers)
    slug = re.sub(r"[^a-z0-9]+", "-", site.lower()).strip("-")
    if slug != site or len(slug) > room:
        slug = f"{slug[: room - _DIGITS - 1].strip('-')}-{digest(site, length=_DIGITS)}".lstrip("-")
    return f"{name}-{slug}"


def site_of(body: Object) -> str:
    """The site that a pipeline was made for."""
    return labels_of(body).get(SITE_LABEL, "")


def of_sites(pipeline: InferencePipeline, pipelines: Iterable[Object]) -> dict[Key, Object]:
    """The pipelines among ``pipelines`` that were made for this one's sites, by key."""
    uid = pipeline.metadata.uid
    return {(pipeline.metadata.namespace, body["metadata"]["name"]): body for body in pipelines if is_owned(body, uid)}


def is_owned(body: Object, uid: str) -> bool:
    """Whether an object was made for the one with this uid."""
    return any(each.get("uid") == uid for each in body["metadata"].get("ownerReferences") or ())
