"""The reference registry of the OCI distribution specification, built once from pinned Go modules."""

from pathlib import Path

from splitplane.local.binaries import Tool, built

TOOL = Tool(
    "registry", "registry", "github.com/distribution/distribution/v3", ".", ("--version",), lambda *_: False,
    minutes=1.0, modules=Path(__file__).with_name("gomodules"),
)  # fmt: skip


def registry_program() -> Path:
    """The program; raises ``LocalError`` where it cannot be built."""
    return built(TOOL)
