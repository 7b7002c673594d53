"""Parts heads by their definitions, in float64 and place by place."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from tnn_train.heads.parts.head import PartsHead

Values = NDArray[np.float64]


def similarity_maps(head: PartsHead, maps: Values) -> Values:
    """Return how far each place of maps ``[N, D, h, w]`` is each part, ``[N, P, h, w]``, in evaluation."""
    state = {name: tensor.detach().double().numpy() for name, tensor in head.state_dict().items()}
    count, _, height, width = maps.shape
    found = np.empty((count, head.weight.shape[1], height, width))
    for image, row, column in np.ndindex(count, height, width):
        found[image, :, row, column] = _at_a_place(head, state, maps[image, :, row, column])
    return found


def similarities(head: PartsHead, maps: Values) -> Values:
    """Return how far each part is in each image, ``[N, P]``."""
    return similarity_maps(head, maps).max((2, 3))


def logits(head: PartsHead, maps: Values) -> Values:
    """Return the logits, ``[N, C]``."""
    weight = head.weight.detach().double().numpy()
    if head.config.kind == "pipnet":
        return similarities(head, maps) @ np.maximum(weight, 0).T
    return similarities(head, maps) @ weight.T + head.bias.detach().double().numpy()


def _at_a_place(head: PartsHead, state: dict[str, Values], x: Values) -> Values:
    config = head.config
    if config.kind == "pipnet":
        if config.num_parts:
            x = state["detector.add_on.0.weight"] @ x + state["detector.add_on.0.bias"]
        shares = np.exp(x - x.max())
        return np.maximum((shares / shares.sum() - config.fires_above) / (1 - config.fires_above), 0)
    if config.add_on:
        x = np.maximum(state["detector.add_on.0.weight"] @ x + state["detector.add_on.0.bias"], 0)
        x = expit(state["detector.add_on.2.weight"] @ x + state["detector.add_on.2.bias"])
    apart = np.array([np.mean((x - prototype) ** 2) for prototype in state["detector.prototypes"]])
    return -apart if config.similarity == "linear" else np.log((apart + 1) / (apart + config.epsilon))
