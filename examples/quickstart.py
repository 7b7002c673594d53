"""Train, export and run a classifier on a folder of images: one subfolder for each class."""

from tnn_export import ExportOptions, export_bundle
from tnn_runtime import Classifier
from tnn_train import TrainConfig, train

run = train("photos", "runs/quickstart", config=TrainConfig(epochs=10))
options = ExportOptions(outputs=("feature_maps",))  # where in an image an explanation comes from
report = export_bundle(run.best, "runs/quickstart-bundle", options=options)
print(f"test accuracy {run.test.accuracy:.3f}; {report.summary()}")

with Classifier.load("runs/quickstart-bundle") as classifier:
    for best, *_ in classifier.predict(["photos/cat/0.png", "photos/dog/0.png"], top_k=3):
        print(best.label, best.score)
    ((explanation,),) = classifier.explain(["photos/cat/0.png"], top_k=1, maps=True)
    print(explanation.summary, explanation.maps)
