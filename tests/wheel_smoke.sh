#!/usr/bin/env bash
# Builds the wheel and uses it as a newcomer would: in a fresh environment, away from the source tree.
# usage: wheel_smoke.sh PYTHON_OF_THE_NEW_ENVIRONMENT PYTHON_THAT_BUILDS
set -euo pipefail
python=$1
builder=$(realpath -s "$2")
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$builder" -m build --wheel --outdir "$work/dist" "$root" >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
wheel=$(ls "$work"/dist/evomerge-*.whl)
"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip --disable-pip-version-check install --quiet --constraint "$root/constraints.txt" "$wheel"

cd "$work"
evomerge="$work/venv/bin/evomerge"
"$evomerge" --version
"$evomerge" catalog
"$evomerge" operators --json >operators.json
"$evomerge" demo --write-config demo.yaml
"$evomerge" run demo.yaml --out run --set budget.evaluations=4 --set executor.kind=inline --set references.coefficients=0
"$evomerge" verify run
"$evomerge" export run model
"$evomerge" report run report.html
test -s model/model.safetensors && test -s report.html
echo "wheel: ok ($(du -h "$wheel" | cut -f1))"
