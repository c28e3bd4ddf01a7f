#!/usr/bin/env bash
# SkyPilot's own parser reads cluster/skypilot.yaml, in an environment of its own: its pins are not ours.
# usage: skypilot_reads.sh PYTHON_OF_THE_NEW_ENVIRONMENT
set -euo pipefail
python=$1
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip --disable-pip-version-check install --quiet skypilot==0.14.1
cd "$root"
HOME=$work SKYPILOT_DISABLE_USAGE_COLLECTION=1 "$work/venv/bin/python" - cluster/skypilot.yaml <<'PYTHON'
import sys

import sky
import yaml

with open(sys.argv[1]) as file:
    config = yaml.safe_load(file)
secrets = [(name, "secret") for name in config["secrets"]]
task = sky.Task.from_yaml_config(config, secrets_overrides=secrets)
(resources,) = task.resources
assert task.num_nodes == 2
assert resources.use_spot
assert resources.accelerators == {"L4": 1}
try:
    sky.Task.from_yaml_config({**config, "num_node": 2}, secrets_overrides=secrets)
except ValueError:
    pass
else:
    raise SystemExit("SkyPilot's parser takes a wrong key: it checks nothing")
print("skypilot: ok")
PYTHON
