#!/usr/bin/env bash
# Finds the commits of the model and of the data, which the cache is keyed by. Where that fails the
# gate itself says why.
set -euo pipefail

[[ -z $INPUT_HF_TOKEN ]] || export HF_TOKEN=$INPUT_HF_TOKEN
words=(gate --dry-run --json --data="$INPUT_DATA")
[[ -z $INPUT_REVISION ]] || words+=(--revision="$INPUT_REVISION")
plan=$("$RNP_HUB_BIN/rnp-hub" "${words[@]}" -- "$INPUT_MODEL" 2>/dev/null) || exit 0
key=$("$RNP_HUB_BIN/python" -c '
import hashlib, json, sys
plan = json.load(sys.stdin)
shas = [str(plan[key]) for key in ("model_sha", "data_sha")]
print(hashlib.sha256(" ".join(shas).encode()).hexdigest() if any(map(plan.get, ("model_sha", "data_sha"))) else "")
' <<<"$plan")
echo "key=$key" >>"$GITHUB_OUTPUT"
