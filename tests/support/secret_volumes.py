"""Secrets as pods have them in a volume."""

import socket
import ssl
from collections.abc import Mapping
from pathlib import Path


def renew(folder: Path, files: Mapping[str, bytes]) -> None:
    """Replace the files as a kubelet does: all at once, by a link."""
    folder.mkdir(exist_ok=True)
    version = folder / f"..{len(list(folder.iterdir()))}"
    version.mkdir()
    for name, content in files.items():
        (version / name).write_bytes(content)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(Path("..data") / name)
    fresh = folder / "..data_tmp"
    fresh.symlink_to(version.name)
    fresh.replace(folder / "..data")


def shown_to(address: str, name: str, folder: Path) -> bytes:
    """The certificate (DER) that a gRPC server shows to who has what lies in the folder. Raises ``ssl.SSLError``."""
    context = ssl.create_default_context(cafile=folder / "ca.crt")
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    context.set_alpn_protocols(["h2"])
    host, port = address.split(":")
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=name) as wrapped,
    ):
        return wrapped.getpeercert(binary_form=True) or b""
