"""Every way for a schedule to be wrong is found, named, and marked in its grid."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppkit.builders import gpipe, naive, one_f_one_b
from ppkit.errors import ScheduleError
from ppkit.schedule import Action, Op, Schedule
from ppkit.simulate import simulate


def schedule(text: str, n_microbatches: int, stage_to_rank: tuple[int, ...] = ()) -> Schedule:
    """A schedule from its picture, as many stages as ranks unless their ranks are given."""
    rows = [line.strip() for line in text.strip().splitlines()]
    return Schedule(
        "mine",
        len(rows),
        len(stage_to_rank) or len(rows),
        n_microbatches,
        tuple(rows),  # type: ignore[arg-type]  # converted
        stage_to_rank,
    )


def refused(wrong: Schedule) -> ScheduleError:
    with pytest.raises(ScheduleError) as caught:
        wrong.validate()
    with pytest.raises(ScheduleError) as simulated:
        simulate(wrong)
    assert str(simulated.value) == str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), vars(again)) == (str(caught.value), vars(caught.value))
    return caught.value


def check(wrong: Schedule, says: str, grid: str, rank: int, stage: int, action: str) -> None:
    error = refused(wrong)
    message, _, drawn = str(error).partition("\n\n")
    assert message == f"mine: {says}"
    assert drawn.splitlines() == [line.strip() for line in grid.strip().splitlines()]
    assert (error.rank, error.stage, error.action) == (rank, stage, action)


# Contents


def test_repeated() -> None:
    check(
        schedule("0F0 0F1 0B0 0B1 0B0 \n 1F0 1B0 1F1 1B1", 2),
        "rank 0, position 4: 0B0 is repeated: position 2 has it already. Remove one",
        """
        rank 0  0F0 0F1 .   [0B0] .   0B1 [0B0]
        rank 1  .   1F0 1B0 1F1   1B1 .   .
        """,
        *(0, 0, "0B0"),
    )


def test_repeated_forward_which_torch_lets_pass() -> None:
    error = refused(schedule("0F0 0F0 0B0 \n 1F0 1B0", 1))
    assert "rank 0, position 1: 0F0 is repeated: position 0 has it already" in str(error)
    assert "rank 0  [0F0] [0F0]" in str(error)


@pytest.mark.parametrize(
    ("row", "says", "end"),
    [
        ("1F0 1B0 1F1", "1B1 (or 1I1 and 1W1) is missing", "[1B1] is missing"),
        ("1F0 1B0", "1F1 is missing", "[1F1] is missing"),
        ("1F0 1I0 1W0 1F1 1I1", "1W1 is missing", "[1W1] is missing"),
        ("", "1F0 is missing", "[1F0] is missing"),
    ],
)
def test_missing(row: str, says: str, end: str) -> None:
    wrong = Schedule("mine", 2, 2, 2, ("0F0 0F1 0B0 0B1", row))  # type: ignore[arg-type]
    error = refused(wrong)
    assert str(error).startswith(f"mine: {says}: rank 1 has stage 1, so it must run it\n\n")
    line = next(line for line in str(error).splitlines() if line.startswith("rank 1"))
    assert line.endswith(f"<- {end}")
    assert (error.rank, error.stage) == (1, 1)


def test_misplaced() -> None:
    check(
        schedule("0F0 0F1 1F0 0B0 0B1 \n 1B0 1F1 1B1", 2),
        "rank 0, position 2: 1F0 is misplaced: stage 1 lives on rank 1, not on rank 0",
        """
        rank 0  0F0 0F1 [1F0] 0B0 0B1
        rank 1  1B0 .   1F1   1B1 .
        """,
        *(0, 1, "1F0"),
    )


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ("2F0", "2F0 names stage 2; the stages are 0 to 1"),
        ("1F7", "1F7 names micro-batch 7; the micro-batches are 0 to 0"),
        ("9SEND_F0", "9SEND_F0 names stage 9; the stages are 0 to 1"),
        ("1RECV_F1", "1RECV_F1 names micro-batch 1; the micro-batches are 0 to 0"),
        ("7REDUCE", "7REDUCE names stage 7; the stages are 0 to 1"),
        ("0REDUCE", "0REDUCE is misplaced: stage 0 lives on rank 0, not on rank 1"),
    ],
)
def test_unknown(extra: str, says: str) -> None:
    error = refused(schedule(f"0F0 0B0 \n 1F0 1B0 {extra}", 1))
    assert f"mine: rank 1, position 2: {says}\n" in str(error)
    assert f"[{extra}]" in str(error)
    assert error.action == extra


def test_backward_before_forward() -> None:
    # Rank 0 never gets past 0B1, so the picture puts the rest right behind it.
    check(
        schedule("0F0 0B1 0F1 0B0 \n 1F0 1F1 1B0 1B1", 2),
        "rank 0, position 1: 0B1 runs before its forward, 0F1. Put the forward first",
        """
        rank 0  0F0 [0B1] 0F1 0B0 .
        rank 1  .   1F0   1F1 1B0 1B1
        """,
        *(0, 0, "0B1"),
    )


def test_weight_gradient_before_input_gradient() -> None:
    check(
        schedule("0F0 0B0 \n 1F0 1W0 1I0", 1),
        "rank 1, position 1: 1W0 runs before 1I0: the weight gradient needs what the input gradient leaves",
        """
        rank 0  0F0 .   .     .   0B0
        rank 1  .   1F0 [1W0] 1I0 .
        """,
        *(1, 1, "1W0"),
    )


@pytest.mark.parametrize(
    ("row", "first", "second"),
    [
        ("1F0 1B0 1W0", "1W0", "1B0"),
        ("1F0 1B0 1I0", "1I0", "1B0"),
        ("1F0 1I0 1B0 1W0", "1B0", "1I0"),
        ("1F0 1I0 1W0 1B0", "1B0", "1I0"),
    ],
)
def test_full_backward_together_with_its_halves(row: str, first: str, second: str) -> None:
    error = refused(schedule(f"0F0 0B0 \n {row}", 1))
    assert f"{first} and {second}: B is the full backward, I and W its halves" in str(error)
    assert f"[{first}]" in str(error)
    assert f"[{second}]" in str(error)


def test_halves_and_full_backward_of_different_microbatches_are_fine() -> None:
    schedule("0F0 0F1 0B0 0I1 0W1 \n 1F0 1I0 1F1 1B1 1W0", 2).validate()


def test_reduce() -> None:
    schedule("0F0 0F1 0B0 0B1 0REDUCE \n 1F0 1I0 1F1 1B1 1W0 1REDUCE", 2).validate()
    early = refused(schedule("0F0 0F1 0B0 0B1 \n 1F0 1I0 1F1 1B1 1REDUCE 1W0", 2))
    assert "rank 1, position 4: 1REDUCE runs before the last gradient of stage 1 and leaves it out" in str(early)
    assert "[1REDUCE]" in str(early)
    twice = refused(schedule("0F0 0B0 0REDUCE 0REDUCE", 1))
    assert "rank 0, position 3: 0REDUCE is repeated: reduced twice" in str(twice)


# Waiting


def test_a_circle_of_two() -> None:
    check(
        schedule("0F0 0B0 0F1 0B1 \n 1F0 1F1 1B0 1B1", 2),
        "a deadlock: no rank in this circle can go on.\n"
        "  rank 0 waits at 0B0 for 1B0, which rank 1 has after 1F1\n"
        "  rank 1 waits at 1F1 for 0F1, which rank 0 has after 0B0\n"
        "Change the order on one of them, so that what another waits for comes first.",
        """
        rank 0  0F0 [0B0] 0F1   0B1 .
        rank 1  .   1F0   [1F1] 1B0 1B1
        """,
        *(0, 0, "0B0"),
    )


def test_a_circle_of_three() -> None:
    check(
        schedule(
            """
            0F0 3F0 0F1 3F1 3B0 3B1 0B0 0B1
            1F1 1F0 1B0 1B1
            2F0 2F1 2B0 2B1
            """,
            2,
            (0, 1, 2, 0),
        ),
        "a deadlock: no rank in this circle can go on.\n"
        "  rank 0 waits at 3F0 for 2F0, where rank 2 itself waits\n"
        "  rank 2 waits at 2F0 for 1F0, which rank 1 has after 1F1\n"
        "  rank 1 waits at 1F1 for 0F1, which rank 0 has after 3F0\n"
        "Change the order on one of them, so that what another waits for comes first.",
        """
        rank 0  0F0   [3F0] 0F1 3F1 3B0 3B1 0B0 0B1
        rank 1  [1F1] 1F0   1B0 1B1 .   .   .   .
        rank 2  [2F0] 2F1   2B0 2B1 .   .   .   .
        """,
        *(0, 3, "3F0"),
    )


def test_the_circle_alone_is_named_not_who_waits_for_it() -> None:
    # Ranks 1 and 2 wait for each other; rank 0 waits for rank 1.
    error = refused(
        schedule(
            """
            0F0 0B0 0F1 0B1
            1F0 1B0 1F1 1B1
            2F0 2F1 2B0 2B1
            """,
            2,
        )
    )
    assert str(error).splitlines()[1:4] == [
        "  rank 1 waits at 1B0 for 2B0, which rank 2 has after 2F1",
        "  rank 2 waits at 2F1 for 1F1, which rank 1 has after 1B0",
        "Change the order on one of them, so that what another waits for comes first.",
    ]


def test_a_rank_that_waits_for_itself() -> None:
    check(
        schedule("1F0 0F0 1B0 0B0", 1, (0, 0)),
        "a deadlock: no rank in this circle can go on.\n"
        "  rank 0 waits at 1F0 for 0F0, which rank 0 has after 1F0\n"
        "Change the order on one of them, so that what another waits for comes first.",
        "rank 0  [1F0] 0F0 1B0 0B0",
        *(0, 1, "1F0"),
    )


def test_receives_that_wait_for_each_other() -> None:
    check(
        schedule(
            """
            0F0 0SEND_F0 0RECV_B0 0F1 0SEND_F1 0B0 0RECV_B1 0B1
            1RECV_F0 1F0 1B0 1RECV_F1 1SEND_B0 1F1 1B1 1SEND_B1
            """,
            2,
        ),
        "a deadlock: no rank in this circle can go on.\n"
        "  rank 0 waits at 0RECV_B0 for 1SEND_B0, which rank 1 has after 1RECV_F1\n"
        "  rank 1 waits at 1RECV_F1 for 0SEND_F1, which rank 0 has after 0RECV_B0\n"
        "Change the order on one of them, so that what another waits for comes first.",
        """
        rank 0  0F0 0SEND_F0 [0RECV_B0] 0F1 0SEND_F1 0B0        0RECV_B1 0B1 .   .
        rank 1  .   .        1RECV_F0   1F0 1B0      [1RECV_F1] 1SEND_B0 1F1 1B1 1SEND_B1
        """,
        *(0, 0, "0RECV_B0"),
    )


def test_sends_that_meet_do_not_block() -> None:
    # In 1F1B's steady state both ranks send first: with blocking sends this would hang.
    steady = one_f_one_b(2, 4).with_comms()
    assert steady.validate() is steady


# Messages


GOOD = """
    0F0 0SEND_F0 0F1 0SEND_F1 0RECV_B0 0B0 0RECV_B1 0B1
    1RECV_F0 1F0 1B0 1SEND_B0 1RECV_F1 1F1 1B1 1SEND_B1
