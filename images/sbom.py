"""Prints what is in the image that this runs in, as a CycloneDX bill of materials: Debian packages and Python ones.

Python packages are looked for in all of the file system and not by this interpreter's path: an image may have another
Python's beside its virtual environment. Run it last, when what does not stay has been removed. The bill has neither
serial number nor time, so that the same content gives the same image layer.
"""

import json
import os
import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any
from urllib.parse import quote

_NOT_OF_THE_IMAGE = {"/build", "/dev", "/proc", "/run", "/sys", "/tmp"}  # noqa: S108 - not written to


def python_packages(root: str = "/") -> Iterator[dict[str, Any]]:
    for folder, folders, _ in os.walk(root):
        for name in folders:
            if name.endswith((".dist-info", ".egg-info")):
                yield _python_package(Distribution.at(Path(folder) / name))
        folders[:] = [name for name in folders if os.path.join(folder, name) not in _NOT_OF_THE_IMAGE]  # noqa: PTH118


def _python_package(package: Distribution) -> dict[str, Any]:
    name = package.metadata["Name"].lower().replace("_", "-")
    return component(name, package.version, f"pkg:pypi/{name}@{quote(package.version)}")


def interpreter() -> dict[str, Any]:
    version = platform.python_version()
    return component("python", version, f"pkg:generic/python@{version}")


def debian_packages() -> Iterator[dict[str, Any]]:
    lines = Path("/etc/os-release").read_text().splitlines()
    release = dict(line.replace('"', "").split("=", 1) for line in lines if "=" in line)
    system = release["ID"]
    distro = f"{system}-{release.get('VERSION_ID', '')}"
    query = ["dpkg-query", "--show", "--showformat=${Package} ${Version} ${Architecture}\n"]
    for line in subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines():
        name, version, architecture = line.split()
        yield component(name, version, f"pkg:deb/{system}/{name}@{quote(version)}?arch={architecture}&distro={distro}")


def component(name: str, version: str, purl: str) -> dict[str, Any]:
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def main() -> None:
    components = {item["purl"]: item for item in (*debian_packages(), *python_packages(), interpreter())}
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "components": [components[purl] for purl in sorted(components)],
    }
    print(json.dumps(bill, indent=1))  # noqa: T201 - its output


if __name__ == "__main__":
    main()
