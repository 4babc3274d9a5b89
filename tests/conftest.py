"""How tests share the machine when ``make test`` runs several at a time."""

from pathlib import Path

import hypothesis
import pytest

# How fast a machine is, and what else it does, is no property of the code.
hypothesis.settings.register_profile("splitplane", deadline=None)
hypothesis.settings.load_profile("splitplane")

TESTS = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests that share a cluster, or a module's fixtures, in one process, and begin with the longest groups."""
    groups = {item: _group(item) for item in items}
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    longest = ["operator", "cluster"]
    items.sort(key=lambda item: longest.index(groups[item]) if groups[item] in longest else len(longest))


def _group(item: pytest.Item) -> str:
    parts = item.path.relative_to(TESTS).parts
    if "operator" in parts:
        return "operator"
    if "cluster" in getattr(item, "fixturenames", ()) and "integration" in parts:
        return "cluster"
    return "/".join(parts)
