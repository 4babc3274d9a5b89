"""Encryption between the pods of a pipeline: who is let in, and that certificates change under load unnoticed."""

import asyncio
import datetime as dt
import itertools
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from splitplane import x509_certificates
from splitplane.adapters.kinds import ROUTE_TABLE
from splitplane.controller.authority import Pair, issue, new_authority
from splitplane.domain.peers import GATEWAY, STAGE, peer_name
from splitplane.runtime.environment import SettingsError
from splitplane.runtime.hops import Channels, call
from splitplane.runtime.inference import Failure, InferenceError, InferRequest
from splitplane.runtime.mtls import Identity
from splitplane.runtime.routes import ROUTE, Hop, encode_route
from splitplane.runtime.tensors import from_array, to_array
from tests.support.gateway_rig import (
    PIPELINE,
    SPLIT,
    MemoryCluster,
    StageProcess,
    expected,
    frames,
    gateway,
    put_all,
    table,
    until,
)
from tests.support.secret_volumes import renew, shown_to

NOW = dt.datetime.now(dt.UTC)


def secret(folder: Path, authority: Pair, role: str, *, pipeline: str = PIPELINE, lifetime: int = 3600) -> Path:
    """A certificate in a Secret's form."""
    pair = issue(authority, peer_name(role, pipeline, "default"), now=NOW, lifetime=dt.timedelta(seconds=lifetime))
    renew(folder, {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": authority.certificate})
    return folder


@pytest.fixture(scope="module")
def authority() -> Pair:
    return new_authority("test", now=NOW)


@pytest.fixture(scope="module")
def folders(authority: Pair, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tls")
    return {role: secret(folder / role, authority, role) for role in (GATEWAY, STAGE)}


@pytest.fixture(scope="module")
def pods(folders: dict[str, Path]) -> Iterator[tuple[StageProcess, StageProcess]]:
    edge = StageProcess("small-edge", "edge", (0, 3), tls=folders[STAGE])
    cloud = StageProcess("small-cloud", "cloud", (1, 3), tls=folders[STAGE])
    try:
        yield edge, cloud
    finally:
        edge.kill()
        cloud.kill()


def identity(folder: Path, pipeline: str = PIPELINE) -> Identity:
    return Identity(folder, pipeline=pipeline, namespace="default")


async def answered(channels: Channels, address: str) -> None:
    """Wait until a stage answers these channels."""
    async with asyncio.timeout(60):
        while True:
            method: Callable[..., Awaitable[bytes]] = channels.get(address).unary_unary(
                "/inference.GRPCInferenceService/ServerReady"
            )
            try:
                if await method(b"", timeout=5):
                    return
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.1)


def request(*hops: Hop) -> InferRequest:
    parameters = {ROUTE: encode_route(hops)} if hops else {}
    return InferRequest(PIPELINE, (from_array("frames", frames()),), parameters=parameters)


async def test_no_request_fails_while_certificates_are_replaced_under_load(pods, folders, authority, tmp_path):
    cluster = MemoryCluster()
    put_all(cluster, *pods)
    cluster.put(ROUTE_TABLE, table(1, SPLIT))
    async with gateway(cluster, tmp_path, tls_dir=folders[GATEWAY]) as running:
        await until(running.forwarder.ready, seconds=60)
        before, served, ended = identity(folders[GATEWAY]).current(), 0, asyncio.Event()

        async def client() -> None:
            nonlocal served
            while not ended.is_set():
                answer = await running.forwarder.infer(request())
                assert to_array(answer.outputs[0]).tolist() == expected().tolist()
                served += 1

        clients = [asyncio.ensure_future(client()) for _ in range(4)]
        for _ in range(3):
            for role in (GATEWAY, STAGE):
                secret(folders[role], authority, role)
                await asyncio.sleep(1.2)
        ended.set()
        await asyncio.gather(*clients)
        assert served > 50
        assert identity(folders[GATEWAY]).current() != before
        # The stage shows what lies in its folder now, to whoever connects now.
        shown = await asyncio.to_thread(
            shown_to, pods[0].address, peer_name(STAGE, PIPELINE, "default"), folders[GATEWAY]
        )
        assert shown == await asyncio.to_thread(_certificate_in, folders[STAGE])


def _certificate_in(folder: Path) -> bytes:
    import ssl

    return ssl.PEM_cert_to_DER_cert((folder / "tls.crt").read_text())


async def test_a_stage_takes_the_models_input_from_its_gateway_only(pods, folders):
    channels = {role: Channels(identity=identity(folder)) for role, folder in folders.items()}
    for each in channels.values():
        await answered(each, pods[0].address)
    hop = Hop("small-edge", "edge", 0, 3, (pods[0].address,))
    assert (await call(channels[GATEWAY], (pods[0].address,), request(hop))).response.outputs
    with pytest.raises(InferenceError, match=r"cut 0 is taken from gateway\.small\.default\.splitplane only") as caught:
        await call(channels[STAGE], (pods[0].address,), request(hop))
    assert caught.value.failure is Failure.PERMISSION_DENIED
    inner = InferRequest(
        PIPELINE,
        (from_array("doubled", frames()),),
        parameters={ROUTE: encode_route((Hop("small-cloud", "cloud", 1, 3, (pods[1].address,)),))},
    )
    await answered(channels[STAGE], pods[1].address)
    assert (await call(channels[STAGE], (pods[1].address,), inner)).response.outputs
    with pytest.raises(InferenceError, match="taken from stage"):
        await call(channels[GATEWAY], (pods[1].address,), inner)
    for each in channels.values():
        await each.close()


async def test_pods_of_other_pipelines_other_authorities_or_none_are_refused(pods, folders, authority, tmp_path):
    address = pods[0].address
    good = Channels(identity=identity(folders[GATEWAY]))
    await answered(good, address)
    await good.close()
    hop = Hop("small-edge", "edge", 0, 3, (address,))
    other = secret(tmp_path / "other", authority, GATEWAY, pipeline="other")
    channels = Channels(identity=identity(other))  # this pipeline's stages are called, another's certificate is shown
    with pytest.raises(InferenceError, match=r"names gateway\.other\.default\.splitplane"):
        await call(channels, (address,), request(hop))
    await channels.close()
    stranger = secret(tmp_path / "stranger", new_authority("other", now=NOW), GATEWAY)
    for channels in (Channels(identity=identity(stranger)), Channels()):
        with pytest.raises(InferenceError) as caught:
            await call(channels, (address,), request(hop))
        assert caught.value.failure is Failure.UNAVAILABLE
        await channels.close()
    # The other way round: a gateway gives nothing to who is no stage of its pipeline.
    channels = Channels(identity=identity(folders[GATEWAY], pipeline="other"))
    with pytest.raises(InferenceError):
        await call(channels, (address,), request(hop))
    await channels.close()


async def test_a_common_name_is_nobodys_name(pods, authority, tmp_path):
    """Issuers that look at DNS names may sign any."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, peer_name(GATEWAY, PIPELINE, "default"))])
    issuer, key = x509.load_pem_x509_certificate(authority.certificate), x509_certificates.new_key()
    made = x509_certificates.leaf(
        subject, key, issuer=issuer.subject, signer=x509_certificates.load_key(authority.key), now=NOW,
        lifetime=dt.timedelta(hours=1),
    )  # fmt: skip
    pem = made.public_bytes(Encoding.PEM)
    renew(tmp_path, {"tls.crt": pem, "tls.key": x509_certificates.key_pem(key), "ca.crt": authority.certificate})
    channels = Channels(identity=identity(tmp_path))
    await answered(channels, pods[0].address)
    with pytest.raises(InferenceError, match="names nobody"):
        await call(channels, (pods[0].address,), request(Hop("small-edge", "edge", 0, 3, (pods[0].address,))))
    await channels.close()


async def test_http_tells_how_a_stage_is_but_takes_no_requests(pods, folders):
    channels = Channels(identity=identity(folders[GATEWAY]))
    await answered(channels, pods[0].address)
    await channels.close()
    async with aiohttp.ClientSession(f"http://{pods[0].ip}:8080") as session:
        for path, status in (("/v2/health/ready", 200), ("/metrics", 200)):
            async with session.get(path) as answer:
                assert answer.status == status
        async with session.post(f"/v2/models/{PIPELINE}/infer", json={"inputs": []}) as answer:
            assert answer.status in (404, 405)


def test_what_is_half_written_or_does_not_fit_leaves_the_old_certificate_in_use(authority, tmp_path, caplog):
    now = 0.0
    folder = secret(tmp_path / "tls", authority, GATEWAY)
    one = Identity(folder, pipeline=PIPELINE, namespace="default", clock=lambda: now)
    caplog.set_level("WARNING")
    before = one.current()
    key = folder / "..data" / "tls.key"
    other = issue(authority, "x", now=NOW, lifetime=dt.timedelta(hours=1))
    whole = key.read_bytes()
    for wrong in (b"", whole[:40], other.key):
        key.write_bytes(wrong)
        for _ in range(3):
            now += 2
            assert one.current() is before
    assert caplog.text.count("the old one still is") == 3  # once for each change
    assert b"PRIVATE KEY" not in caplog.text.encode()
    assert "PRIVATE" not in repr(before)
    secret(folder, authority, GATEWAY)
    assert one.current() is before  # looked a moment ago
    now += 2
    assert one.current() != before


def test_a_pod_without_a_usable_certificate_does_not_start(tmp_path):
    with pytest.raises(SettingsError, match="SPLITPLANE_TLS_DIR"):
        identity(tmp_path)


def put(folder: Path, pair: Pair, authorities: bytes) -> None:
    renew(folder, {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": authorities})


def signed(signer: Pair, *, hours: int) -> Pair:
    """A certificate from two hours ago that is valid until so many hours from now."""
    since = NOW - dt.timedelta(hours=2)
    return issue(signer, peer_name(STAGE, PIPELINE, "default"), now=since, lifetime=dt.timedelta(hours=2 + hours))


def test_what_peers_would_refuse_does_not_replace_a_certificate_that_they_take(authority, tmp_path, caplog):
    times = itertools.count(step=2)
    put(tmp_path, signed(authority, hours=1), authority.certificate)
    one = Identity(tmp_path, pipeline=PIPELINE, namespace="default", clock=lambda: next(times))
    before, stranger = one.current(), new_authority("other", now=NOW)
    for wrong in (signed(stranger, hours=1), signed(authority, hours=-1)):
        put(tmp_path, wrong, authority.certificate)
        assert one.current() is one.current() is before
    assert caplog.text.count("the old one still is") == 2
    # The authority is exchanged: both are trusted, then the other signs, then it alone is trusted.
    both = authority.certificate + stranger.certificate
    for pair, trusted in (
        (signed(authority, hours=1), both),
        (signed(stranger, hours=1), both),
        (signed(stranger, hours=1), stranger.certificate),
    ):
        put(tmp_path, pair, trusted)
        assert (one.current().certificate, one.current().authorities) == (pair.certificate, trusted)


def test_of_two_certificates_that_peers_refuse_the_newer_is_used(authority, tmp_path, caplog):
    times = itertools.count(step=2)
    put(tmp_path, signed(authority, hours=-1), authority.certificate)
    one = Identity(tmp_path, pipeline=PIPELINE, namespace="default", clock=lambda: next(times))
    assert "refuses it" in caplog.text
    newer = signed(new_authority("other", now=NOW), hours=1)
    put(tmp_path, newer, authority.certificate)
    assert one.current().certificate == newer.certificate


def test_a_gateways_certificate_for_clients_need_not_be_of_their_authority(authority, tmp_path):
    times = itertools.count(step=2)
    put(tmp_path, signed(authority, hours=1), authority.certificate)
    one = Identity(tmp_path, pipeline=PIPELINE, namespace="default", signed_by_peers=False, clock=lambda: next(times))
    clients = new_authority("clients", now=NOW).certificate
    put(tmp_path, signed(authority, hours=1), clients)
    assert one.current().authorities == clients


def test_authorities_between_come_with_the_certificate(authority):
    root = x509.load_pem_x509_certificate(authority.certificate)
    key, subject = x509_certificates.new_key(), x509_certificates.name("between")
    between = x509_certificates.leaf(
        subject, key, issuer=root.subject, signer=x509_certificates.load_key(authority.key), now=NOW,
        lifetime=dt.timedelta(hours=1),
    )  # fmt: skip
    pair = signed(Pair(between.public_bytes(Encoding.PEM), x509_certificates.key_pem(key)), hours=1)
    own = x509.load_pem_x509_certificate(pair.certificate)
    assert x509_certificates.flaw([own, between], [root], NOW) == ""
    assert "no valid authority in ca.crt" in x509_certificates.flaw([own], [root], NOW)
