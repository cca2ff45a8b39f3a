"""Wrong answers to lab 08, each with the mistake by which its check must recognise it.

The test runs this file as a notebook would its cells; `fails` marks a submission with its check, the mistake's code,
and words that the report must hold. A code of None stands for a mistake that is not in the catalogue.
"""

# ruff: noqa: F821  # the test gives `fails`

# --- memory_per_device ---


def memory_with(
    value=lambda precision: 4 if precision == "float32" else 2,
    gradients=True,
    state=lambda precision: 8 if precision == "float32" else 12,
    weights_over=lambda d, p: p,
    activations_over=lambda d, p: p,
    cut=lambda zero, d, p: d if zero else 1,
    gradients_cut=False,
    held=lambda schedule, p, m, stage: m if schedule == "GPipe" else min(p - stage, m),
):
    def memory_per_device(n, precision, d, zero, p, schedule, m, microbatch_bytes, stage):
        shards = cut(zero, d, p)
        gradient = value(precision) / (shards if gradients_cut else 1) if gradients else 0
        weights = n * (value(precision) + gradient + state(precision) / shards)
        return weights / weights_over(d, p) + held(schedule, p, m, stage) * microbatch_bytes / activations_over(d, p)

    return memory_per_device


def memory(name, code, *words, **changes):
    fails("check_memory", code, *words, name=name)(memory_with(**changes))


memory("gradients_forgotten", "P100", "1 replica, 1 stage", gradients=False)
memory("only_one_average", "P100", state=lambda precision: 4)
memory("no_activations", None, "1 micro-batch of 40 MB", "424 MB", held=lambda schedule, p, m, stage: 0)
memory("no_copy_in_float32", "P101", "mixed", state=lambda precision: 8)
memory("mixed_halves_everything", "P101", state=lambda precision: 8 if precision == "float32" else 4)
memory("replicas_divide_the_weights", "P102", "4 replicas", weights_over=lambda d, p: d * p)
memory("replicas_divide_the_activations", "P102", activations_over=lambda d, p: d * p)
memory("every_stage_has_all_weights", "P103", "4 stages", weights_over=lambda d, p: 1)
memory("every_stage_has_all_activations", "P103", activations_over=lambda d, p: 1)
memory("zero_ignored", "P104", "ZeRO-1", cut=lambda zero, d, p: 1)
memory("zero_cuts_gradients_too", "P104", gradients_cut=True)
memory("zero_cuts_over_all_devices", "P104", "2 stages", cut=lambda zero, d, p: d * p if zero else 1)
memory("one_microbatch_in_flight", "P105", "GPipe, 8 micro-batches", held=lambda schedule, p, m, stage: 1)
memory("gpipe_for_both", "P105", "1F1B", held=lambda schedule, p, m, stage: m)
memory("1f1b_for_both", "P105", "GPipe", held=lambda schedule, p, m, stage: min(p - stage, m))
memory("every_stage_as_the_first", "P106", held=lambda schedule, p, m, stage: m if schedule == "GPipe" else min(p, m))
memory(
    "not_clamped", "P106", "2 micro-batches", held=lambda schedule, p, m, stage: m if schedule == "GPipe" else p - stage
)


@fails("check_memory", None, "384 MB", "424 MB")
def the_larger_of_both(n, precision, d, zero, p, schedule, m, microbatch_bytes, stage):
    return max(16 * n, m * microbatch_bytes)


@fails("check_memory", None, "0.384 B", "right in GB")
def in_gigabytes(n, precision, d, zero, p, schedule, m, microbatch_bytes, stage):
    return memory_with()(n, precision, d, zero, p, schedule, m, microbatch_bytes, stage) / 1e9


@fails("check_memory", None, "it returned a list of 3")
def returns_its_parts(n, precision, d, zero, p, schedule, m, microbatch_bytes, stage):
    return [4 * n, 4 * n, 8 * n]


@fails("check_memory", None, "KeyError", "line")
def raises(n, precision, d, zero, p, schedule, m, microbatch_bytes, stage):
    return n * {"float32": 16}[precision]


@fails("check_memory", None, "had not come to its end")
def never_ends(n, precision, d, zero, p, schedule, m, microbatch_bytes, stage):
    while True:
        stage += 1


@fails("check_memory", None, "it returned None")
def forgets_a_case(n, precision, d, zero, p, schedule, m, microbatch_bytes, stage):
    return None if zero else (16 * n + m * microbatch_bytes) / p


# --- pipeline_seconds, all_reduce_seconds ---


def right_pipeline(p, m, f, b, hop):
    return (m + p - 1) * (f + b) + 2 * (p - 1) * hop


