from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from conftest import FIXTURES
from jsonschema import Draft202012Validator

from tnn_export.proof.report import StageParity
from tnn_runtime import ArtifactError, Manifest
from tnn_runtime.answers.reject import ALL_SCORES, Reject
from tnn_runtime.bundle.json_values import decode
from tnn_runtime.bundle.manifest import SCHEMA_VERSION, BatchBounds, TensorSpec
from tnn_runtime.images.preprocess import Preprocessing
from tnn_train import LvqConfig, ModelConfig, PartsConfig, TverskyConfig

SCHEMAS = {
    version: json.loads((files("tnn_runtime") / "bundle" / "schemas" / f"manifest-{version}.json").read_text())
    for version in range(1, SCHEMA_VERSION + 1)
}
VALIDATORS = {version: Draft202012Validator(schema) for version, schema in SCHEMAS.items()}
NEWEST = SCHEMAS[SCHEMA_VERSION]
CURRENT = json.loads((FIXTURES / f"bundle-v{SCHEMA_VERSION}" / "manifest.json").read_text())
OPEN = {"model", "parity", "training", "metrics"}
"""Objects that the reader takes as they are."""


def problems(content: Any, version: int = SCHEMA_VERSION) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in VALIDATORS[version].iter_errors(content)]


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield every object type in a schema."""
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield schema
        schema = list(schema.values())
    for item in schema if isinstance(schema, list) else []:
        yield from objects(item)


@pytest.mark.parametrize("version", SCHEMAS)
def test_a_schema_is_valid_and_explains_every_entry(version: int) -> None:
    schema = SCHEMAS[version]
    Draft202012Validator.check_schema(schema)
    for part in objects(schema):
        assert part["description"]
        for name, entry in part.get("properties", {}).items():
            assert schema["$defs"][entry["$ref"].split("/")[-1]] if "$ref" in entry else entry["description"], name


@pytest.mark.parametrize("version", SCHEMAS)
def test_the_released_bundle_of_a_schema_is_valid(version: int) -> None:
    content = json.loads((FIXTURES / f"bundle-v{version}" / "manifest.json").read_text())
    assert problems(content, version) == []


def test_what_is_written_today_is_valid(bundles: dict[str, Path]) -> None:
    for bundle in bundles.values():
        assert problems(json.loads((bundle / "manifest.json").read_text())) == []


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        (NEWEST, Manifest),
        (NEWEST["$defs"]["tensor"], TensorSpec),
        (NEWEST["$defs"]["preprocessing"], Preprocessing),
        (NEWEST["properties"]["batch"], BatchBounds),
        (NEWEST["properties"]["reject"], Reject),
        (NEWEST["$defs"]["parity"], StageParity),
        (NEWEST["$defs"]["model"], ModelConfig),
        (NEWEST["$defs"]["tversky"], TverskyConfig),
        (NEWEST["$defs"]["lvq"], LvqConfig),
        (NEWEST["$defs"]["parts"], PartsConfig),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_properties_are_the_fields(schema: dict[str, Any], kind: Any) -> None:
    fields = dataclasses.fields(kind)
    assert set(schema["properties"]) - {"schema_version"} == {field.name for field in fields}
    if schema.get("additionalProperties") is False:
        needed = {field.name for field in fields if field.default is field.default_factory is dataclasses.MISSING}
        assert set(schema["required"]) - {"schema_version"} == needed


def test_every_reject_score_is_in_the_schema() -> None:
    assert NEWEST["properties"]["reject"]["properties"]["score"]["enum"] == list(ALL_SCORES)


def paths(content: Any, *keys: str | int) -> Iterator[tuple[str | int, ...]]:
    """Yield the place of every value whose type the reader decides on."""
    if keys:
        yield keys
    if isinstance(content, dict) and not (keys and keys[0] in OPEN and len(keys) > (keys[0] == "parity")):
        for name, value in content.items():
            yield from paths(value, *keys, name)
    elif isinstance(content, list):
        for index, value in enumerate(content):
            yield from paths(value, *keys, index)


def put(content: Any, keys: tuple[str | int, ...], value: Any) -> Any:
    content = copy.deepcopy(content)
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    return content


def refusal(bundle: Path, content: Any) -> str | None:
    (bundle / "manifest.json").write_text(json.dumps(content))
    try:
        Manifest.read(bundle)
    except ArtifactError as error:
        return str(error)
    return None


def test_what_the_reader_refuses_by_type_is_refused_by_the_schema() -> None:
    small = {**CURRENT, "parity": {"onnx": {"passed": True}}, "training": {}, "metrics": {}}
    small |= {"optional": ["proof.npz"], "notes": ["a note"]}
    assert problems(small) == []
    refused = []
    for keys in paths({name: value for name, value in small.items() if name != "schema_version"}):
        for value in (None, True, 1, 1.5, 1e301, "x", ["x"], {"x": 1}):
            content = put(small, keys, value)
            try:
                decode(Manifest, {name: item for name, item in content.items() if name != "schema_version"}, "manifest")
            except TypeError:
                refused.append((keys, value, VALIDATORS[SCHEMA_VERSION].is_valid(content)))
            except ArtifactError:
                pass
    assert len(refused) > 300
    assert [case for case in refused if case[2]] == []


def test_what_is_missing_or_unknown_is_refused_by_both(small_bundle: Path) -> None:
    for keys in [(), ("preprocessing",), ("inputs", 0), ("outputs", 1), ("batch",), ("reject",)]:
        place = CURRENT
        for key in keys:
            place = place[key]
        changes = [{**place, "unknown": 1}, *({n: v for n, v in place.items() if n != name} for name in place)]
        for changed in changes:
            content = put(CURRENT, keys, changed) if keys else changed
            assert bool(refusal(small_bundle, content)) == bool(problems(content)), (keys, list(changed))


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("schema_version",), SCHEMA_VERSION + 1),
        (("schema_version",), str(SCHEMA_VERSION)),
        (("schema_version",), True),
        (("class_names",), ["cat", "cat"]),
        (("precision",), "fp8"),
        (("batch", "smallest"), 0),
        (("batch", "largest"), 0),
        (("reject", "score"), "margin"),
        (("reject", "coverage"), 0),
        (("reject", "coverage"), 1),
        (("reject", "samples"), -1),
        (("reject", "threshold"), "x"),
        (("parity",), {}),
        (("parity", "onnx", "passed"), False),
        (("model", "head"), None),
        (("model",), {"backbone": "tiny"}),
        (("preprocessing", "channels"), 2),
        (("preprocessing", "std"), [0, 1, 1]),
        (("preprocessing", "mean"), [0, 1]),
        (("preprocessing", "height"), 0),
        (("inputs",), []),
        (("outputs",), list(reversed(CURRENT["outputs"]))),
        (("outputs",), CURRENT["outputs"][:1]),
        (("outputs", 0, "shape"), [2]),
        (("files", "../up"), {"size": 1, "sha256": "0" * 64}),
        (("files", "a" * 300), {"size": 1, "sha256": "0" * 64}),
        (("files", "model.onnx"), {"size": 1}),
        (("files",), {name: entry for name, entry in CURRENT["files"].items() if name != "model.onnx"}),
        (("files",), {name: entry for name, entry in CURRENT["files"].items() if name != "golden.npz"}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_both_refuse(small_bundle: Path, keys: tuple[str | int, ...], value: Any) -> None:
    content = put(CURRENT, keys, value)
    assert refusal(small_bundle, content)
    assert problems(content)


def test_the_schema_knows_which_head_needs_a_file() -> None:
    listed = {name: entry for name, entry in CURRENT["files"].items() if name != "head.npz"}
    assert problems(put(CURRENT, ("files",), listed)) == ["$.files: 'head.npz' is a required property"]
    assert problems(put(put(CURRENT, ("files",), listed), ("model", "head"), "linear")) == []
