# transformers and torch leave most of their types open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportAttributeAccessIssue=false
"""Makes a random model of any size for timing GPTQ, with the tokenizer of a model at hand.

`python benchmarks/quant/random_model.py TOKENIZER_FOLDER OUTPUT --layers 16 --width 2048`. Random
weights say nothing about quality: only time and memory may be read off them.
"""

import argparse
from pathlib import Path


def main() -> None:
    """Writes the folder in bfloat16."""
    import torch
    import transformers

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--family", choices=["llama", "qwen2", "qwen3"], default="llama")
    for name, default in (("layers", 16), ("width", 2048), ("inner", 4480), ("heads", 16), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.tokenizer)
    torch.manual_seed(arguments.seed)
    config = transformers.AutoConfig.for_model(
        arguments.family,
        vocab_size=max(512, len(tokenizer)),
        hidden_size=arguments.width,
        intermediate_size=arguments.inner,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.heads,
        num_key_value_heads=arguments.heads,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)
    print(f"{arguments.output}: {model.num_parameters() / 1e6:.0f} M parameters")


if __name__ == "__main__":
    main()
