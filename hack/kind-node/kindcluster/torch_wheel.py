"""A wheel of torch without CUDA, for test images on machines where only the CUDA build (5 GB in all) is served.

Made from the locked CUDA build: the libraries that only a GPU needs are replaced by stubs, which answer every call with
"no device". What runs on the CPU is untouched. Images for use take the real CPU wheel, by ``TORCH_INDEX_URL``.
"""

import base64
import hashlib
import os
import platform
import re
import shutil
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from kindcluster.engine import run
from splitplane.local.errors import LocalError
from splitplane.local.files import locked
from splitplane.local.paths import cache_home

LOCAL_VERSION = "cpu.stubs"
"""Of the wheel: `torch.__version__`, `pip list` and an image's bill of materials tell it from a release."""

_LEFT_OUT = re.compile(
    r"torch/lib/(libtorch_cuda|libtorch_nvshmem|libcaffe2_nvrtc).*|torch/(include|share)/.*|torch/bin/protoc.*"
    r"|(.*/)?__pycache__/.*"
)
_EDITS = {
    "torch/version.py": [(rb"\+cu\d+", f"+{LOCAL_VERSION}".encode()), (rb"(?m)^cuda: .*$", b"cuda = None")],
    "torch/backends/cuda/__init__.py": [(rb"return torch\._C\._has_cuda\b", b"return False")],
}
"""What the CPU build says of itself, but for the version."""

_OF_THE_SYSTEM = re.compile(r"lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s|z|quadmath)\.so.*|ld-linux.*")
_OF_NVIDIA = ("cu", "nccl", "nvrtc", "nvshmem", "nvtx")
_CATCH_ALL = "libtorch_cuda.so"
"""The stub that gets the symbols without a version: they do not tell which library they are expected of."""

_SHARED = """
extern char _ZTVN10__cxxabiv117__class_type_infoE[];
#define CLASS (_ZTVN10__cxxabiv117__class_type_infoE + 16)
struct type { void *vtable; const char *name; };
static struct type nobodys_type = {CLASS, "7nobodys"};
static void *nothing(void) { return 0; }
static struct { long offset; void *type; void *methods[64]; } nobodys = {0, &nobodys_type, {[0 ... 63] = nothing}};
"""
"""What a constructor leaves: an object of a class of its own. Importing torch makes a few, and asks for their class."""

_NO_DEVICE = 100
"""``cudaErrorNoDevice``, and no success for any of the other libraries."""


def ensure(version: str, python: str) -> Path:
    """The folder, as a package index, with torch ``version`` for CPython ``python`` ("3.11").

    Raises:
        LocalError: the CUDA build cannot be had, or there is no compiler for the stubs.
    """
    index = cache_home() / "kind" / "torch" / f"{version}+{LOCAL_VERSION}-cp{python}"
    with locked(index.parent / ".lock"):
        if not index.exists():
            for program in ("gcc", "nm", "readelf"):
                if shutil.which(program) is None:
                    raise LocalError(f"{program} is needed to make a CPU wheel of torch (apt-get install gcc).")
            with tempfile.TemporaryDirectory(dir=index.parent, prefix=".torch-") as scratch:
                unpacked, fresh = Path(scratch) / "unpacked", Path(scratch) / "index"
                _fetch(version, python, unpacked)
                (fresh / "torch").mkdir(parents=True)
                stubs = _stubs(unpacked / "torch", Path(scratch) / "stubs")
                _pack(unpacked, stubs, fresh / "torch", version, f"cp{python.replace('.', '')}")
                fresh.rename(index)
    return index


def _fetch(version: str, python: str, target: Path) -> None:
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        raise LocalError("uv is needed to make a CPU wheel of torch: run this by make.")
    run(uv, "pip", "install", "--quiet", "--no-deps", f"--target={target}", f"--python-version={python}",
        f"torch=={version}")  # fmt: skip


def _stubs(torch: Path, target: Path) -> list[Path]:
    """Libraries in ``target`` that define what torch's own ones expect of those left out and of NVIDIA's."""
    target.mkdir()
    libraries = sorted((torch / "lib").glob("*.so*"))
    left_out = [path for path in libraries if _LEFT_OUT.fullmatch(f"torch/lib/{path.name}")]
    kept = [path for path in [*libraries, *torch.glob("_C.*.so")] if path not in left_out]
    present = {path.name for path in kept}
    missing = {name for path in kept for name in _needed(path)} - present
    missing = {name for name in missing if not _OF_THE_SYSTEM.fullmatch(name)} | {_CATCH_ALL}
    wanted: dict[str, dict[str, set[str]]] = {name: defaultdict(set) for name in missing}
    gone = {name for path in left_out for name, _ in _symbols(path, "--defined-only")}
    for path in kept:
        library_of = _version_libraries(path)
        for name, version in _symbols(path, "--undefined-only"):
            if version and (library := library_of.get(version)) in missing:
                wanted[library][version].add(name)
            elif not version and (name in gone or name.startswith(_OF_NVIDIA)):
                wanted[_CATCH_ALL][""].add(name)
    return [_compile(target / library, versions) for library, versions in sorted(wanted.items())]


