"""Prints what is in the image that this runs in, as a CycloneDX bill of materials: Debian packages and Python ones.

Without a serial number and a time, so that the same content gives the same image layer.
"""

import json
import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote


def python_packages() -> Iterator[dict[str, Any]]:
    for package in distributions():
        name = package.metadata["Name"].lower().replace("_", "-")
        yield component(name, package.version, f"pkg:pypi/{name}@{quote(package.version)}")
    version = platform.python_version()
    yield component("python", version, f"pkg:generic/python@{version}")


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
    components = {item["purl"]: item for item in (*debian_packages(), *python_packages())}
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "components": [components[purl] for purl in sorted(components)],
    }
    print(json.dumps(bill, indent=1))  # noqa: T201 - its output


if __name__ == "__main__":
    main()
