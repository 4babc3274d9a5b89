"""Where a model comes from (factory, weights, inputs)."""

import importlib
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from splitplane.domain.addresses import without_secrets
from splitplane.domain.codecs import DATATYPE_BYTES
from splitplane.domain.profiles import TensorSpec
from splitplane.model.errors import FactoryError


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model as ``spec.model`` names it. ``inputs`` leave the batch dimension out.

    ``weights_sha256`` is the expected digest of the weights file; ``None`` trusts whatever lies there. Without an
    address of weights a model can be looked at, not run.
    """

    name: str
    factory: str
    weights_uri: str | None
    weights_sha256: str | None
    inputs: tuple[TensorSpec, ...]

    @property
    def told_uri(self) -> str:
        """The address of the weights as it may be told."""
        return without_secrets(self.weights_uri or "")

    @classmethod
    def from_json(cls, text: str) -> "ModelSource":
        """Read the environment variable ``SPLITPLANE_MODEL``. Raises :class:`FactoryError` on a malformed one."""
        try:
            data: Mapping[str, Any] = json.loads(text)
            weights: Mapping[str, Any] = data["weights"]
            return cls(
                name=str(data["name"]),
                factory=str(data["factory"]),
                weights_uri=str(weights["uri"]),
                weights_sha256=str(weights["sha256"]).lower() if weights.get("sha256") else None,
                inputs=tuple(_input_spec(entry) for entry in data["inputs"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FactoryError(f"SPLITPLANE_MODEL is malformed: {type(error).__name__}: {error}") from error


def _input_spec(entry: Mapping[str, Any]) -> TensorSpec:
    name, datatype, shape = str(entry["name"]), str(entry["datatype"]), tuple(int(size) for size in entry["shape"])
    if datatype not in DATATYPE_BYTES:
        raise ValueError(f"input {name}: datatype {datatype} is not one of {', '.join(DATATYPE_BYTES)}")
    if not shape or shape[0] != -1 or any(size < 1 for size in shape[1:]):
        raise ValueError(f"input {name}: shape {list(shape)} must be -1 (the batch), then sizes of at least 1")
    free = {int(each["dimension"]): str(each["name"]) for each in entry.get("freeDimensions", ())}
    if not all(0 < dimension < len(shape) for dimension in free):
        raise ValueError(f"input {name}: a free dimension is none of its {len(shape) - 1} after the batch")
    return TensorSpec(name, datatype, shape[1:], tuple(free.get(i) for i in range(1, len(shape))) if free else ())


def find_factory(path: str) -> Callable[[], object]:
    """Import a factory. Raises :class:`FactoryError`."""
    module_name, separator, attribute = path.partition(":")
    if not separator or not module_name or not attribute:
        raise FactoryError(f"factory {path!r} is not of the form module:callable")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name not in (module_name, module_name.partition(".")[0]):
            raise FactoryError(
                f"factory {path} needs the module {error.name}, which the runtime image lacks: {error}"
            ) from error
        raise FactoryError(
            f"factory {path}: no module {module_name} on the Python path ({':'.join(sys.path)}): put it into the "
            "runtime image, or mount a volume with it and name its folder in PYTHONPATH"
        ) from error
    except Exception as error:  # importing runs the tenant's code
        raise FactoryError(f"factory {path}: importing {module_name} failed: {error}") from error
    factory: Callable[[], object] | None = getattr(module, attribute, None)
    if not callable(factory):
        package = module_name.partition(".")[0]  # and what that imports from others is no factory of its
        offered = [
            name
            for name, value in vars(module).items()
            if inspect.isfunction(value) and name[0] != "_" and (value.__module__ or "").partition(".")[0] == package
        ]
        raise FactoryError(
            f"factory {path}: {module_name} ({getattr(module, '__file__', 'built in')}) has no callable {attribute}; "
            f"it offers {', '.join(offered) or 'none'}"
        )
    return factory


def bind_inputs(source: ModelSource, module: nn.Module, values: Mapping[str, object]) -> dict[str, object]:
    """Keyword arguments of ``forward``: inputs go to parameters of their name, or, where no name fits, in order.

    To ``forward(**inputs)`` they go by name; where it has other parameters as well, a wrong name would go unnoticed.
    Raises :class:`FactoryError` when only some names fit, or the module does not take that many inputs.
    """
    signature = inspect.signature(module.forward)
    names = [spec.name for spec in source.inputs]
    fitting = [name for name in names if name in signature.parameters]
    kinds = {each.kind for each in signature.parameters.values()}
    try:
        if kinds == {inspect.Parameter.VAR_KEYWORD}:
            return dict(values)
        if len(fitting) == len(names):
            return dict(signature.bind(**values).arguments)
        if fitting:
            raise TypeError(f"of the inputs {', '.join(names)} only {', '.join(fitting)} are its parameters")
        bound = signature.bind(*(values[name] for name in names))
        if bound.args != tuple(bound.arguments.values()):
            raise TypeError("it takes its inputs as *args; give forward named parameters")
        return dict(bound.arguments)
    except TypeError as error:
        raise FactoryError(
            f"forward{signature} of factory {source.factory} does not fit spec.model.inputs: {error}. They are handed "
            "over by name: where it wants others, let the factory return a module that takes these and calls it"
        ) from error
