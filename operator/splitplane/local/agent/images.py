"""Which local environment stands for an image: there are no containers here, only the project's own programs."""

from collections.abc import Mapping
from pathlib import Path

from splitplane.local.agent.errors import StartError


def repository(image: str) -> str:
    """An image reference without tag and digest: ``reg:5000/a/b:1@sha256:..`` gives ``reg:5000/a/b``."""
    name = image.split("@", 1)[0]
    head, slash, tail = name.rpartition("/")
    return head + slash + tail.split(":", 1)[0]


def resolve(image: str, images: Mapping[str, Path]) -> Path:
    """The folder of executables that stands for `image`: the entry whose repository ends its own.

    Raises :class:`StartError` for an image that this node does not have.
    """
    name = repository(image)
    for known, folder in images.items():
        if name == known or name.endswith("/" + known):
            if not folder.is_dir():
                raise StartError("ErrImageNeverPull", f"image {image!r} stands for {folder}, which is not a folder")
            return folder
    have = ", ".join(sorted(images)) or "none"
    raise StartError(
        "ErrImageNeverPull",
        f"image {image!r} is not present: the embedded cluster runs processes and pulls no images; it has {have}",
    )
