"""A simulated data-parallel step: the ring's time, the buckets' order, and what overlap hides."""

from __future__ import annotations

import numpy
import pytest

from ppkit.errors import CostsError
from ppkit.simulate_ddp import bucket_label, fill_buckets, ring_seconds, simulate_data_parallel

LAYERS = [1.0] * 4
BYTES = [10] * 4


def _ends(overlap: bool, **settings: float) -> list[tuple[str, float, float]]:
    timeline = simulate_data_parallel(LAYERS, BYTES, 2, 20, overlap=overlap, **settings)
    return [(e.name, e.start, e.end) for e in timeline.of_rank(0) if e.kind == "COLLECTIVE"]


def test_a_ring_sends_every_part_twice_around() -> None:
    assert ring_seconds(100, 4, latency=1.0, bandwidth=10.0) == 2 * 3 * 1.0 + 2 * 3 / 4 * 100 / 10
    assert ring_seconds(100, 1, latency=1.0, bandwidth=10.0) == 0
    assert ring_seconds(100, 2) == 0


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [
        ([1, 1, 1], 0, [[0], [1], [2]]),
        ([1, 1, 1], 2, [[0, 1], [2]]),
        ([3, 1, 1], 2, [[0], [1, 2]]),
        ([1, 9, 1], 2, [[0, 1], [2]]),
        ([1, 1], 100, [[0, 1]]),
        ([], 1, []),
    ],
)
def test_a_bucket_takes_items_until_it_is_full(sizes: list[int], limit: int, expected: list[list[int]]) -> None:
    assert fill_buckets(sizes, limit) == expected


def test_a_buckets_label_says_its_size() -> None:
    assert bucket_label(3, 1_200_000) == "bucket 3 (1.2 MB)"


def test_with_overlap_a_bucket_starts_when_its_last_gradient_is_there() -> None:
    # forward 2, backward of layers 3, 2, 1, 0 until 3, 4, 5, 6; a bucket of two layers takes 20 bytes / 20 = 1
    assert _ends(True, bandwidth=20.0) == [("bucket 0 (20 B)", 4.0, 5.0), ("bucket 1 (20 B)", 6.0, 7.0)]
    assert _ends(False, bandwidth=20.0) == [("bucket 0 (20 B)", 6.0, 7.0), ("bucket 1 (20 B)", 7.0, 8.0)]


def test_buckets_wait_for_the_link() -> None:
    assert _ends(True, bandwidth=5.0) == [("bucket 0 (20 B)", 4.0, 8.0), ("bucket 1 (20 B)", 8.0, 12.0)]


def test_the_step_ends_after_the_last_bucket() -> None:
    timeline = simulate_data_parallel(LAYERS, BYTES, 2, 20, bandwidth=20.0, optimizer=0.5)
    assert timeline.makespan == 7.5
    assert timeline.source == "simulated"
    assert timeline.n_steps == 1
    assert timeline.bytes_sent == (40, 40)
    assert timeline.peak_in_flight == (1, 1)
    assert [e.name for e in timeline.of_rank(1) if e.kind == "B"] == [f"backward of layer {i}" for i in (3, 2, 1, 0)]


def test_one_replica_reduces_nothing() -> None:
    timeline = simulate_data_parallel(LAYERS, BYTES, 1, latency=5.0)
    assert timeline.makespan == 6
    assert not any(e.kind == "COLLECTIVE" for e in timeline)


def test_its_name_counts_in_words() -> None:
    timeline = simulate_data_parallel(LAYERS, BYTES, numpy.int64(2), 10**9)
    assert timeline == simulate_data_parallel(LAYERS, BYTES, 2, 10**9)
    assert timeline.name == "data parallel, 2 replicas, 1 bucket, with overlap"


def test_nothing_in_it_is_torch() -> None:
    import subprocess
    import sys

    code = "import sys, ppkit.simulate_ddp; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backward": []}, "0 durations"),
        ({"gradient_bytes": [1]}, "4 durations and gradient_bytes 1"),
        ({"backward": [1.0, -1.0, 1.0, 1.0]}, "backward: -1.0"),
        ({"n_replicas": 0}, "n_replicas=0"),
        ({"n_replicas": 2.0}, "n_replicas=2.0"),
        ({"bucket_bytes": -1}, "bucket_bytes: -1"),
        ({"bandwidth": 0}, "bandwidth=0"),
        ({"forward": float("nan")}, "forward: nan"),
        ({"optimizer": "1"}, "optimizer: '1'"),
        ({"latency": -1.0}, "latency: -1.0"),
        ({"latency": float("nan")}, "latency: nan"),
        ({"backward": 0.1}, "backward=0.1: give one for each layer"),
    ],
)
def test_costs_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(CostsError, match=message):
        simulate_data_parallel(**({"backward": LAYERS, "gradient_bytes": BYTES} | settings))  # type: ignore[arg-type]
