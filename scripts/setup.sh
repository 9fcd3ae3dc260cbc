#!/bin/sh
# Set up an environment: setup.sh runtime | dev | mlx-vlm
#
# runtime  .venv with magistral-mlx and what converts, enough for `make demo`
# dev      .venv with the tests' references and the linters as well, and a browser
# mlx-vlm  .venv-mlx-vlm with mlx-vlm alone, whose pins clash with ours
#
# Uses uv where it is present, else venv and pip. PYTHON=... names the Python to use.
set -eu
cd "$(dirname "$0")/.."
what=${1:?runtime, dev or mlx-vlm}

fail() { echo "setup: $*" >&2; exit 1; }

if [ "$(uname -s)" = Darwin ]; then
  major=$(sw_vers -productVersion | cut -d. -f1)
  [ "$major" -ge 14 ] || fail "this is macOS $major, and MLX needs macOS 14 or later. Update macOS."
fi

usable() { # a Python from 3.11 to 3.13, on a Mac one for arm64
  "$1" -c 'import platform, sys
ok = (3, 11) <= sys.version_info[:2] <= (3, 13)
sys.exit(not (ok and (sys.platform != "darwin" or platform.machine() == "arm64")))' 2>/dev/null
}

find_python() {
  for python in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if usable "$python"; then echo "$python"; return; fi
  done
  fail "needs Python 3.11, 3.12 or 3.13 (on a Mac one built for arm64); python3 is" \
    "$(python3 -c 'import platform as p; print(p.python_version(), "for", p.machine())' 2>/dev/null || echo missing)." \
    "Install one, with 'brew install python@3.13' or from python.org, or install uv, then run make again." \
    "PYTHON=/path/to/python names another."
}

create() { # an environment in $1, unless it is there
  [ -x "$1/bin/python" ] && return
  echo "setup: making $1" >&2
  if command -v uv >/dev/null 2>&1; then
    uv venv --quiet --python "${PYTHON:->=3.11,<3.14}" "$1"
  else
    python=$(find_python) || exit 1
    "$python" -m venv "$1" || { rm -rf "$1"; fail "$python cannot make a virtual environment. On Debian: apt install python3-venv"; }
  fi
}

install() { # the packages $2... into the environment $1
  venv=$1; shift
  echo "setup: installing $* into $venv" >&2
  if command -v uv >/dev/null 2>&1; then
    uv pip install --quiet --python "$venv/bin/python" "$@"
  else
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
  fi
}

browser() { # a Chromium for the tests of the page: the system's, or Playwright's own
  for chromium in chromium chromium-browser google-chrome; do
    command -v "$chromium" >/dev/null 2>&1 && return
  done
  echo "setup: installing Chromium for the tests of the page" >&2
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    { apt-get update && apt-get install -y --no-install-recommends chromium; } >/dev/null ||
      fail "apt-get cannot install chromium. Install one, then run make again."
  else
    .venv/bin/playwright install chromium ||
      fail "Playwright cannot install its Chromium. Install one as 'chromium', then run make again."
  fi
}

case $what in
  runtime) create .venv; install .venv -e '.[convert]' ;;
  dev) create .venv; install .venv -e '.[dev]'; browser ;;
  mlx-vlm) create .venv-mlx-vlm; install .venv-mlx-vlm -r tests/parity/mlx-vlm.txt ;;
  *) fail "unknown environment $what" ;;
esac
