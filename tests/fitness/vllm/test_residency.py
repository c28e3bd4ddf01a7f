"""Where the sources of a search live: arithmetic on sizes, checked by hand and by properties."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.fitness.config import EngineConfig
from evomerge.fitness.vllm.memory import free_host_bytes, sizes_of
from evomerge.fitness.vllm.residency import ENGINE_BYTES, GIB, HOST_SHARE, PROCESS_BYTES, Sizes, plan_residency
from evomerge.merging import open_sources
from evomerge.recipe import Recipe

SEVEN_B = Sizes(sources=42 * GIB, model=14 * GIB, largest=GIB, kv_cache=4 * GIB, num_sources=3)
"""Three sources of 7 B parameters in bfloat16."""
RANK = {"device": 0, "pinned": 1, "mapped": 2}


def test_three_seven_b_models_stay_on_a_gpu_of_141_gib() -> None:
    plan = plan_residency(SEVEN_B, free_host_bytes=128 * GIB, free_device_bytes=139 * GIB, total_device_bytes=140 * GIB)
    assert plan.where == "device"
    assert plan.device_bytes == (14 + 4 + 6 + 42) * GIB + ENGINE_BYTES
    assert plan.host_bytes == PROCESS_BYTES
    assert plan.device_share == pytest.approx((42 + 6) / 140)


def test_on_a_gpu_of_40_gib_they_are_pinned_and_with_little_main_memory_mapped() -> None:
    pinned = plan_residency(SEVEN_B, free_host_bytes=128 * GIB, free_device_bytes=40 * GIB)
    assert (pinned.where, pinned.host_bytes, pinned.device_share) == ("pinned", 42 * GIB + PROCESS_BYTES, 6 / 40)
    assert "do not fit into the" in pinned.reason
    mapped = plan_residency(SEVEN_B, free_host_bytes=60 * GIB, free_device_bytes=40 * GIB)
    assert (mapped.where, mapped.host_bytes) == ("mapped", PROCESS_BYTES)
    assert "nor into half of the 60.0 GiB" in mapped.reason


def test_on_the_cpu_the_device_is_main_memory() -> None:
    plan = plan_residency(SEVEN_B, free_host_bytes=200 * GIB)
    assert (plan.where, plan.device_bytes, plan.host_bytes) == ("device", 0, (14 + 4 + 6 + 42) * GIB + PROCESS_BYTES)
    assert plan_residency(SEVEN_B, free_host_bytes=100 * GIB).where == "mapped"


def test_every_rank_keeps_sources_of_its_own() -> None:
    two = Sizes(sources=10 * GIB, model=4 * GIB, largest=GIB, kv_cache=GIB, num_sources=2, ranks=2)
    assert (
        plan_residency(two, free_host_bytes=1000 * GIB).host_bytes
        == (4 + 2 * (1 + 5) + 2 * 10) * GIB + 2 * PROCESS_BYTES
    )
    on_gpus = plan_residency(two, free_host_bytes=44 * GIB, free_device_bytes=12 * GIB)
    assert (on_gpus.where, on_gpus.host_bytes) == ("pinned", 20 * GIB + 2 * PROCESS_BYTES)


sizes = st.builds(
    Sizes,
    sources=st.integers(0, 400 * GIB),
    model=st.integers(1, 150 * GIB),
    largest=st.integers(1, 4 * GIB),
    kv_cache=st.integers(1, 8 * GIB),
    num_sources=st.integers(1, 6),
    ranks=st.sampled_from([1, 2, 4]),
)


@given(sizes, st.integers(0, 2000 * GIB), st.integers(GIB, 200 * GIB), st.floats(0.1, 1.0))
def test_what_is_resident_fits_and_more_memory_never_gives_a_slower_place(
    needs: Sizes, host: int, device: int, share: float
) -> None:
    plan = plan_residency(needs, free_host_bytes=host, free_device_bytes=device, share=share)
    if plan.where == "pinned":
        assert needs.sources < plan.host_bytes <= host * HOST_SHARE
    if plan.where == "device":
        assert plan.device_bytes <= device * share
        assert plan.device_bytes > needs.sources
    more = plan_residency(needs, free_host_bytes=2 * host, free_device_bytes=2 * device, share=share)
    assert RANK[more.where] <= RANK[plan.where]
    on_cpu = plan_residency(needs, free_host_bytes=host)
    assert on_cpu.where in ("device", "mapped")
    assert on_cpu.where == "mapped" or on_cpu.host_bytes <= host * HOST_SHARE


def test_free_memory_is_the_machines_within_the_limit_of_the_control_group(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  2000 kB\nMemAvailable:  1000 kB\n")
    assert free_host_bytes(meminfo, tmp_path / "none") == 1000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 200000\n")
    assert free_host_bytes(meminfo, tmp_path) == 1000 * 1024
    (tmp_path / "memory.max").write_text("1000000\n")
    assert free_host_bytes(meminfo, tmp_path) == 300000
    assert free_host_bytes(tmp_path / "none", tmp_path / "none") > GIB // 4


def test_the_sizes_of_opened_sources_are_their_parameters() -> None:
    recipe = Recipe.from_mapping(
        {
            "recipe": 1,
            "sources": {"base": {"model": "zoo:base"}, "math": {"model": "zoo:math"}, "again": {"model": "zoo:math"}},
            "dtype": "float32",
            "blend": {"method": "linear", "weight": 1.0},
        }
    )
    opened = open_sources(recipe, Path("/"))
    found = sizes_of(opened, EngineConfig(dtype="bfloat16"), 7)
    infos = [opened.models["base"].info(name) for name in opened.models["base"].names()]
    parameters = sum(info.num_elements for info in infos)
    assert found.sources == sum(
        model.info(name).num_elements * model.info(name).dtype.itemsize
        for model in (opened.models["base"], opened.models["math"])
        for name in model.names()
    )
    assert (found.model, found.kv_cache, found.num_sources) == (2 * parameters, 7, 2)
    assert found.largest == 4 * max(info.num_elements for info in infos)
    assert sizes_of(opened, EngineConfig(), 0, itemsize=4).sources == 2 * 4 * parameters
