"""Actions, schedules, their grids and their CSV, torch's reader included."""

from __future__ import annotations

import copy
import csv
import pickle
import subprocess
import sys
import types
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppkit.builders import gpipe, naive, one_f_one_b
from ppkit.errors import ScheduleError
from ppkit.schedule import Action, Op, Schedule
from ppkit.simulate import simulate


def rows(text: str) -> list[str]:
    """A grid written in a test, as one text for each rank."""
    return [line.strip() for line in text.strip().splitlines()]


# Two chunks on each of two ranks, in a V: rank 0 has stages 0 and 3.
V = Schedule(
    "V",
    2,
    4,
    2,
    rows("""
        0F0 0F1  .  3F0 3B0 3F1 3B1 0B0  .  0B1  .   .   .
         .  1F0 2F0 1F1 2F1 2I0 1I0 2I1 1I1 2W0 2W1 1W0 1W1
    """),
    (0, 1, 1, 0),
)


# Op and Action


@given(st.integers(0, 300), st.sampled_from([op for op in Op if op is not Op.REDUCE]), st.integers(0, 300))
def test_action_text_round_trip(stage: int, op: Op, microbatch: int) -> None:
    action = Action(stage, op, microbatch)
    assert str(action) == f"{stage}{op.value}{microbatch}"
    assert Action.parse(str(action)) == action
    assert Action.parse(f" {action}\t") == action


def test_reduce_has_no_microbatch_and_both_names() -> None:
    assert str(Action(3, Op.REDUCE)) == "3REDUCE"
    assert Action.parse("3REDUCE") == Action.parse("3REDUCE_GRAD") == Action(3, Op.REDUCE)


@pytest.mark.parametrize(
    "text",
    ["", "F", "2F", "F0", "2G0", "2f0", "2F0x", "2F-1", "-2F0", "2F 0", "2.0F0", "²F0", "0REDUCE1", "2SEND0", None, 3],
)
def test_what_is_no_action(text: Any) -> None:
    with pytest.raises(ScheduleError) as caught:
        Action.parse(text)
    message = str(caught.value)
    assert message.startswith(f"{text!r} is no action")
    assert "such as 2F0" in message
    assert "F, B, I, W, SEND_F, RECV_F, SEND_B, RECV_B, REDUCE" in message
    assert ("capital letters" in message) == (text == "2f0")


@pytest.mark.parametrize(
    ("stage", "op", "microbatch", "says"),
    [
        (-1, Op.F, 0, "stage -1"),
        (1.0, Op.F, 0, "stage 1.0"),
        (True, Op.F, 0, "stage True"),
        (0, Op.F, -1, "micro-batch -1"),
        (0, Op.F, None, "micro-batch None of F"),
        (0, Op.F, "0", "micro-batch '0'"),
        (0, "F", 0, "'F' is no Op"),
        (0, Op.REDUCE, 1, "leave out micro-batch 1"),
        (-1, Op.REDUCE, None, "stage -1"),
    ],
)
def test_wrong_parts_of_an_action(stage: Any, op: Any, microbatch: Any, says: str) -> None:
    with pytest.raises(ScheduleError, match=says):
        Action(stage, op, microbatch)


def test_kinds_of_op() -> None:
    names = {
        prop: {op.name for op in Op if getattr(op, prop)}
        for prop in ("is_compute", "is_comm", "is_send", "is_recv", "is_forward", "is_backward")
    }
    assert names == {
        "is_compute": {"F", "B", "I", "W"},
        "is_comm": {"SEND_F", "RECV_F", "SEND_B", "RECV_B", "REDUCE"},
        "is_send": {"SEND_F", "SEND_B"},
        "is_recv": {"RECV_F", "RECV_B"},
        "is_forward": {"F", "SEND_F", "RECV_F"},
        "is_backward": {"B", "I", "W", "SEND_B", "RECV_B"},
    }


# Schedule


def test_a_learners_lists_of_texts() -> None:
    expected = one_f_one_b(2, 2)
    for actions in (
        [["0F0", "0F1", "0B0", "0B1"], ["1F0", "1B0", "1F1", "1B1"]],
        (["0F0", " 0F1 ", None, "", "0B0", ".", "0B1"], [Action(1, Op.F, 0), "1B0", "1F1", "1B1"]),
        ["0F0 0F1 . 0B0 . 0B1", ". 1F0 1B0 1F1 1B1 ."],
    ):
        mine = Schedule("1F1B", 2, 2, 2, actions)  # type: ignore[arg-type]  # converted
        assert mine == expected
        assert hash(mine) == hash(expected)
        assert mine.validate() is mine


