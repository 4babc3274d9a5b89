"""What pods are told by their environment: complete and well-formed, or refused by the variable's name."""

from collections.abc import Callable, Mapping

import pytest

from splitplane.runtime import profile_job
from splitplane.runtime.environment import SettingsError
from splitplane.runtime.gateway.settings import Settings as GatewaySettings
from splitplane.runtime.stage.settings import Settings as StageSettings

ENVIRONMENT = {
    "SPLITPLANE_NAMESPACE": "n",
    "SPLITPLANE_PIPELINE": "p",
    "SPLITPLANE_TIER": "edge",
    "SPLITPLANE_POD_NAME": "p-edge-1",
    "SPLITPLANE_POD_IP": "127.0.0.1",
    "SPLITPLANE_MODEL": "{}",
    "SPLITPLANE_RESIDENT": "0:3",
    "SPLITPLANE_FINGERPRINT": "f",
    "SPLITPLANE_ROUTE_TABLE": "p",
    "SPLITPLANE_STATE_DIR": "/state",
    "SPLITPLANE_RESULT_CONFIGMAP": "result",
    "SPLITPLANE_DEVICE_CLASS": "x86",
}
Read = Callable[[Mapping[str, str]], object]
stage, gateway, job = (
    StageSettings.from_environment,
    GatewaySettings.from_environment,
    profile_job.Settings.from_environment,
)


def test_settings_come_from_the_environment() -> None:
    settings = stage({**ENVIRONMENT, "SPLITPLANE_THREADS": "2"})
    assert (settings.resident_first, settings.resident_last, settings.threads) == (0, 3, 2)
    assert stage(ENVIRONMENT).threads == 1
    assert str(gateway(ENVIRONMENT).state_dir) == "/state"


def test_a_stage_answers_to_the_name_that_its_model_is_given() -> None:
    assert stage({**ENVIRONMENT, "SPLITPLANE_MODEL": '{"name": "tracker"}'}).model_name == "tracker"
    assert stage(ENVIRONMENT).model_name == ""


@pytest.mark.parametrize("read", [stage, gateway, job])
def test_all_that_is_missing_is_named_at_once(read: Read) -> None:
    with pytest.raises(SettingsError) as caught:
        read({"SPLITPLANE_PIPELINE": "p", "SPLITPLANE_TIER": "edge", "SPLITPLANE_NAMESPACE": ""})
    said = str(caught.value)
    assert said.startswith("set SPLITPLANE_NAMESPACE, SPLITPLANE_")
    assert "SPLITPLANE_TIER" not in said


@pytest.mark.parametrize(
    ("read", "changes", "says"),
    [
        (stage, {"SPLITPLANE_TIER": "", "SPLITPLANE_MODEL": ""}, "set SPLITPLANE_TIER, SPLITPLANE_MODEL: the stage"),
        (stage, {"SPLITPLANE_RESIDENT": "3"}, "SPLITPLANE_RESIDENT is '3'; it must be two cuts, as in 0:3"),
        (stage, {"SPLITPLANE_RESIDENT": "3:3"}, "must be two cuts"),
        (stage, {"SPLITPLANE_RESIDENT": "-1:3"}, "must be two cuts"),
        (stage, {"SPLITPLANE_THREADS": "0"}, "must be a number of threads, 1 or more"),
        (job, {"SPLITPLANE_THREADS": "many"}, "SPLITPLANE_THREADS is 'many'"),
    ],
)
def test_a_wrong_environment_is_refused_by_the_variables_name(read: Read, changes: dict[str, str], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        read({**ENVIRONMENT, **changes})
