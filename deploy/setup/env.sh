# Sourced by the Makefile and by every script that builds or tests: where the
# caches are and which compiler is used. It sets nothing up.

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
