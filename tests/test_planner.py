"""The planner finds what fits, says why the rest does not, and ranks by what a step would take."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from ppkit import Costs, PpkitError, drafts, one_f_one_b, simulate, ways
from ppkit.planner import Machine, Model, PlanError, estimate, plan
from ppkit.simulate_ddp import ring_seconds

# 8 layers; a sample's forward takes 8 ms and its backward 16 ms on a device of speed 1. Weights: 1 MB a layer,
# with gradients and Adam's state 4 MB; activations 1 MB a sample and layer, messages 10 kB a sample.
MODEL = Model(n_layers=8, n_parameters=2_000_000, activation_bytes=1_000_000, forward=0.008, message_bytes=10_000)
MACHINE = Machine(n_devices=4, memory=1e9, latency=1e-6, bandwidth=1e10)


def find(found, name):
    (option,) = [option for option in found.options if option.name == name]
    return option


def why(found, name):
    (item,) = [item for item in found.rejected if item.name == name]
    return item.why


# --- who wins


def test_one_device_wins_where_links_are_slow():
    best = plan(MODEL, replace(MACHINE, latency=0.05, bandwidth=1e6), 8).best
    assert best.kind == "one device"
    assert best.seconds == pytest.approx(8 * 0.024)
    assert best.bubble == 0
    assert best.bytes_sent == 0
    assert best.throughput == pytest.approx(1 / 0.024)


def test_data_parallelism_wins_where_the_model_fits_and_links_are_fast():
    best = plan(MODEL, MACHINE, 8).best
    assert best.name == "4 replicas"
    assert best.seconds == pytest.approx(2 * 0.024, rel=0.03)  # 2 samples each, and the last bucket


def test_a_pipeline_wins_where_the_weights_are_many_and_the_links_slow():
    # An all-reduce of 8 MB would take longer than the step; a message of a pipeline takes 0.1 ms.
    best = plan(MODEL, replace(MACHINE, bandwidth=1e8), 8).best
    assert best.n_replicas == 1
    assert best.n_stages == 4


def test_the_hybrid_wins_where_the_model_does_not_fit_and_the_batch_is_small():
    # 32 MB for weights and their state: two stages are enough, and fewer stages have the smaller bubble.
    found = plan(MODEL, replace(MACHINE, memory=26e6), 4)
    assert found.best.kind.startswith("DP × ")
    assert (found.best.n_replicas, found.best.n_stages) == (2, 2)
    assert found.of_kind("DP") == found.of_kind("one device") == ()
    assert why(found, "4 replicas") == "needs 40 MB on rank 0, but a device has 26 MB"


# --- what it takes: formulas


def test_memory_of_one_device_and_of_replicas():
    found = plan(MODEL, MACHINE, 8)
    one, two, four = (find(found, name) for name in ("one device", "2 replicas", "4 replicas"))
    weights, sample = 16 * 2_000_000, 8 * 1_000_000
    for option, rows in ((one, 8), (two, 4), (four, 2)):
        assert option.memory == (weights + rows // option.n_microbatches * sample,) * option.n_replicas
    assert four.bytes_sent == 2 * 3 * 8_000_000 // 4  # a ring's share of all gradients


def test_accumulating_saves_memory_where_the_whole_batch_does_not_fit():
    found = plan(MODEL, replace(MACHINE, memory=50e6, overhead=1e-5), 8)
    one = find(found, "one device")
    assert one.n_microbatches == 4
    assert one.memory == (16 * 2_000_000 + 2 * 8_000_000,)
    assert one.seconds == pytest.approx(8 * 0.024 + 4 * 16 * 1e-5)  # 8 layers, each way, for each micro-batch


def test_zero_cuts_the_state_and_sends_half_as_much_again():
    found = plan(MODEL, MACHINE, 8)
    plain, sharded = find(found, "4 replicas"), find(found, "4 replicas + ZeRO-1")
    assert plain.peak_memory - sharded.peak_memory == 8 * 2_000_000 * 3 // 4
    assert sharded.bytes_sent == plain.bytes_sent * 3 // 2
    gather = ring_seconds(8_000_000, 4, MACHINE.latency, MACHINE.bandwidth) / 2
    assert sharded.seconds - plain.seconds == pytest.approx(gather)


@pytest.mark.parametrize(("kind", "held"), [("GPipe", (8, 8, 8, 8)), ("1F1B", (4, 3, 2, 1)), ("ZB-H1", (4, 4, 4, 4))])
def test_memory_of_a_pipeline_is_what_its_schedule_holds(kind, held):
    # Latency makes more micro-batches no worse, and there are 8 samples: m = 8. A quarter of the layers a stage.
    option = find(plan(MODEL, MACHINE, 8), f"{kind}, 4 stages")
    assert option.n_microbatches == 8
    assert option.memory == tuple(8_000_000 + n * 2_000_000 for n in held)


def test_a_pipelines_step_is_the_formula():
    option = find(plan(MODEL, replace(MACHINE, latency=0.0, bandwidth=None), 8), "1F1B, 4 stages")
    assert option.seconds == pytest.approx((8 + 3) * 0.024 / 4)
    assert option.bubble == pytest.approx(3 / 11)
    middle = simulate(one_f_one_b(4, 8), Costs(activation_bytes=10_000)).bytes_sent[1]
    assert option.bytes_sent == middle == 2 * 8 * 10_000


def test_a_hybrid_shows_one_replica_with_its_all_reduces():
    option = find(plan(MODEL, MACHINE, 8), "2 replicas × 1F1B, 2 stages")
    assert option.timeline.n_ranks == 2
    assert "one replica" in option.timeline.name
    reduces = [event for event in option.timeline if event.kind == "COLLECTIVE"]
    assert [event.nbytes for event in reduces] == [4_000_000, 4_000_000]  # half of the weights, 2 (2 - 1) / 2 times


def test_replicas_accumulate_and_overlap_only_the_last_backward():
    slow = replace(MACHINE, memory=40e6 + 1, bandwidth=1e9)
    option = find(plan(MODEL, slow, 16), "2 replicas")
    assert option.n_microbatches == 8
    forwards = [event.microbatch for event in option.timeline.of_rank(1) if event.kind == "F"]
    assert forwards == list(range(8))
    (reduce,) = [event for event in option.timeline.of_rank(1) if event.kind == "COLLECTIVE"]
    assert reduce.start == pytest.approx(8 * 0.024)  # 8 MB fit in one bucket, full only at the end
    assert option.seconds == pytest.approx(8 * 0.024 + ring_seconds(8e6, 2, 1e-6, 1e9))


def test_uneven_layers_and_batches_count_their_largest_part():
    model = replace(MODEL, n_layers=7, n_parameters=1_750_000, forward=0.007)
    option = find(plan(model, replace(MACHINE, latency=0.0, bandwidth=None, overhead=1.0), 3), "GPipe, 4 stages")
    assert option.n_microbatches == 1  # with such an overhead a part more costs too much
    assert option.seconds == pytest.approx(7 * (2 * 1.0 + 3 * 0.003))
    assert max(option.memory) == 2 * (16 * 250_000 + 3 * 1_000_000)
    assert find(plan(model, MACHINE, 3), "2 replicas").memory[0] == 16 * 1_750_000 + 7_000_000  # 2 rows, m = 2


# --- more is never worse


@pytest.mark.parametrize("field", ["memory", "speed", "bandwidth", "n_devices"])
def test_a_better_machine_is_never_slower(field):
    machine = Machine(n_devices=2, memory=25e6, speed=1.0, latency=1e-4, bandwidth=1e8)
    steps = []
    for _ in range(4):
        found = plan(MODEL, machine, 8)
        steps.append((found.best.seconds, -len(found.options)))
        machine = replace(machine, **{field: getattr(machine, field) * 2})
    assert [seconds for seconds, _ in steps] == sorted((seconds for seconds, _ in steps), reverse=True)
    if field == "memory":
        assert steps == sorted(steps, reverse=True)
        assert steps[0] > steps[-1]


def test_options_are_ranked_and_complete():
    found = plan(MODEL, MACHINE, 8)
    assert [option.seconds for option in found.options] == sorted(option.seconds for option in found.options)
    # 4 devices: 1, 2 or 4 replicas alone, 4 schedules on 2 × 1, 4 × 1 and 2 × 2; ZeRO-1 wherever there are replicas.
    assert len(found.options) == 3 + 2 + 4 * 3 + 4
    assert found.rejected == ()
    kinds = [option.kind for option in found.best_of_each_kind]
    assert len(kinds) == len(set(kinds)) == 1 + 2 + 4 + 4 * 2
    assert found.best_of_each_kind[0] is found.best


def test_interleaved_ranks_have_the_number_of_chunks_that_is_fastest():
    model = replace(MODEL, n_layers=12)  # three chunks on each of 4 ranks are one layer each, two are one or two
    way = {"schedule": "interleaved 1F1B", "n_stages": 4}
    each = {(n, m): estimate(model, MACHINE, 64, m, n_chunks=n, **way) for n in (2, 3) for m in (1, 2, 4, 8, 16, 32)}
    found = find(plan(model, MACHINE, 64), "interleaved 1F1B, 4 stages of 3 chunks")
    assert found.seconds == min(one.seconds for one in each.values())
    assert found.seconds < min(one.seconds for (n, _), one in each.items() if n == 2)


def test_ties_go_to_the_smaller_memory():
    free = replace(MACHINE, latency=0.0, bandwidth=None)
    options = plan(MODEL, free, 8).options
    order = [option.kind for option in options if option.n_stages == 4 and option.n_replicas == 1]
    assert order.index("1F1B") < order.index("GPipe")  # the same time, but fewer activations
    assert find(plan(MODEL, MACHINE, 64), "one device").n_microbatches == 64  # all take the same time, but for rounding


def test_a_batch_of_millions_is_planned_at_once():
    alone = find(plan(MODEL, MACHINE, 10**8), "one device")
    assert alone.seconds == pytest.approx(10**8 * 0.024, rel=0.5)  # and a part more where micro-batches are ragged


def test_counts_may_be_written_as_floats():
    floats = replace(MODEL, n_layers=8.0, n_parameters=2e6), replace(MACHINE, n_devices=4.0)
    assert plan(*floats, 8).best.name == plan(MODEL, MACHINE, 8).best.name


# --- what does not fit


def test_numbers_of_numpy():
    model, machine = (
        replace(MODEL, n_layers=np.int64(8), forward=np.float32(2)),
        replace(MACHINE, memory=np.int64(10**9)),
    )
    assert (type(model.n_layers), type(model.forward), type(machine.memory)) == (int, int, int)
    assert repr(plan(MODEL, MACHINE, np.int64(8))) == repr(plan(MODEL, MACHINE, 8))
    assert repr(estimate(MODEL, MACHINE, 8, np.int64(2), n_stages=np.int64(2))) == repr(
        estimate(MODEL, MACHINE, 8, 2, n_stages=2)
    )


def test_too_few_layers_or_samples_are_said():
    found = plan(replace(MODEL, n_layers=3), MACHINE, 2)
    for name in ("1F1B, 4 stages", "interleaved 1F1B, 2 stages of 2 chunks"):
        assert why(found, name) == "needs 4 pieces of at least one layer, but the model has 3"
    assert why(found, "4 replicas") == "needs a sample for each of 4 replicas, but the batch has 2"


def test_nothing_fits():
    found = plan(MODEL, replace(MACHINE, memory=9e6), 8)
    assert not found.options
    with pytest.raises(PlanError, match=r"(?s)nothing fits.*Closest: .* stages, which needs .* but a device has 9 MB"):
        _ = found.best
    assert "Does not fit:" in str(found)


def test_one_layer_does_not_fit():
    with pytest.raises(PlanError, match="no pipeline can help"):
        _ = plan(MODEL, replace(MACHINE, memory=4e6), 8).best
    with pytest.raises(PlanError, match="Closest: 4-way tensor"):  # that layers can be cut is known there
        _ = plan(MODEL, replace(NODES, memory=1e6), 8).best


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(MODEL, n_layers=0), r"Model\(n_layers=0\).*whole number of at least 1"),
        (lambda: replace(MODEL, n_layers=2.5), "n_layers must be a whole number"),
        (lambda: replace(MODEL, n_parameters=True), "n_parameters must be a whole number"),
        (lambda: replace(MODEL, forward=0), "forward must be a finite number above 0"),
        (lambda: replace(MODEL, activation_bytes=-1), "activation_bytes must be a finite number of at least 0"),
        (lambda: replace(MODEL, message_bytes="4 kB"), "message_bytes must be a finite number"),
        (lambda: replace(MODEL, activation_bytes=None), "activation_bytes must be"),
        (lambda: replace(MACHINE, bandwidth=0), "bandwidth must be a finite number above 0"),
        (lambda: replace(MACHINE, latency=float("nan")), "latency must be"),
        (lambda: replace(MACHINE, memory=float("inf")), "memory must be"),
        (lambda: plan(MODEL, replace(MACHINE, n_devices=65), 8), r"at most 64; for more, ask estimate\(\)"),
        (lambda: replace(MACHINE, node_size=0), "node_size must be a whole number"),
        (lambda: replace(MACHINE, node_bandwidth=0), "node_bandwidth must be a finite number above 0"),
        (lambda: replace(MODEL, n_heads=0.5), "n_heads must be a whole number"),
        (lambda: estimate(MODEL, MACHINE, 8, 0), "n_microbatches=0: a whole number"),
        (lambda: estimate(MODEL, MACHINE, 8, 1, schedule="2F2B"), "no schedule '2F2B': it is one of 1F1B, GPipe"),
        (lambda: estimate(MODEL, MACHINE, 8, 1, n_stages=8), "needs 8 devices, but there are 4"),
        (lambda: estimate(MODEL, MACHINE, 8, 1, n_stages=9), "needs 9 pieces of at least one layer"),
        (lambda: estimate(MODEL, MACHINE, 8, 5, n_replicas=2), "each of 5 micro-batches, but a replica has 4"),
        (lambda: estimate(MODEL, MACHINE, 9, 6, n_replicas=2), "each of 6 micro-batches, but a replica has 5"),
        (lambda: estimate(MODEL, MACHINE, 8, 1, schedule=["1F1B"]), r"no schedule \['1F1B'\]: it is one of"),
        (lambda: estimate(MODEL, MACHINE, 8, 1, n_replicas=2, zero="no"), "zero='no': it must be True or False"),
        (lambda: estimate(MODEL, MACHINE, 8, 1, n_chunks=True), "n_chunks=True: a whole number"),
        (lambda: estimate(replace(MODEL, n_heads=6), MACHINE, 8, 1, n_tensor=4), "heads in 4 equal parts"),
        (lambda: plan(MODEL, MACHINE, 0), "batch=0: a whole number"),
        (lambda: plan(MODEL, MACHINE, 2.0), "batch=2.0"),
        (lambda: plan(MACHINE, MODEL, 8), "model is a Machine; the arguments are a Model, a Machine"),
        (lambda: replace(MODEL, recompute=-1), "recompute must be True or False"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(PlanError, match=message) as caught:
        make()
    assert isinstance(caught.value, PpkitError)


# --- tensor parallelism

NODES = replace(MACHINE, latency=1e-4, bandwidth=1e8, node_size=4, node_latency=1e-6, node_bandwidth=1e10)


def test_tensor_parallelism_divides_the_work_and_waits_in_every_layer():
    option = find(plan(MODEL, NODES, 8), "4-way tensor")
    m, rows = option.n_microbatches, 8 // option.n_microbatches
    one = ring_seconds(rows * 10_000, 4, 1e-6, 1e10)
    work, waits = 8 * 0.024 / 4, m * 8 * 4 * one  # 8 layers, 4 all-reduces each
    assert option.seconds == pytest.approx(work + waits)
    assert option.bubble == pytest.approx(waits / (work + waits))
    assert option.bytes_sent == m * 8 * 4 * 2 * 3 * rows * 10_000 // 4
    # A quarter of the weights and their state; of the activations all but the layer's input is divided.
    assert option.memory == (16 * 2_000_000 // 4 + rows * 8 * (10_000 + 990_000 // 4),)
    assert option.n_devices == option.n_tensor == 4


def test_recomputing_keeps_the_inputs_of_layers_and_computes_a_forward_more():
    model = replace(MODEL, recompute=True, whole_bytes=200_000)
    plain, option = (estimate(m, NODES, 8, 8, n_tensor=2) for m in (replace(model, recompute=False), model))
    one = ring_seconds(10_000, 2, 1e-6, 1e10)
    assert plain.seconds == pytest.approx(8 * (0.024 / 2 + 8 * 4 * one))
    assert option.seconds == pytest.approx(8 * (0.032 / 2 + 8 * 6 * one))
    assert plain.memory == (16_000_000 + 8 * (200_000 + 400_000),)
    assert option.memory == (16_000_000 + 8 * 10_000 + (200_000 + 400_000),)


def test_groups_inside_a_node_use_its_links():
    """Tensor parallelism innermost, then the pipeline, then replicas."""
    big = replace(NODES, n_devices=16)
    inside = estimate(MODEL, big, 8, 1, n_stages=2, n_tensor=2, n_replicas=2)
    waits = 2 * 4 * ring_seconds(40_000, 2, 1e-6, 1e10)  # a stage has 4 layers, a micro-batch 4 samples
    message = 1e-6 + 20_000 / 1e10 + ring_seconds(40_000, 2, 1e-6, 1e10) / 2  # a half each, then both gather
    reduce = ring_seconds(2_000_000, 2, 1e-4, 1e8)  # of a quarter of the gradients, between nodes
    forward, backward = 4 * 0.008 / 2 / 2 + waits, 4 * 0.016 / 2 / 2 + waits  # half of the layers, and half of each
    assert inside.seconds == pytest.approx(2 * (forward + backward + message) + reduce, rel=1e-6)
    across = estimate(MODEL, big, 8, 1, n_stages=1, n_tensor=8)
    assert across.bubble > 5 * estimate(MODEL, big, 8, 1, n_stages=1, n_tensor=4).bubble


def test_without_nodes_there_is_no_tensor_parallelism():
    assert all(option.n_tensor == 1 for option in plan(MODEL, MACHINE, 8).options)


def test_options_with_nodes_are_complete():
    found = plan(replace(MODEL, n_heads=6), NODES, 8)
    plain = plan(MODEL, replace(NODES, node_size=1), 8)
    # In groups of two: alone, 2 replicas (and ZeRO-1), 4 schedules on 2 × 2. Six heads are not divided by four.
    tensor = [option for option in found.options if option.n_tensor > 1]
    assert {option.n_tensor for option in tensor} == {2}
    assert len(tensor) == 1 + 2 + 4
    assert len(found.options) == len(plain.options) + len(tensor)
    assert why(found, "4-way tensor") == "needs heads in 4 equal parts, but a layer has 6"
    assert {option.kind for option in tensor} >= {"TP", "DP × TP", "DP × TP + ZeRO-1", "TP × 1F1B"}


def test_a_layer_that_does_not_fit_is_cut():
    small = replace(NODES, memory=3e6)  # a layer's weights take 4 MB, and its activations for a sample 1 MB
    assert not plan(MODEL, replace(small, node_size=1), 8).options
    with pytest.raises(PlanError, match=r"Cut the layers themselves \(tensor parallelism\)"):
        _ = plan(MODEL, replace(small, node_size=1), 8).best
    best = plan(replace(MODEL, n_layers=2, n_parameters=500_000), small, 8).best
    assert best.n_tensor > 1


# --- what others have measured

BYTES = {"parameter_bytes": 2, "optimizer_bytes": 14}  # values; a gradient of as many; Adam and 32-bit copies of both


def gpt(n_layers, width, n_heads):
    """A transformer whose layers recompute their forward: 12 h² parameters, and the attention's 4 s² h FLOPs."""
    s, n = 2048, 12 * n_layers * width**2
    forward = 2 * n * s + 4 * s * s * width * n_layers
    sizes = {"message_bytes": 2 * s * width, "whole_bytes": 10 * s * width} | BYTES
    return Model(n_layers, n, 34 * s * width, forward, n_heads=n_heads, recompute=True, **sizes)


