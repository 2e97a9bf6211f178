#!/usr/bin/env bash
# Make .venv from requirements.txt, with the system packages that ffcv's source build needs; quick when all is there.
# PYTHON names the interpreter (3.10 to 3.12); without it the first that runs of python3.12, 3.11, 3.10 and python3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=.venv
STAMP=$VENV/.complete
COMMAND=$VENV/bin/ffcv-train
DISK="about 7 GB"

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# The interpreter's X.Y; fails where it does not run (a pyenv shim of a version that is not active exists all the same).
version_of() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

in_range() {
    case "$1" in 3.10 | 3.11 | 3.12) ;; *) return 1 ;; esac
}

# What .venv was made from; empty where there is no working .venv.
fingerprint() {
    local version
    version=$(version_of "$VENV/bin/python") && printf '%s %s' "$version" "$(cksum <requirements.txt)"
}

complete() {
    [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$(fingerprint)" ] && [ -x "$COMMAND" ] || return 1
    [ -z "${PYTHON:-}" ] || [ "$(version_of "$PYTHON")" = "$(version_of "$VENV/bin/python")" ]
}

choose_python() {
    local candidates=(python3.12 python3.11 python3.10 python3) candidate version seen=""
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if version=$(version_of "$candidate"); then
            if in_range "$version"; then
                command -v "$candidate"
                return
            fi
            seen+=", $candidate is $version"
        else
            seen+=", $candidate does not run"
        fi
    done
    fail "no Python 3.10, 3.11 or 3.12 found: ${seen#, }; install one (Debian: apt-get install python3 python3-dev" \
        "python3-venv) or name one: make PYTHON=/path/to/python3.12 …"
}

# Debian's names of what is missing, a word each.
missing_packages() {
    local python=$1 version
    version=$(version_of "$python")
    command -v c++ >/dev/null || echo g++
    if ! command -v pkg-config >/dev/null; then
        echo pkg-config libopencv-dev libturbojpeg0-dev
    else
        pkg-config --exists opencv4 || pkg-config --exists opencv || echo libopencv-dev
        pkg-config --exists libturbojpeg || echo libturbojpeg0-dev
    fi
    has_header "$python" || echo "python$version-dev"
    "$python" -c 'import ensurepip, venv' 2>/dev/null || echo "python$version-venv"
    if [ "$(uname)" = Linux ]; then # the wheel of opencv-python links to these
        loads "$python" libGL.so.1 || echo libgl1
        loads "$python" libgthread-2.0.so.0 || echo libglib2.0-0
    fi
}

has_header() {
    "$1" -c 'import os, sysconfig; assert os.path.exists(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null
}

loads() {
    "$1" -c 'import ctypes, sys; ctypes.CDLL(sys.argv[1])' "$2" 2>/dev/null
}

# The command that has the rights to run apt-get; fails where there is none.
apt() {
    command -v apt-get >/dev/null || return 1
    if [ "$(id -u)" = 0 ]; then
        echo env
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        echo sudo -n
    else
        return 1
    fi
}

install_packages() {
    local python=$1 missing rights
    missing=$(missing_packages "$python" | xargs)
    [ -n "$missing" ] || return 0
    if rights=$(apt); then
        echo "Installing system packages: $missing"
        # shellcheck disable=SC2086 # words are meant to split
        $rights apt-get update -qq &&
            $rights DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing || true
        missing=$(missing_packages "$python" | xargs)
        [ -n "$missing" ] || return 0
    fi
    local version
    version=$(version_of "$python")
    fail "$(
        cat <<MESSAGE
system packages are missing for $python; by Debian's names: $missing
Install them, then run the same command again:
  Debian, Ubuntu  sudo apt-get install $missing
  Fedora          sudo dnf install gcc-c++ pkgconf-pkg-config opencv-devel turbojpeg-devel mesa-libGL glib2 python$version-devel
  conda           conda install -c conda-forge cxx-compiler pkg-config opencv libjpeg-turbo python=$version, then make PYTHON=python
  macOS           xcode-select --install; brew install pkg-config opencv jpeg-turbo python@$version
                  export PKG_CONFIG_PATH="\$(brew --prefix jpeg-turbo)/lib/pkgconfig"
MESSAGE
    )"
}

main() {
    complete && return
    local python version
    python=$(choose_python)
    version=$(version_of "$python")
    install_packages "$python"

    rm -f "$STAMP"
    if [ "$(version_of "$VENV/bin/python")" != "$version" ] || ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        echo "Creating $VENV with Python $version ($python)"
        rm -rf "$VENV"
        "$python" -m venv "$VENV" || fail "$python could not create $VENV; see the message above"
    fi
    echo "Installing requirements.txt into $VENV: $DISK on disk, minutes on the first run"
    # ffcv builds in isolation with any pip, and with the setuptools pinned here (before and from pip 25.3).
    PIP_USE_PEP517=1 PIP_CONSTRAINT=requirements.txt PIP_BUILD_CONSTRAINT=requirements.txt \
        "$VENV/bin/python" -m pip install --disable-pip-version-check -r requirements.txt ||
        fail "pip could not install requirements.txt; the reason stands above (network, disk space of $DISK, compiler)"
    # The command that messages name, on this checkout's code.
    "$VENV/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable . ||
        fail "pip could not install the command ffcv-train; the reason stands above"
    "$VENV/bin/python" -c 'import cv2, ffcv, torch, torchvision' ||
        fail "the installed packages do not import; the reason stands above"
    fingerprint >"$STAMP"
}

main
