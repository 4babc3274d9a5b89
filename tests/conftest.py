"""How tests share the machine when ``make test`` runs several at a time."""

from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

# How fast a machine is, and what else it does, is no property of the code.
hypothesis.settings.register_profile("splitplane", deadline=None)
hypothesis.settings.load_profile("splitplane")

TESTS = Path(__file__).parent
LONGEST = ("integration/operator", "integration")
"""Folders whose tests begin first, so that none is left to run alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folders = {item: item.path.parent.relative_to(TESTS).as_posix() for item in items}
    items.sort(key=lambda item: LONGEST.index(folders[item]) if folders[item] in LONGEST else len(LONGEST))


class Groups(LoadScopeScheduling):  # type: ignore[misc]  # the package has no types
    """Keeps tests in one process that share a cluster, which a folder does, or a module's fixtures.

    Not by ``--dist loadgroup``: with pytest 9.2, pytest-xdist 3.8 takes no notice of its own marks (its issue 1386).
    """

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return path.rpartition("/")[0] if "/integration/" in path else path


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Groups:
    return Groups(config, log)