def _compile(path: Path, versions: dict[str, set[str]]) -> Path:
    names = sorted(set().union(*versions.values()))
    source = (_SHARED if path.name == _CATCH_ALL else "") + "".join(map(_stub, names))
    script = "".join(
        f"{version} {{ global: {' '.join(f'{name};' for name in sorted(symbols))} }};\n"
        for version, symbols in versions.items()
        if version
    )
    with tempfile.NamedTemporaryFile("w", suffix=".map") as map_file:
        map_file.write(script)
        map_file.flush()
        run("gcc", "-shared", "-fPIC", "-w", "-fno-builtin", "-x", "c", "-", f"-Wl,-soname,{path.name}",
            *([f"-Wl,--version-script,{map_file.name}"] if script else []), "-o", str(path), stdin=source)  # fmt: skip
    return path


def _stub(name: str) -> str:
    """C that defines a symbol. Types are told apart by their name when torch is loaded, so they need one."""
    if name.startswith("_ZTI"):
        return f'struct type {name} = {{CLASS, "{name.removeprefix("_ZTI")}"}};\n'
    if name.startswith("_ZTV"):
        return f"void *{name}[64];\n"
    if re.search(r"C[12]E", name):
        return f"void {name}(void **object) {{ *object = nobodys.methods; }}\n"
    if name.startswith("_Z"):  # some give references to registries that others enter themselves into
        return f"void *{name}(void) {{ static long room[512]; return room; }}\n"
    return f"long {name}(void) {{ return {_NO_DEVICE}; }}\n"


def _needed(library: Path) -> Iterable[str]:
    return re.findall(r"\(NEEDED\).*\[(.+)\]", run("readelf", "--dynamic", "--wide", str(library)))


def _symbols(library: Path, which: str) -> Iterator[tuple[str, str]]:
    """(name, version) of a library's dynamic symbols; weak ones, which may stay undefined, are left out."""
    for line in run("nm", "--dynamic", "--with-symbol-versions", which, str(library)).splitlines():
        *_, kind, symbol = line.split()
        if which == "--defined-only" or kind == "U":
            name, _, version = symbol.partition("@")
            yield name, version.lstrip("@")


def _version_libraries(library: Path) -> dict[str, str]:
    """Which needed library a symbol version is of."""
    found: dict[str, str] = {}
    current = ""
    for line in run("readelf", "--version-info", "--wide", str(library)).splitlines():
        if match := re.search(r"\bFile: (\S+)", line):
            current = match[1]
        elif current and (match := re.search(r"\bName: (\S+)\s+Flags:", line)):
            found[match[1]] = current
    return found


def _pack(unpacked: Path, stubs: list[Path], target: Path, version: str, tag: str) -> None:
    local = f"{version}+{LOCAL_VERSION}"
    old, new = f"torch-{version}.dist-info", f"torch-{local}.dist-info"
    record: list[str] = []
    with zipfile.ZipFile(
        target / f"torch-{local}-{tag}-{tag}-linux_{platform.machine()}.whl", "w", zipfile.ZIP_STORED
    ) as wheel:

        def add(name: str, content: bytes) -> None:
            wheel.writestr(name, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(content)}")

        for path in sorted(unpacked.rglob("*")):
            name = str(path.relative_to(unpacked))
            if path.is_dir() or _LEFT_OUT.fullmatch(name) or not name.startswith(("torch/", "torchgen/", "functorch/")):
                continue
            content = path.read_bytes()
            for pattern, replacement in _EDITS.get(name, ()):
                content = re.sub(pattern, replacement, content)
            add(name, content)
        for stub in stubs:
            add(f"torch/lib/{stub.name}", stub.read_bytes())
        metadata = (unpacked / old / "METADATA").read_text()
        add(f"{new}/METADATA", re.sub(r"(?m)^Version: .*$", f"Version: {local}", metadata, count=1).encode())
        add(f"{new}/WHEEL", (unpacked / old / "WHEEL").read_bytes())
        wheel.writestr(f"{new}/RECORD", "\n".join([*record, f"{new}/RECORD,,"]) + "\n")