def cluster(n_devices, peak, node, between):
    """Servers of eight GPUs of 80 GB, which reach 56 % of their peak inside a layer."""
    links = {"latency": 1e-5, "bandwidth": between, "node_size": 8, "node_latency": 5e-6, "node_bandwidth": node}
    return Machine(n_devices, 80e9, speed=0.56 * peak, **links)


# Narayanan et al., arXiv 2104.04473: layers, width, heads; t, p, GPUs; batch, micro-batch, chunks; TFLOP/s of each GPU.
MEGATRON = {
    "39.1 B": (48, 8192, 64, 8, 2, 512, 1536, 4, 1, 138),
    "76.1 B": (60, 10240, 80, 8, 4, 1024, 1792, 2, 3, 140),
    "145.6 B": (80, 12288, 96, 8, 8, 1536, 2304, 2, 2, 148),
    "310.1 B": (96, 16384, 128, 8, 16, 1920, 2160, 1, 2, 155),
    "529.6 B": (105, 20480, 128, 8, 35, 2520, 2520, 1, 3, 163),
    "1008 B": (128, 25600, 160, 8, 64, 3072, 3072, 1, 1, 163),
    "GPT-3, 384 GPUs": (96, 12288, 96, 8, 12, 384, 1536, 1, 1, 153),
    "GPT-3, 768 GPUs": (96, 12288, 96, 8, 12, 768, 1536, 1, 1, 149),
    "GPT-3, 1536 GPUs": (96, 12288, 96, 8, 12, 1536, 1536, 1, 1, 141),
}