def test_immutable_and_copied() -> None:
    row = [Action(0, Op.F, 0)]
    schedule = Schedule("s", 1, 1, 1, [row])  # type: ignore[arg-type]
    row.append(Action(0, Op.B, 0))
    assert schedule.actions == ((Action(0, Op.F, 0),),)
    with pytest.raises(AttributeError):
        schedule.name = "other"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(V)) == V == copy.deepcopy(V)


@pytest.mark.parametrize(("stages", "ranks", "expected"), [(4, 4, (0, 1, 2, 3)), (4, 2, (0, 1, 0, 1)), (2, 3, (0, 1))])
def test_default_placement(stages: int, ranks: int, expected: tuple[int, ...]) -> None:
    assert Schedule("s", ranks, stages, 1, [[]] * ranks).stage_to_rank == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_ranks": 0}, "n_ranks must be a whole number, 1 or more; got 0"),
        ({"n_stages": 2.5}, "n_stages must be a whole number, 1 or more; got 2.5"),
        ({"n_microbatches": True}, "n_microbatches must be a whole number, 1 or more; got True"),
        ({"n_ranks": 3}, "each of the 3 ranks; got 2 rows"),
        ({"actions": [["0F0", "0B0"]]}, "each of the 2 ranks; got 1 row$"),
        ({"forward_only": "no"}, "forward_only must be True or False; got 'no'"),
        ({"actions": "0F0"}, "each of the 2 ranks; got '0F0'"),
        ({"actions": None}, "each of the 2 ranks; got None"),
        ({"actions": [["0F0", "0B0"], ["1F0", "1Q0"]]}, "rank 1, position 1: '1Q0' is no action"),
        ({"actions": [["0F0", "0B0"], ["1F0", 7]]}, "rank 1, position 1: 7 is no action"),
        ({"actions": [["0F0", "0B0"], 7]}, "rank 1 must be a list; got 7"),
        ({"stage_to_rank": (0,)}, "a rank from 0 to 1 for each of the 2 stages; got \\(0,\\)"),
        ({"stage_to_rank": (0, 2)}, "got \\(0, 2\\)"),
        ({"stage_to_rank": (0, "1")}, "got \\(0, '1'\\)"),
        ({"stage_to_rank": 1}, "got 1"),
    ],
)
def test_wrong_sizes(change: dict[str, Any], says: str) -> None:
    good: dict[str, Any] = {
        "name": "s",
        "n_ranks": 2,
        "n_stages": 2,
        "n_microbatches": 1,
        "actions": [["0F0", "0B0"], ["1F0", "1B0"]],
    }
    Schedule(**good)
    with pytest.raises(ScheduleError, match=says):
        Schedule(**(good | change))


def test_display() -> None:
    schedule = gpipe(2, 1)
    assert repr(schedule) == "<Schedule 'GPipe': n_ranks=2, n_stages=2, n_microbatches=1, 4 actions>"
    text = "GPipe: 2 stages on 2 ranks, 1 micro-batch\nrank 0  0F0 .   .   0B0\nrank 1  .   1F0 1B0 ."
    assert str(schedule) == text
    assert schedule._repr_mimebundle_() == {"text/plain": text}


# Grids


def test_grid_shows_every_action_at_its_tick() -> None:
    assert V.grid().splitlines() == [
        "rank 0  0F0 0F1 .   3F0 3B0 3F1 3B1 0B0 .   0B1 .   .   .",
        "rank 1  .   1F0 2F0 1F1 2F1 2I0 1I0 2I1 1I1 2W0 2W1 1W0 1W1",
    ]
    assert [[str(cell or ".") for cell in row] for row in V.ticks()] == [
        line.split()[2:] for line in V.grid().splitlines()
    ]


def test_grid_aligns_wide_numbers() -> None:
    schedule = one_f_one_b(11, 11)
    lines = schedule.grid().splitlines()
    width = max(map(len, lines))
    blank = [at for at in range(width) if all(line[at : at + 1] in (" ", "") for line in lines)]
    edges = [at for at in blank if at + 1 not in blank and at >= len("rank 10")] + [width]
    assert len(edges) - 1 == len(schedule.ticks()[0]), "blank columns separate the ticks"
    for line, row in zip(lines, schedule.ticks(), strict=True):
        cells = [line[left:right].strip() for left, right in pairwise(edges)]
        assert cells == ["." if cell is None else str(cell) for cell in row]


