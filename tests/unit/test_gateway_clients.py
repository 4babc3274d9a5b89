"""Who may ask a gateway: bearer tokens and certificates, with other people's clients against the real servers."""

import asyncio
import datetime as dt
import hashlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2
from tritonclient.utils import InferenceServerException

from splitplane import x509_certificates as certificates
from splitplane.adapters.kinds import ROUTE_TABLE
from splitplane.api.gateways import ClientAuth
from splitplane.api.pods import LocalReference
from splitplane.controller.authority import Pair, issue, new_authority
from splitplane.controller.children import gateway_objects
from splitplane.runtime import oip_pb2
from splitplane.runtime.environment import SettingsError
from splitplane.runtime.gateway.admission import Load
from splitplane.runtime.gateway.app import Gateway
from splitplane.runtime.gateway.clients import RefusedError, Tokens
from tests.support.controller_cases import SETTINGS, pipeline
from tests.support.gateway_rig import (
    ALONE,
    PIPELINE,
    MemoryCluster,
    StageProcess,
    expected,
    frames,
    gateway,
    put_all,
    table,
    until,
)

NOW = dt.datetime.now(dt.UTC)
ONE, TWO, THREE = "token-one-5f2c", "token-two-91ab", "token-three-7d7e"


@pytest.fixture(scope="module")
def stage() -> Iterator[StageProcess]:
    process = StageProcess("small-edge", "edge", (0, 3))
    try:
        process.wait_ready()
        yield process
    finally:
        process.kill()


