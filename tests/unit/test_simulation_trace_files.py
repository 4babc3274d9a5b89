"""Traces in public formats: what is in them is replayed, and what is damaged is refused with its file and line."""

import json
import time
from pathlib import Path

import pytest

from splitplane.simulation.trace_files import read_arrivals, read_bandwidths

MINUTES = ",".join(map(str, range(1, 1441)))
FUNCTIONS = f"HashOwner,HashApp,HashFunction,Trigger,{MINUTES}"


def of_function(name: str, count: str) -> str:
    return ",".join(["a", "b", name, "http", *[count] * 1440])


def counted(path: Path) -> list[float]:
    """Requests by bin."""
    return (read_arrivals(path).values * 30.0).round(6).tolist()


def test_public_formats_are_read(tmp_path: Path):
    llm = tmp_path / "llm.csv"
    rows = ["2023-11-16 18:17:03.9799600,4808,10", "2023-11-16 18:17:04.0,3180,8", "2023-11-16 18:17:34.5,110,27"]
    llm.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n")
    assert counted(llm) == [2.0, 1.0]
    functions = tmp_path / "functions.csv"
    functions.write_text("\n".join([FUNCTIONS, of_function("c", "6"), of_function("d", "6")]))
    assert len(read_arrivals(functions)) == 2880
    assert read_arrivals(functions).values[:2].tolist() == [0.2, 0.2]
    mooncake = tmp_path / "mooncake.jsonl"
    mooncake.write_text("\n".join(json.dumps({"timestamp": at, "input_length": 1}) for at in (0, 1000, 31_000)))
    assert counted(mooncake) == [2.0, 1.0]
    link = tmp_path / "link.txt"
    link.write_text("0 8\n10 16\n65 4\n")
    assert read_bandwidths(link).values.tolist() == [1.5e6, 1.5e6, 0.5e6]
    with pytest.raises(ValueError, match="Mooncake"):
        read_arrivals(link)


@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
def test_times_without_a_zone_are_in_utc_beside_those_with_one_wherever_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zone: str
):
    """As some weeks have them: the fraction is left out on whole seconds, the zone here and there."""
    path = tmp_path / "week.csv"
    moments = ["2024-05-12 00:00:00.001163+00:00", "2024-05-12 00:00:40", "2024-05-12 00:01:10.9799600Z"]
    path.write_text("\n".join(["TIMESTAMP,ContextTokens", *(f"{moment},1" for moment in moments)]))
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert counted(path) == [1.0, 1.0, 1.0]
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("load.csv", "TIMESTAMP,ContextTokens\n\n2024-05-12 00:00:00,1\n2024-05-12 00:00:30,1\n"),
        ("load.jsonl", '{"timestamp": 0}\n\n{"timestamp": 30000}\n'),
    ],
)
def test_a_byte_order_mark_and_empty_lines_are_passed_over(tmp_path: Path, name: str, text: str):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8-sig")
    assert counted(path) == [1.0, 1.0]


def test_one_function_is_taken_by_as_much_of_its_hash_as_tells_it_apart(tmp_path: Path):
    path = tmp_path / "functions.csv"
    rows = [("4f1a", "6"), ("4f2b", "12"), ("4f2b", "12"), ("90c", "60")]
    path.write_text("\n".join([FUNCTIONS, *(of_function(*row) for row in rows)]))
    assert read_arrivals(path, function="4f1").values.mean() == pytest.approx(0.1)
    assert read_arrivals(path, function="4f2").values.mean() == pytest.approx(0.4)  # of both its rows
    for prefix, says in (("4f", "2 functions"), ("ff", "no function")):
        with pytest.raises(ValueError, match=says):
            read_arrivals(path, function=prefix)
    llm = tmp_path / "llm.csv"
    llm.write_text("TIMESTAMP\n2024-05-12 00:00:00\n")
    with pytest.raises(ValueError, match="does not tell functions apart"):
        read_arrivals(llm, function="4f1")


