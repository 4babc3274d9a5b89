"""The REST front of the Open Inference Protocol over one :class:`Model`, with health and metrics beside it."""

import contextlib
import json
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from aiohttp import hdrs, web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from splitplane.runtime import oip_json, oip_v1, tracing
from splitplane.runtime.bodies import Bodies, Body
from splitplane.runtime.budgets import Budget
from splitplane.runtime.faults import Faults
from splitplane.runtime.inference import (
    Failure,
    InferenceError,
    InferRequest,
    InferResponse,
    Model,
    ModelMetadata,
    TensorMetadata,
    answer,
    check,
    invalid,
)
from splitplane.runtime.json_sizes import footprint_known, footprint_written
from splitplane.runtime.oip_grpc import EXTENSIONS, SERVER_NAME, VERSION
from splitplane.runtime.rest_serving import AFTER
from splitplane.runtime.tensors import size_of
from splitplane.runtime.unpacking import ENCODINGS, encoding_of
from splitplane.runtime.unsent import Answer, Unsent
from splitplane.runtime.vitals import Condition

FAULTS = Faults(logging.getLogger(__name__))
ACCEPTED: dict[str, str] = {hdrs.ACCEPT_ENCODING: ", ".join(ENCODINGS)}
NOT_TAKEN = f"this Content-Encoding is not taken; send the body as it is, or in one of {', '.join(ENCODINGS)}"
HEADER_SIZE = "Inference-Header-Content-Length"
TIMEOUT = "Grpc-Timeout"
"""A request's time, as gRPC's own header has it and gateways from REST to gRPC take it."""
_TIMEOUT_FORM = re.compile(r"0*([1-9][0-9]*)([HMSmun])")
_UNIT_SECONDS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_NAME_KINDS = frozenset({"DNS", "URI", "email", "IP Address"})
"""Of alternative names, as ``ssl`` calls them."""
_MOST_SIZE_DIGITS = 18
_MOST_DIGITS = 8

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(
    model: Model,
    registry: CollectorRegistry,
    *,
    inference: bool = True,
    bodies: Bodies | None = None,
    condition: Condition | None = None,
    on_invalid: Callable[[], None] = lambda: None,
    unsent: Unsent | None = None,
) -> web.Application:
    """The application, not yet bound: OIP REST, KServe's V1 beside it, ``/v2/health/*`` and ``/metrics``.

    Without ``inference`` it takes no requests for the model, and only tells of it. ``on_invalid`` hears of requests
    that the model never sees though they can be read: what they ask for can be kept, or given as JSON, by nobody.
    ``unsent`` counts answers until they are written.
    """
    app = web.Application(middlewares=[_errors])
    bodies, condition, unsent = bodies or Bodies(Budget()), condition or Condition(), unsent or Unsent()

    async def live(_request: web.Request) -> web.Response:
        is_live = condition.live()
        return web.json_response({"live": is_live}, status=200 if is_live else 503)

    async def ready(_request: web.Request) -> web.Response:
        is_ready = model.ready()
        return web.json_response({"ready": is_ready}, status=200 if is_ready else 503)

    async def server_metadata(_request: web.Request) -> web.Response:
        return web.json_response({"name": SERVER_NAME, "version": VERSION, "extensions": list(EXTENSIONS)})

    async def model_metadata(request: web.Request) -> web.Response:
        return web.json_response(_metadata(check(model, *_named(request))))

    async def model_ready(request: web.Request) -> web.Response:
        name = check(model, *_named(request)).name
        is_ready = model.ready()
        return web.json_response({"name": name, "ready": is_ready}, status=200 if is_ready else 503)

    async def infer(request: web.Request) -> web.Response:
        with tracing.serving("infer", request.headers):
            declared = check(model, *_named(request)).inputs
            with _telling(on_invalid):
                deadline = _deadline(request)
            _require_known_encoding(request)
            async with bodies.of(request, deadline) as body:
                return await _infer(request, body, declared, deadline)

    async def _infer(
        request: web.Request, body: Body, declared: Sequence[TensorMetadata], deadline: float | None
    ) -> web.Response:
        (name, version), header_size = _named(request), _header_size(request)
        inference, binary = await bodies.parsed(
            body,
            lambda: oip_json.read_request(
                body.data,
                header_size=header_size,
                model_name=name,
                model_version=version,
                declared=declared,
                deadline=deadline,
            ),
            text_size=header_size,
            deadline=deadline,
        )
        await body.held.grow(size_of(inference.inputs))
        wanted = [each for each in model.metadata().outputs if each.name in (inference.outputs or (each.name,))]
        require_known_writable(inference, [each for each in wanted if each.name not in binary])
        response = answer(inference, await model.infer(_sent_by(inference, request)))
        deadline = inference.deadline
        del inference
        sent = exchanged(request, body, response)
        content, header_size = await bodies.written(
            size_of(response.outputs),
            footprint_written(each for each in response.outputs if each.name not in binary),
            lambda: oip_json.write_response(response, binary),
            deadline=deadline,
        )
        sent.sending(len(content))
        if header_size is None:
            return web.Response(body=content, content_type="application/json")
        return web.Response(
            body=content, content_type="application/octet-stream", headers={HEADER_SIZE: str(header_size)}
        )

    def require_known_writable(
        inference: InferRequest, outputs: Sequence[TensorMetadata], *, nested: bool = False
    ) -> None:
        """Before anything is computed."""
        with _telling(on_invalid):
            bodies.require_writable(footprint_known(inference.inputs, outputs, nested=nested))

    def exchanged(request: web.Request, body: Body, response: InferResponse) -> Answer:
        """Gives up what the client sent for the response, which counts until it has been written to the client."""
        body.drop()
        sent = Answer(unsent, size_of(response.outputs), response.client)
        request[AFTER] = sent.gone
        return sent

    async def alive(_request: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def model_list(_request: web.Request) -> web.Response:
        return web.json_response({"models": [model.metadata().name]})

    async def predict(request: web.Request) -> web.Response:
        with tracing.serving("predict", request.headers):
            metadata = check(model, *_named(request))
            with _telling(on_invalid):
                deadline = _deadline(request)
            _require_known_encoding(request)
            async with bodies.of(request, deadline) as body:
                return await _predict(request, body, metadata, deadline)

    async def _predict(
        request: web.Request, body: Body, metadata: ModelMetadata, deadline: float | None
    ) -> web.Response:
        inference, by_rows = await bodies.parsed(
            body, lambda: oip_v1.read_request(body.data, metadata), deadline=deadline
        )
        await body.held.grow(size_of(inference.inputs))
        require_known_writable(inference, metadata.outputs, nested=True)
        response = await model.infer(replace(_sent_by(inference, request), deadline=deadline))
        del inference
        sent = exchanged(request, body, response)
        content = await bodies.written(
            size_of(response.outputs),
            footprint_written(response.outputs, nested=True),
            lambda: oip_v1.write_response(response, by_rows=by_rows),
            deadline=deadline,
        )
        sent.sending(len(content))
        return web.Response(body=content, content_type="application/json")

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app.router.add_get("/v2", server_metadata)
    app.router.add_get("/v2/health/live", live)
    app.router.add_get("/v2/health/ready", ready)
    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        app.router.add_get(path, model_metadata)
        app.router.add_get(f"{path}/ready", model_ready)
        if inference:
            app.router.add_post(f"{path}/infer", infer)
    for path in ("/v1/models", "/v2/models"):
        app.router.add_get(path, model_list)
    app.router.add_get("/", alive)
    app.router.add_get("/v1/models/{name:[^/:]+}", model_ready)  # what follows a colon is asked for by POST
    if inference:
        app.router.add_post("/v1/models/{name}:predict", predict)
    app.router.add_get("/metrics", metrics)
    return app


@contextlib.contextmanager
def _telling(on_invalid: Callable[[], None]) -> Iterator[None]:
    """Of what is refused within."""
    try:
        yield
    except InferenceError:
        on_invalid()
        raise


def _sent_by(inference: InferRequest, request: web.Request) -> InferRequest:
    forwarded = ",".join(request.headers.getall(hdrs.X_FORWARDED_FOR, ()))
    shown = request.get_extra_info("peercert") or {}
    return replace(inference, client=request.remote or "", forwarded=forwarded, identity=_names(shown))


def _names(certificate: Mapping[str, Any]) -> tuple[str, ...]:
    """Who shows it, as gRPC tells it: names that are texts, else the common name. Else the whole subject."""
    names = tuple(str(name) for kind, name in certificate.get("subjectAltName", ()) if kind in _NAME_KINDS)
    subject = [(kind, str(value)) for part in certificate.get("subject", ()) for kind, value in part]
    common = tuple(value for kind, value in subject if kind == "commonName")
    return names or common or tuple(f"{kind}={value}" for kind, value in subject)


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except InferenceError as error:
        return error_answer(error, error.failure.http_status)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        kept = (hdrs.ALLOW, hdrs.ACCEPT_ENCODING)
        told: dict[str, str] = {name: error.headers[name] for name in kept if name in error.headers}
        text = NOT_TAKEN if error.status == web.HTTPUnsupportedMediaType.status_code else error.reason
        return _error(f"{text}: {request.method} {request.path}", error.status, told)
    except Exception as error:
        FAULTS.tell(error)
        return _error(f"{type(error).__name__}; the server's log says more", Failure.INTERNAL.http_status)


def error_answer(error: InferenceError, status: int) -> web.Response:
    """With the time to come again, in whole seconds, where there is one."""
    seconds = error.retry_seconds
    return _error(error.message, status, {} if seconds is None else {hdrs.RETRY_AFTER: str(max(1, math.ceil(seconds)))})


def _error(message: str, status: int, headers: Mapping[str, str] | None = None) -> web.Response:
    text = json.dumps({"error": message})
    return web.Response(text=text, status=status, headers=headers, content_type="application/json")


def _named(request: web.Request) -> tuple[str, str]:
    return request.match_info["name"], request.match_info.get("version", "")


def _require_known_encoding(request: web.Request) -> None:
    if encoding_of(request) not in ("", *ENCODINGS):
        raise web.HTTPUnsupportedMediaType(headers=ACCEPTED)


def _deadline(request: web.Request) -> float | None:
    """When the request's time is up, on ``time.monotonic``'s clock; it runs from now, not from the end of the body."""
    given = request.headers.getall(TIMEOUT, None)
    if given is None:
        return None
    text = ",".join(given)
    found = _TIMEOUT_FORM.fullmatch(text)
    if found is None or len(text) > _MOST_DIGITS + 1:
        raise invalid(
            f"{TIMEOUT} is '{text}'; it must be a number of 1 to {_MOST_DIGITS} digits, not 0, and its unit: H, M, S, "
            "m (milliseconds), u or n"
        )
    return time.monotonic() + int(found[1]) * _UNIT_SECONDS[found[2]]


def _header_size(request: web.Request) -> int | None:
    text = request.headers.get(HEADER_SIZE)
    if text is None:
        return None
    if not text.isdecimal() or len(text) > _MOST_SIZE_DIGITS:
        raise invalid(f"{HEADER_SIZE} is '{text[:_MOST_SIZE_DIGITS]}', not a number of bytes")
    return int(text)


def _metadata(metadata: ModelMetadata) -> dict[str, Any]:
    return {
        "name": metadata.name,
        "versions": list(metadata.versions),
        "platform": metadata.platform,
        **{
            key: [{"name": item.name, "datatype": item.datatype, "shape": list(item.shape)} for item in tensors]
            for key, tensors in (("inputs", metadata.inputs), ("outputs", metadata.outputs))
        },
    }
