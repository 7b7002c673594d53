"""How a model is trained, as one frozen dataclass that checks its own values."""

from __future__ import annotations

from dataclasses import dataclass

from tnn_train.data.augment import check_augmentations
from tnn_train.fields import Field, FieldError, at_least, check_utf8, one_of

__all__ = ["INCIDENTAL", "OPTIMIZERS", "PRECISIONS", "SCHEDULES", "TrainConfig", "speed_unit"]

OPTIMIZERS = ("adamw", "adam", "sgd")
SCHEDULES = ("one-cycle", "cosine", "step", "plateau", "constant")
PRECISIONS = ("fp32", "fp16", "bf16")
INCIDENTAL = ("device", "threads", "workers", "tensorboard", "save_steps", "embedding_cache", "exemplars")
"""The fields of `TrainConfig` that have no say in the result, or next to none."""


@dataclass(frozen=True)
class TrainConfig:
    """The recipe; the defaults give a newcomer a good model.

    Args:
        epochs: Passes over the training set.
        batch_size: Images a step, of all processes together.
        accumulate: Batches that make a step of the optimizer, whose gradient is that of one batch of all their images.
        optimizer: adamw, adam, or sgd with Nesterov momentum.
        learning_rate: Peak of the schedule.
        head_learning_rate: That of the head; None for the same.
        momentum: Of sgd; no schedule changes it.
        weight_decay: Of matrices and kernels; biases, norms and the head's scalars have none.
        schedule: one-cycle, cosine, step, plateau or constant.
        warmup_epochs: Epochs in which the rate rises linearly, fewer than all; one-cycle has a rise of its own.
        decay_epochs: For step, epochs between two falls; for plateau, epochs without a better validation loss. Both are
            counted after the warm-up.
        decay_factor: What step and plateau multiply the rate by.
        clip_norm: Largest norm of the gradient; None for any.
        label_smoothing: Probability that is spread over all classes, 0 to below 1.
        class_weights: none, or balanced: images of rare classes count for more, as in scikit-learn.
        hierarchy_loss: Weight of the cross-entropy of the parents, where classes have names such as animal/cat, beside
            the loss of the head: mistakes within a parent then cost less than others. 0 for none.
        ema_decay: Decay of an exponential moving average of the weights, which is then validated and kept; None for no
            average.
        patience: Epochs without a better validation accuracy after which training stops; None for never.
        augment: Any of crop, resized-crop, flip, randaugment, erase, mixup, cutmix, or no name at all; None for crop,
            or for nothing where the backbone is frozen.
        weights: Start of the backbone: imagenet, a file, a checkpoint folder, or None for random.
        keep_head: Start from the head of the checkpoint that weights names, too, with its form and its classes.
        freeze_backbone: Train the head only, on embeddings that are computed once and kept on disk.
        embedding_cache: Folder for these embeddings; None for one in the user's cache folder.
        precision: fp32, or fp16 or bf16 for the backbone's operations where it is trained; the head stays in float32.
        channels_last: Keep the channels of the backbone's tensors last in memory.
        compile: Translate the model with torch.compile first.
        deterministic: Allow deterministic operators only, so that a GPU repeats its results, too.
        save_steps: Save last/ every so many batches as well; None for after epochs only.
        seed: Decides initial weights, the order of the images and their augmentation.
        device: cpu, cuda, cuda:N, or auto for CUDA where it works.
        threads: CPU threads; None for torch's choice.
        workers: Processes that decode images; None for none if they are in memory, else up to 4.
        tensorboard: Write what TensorBoard reads, too.
        exemplars: Training images to keep for each feature and prototype, as small pictures that reports and
            explanations show; 0 for none, as private images need it.
    """

    epochs: int = 20
    batch_size: int = 32
    accumulate: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    head_learning_rate: float | None = None
    momentum: float = 0.9
    weight_decay: float = 0.05
    schedule: str = "one-cycle"
    warmup_epochs: float = 0.0
    decay_epochs: int = 10
    decay_factor: float = 0.1
    clip_norm: float | None = None
    label_smoothing: float = 0.0
    class_weights: str = "none"
    hierarchy_loss: float = 0.0
    ema_decay: float | None = None
    patience: int | None = None
    augment: tuple[str, ...] | None = None
    weights: str | None = None
    keep_head: bool = False
    freeze_backbone: bool = False
    embedding_cache: str | None = None
    precision: str = "fp32"
    channels_last: bool = False
    compile: bool = False
    deterministic: bool = False
    save_steps: int | None = None
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    workers: int | None = None
    tensorboard: bool = False
    exemplars: int = 4

    def __post_init__(self) -> None:
        at_least(self, 1, "epochs", "accumulate", "decay_epochs", *self._given("patience", "save_steps", "threads"))
        at_least(self, 2, "batch_size")
        at_least(self, 0, "seed", "exemplars", *self._given("workers"))
        if self.seed >= 2**32:
            raise FieldError(_field("seed"), f" is {self.seed}; expected 0 to {2**32 - 1}")
        at_least(
            self,
            0.0,
            "learning_rate",
            "weight_decay",
            "warmup_epochs",
            "hierarchy_loss",
            *self._given("head_learning_rate"),
        )
        one_of(self, "optimizer", OPTIMIZERS)
        one_of(self, "schedule", SCHEDULES)
        one_of(self, "class_weights", ("none", "balanced"))
        one_of(self, "precision", PRECISIONS)
        for name in ("momentum", "label_smoothing", *self._given("ema_decay")):
            at_least(self, 0.0, name)
            if getattr(self, name) >= 1:
                raise FieldError(_field(name), f" is {getattr(self, name)!r}; expected a number from 0 to below 1")
        for name in ("decay_factor", *self._given("clip_norm")):
            at_least(self, 0.0, name)
            if getattr(self, name) == 0:
                raise FieldError(_field(name), " is 0; expected a number above 0")
        if self.schedule == "one-cycle" and self.warmup_epochs:
            raise FieldError(
                *(_field("warmup_epochs"), " is for another ", _field("schedule")),
                ": one-cycle has a rise of its own; choose cosine",
            )
        if self.warmup_epochs >= self.epochs:
            raise FieldError(
                *(_field("warmup_epochs"), f" is {self.warmup_epochs:g} of {self.epochs} "),
                *(_field("epochs"), ", so that the rate never gets to "),
                *(_field("learning_rate"), "; choose a shorter warm-up, or more epochs"),
            )
        check_utf8(self, "weights", "embedding_cache")
        if self.augment is not None:
            check_augmentations(self.augment)
        if self.keep_head and self.weights is None:
            raise FieldError(_field("keep_head"), " needs a checkpoint to take the head of; give ", _field("weights"))
        if self.freeze_backbone and self.augmentations:
            raise FieldError(
                *(_field("augment"), f" is {' '.join(self.augmentations)} with ", _field("freeze_backbone")),
                *(", where each image is embedded once; leave ", _field("augment"), " out"),
            )

    @property
    def augmentations(self) -> tuple[str, ...]:
        """The augmentations, with the default filled in."""
        if self.augment is not None:
            return tuple(self.augment)
        return () if self.freeze_backbone else ("crop",)

    def _given(self, *names: str) -> list[str]:
        return [name for name in names if getattr(self, name) is not None]


def speed_unit(*, frozen: bool) -> str:
    """Return the unit of ``images_per_second``: with a frozen backbone, each epoch is made of embeddings."""
    return "embeddings/s" if frozen else "images/s"


def _field(name: str) -> Field:
    return Field(TrainConfig, name)
