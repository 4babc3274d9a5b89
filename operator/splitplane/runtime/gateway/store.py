"""What the gateway knew last, on disk, so that it can start again while the API server is away."""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from splitplane.runtime.gateway.endpoints import Pod

logger = logging.getLogger(__name__)

TABLE_FILE = "route-table.json"
PODS_FILE = "pods.json"


class Store:
    """Files in ``folder``, each replaced as a whole: a crash leaves the old content or the new one.

    A disk that refuses is logged, no more: serving goes on without a copy.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save_table(self, obj: Mapping[str, Any]) -> None:
        """Keep a RouteTable object's identity and spec."""
        metadata = obj.get("metadata", {})
        kept = {key: metadata.get(key, "") for key in ("name", "namespace", "uid")}
        self._save(TABLE_FILE, {"metadata": kept, "spec": obj["spec"]})

    def load_table(self) -> dict[str, Any] | None:
        """The kept object; ``None`` when there is none or it cannot be read."""
        obj = self._load(TABLE_FILE)
        return obj if isinstance(obj, dict) else None

    def save_pods(self, pods: Iterable[Pod]) -> None:
        self._save(PODS_FILE, [asdict(pod) for pod in pods])

    def load_pods(self) -> list[Pod]:
        """The kept pods; none when they cannot be read."""
        try:
            return [Pod(**record) for record in self._load(PODS_FILE) or ()]
        except TypeError as error:
            logger.warning("ignoring %s: %s", PODS_FILE, error)
            return []

    def _save(self, name: str, content: Any) -> None:
        path = self._folder / name
        temporary = path.with_suffix(".tmp")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(content))
            temporary.replace(path)
        except OSError as error:
            logger.warning("cannot keep %s: %s", path, error)

    def _load(self, name: str) -> Any:
        path = self._folder / name
        try:
            return json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            logger.warning("ignoring %s: %s", path, error)
            return None
