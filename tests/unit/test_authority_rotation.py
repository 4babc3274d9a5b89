"""The rotation of the operator's authority: no pod ever meets a signer that it does not know, whoever dies when."""

import base64
import datetime as dt
from dataclasses import dataclass

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from splitplane.adapters.cluster import Object
from splitplane.adapters.kinds import SECRET
from splitplane.controller.authority import LIFETIME, Authority, Pair, advance, issue, new_authority
from splitplane.controller.certificates import ASKED_ANNOTATION, AUTHORITY_SECRET, Certificates, Times
from tests.support.controller_cases import pipeline
from tests.support.fake_cluster import FakeCluster

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
TIMES = Times()
BEGIN = NOW + LIFETIME * 2 / 3


def make() -> Pair:
    return new_authority("system", now=NOW)


def test_an_authority_is_announced_then_signs_and_then_is_the_only_one():
    first, second = make(), new_authority("system", now=BEGIN)
    held = Authority.of(first)

    def after(at: dt.datetime) -> Authority:
        return advance(held, now=at, settle=25 * HOUR, make=lambda: second)

    assert after(BEGIN - HOUR) is held
    held = after(BEGIN)
    assert (held.signer, held.trusted) == (first, (first.certificate, second.certificate))
    assert after(BEGIN + 24 * HOUR) is held
    held = after(BEGIN + 25 * HOUR)
    assert (held.signer, held.trusted) == (second, (second.certificate, first.certificate))
    assert after(BEGIN + 49 * HOUR) is held
    held = after(BEGIN + 50 * HOUR)
    assert held == Authority.of(second)
    assert after(BEGIN + LIFETIME / 2) is held


def test_an_authority_that_has_ended_is_replaced_at_once_by_the_successor_if_there_is_one():
    first, second, third = make(), new_authority("system", now=BEGIN), new_authority("system", now=BEGIN)
    late = NOW + LIFETIME + HOUR
    begun = Authority(first, (first.certificate, second.certificate), second, BEGIN)
    for held, wanted in ((Authority.of(first), third), (begun, second)):
        assert advance(held, now=late, settle=HOUR, make=lambda: third) == Authority.of(wanted)


@dataclass(frozen=True)
class Written:
    """What a pipeline's Secret holds: until when its certificate holds, who signed it, and who is trusted."""

    end: dt.datetime
    signer: bytes
    trusted: tuple[bytes, ...]


