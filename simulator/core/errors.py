"""Every exception Windtunnel raises on purpose.

    WindtunnelError
    └── UserError             something the user gave is wrong; the CLI prints it and exits with code 2
        ├── TraceError        a trace file or a trace table
        ├── ScenarioError     a scenario file or an override
        ├── ModelError        a model or its config.json
        ├── HardwareError     a GPU, node or link; or a model that does not fit one
        ├── PolicyError       a policy's name, class or parameters
        └── CalibrationError  a calibration file, or a calibration that is physically impossible

Anything else that escapes is a bug of ours and keeps its traceback.
"""

from __future__ import annotations


class WindtunnelError(Exception):
    """Base of all errors raised on purpose."""


class UserError(WindtunnelError):
    """Bad input. ``str()`` is the whole text: where it is, what is wrong with which value, what to do.

    where: file, line or row, and path of the offending value, e.g. ``quickstart.yaml:12: engine.max_num_seq``.
    remedy: one sentence that says how to put it right. Both end in a full stop, given or not.
    """

    def __init__(self, message: str, *, where: str | None = None, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        located = _ended(f"{self.where}: {self.message}" if self.where else self.message)
        return f"{located}\n  {_ended(self.remedy)}" if self.remedy else located

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions with keyword arguments do not pickle by themselves, and sweeps cross processes.
        return (_rebuild, (type(self), self.message, self.where, self.remedy))


class TraceError(UserError):
    """A trace file or table is malformed."""


class ScenarioError(UserError):
    """A scenario file, field or override is wrong."""


class ModelError(UserError):
    """A model is unknown, unsupported or inconsistent."""


class HardwareError(UserError):
    """A GPU, node or link is unknown, or too small for what is asked of it."""


class PolicyError(UserError):
    """A policy is unknown, or its parameters are wrong."""


class CalibrationError(UserError):
    """A calibration is malformed or physically impossible."""


def _ended(text: str) -> str:
    return text if text.endswith((".", "?", "!", ":", "\n")) else f"{text}."


def _rebuild(kind: type[UserError], message: str, where: str | None, remedy: str | None) -> UserError:
    return kind(message, where=where, remedy=remedy)
