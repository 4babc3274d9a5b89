"""What a stage does with a request: check it, have its range computed, hand the result on, add its trace."""

import time
from collections.abc import Sequence
from dataclasses import replace

from splitplane.domain.codecs import raw_bytes
from splitplane.domain.leaving import Ages
from splitplane.domain.peers import GATEWAY, STAGE
from splitplane.domain.profiles import CODECS, Cut
from splitplane.runtime import codecs, hops, tracing
from splitplane.runtime.inference import (
    Failure,
    InferenceError,
    InferRequest,
    InferResponse,
    ModelMetadata,
    Parameter,
    Tensor,
    TensorMetadata,
    check_outputs,
    invalid,
)
from splitplane.runtime.metrics import StageMetrics
from splitplane.runtime.mtls import Identity
from splitplane.runtime.routes import (
    AGE,
    GENERATION,
    ROUTE,
    SCHEMA,
    TRACE,
    Hop,
    HopTrace,
    Limits,
    decode_route,
    decode_trace,
    encode_route,
    encode_trace,
)
from splitplane.runtime.stage.computing import Computed, Computer, Item, Pace, RangeWork, Runnable
from splitplane.runtime.stage.room import Room, spare_bytes
from splitplane.runtime.stage.shielding import Shield
from splitplane.runtime.stage.worker import Worker
from splitplane.runtime.tensors import check_described, check_plain, size_of


class StageModel:
    """The stage as a protocol front sees it.

    Ready once :meth:`serve` was called and until :meth:`drain` is, but not while its compute thread is stuck.
    """

    def __init__(
        self,
        *,
        name: str,
        stage: str,
        tier: str,
        resident: tuple[int, int],
        worker: Worker,
        channels: hops.Channels,
        metrics: StageMetrics,
        pace: Pace,
        identity: Identity | None = None,
        shield: Shield | None = None,
    ) -> None:
        """With an ``identity`` only its pipeline's gateway and stages are served."""
        self._name, self._stage, self._tier = name, stage, tier
        self._resident = resident
        self._worker, self._channels, self._metrics = worker, channels, metrics
        self._shield = shield or Shield()
        self._computer = Computer(pace, metrics, self._shield)
        self._partition: Runnable | None = None
        self._draining = False
        self._together = False
        self._room = Room(0)
        self._identity = identity
        self.ages = Ages()
        metrics.watch_queue(lambda: worker.depth)

    def serve(self, partition: Runnable, *, together: bool = False) -> None:
        """Begin to answer, with a partition that is loaded and warm; ``together``: requests may share a batch."""
        self._together = together
        self._room = Room(spare_bytes())
        self._partition = partition

    def drain(self) -> None:
        """Cease to be ready; requests that come all the same are still answered."""
        self._draining = True

    def ready(self) -> bool:
        return self._partition is not None and not self._draining and not self._worker.progress.is_stuck()

    def metadata(self) -> ModelMetadata:
        """The resident range as a model of its own, so that an ordinary client can call the stage alone."""
        cuts = self._loaded().graph.cuts
        first, last = self._resident
        return ModelMetadata(name=self._name, inputs=declared(cuts[first]), outputs=declared(cuts[last]))

    async def infer(self, request: InferRequest) -> InferResponse:
        partition = self._loaded()
        if request.outputs:
            check_outputs(request.outputs, self.metadata())
        route = self._route(request)
        self._authorise(request, route[0])
        if AGE in request.parameters:
            self.ages.note(_age_of(request), request.received)
        self._check(partition, route[0], request)
        own, rest = route[0], route[1:]
        limits = own.batch if self._together and own.batch is not None else Limits()
        work = self._computer.work(partition, own.first, own.last, codecs.described(request.inputs), limits)
        item = (
            Item(request.inputs, own.codec, self._shield.covers(rest[0].tier)) if rest else Item(request.inputs, "fp32")
        )
        if not rest:
            computed, trace = await self._computed(work, item, own, request)
            response = InferResponse(model_name=self._name, outputs=computed.tensors)
            return _traced(response, (replace(trace, server=time.perf_counter() - request.received),))
        asked = time.perf_counter()
        example = sum(raw_bytes(spec, batch=work.samples) for spec in partition.graph.cuts[own.last].tensors)
        async with self._room.held((own.first, own.last, own.codec), size_of(request.inputs), example) as held:
            waited = time.perf_counter() - asked
            computed, trace = await self._computed(work, item, own, request, waited=waited)
            held.takes(size_of(computed.tensors))
            call = await self._hand_on(partition, request, computed.tensors, rest)
        later = _trace_of(call.response)
        trace = replace(
            trace,
            hop=call.seconds,
            sent=call.sent,
            received=call.received,
            server=time.perf_counter() - request.received,
        )
        return _traced(replace(call.response, model_name=self._name), (trace, *later))

    async def _computed(
        self, work: RangeWork, item: Item, own: Hop, request: InferRequest, *, waited: float = 0.0
    ) -> tuple[Computed, HopTrace]:
        """What comes of a request, and what it took; ``waited`` seconds it had to before it could queue."""
        done = await self._worker.join(work, item, work.samples, deadline=request.deadline)
        computed: Computed = done.result
        queue = waited + done.queue_seconds
        steps = {"queue": queue, "decode": computed.decode, "compute": computed.compute}
        tracing.tell({**steps, "encode": computed.encode}, **{"splitplane.range": f"{own.first}-{own.last}"})
        return computed, HopTrace(
            stage=own.stage,
            tier=own.tier,
            first=own.first,
            last=own.last,
            queue=queue,
            decode=computed.decode,
            compute=computed.compute,
            encode=computed.encode,
            server=0.0,
        )

    def _loaded(self) -> Runnable:
        if self._partition is None:
            raise InferenceError(
                Failure.UNAVAILABLE, f"stage {self._stage} is still loading its partition; retry later"
            )
        return self._partition

    def _route(self, request: InferRequest) -> tuple[Hop, ...]:
        text = request.parameters.get(ROUTE)
        if text is None:
            first, last = self._resident
            return (Hop(stage=self._stage, tier=self._tier, first=first, last=last, addresses=("-",)),)
        try:
            route = decode_route(str(text))
            unknown = {hop.codec for hop in route[:-1]}.difference(CODECS)
            if unknown:
                raise ValueError(f"codec '{unknown.pop()}' is unknown; use one of {', '.join(CODECS)}")
        except ValueError as error:
            raise invalid(f"parameter {ROUTE}: {error}") from None
        return route

    def _authorise(self, request: InferRequest, own: Hop) -> None:
        """The model's input comes from the pipeline's gateway, anything later from one of its stages.

        So nobody else can have this stage run something, or call the addresses of a route of theirs.
        """
        if self._identity is None:
            return
        wanted = self._identity.name(GATEWAY if own.first == 0 else STAGE)
        if wanted not in request.dns_names:
            raise InferenceError(
                Failure.PERMISSION_DENIED,
                f"cut {own.first} is taken from {wanted} only; the caller's certificate names "
                f"{', '.join(request.dns_names) or 'nobody'}",
            )

    def _check(self, partition: Runnable, own: Hop, request: InferRequest) -> None:
        """Raises :class:`InferenceError` when the range is not resident or the tensors are not those of its cut."""
        first, last = self._resident
        if not first <= own.first < own.last <= last:
            raise InferenceError(
                Failure.FAILED_PRECONDITION,
                f"stage {self._stage} keeps cuts {first} to {last} resident and cannot run {own.first} to {own.last}",
            )
        cut = partition.graph.cuts[own.first]
        schema = request.parameters.get(SCHEMA, cut.schema_hash)
        if schema != cut.schema_hash:
            raise InferenceError(
                Failure.FAILED_PRECONDITION,
                f"the tensors have schema {schema}, but cut {cut.index} ({cut.name}) of stage {self._stage} has "
                f"{cut.schema_hash}: the stages hold different models",
            )
        if own.first == 0 or ROUTE not in request.parameters:
            check_plain(request.inputs)
        check_described(codecs.described(request.inputs), declared(cut))

    async def _hand_on(
        self, partition: Runnable, request: InferRequest, tensors: tuple[Tensor, ...], rest: tuple[Hop, ...]
    ) -> hops.Call:
        parameters: dict[str, Parameter] = {
            ROUTE: encode_route(rest),
            SCHEMA: partition.graph.cuts[rest[0].first].schema_hash,
            AGE: _age_of(request) + time.perf_counter() - request.received,
        }
        if GENERATION in request.parameters:
            parameters[GENERATION] = request.parameters[GENERATION]
        call = await hops.call(
            self._channels,
            rest[0].addresses,
            InferRequest(
                model_name=request.model_name,
                id=request.id,
                parameters=parameters,
                inputs=tensors,
                outputs=request.outputs,
                deadline=request.deadline,
            ),
        )
        server = next((record.server for record in _trace_of(call.response)), 0.0)
        self._metrics.links.transferred(
            source=self._tier, target=rest[0].tier, size=call.sent + call.received, seconds=call.seconds - server
        )
        return call


