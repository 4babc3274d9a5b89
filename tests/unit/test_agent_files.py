"""What the agent writes and reads on disk: logs, volumes made of API objects, records."""

from datetime import datetime
from pathlib import Path

import pytest

from splitplane.local.agent import lifecycle, logs, state, volumes
from splitplane.local.agent.logs import LogWriter, Selection, Tail
from splitplane.local.agent.manager import take_over
from splitplane.local.agent.state import Backoff, ContainerRecord, Ended, PodRecord
from splitplane.local.agent.volumes import Content, File


def write(path: Path, *pieces: bytes) -> None:
    writer = LogWriter(path)
    for piece in pieces:
        writer(piece)
    writer(None)


def text(path: Path, selection: Selection = Selection()) -> bytes:  # noqa: B008 - frozen
    return b"".join(logs.read(path, selection))


def test_lines_are_kept_whole_however_output_arrives(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    write(path, b"one\ntw", b"o\n", b"\nlast")
    assert text(path) == b"one\ntwo\n\nlast\n"


def test_a_very_long_line_is_stored_in_parts_and_read_as_one(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    write(path, b"x" * 50_000 + b"\nend\n")
    assert text(path) == b"x" * 50_000 + b"\nend\n"
    assert max(map(len, path.read_bytes().splitlines())) < 17_000


def test_selections(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    write(path, b"a\nb\nc\n")
    assert text(path, Selection(tail=2)) == b"b\nc\n"
    assert text(path, Selection(tail=0)) == b""
    assert text(path, Selection(tail=9)) == b"a\nb\nc\n"
    assert text(path, Selection(since=datetime.now().timestamp() + 5)) == b""  # noqa: DTZ005 - an instant
    first = text(path, Selection(timestamps=True)).splitlines()[0]
    assert first.endswith(b"Z a")


def test_a_log_is_rotated_and_a_tail_follows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MOST_FILE", 1000)
    path = tmp_path / "0.log"
    writer = LogWriter(path)
    tail = Tail(path)
    seen = []
    for number in range(60):
        writer(b"line %d\n" % number)
        seen += [logs.shown(line, Selection()) for line in tail.fresh()]
    writer(None)
    assert seen == [b"line %d\n" % number for number in range(60)]
    assert logs.rotated(path).exists()
    assert text(path).splitlines()[-1] == b"line 59"


def test_only_the_last_two_runs_are_kept(tmp_path: Path) -> None:
    for run in range(4):
        write(tmp_path / f"{run}.log", b"x\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2.log", "3.log"]


def test_last_words_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    write(path, b"".join(b"%04d\n" % n for n in range(1000)))
    assert logs.last_words(path).splitlines() == [f"{n:04}" for n in range(920, 1000)]
    assert len(logs.last_words(path, lines=1000)) == 2048


def files(**contents: str) -> Content:
    return Content({name.replace("__", "/"): File(value.encode(), 0o644) for name, value in contents.items()})


def test_a_volume_shows_exactly_its_files_and_changes_at_once(tmp_path: Path) -> None:
    assert volumes.write(tmp_path, files(a="1", deep__b="2"))
    assert ((tmp_path / "a").read_text(), (tmp_path / "deep/b").read_text()) == ("1", "2")
    before = (tmp_path / "..data").readlink()
    assert not volumes.write(tmp_path, files(a="1", deep__b="2"))
    assert (tmp_path / "..data").readlink() == before
    assert volumes.write(tmp_path, files(a="3"))
    assert (tmp_path / "a").read_text() == "3"
    assert not (tmp_path / "deep").exists()
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith("..")) == ["a"]


def test_a_record_survives_and_a_broken_one_is_none(tmp_path: Path) -> None:
    record = PodRecord(namespace="n", name="p", uid="u", admitted_at=1.0, containers={"c": ContainerRecord(runs=2)})
    state.save(record, tmp_path)
    assert state.load(tmp_path) == record
    (tmp_path / "record.json").write_text("{")
    assert state.load(tmp_path) is None
    assert state.load(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("life", "renewed_after"), [(600, 480), (3607, 2885.6), (86_400, 69_120), (7 * 86_400, 86_400), (0, 0)]
)
def test_a_token_is_replaced_while_a_fifth_of_its_life_is_left_and_daily(life: float, renewed_after: float) -> None:
    assert volumes.renewal_of(1000.0 + life, now=1000.0) == pytest.approx(1000.0 + renewed_after)


def test_a_new_agent_forgets_the_back_off_of_pods_that_went_down_with_the_node(tmp_path: Path) -> None:
    ended = Ended(exit_code=143, reason="Error", started_at=1.0, finished_at=2.0)
    container = ContainerRecord(runs=3, ended=ended, backoff=Backoff(seconds=160.0, raised_at=2.0))
    record = PodRecord(namespace="n", name="p", uid="u", admitted_at=1.0, containers={"c": container})
    state.save(record, tmp_path / "u")
    found = take_over(tmp_path)["u"].containers["c"]
    assert lifecycle.restart_at(found, ended) == ended.finished_at
    assert found.restarts == 2
