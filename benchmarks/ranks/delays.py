"""One rank of two is kept busy before each forward: who computed, who waited, and what is left."""

import statistics
from collections.abc import Mapping, Sequence

from ranks.served import SLOW_RANK, Answer, Client, Served, ask

DELAYS_S = (0.0, 0.005, 0.02)
TOKENS = 32

_UNMEASURED = 3
_EXPLAINED_S, _EXPLAINED_SHARE = 0.001, 0.02
# The rank, and what of it: the first two are what the delay should show as.
_COLUMNS = (
    (SLOW_RANK, "compute_s"),
    (0, "wait_s"),
    (SLOW_RANK, "wait_s"),
    (0, "compute_s"),
)


def slow_down(served: Served, rounds: int) -> dict[float, list[Answer]]:
    """Answers under each delay, in turns, so that a drift of the machine meets all alike."""
    answers: dict[float, list[Answer]] = {delay_s: [] for delay_s in DELAYS_S}
    with Client(served) as client:
        for _ in range(_UNMEASURED):
            ask(client, served, TOKENS)
        for _ in range(rounds):
            for delay_s in DELAYS_S:
                served.delay.write_text(str(delay_s))
                answers[delay_s].append(ask(client, served, TOKENS))
    served.delay.write_text("0")
    return answers


def delay_table(answers: Mapping[float, Sequence[Answer]]) -> list[str]:
    """What each delay added per step, in milliseconds, as a Markdown table.

    The waits of both ranks belong together: a rank that comes late anyway no longer waits for the other, so
    the delay is what one wait grew by and the other shrank by.
    """
    heads = [f"rank {rank}'s {kind.removesuffix('_s')}" for rank, kind in _COLUMNS]
    heads += [f"rank 0's wait and what rank {SLOW_RANK}'s shrank by"]
    lines = [
        f"| rank {SLOW_RANK} is kept busy for | {' grew by | '.join(heads[:4])} grew by | {heads[4]} |",
        f"|{'---|' * 6}",
    ]
    for delay_s in DELAYS_S[1:]:
        grown = [_growth(answers, delay_s, rank, kind) for rank, kind in _COLUMNS]
        both = [ours - theirs for ours, theirs in zip(grown[1], grown[2], strict=True)]
        wanted_ms = (delay_s * 1e3, delay_s * 1e3, None, None, delay_s * 1e3)
        cells = [_cell(found, wanted) for found, wanted in zip((*grown, both), wanted_ms, strict=True)]
        lines.append(f"| {delay_s * 1e3:g} ms | {' | '.join(cells)} |")
    n = len(answers[0.0])
    told = f"Milliseconds per engine step; {n} answers of at most {TOKENS} tokens under each delay, in turns"
    return [*lines, "", f"{told}; each is set against the one without a delay beside it."]


def _growth(answers: Mapping[float, Sequence[Answer]], delay_s: float, rank: int, kind: str) -> list[float]:
    pairs = zip(answers[delay_s], answers[0.0], strict=True)
    return [slow.per_step_ms(rank, kind) - plain.per_step_ms(rank, kind) for slow, plain in pairs]


def _cell(grown_ms: Sequence[float], wanted_ms: float | None) -> str:
    """The mean, its distance from what was wanted, and the spread."""
    mean_ms = statistics.fmean(grown_ms)
    off = "" if wanted_ms is None else f" ({mean_ms / wanted_ms - 1:+.1%})"
    return f"{mean_ms:.2f}{off}, sd {statistics.stdev(grown_ms):.2f}"


def sum_lines(served: Served) -> list[str]:
    """What the server counted of its engine steps."""
    state = served.get("/health")["models"][served.model]["shards"]
    lost = {name: state[name] for name in ("mismatched", "incomplete", "dropped", "unreadable")}
    told = ", ".join(f"{count} {name}" for name, count in lost.items())
    steps, ranks, broken = state["steps"], state["ranks"], state["broken_sums"]
    summed = f"compute + wait + comm = forward, to the nanosecond, on {steps} steps of {ranks} ranks"
    return [f"{summed}, but for {broken} records; {told}."]


def residual_lines(answers: Sequence[Answer]) -> list[str]:
    """What a client saw beyond the stages that the server accounts for, and on which side of them it lies."""
    kept = sum(
        abs(answer.unexplained_s) <= max(_EXPLAINED_S, _EXPLAINED_SHARE * answer.e2e_s) for answer in answers
    )
    shares = [abs(answer.unexplained_s) / answer.e2e_s for answer in answers]
    places = (
        ("all", [answer.unexplained_s for answer in answers]),
        ("on the way in", [answer.way_in_s for answer in answers]),
        ("within", [answer.record["shards"]["latency"]["residual_s"] for answer in answers]),
        ("on the way out", [answer.way_out_s for answer in answers]),
    )
    left = f"{statistics.median(shares):.2%}"
    told = f"Of the client's end-to-end time the stages leave {left} unexplained (median);"
    lines = [
        f"{told} {kept} of {len(answers)} answers are within 2 % or 1 ms.",
        "",
        "| unexplained, ms | median | 90th percentile | largest |",
        "|---|---|---|---|",
    ]
    for place, found_s in places:
        ordered_ms = sorted(value * 1e3 for value in found_s)
        p90_ms = ordered_ms[min(len(ordered_ms) - 1, int(0.9 * len(ordered_ms)))]
        lines.append(
            f"| {place} | {statistics.median(ordered_ms):.2f} | {p90_ms:.2f} | {ordered_ms[-1]:.2f} |"
        )
    return lines
