"""Makes the sources in /app importable in the environment that this runs in, under the package's own name and version.

What an editable install does, without the build backend that it would need. A .pth file rather than PYTHONPATH, which
pipelines may set for their own code.
"""

import sysconfig
import tomllib
from pathlib import Path


def main() -> None:
    project = tomllib.loads(Path("/build/pyproject.toml").read_text())["project"]
    site = Path(sysconfig.get_path("purelib"))
    (site / "splitplane.pth").write_text("/app\n")
    metadata = site / f"splitplane-{project['version']}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: splitplane\nVersion: {project['version']}\n")


if __name__ == "__main__":
    main()
