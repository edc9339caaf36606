#!/usr/bin/env python3
"""Compares admission with an independent JSON Schema validator.

Reads schemas/tests/corpus/values.jsonl (values of the corpus, and whether the published schema must admit each) and
manifests/schema/, and checks every value with Python's `jsonschema`, which must be importable; nothing is installed.
Prints each disagreement; exit code 0 when there is none, 1 otherwise, 2 when the files or the validator are missing.
Documents whose only problems go beyond the schema must pass here: schemas/tests/corpus/README.md lists these rules.
"""

import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def main() -> int:
    try:
        from jsonschema import Draft202012Validator
    except ImportError:
        print("the Python package `jsonschema` is missing: install it, for example in a virtual environment")
        return 2
    validators = {}
    for path in sorted((ROOT / "manifests" / "schema").glob("*.json")):
        schema = json.loads(path.read_text(encoding="utf-8"))
        Draft202012Validator.check_schema(schema)
        validators[path.stem] = Draft202012Validator(schema)
    if "reeve" not in validators or len(validators) < 2:
        print("no schemas in manifests/schema/")
        return 2
    seen = 0
    wrong = 0
    lines = (ROOT / "schemas/tests/corpus/values.jsonl").read_text(encoding="utf-8").splitlines()
    for line in lines:
        case = json.loads(line)
        value = case["value"]
        kind = value.get("kind") if isinstance(value, dict) else None
        own = validators.get(str(kind).lower()) if kind in ("Service", "Node") else None
        for name, validator in (("reeve.json", validators["reeve"]), (f"{str(kind).lower()}.json", own)):
            if validator is None:
                continue
            admits = validator.is_valid(value)
            if admits != case["schemaAdmits"]:
                wrong += 1
                verdicts = ("admits", "refuses")
                ours, theirs = verdicts if case["schemaAdmits"] else verdicts[::-1]
                reasons = "; ".join(error.message[:200] for error in validator.iter_errors(value))
                print(f"{case['id']} with {name}: we say it {ours}, the other {theirs}: {reasons}")
        seen += 1
    print(f"{seen} documents compared, {wrong} disagreements")
    return 1 if wrong or seen < 300 else 0


if __name__ == "__main__":
    sys.exit(main())
