# torch leaves some of its types open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The column solve of GPTQ: each column is rounded and its error passed on to the columns after it.

Shapes: C input columns, O outputs. The weights are worked on transposed, [C, O], so that a column is
contiguous; linears that share their input are solved together, side by side in O.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from decant.errors import QuantizeError
from decant_quant.methods.gptq.grid import Grid, GridSpec, search_grid

if TYPE_CHECKING:
    from torch import Tensor

# Below this many columns updates are rank one, above it they are matrix products.
_FEW_COLUMNS = 8
# A triangle of this many columns is inverted by one call.
_INVERTED_WHOLE = 256
_MOST_DAMPING = 1.0


@dataclass(frozen=True, slots=True)
class Solved:
    """Codes [C, O] (uint8) in the columns' own order, and the grid's scales and zeros [groups, O] (float32).

    `damping` is what the factorisation needed.
    """

    codes: "Tensor"
    grid: Grid
    damping: float


@dataclass(frozen=True, slots=True)
class SolveSpec:
    """The grid, how many columns share one (-1: all), the columns' order, and the first damping to try.

    `nearest`: no error is passed on; each column is rounded for itself.
    """

    grid: GridSpec
    group_size: int
    act_order: bool
    damping: float
    nearest: bool = False


def inverse_factor(hessian_CC: "Tensor", damping: float, *, where: str) -> "tuple[Tensor, float]":
    """The upper U with U'U = (H + damping * mean diagonal)^-1, and the damping that made H definite.

    A Cholesky of H with rows and columns reversed is an upper factor R of H = RR', and U is its inverse: one
    factorisation and one triangular inverse. QuantizeError when no damping up to 1 helps, or H is not finite.
    """
    import torch

    diagonal_C = hessian_CC.diagonal()
    mean = float(diagonal_C.mean())
    if not torch.isfinite(hessian_CC).all() or mean < 0:
        raise QuantizeError(
            f"{where}: its inputs on the calibration rows are not finite; the checkpoint's weights diverged:"
            f" use an earlier one"
        )
    damped_CC = hessian_CC.clone()
    # A column that no row reaches is rounded by itself.
    damped_CC.diagonal()[diagonal_C == 0] = mean or 1.0
    added = 0.0
    while damping <= _MOST_DAMPING:
        damped_CC.diagonal().add_((damping - added) * (mean or 1.0))
        added = damping
        lower_CC, failed = torch.linalg.cholesky_ex(damped_CC.flip(0, 1))
        if not failed:
            # A Hessian's size each: only the last is needed from here on.
            del damped_CC
            upper_CC = lower_CC.flip(0, 1)
            del lower_CC
            _invert_upper(upper_CC)
            return upper_CC, damping
        damping *= 10
    raise QuantizeError(
        f"{where}: the Hessian of its inputs is singular even when damped; calibrate on more and longer rows"
    )


def _invert_upper(upper_CC: "Tensor") -> None:
    """Inverts an upper triangle in place by halves: of [[A, B], [0, D]] it is [[A', -A'BD'], [0, D']]."""
    import torch

    size = len(upper_CC)
    if size <= _INVERTED_WHOLE:
        identity_CC = torch.eye(size, dtype=upper_CC.dtype, device=upper_CC.device)
        upper_CC.copy_(torch.linalg.solve_triangular(upper_CC, identity_CC, upper=True))
        return
    half = size // 2
    first, corner, last = upper_CC[:half, :half], upper_CC[:half, half:], upper_CC[half:, half:]
    _invert_upper(first)
    _invert_upper(last)
    corner.copy_((first @ (corner @ last)).neg_())


