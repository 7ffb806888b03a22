#!/bin/sh
# The daemon's main job on the embedded KEK, in .run/ of this checkout: make a
# keyset, serve, encrypt and decrypt through the socket, say what kube-apiserver
# needs, and stay until Ctrl-C.
set -eu
cd "$(dirname "$0")/.."
umask 077
mkdir -p .run
chmod 700 .run
keyset=$PWD/.run/keyset.json
socket=$PWD/.run/kube-kek.sock

if [ ! -e "$keyset" ]; then
	echo "== a keyset, which is the KEK here"
	./bin/kube-kek keyset create "$keyset"
fi

echo "== the daemon, on $socket (its log: .run/log)"
./bin/kube-kek serve --kek "tink-keyset://$keyset" --cluster try-out --socket "$socket" \
	--allow-uid "$(id -u)" --health-address 127.0.0.1:0 --log-format text 2>.run/log &
daemon=$!
trap 'kill "$daemon" 2>/dev/null || true; wait "$daemon" 2>/dev/null || true' EXIT
trap 'exit 0' INT TERM

tries=0
until [ -S "$socket" ] && ./bin/kube-kek probe --socket "$socket" >.run/probe 2>&1; do
	tries=$((tries + 1))
	if [ "$tries" -ge 50 ] || ! kill -0 "$daemon" 2>/dev/null; then
		cat .run/probe .run/log >&2
		exit 1
	fi
	sleep 0.1
done
echo "== an Encrypt and a Decrypt through the socket, as kube-apiserver would"
cat .run/probe

echo "== the EncryptionConfiguration for kube-apiserver's --encryption-provider-config"
./bin/kube-kek encryption-config --socket "$socket"

echo "== serving until Ctrl-C"
wait "$daemon"
