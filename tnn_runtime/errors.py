"""The errors that users of this project are meant to catch, drawn as one tree.

    TnnError
    ├── UsageError            a command line or an option that cannot be used
    ├── InputError            an image or an array that cannot be classified
    ├── ArtifactError         a checkpoint or bundle that is missing, damaged, altered or newer
    │   ├── EngineError       a model that TensorRT refuses, or an engine of it that cannot be kept
    │   ├── SelfCheckError    a bundle that does not reproduce its own golden samples here
    │   └── SignatureError    a bundle that is not signed by the owner of the key that was given
    ├── OutputExistsError     an output file or folder that is already there, or cannot be made
    ├── ProviderUnavailable   a device that was asked for and does not work
    └── NotAnswered           a good request that gets no answer: a service says "unavailable" (503)
        ├── QueueFull         too many requests are waiting; nothing of this one was done
        ├── DeadlineExceeded  its time was over before its batch began
        ├── RunError          the model failed on its batch, for example for want of memory
        ├── DeviceLost        the device failed, and this process cannot use it any more
        └── ClassifierClosed  a call on a classifier that drains or is closed

Every message says what was got, what was expected and what to do.
"""

from __future__ import annotations

__all__ = [
    "ArtifactError",
    "ClassifierClosed",
    "DeadlineExceeded",
    "DeviceLost",
    "EngineError",
    "InputError",
    "NotAnswered",
    "OutputExistsError",
    "ProviderUnavailable",
    "QueueFull",
    "RunError",
    "SelfCheckError",
    "SignatureError",
    "TnnError",
    "UsageError",
]


class TnnError(Exception):
    """Base of every error that this project raises for a user to act on."""


class UsageError(TnnError):
    """A command line or an option that cannot be used."""


class InputError(TnnError):
    """An image or an array that cannot be classified."""


class ArtifactError(TnnError):
    """A checkpoint or bundle folder that is missing, damaged, altered or of a newer schema."""


class EngineError(ArtifactError):
    """A model that TensorRT refuses, or an engine of it that cannot be kept."""


class SelfCheckError(ArtifactError):
    """The golden samples of a bundle come out differently on the device that would serve them."""


class SignatureError(ArtifactError):
    """A bundle that the owner of the key that was given has not signed, or not as it is now."""


class OutputExistsError(TnnError):
    """An output file or folder that is already there and is not to be overwritten, or that cannot be made."""


class ProviderUnavailable(TnnError):
    """The requested device or backend does not work on this machine."""


class NotAnswered(TnnError):
    """A good request that gets no answer, now or from this process."""


class QueueFull(NotAnswered):
    """Too many requests are waiting; nothing of this one was done."""


class DeadlineExceeded(NotAnswered):
    """The time of a request was over before its batch began."""


class RunError(NotAnswered):
    """The model failed on a batch, for example for want of memory; the next one may succeed."""


class DeviceLost(NotAnswered):
    """The device failed, and this process cannot use it any more."""


class ClassifierClosed(NotAnswered):
    """A call on a classifier that drains or is closed."""
