#!/usr/bin/env bash
# Wheels of what the recipes need, in the versions that are tested, for a machine without a network that has torch,
# lightning, torchmetrics, pytest, hypothesis, matplotlib, tokenizers, PyYAML and tqdm already.
#
#     tests/gpu/wheels.sh [FOLDER] [PYTHON]      by default build/wheels and 3.12
#
# There:
#
#     python3 -m pip install --no-index --no-deps --target SITE FOLDER/*.whl
#     PYTHONPATH=SITE make gpu PYTHON=python3
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder=${1:-build/wheels}
python=${2:-3.12}
needed=(
    annotated-types click datasets dill docstring_parser filelock fsspec jsonargparse multiprocess num2words platformdirs
    pydantic pydantic_core pytest-timeout tokenizers typeshed_client typing-inspection typing_extensions wandb xxhash
)
platforms=()
for tag in 2_39 2_34 2_31 2_28 2_27 2_26 2_24 2_17 2_12 2_5; do
    platforms+=(--platform "manylinux_${tag}_x86_64")
done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux2010_x86_64 --platform manylinux1_x86_64)
mkdir -p "$folder"
${PIP:-.venv/bin/pip} download --quiet --no-deps --only-binary=:all: --dest "$folder" --implementation cp \
    --python-version "$python" "${platforms[@]}" -c constraints.txt "${needed[@]}"
du -ch "$folder"/*.whl | tail -1
