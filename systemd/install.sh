#!/bin/sh
# What `make install` and `make uninstall` do, with PYTHON, PREFIX and DESTDIR from the Makefile.
#
# The library is a virtual environment that is built beside its place and then moved there: an installation that
# fails leaves the one before it as it was. No file in it knows where it was built, so that DESTDIR may go.
set -eu
umask 022

say() { printf '%s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }

case $PREFIX in
    *[!A-Za-z0-9._/+-]*) fail "PREFIX may have letters, digits and . _ / + - only: systemd reads it too" ;;
    /*) ;;
    *) fail "PREFIX must begin with / (it is '$PREFIX')" ;;
esac
case $DESTDIR in
    '' | /*) ;;
    *) DESTDIR=$PWD/$DESTDIR ;;
esac
PREFIX=${PREFIX%/} DESTDIR=${DESTDIR%/}
if [ -z "$DESTDIR" ] && [ "$(id -u)" != 0 ]; then
    fail "This writes to $PREFIX and /etc/manallm: sudo make $1, or name a folder with DESTDIR"
fi

LIB=$PREFIX/lib/manallm-proxy
LAUNCHER=$PREFIX/bin/manallm-proxy
UNIT=$PREFIX/lib/systemd/system/manallm-proxy.service
USERS=$PREFIX/lib/sysusers.d/manallm-proxy.conf
ETC=/etc/manallm
HERE=$(cd "$(dirname "$0")/.." && pwd)

# Whether systemd runs here and this is its machine, not a package.
systemd_listens() { [ -z "$DESTDIR" ] && [ -d /run/systemd/system ]; }

remove_library() {
    if [ -e "$1" ] && [ ! -f "$1/pyvenv.cfg" ]; then
        fail "$1 is there, and is not ours: move it away"
    fi
    rm -rf "$1"
}

build_library() {
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "manallm-proxy needs Python 3.11 or newer; name one: make install PYTHON=python3.12"
    new=$DESTDIR$LIB.new
    remove_library "$new"
    mkdir -p "$DESTDIR$PREFIX/lib"
    "$PYTHON" -m venv --symlinks "$new" || fail "No virtual environment could be made (Debian: apt install python3-venv)"

    # a copy, so that no build/ of an earlier version gets in, and none of root's is left behind
    source=$(mktemp -d)
    trap 'rm -rf "$source" "$new"' EXIT
    trap 'exit 1' HUP INT TERM
    cp -R "$HERE/manallm_proxy" "$HERE/pyproject.toml" "$HERE/setup.cfg" "$HERE/README.md" "$HERE/LICENSE" "$source"
    pip="$new/bin/python -I -m pip --disable-pip-version-check --quiet"
    say "Installing into $DESTDIR$LIB ..."
    $pip install --no-compile --no-warn-script-location --root-user-action=ignore "$source"
    $pip uninstall --yes --root-user-action=ignore setuptools pip 2>/dev/null

    # what remembers the place of building
    find "$new/bin" -mindepth 1 ! -name 'python*' -exec rm -rf {} +
    rm -f "$new"/lib/python*/site-packages/manallm_proxy-*.dist-info/direct_url.json
    sed -i '/^command = /d' "$new/pyvenv.cfg"
    find "$new" -name __pycache__ -exec rm -rf {} +
    "$new/bin/python" -I -m compileall -qq -s "$new" -p "$LIB" "$new/lib" || :

    remove_library "$DESTDIR$LIB"
    mv "$new" "$DESTDIR$LIB"
}

make_user() {
    [ -z "$DESTDIR" ] || return 0
    if ! getent passwd manallm >/dev/null; then
        if command -v systemd-sysusers >/dev/null; then
            systemd-sysusers "$USERS"
        elif command -v useradd >/dev/null; then
            useradd --system --user-group --no-create-home --home-dir / --shell /usr/sbin/nologin manallm
        fi
    fi
    getent group manallm >/dev/null ||
        fail "There is no user manallm, and none could be made: add it, and run this again"
}

# Installed only if absent: install_once MODE FILE
install_once() {
    if [ -e "$DESTDIR$ETC/$2" ]; then
        say "$ETC/$2 is kept as it is"
    else
        install -m "$1" "$HERE/config/$2" "$DESTDIR$ETC/$2"
        owned_by_us "$DESTDIR$ETC/$2"
    fi
}

owned_by_us() { [ -n "$DESTDIR" ] || chown root:manallm "$1"; }

install_all() {
    build_library
    install -d "$DESTDIR${LAUNCHER%/*}" "$DESTDIR${UNIT%/*}" "$DESTDIR${USERS%/*}" "$DESTDIR/etc"
    printf '#!/bin/sh\nexec %s/bin/python -I -m manallm_proxy "$@"\n' "$LIB" >"$DESTDIR$LAUNCHER"
    chmod 755 "$DESTDIR$LAUNCHER"
    sed "s#/usr/local/lib/manallm-proxy#$LIB#" "$HERE/systemd/manallm-proxy.service" >"$DESTDIR$UNIT"
    install -m 644 "$HERE/systemd/manallm-proxy.sysusers" "$DESTDIR$USERS"
    make_user
    for folder in "$DESTDIR$ETC" "$DESTDIR$ETC/keys"; do
        [ -d "$folder" ] || { install -d -m 750 "$folder" && owned_by_us "$folder"; }
    done
    install_once 640 proxy.yaml
    install_once 640 aliases.yaml
    next_steps
}

next_steps() {
    say "" "manallm-proxy is installed." | tr -s '\n'
    base=$("$DESTDIR$LIB/bin/python" -I -c 'import os, sys; print(os.path.realpath(sys.executable))')
    case $base in
        /home/* | /root/* | /run/user/*)
            say "Careful: its Python is $base, which the service cannot reach (ProtectHome)." \
                "Name another: make install PYTHON=/usr/bin/python3"
            ;;
    esac
    if [ -n "$DESTDIR" ]; then
        say "A package made of $DESTDIR runs systemd-sysusers when it is installed, and gives"
        say "$ETC and what is in it to root:manallm."
        return
    fi
    say "Next:"
    say "  1. keys:    install -m 600 /dev/stdin $ETC/keys/GROQ_API_KEY   (or OPENROUTER_API_KEY, ...; see $UNIT)"
    say "  2. chains:  $ETC/proxy.yaml and $ETC/aliases.yaml, then: $LAUNCHER check --live"
    if systemd_listens; then
        systemctl daemon-reload
        case $PREFIX in
            /usr | /usr/local) ;;
            *) say "  3. unit:    systemctl link $UNIT   (systemd does not look under $PREFIX)" ;;
        esac
        if systemctl --quiet is-active manallm-proxy; then
            say "  It runs still as it was: systemctl restart manallm-proxy"
        else
            say "  Start:      systemctl enable --now manallm-proxy"
        fi
    else
        say "  Start:      $LAUNCHER serve   (systemd does not run here)"
    fi
}

uninstall_all() {
    if systemd_listens; then
        systemctl --quiet disable --now manallm-proxy 2>/dev/null || :
    fi
    remove_library "$DESTDIR$LIB"
    rm -f "$DESTDIR$LAUNCHER" "$DESTDIR$UNIT" "$DESTDIR$USERS"
    if systemd_listens; then
        systemctl daemon-reload
    fi
    say "manallm-proxy is removed. $DESTDIR$ETC and the user manallm stay; to remove them too:"
    say "  rm -r $DESTDIR$ETC$([ -n "$DESTDIR" ] || printf '; userdel manallm')"
}

case $1 in
    install) install_all ;;
    uninstall) uninstall_all ;;
esac