def megatron(name, t=None, p=None):
    """The estimate, and the TFLOP/s of each GPU as the paper counts them, with the recomputed forward."""
    layers, width, heads, published_t, published_p, gpus, batch, rows, chunks, _ = MEGATRON[name]
    t, p = t or published_t, p or published_p
    chunks = chunks if p * chunks <= layers else 1
    d = gpus // (t * p)
    option = estimate(
        gpt(layers, width, heads), cluster(gpus, 312e12, 250e9, 25e9), batch, batch // d // rows,
        schedule="interleaved 1F1B" if chunks > 1 else "1F1B", n_chunks=chunks, n_stages=p, n_replicas=d, n_tensor=t,
    )  # fmt: skip
    flops = 96 * batch * 2048 * layers * width**2 * (1 + 2048 / (6 * width))
    return option, flops / option.seconds / gpus / 1e12


@pytest.mark.parametrize("name", list(MEGATRON))
def test_megatrons_throughput(name):
    option, found = megatron(name)
    assert found == pytest.approx(MEGATRON[name][-1], rel=0.11)
    assert option.peak_memory < 80e9  # it did fit


def test_a_fixed_batch_on_more_gpus_makes_each_slower_as_measured():
    measured = [megatron(f"GPT-3, {n} GPUs")[1] for n in (384, 768, 1536)]
    assert measured == sorted(measured, reverse=True)
    assert measured[2] / measured[0] == pytest.approx(141 / 153, rel=0.02)


