"""``splitplane plan``, ``explain`` and ``frontier`` ask the planner from files alone."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from splitplane.api.profiles import from_device
from splitplane.cli import app
from splitplane.planner import dump_call, load_call, plan
from tests.support.command_output import unwrapped
from tests.support.planner_cases import POLICY, SNAPSHOT, crepe, edge_only, links, serving

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = str(ROOT / "examples" / "pitch-tracker.yaml")
FAST = "edge:cloud=50Mbit,2ms"
MINUTES = ",".join(map(str, range(1, 1441)))


@pytest.fixture
def profile(tmp_path: Path) -> str:
    model = crepe()
    tensor = {"name": "frames", "datatype": "FP32", "shape": [-1, 1024]}
    spec = {
        "fingerprint": model.fingerprint,
        "model": {"factory": "pitch_tracker:build", "weightsSha256": "0" * 64},
        "inputs": [tensor],
        "outputs": [tensor],
        "cuts": [
            {
                "name": cut.name,
                "tensors": [
                    {"name": each.name, "datatype": "FP32", "sampleShape": list(each.shape)} for each in cut.tensors
                ],
                "wireBytes": [{"codec": codec, "bytes": size} for codec, size in cut.wire_bytes.items()],
                "schemaHash": cut.schema_hash,
            }
            for cut in model.cuts
        ],
        "segments": [{"name": f"block-{index}", "weightBytes": size} for index, size in enumerate(model.weight_bytes)],
        "activationBytes": model.activation_bytes,
        "devices": [from_device(device).dump() for device in model.devices.values()],
    }
    path = tmp_path / "profile.yaml"
    path.write_text(yaml.safe_dump({"kind": "ModelProfile", "metadata": {"name": "crepe"}, "spec": spec}))
    return str(path)


def run(*arguments: str, stdin: str | None = None) -> str:
    result = CliRunner().invoke(app, arguments, input=stdin)
    assert result.exit_code == 0, result.output
    return result.output


def line(output: str, name: str) -> str:
    return next(each for each in output.splitlines() if each.startswith(name))


def test_a_fast_link_a_slow_link_and_a_missing_tier_give_three_plans(profile: str):
    constant = ("plan", "-f", PIPELINE, "--profile", profile, "--rate", "3.5", "--scv", "0")
    assert "edge:0-1|cloud:1-6 int8" in line(run(*constant, "--bandwidth", FAST), "chosen")
    assert "edge:0-1|cloud:1-6 int8" in line(run(*constant, "--bandwidth", "50Mbit,2ms"), "chosen")
    assert "edge:0-2|cloud:2-6 int8" in line(run(*constant, "--bandwidth", "edge:cloud=3Mbit,2ms"), "chosen")
    assert "edge:0-6" in line(run(*constant, "--bandwidth", FAST, "--without", "cloud"), "chosen")


def test_other_kinds_of_plan_are_shown_with_the_limits_that_they_break(profile: str):
    output = run("plan", "-f", PIPELINE, "--profile", profile, "--bandwidth", FAST)
    assert "edge-only" in output
    assert "privacy" in line(output, "cloud-only")
    assert "|cloud:" in line(output, "other-split")


def test_pay_per_use_takes_what_is_left_beyond_the_replicas_that_pay(profile: str):
    """A replica in the cloud costs 0.30 per hour; the same seconds by the use cost a fifth more."""
    asked = ("plan", "-f", PIPELINE, "--profile", profile, "--bandwidth", FAST, "--pay-per-use", "cloud=0.0001/s,30ms")
    quiet, busy = (run(*asked, "--rate", rate, "--price", "edge=3") for rate in ("1", "20"))
    assert "2+0 & pay-per-use" in line(quiet, "chosen")
    assert "& pay-per-use" in line(busy, "chosen")
    assert "+0 & pay-per-use" not in line(busy, "chosen")
    told = [line(output, "cloud: replicas pay").split("; paid by the use: ") for output in (quiet, busy)]
    assert told[0][0].split("from ")[1].startswith("1: ")
    assert told[0][1] == "100.0% of the requests"
    assert 5.0 < float(told[1][1].split("%")[0]) < 80.0


def test_requests_that_would_leave_early_need_no_more_of_the_model(profile: str):
    asked = ("plan", "-f", PIPELINE, "--profile", profile, "--bandwidth", FAST, "--rate", "20", "--scv", "0")
    rates = []
    for early in ((), ("--exit", "1=0.3", "--exit", "3=0.3")):
        chosen = line(run(*asked, *early), "chosen")
        assert "edge:0-1|cloud:1-6" in chosen
        rates.append(float(re.findall(r"([0-9.]+)/s", chosen)[0]))
    assert rates[1] > rates[0]


def test_a_recorded_call_replays(profile: str):
    call = run(
        "plan", "-f", PIPELINE, "--profile", profile, "--bandwidth", FAST, "--price", "cloud=0.60", "--record"
    )  # fmt: skip
    snapshot, policy, now = load_call(call)
    assert str(plan(snapshot, policy, now).target.plan).startswith("edge:")


def test_a_recorded_decision_is_explained_with_its_gate_its_gain_and_the_limits_that_bind(tmp_path: Path):
    snapshot = replace(SNAPSHOT, links=links(4), active=serving(edge_only(3)))
    log = tmp_path / "operator.log"
    recorded = [dump_call(snapshot, replace(POLICY, max_cost_per_hour=cost), 0.0) for cost in (0.1, 1.0)]
    log.write_text("".join(f"2026-01-01 INFO Hold of shop/tracker: {call}\n" for call in recorded) + "more\n")
    output = run("explain", "--call", str(log))
    assert "Hold (HeldByGain)" in output
    assert "Held by gate: gain" in output
    assert "privacy (raw input stays on trusted tiers)" in output
    assert "edge:0-6" in line(output, "serves")
    assert "edge:0-2|cloud:2-6" in line(output, "without gates")
    assert "cloud-only" in output
    assert run("explain", "--call", "-", stdin=log.read_text()) == output


def test_a_pipelines_last_recorded_decision_is_found_among_others_by_its_name(tmp_path: Path):
    log = tmp_path / "operator.log"
    moment = 1_790_000_000.0
    calls = {
        "shop/tracker": dump_call(replace(SNAPSHOT, links=links(50)), POLICY, moment),
        "shop/other": dump_call(replace(SNAPSHOT, links=links(0.2)), POLICY, moment + 60.0),
    }
    lines = [f"2026-09-21 INFO Start of {name}: {call}\n" for name, call in calls.items()]
    log.write_text("".join(lines) + f"2026-09-21 INFO Hold of shop/tracker: {calls['shop/tracker'][:90]}\n")
    last = run("explain", "--call", str(log))
    assert last.startswith("shop/other at 2026-09-21 14:14:20 UTC; the log has 2 pipelines: --pipeline chooses\n")
    assert "0.2 Mbit/s" in last
    tracker = run("explain", "--call", str(log), "--pipeline", "shop/tracker")
    assert tracker.startswith("shop/tracker at 2026-09-21 14:13:20 UTC\n")
    assert "50 Mbit/s" in tracker
    alone = run("explain", "--call", "-", stdin=lines[0])
    assert alone.splitlines()[0] == "shop/tracker at 2026-09-21 14:13:20 UTC"
    assert alone.splitlines()[1:] == tracker.splitlines()[1:]
    missing = CliRunner().invoke(app, ["explain", "--call", str(log), "--pipeline", "shop/none"])
    assert missing.exit_code == 2
    assert unwrapped("of shop/none, but of shop/other, shop/tracker") in unwrapped(missing.output)


def test_stated_conditions_are_explained_too(profile: str):
    output = run("explain", "-f", PIPELINE, "--profile", profile, "--bandwidth", FAST, "--rate", "3.5")
    assert "Start (InitialPlan)" in output
    assert "Limits that bind" in output


def test_the_routes_that_a_gateway_chooses_from_are_listed_with_the_bandwidths_at_which_they_are_best(profile: str):
    output = run("explain", "-f", PIPELINE, "--profile", profile, "--bandwidth", FAST, "--rate", "3.5")
    assert "BEST ON edge TO cloud" in output
    decision = plan(replace(SNAPSHOT, links=links(50)), POLICY, 0.0)
    assert len(decision.routes) > 2
    assert "below" in output
    assert "from" in output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--call FILE"),
        (("--pipeline", "shop/tracker"), "choose from a log"),
        (("--about", "pool"), "choose from a log"),
        (("--call", "/nowhere"), "No such file"),
        (("--call", "-"), "no recorded decision"),
    ],
)
def test_what_cannot_be_explained_is_refused(arguments: tuple[str, ...], says: str):
    result = CliRunner().invoke(app, ["explain", *arguments], input='{"now":1}\n')
    assert result.exit_code == 2
    assert unwrapped(says) in unwrapped(result.output)


def test_the_frontier_is_listed_by_cost_and_no_plan_on_it_beats_another(profile: str):
    conditions = ("-f", PIPELINE, "--profile", profile, "--bandwidth", FAST, "--rate", "3.5")
    plans = json.loads(run("frontier", *conditions, "--json"))
    costs = [each["predicted"]["cost_per_hour"] for each in plans]
    assert costs == sorted(costs)
    assert len(plans) > 20
    assert plans[0]["costPerThousandRequests"] == pytest.approx(costs[0] / 12.6)
    table = run("frontier", *conditions, "--most", "5").splitlines()
    assert table[0] == f"{len(plans)} plans that no other beats, by cost"
    assert len(table) == 7


@pytest.mark.parametrize("command", ["plan", "explain"])
def test_overload_is_told_in_words_with_what_is_too_busy_and_the_rate_that_is_borne(profile: str, command: str):
    output = run(command, "-f", PIPELINE, "--profile", profile, "--bandwidth", FAST, "--rate", "400")
    assert "unbounded" in line(output, "chosen")
    assert not re.search(r"\b(inf|nan)\b", output)
    assert (
        "Overload of chosen: link edge to cloud would be busy for 839% of the time at 400 requests/s, more than 70%:"
        " it holds up to 33.38/s" in output
    )
    assert "Overload of edge-only: stage edge:0-6 would be busy for 2018% of the time" in output
    below = run(command, "-f", PIPELINE, "--profile", profile, "--bandwidth", FAST, "--rate", "33.3")
    assert "Overload of edge-only" in below
    assert "Overload of chosen" not in below


def test_ways_out_that_bear_less_are_told_at_what_they_bear_and_their_costs_are_by_requests_that_they_serve(
    profile: str,
):
    asked = ("plan", "-f", PIPELINE, "--profile", profile, "--bandwidth", "20Mbit")
    busy = run(*asked, "--rate", "40")
    ways = [row for row in busy.splitlines() if row.startswith("way out")]
    assert ways
    assert "A way out that bears less than 40/s is sent no more than it bears" in busy
    for row in ways:
        cost, thousand = (float(cell) for cell in re.findall(r" ms +([0-9.]+) +([0-9.]+) ", row)[0])
        borne = float(re.findall(r"([0-9.]+)/s", row)[0])
        assert borne < 40.0
        assert thousand == pytest.approx(cost / (3.6 * borne), rel=0.01)
    cost, thousand = (float(cell) for cell in line(busy, "edge-only").split()[6:8])
    assert thousand == pytest.approx(cost / (3.6 * 40.0), rel=0.01)  # all others are told at the rate that is stated
    assert "is sent no more" not in run(*asked, "--rate", "2")


@pytest.mark.parametrize("command", ["plan", "explain", "frontier"])
def test_a_tier_that_no_plan_uses_is_named_with_what_it_lacks(profile: str, tmp_path: Path, command: str):
    asked = (command, "-f", PIPELINE, "--profile", profile, "--rate", "3.5")
    told = "Not weighed: tier cloud: the link to it is unmeasured (--bandwidth states links, --price prices)"
    assert told in run(*asked).splitlines()
    assert "Not weighed" not in run(*asked, "--bandwidth", FAST)
    nowhere = run(*asked, "--without", "edge", "--without", "cloud")
    assert nowhere.count("tier cloud: no ready node matches its selector") == 1
    pipeline = yaml.safe_load(Path(PIPELINE).read_text())
    edge, cloud = pipeline["spec"]["tiers"]
    del cloud["pricePerHour"]
    pipeline["spec"]["tiers"] = [edge, {**cloud, "name": "fog", "pricePerHour": "0.10"}, cloud]
    three = tmp_path / "three.yaml"
    three.write_text(yaml.safe_dump(pipeline))
    output = run(command, "-f", str(three), *asked[3:], "--bandwidth", "edge:fog=50Mbit", "--max-partitions", "3")
    assert "Not weighed: tier cloud: its price is unknown; the link from tier fog to tier cloud is unmeasured" in output
    dear = ("--price", "cloud=0.30")
    output = run(command, "-f", str(three), *asked[3:], "--bandwidth", "edge:fog=50Mbit", *dear)
    assert "Not weighed: tier cloud: the link to it is unmeasured" in output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--rate", "40"), "No plan bears 40 requests/s: the highest rate is 33.38/s"),
        (("--rate", "40"), "beyond, link edge to cloud of edge:0-1|cloud:1-6 int8 is the first that is too busy"),
        (("--rate", "3.5", "--without", "edge", "--without", "cloud"), "tier edge: no ready node matches its selector"),
    ],
)
def test_where_no_plan_is_on_the_frontier_it_tells_why(
    profile: str, tmp_path: Path, arguments: tuple[str, ...], says: str
):
    asked = ["frontier", "-f", PIPELINE, "--profile", profile, "--bandwidth", FAST, *arguments]
    output = run(*asked)
    assert says in output
    assert "PLAN" not in output
    picture = tmp_path / "frontier.png"
    assert run(*asked, "--plot", str(picture)) == output
    assert not picture.exists()
    result = CliRunner().invoke(app, [*asked, "--json"])
    assert json.loads(result.stdout) == []
    assert says in result.stderr


def test_where_no_node_is_ready_no_limit_is_blamed(profile: str):
    away = ("--rate", "3.5", "--without", "edge", "--without", "cloud")
    assert "leave no plan" not in run("plan", "-f", PIPELINE, "--profile", profile, "--bandwidth", FAST, *away)


def test_numbers_that_json_has_none_for_are_null(profile: str):
    asked = ("frontier", "-f", PIPELINE, "--profile", profile, "--bandwidth", FAST, "--rate", "0", "--json")
    plans = json.loads(run(*asked), parse_constant=pytest.fail)
    assert {each["costPerThousandRequests"] for each in plans} == {None}


def test_the_frontier_is_printed_as_json_or_drawn(profile: str):
    asked = ("frontier", "-f", PIPELINE, "--profile", profile, "--bandwidth", FAST, "--json", "--plot", "x.png")
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 2
    assert "give one of them" in result.stderr


def test_the_frontier_is_drawn(profile: str, tmp_path: Path):
    picture = tmp_path / "frontier.png"
    run("frontier", "-f", PIPELINE, "--profile", profile, "--bandwidth", FAST, "--plot", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--bandwidth", "edge=50Mbit", "edge:cloud=50Mbit,2ms"),
        ("--bandwidth", "edge:moon=50Mbit", "edge:cloud=50Mbit,2ms"),
        ("--bandwidth", "edge:cloud=", "edge:cloud=50Mbit,2ms"),
        ("--bandwidth", "edge:cloud=fast", "3Mbit"),
        ("--price", "moon=1", "moon"),
        ("--price", "cloud=cheap", "cloud=0.30"),
        ("--without", "moon", "moon"),
        ("--pay-per-use", "moon=1", "moon"),
        ("--exit", "6=0.1", "3=0.4"),
        ("--exit", "2=1", "3=0.4"),
        ("--pay-per-use", "cloud=cheap", "cloud=0.00002/s,40ms"),
        ("--pay-per-use", "cloud=-0.1/s", "from 0"),
        ("--price", "cloud=nan", "finite"),
        ("--price", "cloud=1e308", "at most 1e+09"),
        ("--rate", "nan", "equal to 1000000000"),
        ("--rate", "1e300", "less than or equal to 1000000000"),
        ("--scv", "nan", "equal to 25"),
        ("--scv", "26", "equal to 25"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "explain", "frontier"])
def test_a_condition_that_cannot_be_read_is_refused_with_an_example(
    profile: str, command: str, option: str, value: str, says: str
):
    result = CliRunner().invoke(app, [command, "-f", PIPELINE, "--profile", profile, option, value])
    assert result.exit_code == 2
    assert unwrapped(says) in unwrapped(result.output)


@pytest.mark.parametrize(
    ("option", "texts", "says"),
    [
        ("--price", ("edge=0.05", "edge=9"), "--price is given 2 times for edge"),
        ("--bandwidth", ("20Mbit", "5Mbit"), "--bandwidth is given 2 times for all links"),
        ("--bandwidth", ("edge:cloud=20Mbit", "edge:cloud=5Mbit"), "--bandwidth is given 2 times for edge:cloud"),
        ("--pay-per-use", ("cloud=0.1", "cloud=0.2/s"), "--pay-per-use is given 2 times for cloud"),
    ],
)
def test_what_says_two_things_of_the_same_is_refused(profile: str, option: str, texts: tuple[str, str], says: str):
    given = [part for text in texts for part in (option, text)]
    result = CliRunner().invoke(app, ["plan", "-f", PIPELINE, "--profile", profile, *given])
    assert result.exit_code == 2
    assert unwrapped(says) in unwrapped(result.output)


def test_what_is_stated_of_one_link_holds_before_what_is_of_all_in_either_order(profile: str):
    both = ("--bandwidth", "50Mbit,2ms", "--bandwidth", "edge:cloud=3Mbit,2ms")
    asked = ("plan", "-f", PIPELINE, "--profile", profile, "--rate", "3.5", "--scv", "0")
    assert (
        run(*asked, *both)
        == run(*asked, *both[2:], *both[:2])
        == run(*asked, *both[2:], "--bandwidth", "cloud:edge=50Mbit,2ms")
    )


def test_what_the_operator_does_otherwise_with_a_pipeline_is_told_beside_the_plan(profile: str, tmp_path: Path):
    pipeline = yaml.safe_load(Path(PIPELINE).read_text())
    pipeline["spec"]["sites"] = {"topologyKey": "topology.kubernetes.io/zone", "sharedTier": "cloud"}
    pipeline["spec"]["suspend"] = True
    special = tmp_path / "special.yaml"
    special.write_text(yaml.safe_dump(pipeline))
    for command in (("plan", "--record"), ("frontier", "--json"), ("explain",)):
        asked = [*command, "--profile", profile, "--bandwidth", FAST, "-f"]
        result = CliRunner().invoke(app, [*asked, str(special)])
        assert result.exit_code == 0
        assert result.stdout == CliRunner().invoke(app, [*asked, PIPELINE]).stdout
        first, second, third = result.stderr.splitlines()
        assert "one of them alone" in first
        assert "tier cloud for all sites together" in second
        assert "suspended" in third


def test_a_file_of_another_kind_is_refused(profile: str):
    result = CliRunner().invoke(app, ["plan", "-f", profile, "--profile", profile])
    assert result.exit_code == 2
    assert "InferencePipeline" in result.output


def test_hours_of_load_are_replayed_under_the_planner_and_its_rivals(profile: str, tmp_path: Path):
    conditions = ("-f", PIPELINE, "--profile", profile, "--bandwidth", FAST, "--rate", "3.5", "--hours", "0.2")
    picture = tmp_path / "day.png"
    output = run("simulate", *conditions, "--load", "bursty", "--link", "outages", "--plot", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert line(output, "splitplane").split()[-1] == "never"
    for name in (
        "edge-only",
        "cloud-only",
        "cloud-only, compressed",
        "neurosurgeon",
        "dads",
        "15 %/30 s gate",
        "best static in hindsight",
    ):
        assert "%" in line(output, name)
    assert "Latency is preferred" in output
    again = run("simulate", *conditions, "--load", "bursty", "--link", "outages", "--plot", str(picture))
    assert again == output


def test_a_replay_asks_as_often_as_the_pipeline_says_and_tells_where_bins_are_too_long_for_that(
    profile: str, tmp_path: Path
):
    pipeline = yaml.safe_load(Path(PIPELINE).read_text())
    link = tmp_path / "link.txt"
    link.write_text("".join(f"{30 * place} {50 if place % 4 < 2 else 2}\n" for place in range(60)))
    switches = {}
    for seconds in (15, 60, 900):
        pipeline["spec"]["replanning"] |= {"intervalSeconds": seconds, "scaleDownWindowSeconds": 900}
        path = tmp_path / "pipeline.yaml"
        path.write_text(yaml.safe_dump(pipeline))
        conditions = ("-f", str(path), "--profile", profile, "--bandwidth", FAST, "--rate", "3.5", "--hours", "0.5")
        output = run("simulate", *conditions, "--load", "steady", "--link", str(link))
        switches[seconds] = int(line(output, "splitplane").split()[-3])
        told = "All are asked every 30 s, as bins have 30 s, not every 15 s (intervalSeconds)"
        assert (told in output) is (seconds == 15)
    assert switches[15] > 2 * max(1, switches[900])
    assert switches[60] > switches[900]


def test_regret_is_of_cost_where_that_is_preferred_and_requests_may_be_replayed_one_by_one(
    profile: str, tmp_path: Path
):
    pipeline = yaml.safe_load(Path(PIPELINE).read_text())
    pipeline["spec"]["objectives"]["prefer"] = "Cost"
    cheap = tmp_path / "cheap.yaml"
    cheap.write_text(yaml.safe_dump(pipeline))
    conditions = ("-f", str(cheap), "--profile", profile, "--bandwidth", FAST, "--rate", "3.5", "--hours", "0.2")
    output = run("simulate", *conditions, "--events")
    assert "splitplane's regret is at most " in output
    within, p95, _unit, refused = line(output, "splitplane").split()[-4:]
    assert float(within.rstrip("%")) > 95.0
    assert float(p95) > 50.0
    assert refused == "0.00%"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--bandwidth", FAST, "--load", "monthly"), "steady, diurnal, bursty"),
        (("--bandwidth", FAST, "--link", "/nowhere.txt"), "nowhere.txt"),
        (("--bandwidth", FAST, "--hours", "inf"), "hours"),
        (("--bandwidth", FAST, "--function", "4f"), "a file of Azure's functions"),
        (("--bandwidth", FAST, "--repeat"), "--repeat is of files"),
        ((), "state how fast links are"),
    ],
)
def test_a_replay_that_cannot_be_made_is_refused(profile: str, arguments: tuple[str, ...], says: str):
    result = CliRunner().invoke(app, ["simulate", "-f", PIPELINE, "--profile", profile, *arguments])
    assert result.exit_code == 2
    assert unwrapped(says) in unwrapped(result.output)


@pytest.mark.parametrize(
    ("option", "name", "text", "says"),
    [
        ("--load", "load.jsonl", "", "nothing to replay"),
        ("--load", "load.jsonl", '{"input_length": 1}', "load.jsonl:1 has no timestamp"),
        ("--load", "load.jsonl", '{"timestamp": 0}\n{"timestamp": 9e18}', "days"),
        ("--load", "load.csv", "TIMESTAMP,ContextTokens\n", "nothing to replay"),
        ("--link", "link.txt", "0 8\n2e12 8\n", "days"),
        ("--link", "link.txt", "0 -8\n", "link.txt:1 holds what is no time"),
        ("--link", "link.txt", "1 2 3\n", "link.txt:1 has not two columns"),
        ("--load", "load.csv", f"HashFunction,{MINUTES}\nf1,{'0,' * 1439}0\n", "no requests in the hours"),
        ("--load", "load.csv", f"HashFunction,{MINUTES}\nf1,{'5e10,' * 1439}0\nf2,{'5e10,' * 1439}0\n", "1e+09"),
    ],
)
def test_a_trace_that_cannot_be_replayed_is_refused(
    profile: str, tmp_path: Path, option: str, name: str, text: str, says: str
):
    path = tmp_path / name
    path.write_text(text)
    arguments = ["-f", PIPELINE, "--profile", profile, "--bandwidth", FAST, "--rate", "3.5", option, str(path)]
    result = CliRunner().invoke(app, ["simulate", *arguments])
    assert result.exit_code == 2
    assert unwrapped(says) in unwrapped(result.output)


def test_a_file_of_load_is_replayed_as_it_is_or_scaled_to_a_rate_that_is_stated(profile: str, tmp_path: Path):
    path = tmp_path / "functions.csv"
    rows = [",".join([name, *[str(count)] * 1440]) for name, count in (("4f1", 60), ("4f2", 540))]
    path.write_text("\n".join([f"HashFunction,{MINUTES}", *rows]))
    conditions = ("-f", PIPELINE, "--profile", profile, "--bandwidth", FAST, "--hours", "0.1", "--link", "steady")
    file = ("simulate", *conditions, "--load", str(path))
    told = [
        run(*file, *more).splitlines()
        for more in ((), ("--function", "4f1"), ("--rate", "3.5", "--function", "4f1"), ("--rate", "3.5"))
    ]
    says = [lines[0].split(", ", 1)[1] for lines in told]
    assert says[0] == "10 requests/s in the mean (as the file has it: --rate would scale it)"
    assert says[1] == "1 requests/s in the mean (as the file has it: --rate would scale it)"
    assert says[2] == says[3] == "3.5 requests/s in the mean (scaled to --rate)"
    steady = run("simulate", *conditions, "--load", "steady", "--rate", "3.5").splitlines()
    assert told[2][1:] == told[3][1:] == steady[1:]
    assert told[0][1:] != told[1][1:] != steady[1:]


def test_a_file_that_ends_before_the_hours_do_is_named_and_repeated_on_request(profile: str, tmp_path: Path):
    link, load = tmp_path / "link.txt", tmp_path / "load.jsonl"
    link.write_text("".join(f"{30 * place} {20 if place % 2 else 2}\n" for place in range(10)))
    load.write_text("".join(f'{{"timestamp": {1000 * place}}}\n' for place in range(180)))
    conditions = ("simulate", "-f", PIPELINE, "--profile", profile, "--bandwidth", FAST, "--hours", "0.25")
    half = run(*conditions, "--link", str(link)).splitlines()
    assert half[0] == "0.1 hours"
    assert half[1] == f"{link} ends after 300 s: --repeat begins it anew"
    quarter = run(*conditions, "--link", str(link), "--load", str(load)).splitlines()
    assert quarter[1] == f"{load} ends after 180 s: --repeat begins it anew"
    longer = tmp_path / "longer.txt"
    longer.write_text("".join(f"{30 * place} {20 if place % 2 else 2}\n" for place in range(30)))
    whole = [
        run(*conditions, "--load", "bursty", "--link", str(file), *more)
        for file, more in ((link, ["--repeat"]), (longer, []))
    ]
    assert whole[0] == whole[1]
    assert whole[0].startswith("0.2 hours")
    assert "--repeat" not in whole[0]
    both = run(*conditions, "--link", str(link), "--load", str(load), "--repeat")
    assert "1 requests/s in the mean" in both.splitlines()[0]
    assert "--repeat" not in both


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--price", "edge=0", "--price", "cloud=0"), "Nothing costs anything"),
        (("--rate", "50", "--price", "edge=1"), "Latency is preferred"),
    ],
)
def test_a_replay_tells_no_regret_that_means_nothing(profile: str, arguments: tuple[str, ...], says: str):
    conditions = ("-f", PIPELINE, "--profile", profile, "--bandwidth", FAST, "--hours", "0.1")
    assert says in run("simulate", *conditions, "--load", "steady", "--link", "steady", *arguments)


def test_a_damaged_profile_is_refused_with_what_is_missing(profile: str, tmp_path: Path):
    whole = yaml.safe_load(Path(profile).read_text())
    whole["spec"]["devices"][0]["prefixNanoseconds"].pop()
    short = tmp_path / "short.yaml"
    short.write_text(yaml.safe_dump(whole))
    result = CliRunner().invoke(app, ["plan", "-f", PIPELINE, "--profile", str(short), "--bandwidth", FAST])
    assert result.exit_code == 2
    assert unwrapped("for 7 cuts") in unwrapped(result.output)


def test_three_partitions_are_weighed_where_they_are_asked_for(profile: str, tmp_path: Path):
    """A weak edge, something between, a fast cloud that is dear and far."""
    pipeline = yaml.safe_load(Path(PIPELINE).read_text())
    edge, cloud = pipeline["spec"]["tiers"]
    pipeline["spec"]["tiers"] = [edge, {**cloud, "name": "fog", "deviceClass": edge["deviceClass"]}, cloud]
    three = tmp_path / "three.yaml"
    three.write_text(yaml.safe_dump(pipeline))
    links = ("--bandwidth", "100Mbit,1ms", "--bandwidth", "edge:cloud=4Mbit,20ms", "--rate", "6")
    conditions = ("frontier", "-f", str(three), "--profile", profile, *links, "--json")
    longest = [
        max(len(each["plan"]["stages"]) for each in json.loads(run(*conditions, *more)))
        for more in ((), ("--max-partitions", "3"))
    ]
    assert longest == [2, 3]


def test_plans_that_come_back_to_a_tier_are_weighed_where_that_is_allowed(profile: str, tmp_path: Path):
    """The cloud is fast at the heavy second segment alone, and dear."""
    made = yaml.safe_load(Path(profile).read_text())
    times = {"edge": [0, 10, 900, 910, 920, 930, 1030], "cloud": [0, 10, 30, 130, 230, 330, 430]}
    for device in made["spec"]["devices"]:
        device["prefixNanoseconds"] = [1_000_000 * each for each in times[device["deviceClass"]]]
    path = tmp_path / "heavy.yaml"
    path.write_text(yaml.safe_dump(made))
    asked = ("-f", PIPELINE, "--profile", str(path), "--bandwidth", "edge:cloud=200Mbit,2ms", "--rate", "5")
    assert "there-and-back" not in run("explain", *asked)
    back = r"chosen +edge:0-\d\|cloud:\d-\d\|edge:\d-6 "
    assert not re.search(back, run("plan", *asked, "--max-partitions", "3"))
    assert re.search(back, run("plan", *asked, "--allow-return"))
    far = run("explain", *asked[:4], "--bandwidth", "200Mbit,190ms", "--rate", "1", "--allow-return")
    assert not re.search(back, far)
    assert line(far, "there-and-back").count("edge:") == 2
    for more, told in (
        (("--max-partitions", "2"), "a plan that comes back has 3 partitions"),
        (("--exit", "3=0.4"), "not weighed for models with early exits"),
    ):
        result = CliRunner().invoke(app, ["plan", *asked, "--allow-return", *more])
        assert result.exit_code == 2
        assert told in " ".join(result.output.replace("│", " ").split())


@pytest.fixture
def tiny(profile: str, tmp_path: Path) -> str:
    """The same model at a fifth of the time."""
    made = yaml.safe_load(Path(profile).read_text())
    for device in made["spec"]["devices"]:
        device["prefixNanoseconds"] = [nanoseconds // 5 for nanoseconds in device["prefixNanoseconds"]]
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(made))
    return str(path)


def test_a_variant_that_answers_in_the_models_stead_is_weighed_with_what_it_loses(profile: str, tiny: str):
    asked = ("-f", PIPELINE, "--profile", profile, "--bandwidth", FAST, "--rate", "12")
    alone = line(run("explain", *asked), "chosen")
    output = run("explain", *asked, "--variant", f"tiny={tiny}:0.02")
    assert line(output, "chosen").split()[1].startswith("tiny/")
    assert line(output, "reference").split()[1:] == alone.split()[1:]
    plans = json.loads(run("frontier", *asked, "--variant", f"tiny={tiny}:0.02", "--json"))
    assert {plan["plan"]["variant"] for plan in plans} == {"", "tiny"}
    whole = [plan for plan in plans if plan["plan"]["variant"] and not plan["plan"]["codecs"]]
    assert {plan["predicted"]["accuracy_loss"] for plan in whole} == {0.02}
    day = ("--hours", "0.2", "--load", "steady", "--link", "steady", "--events")
    told = [
        line(run("simulate", *asked, *day, *more), "splitplane").split()
        for more in ((), ("--variant", f"tiny={tiny}:0.02"))
    ]
    assert float(told[1][1].rstrip("%")) == 100.0
    assert float(told[1][2]) < 0.5 * float(told[0][2])  # p95 of bins


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tiny.yaml", "is not of the form tiny=tiny.yaml:0.02"),
        ("tiny={tiny}", "is not of the form"),
        ("tiny={tiny}:much", "is not of the form"),
        ("tiny={tiny}:1.2", "a share of accuracy from 0 to 1"),
        ("tiny={tiny}:-0.1", "not a finite number from 0"),
        ("tiny={other}:0.1", "the same inputs as the pipeline's model"),
        ("tiny={missing}:0.1", "No such file"),
    ],
)
def test_a_variant_that_is_none_is_refused(profile: str, tiny: str, tmp_path: Path, text: str, message: str):
    made = yaml.safe_load(Path(tiny).read_text())
    made["spec"]["cuts"][0]["tensors"][0]["sampleShape"] = [512]
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(made))
    given = text.format(tiny=tiny, other=other, missing=tmp_path / "missing.yaml")
    result = CliRunner().invoke(app, ["plan", "-f", PIPELINE, "--profile", profile, "--variant", given])
    assert result.exit_code == 2
    assert unwrapped(message) in unwrapped(result.output)
