# Sourced: apt for packages of other Debian suites, without touching the
# system's own sources. Lists and downloads live under the cache; the mirror is
# read from the sources that apt is already set up with.

SUMUN_CACHE=${SUMUN_CACHE:-$HOME/.cache/sumun}

# Prints the base URI of the archive that serves suites matching $1 (an
# extended regular expression, for instance '-security$').
sumun_mirror() {
    apt-get indextargets --no-release-info --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' \
        | awk -v want="$1" '$2 ~ /\/debian(-security)?\/?$/ && $1 ~ want { print $2; exit }'
}

# Writes the private source list $SUMUN_CACHE/apt/$1 with the suites $2... .
# A suite whose name ends in -security comes from the security archive.
sumun_apt_sources() {
    local name=$1 dir main security suite
    shift
    dir=$SUMUN_CACHE/apt/$name
    main=$(sumun_mirror '^[a-z]+(-updates)?$')
    security=$(sumun_mirror '-security$')
    if [ -z "$main" ]; then
        echo "no Debian mirror found in apt's configuration: add a 'deb' line for Debian and run this again" >&2
        return 1
    fi
    # A host without the security suite still names the archive beside its mirror.
    security=${security:-${main%/debian*}/debian-security/}
    mkdir -p "$dir/lists/partial" "$dir/archives/partial"
    for suite in "$@"; do
        case $suite in
            *-security) echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $security $suite main" ;;
            *) echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $main $suite main" ;;
        esac
    done >"$dir/sources.list"
}

# Runs the apt program $2 over the private list $1: sumun_apt backports apt-get update
sumun_apt() {
    local dir=$SUMUN_CACHE/apt/$1 program=$2
    shift 2
    # An old suite is no longer re-signed; its packages are still verified by signature and hash.
    "$program" -q \
        -o Dir::Etc::sourcelist="$dir/sources.list" \
        -o Dir::Etc::sourceparts=- \
        -o Dir::State::lists="$dir/lists" \
        -o Dir::Cache="$dir" \
        -o Dir::Cache::archives="$dir/archives" \
        -o APT::Sandbox::User=root \
        -o Acquire::Check-Valid-Until=false \
        -o Acquire::Languages=none \
        -o Acquire::Retries=3 \
        "$@"
}
