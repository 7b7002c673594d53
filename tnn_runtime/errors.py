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
        ├── ResourcesExhausted  this machine has no memory, threads or open files left for it
        ├── RunError          the model failed on its batch, for example for want of memory
        ├── DeviceLost        the device failed, and this process cannot use it any more
        └── ClassifierClosed  a call on a classifier that drains or is closed

Every message says what was got, what was expected and what to do. Programs go by the attributes of `TnnError`.
"""

from __future__ import annotations

from typing import Any, ClassVar

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
    "ResourcesExhausted",
    "RunError",
    "SelfCheckError",
    "SignatureError",
    "TnnError",
    "UsageError",
]


class TnnError(Exception):
    """Base of every error that this project raises for a user to act on.

    Attributes:
        code: What kind of error it is, for programs; it does not change between versions.
        retryable: Whether the same request may succeed later, or in another process.
        http_status: With which status a web service of your own can answer it; `tnn-runtime serve` has those of Triton.
        index: Which image of the request it is about, counted from 0; ``None`` if it is about none, or about all.
    """

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False
    http_status: ClassVar[int] = 500
    index: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what a service tells of the error, as values that JSON can hold."""
        return {"code": self.code, "detail": str(self), "retryable": self.retryable, "index": self.index}


class UsageError(TnnError):
    """A command line or an option that cannot be used."""

    code = "usage"
    http_status = 400


class InputError(TnnError):
    """An image or an array that cannot be classified."""

    code = "invalid_image"
    http_status = 422


class ArtifactError(TnnError):
    """A checkpoint or bundle folder that is missing, damaged, altered or of a newer schema."""

    code = "bad_artifact"


class EngineError(ArtifactError):
    """A model that TensorRT refuses, or an engine of it that cannot be kept."""

    code = "bad_engine"


class SelfCheckError(ArtifactError):
    """The golden samples of a bundle come out differently on the device that would serve them."""

    code = "self_check_failed"


class SignatureError(ArtifactError):
    """A bundle that the owner of the key that was given has not signed, or not as it is now."""

    code = "bad_signature"


class OutputExistsError(TnnError):
    """An output file or folder that is already there and is not to be overwritten, or that cannot be made."""

    code = "output_exists"


class ProviderUnavailable(TnnError):
    """The requested device or backend does not work on this machine."""

    code = "device_unavailable"


class NotAnswered(TnnError):
    """A good request that gets no answer, now or from this process."""

    code = "not_answered"
    retryable = True
    http_status = 503


class QueueFull(NotAnswered):
    """Too many requests are waiting; nothing of this one was done."""

    code = "queue_full"


class DeadlineExceeded(NotAnswered):
    """The time of a request was over before its batch began."""

    code = "deadline_exceeded"
    http_status = 504


class ResourcesExhausted(NotAnswered):
    """This machine has no memory, threads or open files left for a request; it may have later."""

    code = "resources_exhausted"


class RunError(NotAnswered):
    """The model failed on a batch, for example for want of memory; the next one may succeed."""

    code = "run_failed"


class DeviceLost(NotAnswered):
    """The device failed, and this process cannot use it any more."""

    code = "device_lost"


class ClassifierClosed(NotAnswered):
    """A call on a classifier that drains or is closed."""

    code = "closed"