def right_ring(size, n, latency, bandwidth):
    return 2 * (n - 1) * (latency + size / n / bandwidth)


def times(name, code, *words, pipeline=right_pipeline, ring=right_ring):
    fails("check_times", code, *words, name=name, points=8.0)((pipeline, ring))


times("in_milliseconds", None, "right in milliseconds", pipeline=lambda *numbers: 1e3 * right_pipeline(*numbers))
times(
    "the_other_half_is_told",
    "P108",
    "`all_reduce_seconds` agrees",
    pipeline=lambda p, m, f, b, hop: (m + p - 1) * (f + b),
)
times("no_bubble", "P107", "4 stages, 1 micro-batch", pipeline=lambda p, m, f, b, hop: m * (f + b) + 2 * (p - 1) * hop)
times("naive", "P107", "`pipeline_seconds`", pipeline=lambda p, m, f, b, hop: m * p * (f + b) + 2 * (p - 1) * hop)
times("one_slot_too_many", "P107", pipeline=lambda p, m, f, b, hop: (m + p) * (f + b) + 2 * (p - 1) * hop)
times("messages_forgotten", "P108", pipeline=lambda p, m, f, b, hop: (m + p - 1) * (f + b))
times("messages_one_way", "P108", pipeline=lambda p, m, f, b, hop: (m + p - 1) * (f + b) + (p - 1) * hop)
times(
    "every_message_waits",
    "P108",
    pipeline=lambda p, m, f, b, hop: (m + p - 1) * (f + b + 2 * hop) - 2 * m * hop * (p < 2),
)
times("whole_tensor_once", "P109", "`all_reduce_seconds`", ring=lambda size, n, latency, bw: latency + size / bw)
times("all_to_all", "P109", ring=lambda size, n, latency, bw: (n - 1) * (latency + size / bw))
times("half_a_ring", "P109", ring=lambda size, n, latency, bw: (n - 1) * (latency + size / n / bw))
times("latency_once", "P110", ring=lambda size, n, latency, bw: latency + 2 * (n - 1) / n * size / bw)
times("latency_forgotten", "P110", ring=lambda size, n, latency, bw: 2 * (n - 1) / n * size / bw)

# --- claims ---


def claims(name, code, number, letter, *words):
    answers = [None] * 5
    answers[number - 1] = letter
    fails("check_claims", code, *words, name=name)(tuple(answers))


claims("averages_outputs", "P111", 1, "a", "0 collectives in the forward")
claims("reduces_each_microbatch", "P111", 1, "b", "8 micro-batches", "1 all-reduce")
claims("exchanges_nothing", "P111", 1, "d", "1.5 times the bytes")
claims("a_quarter_of_the_time", "P112", 2, "a", "160 ms on one device", "163 ms on four")
claims("nothing_gained", "P112", 2, "c", "6 micro-batches a second", "25")
claims("once_it_is_full", "P112", 2, "d", "163 ms")
claims("more_stages", "P113", 3, "a", "104 GB, 56 GB, and 32 GB", "20 GB")
claims("small_microbatches", "P113", 3, "b", "1, 4, and 8 micro-batches")
claims("replicas_share_a_layer", "P113", 3, "c", "1, 2, and 4 replicas")
claims("less_held_less_idle", "F40", 4, "b", "9 units")
claims("begins_earlier", "F40", 4, "c", "9 units")
claims("1f1b_is_longer", "P117", 4, "d", "9 units")
claims("bubble_to_zero", "G28", 5, "a", "266 ms with 16", "335 ms with 64")
claims("as_long_as_it_fits", "G28", 5, "b", "335 ms with 64")
claims("bubble_grows", "G28", 5, "c", "4 % with 64")
claims("a_word_for_a_letter", None, 4, "true", "must be one of 'a', 'b', 'c', 'd'")

# --- hybrid_seconds ---


def hybrid(name, code, *words, times=lambda m, p: 1, share=lambda p: p, ring=lambda d, p: d, per=lambda d: d):
    def hybrid_seconds(batch, rows, d, p, forward, backward, gradient_bytes, latency, bandwidth):
        m = batch // (per(d) * rows)
        stage = (forward + backward) * rows / p
        reduce = all_reduce_seconds(gradient_bytes / share(p), ring(d, p), latency, bandwidth)
        return pipeline_seconds(p, m, stage, 0.0, 0.0) + times(m, p) * reduce

    fails("check_hybrid_seconds", code, *words, name=name)(hybrid_seconds)


