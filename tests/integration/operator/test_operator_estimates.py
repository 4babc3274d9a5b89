"""A device class on which the model cannot be measured: it is used all the same, and that is told."""

from collections.abc import Callable

import pytest

from tests.support import operator_cases as cases

pytestmark = pytest.mark.integration

UNMEASURABLE = """

import os
if os.environ.get("SPLITPLANE_DEVICE_CLASS") == "weak":  # which profile jobs alone are given
    raise MemoryError("the whole model does not fit here")
"""


def test_a_class_that_cannot_be_measured_serves_by_an_estimate(
    kubectl: Callable[..., str], measured: cases.Measured, digest: str
) -> None:
    end = len(measured.profile["spec"]["segments"])
    split = cases.fixed(("edge", 0, 1), ("cloud", 1, end))
    tiers = cases.tier("edge"), cases.tier("cloud", deviceClass="weak")
    pipeline = cases.pipeline("estimated", cases.model(digest), *tiers, partitioning=split)
    failing = cases.code()
    failing["data"]["narrowing.py"] += UNMEASURABLE
    with cases.Namespace.fresh(kubectl, failing, pipeline) as ns:
        ns.wait_condition("estimated", "Ready", "True")
        told = ns.condition("estimated", "ModelMeasured")
        assert (told["status"], told["reason"]) == ("False", "Estimated")
        assert "device class weak" in told["message"]
