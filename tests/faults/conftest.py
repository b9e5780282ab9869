"""These tests take minutes and run where REPRO_FAULT_TESTS=1; `make test-faults` sets it."""

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    if os.environ.get("REPRO_FAULT_TESTS") == "1":
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="set REPRO_FAULT_TESTS=1"))
