"""Answers count until clients have taken them, and no longer."""

import asyncio
import json
from contextlib import suppress
from typing import Any

import grpc
from prometheus_client import CollectorRegistry

from splitplane.runtime import oip_grpc, oip_pb2, oip_rest, rest_serving
from splitplane.runtime.unsent import Answer, Unsent
from tests.support.fronts import Echo
from tests.support.gateway_rig import until

SIZE = 24 << 20
"""More than lies in the buffers of sockets."""


async def test_an_answer_over_rest_counts_until_the_client_has_it():
    unsent = Unsent()
    app = oip_rest.make_app(Echo(), CollectorRegistry(), unsent=unsent)
    server = await rest_serving.serve(app, "127.0.0.1", 0)
    tensor = {"name": "fp32", "datatype": "FP32", "shape": [1, SIZE // 4], "parameters": {"binary_data_size": SIZE}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    reader, writer = await asyncio.open_connection(*server.address, limit=1 << 16)
    lines = f"POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(head) + SIZE}\r\n"
    writer.write(f"{lines}Inference-Header-Content-Length: {len(head)}\r\n\r\n{head}".encode() + bytes(SIZE))
    await until(lambda: unsent.bytes > SIZE)
    await reader.readuntil(b"\r\n\r\n")
    assert unsent.bytes > SIZE
    while unsent.bytes:
        await asyncio.wait_for(reader.read(1 << 20), 30)
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    await server.stop(0)


async def test_an_answer_over_grpc_counts_until_its_call_ends_as_when_the_client_goes():
    unsent = Unsent()
    server = oip_grpc.Server(Echo(), unsent=unsent)
    port = server.bind("127.0.0.1", 0)
    await server.start()
    message: Any = oip_pb2.ModelInferRequest(model_name="echo", raw_input_contents=[bytes(SIZE)])
    message.inputs.add(name="fp32", datatype="FP32", shape=[1, SIZE // 4])
    options = [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        infer: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        leaving = asyncio.ensure_future(infer(message.SerializeToString()))
        await until(lambda: unsent.bytes > SIZE)
        leaving.cancel()
        await until(lambda: unsent.bytes == 0)
        assert len(await infer(message.SerializeToString())) > SIZE
        await until(lambda: unsent.bytes == 0)
    await server.stop(0)


async def test_a_client_that_takes_too_long_counts_no_longer_and_small_answers_never():
    unsent = Unsent(sending_seconds=0.01)
    late, waiting, small = Answer(unsent, 0), Answer(unsent, 1 << 20), Answer(unsent, 0)
    late.sending(1 << 20)
    small.sending(1000)
    assert unsent.bytes == 2 << 20
    await until(lambda: unsent.bytes == 1 << 20)
    late.gone()
    waiting.gone()
    assert unsent.bytes == 0
