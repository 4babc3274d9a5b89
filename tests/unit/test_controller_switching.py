"""Make before break: when routes move, when old pods go, and what happens when new pods do not come."""

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from splitplane.controller.control import CONTROL_ANNOTATION as ANNOTATION
from splitplane.controller.control import Control, Draining, dump, load
from splitplane.controller.switching import Observed, advance, begin, is_ready, make_room, required
from tests.support.controller_cases import serving

OLD, NEW = serving(3, name="old"), serving(4, name="new")
SERVES = Control(active=OLD, since=100.0)
ALL_OLD = {"edge-old": 2, "cloud-old": 1}
ALL = {**ALL_OLD, "edge-new": 2, "cloud-new": 1}


def observed(generation: int = 5, acknowledged: int = 5, **more: Any) -> Observed:
    given: dict[str, Any] = {"ready": ALL_OLD, "slots": {"edge": 9, "cloud": 9}, **more}
    return Observed(generation=generation, acknowledged=acknowledged, **given)


TIGHT = observed(slots={"edge": 2, "cloud": 2})


def start(control: Control = SERVES, *, seen: Observed | None = None, now: float = 200.0):
    return begin(
        control,
        NEW,
        reason="LinkChanged",
        spec_generation=3,
        now=now,
        prepare_seconds=120,
        drain_seconds=90,
        observed=seen or observed(),
    )


def go_on(control: Control, seen: Observed, now: float):
    return advance(control, seen, now=now, drain_seconds=90)


def test_while_new_pods_start_the_old_plan_serves_and_both_are_wanted() -> None:
    step = start()
    assert (step.publish, step.control.active) == (False, OLD)
    assert step.control.wanted() == {**ALL_OLD, "edge-new": 2, "cloud-new": 1}


def test_routes_move_only_once_the_gateway_has_admitted_every_new_replica() -> None:
    control = start().control
    almost = go_on(control, observed(ready={**ALL, "edge-new": 1}), 210)
    assert not almost.publish
    done = go_on(almost.control, observed(ready=ALL), 211)
    assert done.publish
    assert (done.control.active, done.control.pending, done.control.since) == (NEW, None, 211)


def test_a_change_of_routing_alone_is_published_at_once() -> None:
    step = start(seen=observed(ready=ALL))
    assert step.publish
    assert step.control.active == NEW


def test_old_pods_stay_until_their_last_request_has_ended() -> None:
    control = go_on(start().control, observed(ready=ALL), 211).control
    unheard = go_on(control, observed(6, 5, ready=ALL), 212).control
    assert unheard.wanted().keys() >= ALL_OLD.keys()
    busy = go_on(unheard, observed(6, 6, ready=ALL, in_flight={5: 1, 6: 4}), 213).control
    assert busy.wanted().keys() >= ALL_OLD.keys()
    done = go_on(busy, observed(6, 6, ready=ALL, in_flight={6: 4}), 214).control
    assert done.wanted() == {"edge-new": 2, "cloud-new": 1}


def test_a_request_that_never_ends_keeps_old_pods_until_the_deadline_only() -> None:
    control = go_on(start().control, observed(ready=ALL), 211).control
    stuck = observed(6, 6, ready=ALL, in_flight={5: 1})
    assert "edge-old" in go_on(control, stuck, 300).control.named()
    assert "edge-old" not in go_on(control, stuck, 302).control.named()


def test_without_a_word_from_the_gateway_old_pods_stay_long_past_the_deadline() -> None:
    control = go_on(start().control, observed(ready=ALL), 211).control
    silent = observed(6, 5, ready=ALL)
    assert "edge-old" in go_on(control, silent, 900).control.named()
    assert "edge-old" not in go_on(control, silent, 211 + 901).control.named()


def test_a_plan_whose_pods_do_not_come_is_rolled_back_set_aside_and_explained() -> None:
    control = start().control
    step = go_on(control, observed(troubles={"cloud-new": "0/3 nodes are available: insufficient cpu"}), 320)
    assert (step.publish, step.control.active, step.control.pending) == (False, OLD, None)
    assert step.control.wanted() == ALL_OLD
    assert step.control.aside_now(3, 321) == {NEW.plan.digest}
    assert step.control.aside_now(4, 321) == set(), "another spec is another chance"
    [note] = step.notes
    assert note.reason == "SwitchRolledBack"
    assert "insufficient cpu" in note.message


def test_each_failure_doubles_the_time_that_a_plan_is_set_aside_up_to_a_limit() -> None:
    control = SERVES
    spans = []
    for failure in range(6):
        now = 10_000.0 * (failure + 1)
        control = replace(control, set_aside=tuple(replace(a, until=now) for a in control.set_aside))
        control = control.with_aside(NEW.plan, generation=3, reason="NotReadyInTime", now=now)
        spans.append(control.set_aside[-1].until - now)
    assert spans == [60, 120, 240, 480, 900, 900]


def test_a_plan_that_comes_back_while_it_drains_is_adopted_again() -> None:
    control = go_on(start().control, observed(ready=ALL), 211).control
    assert control.draining
    back = begin(
        control, OLD, reason="LinkChanged", spec_generation=3, now=215, prepare_seconds=120, drain_seconds=90,
        observed=observed(6, 6, ready=ALL, in_flight={5: 1}),
    )  # fmt: skip
    assert back.publish
    assert back.control.active == OLD
    assert {stage.name for drain in back.control.draining for stage in drain.stages} == {"edge-new", "cloud-new"}


