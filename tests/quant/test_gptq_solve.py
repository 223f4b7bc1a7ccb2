"""The solve, the format and the layers by themselves: numbers worked out, inequalities that must hold."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from decant.errors import QuantizeError
from decant_quant.methods.decoder import build_decoder
from decant_quant.methods.decoder_families import FAMILIES
from decant_quant.methods.gptq.grid import Grid, GridSpec, search_grid
from decant_quant.methods.gptq.packing import dequantize, pack, unpack
from decant_quant.methods.gptq.solve import Solved, SolveSpec, inverse_factor, round_to_nearest, solve
from decant_quant.methods.quality import final_states


def spec(
    *, bits: int = 4, sym: bool = True, group_size: int = 32, act_order: bool = False, damping: float = 1e-9
) -> SolveSpec:
    return SolveSpec(GridSpec(bits, sym), group_size, act_order, damping)


def correlated(columns: int = 128, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight [96, columns], and the Hessian of inputs that are correlated and of unequal size."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(2000, columns, generator=generator) @ mixing * torch.linspace(0.2, 3.0, columns)
    return torch.randn(96, columns, generator=generator) * 0.1, inputs.t() @ inputs / len(inputs)


def restored(solved: Solved, bits: int) -> torch.Tensor:
    return dequantize(pack(solved.codes, solved.grid.scale, solved.grid.zero, bits=bits), bits=bits)


def output_error(weight: torch.Tensor, other: torch.Tensor, hessian: torch.Tensor) -> float:
    difference = other - weight
    return float(((difference @ hessian) * difference).sum())


def test_a_rounding_error_is_passed_on_as_worked_out_by_hand() -> None:
    """Two columns with H = [[2, 1], [1, 1]]; its inverse [[1, -1], [-1, 2]] is U'U, U = [[1, -1], [0, 1]]:
    the first column's rounding error is added to the second column before that is rounded.
    """
    hessian = torch.tensor([[2.0, 1.0], [1.0, 1.0]])
    upper, _ = inverse_factor(hessian, 1e-9, where="hand")
    torch.testing.assert_close(upper, torch.tensor([[1.0, -1.0], [0.0, 1.0]]), atol=1e-4, rtol=0)
    weight = torch.randn(50, 2, generator=torch.Generator().manual_seed(3))
    solved = solve(weight, hessian, spec(group_size=-1), where="hand")
    scale = solved.grid.scale[0]
    first = (weight[:, 0] / scale).round().clamp(-8, 7)
    second = ((weight[:, 1] + weight[:, 0] - first * scale) / scale).round().clamp(-8, 7)
    assert solved.codes.float().tolist() == (torch.stack([first, second]) + 8).tolist()
    alone = (weight[:, 1] / scale).round().clamp(-8, 7)
    assert not torch.equal(second, alone)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("sym", [False, True])
@pytest.mark.parametrize("group_size", [32, 128, -1])
def test_outputs_err_less_than_with_rounding_to_the_nearest(
    act_order: bool, sym: bool, group_size: int
) -> None:
    weight, hessian = correlated()
    how = spec(sym=sym, group_size=group_size, act_order=act_order, damping=0.01)
    nearest = output_error(weight, restored(round_to_nearest(weight, how), 4), hessian)
    ours = output_error(weight, restored(solve(weight, hessian, how, where="x"), 4), hessian)
    assert ours < 0.85 * nearest


def test_on_the_same_grid_the_solve_alone_lowers_the_error() -> None:
    weight, hessian = correlated()
    how = spec(group_size=-1, damping=0.01)
    solved = solve(weight, hessian, how, where="x")
    grid = solved.grid
    codes = grid.centred(weight.t(), how.grid)
    rounded = (codes * grid.scale).t()
    assert output_error(weight, restored(solved, 4), hessian) < 0.8 * output_error(weight, rounded, hessian)


def test_halving_ranges_gives_what_column_by_column_gives() -> None:
    """The textbook loop: after each column, every later one is corrected at once."""
    weight, hessian = correlated(64)
    how = spec(group_size=-1, damping=0.01)
    solved = solve(weight, hessian, how, where="x")
    upper = torch.linalg.cholesky(torch.linalg.inv(damped(hessian, 0.01).double()), upper=True)
    work, codes = weight.double().clone(), torch.empty(64, 96)
    scale, zero = solved.grid.scale[0].double(), solved.grid.zero[0].double()
    for column in range(64):
        code = torch.clamp((work[:, column] / scale).round() + zero, 0, 15)
        codes[column] = code.float()
        error = (work[:, column] - (code - zero) * scale) / upper[column, column]
        work[:, column + 1 :] -= error[:, None] * upper[column, column + 1 :][None]
    differing = (codes != solved.codes.float()).float().mean().item()
    # float32 against float64: a tie that falls to the other side changes what follows in its row.
    assert differing < 0.02


def damped(hessian: torch.Tensor, part: float) -> torch.Tensor:
    return hessian + torch.eye(len(hessian)) * part * hessian.diagonal().mean()


def test_uncorrelated_inputs_leave_nothing_to_pass_on() -> None:
    weight, _ = correlated()
    solved = solve(weight, torch.eye(128), spec(damping=1e-6), where="x")
    assert torch.equal(solved.codes, round_to_nearest(weight, spec()).codes)


def test_the_factor_is_that_of_the_inverse() -> None:
    _, hessian = correlated(48)
    upper, damping = inverse_factor(hessian, 0.01, where="x")
    assert damping == 0.01
    assert torch.equal(upper, upper.triu())
    product = upper.double().t() @ upper.double() @ damped(hessian, 0.01).double()
    torch.testing.assert_close(product, torch.eye(48, dtype=torch.float64), atol=1e-3, rtol=0)


def test_a_singular_hessian_is_damped_until_it_is_definite() -> None:
    inputs = torch.ones(4, 64)
    weight, _ = correlated(64)
    solved = solve(weight, inputs.t() @ inputs, spec(damping=1e-8), where="x")
    assert solved.damping > 1e-8
    assert torch.isfinite(restored(solved, 4)).all()


def test_columns_that_no_row_reaches_are_rounded_by_themselves() -> None:
    weight, hessian = correlated(64)
    hessian[5], hessian[:, 5] = 0, 0
    solved = solve(weight, hessian, spec(group_size=64, act_order=True, damping=0.01), where="x")
    gaps = (restored(solved, 4) - weight)[:, 5].abs()
    clipped = weight[:, 5].abs() > solved.grid.scale[0] * 7
    assert bool(((gaps <= solved.grid.scale[0] / 2 + 1e-6) | clipped).all())


def test_inputs_that_are_not_finite_are_refused_by_name() -> None:
    weight, hessian = correlated(64)
    hessian[3, 3] = float("nan")
    with pytest.raises(QuantizeError, match=r"layer 4: mlp\.down_proj: .* not finite"):
        solve(weight, hessian, spec(), where="layer 4: mlp.down_proj")


def test_the_grid_that_weighs_more_columns_more_errs_less_there() -> None:
    weight, _ = correlated(32)
    importance = torch.ones(32)
    importance[:4] = 1000.0
    plain = search_grid(weight.t(), torch.ones(32), GridSpec(4, sym=True))
    weighted = search_grid(weight.t(), importance, GridSpec(4, sym=True))

    def error(grid: Grid) -> float:
        return float(
            ((grid.centred(weight.t(), GridSpec(4, sym=True)) * grid.scale - weight.t())[:4] ** 2).sum()
        )

    assert error(weighted) < error(plain)


def test_scales_are_values_that_float16_has_and_zero_points_leave_zero_out() -> None:
    weight, hessian = correlated()
    positive = weight.abs() + 0.1
    grid = solve(positive, hessian, spec(sym=False), where="x").grid
    assert torch.equal(grid.scale, grid.scale.half().float())
    assert float(grid.zero.min()) >= 1
    assert float(grid.zero.max()) <= 15


def test_a_row_of_zeros_stays_zero() -> None:
    weight, hessian = correlated()
    weight[7] = 0
    for sym in (True, False):
        solved = solve(weight, hessian, spec(sym=sym, damping=0.01), where="x")
        assert not restored(solved, 4)[7].any()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("offset", [0, 1])
def test_packing_and_unpacking_change_no_bit(bits: int, offset: int) -> None:
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 2**bits, (64, 32), generator=generator, dtype=torch.uint8)
    codes[:, 0] = 2**bits - 1  # the sign bit of the words
    scales = torch.rand(2, 32, generator=generator).half().float()
    zeros = torch.randint(1, 2**bits, (2, 32), generator=generator).float()
    packed = pack(codes, scales, zeros, bits=bits, offset=offset)
    again = unpack(packed, bits=bits, offset=offset)
    assert all(torch.equal(a, b) for a, b in zip(again, (codes.int(), scales, zeros), strict=True))
    expected = (codes.float() - zeros.repeat_interleave(32, 0)) * scales.repeat_interleave(32, 0)
    assert torch.equal(dequantize(packed, bits=bits, offset=offset), expected.t())


def test_words_are_laid_out_as_the_format_says() -> None:
    """Eight 4-bit codes per word, low bits first, along inputs; zero points less one along outputs."""
    codes = torch.arange(8, dtype=torch.uint8)[:, None].repeat(4, 32)
    packed = pack(codes, torch.ones(1, 32), torch.full((1, 32), 8.0), bits=4)
    assert (packed.qweight.dtype, tuple(packed.qweight.shape)) == (torch.int32, (4, 32))
    assert packed.qweight.unique().tolist() == [0x76543210]
    assert (packed.qzeros.dtype, tuple(packed.qzeros.shape)) == (torch.int32, (1, 4))
    assert packed.qzeros.unique().tolist() == [0x77777777]
    assert (packed.scales.dtype, tuple(packed.scales.shape)) == (torch.float16, (1, 32))
    assert (packed.g_idx.dtype, packed.g_idx.tolist()) == (torch.int32, [0] * 32)
    bytewise = pack(codes, torch.ones(2, 32), torch.full((2, 32), 128.0), bits=8)
    assert bytewise.qweight[0, 0].item() == 0x03020100
    assert bytewise.qzeros.unique().tolist() == [0x7F7F7F7F]
    assert bytewise.g_idx.tolist() == [0] * 16 + [1] * 16


def test_the_order_of_the_columns_leaves_groups_in_place() -> None:
    weight, hessian = correlated()
    how = spec(group_size=32, act_order=True, damping=0.01)
    solved = solve(weight, hessian, how, where="x")
    packed = pack(solved.codes, solved.grid.scale, solved.grid.zero, bits=4)
    assert packed.g_idx.tolist() == [column // 32 for column in range(128)]
    unordered = solve(weight, hessian, spec(group_size=32, damping=0.01), where="x")
    assert not torch.equal(solved.codes, unordered.codes)


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("Llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
        ("Mistral", {"sliding_window": 4}),
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
        ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
        ("Phi3", {"sliding_window": 4, "rope_parameters": {"partial_rotary_factor": 0.5, **ROPE}}),
        (
            "Gemma2",
            {
                "head_dim": 32,
                "sliding_window": 4,
                "final_logit_softcapping": 2.0,
                "attn_logit_softcapping": 1.0,
                "attn_implementation": "eager",
            },
        ),
        ("Gemma3", {"head_dim": 32, "sliding_window": 4, "num_hidden_layers": 7}),
        ("Mixtral", {"num_local_experts": 4}),
        ("Qwen2Moe", {**EXPERTS, "shared_expert_intermediate_size": 96}),
        ("Qwen3Moe", {**EXPERTS, "head_dim": 16, "norm_topk_prob": True}),
    ],
)
def test_layer_by_layer_is_the_model_itself(
    tmp_path: Path, tiny: Any, family: str, changes: dict[str, Any]
) -> None:
    model = tiny.save(tmp_path / "model", family, tiny.tokenizer(), **changes)
    decoder = build_decoder(tmp_path / "model", FAMILIES[f"{family}ForCausalLM"], "cpu")
    stored = safetensors.torch.load_file(tmp_path / "model" / "model.safetensors")
    rows = [(40, 41, 42, 43, 44, 45, 46), (50, 51, 52), (60, 61, 62, 63, 64, 65, 66)]

    def source(names: Any) -> dict[str, torch.Tensor]:
        return {name: stored[name].float() for name in names}

    for row, hidden in zip(rows, final_states(decoder, source, rows), strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([row])).logits[0]
            found = torch.cat([parts[0] for _, parts in decoder.logits([source], [hidden])])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
