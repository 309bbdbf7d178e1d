#!/usr/bin/env bash
# Runs the gate on what the inputs name.
#
# Inputs come in variables and are quoted wherever they stand. What the tool prints holds names from
# elsewhere, so workflow commands are stopped meanwhile, under a word that nobody can know.
set -euo pipefail

work=$RUNNER_TEMP/rnp-hub
rm -rf "$work"
mkdir -p "$work"
sealed=$work
words=(
  gate
  --data="$INPUT_DATA"
  --n="$INPUT_N"
  --report="$work/report.json"
  --sarif="$INPUT_SARIF"
  --summary="$work/summary.md"
  --annotations="$work/annotations.txt"
)
[[ -z $INPUT_REVISION ]] || words+=(--revision="$INPUT_REVISION")
[[ -z $INPUT_TRIGGER ]] || words+=(--trigger="$INPUT_TRIGGER" --target="$INPUT_TARGET")
[[ -z $INPUT_POLICY ]] || words+=(--policy="$INPUT_POLICY")
if [[ $INPUT_SANITIZE == true ]]; then
  sealed=$work/sanitized
  words+=(--sanitize --out="$sealed")
fi
words+=(--bom="$sealed/bom.cdx.json" --attest="$sealed/gate.intoto.json")
if [[ -n $INPUT_PUSH_TO ]]; then
  words+=(--push-to="$INPUT_PUSH_TO")
  if [[ -z $INPUT_HF_TOKEN && -z ${HF_TOKEN:-} && -n ${ACTIONS_ID_TOKEN_REQUEST_URL:-} ]]; then
    export HF_OIDC_RESOURCE=$INPUT_PUSH_TO # the client asks for a token of its own
  fi
fi
[[ -z $INPUT_HF_TOKEN ]] || export HF_TOKEN=$INPUT_HF_TOKEN
workflow=${GITHUB_WORKFLOW_REF:-}
workflow=${workflow%%@*}
workflow=${workflow#"${GITHUB_REPOSITORY:-}/"}
[[ -z $workflow ]] || words+=(--reference="$workflow")

unheard=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
echo "::stop-commands::$unheard"
code=0
"$RNP_HUB_BIN/rnp-hub" "${words[@]}" -- "$INPUT_MODEL" || code=$?
echo
echo "::$unheard::"

case $code in
  0) verdict=pass ;;
  1) verdict=violated ;;
  *) verdict=error ;;
esac
[[ $verdict != error || -f $work/report.json ]] ||
  echo "::error title=rnp-hub::The gate could not be held (exit code $code); the log says why."
[[ ! -f $work/annotations.txt ]] || cat "$work/annotations.txt"
[[ ! -f $work/summary.md ]] || cat "$work/summary.md" >>"$GITHUB_STEP_SUMMARY"

revision=
if [[ -f $work/report.json ]]; then
  revision=$("$RNP_HUB_BIN/python" -c '
import json, re, sys
commit = (json.load(open(sys.argv[1])).get("pushed") or {}).get("commit") or ""
print(commit if re.fullmatch("[0-9a-f]{40}", commit) else "")
' "$work/report.json")
fi
type=
if [[ -f $sealed/gate.intoto.json ]]; then
  type=$("$RNP_HUB_BIN/python" -c '
import pathlib, sys
from rnp_hub.trust.statement import PREDICATE_TYPE, Statement
Statement.read(pathlib.Path(sys.argv[1])).split(pathlib.Path(sys.argv[2]))
print(PREDICATE_TYPE)
' "$sealed/gate.intoto.json" "$work/attest")
fi

there() { # the path, where there is such a file
  [[ ! -f $1 ]] || printf '%s\n' "${2-$1}"
}
{
  echo "verdict=$verdict"
  echo "report=$(there "$work/report.json")"
  echo "sanitized=$(there "$sealed/config.json" "$sealed")"
  echo "sanitized-revision=$revision"
  echo "subjects=$(there "$work/attest/subjects.sha256")"
  echo "predicate=$(there "$work/attest/predicate.json")"
  echo "predicate-type=$type"
  echo "sarif<<$unheard"
  there "$INPUT_SARIF"
  echo "$unheard"
} >>"$GITHUB_OUTPUT"

case $INPUT_FAIL_ON:$verdict in
  *:pass | never:* | error:violated) exit 0 ;;
  violation:* | error:error) exit "$code" ;;
  *)
    echo "::error title=rnp-hub::fail-on must be violation, error or never."
    exit 2
    ;;
esac
