# transformers and torch leave most of their types open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
"""Makes the same function with twice the width: every hidden channel is there two times.

`python benchmarks/quant/doubled.py distill/decant_distill/demo/weights/teacher OUTPUT`, in seconds.

Blocks of 256 values do not fit a trained model of width 128; in its double they do, and what they lose can be
measured on answers that mean something. It holds for Llama: norms see the same mean square, and linears see
every input twice at half its weight. Sizes in MB are the double's own.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def main() -> None:
    """Writes the folder in float32, with the golden prompts of the model it was made from."""
    import torch
    import transformers

    from decant.artifact import read_manifest, write_manifest

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    config = transformers.AutoConfig.from_pretrained(arguments.model)
    if config.model_type != "llama":
        parser.error(f"{arguments.model} is a {config.model_type}; only a llama can be doubled")
    model = transformers.AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    weights = dict(model.state_dict())
    weights["lm_head.weight"] = model.get_output_embeddings().weight.detach()
    wide = {name: _doubled(name, tensor) for name, tensor in weights.items()}
    config.hidden_size *= 2
    config.tie_word_embeddings = False
    double = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    double.load_state_dict(wide, strict=True)
    double.save_pretrained(arguments.output)
    transformers.AutoTokenizer.from_pretrained(arguments.model).save_pretrained(arguments.output)
    golden = read_manifest(arguments.model).golden
    write_manifest(arguments.output, name=arguments.output.name, kind="hf", method="doubled", golden=golden)
    print(f"{arguments.output}: width {config.hidden_size}")


def _doubled(name: str, tensor: "torch.Tensor") -> "torch.Tensor":
    import torch

    if tensor.dim() == 1:
        return torch.cat([tensor, tensor])
    if name == "model.embed_tokens.weight":
        return torch.cat([tensor, tensor], dim=1)
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        return torch.cat([tensor, tensor])
    return torch.cat([tensor, tensor], dim=1) / 2


if __name__ == "__main__":
    main()
