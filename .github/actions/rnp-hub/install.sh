#!/usr/bin/env bash
# Installs the very tree that this action was taken from into an environment of its own. A runner
# that has rnp-hub of the same version on its PATH already keeps it.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
wanted=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$root/pyproject.toml")
if [[ $(rnp-hub --version 2>/dev/null || true) == "$wanted" ]]; then
  bin=$(dirname "$(command -v rnp-hub)")
else
  python3 -m venv "$RUNNER_TEMP/rnp-hub-venv"
  bin=$RUNNER_TEMP/rnp-hub-venv/bin
  "$bin/python" -m pip install --quiet --disable-pip-version-check "${root}[transformers,signing]"
fi
echo "bin=$bin" >>"$GITHUB_OUTPUT"
"$bin/rnp-hub" --version
