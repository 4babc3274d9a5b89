"""Probes and lifecycle hooks: one check of a container, and the loop that turns checks into verdicts."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp

from splitplane.local.agent.process import MARKER

log = logging.getLogger(__name__)

Kind = Literal["startup", "liveness", "readiness"]


@dataclass(frozen=True)
class Target:
    """What checks need to know of a running container."""

    address: str
    ports: Mapping[str, int]
    """Named ports."""
    env: Mapping[str, str]
    cwd: Path
    container_id: str
    rewrite: Callable[[str], str]


@dataclass(frozen=True)
class Outcome:
    """The result of one check."""

    ok: bool
    message: str = ""


def named_ports(container: Mapping[str, Any]) -> dict[str, int]:
    """The container's ports by name."""
    return {port["name"]: port["containerPort"] for port in container.get("ports", []) if "name" in port}


async def check(handler: Mapping[str, Any], target: Target, timeout: float) -> Outcome:
    """Make one check: a probe's or a hook's handler."""
    try:
        async with asyncio.timeout(timeout):
            if "httpGet" in handler:
                return await _http(handler["httpGet"], target)
            if "tcpSocket" in handler:
                return await _tcp(handler["tcpSocket"], target)
            if "grpc" in handler:
                return await _grpc(handler["grpc"], target, timeout)
            if "exec" in handler:
                return await _exec(handler["exec"]["command"], target)
            if "sleep" in handler:
                await asyncio.sleep(float(handler["sleep"]["seconds"]))
                return Outcome(True)
    except TimeoutError:
        return Outcome(False, f"no answer within {timeout:g} s")
    return Outcome(False, f"handler {', '.join(handler) or 'nothing'} is not known")


def _port(port: int | str, target: Target) -> int:
    if isinstance(port, str) and not port.isdecimal():
        if port not in target.ports:
            raise OSError(f"the container has no port named {port!r}")
        return target.ports[port]
    return int(port)


async def _http(spec: Mapping[str, Any], target: Target) -> Outcome:
    headers = {h["name"]: h["value"] for h in spec.get("httpHeaders", [])}
    headers = {"User-Agent": "kube-probe/splitplane", **headers}
    try:
        scheme, host = spec.get("scheme", "HTTP").lower(), spec.get("host") or target.address
        url = f"{scheme}://{host}:{_port(spec['port'], target)}/{spec.get('path', '/').lstrip('/')}"
        async with (
            aiohttp.ClientSession(trust_env=False) as session,
            # As kubelet: the certificate is not checked, for a pod's address has no name.
            session.get(url, headers=headers, ssl=False, allow_redirects=False) as response,
        ):
            text = (await response.content.read(1024)).decode(errors="replace")
            ok = 200 <= response.status < 400
            return Outcome(
                ok, "" if ok else f"HTTP probe failed with statuscode: {response.status} {text[:200]}".strip()
            )
    except (aiohttp.ClientError, OSError) as error:
        return Outcome(False, f"Get failed: {error or type(error).__name__}")


async def _tcp(spec: Mapping[str, Any], target: Target) -> Outcome:
    try:
        _, writer = await asyncio.open_connection(spec.get("host") or target.address, _port(spec["port"], target))
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return Outcome(True)
    except OSError as error:
        return Outcome(False, f"dial tcp failed: {error}")


async def _grpc(spec: Mapping[str, Any], target: Target, timeout: float) -> Outcome:
    import grpc

    service = str(spec.get("service") or "").encode()
    # grpc.health.v1.HealthCheckRequest: field 1, the service; HealthCheckResponse: field 1, 1 means SERVING.
    request = b"\x0a" + bytes([len(service)]) + service if service else b""
    address = f"{target.address}:{_port(spec['port'], target)}"
    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        call: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        try:
            answer = await call(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            return Outcome(False, f"gRPC health check failed: {error.code().name} {error.details()}")
    ok = answer[:2] == b"\x08\x01"
    return Outcome(ok, "" if ok else "service unhealthy (not SERVING)")


async def _exec(command: list[str], target: Target) -> Outcome:
    argv = [target.rewrite(word) for word in command]
    env = {**target.env, MARKER: target.container_id}
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            env=env,
            cwd=target.cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        return Outcome(False, f"cannot run {argv[0]!r}: {error.strerror}")
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        raise
    text = output[-1024:].decode(errors="replace").strip()
    return Outcome(process.returncode == 0, text or f"command exited with {process.returncode}")


class Counter:
    """Consecutive results against a probe's thresholds. Pure."""

    def __init__(self, probe: Mapping[str, Any], *, initially: bool) -> None:
        self._needed = {True: int(probe.get("successThreshold", 1)), False: int(probe.get("failureThreshold", 3))}
        self._last: bool | None = None
        self._run = 0
        self.verdict = initially

    def add(self, ok: bool) -> bool:
        """Take a result; returns whether it has reached its threshold (the verdict may or may not be new)."""
        self._run = self._run + 1 if ok == self._last else 1
        self._last = ok
        if self._run < self._needed[ok]:
            return False
        self.verdict = ok
        return True


async def follow(
    kind: Kind,
    probe: Mapping[str, Any],
    target: Target,
    *,
    reached: Callable[[Kind, bool, str], None],
    failed: Callable[[Kind, str], None],
    until_success: bool = False,
) -> None:
    """Check again and again. `reached` gets each verdict that is new, `failed` every failed check."""
    period, timeout = float(probe.get("periodSeconds", 10)), float(probe.get("timeoutSeconds", 1))
    counter = Counter(probe, initially=kind == "liveness")
    announced: bool | None = None
    await asyncio.sleep(float(probe.get("initialDelaySeconds", 0)))
    while True:
        outcome = await check(probe, target, timeout)
        if not outcome.ok:
            failed(kind, outcome.message)
        if counter.add(outcome.ok) and counter.verdict != announced:
            announced = counter.verdict
            reached(kind, outcome.ok, outcome.message)
            if until_success and outcome.ok:
                return
        await asyncio.sleep(period)