def test_grid_of_what_never_runs_is_still_drawn() -> None:
    both_wait = Schedule("s", 2, 2, 1, ["0B0 0F0", "1F0 1B0"])  # type: ignore[arg-type]
    assert both_wait.grid().splitlines() == ["rank 0  0B0 0F0", "rank 1  1F0 1B0"]
    assert Schedule("s", 2, 1, 1, [[], []]).grid().splitlines() == ["rank 0", "rank 1"]  # type: ignore[arg-type]


# Messages


def test_with_comms() -> None:
    assert [" ".join(map(str, row)) for row in one_f_one_b(2, 2).with_comms().actions] == rows("""
        0F0 0SEND_F0 0F1 0SEND_F1 0RECV_B0 0B0 0RECV_B1 0B1
        1RECV_F0 1F0 1B0 1SEND_B0 1RECV_F1 1F1 1B1 1SEND_B1
    """)


def test_with_comms_sends_nothing_within_a_rank() -> None:
    both = V.with_comms()
    assert [" ".join(map(str, row)) for row in both.actions] == rows("""
        0F0 0SEND_F0 0F1 0SEND_F1 3RECV_F0 3F0 3B0 3SEND_B0 3RECV_F1 3F1 3B1 3SEND_B1 0RECV_B0 0B0 0RECV_B1 0B1
        1RECV_F0 1F0 2F0 2SEND_F0 1RECV_F1 1F1 2F1 2SEND_F1 2RECV_B0 2I0 1I0 1SEND_B0 2RECV_B1 2I1 1I1 1SEND_B1 \
2W0 2W1 1W0 1W1
    """)
    assert both.validate() is both
    assert both.with_comms() is both
    assert both.compute_only() == V


def test_with_comms_receives_in_the_order_of_the_sender() -> None:
    # Rank 1 needs stage 1's input before stage 3's, which rank 0 sends the other way round.
    crossed = Schedule(
        "crossed",
        2,
        4,
        2,
        rows("""
            0F0 2F0 0F1 2B0 0B0 2F1 2B1 0B1
            1F0 1F1 3F0 3B0 1B0 3F1 3B1 1B1
        """),
    )
    both = crossed.with_comms().validate()
    assert [str(a) for a in both.actions[1] if a.op.is_recv][:3] == ["1RECV_F0", "3RECV_F0", "1RECV_F1"]
    assert simulate(both).makespan == simulate(crossed).makespan


def test_with_comms_refuses_a_wrong_schedule() -> None:
    with pytest.raises(ScheduleError, match=r"1B0 .* is missing"):
        Schedule("s", 2, 2, 1, ["0F0 0B0", "1F0"]).with_comms()  # type: ignore[arg-type]


# CSV


@pytest.mark.parametrize("schedule", [naive(3, 2), gpipe(4, 2), one_f_one_b(4, 8), one_f_one_b(1, 1), V], ids=str)
def test_csv_round_trip(schedule: Schedule, tmp_path: Path) -> None:
    text = schedule.to_csv()
    assert Schedule.from_csv(text, name=schedule.name) == schedule
    file = tmp_path / "mine.csv"
    file.write_text(text)
    assert Schedule.from_csv(file).name == "mine"
    assert Schedule.from_csv(str(file)).actions == schedule.actions
    with_messages = Schedule.from_csv(schedule.to_csv(comms=True), schedule.name)
    assert with_messages == schedule.with_comms()
    assert schedule.with_comms().to_csv() == text


def test_csv_text() -> None:
    assert one_f_one_b(2, 2).to_csv() == "0F0,0F1,,0B0,,0B1\n,1F0,1B0,1F1,1B1,\n"
    reduced = Schedule("s", 1, 1, 1, ["0F0 0B0 0REDUCE"])  # type: ignore[arg-type]
    assert reduced.to_csv() == "0F0,0B0\n", "torch adds the reduction itself"
    assert reduced.to_csv(comms=True) == "0F0,0B0,0REDUCE_GRAD\n"
    assert Schedule.from_csv(reduced.to_csv(comms=True), "s") == reduced


