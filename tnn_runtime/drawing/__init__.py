"""Explanations that a person can look at: a picture of one image, or a page of several, with Pillow alone.

from tnn_runtime import Classifier
from tnn_runtime.drawing import Item, draw, page

with Classifier.load("runs/photos-bundle") as classifier:
    (explanations,) = classifier.explain(["cat.jpg"])
draw(explanations, Image.open("cat.jpg")).save("why.png")
html = page([Item(explanations, Image.open("cat.jpg"), name="cat.jpg")])
"""

from __future__ import annotations

from tnn_runtime.drawing.image import draw
from tnn_runtime.drawing.item import Item, exemplars_of, item_of, strongest_features
from tnn_runtime.drawing.page import article, page, style

__all__ = ["Item", "article", "draw", "exemplars_of", "item_of", "page", "strongest_features", "style"]