def test_invocations_of_functions_count_when_they_began(tmp_path: Path):
    path = tmp_path / "two-weeks.csv"
    rows = ["a,4f1,95.5,0.5", "a,4f1,101.25,42", "a,4f2,59.9,0.9", "b,90c,119.0,0.25", "c,90c,120.0,0"]
    path.write_text("\n".join(["app,func,end_timestamp,duration", *rows]))
    assert counted(path) == [2.0, 2.0, 1.0]
    assert (read_arrivals(path, function="4f1").values * 30.0).round(6).tolist() == [1.0, 1.0]
    for prefix, says in (
        ("4f", "2 functions whose funcs begin"),
        ("90c", "2 functions"),
        ("ff", "no function whose func"),
    ):
        with pytest.raises(ValueError, match=says):
            read_arrivals(path, function=prefix)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("load.csv", "ContextTokens,TIMESTAMP\n1,2024-05-12 00:00:00\n1\n", ":3 has cells for 1 columns, not 2"),
        ("load.csv", "TIMESTAMP\nyesterday\n", ":2 has no TIMESTAMP such as .*yesterday"),
        ("load.csv", f"{FUNCTIONS}\n{of_function('c', '-1')}\n", ":2 has a count of requests that is not between 0"),
        ("load.csv", f"{FUNCTIONS}\n{of_function('c', 'nan')}\n", ":2 has a count of requests that is not between 0"),
        ("load.csv", f"{FUNCTIONS}\n{of_function('c', 'x')}\n", ":2 has a count of requests that is no number"),
        ("load.csv", f"{FUNCTIONS}\na,b,c,http,1\n", ":2 has cells for 5 columns, not 1444"),
        ("load.csv", f"{FUNCTIONS}\n", "nothing to replay"),
        ("load.csv", "app,func,end_timestamp,duration\na,b,1.0,0.1\na,b,soon,0.1\n", ":3 has an end_timestamp or"),
        ("load.csv", "app,func,end_timestamp,duration\na,b,1.0,-0.1\n", ":2 has an end_timestamp or a duration"),
        ("load.csv", "app,func,end_timestamp,duration\n", "nothing to replay"),
        ("load.csv", f"TIMESTAMP\n{'x' * 200_000}\n", "no CSV"),
        ("load.jsonl", '{"timestamp": 1}\nnot json\n', ":2 is no JSON"),
        ("load.jsonl", '{"timestamp": null}\n', ":1 has no timestamp"),
        ("load.jsonl", '{"timestamp": "12"}\n', ":1 has no timestamp"),
        ("load.jsonl", '{"timestamp": NaN}\n', ":1 has no timestamp"),
        ("load.jsonl", f'{{"timestamp": 1{"0" * 400}}}\n', ":1 has no timestamp"),
        ("load.jsonl", "[1, 2]\n", ":1 has no timestamp"),
        ("load.jsonl", "[" * 100_000, ":1 is no JSON"),
        ("link.txt", "0 10\n30\n", ":2 has not two columns"),
        ("link.txt", "0 10\n30 fast\n", ":2 has not two columns"),
        ("link.txt", "0 10\n\n30 nan\n", ":3 holds what is no time"),
        ("link.txt", "0 10\n10 20\n5 30\n", ":3 is of a time before that of the line above"),
    ],
)
def test_what_is_damaged_is_refused_with_its_file_and_line(tmp_path: Path, name: str, text: str, says: str):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{name}.*{says}"):
        (read_bandwidths if name == "link.txt" else read_arrivals)(path)


@pytest.mark.parametrize("name", ["load.csv", "load.jsonl", "link.txt"])
def test_what_is_no_text_is_refused_by_name(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_bytes(b"TIMESTAMP\n\xff\xfe\x00")
    with pytest.raises(ValueError, match=f"{name} is no text"):
        (read_bandwidths if name == "link.txt" else read_arrivals)(path)
