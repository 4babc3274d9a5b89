"""What can be wrong with a user's model. Each message says what to do; retrying without a change never helps.

::

    ModelError
    ├── FactoryError          the factory is missing, or does not build a module that takes the declared inputs
    ├── WeightsError          the weights file is missing, altered, or lacks tensors
    ├── CalibrationError      the file of calibration inputs is missing, or does not fit the model
    └── NotSplittableError    the module cannot be turned into one graph with a free batch dimension
"""


class ModelError(Exception):
    """Base of everything that a change to ``spec.model`` or to the runtime image must cure."""


class FactoryError(ModelError):
    """Make the factory importable, or correct ``spec.model.factory`` or ``spec.model.inputs``."""


class WeightsError(ModelError):
    """Correct ``spec.model.weights``, or restore the file."""


class CalibrationError(ModelError):
    """Correct the file of calibration inputs, or give more of them."""


class NotSplittableError(ModelError):
    """Serve the model whole, or change it so that ``torch.export`` can trace it; the message holds the reason.

    ``location`` is the line of the model's code that is in the way (``file:line, in function: text``), where known.
    """

    def __init__(self, reason: str, location: str | None = None) -> None:
        super().__init__(reason if location is None else f"{reason} ({location})")
        self.reason = reason
        self.location = location

    def __reduce__(self) -> tuple[type, tuple[str, str | None]]:
        return type(self), (self.reason, self.location)
