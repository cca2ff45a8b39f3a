"""The planner finds what fits, says why the rest does not, and ranks by what a step would take."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from ppkit import Costs, PpkitError, one_f_one_b, simulate
from ppkit.planner import Machine, Model, PlanError, plan
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


def test_ties_go_to_the_smaller_memory():
    free = replace(MACHINE, latency=0.0, bandwidth=None)
    options = plan(MODEL, free, 8).options
    order = [option.kind for option in options if option.n_stages == 4 and option.n_replicas == 1]
    assert order.index("1F1B") < order.index("GPipe")  # the same time, but fewer activations


# --- what does not fit


def test_too_few_layers_or_samples_are_said():
    found = plan(replace(MODEL, n_layers=3), MACHINE, 2)
    assert why(found, "1F1B, 4 stages") == "needs 4 pieces of at least one layer, but the model has 3"
    assert why(found, "interleaved 1F1B, 2 stages") == "needs 4 pieces of at least one layer, but the model has 3"
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
        (lambda: replace(MACHINE, n_devices=65), "at most 64"),
        (lambda: plan(MODEL, MACHINE, 0), "batch=0: a whole number"),
        (lambda: plan(MODEL, MACHINE, 2.0), "batch=2.0"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(PlanError, match=message) as caught:
        make()
    assert isinstance(caught.value, PpkitError)


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