def secret(folder: Path, **files: str | bytes) -> Path:
    """A Secret's volume, replaced as a kubelet does it: all at once, by a link."""
    folder.mkdir(exist_ok=True)
    version = folder / f"..{len(list(folder.iterdir()))}"
    version.mkdir()
    for name, content in files.items():
        (version / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for old in folder.iterdir():
        if old.is_symlink() and old.name not in files and not old.name.startswith(".."):
            old.unlink()
    for name in files:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(Path("..data") / name)
    fresh = folder / "..data_tmp"
    fresh.symlink_to(version.name)
    fresh.replace(folder / "..data")
    return folder


@asynccontextmanager
async def running(stage: StageProcess, folder: Path, **settings: Any) -> AsyncIterator[Gateway]:
    cluster = MemoryCluster()
    put_all(cluster, stage)
    cluster.put(ROUTE_TABLE, table(1, ALONE))
    async with gateway(cluster, folder, **settings) as found:
        await until(found.forwarder.ready, seconds=60)
        yield found


def untyped(channel: grpc.aio.Channel) -> Any:
    """For calls whose messages are bytes."""
    return channel


def over_http(address: str, token: str | None, **options: Any) -> Any:
    with closing(triton_http.InferenceServerClient(address, **options)) as client:
        tensor = triton_http.InferInput("frames", [1, frames().shape[1]], "FP32")
        tensor.set_data_from_numpy(frames())
        headers = {"Authorization": f"Bearer {token}"} if token else None
        return client.infer(PIPELINE, [tensor], headers=headers).as_numpy("output_0").tolist()


def over_grpc(address: str, token: str | None, **options: Any) -> Any:
    with closing(triton_grpc.InferenceServerClient(address, **options)) as client:
        tensor = triton_grpc.InferInput("frames", [1, frames().shape[1]], "FP32")
        tensor.set_data_from_numpy(frames())
        headers = {"authorization": f"Bearer {token}"} if token else None
        return client.infer(PIPELINE, [tensor], headers=headers).as_numpy("output_0").tolist()


@pytest.mark.parametrize("send", [over_http, over_grpc])
async def test_a_request_is_served_with_any_of_the_tokens_and_with_nothing_else(stage, tmp_path, send, caplog):
    caplog.set_level(logging.DEBUG)
    folder = secret(tmp_path / "tokens", one=ONE, two=f"{TWO}\n")
    async with running(stage, tmp_path, client_tokens_dir=folder) as found:
        port = 8080 if send is over_http else 9000
        address = f"{found.settings.pod_ip}:{port}"
        for token in (ONE, TWO):
            assert await asyncio.to_thread(send, address, token) == expected().tolist()
        for wrong in (None, THREE, ONE[:-1], ONE + "x", "", f"{ONE} {TWO}"):
            with pytest.raises(InferenceServerException) as refused:
                await asyncio.to_thread(send, address, wrong)
            assert refused.value.status() in ("401", "StatusCode.UNAUTHENTICATED")
            assert "bearer token" in refused.value.message()
        # Rotation, as one does it: the new one beside the old ones, then without them. Nothing restarts.
        secret(folder, one=ONE, three=THREE)
        await asyncio.sleep(1.1)
        assert await asyncio.to_thread(send, address, THREE) == expected().tolist()
        assert await asyncio.to_thread(send, address, ONE) == expected().tolist()
        with pytest.raises(InferenceServerException):
            await asyncio.to_thread(send, address, TWO)
        secret(folder, three=THREE)
        await asyncio.sleep(1.1)
        with pytest.raises(InferenceServerException):
            await asyncio.to_thread(send, address, ONE)
        assert await asyncio.to_thread(send, address, THREE) == expected().tolist()
    assert "clients' tokens have changed: 1 are taken" in caplog.text
    assert not [token for token in (ONE, TWO, THREE) if token in caplog.text]


async def test_what_tells_of_health_and_metrics_needs_no_token_and_everything_else_does(stage, tmp_path):
    folder = secret(tmp_path / "tokens", one=ONE)
    async with running(stage, tmp_path, client_tokens_dir=folder) as found:
        ip = found.settings.pod_ip
        async with aiohttp.ClientSession(f"http://{ip}:8080") as session:
            for path in ("/v2/health/live", "/v2/health/ready", "/metrics", "/"):
                async with session.get(path) as answer:
                    assert answer.status == 200, path
                    assert ONE not in await answer.text()
            for path in ("/v2", "/v2/models", f"/v2/models/{PIPELINE}", f"/v2/models/{PIPELINE}/ready", "/nothing"):
                async with session.get(path) as answer:
                    assert answer.status == 401, path
                    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="splitplane"'
                    assert "error" in await answer.json()
            async with session.post(f"/v1/models/{PIPELINE}:predict", json={"instances": []}) as answer:
                assert answer.status == 401
            wrong = {"Authorization": f"Bearer {TWO}"}
            async with session.get("/v2", headers=wrong) as answer:
                assert answer.headers["WWW-Authenticate"] == 'Bearer realm="splitplane", error="invalid_token"'
            async with session.get("/v2", headers={"authorization": f"bearer  {ONE}"}) as answer:
                assert answer.status == 200
        async with untyped(grpc.aio.insecure_channel(f"{ip}:9000")) as channel:
            health = channel.unary_unary("/grpc.health.v1.Health/Check",
                                         response_deserializer=health_pb2.HealthCheckResponse.FromString)  # fmt: skip
            assert (await health(b"")).status == health_pb2.HealthCheckResponse.SERVING
            service = "/inference.GRPCInferenceService"
            for method in ("ServerLive", "ServerReady"):
                assert await channel.unary_unary(f"{service}/{method}")(b"") == b"\x08\x01"
            for method in ("ServerMetadata", "ModelReady", "ModelMetadata", "ModelInfer"):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await channel.unary_unary(f"{service}/{method}")(b"")
                assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
            reflection = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.stream_stream(reflection)(iter([b""])).read()
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_tokens_that_cannot_be_read_any_more_still_hold_and_an_empty_secret_lets_nobody_in(tmp_path, caplog):
    now = 0.0
    folder = secret(tmp_path / "tokens", one=ONE)
    tokens = Tokens(folder, clock=lambda: now)
    folder.rename(tmp_path / "away")
    now += 2
    assert tokens.holder(f"Bearer {ONE}")
    assert "still hold" in caplog.text
    (tmp_path / "empty").mkdir()
    for shown in (f"Bearer {ONE}", "Bearer "):
        with pytest.raises(RefusedError):
            Tokens(tmp_path / "empty").holder(shown)
    with pytest.raises(SettingsError, match="SPLITPLANE_CLIENT_TOKENS_DIR"):
        Tokens(tmp_path / "missing")


def pem(folder: Path, authority: Pair, name: str, *, server: Pair) -> dict[str, str]:
    """A client's own certificate, and the authority that it takes servers' from, as files."""
    pair = issue(authority, name, now=NOW, lifetime=dt.timedelta(hours=1))
    folder.mkdir()
    files = {"ca": server.certificate, "crt": pair.certificate, "key": pair.key}
    for kind, content in files.items():
        (folder / kind).write_bytes(content)
    return {kind: str(folder / kind) for kind in files}


def shown(folder: Path, authority: Pair, *trusted: Pair) -> Path:
    """What the gateway shows, and whose certificates it takes."""
    pair = issue(authority, "gateway.test", now=NOW, lifetime=dt.timedelta(hours=1))
    files = {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": b"".join(each.certificate for each in trusted)}
    return secret(folder, **files)


async def https(ip: str, client: dict[str, str], *, certificate: bool = True, body: Any = None) -> int:
    context = ssl.create_default_context(cafile=client["ca"])
    if certificate:
        context.load_cert_chain(client["crt"], client["key"])
    async with (
        aiohttp.ClientSession() as session,
        session.request(
            "GET" if body is None else "POST",
            f"https://{ip}:8443/v2/models/{PIPELINE}{'' if body is None else '/infer'}",
            ssl=context,
            server_hostname="gateway.test",
            json=body,
        ) as answer,
    ):
        return answer.status


async def named(
    ip: str, client: dict[str, str], *, certificate: bool = True, method: str = "ServerMetadata", data: bytes = b""
) -> str:
    files = {kind: await asyncio.to_thread(Path(path).read_bytes) for kind, path in client.items()}
    pair = (files["key"], files["crt"]) if certificate else (None, None)
    credentials = grpc.ssl_channel_credentials(files["ca"], *pair)
    options = (("grpc.ssl_target_name_override", "gateway.test"), ("grpc.use_local_subchannel_pool", 1))
    async with untyped(grpc.aio.secure_channel(f"{ip}:9000", credentials, options=options)) as channel:
        answer: bytes = await channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(data, timeout=5)
        return answer.decode(errors="replace")


async def test_with_certificates_both_protocols_take_known_clients_only_also_after_the_authority_has_changed(
    stage, tmp_path
):
    server, old, new = (new_authority(name, now=NOW) for name in ("server", "old", "new"))
    folder = shown(tmp_path / "tls", server, old)
    before = pem(tmp_path / "before", old, "client.one", server=server)
    after = pem(tmp_path / "after", new, "client.two", server=server)
    async with running(stage, tmp_path, client_tls_dir=folder) as found:
        ip = found.settings.pod_ip
        assert await https(ip, before) == 200
        assert "splitplane" in await named(ip, before)
        for client, certificate in ((before, False), (after, True)):
            with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
                await https(ip, client, certificate=certificate)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await named(ip, client, certificate=certificate)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        # The clear port is the kubelet's and Prometheus'.
        async with aiohttp.ClientSession(f"http://{ip}:8080") as session:
            async with session.get("/v2/health/ready") as answer:
                assert answer.status == 200
            async with session.post(f"/v2/models/{PIPELINE}/infer", json={"inputs": []}) as answer:
                assert answer.status == 404
            async with session.get(f"/v2/models/{PIPELINE}") as answer:
                assert answer.status == 404
        shown(folder, server, old, new)
        await asyncio.sleep(1.1)
        for client in (before, after):
            assert await https(ip, client) == 200
            assert await named(ip, client)
        shown(folder, server, new)
        await asyncio.sleep(1.1)
        assert await https(ip, after) == 200
        assert await named(ip, after)
        with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
            await https(ip, before)
        with pytest.raises(grpc.aio.AioRpcError):
            await named(ip, before)


def over_https(ip: str, client: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLSession | None:
    """The session of a connection that has been answered."""
    raw = socket.create_connection((ip, 8443), 5)
    with raw, client.wrap_socket(raw, server_hostname="gateway.test", session=session) as connection:
        connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        if not connection.recv(4096).startswith(b"HTTP/1.1 200"):
            raise ConnectionError("no answer")
        return connection.session


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
async def test_a_session_ends_with_the_authority_whose_client_began_it(stage, tmp_path, version):
    server, old, new = (new_authority(name, now=NOW) for name in ("server", "old", "new"))
    folder = shown(tmp_path / "tls", server, old)
    files = pem(tmp_path / "before", old, "client.one", server=server)
    client = ssl.create_default_context(cafile=files["ca"])
    client.load_cert_chain(files["crt"], files["key"])
    client.minimum_version = client.maximum_version = version
    async with running(stage, tmp_path, client_tls_dir=folder) as found:
        ip = found.settings.pod_ip
        began = await asyncio.to_thread(over_https, ip, client)
        again = await asyncio.to_thread(over_https, ip, client, began)
        shown(folder, server, new)
        await asyncio.sleep(1.1)
        for session in (None, began, again):
            with pytest.raises((ConnectionError, ssl.SSLError)):
                await asyncio.to_thread(over_https, ip, client, session)


async def test_a_token_that_is_no_text_is_a_wrong_one(stage, tmp_path):
    folder = secret(tmp_path / "tokens", one=ONE, raw=b"raw-\xff\xfe")
    async with running(stage, tmp_path, client_tokens_dir=folder) as found:
        for token, status in ((b"\xff\xfe", b"401"), (b"raw-\xff\xfe", b"200")):
            reader, writer = await asyncio.open_connection(found.settings.pod_ip, 8080)
            writer.write(b"GET /v2 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + token + b"\r\n\r\n")
            assert (await reader.readline()).split()[1] == status
            writer.close()


async def test_a_certificate_and_a_token_may_both_be_asked_for(stage, tmp_path):
    authority = new_authority("both", now=NOW)
    client = pem(tmp_path / "client", authority, "client.one", server=authority)
    tls, tokens = shown(tmp_path / "tls", authority, authority), secret(tmp_path / "tokens", one=ONE)
    async with running(stage, tmp_path, client_tls_dir=tls, client_tokens_dir=tokens) as found:
        assert await https(found.settings.pod_ip, client) == 401
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await named(found.settings.pod_ip, client)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def turns(found: Gateway, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whose turns the gateway gives, as it gives them."""
    taken: list[str] = []
    turn = found.forwarder._line.turn

    def noted(client: str, load: Load) -> AbstractAsyncContextManager[None]:
        taken.append(client)
        return turn(client, load)

    monkeypatch.setattr(found.forwarder._line, "turn", noted)
    return taken


async def test_holders_of_tokens_take_turns_wherever_they_call_from(stage, tmp_path, monkeypatch):
    folder = secret(tmp_path / "tokens", one=ONE, two=TWO)
    async with running(stage, tmp_path, client_tokens_dir=folder) as found:
        taken = turns(found, monkeypatch)
        for token in (ONE, TWO, ONE):
            await asyncio.to_thread(over_http, f"{found.settings.pod_ip}:8080", token)
            await asyncio.to_thread(over_grpc, f"{found.settings.pod_ip}:9000", token)
    one, _, two, *_ = taken
    assert one != two
    assert taken == [one, one, two, two, one, one]
    assert ONE not in one


async def test_a_token_is_hashed_once_a_request(stage, tmp_path, monkeypatch):
    hashed: list[bytes] = []

    def counted(data: bytes) -> Any:
        hashed.append(data)
        return sha256(data)

    folder, sha256 = secret(tmp_path / "tokens", one=ONE), hashlib.sha256
    async with running(stage, tmp_path, client_tokens_dir=folder) as found:
        monkeypatch.setattr(hashlib, "sha256", counted)
        monkeypatch.setattr(Tokens, "_look", lambda _: None)  # which hashes those in the folder
        await asyncio.to_thread(over_http, f"{found.settings.pod_ip}:8080", ONE)
        assert hashed == [ONE.encode()]
        await asyncio.to_thread(over_grpc, f"{found.settings.pod_ip}:9000", ONE)
        assert hashed == [ONE.encode()] * 2


async def test_without_tokens_a_header_makes_nobody_another_client(stage, tmp_path, monkeypatch):
    async with running(stage, tmp_path) as found:
        taken = turns(found, monkeypatch)
        for token in (ONE, TWO, None):
            await asyncio.to_thread(over_http, f"{found.settings.pod_ip}:8080", token)
            await asyncio.to_thread(over_grpc, f"{found.settings.pod_ip}:9000", token)
    assert set(taken) == {"127.0.0.1"}


async def test_holders_of_certificates_take_turns_over_either_protocol(stage, tmp_path, monkeypatch):
    authority = new_authority("both", now=NOW)
    names = ["client.one", "client.two"]
    files = {name: pem(tmp_path / name, authority, name, server=authority) for name in names}
    message = oip_pb2.ModelInferRequest(model_name=PIPELINE, raw_input_contents=[frames().tobytes()])
    message.inputs.add(name="frames", datatype="FP32", shape=frames().shape)
    body = {"inputs": [{"name": "frames", "datatype": "FP32", "shape": frames().shape, "data": frames().tolist()}]}
    async with running(stage, tmp_path, client_tls_dir=shown(tmp_path / "tls", authority, authority)) as found:
        taken = turns(found, monkeypatch)
        for name in names:
            assert await https(found.settings.pod_ip, files[name], body=body) == 200
            await named(found.settings.pod_ip, files[name], method="ModelInfer", data=message.SerializeToString())
    assert taken == [f"certificate {name}" for name in names for _ in range(2)]


async def test_a_certificate_whose_alternative_names_are_no_texts_is_known_by_its_own_name(
    stage, tmp_path, monkeypatch
):
    authority, key = new_authority("both", now=NOW), certificates.new_key()
    issuer, signer = x509.load_pem_x509_certificate(authority.certificate), certificates.load_key(authority.key)
    directory = x509.Name([x509.NameAttribute(NameOID.COUNTRY_NAME, "US")])
    other = x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3"), b"\x0c\x03one")
    made = (
        x509.CertificateBuilder(issuer.subject, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "client.one")]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW)
        .not_valid_after(NOW + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DirectoryName(directory), other]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, SHA256())
    )
    files = pem(tmp_path / "client", authority, "client.one", server=authority)
    for kind, content in {"crt": made.public_bytes(Encoding.PEM), "key": certificates.key_pem(key)}.items():
        (tmp_path / "client" / kind).write_bytes(content)
    body = {"inputs": [{"name": "frames", "datatype": "FP32", "shape": frames().shape, "data": frames().tolist()}]}
    async with running(stage, tmp_path, client_tls_dir=shown(tmp_path / "tls", authority, authority)) as found:
        taken = turns(found, monkeypatch)
        assert await https(found.settings.pod_ip, files, body=body) == 200
    assert taken == ["certificate client.one"]


async def test_a_gateway_without_usable_credentials_does_not_start(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("client_tokens_dir", "client_tls_dir"):
        folder = tmp_path / ("missing" if name == "client_tokens_dir" else "empty")
        with pytest.raises(SettingsError, match=f"SPLITPLANE_{name.upper()}"):
            async with gateway(MemoryCluster(), tmp_path, **{name: folder}):
                pass


@pytest.mark.parametrize("asked", [None, "bearer_tokens", "certificates"])
def test_the_gateways_pod_gets_the_secrets_that_the_pipeline_names(asked: str | None):
    body = pipeline()
    auth = ClientAuth(**{asked: LocalReference(name="clients")}) if asked else None
    spec = body.spec.model_copy(update={"gateway": body.spec.gateway.model_copy(update={"client_auth": auth})})
    objects = gateway_objects(body.model_copy(update={"spec": spec}), SETTINGS)
    (deployment,) = [made for made in objects if made["kind"] == "Deployment"]
    (service,) = [made for made in objects if made["kind"] == "Service"]
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    secrets = [volume for volume in pod["volumes"] if "secret" in volume]
    variables = {each["name"]: each.get("value") for each in container["env"] if "CLIENT" in each["name"]}
    ports = {port["name"] for port in service["spec"]["ports"]}
    assert ports == {port["name"] for port in container["ports"]}
    assert ports == {"http", "grpc"} | ({"https"} if asked == "certificates" else set())
    if asked is None:
        assert (secrets, variables) == ([], {})
        return
    (volume,) = secrets
    assert volume["secret"] == {"secretName": "clients"}
    (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == volume["name"]]
    assert mount["readOnly"]
    name = "SPLITPLANE_CLIENT_TOKENS_DIR" if asked == "bearer_tokens" else "SPLITPLANE_CLIENT_TLS_DIR"
    assert variables == {name: mount["mountPath"]}