@pytest.mark.parametrize(
    "text", ["0F0,0B0", "0F0,0B0\n\n \n", "\ufeff0F0,0B0\r\n", ' "0F0" , 0B0 ,,\n'.replace(" ", "")]
)
def test_csv_as_other_programs_write_it(text: str, tmp_path: Path) -> None:
    file = tmp_path / "it.csv"
    file.write_text(text, encoding="utf-8", newline="")
    assert Schedule.from_csv(file, "GPipe") == gpipe(1, 1)
    assert Schedule.from_csv(text, "GPipe") == gpipe(1, 1)


def test_csv_one_cell_is_text() -> None:
    assert Schedule.from_csv("0F0").actions == ((Action(0, Op.F, 0),),)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0F0,0B0\n1F0,1G0\n", r"line 2 of the CSV, column 2: '1G0' is no action: write stage, operation"),
        ("0F0,,0b0\n", r"line 1 of the CSV, column 3: '0b0' is no action: .* in capital letters"),
        ("0F0,.,0B0\n", r"line 1 of the CSV, column 2: '\.' is no action"),
        ("0" * 200_000 + "\n", r"this is no CSV of actions: field larger than field limit"),
        ("0F0;0B0\n", r"line 1 of the CSV, column 1: '0F0;0B0' is no action"),
        ("0F0,0B0\n\n1F0,1B0\n", r"line 2 of the CSV is empty"),
        ("", r"holds no action"),
        (",,\n", r"holds no action"),
        ("0F0,0B0\n2F0,2B0\n", r"has stage 2, but no action of stage 1"),
        ("0F0,0F2,0B0,0B2\n", r"has micro-batch 2, but no action of micro-batch 1"),
        ("99999999999F0,0F0\n", r"has stage 99999999999, but no action of stage 1"),
        ("nowhere.csv", r"cannot read a schedule from 'nowhere.csv': No such file"),
        ("0f0", r"cannot read a schedule from '0f0'"),
    ],
)
def test_wrong_csv(text: str, says: str) -> None:
    with pytest.raises(ScheduleError, match=says):
        Schedule.from_csv(text)


def test_wrong_csv_cell_is_in_the_error() -> None:
    with pytest.raises(ScheduleError) as caught:
        Schedule.from_csv("0F0,0B0\n1F0, 1G0\n")
    assert (caught.value.rank, caught.value.action) == (1, "1G0")
    assert caught.value.values == {"line": 2, "column": 2}


@pytest.mark.parametrize("source", [None, 3, ["0F0"]])
def test_csv_from_something_else(source: Any) -> None:
    with pytest.raises(ScheduleError, match="reads CSV text or the path of a file"):
        Schedule.from_csv(source)


def test_csv_places_a_stage_where_most_of_it_is() -> None:
    schedule = Schedule.from_csv("0F0,0F1,0B0,0B1\n1F0,1B0,1F1\n1B1\n")
    assert schedule.stage_to_rank == (0, 1)
    with pytest.raises(ScheduleError, match="1B1 is misplaced: stage 1 lives on rank 1, not on rank 2"):
        schedule.validate()


# torch reads what we write


def torch_runtime(schedule: Schedule) -> Any:
    schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    stage = types.SimpleNamespace(num_stages=schedule.n_stages, group_size=schedule.n_ranks, group_rank=0)
    return schedules._PipelineScheduleRuntime([stage], schedule.n_microbatches, loss_fn=lambda *_: None)


TORCH = [naive(2, 3), naive(4, 2), gpipe(2, 2), gpipe(4, 8), one_f_one_b(2, 5), one_f_one_b(4, 8), one_f_one_b(4, 2), V]


@pytest.mark.parametrize("schedule", TORCH, ids=repr)
def test_torch_reads_our_csv(schedule: Schedule, tmp_path: Path) -> None:
    runtime = torch_runtime(schedule)
    file = tmp_path / "schedule.csv"
    file.write_text(schedule.to_csv())
    runtime._load_csv(str(file), format="compute_only")
    for rank, row in enumerate(schedule.actions):
        theirs = [str(action) for action in runtime.pipeline_order[rank] if action is not None]
        assert theirs == [str(action) for action in row]
    assert runtime.stage_index_to_group_rank == dict(enumerate(schedule.stage_to_rank))
    # torch adds messages in an order of its own: the same ones, and our checks accept them.
    lowered = [[str(a) for a in actions] for _, actions in sorted(runtime.pipeline_order_with_comms.items())]
    kept = [[a for a in row if "SHARD" not in a and "REDUCE" not in a] for row in lowered]
    if schedule is not V:  # within a rank torch does not send either
        assert [sorted(row) for row in kept] == [sorted(map(str, row)) for row in schedule.with_comms().actions]
    theirs_as_ours = Schedule(
        "torch",
        schedule.n_ranks,
        schedule.n_stages,
        schedule.n_microbatches,
        kept,  # type: ignore[arg-type]
        schedule.stage_to_rank,
    )
    theirs_as_ours.validate()