"""


@pytest.mark.parametrize(
    ("old", "new", "says", "marked"),
    [
        (
            "0F1 0SEND_F1",
            "0F1",
            "rank 0, position 2: 0F1 makes what 1RECV_F1 on rank 1 waits for, but no 0SEND_F1 sends it. Add it after",
            ["0F1", "1RECV_F1"],
        ),
        (
            "1B0 1SEND_B0 1RECV_F1",
            "1B0 1RECV_F1",
            "rank 1, position 2: 1B0 makes what 0RECV_B0 on rank 0 waits for, but no 1SEND_B0 sends it. Add it after",
            ["0RECV_B0", "1B0"],
        ),
        (
            "1RECV_F1 1F1",
            "1F1",
            "rank 1, position 4: 1F1 needs what rank 0 sends (0SEND_F1), but no 1RECV_F1 receives it. Add it before",
            ["0SEND_F1", "1F1"],
        ),
        (
            "0RECV_B1 0B1",
            "0B1",
            "rank 0, position 6: 0B1 needs what rank 1 sends (1SEND_B1), but no 0RECV_B1 receives it. Add it before",
            ["0B1", "1SEND_B1"],
        ),
        (
            "0RECV_B1 0B1",
            "0B1 0RECV_B1",
            "rank 0, position 6: 0B1 needs 0RECV_B1, which comes only after it. Put the receive first",
            ["0B1", "0RECV_B1"],
        ),
        (
            "0F1 0SEND_F1",
            "0SEND_F1 0F1",
            "rank 0, position 2: 0SEND_F1 sends what has not been computed yet. Put it later",
            ["0SEND_F1"],
        ),
        (
            "1B1 1SEND_B1",
            "1B1 1SEND_B1 1SEND_B1",
            "rank 1, position 8: 1SEND_B1 is repeated: position 7 has it already, and the message exists once. "
            "Remove one",
            ["1SEND_B1", "1SEND_B1"],
        ),
        (
            "1RECV_F0",
            "1RECV_F0 1RECV_F0",
            "rank 1, position 1: 1RECV_F0 is repeated: position 0 has it already, and the message exists once. "
            "Remove one",
            ["1RECV_F0", "1RECV_F0"],
        ),
        (
            "1F1",
            "1F1 1SEND_F1",
            "rank 1, position 6: 1SEND_F1 has nobody at its other end: stage 1 is the last. Remove it",
            ["1SEND_F1"],
        ),
        (
            "0F0",
            "0RECV_F0 0F0",
            "rank 0, position 0: 0RECV_F0 has nobody at its other end: stage 0 is the first. Remove it",
            ["0RECV_F0"],
        ),
        (
            "1F0",
            "1F0 0SEND_F0",
            "rank 1, position 2: 0SEND_F0 is misplaced: stage 0 lives on rank 0, not on rank 1",
            ["0SEND_F0"],
        ),
        (
            "0F0 0SEND_F0 0F1 0SEND_F1",
            "0F0 0F1 0SEND_F1 0SEND_F0",
            "message 0 from rank 0 to rank 1: rank 0 sends 0SEND_F1, but rank 1 receives 1RECV_F0. Messages "
            "between two ranks pair in order, so these would swap. Send and receive in the same order",
            ["0SEND_F1", "1RECV_F0"],
        ),
        (
            "1B1 1SEND_B1",
            "1B1 1SEND_B1",
            "",
            [],
        ),
        (
            "0RECV_B0 0B0 0RECV_B1 0B1",
            "0RECV_B1 0RECV_B0 0B0 0B1",
            "message 0 from rank 1 to rank 0: rank 1 sends 1SEND_B0, but rank 0 receives 0RECV_B1. Messages "
            "between two ranks pair in order, so these would swap. Send and receive in the same order",
            ["0RECV_B1", "1SEND_B0"],
        ),
    ],
)
def test_messages(old: str, new: str, says: str, marked: list[str]) -> None:
    assert GOOD.count(old) == 1
    wrong = schedule(GOOD.replace(old, new), 2)
    if not says:
        wrong.validate()
        return
    error = refused(wrong)
    message, _, grid = str(error).partition("\n\n")
    assert message == f"mine: {says}"
    assert sorted(cell.strip("[]") for cell in grid.split() if cell.startswith("[")) == sorted(marked)


def test_a_message_that_nobody_sends_or_receives() -> None:
    error = refused(schedule(GOOD.replace(" 0SEND_F1", "").replace(" 1RECV_F1", ""), 2))
    assert "0F1 makes what rank 1 waits for, but no 0SEND_F1 sends it" in str(error)
    first = refused(schedule("0F0 0SEND_F0 0B0 \n 1RECV_F0 1F0 1B0", 1))
    assert "0B0 needs a value from rank 1, but there is neither 1SEND_B0 nor 0RECV_B0. Add both" in str(first)


def test_no_message_within_a_rank() -> None:
    error = refused(schedule("0F0 0SEND_F0 1RECV_F0 1F0 1B0 0B0", 1, (0, 0)))
    assert "0SEND_F0 is not a message: stages 0 and 1 are both on rank 0. Remove it" in str(error)


def test_activations_and_gradients_share_a_link() -> None:
    # Rank 0 has stages 0 and 2, so it sends rank 1 both activations and gradients.
    looped = schedule(
        """
        0F0 0F1 2F0 2B0 2F1 2B1 0B0 0B1
        1F0 1F1 1B0 1B1
        """,
        2,
        (0, 1, 0),
    )
    both = looped.with_comms().validate()
    swapped = [[str(a) for a in row] for row in both.actions]
    one, two = (swapped[1].index(text) for text in ("1RECV_F1", "1RECV_B0"))
    assert one < two
    early = [a for a in swapped[0] if a != "0SEND_F1"]
    early.insert(early.index("2SEND_B0") + 1, "0SEND_F1")
    wrong = Schedule("mine", 2, 3, 2, (early, swapped[1]), (0, 1, 0))  # type: ignore[arg-type]
    error = refused(wrong)
    assert "rank 0 sends 2SEND_B0, but rank 1 receives 1RECV_F1" in str(error)


# Anything at all


def runs(order: Schedule) -> bool:
    """Whether ranks that do their next action when they can, in any order, get to the end: an own, slow check."""
    rows = [[str(action) for action in row] for row in order.actions]
    comms = "SEND" in "".join(map("".join, rows))
    links: dict[tuple[int, int], list[str]] = {}
    done: set[str] = set()

    def goes(action: Action, rank: int) -> bool:
        s, m, last = action.stage, action.microbatch, order.n_stages - 1
        if action.op is Op.F:
            before = f"{s}RECV_F{m}" if comms else f"{s - 1}F{m}"
            return s == 0 or before in done
        if action.op is Op.B:
            before = f"{s}RECV_B{m}" if comms else f"{s + 1}B{m}"
            return f"{s}F{m}" in done and (s == last or before in done)
        kind, peer = action.op.value[-1], s + (1 if action.op in (Op.SEND_F, Op.RECV_B) else -1)
        if action.op.is_send:
            if f"{s}{kind}{m}" in done:
                links.setdefault((rank, peer), []).append(f"{kind}{m}")
                return True
            return False
        waiting = links.get((peer, rank), [])
        if waiting[:1] == [f"{kind}{m}"]:
            waiting.pop(0)
            return True
        return False

    at = [0] * len(rows)
    moved = True
    while moved:
        moved = False
        for rank, row in enumerate(order.actions):
            while at[rank] < len(row) and goes(row[at[rank]], rank):
                done.add(rows[rank][at[rank]])
                at[rank] += 1
                moved = True
    return at == [len(row) for row in rows]


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_valid_schedule_with_one_change_is_refused_or_still_right(data: st.DataObject) -> None:
    build = data.draw(st.sampled_from([naive, gpipe, one_f_one_b]))
    good = build(data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4)))
    if data.draw(st.booleans()):
        good = good.with_comms()
    rows = [list(row) for row in good.actions]
    row = data.draw(st.sampled_from(rows))
    at = data.draw(st.integers(0, len(row) - 1))
    change = data.draw(st.sampled_from(["drop", "repeat", "swap", "rename"]))
    if change == "drop":
        del row[at]
    elif change == "repeat":
        row.insert(data.draw(st.integers(0, len(row))), row[at])
    elif change == "swap":
        other = data.draw(st.integers(0, len(row) - 1))
        row[at], row[other] = row[other], row[at]
    else:
        row[at] = Action(data.draw(st.integers(0, 5)), data.draw(st.sampled_from(list(Op)[:8])), 0)
    same = sorted(str(a) for r in rows for a in r) == sorted(str(a) for r in good.actions for a in r)
    changed = Schedule("mine", good.n_ranks, good.n_stages, good.n_microbatches, tuple(map(tuple, rows)))
    if same and runs(changed):
        assert changed.validate() is changed
    else:
        assert "[" in str(refused(changed)), "a cell is marked"


def test_a_big_grid_is_cut_around_its_mark() -> None:
    rows = [list(row) for row in one_f_one_b(32, 64).actions]
    lost = rows[20].pop(50)
    error = refused(Schedule("mine", 32, 32, 64, tuple(map(tuple, rows))))
    lines = str(error).partition("\n\n")[2].splitlines()
    assert str(lost) == error.action
    assert len(lines) <= 14
    assert max(map(len, lines)) < 130
    row = next(line for line in lines if line.startswith("rank 20"))
    assert row.startswith("rank 20  … ")
    assert row.endswith(f" …  <- [{lost}] is missing")
    assert f"20F{lost.microbatch} " in row, "shown around its own forward"


def test_a_giant_count_is_a_missing_action_at_once() -> None:
    error = refused(Schedule("mine", 1, 1, 10**15, ("0F0 0B0",)))  # type: ignore[arg-type]
    assert "0F1 is missing" in str(error)