class Routeless:
    """The stage as its HTTP port has it: alone. Pods use gRPC, so only that port need be closed to others.

    Kubelets and Prometheus reach HTTP from anywhere; nobody may have a stage call addresses by it.
    """

    def __init__(self, model: StageModel) -> None:
        self.metadata, self.ready = model.metadata, model.ready
        self._model = model

    async def infer(self, request: InferRequest) -> InferResponse:
        if ROUTE in request.parameters:
            raise InferenceError(Failure.PERMISSION_DENIED, f"parameter {ROUTE} is taken over gRPC only")
        return await self._model.infer(request)


def declared(cut: Cut) -> tuple[TensorMetadata, ...]:
    """The tensors of a cut as a model's inputs or outputs: the batch comes first and is dynamic."""
    return tuple(TensorMetadata(spec.name, spec.datatype, spec.declared_shape) for spec in cut.tensors)


def _age_of(request: InferRequest) -> float:
    """Seconds that it had spent at earlier stages when it was handed on to this one."""
    age = request.parameters.get(AGE, 0.0)
    return 0.0 if isinstance(age, str) else age


def _trace_of(response: InferResponse) -> tuple[HopTrace, ...]:
    """A trace is for estimates only: one that cannot be read must not fail a request that was served."""
    try:
        return decode_trace(str(response.parameters.get(TRACE, "[]")))
    except ValueError:
        return ()


def _traced(response: InferResponse, trace: Sequence[HopTrace]) -> InferResponse:
    return replace(response, parameters={**response.parameters, TRACE: encode_trace(trace)})