def test_the_time_of_a_switch_runs_from_the_decision_to_the_acknowledgement() -> None:
    control = go_on(start(now=200).control, observed(ready=ALL), 211).control
    waiting = go_on(control, observed(6, 5, ready=ALL), 212).control
    assert waiting.last_switch_seconds == 0
    known = go_on(waiting, observed(6, 6, ready=ALL), 213.5).control
    assert known.last_switch_seconds == 13.5


def test_pods_that_download_weights_are_waited_for_as_long_as_nothing_is_wrong_with_them() -> None:
    control = begin(
        SERVES, NEW, reason="InitialPlan", spec_generation=3, now=200, prepare_seconds=120, drain_seconds=90,
        observed=observed(), load_seconds=500,
    ).control  # fmt: skip
    assert go_on(control, observed(), 700).control.pending is not None
    assert go_on(control, observed(troubles={"edge-new": "CrashLoopBackOff"}), 321).control.pending is None
    assert go_on(control, observed(), 821).control.pending is None


def test_more_replicas_of_the_same_pods_count_once_the_gateway_has_them() -> None:
    more = serving(3, name="old", edge=4)
    step = begin(
        SERVES,
        more,
        reason="DemandGrew",
        spec_generation=3,
        now=200,
        prepare_seconds=120,
        drain_seconds=90,
        observed=observed(),
    )
    assert (step.control.active, step.control.wanted()["edge-old"]) == (OLD, 4)
    grown = go_on(step.control, observed(ready={"edge-old": 4, "cloud-old": 1}), 205)
    assert grown.publish
    assert grown.control.draining == ()


def test_fewer_replicas_are_wanted_only_after_the_routes_say_so() -> None:
    fewer = serving(3, name="old", edge=1)
    step = begin(
        SERVES,
        fewer,
        reason="DemandFell",
        spec_generation=3,
        now=200,
        prepare_seconds=120,
        drain_seconds=90,
        observed=observed(),
    )
    assert step.publish
    assert step.control.wanted()["edge-old"] == 1


def test_where_both_plans_do_not_fit_old_replicas_make_room_but_not_the_last() -> None:
    control = start(seen=TIGHT).control
    assert make_room(control, observed(slots={"edge": 4, "cloud": 2})) == {**ALL_OLD, "edge-new": 2, "cloud-new": 1}
    tight = make_room(control, TIGHT)
    assert (tight["edge-old"], tight["cloud-old"]) == (1, 1)


def test_what_made_room_is_not_asked_for_again_while_new_pods_take_its_place() -> None:
    control = start(seen=TIGHT).control
    half = observed(slots=TIGHT.slots, ready={"edge-old": 1, "edge-new": 1, "cloud-old": 1, "cloud-new": 1})
    assert make_room(control, half)["edge-old"] == 1


def test_where_the_last_old_replica_is_in_the_way_routes_move_to_what_fits_beside_it() -> None:
    control = start(seen=TIGHT).control
    assert required(control, TIGHT) == {"edge-new": 1, "cloud-new": 1}
    half = observed(slots=TIGHT.slots, ready={"edge-old": 1, "edge-new": 1, "cloud-old": 1, "cloud-new": 1})
    moved = go_on(control, half, 210)
    assert moved.publish
    assert moved.control.wanted() == {"edge-old": 1, "cloud-old": 1, "edge-new": 2, "cloud-new": 1}


def test_the_last_old_replica_makes_room_for_another_model_only() -> None:
    other = replace(NEW, model="another")
    control = begin(
        SERVES,
        other,
        reason="InitialPlan",
        spec_generation=3,
        now=200,
        prepare_seconds=120,
        drain_seconds=90,
        observed=TIGHT,
    ).control
    assert make_room(control, observed(slots={"edge": 1, "cloud": 1}))["edge-old"] == 0


def test_state_survives_the_annotation_unchanged_infinities_included() -> None:
    odd = replace(NEW, predicted=replace(NEW.predicted, p95_seconds=float("inf")))
    control = replace(
        start().control.with_aside(NEW.plan, generation=3, reason="x", now=1.0),
        active=odd, draining=(Draining(5, OLD.stages, 1.0, 2.0),), low_demand_since=7.0,
    )  # fmt: skip
    assert load({"metadata": {"annotations": {ANNOTATION: dump(control)}}}) == control


@given(
    ready=st.dictionaries(st.sampled_from(sorted(ALL)), st.integers(0, 2)),
    acknowledged=st.integers(4, 7), in_flight=st.dictionaries(st.integers(3, 6), st.integers(0, 3)),
    times=st.lists(st.floats(0, 300), min_size=1, max_size=8),
)  # fmt: skip
def test_at_no_time_is_nothing_published_that_is_not_ready_and_what_serves_is_always_wanted(
    ready: dict[str, int], acknowledged: int, in_flight: dict[int, int], times: list[float]
) -> None:
    control, now, generation = start().control, 200.0, 5
    for passed in times:
        now += passed
        seen = Observed(
            generation=generation, acknowledged=acknowledged, ready=ready, in_flight=in_flight,
            slots={"edge": 9, "cloud": 9},
        )  # fmt: skip
        step = go_on(control, seen, now)
        if step.publish:
            generation += 1
            assert step.control.active is not None
            everything = {stage.name: stage.replicas for stage in step.control.active.stages}
            assert is_ready(step.control.active, seen, everything)
        control = step.control
        assert control.active is not None
        assert control.active.names <= control.wanted().keys()
