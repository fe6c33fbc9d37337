"""Neuron's compile cache: found where the variables say, and counted by finished entries."""

from __future__ import annotations

from pathlib import Path

import pytest

from tp_harness.neuron.compile_cache import DEFAULT_ROOT, cache_root, compiled_programs


@pytest.mark.parametrize(
    ("environment", "root"),
    [
        ({}, DEFAULT_ROOT),
        ({"NEURON_COMPILE_CACHE_URL": "/data/cache"}, Path("/data/cache")),
        ({"NEURON_COMPILE_CACHE_URL": "s3://bucket/cache"}, None),
        ({"NEURON_COMPILE_CACHE_URL": "/a", "NEURON_CC_FLAGS": "-O1 --cache_dir=/b"}, Path("/b")),
        ({"NEURON_CC_FLAGS": "--cache_dir '/b c' -O1"}, Path("/b c")),
        ({"NEURON_CC_FLAGS": "'"}, DEFAULT_ROOT),
    ],
)
def test_where_it_is(environment: dict[str, str], root: Path | None) -> None:
    assert cache_root(environment) == root


def test_only_finished_entries_count(tmp_path: Path) -> None:
    assert compiled_programs(tmp_path) == compiled_programs(None) == frozenset()
    for entry, file in (("MODULE_1", "model.neff"), ("MODULE_2", "model.hlo_module.pb"), ("other", "model.neff")):
        folder = tmp_path / "neuronxcc-2.26.6360.0+ab" / entry
        folder.mkdir(parents=True)
        (folder / file).touch()
    assert compiled_programs(tmp_path) == {"MODULE_1"}
