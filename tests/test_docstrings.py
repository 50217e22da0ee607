"""The examples in docstrings run, most of them on the demo model; public names have docstrings."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from types import ModuleType

import pytest

import llama4rs
from llama4rs.errors import CheckpointNotFoundError
from llama4rs.hub import demo_model_path

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(llama4rs.__path__, "llama4rs.")
    if module.name.split(".")[-1] not in ("_llama4rs", "__main__")
)


def _no_demo_model() -> str | None:
    try:
        import llama4rs._llama4rs  # noqa: F401

        demo_model_path()
    except (ImportError, CheckpointNotFoundError) as error:
        return str(error).splitlines()[0]
    return None


def _examples(module: ModuleType) -> list[doctest.DocTest]:
    return [test for test in doctest.DocTestFinder().find(module) if test.examples]


@pytest.mark.parametrize("name", ["llama4rs", *MODULES])
def test_examples_run(name: str) -> None:
    tests = _examples(importlib.import_module(name))
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    missing = _no_demo_model()
    num_skipped = 0
    for test in tests:
        if missing and _wants_demo_model(test):
            num_skipped += 1
            continue
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
    if num_skipped:
        pytest.skip(f"{num_skipped} examples want the demo model: {missing}")


def _wants_demo_model(test: doctest.DocTest) -> bool:
    source = "".join(example.source for example in test.examples)
    return bool(re.search(r"llama4rs\.(Llama4\(\)|a?stream|generate|chat|inspect\(\))", source))


def _public_objects() -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for name in llama4rs.__all__:
        if name == "__version__":
            continue
        value = getattr(llama4rs, name)
        found.append((name, value))
        if inspect.isclass(value):
            bases = [base for base in value.__mro__ if base.__module__.startswith("llama4rs")]
            members = [member for base in bases for member in vars(base).items()]
            found += [
                (f"{name}.{key}", item)
                for key, item in members
                if inspect.isfunction(item) or isinstance(item, (property, classmethod))
                if not key.startswith("_")
            ]
    return found


@pytest.mark.parametrize(("name", "value"), _public_objects(), ids=lambda v: str(v)[:60])
def test_public_names_have_docstrings(name: str, value: object) -> None:
    assert inspect.getdoc(value), f"llama4rs.{name} has no docstring"
