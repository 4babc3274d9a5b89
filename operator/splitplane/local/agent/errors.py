"""The agent's errors, by what the caller should do next.

::

    AgentError
      ConfigError         tell the user and stop
      ApiError            an answer of the API server other than success; `retriable` says whether to try again
      GuardianError       stop at once: containers could outlive the agent
      StartError          a container cannot start now: its waiting reason, kept until the cause is gone
"""


class AgentError(Exception):
    """Base of what the agent raises on purpose."""


class ConfigError(AgentError):
    """The configuration cannot be used; the message says what to correct."""


class ApiError(AgentError):
    """The API server refused or failed a request."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{message} (HTTP {status})")
        self.status = status

    @property
    def retriable(self) -> bool:
        """Whether the same request may succeed later: overload, restarts, lost connections."""
        return self.status in {0, 429} or self.status >= 500


class GuardianError(AgentError):
    """The process that ends a dead agent's containers is gone itself."""


class StartError(AgentError):
    """A container cannot be started for a reason that the pod's status shows.

    ``reason`` is the waiting reason as kubelet spells it, such as ``CreateContainerConfigError``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