@given(
    lives=st.lists(
        st.tuples(st.integers(1, 60), st.integers(0, 60), st.booleans()).map(
            lambda life: {"alive": life[0], "dead": life[1], "wrote_a_step_last": life[2]}
        ),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=50, deadline=None)
def test_whoever_shows_a_certificate_that_holds_trusts_everybody_who_does(lives: list[dict[str, int]]) -> None:
    """Whatever hours an operator lives and is dead for, and at whichever hours two pods have read their Secrets."""
    now, held = BEGIN - 30 * HOUR, Authority.of(make())
    secrets: list[tuple[dt.datetime, Written]] = []
    for life in lives:
        for hour in range(life["alive"] + life["dead"]):
            now += HOUR
            if hour < life["alive"]:
                held = _advanced(held, now)
                secrets.append((now, Written(now + TIMES.lifetime, held.signer.certificate, held.trusted)))
            elif hour == life["alive"] and life["wrote_a_step_last"]:
                held = _advanced(held, now)
    for index, (_, one) in enumerate(secrets):
        for at, other in secrets[index:]:
            if one.end > at:
                assert one.signer in other.trusted
                assert other.signer in one.trusted


def _advanced(held: Authority, now: dt.datetime) -> Authority:
    return advance(held, now=now, settle=TIMES.settle, make=lambda: new_authority("system", now=now))


def test_two_roots_are_told_apart_and_what_each_has_signed_is_taken_by_who_trusts_both():
    first, second = make(), new_authority("system", now=NOW + HOUR)
    roots = [x509.load_pem_x509_certificate(each.certificate) for each in (first, second)]
    assert roots[0].subject != roots[1].subject
    for pair, root in zip((first, second), roots, strict=True):
        leaf = issue(pair, "gateway.tracker.shop.splitplane", now=NOW, lifetime=HOUR)
        x509.load_pem_x509_certificate(leaf.certificate).verify_directly_issued_by(root)


class Watch:
    """The time for an operator, which tests move."""

    def __init__(self) -> None:
        self.now = NOW

    def seconds(self) -> float:
        return (self.now - NOW).total_seconds()

    def operator(self, cluster: FakeCluster) -> Certificates:
        return Certificates(cluster, "system", now=lambda: self.now, clock=self.seconds, times=TIMES)


def roots(cluster: FakeCluster, name: str) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(base64.b64decode(cluster.of("Secret")[name]["data"]["ca.crt"]))


def root_of(cluster: FakeCluster, name: str) -> x509.Name:
    return x509.load_pem_x509_certificate(base64.b64decode(cluster.of("Secret")[name]["data"]["tls.crt"])).issuer


@pytest.mark.parametrize("lives", [1, 1000])
async def test_a_rotation_asked_for_goes_through_the_secrets_of_pipelines_step_by_step(lives: int):
    """Also with a new operator every hour, which knows nothing but the Secret."""
    cluster, watch = FakeCluster(), Watch()
    operator = watch.operator(cluster)
    await operator.ensure(pipeline())
    (old,) = roots(cluster, "tracker-stage-tls")
    seen: list[tuple[int, bool]] = []
    for hour in range(60):
        if hour == 2:
            body = await cluster.get(SECRET, AUTHORITY_SECRET, "system")
            body["metadata"].setdefault("annotations", {})[ASKED_ANNOTATION] = watch.now.isoformat()
            cluster.put(body)
        if lives > 1:
            operator = watch.operator(cluster)
        await operator.ensure(pipeline())
        step = len(roots(cluster, "tracker-stage-tls")), root_of(cluster, "tracker-stage-tls") == old.subject
        seen += [] if seen and seen[-1] == step else [step]
        # Both roles' Secrets are of one step at the end of each round.
        assert roots(cluster, "tracker-gateway-tls") == roots(cluster, "tracker-stage-tls")
        watch.now += HOUR
    assert seen == [(1, True), (2, True), (2, False), (1, False)]
    assert set(cluster.of("Secret")[AUTHORITY_SECRET]["data"]) == {"tls.crt", "tls.key", "ca.crt"}


async def test_of_two_operators_that_begin_a_rotation_at_once_one_makes_the_successor_and_both_use_it():
    cluster, watch = FakeCluster(), Watch()
    await watch.operator(cluster).load()
    watch.now = BEGIN
    written, apply = watch.operator(cluster), cluster.apply
    other: list[Authority] = []

    async def beaten(body: Object) -> Object:
        if not other:
            cluster.apply = apply  # type: ignore[method-assign]
            other.append(await watch.operator(cluster).load())
        return await apply(body)

    cluster.apply = beaten  # type: ignore[method-assign]
    held = await written.load()
    assert held == other[0]
    assert held.successor is not None


async def test_an_authority_that_was_deleted_is_put_back_and_one_that_was_spoilt_is_told_and_not_used(caplog):
    cluster, watch = FakeCluster(), Watch()
    operator = watch.operator(cluster)
    held = await operator.load()
    cluster.remove("Secret", AUTHORITY_SECRET, "system")
    watch.now += HOUR
    await operator.ensure(pipeline())
    assert await watch.operator(cluster).load() == held
    body = await cluster.get(SECRET, AUTHORITY_SECRET, "system")
    body["data"]["ca.crt"] = base64.b64encode(b"none").decode()
    cluster.put(body)
    watch.now += 9 * HOUR
    before = cluster.of("Secret")["tracker-stage-tls"]["data"]["tls.crt"]
    await operator.ensure(pipeline())
    assert "the last one that could be read is used" in caplog.text
    assert cluster.of("Secret")["tracker-stage-tls"]["data"]["tls.crt"] != before
    with pytest.raises(ValueError, match="PEM"):
        await watch.operator(cluster).load()


async def test_a_time_that_is_none_starts_no_rotation_and_is_told(caplog):
    cluster, watch = FakeCluster(), Watch()
    held = await watch.operator(cluster).load()
    body = await cluster.get(SECRET, AUTHORITY_SECRET, "system")
    body["metadata"]["annotations"] = {ASKED_ANNOTATION: "soon"}
    cluster.put(body)
    assert await watch.operator(cluster).load() == held
    assert "is no time: 'soon'" in caplog.text
