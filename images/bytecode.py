"""Compiles just what the named programs import: the bytecode of all libraries would take half as much room again.

What of it belongs to folders of an earlier stage of the image (the standard library, where the base ships without its
bytecode) is put below a folder of its own, which is then copied over the root of the last stage.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


def compile_imports(programs: list[str], into: Path) -> None:
    """Have a fresh interpreter import the modules and leave the bytecode of all that it reads below ``into``."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(into)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    subprocess.run([sys.executable, "-c", f"import {', '.join(programs)}"], env=environment, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("programs", nargs="+", metavar="MODULE")
    parser.add_argument("--own", action="append", type=Path, help="folders that the last stage copies from this one")
    parser.add_argument("--beside", type=Path, required=True, help="where the bytecode of all other folders goes")
    given = parser.parse_args()
    given.beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        compile_imports(given.programs, Path(scratch))
        for made in Path(scratch).rglob("*.pyc"):
            place = "/" / made.relative_to(scratch).parent / "__pycache__" / made.name
            if place.exists():
                continue
            own = any(place.is_relative_to(folder) for folder in given.own or ())
            target = place if own else given.beside / place.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(made, target)


if __name__ == "__main__":
    main()
