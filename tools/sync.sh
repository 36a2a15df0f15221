#!/bin/sh
# Makes the virtual environment $1 and installs the locked versions and this checkout into it, with MLX's build $2 (cpu,
# cuda or cuda13), by uv: the one on PATH, or one installed into the environment by pip.
set -eu
venv=$1
back_end=$2

if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -c '' 2>/dev/null; then
    python=$(PYTHON=${PYTHON:-} "$(dirname "$0")/find_python.sh")
    echo "making $venv with $python"
    if command -v uv >/dev/null 2>&1; then
        uv venv --quiet --clear --python "$python" "$venv"
    elif ! "$python" -m venv --clear "$venv"; then
        rm -rf "$venv"
        echo "$python cannot make virtual environments. Install uv, or on Debian: apt install python3-venv" >&2
        exit 1
    fi
fi

if command -v uv >/dev/null 2>&1; then
    uv=uv
else
    # Outside the environment proper, because syncing removes from it what is not locked.
    uv=$venv/uv/bin/uv
    if [ ! -x "$uv" ]; then
        echo "installing uv into $venv"
        # A venv that uv made has no pip.
        "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip >/dev/null
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --target "$venv/uv" uv
    fi
fi

echo "installing the locked versions"
UV_PROJECT_ENVIRONMENT=$venv "$uv" sync --quiet --locked --extra "$back_end" --python "$venv/bin/python"
