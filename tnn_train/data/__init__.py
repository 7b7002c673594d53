"""From a data set's name or a folder to three stratified sets of uint8 images, and from those to batches.

Data flows one way: `readers`, `folder` and `nabirds` find labelled `sources`; `load` checks and measures them; `sets`
splits them (`splits`, `groups`) and decodes each image once, and `notes` tells what people should know of that. The
result is `images`, which `augment` changes at random and `loader` puts into batches.
"""

from tnn_train.data.augment import AUGMENTATIONS, AugmentedSet, check_augmentations, mixing, seeded
from tnn_train.data.config import DataConfig
from tnn_train.data.images import ImageData, ImageSet
from tnn_train.data.load import DATASETS, folder_of, load_data
from tnn_train.data.loader import EpochBatches, evaluation_loader, training_loader

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "AugmentedSet",
    "DataConfig",
    "EpochBatches",
    "ImageData",
    "ImageSet",
    "check_augmentations",
    "evaluation_loader",
    "folder_of",
    "load_data",
    "mixing",
    "seeded",
    "training_loader",
]
