#!/usr/bin/env bash
# Where pip and the Hub's client keep what they fetch, and what the former is keyed by.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
pip=${PIP_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/pip}
hub=${HF_HUB_CACHE:-${HF_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/huggingface}/hub}
{
  echo "pip=$pip"
  echo "hub=$hub"
  echo "pip-key=$(sha256sum "$root/pyproject.toml" | cut -d ' ' -f 1)"
} >>"$GITHUB_OUTPUT"
