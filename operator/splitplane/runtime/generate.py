"""Generates the message classes of the wire from ``*.proto``; for developers (needs ``grpcio-tools``).

Two lines of protoc's output are changed. The messages go to a descriptor pool of their own, because every Open
Inference Protocol client (``tritonclient``, KServe's) registers the same names in the default pool and a process that
holds one of them could not import ours. And the required protobuf release loses its patch level: generated code
is compatible within a minor release.

No service stubs are generated: they pin the gRPC release of the generator, and servers and clients here name methods
and their serialisers themselves (``oip_grpc``).
"""

import argparse
import re
import sys
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).parent
PROTOS = ("oip.proto", "link_probe.proto")


def _private_pool(source: str) -> str:
    changed, count = re.subn(r"_descriptor_pool\.Default\(\)", "_descriptor_pool.DescriptorPool()", source)
    changed, versions = re.subn(r"(Domain\.PUBLIC,\n\s+\d+,\n\s+\d+,\n\s+)\d+,", r"\g<1>0,", changed)
    if (count, versions) != (1, 1):
        raise RuntimeError("protoc's output has a new form: adapt splitplane.runtime.generate to it")
    return changed


def generated() -> dict[str, str]:
    """File name to content of everything that is generated."""
    from grpc_tools import protoc

    root = PACKAGE.parent.parent
    files: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for proto in PROTOS:
            path = (PACKAGE / proto).relative_to(root)
            arguments = ["protoc", f"-I{root}", f"--python_out={folder}", f"--pyi_out={folder}", str(path)]
            if protoc.main(arguments) != 0:
                raise RuntimeError(f"protoc refuses {path}")
            for file in sorted((Path(folder) / path.parent).glob(f"{path.stem}_pb2*")):
                source = file.read_text()
                files[file.name] = _private_pool(source) if file.suffix == ".py" else source
    return files


def main() -> int:
    """Write the files, or with ``--check`` only say which differ. Exit code 1 when some do."""
    parser = argparse.ArgumentParser(prog="python -m splitplane.runtime.generate", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a file is out of date")
    check = parser.parse_args().check
    stale = [
        (PACKAGE / name, source)
        for name, source in generated().items()
        if not (PACKAGE / name).exists() or (PACKAGE / name).read_text() != source
    ]
    for path, source in stale:
        if not check:
            path.write_text(source)
        sys.stdout.write(f"{path.name}: {'out of date' if check else 'written'}\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