def solve(weight_OC: "Tensor", hessian_CC: "Tensor", spec: SolveSpec, *, where: str) -> Solved:
    """Codes of a weight whose inputs have the given Hessian (any positive multiple of X'X).

    With `act_order` the columns go by falling diagonal and the groups' grids are fixed before the first one
    ("static groups"), so that a group is still `group_size` neighbouring columns.
    """
    import torch

    if spec.nearest:
        return round_to_nearest(weight_OC, spec, hessian_CC.diagonal())
    columns = weight_OC.shape[1]
    size = columns if spec.group_size == -1 else spec.group_size
    order_C = torch.arange(columns, device=weight_OC.device)
    if spec.act_order:
        order_C = torch.argsort(hessian_CC.diagonal(), descending=True, stable=True)
        hessian_CC = hessian_CC.index_select(0, order_C).index_select(1, order_C)
    upper_CC, damping = inverse_factor(hessian_CC, spec.damping, where=where)
    weight_CO = weight_OC.t().contiguous()
    work_CO = weight_CO[order_C] if spec.act_order else weight_CO
    solver = _Solver(work_CO, upper_CC, spec.grid, size, (order_C // size).tolist())
    if spec.act_order:
        importance_C = torch.empty_like(solver.importance_C)
        importance_C[order_C] = solver.importance_C
        for group in range(columns // size):
            part = slice(group * size, (group + 1) * size)
            solver.fit(group, weight_CO[part], importance_C[part])
        del weight_CO
        solver.solve_range(0, columns)
    else:
        solver.solve_groups(0, columns // size)
    codes_CO = torch.empty_like(solver.codes_CO)
    codes_CO[order_C] = solver.codes_CO
    return Solved(codes_CO, Grid(solver.scale_GO, solver.zero_GO), damping)


class _Solver:
    """One solve in progress; a column of `work_CO` holds its scaled rounding error once it has its code."""

    def __init__(
        self, work_CO: "Tensor", upper_CC: "Tensor", grid: GridSpec, size: int, group_of: list[int]
    ) -> None:
        import torch

        self._work_CO = work_CO
        self._upper_CC = upper_CC
        self._diagonal = upper_CC.diagonal().tolist()
        self._spec = grid
        self._size = size
        self._group_of = group_of
        groups = work_CO.shape[0] // size
        self.importance_C = upper_CC.diagonal().square().reciprocal()
        self.codes_CO = torch.empty(work_CO.shape, dtype=torch.uint8, device=work_CO.device)
        self.scale_GO = work_CO.new_empty(groups, work_CO.shape[1])
        self.zero_GO = work_CO.new_empty(groups, work_CO.shape[1])

    def fit(self, group: int, weight_gO: "Tensor", importance_g: "Tensor") -> None:
        """Chooses one group's grid."""
        grid = search_grid(weight_gO, importance_g, self._spec)
        self.scale_GO[group], self.zero_GO[group] = grid.scale, grid.zero

    def solve_groups(self, first: int, end: int) -> None:
        """Solves groups in order; a group's grid is fitted when all errors before it have been passed on."""
        low, high = first * self._size, end * self._size
        if end - first == 1:
            self.fit(first, self._work_CO[low:high], self.importance_C[low:high])
            self.solve_range(low, high)
            return
        middle = (first + end) // 2
        self.solve_groups(first, middle)
        self._pass_on(low, middle * self._size, high)
        self.solve_groups(middle, end)

    def solve_range(self, low: int, high: int) -> None:
        """Solves columns low to high, halving the range until it is a few columns."""
        if high - low <= _FEW_COLUMNS:
            for column in range(low, high):
                self._solve_column(column, high)
            return
        middle = (low + high) // 2
        self.solve_range(low, middle)
        self._pass_on(low, middle, high)
        self.solve_range(middle, high)

    def _pass_on(self, low: int, middle: int, high: int) -> None:
        """The errors of the columns low to middle reach those from middle to high, in one product."""
        effect_BA = self._upper_CC[low:middle, middle:high].t()
        self._work_CO[middle:high].addmm_(effect_BA, self._work_CO[low:middle], alpha=-1)

    def _solve_column(self, column: int, end: int) -> None:
        group = self._group_of[column]
        grid = Grid(self.scale_GO[group], self.zero_GO[group])
        weight_O = self._work_CO[column]
        centred_O = grid.centred(weight_O, self._spec)
        self.codes_CO[column] = centred_O + grid.zero
        weight_O.sub_(centred_O.mul_(grid.scale)).div_(self._diagonal[column])
        if column + 1 < end:
            self._work_CO[column + 1 : end].addr_(
                self._upper_CC[column, column + 1 : end], weight_O, alpha=-1
            )


def round_to_nearest(weight_OC: "Tensor", spec: SolveSpec, importance_C: "Tensor | None" = None) -> Solved:
    """The codes of the nearest grid points, on grids searched with each column's importance (None: equal)."""
    import torch

    columns = weight_OC.shape[1]
    size = columns if spec.group_size == -1 else spec.group_size
    weights_C = weight_OC.new_ones(columns) if importance_C is None else importance_C
    parts = list(zip(weight_OC.t().contiguous().split(size), weights_C.split(size), strict=True))
    grids = [search_grid(part_gO, importance_g, spec.grid) for part_gO, importance_g in parts]
    codes = [g.centred(part_gO, spec.grid) + g.zero for g, (part_gO, _) in zip(grids, parts, strict=True)]
    grid = Grid(torch.stack([g.scale for g in grids]), torch.stack([g.zero for g in grids]))
    return Solved(torch.cat(codes).to(torch.uint8), grid, 0.0)
