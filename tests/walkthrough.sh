#!/bin/sh
# A new user's way, step by step, with what README.md and the manual pages say and nothing else: from an empty machine to
# the first frame and back. Runs in a fresh root that debootstrap makes (Debian; as root), or with --here on a machine that
# is there to be tried (FreeBSD, as root). What was built in target/release is installed; nothing is compiled inside.
#
#   sh tests/walkthrough.sh [--here] [ROOT]
set -eu
cd "$(dirname "$0")/.."
here=no
[ "${1:-}" = --here ] && { here=yes; shift; }
root=${1:-/tmp/gamegend-walkthrough}
suite=${SUITE:-bookworm}

step() { printf '\n== %s\n' "$*"; }
fail() { echo "FAILED: $*" >&2; exit 1; }

[ "$(id -u)" -eq 0 ] || fail "only root can make a fresh root"
for program in gamegend gamegendctl; do
	[ -x target/release/$program ] || fail "target/release/$program is missing: make build"
done

# The steps of the user, in sh, inside.
steps() {
	cat <<'INSIDE'
set -eu
step() { printf '\n== %s\n' "$*"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
expect() { # exit code, command...
	wanted=$1; shift
	set +e; "$@"; found=$?; set -e
	[ $found -eq $wanted ] || fail "$* ended with $found, the manual says $wanted"
}
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
config=/usr/local/etc/gamegend/gamegend.toml

step "nothing is installed yet"
expect 127 sh -c 'gamegend -h 2>/dev/null'

step "make install"
make install CARGO=true >/dev/null

step "the manual pages are there and name the next steps"
for page in man8/gamegend.8 man8/gamegendctl.8 man5/gamegend.toml.5 man7/gamegend-protocol.7; do
	[ -r /usr/local/share/man/$page ] || fail "$page"
done
grep -q 'service gamegend start' /usr/local/share/man/man8/gamegend.8

step "gamegend -n checks the configuration that was installed"
expect 0 gamegend -n -c $config
expect 0 gamegendctl configtest -c $config

step "a typing error is told with its line, its key and what is allowed (exit 78)"
sed 's/^#device = .*/device = "gpu"/' $config >/tmp/wrong.toml
expect 78 gamegend -n -c /tmp/wrong.toml

step "without a daemon gamegendctl says how to start one (exit 69)"
expect 69 gamegendctl status

step "the processor is to be used"
sed -i.bak 's/^#device = "auto"/device = "cpu"/' $config
sed -i.bak 's|^#file = ""|file = "/var/log/gamegend.json"|' $config

step "gamegend starts in the background and comes back when it is ready"
if [ "$(uname)" = FreeBSD ]; then
	sysrc gamegend_enable=YES
	service gamegend start
else
	gamegend -c $config
fi
gamegendctl ready --wait 60
gamegendctl status

step "the first frame, over the Unix socket"
gamegendctl play --prompt "a beach" --size 160x96 --keys W,D --frames 24 -o /tmp/last.jpg
[ -s /tmp/last.jpg ] || fail "no picture"
expect 0 sh -c 'head -c 2 /tmp/last.jpg | od -An -tx1 | grep -q "ff d8"'

step "a clip, as the first example of gamegendctl(8) says"
gamegendctl generate --prompt "a snowy forest at night" --size 160x96 --frames 12 -o /tmp/out.mp4
expect 0 sh -c 'head -c 12 /tmp/out.mp4 | grep -q ftyp'
gamegendctl sessions
gamegendctl status --json | grep -q '"worker":{.*"stats":{' || fail "gamegendctl(8) shows .worker.stats"
gamegendctl gpu

step "what the roles do"
kill -USR1 `cat /var/run/gamegend/gamegend.pid`
sleep 1; tail -n 1 /var/log/gamegend.json
tail -n 1 /var/log/gamegend.json | grep -q 'worker up as process' || fail "the log does not say it"

step "a reload"
kill -HUP "$(cat /var/run/gamegend/gamegend.pid)"
gamegendctl reload -c $config
gamegendctl ready

step "an upgrade in place keeps the process"
before=$(cat /var/run/gamegend/gamegend.pid)
gamegendctl upgrade -c $config
sleep 1
gamegendctl ready --wait 60
[ "$(cat /var/run/gamegend/gamegend.pid)" = "$before" ] || fail "it is another process"

step "models are versions beside each other"
cp -r /usr/local/share/gamegend/models/gamegen-x-mini /usr/local/share/gamegend/models/second
gamegendctl model activate gamegen-x-mini
gamegendctl model activate second
gamegendctl model list
gamegendctl reload -c $config
sleep 1
gamegendctl ready --wait 60
gamegendctl status --json | grep -q '"state":"ready"'
gamegendctl model rollback
rm -r /usr/local/share/gamegend/models/second

step "the log file holds objects of JSON"
grep -q '"role":"worker"' /var/log/gamegend.json

step "it stops, and leaves nothing that runs"
pid=$(cat /var/run/gamegend/gamegend.pid)
if [ "$(uname)" = FreeBSD ]; then service gamegend stop; else kill "$pid"; fi
n=0
while kill -0 "$pid" 2>/dev/null; do n=$((n + 1)); [ $n -lt 300 ] || fail "it does not end"; sleep 0.1; done
[ ! -e /var/run/gamegend/gamegend.sock ] || fail "the socket is still there"

step "make uninstall"
rm -f /usr/local/share/gamegend/models/current /usr/local/share/gamegend/models/previous $config.bak
make uninstall >/dev/null
[ ! -e /usr/local/sbin/gamegend ] || fail "gamegend is still there"
[ -e $config ] || fail "a configuration that was changed must stay"
INSIDE
}

if [ $here = yes ]; then
	steps | sh
	step "all steps worked"
	exit 0
fi

step "a fresh root of $suite in $root"
cleanup() {
	[ -s "$root/var/run/gamegend/gamegend.pid" ] && kill "$(cat "$root/var/run/gamegend/gamegend.pid")" 2>/dev/null && sleep 1
	for mount in src proc dev sys; do umount -R -l "$root/$mount" 2>/dev/null || true; done
	umount -l "$root" 2>/dev/null || true
}
trap cleanup EXIT INT TERM
if [ ! -x "$root/usr/bin/make" ]; then
	command -v debootstrap >/dev/null 2>&1 || { echo "skipped: debootstrap is not installed"; trap - EXIT; exit 0; }
	debootstrap --variant=minbase --include=make "$suite" "$root" >/tmp/gamegend-debootstrap.log 2>&1 ||
		fail "debootstrap, see /tmp/gamegend-debootstrap.log"
fi
rm -rf "$root/usr/local" "$root/var/db/gamegend" "$root/var/log/gamegend.json" "$root/src"
mkdir -p "$root/usr/local"
# A machine's root is a mount point.
mount --bind "$root" "$root"
# What a user has after unpacking and building: the tree, read-only.
mkdir -p "$root/src"
for mount in proc dev sys; do mount --rbind "/$mount" "$root/$mount"; mount --make-rslave "$root/$mount"; done
mount --bind "$PWD" "$root/src"
mount -o remount,bind,ro "$root/src"
steps >"$root/tmp/steps.sh"
# Namespaces of its own: nothing of it is left on this machine.
unshare --fork --net chroot "$root" sh -c 'cd /src && sh /tmp/steps.sh'
step "all steps worked"