@pytest.mark.parametrize("schedule", TORCH, ids=repr)
def test_torch_reads_our_messages(schedule: Schedule, tmp_path: Path) -> None:
    runtime = torch_runtime(schedule)
    file = tmp_path / "schedule.csv"
    file.write_text(schedule.to_csv(comms=True))
    runtime._load_csv(str(file), format="compute_comms")
    module = sys.modules[type(runtime).__module__]
    theirs = runtime.pipeline_order_with_comms
    assert [[str(a) for a in theirs[rank]] for rank in sorted(theirs)] == [
        [str(a) for a in row] for row in schedule.with_comms().actions
    ]
    module._simulate_comms_compute(theirs, lambda stage: schedule.stage_to_rank[stage], schedule.n_stages)  # type: ignore[attr-defined]


@pytest.mark.parametrize("schedule", TORCH, ids=repr)
def test_we_read_torchs_csv(schedule: Schedule, tmp_path: Path) -> None:
    schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    file = tmp_path / "theirs.csv"
    with open(file, "w", newline="") as out:
        for row in schedule.ticks():
            csv.writer(out).writerow([schedules._Action.from_str(str(cell)) if cell else "" for cell in row])
    assert Schedule.from_csv(file, schedule.name) == schedule


def test_torch_drawing_agrees_with_our_grid() -> None:
    schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    schedule = one_f_one_b(3, 4)
    order = {
        rank: [schedules._Action.from_str(str(cell)) if cell else None for cell in row]
        for rank, row in enumerate(schedule.ticks())
    }
    theirs = [line.split(":", 1)[1] for line in schedules._format_pipeline_order(order).splitlines()[1:]]
    ours = zip(*schedule.ticks(), strict=True)
    assert [line.split() for line in theirs] == [[str(cell) for cell in tick if cell] for tick in ours]


# Imports


def test_core_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "import ppkit.simulate, ppkit.builders, ppkit.validate, ppkit.pairing, ppkit.csv_text\n"
        "ppkit.builders.one_f_one_b(4, 8)\n"
        "heavy = {'torch', 'numpy', 'plotly', 'IPython'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# What learners hand over that is no list and no int


@pytest.mark.parametrize("wrap", [tuple, iter, numpy.array], ids=["tuple", "generator", "array"])
def test_rows_in_other_containers(wrap: Any) -> None:
    expected = Schedule("mine", 2, 2, 1, ["0F0 0B0", "1F0 1B0"])
    made = Schedule("mine", 2, 2, 1, wrap([wrap(["0F0", "0B0"]), wrap(["1F0", "1B0"])]), wrap([0, 1]))
    assert made == expected
    assert type(made.stage_to_rank[1]) is int


def test_numbers_of_numpy_in_an_action() -> None:
    for action in (Action(numpy.int64(2), Op.F, numpy.int32(1)), Action(2, Op.F, numpy.int64(1))):
        assert action == Action(2, Op.F, 1)
        assert str(action) == "2F1"
        assert type(action.microbatch) is int
    assert Action(numpy.int64(2), Op.REDUCE) == Action(2, Op.REDUCE)


@pytest.mark.parametrize("row", [{"0F0", "0B0"}, {"0F0": 1, "0B0": 2}, 5, numpy.array(5)])
def test_what_has_no_order_is_no_row(row: Any) -> None:
    with pytest.raises(ScheduleError, match="actions of rank 0 must be a list"):
        Schedule("mine", 1, 1, 1, [row])


def test_counts_too_large_for_memory_are_refused_at_once() -> None:
    with pytest.raises(ScheduleError, match="at most 4,000,000 stages times micro-batches"):
        Schedule("mine", 1, 10**12, 1, ["0F0 0B0"])
    with pytest.raises(ScheduleError, match="is no action"):
        Action.parse("9" * 5000 + "F0")


def test_a_name_is_text() -> None:
    with pytest.raises(ScheduleError, match="name of a schedule must be a text; got 5"):
        Schedule(5, 1, 1, 1, ["0F0 0B0"])  # type: ignore[arg-type]
