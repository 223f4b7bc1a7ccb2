# llama_cpp has no types, and lives in the environment of the interpreter that runs this file.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
"""Run by the interpreter that has llama-cpp-python: `SOURCE.gguf TARGET.gguf TYPE` quantizes one file.

It imports nothing else of this package, which that environment need not have.
"""

import sys


def main(source: str, target: str, variant: str) -> int:
    """llama.cpp's own return code: 0 when it wrote the file."""
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = vars(llama_cpp)[f"LLAMA_FTYPE_MOSTLY_{variant}"]
    return int(llama_cpp.llama_model_quantize(source.encode(), target.encode(), settings))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