@pytest.mark.parametrize("batch", [32, 128])
def test_tensor_parallelism_as_wide_as_a_node_is_the_best(batch):
    """Figure 13 of the same paper: 162 billion parameters on 64 GPUs, from 2 × 32 to 32 × 2 stages × tensor."""
    machine, model = cluster(64, 312e12, 250e9, 25e9), gpt(32, 20480, 128)
    steps = {t: estimate(model, machine, batch, batch, n_stages=64 // t, n_tensor=t).seconds for t in (2, 4, 8, 16, 32)}
    assert min(steps, key=steps.get) == 8
    assert steps[32] > steps[16] > steps[8] < steps[4] < steps[2]


def test_models_of_that_size_need_tensor_parallelism():
    """With stages alone a layer does not fit, or the bubble of that many stages wastes half of the machine."""
    option, found = megatron("529.6 B", t=1, p=105)
    assert option.peak_memory > 80e9
    option, found = megatron("310.1 B", t=1, p=96)
    assert option.peak_memory < 80e9
    assert found < 0.7 * megatron("310.1 B")[1]


# Llama 3, arXiv 2407.21783, table 4: 405 billion parameters, 8,192 tokens, t = 8, p = 16, optimizer state cut.
# The number of chunks is not given; here it is 4, of two layers each.
@pytest.mark.parametrize(("gpus", "n_replicas", "rows", "published"), [(8192, 64, 32, 430), (16384, 128, 16, 400)])
def test_llamas_throughput(gpus, n_replicas, rows, published):
    s, width, inner, layers = 8192, 16384, 53248, 126
    parameters = layers * (2 * width**2 + 2 * width * 1024 + 3 * width * inner)  # 8 of 128 heads have keys and values
    forward = 2 * parameters * s + 2 * s * s * width * layers  # causal: half of the scores
    sizes = {"message_bytes": 2 * s * width, "whole_bytes": 0.0} | BYTES  # divided along the sequence elsewhere
    model = Model(layers, parameters, 34 * s * width, forward, n_heads=128, **sizes)
    machine = cluster(gpus, 989e12, 400e9, 50e9)
    way = {"schedule": "interleaved 1F1B", "n_chunks": 4, "n_stages": 16, "n_replicas": n_replicas, "n_tensor": 8}
    option = estimate(model, machine, n_replicas * rows, rows, zero=True, **way)
    found = 3 * forward * option.batch / option.seconds / gpus / 1e12
    assert found == pytest.approx(published, rel=0.11)


# --- how much it computes


def test_a_large_plan_simulates_nothing_and_computes_little(monkeypatch):
    """64 devices: thousands of candidates, of which most cannot fit or cannot win."""
    computed = []

    def count(*args):
        computed.append(args)
        return original(*args)

    original = drafts.step_seconds
    monkeypatch.setattr(drafts, "step_seconds", count)
    monkeypatch.setattr(ways, "simulate", lambda *_: pytest.fail("a plan needs no timeline"))
    model = replace(gpt(32, 4096, 32), recompute=False)
    found = plan(model, cluster(64, 312e12, 250e9, 25e9), 256)
    assert len(found.options) > 100
    plain = [option for option in found.options if "ZeRO" not in option.kind]
    assert len(computed) < 2 * len(plain)
    monkeypatch.undo()
    assert found.best.timeline.makespan == found.best.seconds


# --- how it looks


def test_it_is_a_table():
    found = plan(MODEL, replace(MACHINE, memory=26e6), 4)
    title, head, best, *_ = str(found).splitlines()
    assert title == "a batch of 4 on 4 devices of 26 MB, simulated; the best of each kind"
    assert head.split()[:2] == ["strategy", "devices"]
    assert best.startswith(found.best.name)
    assert "2 replicas: needs 40 MB on rank 0" in str(found)
    html = found._repr_html_()
    assert html.count("<tr>") == 1 + len(found.best_of_each_kind)
    assert html.count("<li>") == 3  # one device, replicas with and without ZeRO-1


def test_an_option_shows_its_timeline():
    best = plan(MODEL, MACHINE, 8).best
    assert "image/svg+xml" in best._repr_mimebundle_()
    assert repr(best).startswith("strategy 4 replicas, devices 4")


def test_no_torch_is_needed():
    code = "import sys, ppkit.planner; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["False", "False"]
