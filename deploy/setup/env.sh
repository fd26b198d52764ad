# Sourced by the Makefile and by every script that builds or tests: where the
# caches are and which compiler is used. It installs nothing.

export SUMUN_CACHE=${SUMUN_CACHE:-$HOME/.cache/sumun}
# Outside the clone, so that a fresh clone does not build the dependencies anew.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$SUMUN_CACHE/target}
export SUMUN_VENV=$SUMUN_CACHE/venv
# The oldest compiler of the workspace's `rust-version`.
SUMUN_RUST_MINOR=94

# Succeeds if the cargo $1 is new enough to build the userland.
sumun_cargo_fits() {
    local version
    # A rustup proxy answers for the directory it runs in, as it will when building.
    version=$("$1" --version 2>/dev/null) || return 1
    version=${version#cargo 1.}
    version=${version%%.*}
    [ "${version:-0}" -ge "$SUMUN_RUST_MINOR" ] 2>/dev/null
}

# rustup's cargo if there is one that is new enough, on the PATH or not, so that
# every shell builds with the same compiler; else the first on the PATH; else
# Debian's cargo-web.
if sumun_cargo_fits "$HOME/.cargo/bin/cargo"; then
    PATH=$HOME/.cargo/bin:$PATH
elif ! sumun_cargo_fits cargo && sumun_cargo_fits /usr/bin/cargo; then
    PATH=/usr/bin:$PATH
fi
case :$PATH: in
    *":$SUMUN_CACHE/tools/bin:"*) ;;
    *) PATH=$SUMUN_CACHE/tools/bin:$PATH ;;
esac
export PATH

# Cargo names the workspace's crates by their place inside the workspace and looks at times alone, so
# what another clone has built passes for this one's. A clone that finds another's mark
# takes the workspace's crates out of the shared directory; third-party ones stay.
sumun_own_target() {
    local root mark=$CARGO_TARGET_DIR/.sumun-clone
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
    [ "$(cat "$mark" 2>/dev/null)" = "$root" ] && return
    if [ -e "$mark" ] || [ -d "$CARGO_TARGET_DIR/release/.fingerprint" ]; then
        echo "env: $CARGO_TARGET_DIR was last used by another clone: the workspace's own crates are built anew" >&2
        find "$CARGO_TARGET_DIR" -type d -path '*/.fingerprint/sumun*' -prune -exec rm -rf {} +
    fi
    mkdir -p "$CARGO_TARGET_DIR"
    echo "$root" >"$mark"
}
sumun_own_target
