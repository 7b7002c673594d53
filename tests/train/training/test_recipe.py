from __future__ import annotations

import pytest

from tnn_runtime import UsageError
from tnn_train import TrainConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs is 0; expected an integer of at least 1"),
        ({"epochs": True}, "epochs is True; expected an integer of at least 1"),
        ({"batch_size": 1}, "batch_size is 1; expected an integer of at least 2"),
        ({"accumulate": 0}, "accumulate is 0; expected an integer of at least 1"),
        ({"patience": 0}, "patience is 0; expected an integer of at least 1"),
        ({"save_steps": 0.5}, "save_steps is 0.5; expected an integer of at least 1"),
        ({"seed": 2**32}, "seed is 4294967296; expected 0 to 4294967295"),
        ({"workers": -1}, "workers is -1; expected an integer of at least 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; expected a finite number of at least 0.0"),
        ({"head_learning_rate": -1.0}, "head_learning_rate is -1.0; expected a finite number of at least 0.0"),
        ({"momentum": 1.0}, "momentum is 1.0; expected a number from 0 to below 1"),
        ({"label_smoothing": 1}, "label_smoothing is 1; expected a number from 0 to below 1"),
        ({"ema_decay": 1.5}, "ema_decay is 1.5; expected a number from 0 to below 1"),
        ({"clip_norm": 0.0}, "clip_norm is 0; expected a number above 0"),
        ({"decay_factor": 0}, "decay_factor is 0; expected a number above 0"),
        ({"optimizer": "lion"}, "unknown optimizer 'lion'; choose from adamw, adam, sgd"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin'; choose from one-cycle, cosine, step, plateau, constant"),
        ({"precision": "int8"}, "unknown precision 'int8'; choose from fp32, fp16, bf16"),
        ({"class_weights": "x"}, "unknown class_weights 'x'; choose from none, balanced"),
        ({"warmup_epochs": 1.0}, "one-cycle has a rise of its own; choose cosine"),
        (
            {"schedule": "cosine", "warmup_epochs": 21.0},
            "warmup_epochs is 21 of 20 epochs, so that the rate never gets",
        ),
        ({"schedule": "step", "epochs": 3, "warmup_epochs": 3}, "warmup_epochs is 3 of 3 epochs, so that the rate"),
        ({"schedule": "plateau", "epochs": 1, "warmup_epochs": 1.5}, "choose a shorter warm-up, or more epochs"),
        ({"augment": ("crop", "twist")}, "unknown augmentation 'twist'"),
        ({"keep_head": True}, "keep_head needs a checkpoint to take the head of; give weights"),
        ({"augment": ("crop",), "freeze_backbone": True}, "augment is crop with freeze_backbone"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as error:
        TrainConfig(**options)  # type: ignore[arg-type]
    assert message in str(error.value)


def test_the_default_augmentation_is_that_of_what_is_trained() -> None:
    assert TrainConfig().augmentations == ("crop",)
    assert TrainConfig(freeze_backbone=True).augmentations == ()
    assert TrainConfig(augment=()).augmentations == ()
