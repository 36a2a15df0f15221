#!/bin/sh
# Prints the path of a Python that lib_mlx can be built with: 3.11 or newer, with its headers, and with a shared
# libpython, which hosts written in C load. PYTHON=... names one; otherwise the usual names on PATH are tried.
set -eu

check='
import os, sys, sysconfig
if sys.version_info < (3, 11):
    sys.exit("is Python %d.%d" % sys.version_info[:2])
get = sysconfig.get_config_var
names = [name for name in (get("INSTSONAME"), get("LDLIBRARY")) if name and not name.endswith(".a")]
folders = [get("LIBDIR"), os.path.join(sys.base_prefix, "lib"), get("PYTHONFRAMEWORKPREFIX")]
folders += [os.path.join(folder, get("MULTIARCH")) for folder in folders[:1] if folder and get("MULTIARCH")]
if not any(os.path.isfile(os.path.join(folder, name)) for folder in folders if folder for name in names):
    sys.exit("has no shared libpython")
if not os.path.isfile(os.path.join(sysconfig.get_path("include"), "Python.h")):
    sys.exit("has no headers (Debian: install python3-dev)")
print(sys.executable)
'

rejected=
if [ -n "${PYTHON:-}" ]; then
    candidates=$PYTHON
else
    candidates="python3 python3.13 python3.12 python3.11 python3.14 python
        /usr/bin/python3 /usr/local/bin/python3 /opt/homebrew/bin/python3"
fi

for candidate in $candidates; do
    if ! command -v "$candidate" >/dev/null 2>&1; then
        [ -z "${PYTHON:-}" ] || rejected="
  $candidate: not found"
        continue
    fi
    # A name may be on PATH and still not start: pyenv leaves such names behind.
    if answer=$("$candidate" -I -c "$check" 2>&1); then
        printf '%s\n' "$answer"
        exit 0
    fi
    reason=$(printf '%s\n' "$answer" | tail -n 1)
    rejected="$rejected
  $(command -v "$candidate"): $reason"
done

cat >&2 <<MESSAGE
No Python was found that lib_mlx can be built with. It must be 3.11 or newer, with headers and a shared libpython.
Looked at:${rejected:- nothing; none is on PATH}
Debian, Ubuntu: apt install python3-dev libpython3-dev    Fedora: dnf install python3-devel
macOS: brew install python                                pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install 3.12
Then run make again, or name one: make PYTHON=/path/to/python3
MESSAGE
exit 1
