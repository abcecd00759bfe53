# For the Makefile: `sh book/tools/venv.sh [PYTHON]` installs requirements.txt into .venv, which it makes with PYTHON, or
# the first Python on the PATH that fits. `--stale` prints "anew" where .venv was finished and serves no longer: its
# Python is gone, or this clone was copied or moved, and what was installed belongs to the other place.
set -eu
unset CDPATH  # else cd may lead elsewhere, and prints where
unset PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX PIP_ROOT  # which are for another Python, or another place
cd "$(dirname "$0")/../.."
pinned='(3, 11) <= sys.version_info[:2] <= (3, 14)'

# Prints why a Python cannot make .venv; nothing where it can.
why_not() {
  command -v "$1" >/dev/null || { echo "is not there"; return; }
  "$1" -c "
import sys, sysconfig
if not $pinned:
    sys.exit('is Python ' + sys.version.split()[0])
if sys.implementation.name != 'cpython' or sysconfig.get_config_var('Py_GIL_DISABLED') or sys.maxsize < 2**32:
    sys.exit('is ' + sys.implementation.name + ', free-threaded or of 32 bits: PyTorch is built for the usual CPython')
try:
    import ensurepip, venv
except ImportError:
    sys.exit('lacks its venv module (on Debian: apt install python3.%d-venv)' % sys.version_info[1])
" 2>&1 | head -n 1
}

if [ "${1-}" = --stale ]; then
  [ ! -e .venv/.ready ] || { [ "$(cat .venv/.ready)" = "$(pwd -P)" ] && .venv/bin/python -I -c "import pip" 2>/dev/null; } || echo anew
  exit
fi

[ -w . ] || { echo "No .venv can be made here: this folder is not writable. PY=python3 uses a Python that is ready" >&2; exit 1; }
if ! .venv/bin/python -I -c "import pip, sys; sys.exit(not $pinned)" >/dev/null 2>&1; then
  [ -n "${1-}" ] || set -- python3 python3.14 python3.13 python3.12 python3.11
  reasons='' chosen=''
  for python; do
    reason=$(why_not "$python")
    [ -n "$reason" ] || { chosen=$python; break; }
    reasons="$reasons  $python $reason
"
  done
  if [ -z "$chosen" ]; then
    printf 'Python 3.11 to 3.14 is needed, with its venv module:\n%s' "$reasons" >&2
    echo "Install one, or name it: make PYTHON=/path/to/python3" >&2
    exit 1
  fi
  echo "Setting up .venv with $("$chosen" -V): about 2 GB and a few minutes, once"
  "$chosen" -m venv --clear .venv
fi
install() { .venv/bin/python -m pip install --no-user --no-compile --disable-pip-version-check -q --progress-bar on "$@"; }
# A newer pip than Debian's, and no dependencies to resolve, since all are pinned: 36 s of processor time, not 85. Where
# there is no newer one to be had, the old one will do.
install "$(sed -n 's/^\(pip==[0-9.]*\).*/\1/p' requirements.txt)" || :
install --no-deps -r requirements.txt
# What a platform's wheels ask for beyond the pins (CUDA, with PyPI's torch for Linux).
.venv/bin/python -m pip check >/dev/null || install -r requirements.txt
# pip would compile on one core, and also what hardly any run imports: Python compiles that at its first import.
# Templates that end in .py cannot be compiled; nobody needs them to be.
.venv/bin/python -m compileall -qq -j 0 -x '/(tests?|testing|pip|pandas|debugpy|torchgen|torch/onnx|sympy/(physics|stats))/' .venv/lib/python*/site-packages || :
# The installer writes this folder's name down in one encoding, and the next locale may have another.
for site in .venv/lib/python*/site-packages; do [ ! -d "$site" ] || echo ../../../.. > "$site/clone.pth"; done
# Where Triton has no wheel, its Python files: they run kernels in its interpreter, with a stand-in of ours.
.venv/bin/python -c "import sys; sys.exit(sys.platform != 'linux')" || .venv/bin/python book/tools standin ||
  echo "Kernel cells will not run here; python book/tools standin tries again" >&2
pwd -P > .venv/.ready
