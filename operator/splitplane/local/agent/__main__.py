"""``python -m splitplane.local.agent --config FILE``: how the cluster's supervisor starts a node."""

import argparse
import asyncio
import logging
import sys
from pathlib import Path

from splitplane.local.agent import agent, config
from splitplane.local.agent.errors import AgentError


def main() -> int:
    """Run one node until it is told to stop."""
    parser = argparse.ArgumentParser(prog="splitplane.local.agent", description="Run one node of the embedded cluster.")
    parser.add_argument("--config", type=Path, required=True, help="JSON file that describes the node")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(agent.run(config.load(arguments.config)))
    except (AgentError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
