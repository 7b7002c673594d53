"""The circuit of a bundle in torchlogix, compiled by it: a process that `logic_speed.py` starts and asks for times.

It runs in a Python of its own that has torchlogix (0.2.2 needs Python 3.12) and none of this project:

    python torchlogix_net.py head.npz bits.npy CLASSES PACK OPT

``head.npz`` is that of the bundle, ``bits.npy`` has the bits that its thresholds give for some images, bool
``[N, bits]``. For each line on standard input, a count of images, it runs so many and prints the seconds that this took
and the logits, as JSON. The first line that it prints says what it is.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from importlib.metadata import version

import numpy as np
import torch
from torchlogix import Circuit
from torchlogix.layers import GroupSum, LogicDense
from torchlogix.utils import set_export_mode


def network(head: dict[str, np.ndarray], classes: int) -> torch.nn.Sequential:
    """Return the discrete network of a bundle as layers of torchlogix, whose gates are numbered the other way round."""
    layers, inputs = [], head["thresholds"].size
    for left, right, tables in zip(head["left"], head["right"], head["tables"], strict=True):
        layer = LogicDense(inputs, len(left))
        with torch.no_grad():
            layer.connections.indices.copy_(torch.from_numpy(np.stack([left, right]).astype(np.int64)))
            numbers = [int(f"{table:04b}"[::-1], 2) for table in tables.tolist()]
            layer.weight.copy_(torch.nn.functional.one_hot(torch.tensor(numbers), 16).float() * 10)
        layers.append(layer)
        inputs = len(left)
    return torch.nn.Sequential(*layers, GroupSum(k=classes, tau=float(head["temperature"]))).eval()


def main(head_file: str, bits_file: str, classes: str, pack: str, opt: str) -> None:
    """Compile the circuit, and time it as often as it is asked to."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with np.load(head_file) as arrays:
        head = dict(arrays)
    bits = np.load(bits_file)
    model = network(head, int(classes))
    set_export_mode(model)
    circuit = Circuit.from_model(model, input_shape=(bits.shape[1],))
    circuit.simplify()
    started = time.perf_counter()
    circuit.compile(pack_bits=int(pack) or None, opt_level=int(opt))
    about = {"torchlogix": version("torchlogix"), "compile_s": time.perf_counter() - started}
    print(json.dumps(about), flush=True)
    step = int(pack) or 1  # whole words alone are taken
    for line in sys.stdin:
        count = int(line)
        some = np.resize(bits[:count], (-(-count // step) * step, bits.shape[1]))
        started = time.perf_counter()
        found = circuit(some, use_compiled=True)
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "logits": np.asarray(found)[:count].tolist()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
