"""TensorRT engines of ONNX models: found or built, and kept under names that say what they are for.

TensorRT and TensorRT for RTX have the same Python interface; `find_tensorrt` takes what is installed. Engines are
strongly typed: every tensor has the type that the ONNX graph gives it, so precision is chosen at export and there is
nothing to set here.

`tnn_runtime.backends.tensorrt` runs them. An engine is a program: deserialise only engines from a folder that nobody
else can write to.
"""

from tnn_runtime.engines.build import build_engine, read_engine, read_spec
from tnn_runtime.engines.cache import engine_folder
from tnn_runtime.engines.library import Library, find_tensorrt

__all__ = ["Library", "build_engine", "engine_folder", "find_tensorrt", "read_engine", "read_spec"]