hybrid("for_each_microbatch", "P114", "2 replicas", times=lambda m, p: m)
hybrid("lost", "P115", times=lambda m, p: 0)
hybrid("a_part_for_each_microbatch", "P115", times=lambda m, p: 1 / m)
hybrid("a_part_in_every_turn", None, "4 stages", times=lambda m, p: (m + p - 1) / m)
hybrid("of_all_gradients", "P116", "4 stages", share=lambda p: 1)
hybrid("among_all_devices", "P116", ring=lambda d, p: d * p if d > 1 else 1)


@fails("check_hybrid_seconds", None, "2 replicas of 1 stage")
def every_replica_has_the_whole_batch(batch, rows, d, p, forward, backward, gradient_bytes, latency, bandwidth):
    m = batch // (d * rows)
    stage = d * (forward + backward) * rows / p
    return pipeline_seconds(p, m, stage, 0.0, 0.0) + all_reduce_seconds(gradient_bytes / p, d, latency, bandwidth)


@fails("check_hybrid_seconds", None, "1 replica of")
def bubble_lost(batch, rows, d, p, forward, backward, gradient_bytes, latency, bandwidth):
    m = batch // (d * rows)
    return m * (forward + backward) * rows / p + all_reduce_seconds(gradient_bytes / p, d, latency, bandwidth)


# --- plans ---


def plan(replicas, stages, microbatches, schedule="1F1B", **others):
    return {"replicas": replicas, "stages": stages, "microbatches": microbatches, "schedule": schedule, **others}


def home(name, code, *words, **entries):
    fails("check_home", code, *words, name=f"home_{name}")((entries["plan"], None))


def server(name, code, *words, **entries):
    fails("check_server", code, *words, name=f"server_{name}")(entries["plan"])


def cluster(name, code, *words, **entries):
    fails("check_cluster", code, *words, name=f"cluster_{name}")({"in_a_node": "stages"} | entries["plan"])


home("too_many_devices", "P130", "are 4 devices; there are 2", plan=plan(2, 2, 8))
home("batch_not_divided", "P130", "64 samples cannot be divided", plan=plan(1, 2, 12))
server("more_pieces_than_layers", "P130", "32 devices", plan=plan(1, 32, 8))
server("zero_bubble_recomputed", "P130", "ZB-H1", plan=plan(4, 2, 8, "ZB-H1", recompute=True))
cluster("interleaved_alone", "P130", "at least 2 stages", plan=plan(32, 1, 8, "interleaved"))
cluster("too_few_layers", "P130", "64 pieces", "40 layers", plan=plan(1, 32, 8, "interleaved"))
cluster("replicas_of_everything", "P131", "does not fit", "201 GB", plan=plan(32, 1, 8, zero=False))
home("gpipe", "P132", "does not fit", "8 GB", plan=plan(1, 2, 8, "GPipe"))
server("nothing_recomputed", "P132", "does not fit", plan=plan(1, 8, 32))
home("one_card_idle", "P133", "1 of 2 devices", plan=plan(1, 1, 16))
server("half_of_it", "P133", "4 of 8 devices", plan=plan(1, 4, 32, recompute=True))
server(
    "few_microbatches", "P134", "it waits for its neighbours", plan=plan(1, 8, 8, "GPipe", recompute=True, zero=False)
)
cluster("few_microbatches", "P134", plan=plan(8, 4, 8, "1F1B", zero=True, in_a_node="replicas"))
home("tiny_microbatches", "G28", "times as long", plan=plan(1, 2, 64))
cluster("waits_for_slow_messages", "P135", plan=plan(4, 8, 32, "1F1B", in_a_node="replicas"))
home("recomputes_for_nothing", "P136", plan=plan(1, 2, 8, "interleaved", recompute=True))
home("recomputes_for_gpipe", "P136", plan=plan(1, 2, 16, "GPipe", recompute=True))
home("replicas_on_a_slow_link", "P137", "an all-reduce takes 1.21 s", plan=plan(2, 1, 8))
cluster("too_many_stages", "P137", plan=plan(2, 16, 64, "ZB-H1", in_a_node="replicas"))
cluster("gradients_travel_far", "P138", plan=plan(4, 8, 64, "ZB-H1", in_a_node="stages"))
home("entry_of_its_own", None, "A plan has no 'micro_batches'", plan={"replicas": 1, "stages": 2, "micro_batches": 8})
home("a_half_stage", None, "whole number of at least 1", plan=plan(1, 1.5, 8))
home("yes_for_true", None, "True or False", plan=plan(1, 2, 8, recompute="yes"))
home("schedule_of_another_name", None, "is one of 'GPipe', '1F1B'", plan=plan(1, 2, 8, "gpipe"))
server("a_list", None, "not a dictionary", plan=[4, 2, 8])
