"""Routes and traces as they travel in request parameters."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitplane.runtime.routes import Hop, HopTrace, decode_route, decode_trace, encode_route, encode_trace

EDGE = Hop(stage="p-edge", tier="edge", first=0, last=3, codec="int8", addresses=("127.0.0.1:9000",))
CLOUD = Hop(stage="p-cloud", tier="cloud", first=3, last=7, addresses=("127.0.0.2:9000", "127.0.0.3:9000"))


def test_a_route_survives_the_wire():
    assert decode_route(encode_route((EDGE, CLOUD))) == (EDGE, CLOUD)


SECONDS = st.floats(0, 1e6)


@given(
    st.lists(
        st.builds(
            HopTrace,
            stage=st.text(max_size=5),
            tier=st.just("edge"),
            first=st.just(0),
            last=st.just(1),
            queue=SECONDS,
            decode=SECONDS,
            compute=SECONDS,
            encode=SECONDS,
            server=SECONDS,
            hop=SECONDS,
            sent=st.integers(0, 1 << 40),
            received=st.integers(0, 1 << 40),
        ),
        max_size=3,
    ).map(tuple)
)
def test_a_trace_survives_the_wire(trace):
    assert decode_trace(encode_trace(trace)) == trace


def changed(**changes: object) -> str:
    return json.dumps(
        [{**json.loads(encode_route((EDGE, CLOUD)))[0], **changes}, json.loads(encode_route((CLOUD,)))[0]]
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "empty"),
        ("{", "JSON"),
        ("3", "array"),
        (changed(last=2), "hops do not meet: p-edge ends at cut 2, p-cloud starts at 3"),
        (changed(codec=""), "p-edge names no codec"),
        (changed(first=3), "is empty"),
        (changed(first=-1), "negative"),
        (changed(addresses=[]), "no address"),
        (changed(addresses="127.0.0.1:9000"), "0.addresses"),
        (changed(first="zero"), "0.first"),
        (changed(stage=None), "0.stage"),
    ],
)
def test_a_wrong_route_is_refused_with_what_is_wrong(text, says):
    with pytest.raises(ValueError, match=says):
        decode_route(text)


def test_a_newer_sender_may_add_keys():
    assert decode_route(changed(weight=3)) == (EDGE, CLOUD)
