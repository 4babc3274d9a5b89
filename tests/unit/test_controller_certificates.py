"""Certificates from the operator's own authority: who gets which, when they are renewed, and how pods find them."""

import base64
import datetime as dt
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

from splitplane.adapters.kinds import SECRET
from splitplane.controller.authority import Authority
from splitplane.controller.certificates import AUTHORITY_SECRET, Certificates
from splitplane.controller.children import StageKey, gateway_objects, stage_deployment
from splitplane.controller.settings import Settings
from tests.support.controller_cases import SETTINGS, pipeline
from tests.support.fake_cluster import FakeCluster

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def certificate(body: dict[str, Any], name: str = "tls.crt") -> x509.Certificate:
    return x509.load_pem_x509_certificate(base64.b64decode(body["data"][name]))


async def test_the_authority_is_made_once_and_found_again():
    cluster = FakeCluster()

    async def load() -> Authority:
        return await Certificates(cluster, "system", now=lambda: NOW).load()

    made = await load()
    assert await load() == made
    body = await cluster.get(SECRET, AUTHORITY_SECRET, "system")
    assert body["type"] == "kubernetes.io/tls"
    body["data"].pop("tls.key")
    cluster.put(body)
    with pytest.raises(ValueError, match=r"lacks tls\.key: delete it"):
        await load()


async def test_gateway_and_stages_get_certificates_that_name_them_and_are_renewed_at_a_third_of_their_life():
    cluster, seconds = FakeCluster(), 0.0
    certificates = Certificates(cluster, "system", now=lambda: NOW, clock=lambda: seconds)
    await certificates.ensure(pipeline())
    found = {name: body for name, body in cluster.of("Secret").items() if name != AUTHORITY_SECRET}
    assert set(found) == {"tracker-gateway-tls", "tracker-stage-tls"}
    for name, role in (("tracker-gateway-tls", "gateway"), ("tracker-stage-tls", "stage")):
        body = found[name]
        assert body["metadata"]["ownerReferences"][0]["name"] == "tracker"
        leaf, root = certificate(body), certificate(body, "ca.crt")
        assert leaf.not_valid_after_utc - NOW == dt.timedelta(hours=24)
        # As a peer would verify it, by this authority and no other.
        policy = PolicyBuilder().store(Store([root])).time(NOW.replace(tzinfo=None))
        verified = policy.build_client_verifier().verify(leaf, [])
        assert [each.value for each in verified.subjects or ()] == [f"{role}.tracker.shop.splitplane"]
        policy.build_server_verifier(x509.DNSName(f"{role}.tracker.shop.splitplane")).verify(leaf, [])
    seconds = 8 * 3600 - 1.0
    await certificates.ensure(pipeline())
    assert cluster.of("Secret")["tracker-stage-tls"]["data"] == found["tracker-stage-tls"]["data"]
    seconds += 2
    await certificates.ensure(pipeline())
    assert cluster.of("Secret")["tracker-stage-tls"]["data"] != found["tracker-stage-tls"]["data"]


@pytest.mark.parametrize(("mode", "mounted"), [("Off", False), ("Secrets", True), ("Authority", True)])
def test_pods_find_their_own_certificate_where_mutual_tls_is_on(mode: str, mounted: bool):
    settings = replace(SETTINGS, mtls=mode)
    stage = stage_deployment(pipeline(), StageKey("edge", 0, 3, "f"), replicas=1, settings=settings)
    gateway = next(body for body in gateway_objects(pipeline(), settings) if body["kind"] == "Deployment")
    for body, role in ((stage, "stage"), (gateway, "gateway")):
        pod = body["spec"]["template"]["spec"]
        volumes = [volume for volume in pod["volumes"] if "secret" in volume]
        variables = {each["name"]: each.get("value") for each in pod["containers"][0]["env"]}
        if not mounted:
            assert not volumes
            assert "SPLITPLANE_TLS_DIR" not in variables
            continue
        (volume,) = volumes
        assert volume["secret"] == {"secretName": f"tracker-{role}-tls"}
        (mount,) = (m for m in pod["containers"][0]["volumeMounts"] if m["name"] == volume["name"])
        assert mount["readOnly"]
        assert variables["SPLITPLANE_TLS_DIR"] == mount["mountPath"]


def test_pods_send_spans_only_where_the_chart_names_an_endpoint():
    for endpoint in ("", "http://collector:4318"):
        settings = replace(SETTINGS, tracing_endpoint=endpoint, tracing_ratio="0.1")
        stage = stage_deployment(pipeline(), StageKey("edge", 0, 3, "f"), replicas=1, settings=settings)
        gateway = next(body for body in gateway_objects(pipeline(), settings) if body["kind"] == "Deployment")
        for body in (stage, gateway):
            env = body["spec"]["template"]["spec"]["containers"][0]["env"]
            found = {each["name"]: each["value"] for each in env if each["name"].startswith("OTEL_")}
            assert bool(found) is bool(endpoint)
            if endpoint:
                assert found["OTEL_EXPORTER_OTLP_ENDPOINT"] == endpoint
                assert found["OTEL_TRACES_SAMPLER_ARG"] == "0.1"


def test_a_mode_that_does_not_exist_is_refused_with_those_that_do():
    given = {f"SPLITPLANE_{name}": "x" for name in ("PROMETHEUS_URL", "RUNTIME_IMAGE", "OPERATOR_IMAGE")}
    with pytest.raises(ValueError, match="SPLITPLANE_MTLS must be one of Off, Secrets, Authority, not 'on'"):
        Settings.from_environment({**given, "SPLITPLANE_MTLS": "on"})
