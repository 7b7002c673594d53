"""The errors that users of this project are meant to catch, drawn as one tree.

    TnnError
    ├── UsageError            a command line or an option that cannot be used
    ├── InputError            an image or an array that cannot be classified
    ├── ArtifactError         a checkpoint or bundle that is missing, damaged, altered or newer
    │   ├── EngineError       a model that TensorRT refuses, or an engine of it that cannot be kept
    │   ├── SelfCheckError    a bundle that does not reproduce its own golden samples here
    │   └── SignatureError    a bundle that is not signed by the owner of the key that was given
    ├── OutputExistsError     an output folder that is already there, or cannot be made
    ├── ProviderUnavailable   a device that was asked for and does not work
    └── ClassifierClosed      a call on a classifier after ``close()``

Every message says what was got, what was expected and what to do.
"""

from __future__ import annotations

__all__ = [
    "ArtifactError",
    "ClassifierClosed",
    "EngineError",
    "InputError",
    "OutputExistsError",
    "ProviderUnavailable",
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
    """An output folder that is already there and is not to be overwritten, or that cannot be made."""


class ProviderUnavailable(TnnError):
    """The requested device or backend does not work on this machine."""


class ClassifierClosed(TnnError):
    """A call on a classifier after ``close()``."""
