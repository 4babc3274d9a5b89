"""What a job tells the operator while it works."""

import time
from collections.abc import Mapping

import pytest

from splitplane.model import caching
from splitplane.runtime.job import Publisher, main


def test_a_download_is_told_as_measuring_is_and_neither_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Mapping[str, str]] = []
    monkeypatch.setattr(Publisher, "_publish", lambda _self, data: told.append(data))
    monkeypatch.setattr(caching.log, "filters", [])
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def work(_environment: Mapping[str, str], publisher: Publisher) -> Mapping[str, object]:
        nonlocal now
        caching.log.warning("weights %s: %d of 88 MB", "s3://models/m", 40)
        caching.log.warning("weights %s: %d of 88 MB", "s3://models/m", 41)  # within two seconds
        now += 3.0
        publisher.progress("10%: round 3")
        return {"done": True}

    assert main("profile_job", work) == 0
    assert told == [
        {"progress": "weights s3://models/m: 40 of 88 MB"},
        {"progress": "10%: round 3"},
        {"result.json": '{"done": true}'},
    ]
