"""Train, export and run a classifier on a folder of images: one subfolder for each class."""

from tnn_export import export_bundle
from tnn_runtime import Classifier
from tnn_train import TrainConfig, train

run = train("photos", "runs/quickstart", config=TrainConfig(epochs=10))
report = export_bundle(run.best, "runs/quickstart-bundle")
print(f"test accuracy {run.test.accuracy:.3f}; {report.summary()}")

with Classifier.load("runs/quickstart-bundle") as classifier:
    for best, *_ in classifier.predict(["photos/cat/0.png", "photos/dog/0.png"], top_k=3):
        print(best.label, best.score)
    print(classifier.explain(["photos/cat/0.png"], top_k=1)[0][0].summary)
