# torch leaves some of its types open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""A folder in GPTQ's layout rewritten in another, shard by shard, and read back before it counts."""

import shutil
from pathlib import Path

from decant.errors import QuantizeError
from decant.files import write_bytes, write_json
from decant_quant.checkpoint import INDEX, read_json
from decant_quant.methods.folder import write_index
from decant_quant.methods.gptq.reader import open_gptq
from decant_quant.methods.gptq.recipe import Recipe
from decant_quant.methods.layouts import described, relaid
from decant_quant.methods.restorable import open_restorable

_ASIDE = "relaid"
_HEAD_MODULE = "lm_head"


def relay_folder(folder: Path, recipe: Recipe) -> None:
    """Puts the shards and config.json of `recipe.layout` in the place of GPTQ's; QuantizeError if a weight
    read back from them is not exactly what it was.
    """
    import safetensors.torch

    aside, grid = folder / _ASIDE, recipe.grid
    aside.mkdir()
    shards = sorted(folder.glob("*.safetensors"))
    for shard in shards:
        stored = safetensors.torch.load_file(shard)
        moved = relaid(stored, recipe.layout, bits=grid.bits, offset=recipe.offset, sym=grid.sym)
        write_bytes(aside / shard.name, safetensors.torch.save(moved, metadata={"format": "pt"}))
    settings = described(
        recipe.layout, bits=grid.bits, group_size=grid.group_size, sym=grid.sym, kept=[_HEAD_MODULE]
    )
    config = read_json(folder / "config.json")
    write_json(aside / "config.json", {**config, "quantization_config": settings})
    write_index(aside, [shard.name for shard in shards])
    _compare(folder, aside)
    for name in (*(shard.name for shard in shards), "config.json", INDEX):
        (aside / name).replace(folder / name)
    shutil.rmtree(aside)


def _compare(before: Path, after: Path) -> None:
    import torch

    first, second = open_gptq(before), open_restorable(after)
    for name in first.names:
        if not torch.equal(first.read([name])[name], second.read([name])[name]):
            raise QuantizeError(f"{name} is not what it was once written in another layout; report this")
