"""What can be wrong with a user's model. Each message says what to do; retrying without a change never helps.

::

    ModelError
    ├── FactoryError          the factory is missing, or does not build a module that takes the declared inputs
    ├── WeightsError          the weights file is missing, altered, or lacks tensors
    └── NotSplittableError    the module cannot be turned into one graph with a free batch dimension
"""


class ModelError(Exception):
    """Base of everything that a change to ``spec.model`` or to the runtime image must cure."""


class FactoryError(ModelError):
    """Make the factory importable, or correct ``spec.model.factory`` or ``spec.model.inputs``."""


class WeightsError(ModelError):
    """Correct ``spec.model.weights``, or restore the file."""


class NotSplittableError(ModelError):
    """Change the module so that ``torch.export`` can trace it; the message holds the reason."""
