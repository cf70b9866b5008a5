#!/bin/sh
# Checks the package from inside a Debian with systemd. package.sh runs it.
#
# This host is the edge, installed as an operator would install it. The region is a second pair of
# daemons on the same machine, run directly from a folder, so that there is a link and a target for
# moves.
set -u
failed=0

# Under emulation everything takes twenty times as long.
WAIT_SECONDS=120

held() {
    name=$1
    shift
    if "$@"; then
        echo "held: $name ($(cut -d' ' -f1 /proc/uptime) s)"
    else
        failed=$((failed + 1))
        echo "NOT HELD: $name"
        echo "  $*"
        journalctl --no-pager -n 25 -o short-monotonic 2>/dev/null | sed 's/^/  | /'
    fi
}

# Retries a command until it succeeds.
until_held() {
    name=$1
    shift
    left=$WAIT_SECONDS
    while [ "$left" -gt 0 ] && ! "$@" >/dev/null 2>&1; do
        sleep 1
        left=$((left - 1))
    done
    held "$name" "$@"
}

property() { systemctl show --property "$2" --value "$1"; }
is() { [ "$(property "$1" "$2")" = "$3" ]; }
is_not() { [ "$(property "$1" "$2")" != "$3" ]; }
user_of() { stat -c %U "/proc/$(property "$1" MainPID)"; }
runs_as() { [ "$(user_of "$1")" = "$2" ]; }
fails() { ! "$@"; }
says() { word=$1; shift; "$@" 2>&1 | grep -q -- "$word"; }
no_failed_unit() { [ -z "$(systemctl list-units --failed --plain --no-legend 'towpath*')" ]; }
region() { curl -sS --unix-socket /root/region/run/migrator.sock "$@"; }
tunnel_of() { curl -sS --unix-socket "$1" http://localhost/status; }

echo "=== installed, not configured"
held "it installs" dpkg -i /root/check/towpath.deb
held "nothing has failed" no_failed_unit
for unit in towpath-tunnel.service towpath-migrator.service towpath-tunnel.socket; do
    held "$unit waits for an identity" is $unit ActiveState inactive
    held "$unit is enabled" systemctl -q is-enabled $unit
done
held "starting it is no failure" systemctl start towpath-tunnel.service towpath-migrator.service
held "a user of the tunnel's own" getent passwd towpath-tunnel
held "a user of the migrator's own" getent passwd towpath-migrator
held "manual pages" test -s /usr/share/man/man1/towpath-migrate.1.gz
held "completions" grep -q migrate /usr/share/bash-completion/completions/towpath
held "larger UDP buffers" grep -qx 4194304 /proc/sys/net/core/rmem_max
held "what is missing is said" says 'site' towpath config check /etc/towpath/tunnel.toml

echo "=== configured"
cd /root || exit 1
towpath certs init --dir authority --trust-domain shop.example >/dev/null
towpath certs issue --authority authority --site edge --host box --out box >/dev/null
towpath certs issue --authority authority --site region --host rack --out rack >/dev/null
identity=/etc/towpath/identity
install -m 0644 box/cert.pem box/ca.pem -t $identity
install -m 0600 box/key.pem -t $identity
sed -i -e 's/^# site = /site = /; s/"box-1"/"box"/; s/^# host = /host = /' \
    -e 's/^# trust_domain/trust_domain/; s/^# \(\[\[peers\]\]\)/\1/; s/^# address = .*/address = "127.0.0.1:4790"/' \
    -e 's/^# send_rate = .*/send_rate = "40Mbit"/; s/^# site = "region"/site = "region"/' \
    -e 's/^# \(\[\[services\]\]\)/\1/; s/^# name = /name = /; s/^# allow = /allow = /' \
    -e 's/^# socket = /socket = /' /etc/towpath/tunnel.toml /etc/towpath/migrator.toml
for file in tunnel migrator; do
    held "$file.toml is right" towpath config check /etc/towpath/$file.toml
done
mkdir -m 0700 region
cat >region/tunnel.toml <<END
site = "region"
host = "rack"
listen = "127.0.0.1:4790"
socket = "/root/region/run/tunnel.sock"
[[peers]]
site = "edge"
[[services]]
name = "migrator"
socket = "/root/region/run/migrator-service.sock"
allow = ["edge"]
[[services]]
name = "bench"
socket = "builtin:bench"
allow = ["edge"]
[[services]]
name = "echo"
target = "unix:/run/echo.sock"
allow = ["edge"]
[admin]
socket = "/root/region/run/tunnel-admin.sock"
[certificates]
cert = "/root/rack/cert.pem"
key = "/root/rack/key.pem"
ca = "/root/rack/ca.pem"
END
cat >region/migrator.toml <<END
trust_domain = "shop.example"
site = "region"
host = "rack"
state_dir = "/root/region/state"
run_dir = "/root/region/run"
END
# An echo service.
cat >/run/systemd/system/echo.socket <<END
[Socket]
ListenStream=/run/echo.sock
SocketMode=0600
Accept=yes
END
cat >/run/systemd/system/echo@.service <<END
[Service]
ExecStart=/bin/cat
StandardInput=socket
END
systemctl daemon-reload
systemctl start echo.socket
systemd-run --quiet --unit=region-tunnel towpath tunnel run --config /root/region/tunnel.toml
systemd-run --quiet --unit=region-migrator towpath migrator run --config /root/region/migrator.toml
systemctl start towpath-tunnel.socket towpath-tunnel-admin.socket towpath-migrator.socket \
    towpath-migrator-service.socket
held "the tunnel starts" systemctl start towpath-tunnel.service
held "the migrator starts" systemctl start towpath-migrator.service
until_held "the link is up, and the status line says so" \
    is towpath-tunnel.service StatusText "1 of 1 links up"
held "the tunnel is not root" runs_as towpath-tunnel.service towpath-tunnel
held "the migrator is not root" runs_as towpath-migrator.service towpath-migrator
held "sockets are the manager's" is towpath-tunnel.socket ActiveState active
held "operators are answered" says edge towpath status
held "others are not" fails setpriv --reuid=65534 --regid=65534 --clear-groups \
    curl -sS --unix-socket /run/towpath/tunnel-admin.sock http://localhost/status
network_of() { readlink "/proc/$1/ns/net"; }
has_own_network() { [ "$(network_of "$(property "$1" MainPID)")" != "$(network_of 1)" ]; }
held "no network for the migrator" has_own_network towpath-migrator.service
held "the host's for the tunnel" fails has_own_network towpath-tunnel.service
held "the migrator's port is shut" fails curl -sS http://127.0.0.1:9101/metrics
sed -i 's/^# listen = .*/listen = "127.0.0.1:9101"/' /etc/towpath/migrator.toml
# The manager cannot open a socket for a daemon that is already running.
systemctl stop towpath-migrator.service
systemctl start towpath-migrator-metrics.socket
held "the migrator starts again" systemctl start towpath-migrator.service
held "unless the manager opens it" says towpath_guests_running \
    curl -sS http://127.0.0.1:9101/metrics

held "the link can be measured" says '"goodput_bytes_per_second"' \
    towpath tunnel bench region --time 3s -o json
held "and is capped" says 'capped at 40' towpath tunnel bench region --time 1s

echo "=== a connection is held from here on"
held "a channel is opened" towpath channel open echo --peer region --service echo --listen tcp:127.0.0.1:7007
# A broken connection shows in what is echoed, and must not end this script.
trap '' PIPE
until_held "and listens" bash -c 'exec 3<>/dev/tcp/127.0.0.1/7007'
mkfifo said
bash -c 'exec 3<>/dev/tcp/127.0.0.1/7007 && { cat <&3 >heard & cat said >&3; }' &
# Opened for reading and writing, because nothing here may wait for a reader that never comes.
exec 9<>said
answered() {
    echo "$1" >&9
    until_held "the connection goes on ($1)" grep -qx "$1" heard
}
answered "before all else"

echo "=== a guest moves while the tunnel is reloaded"
metrics_of() { curl -sS --unix-socket "$1" http://localhost/metrics; }
capped_at() { says "^towpath_tunnel_rate_limit_bytes_per_second{peer=\"region\"} $1\$" \
    metrics_of /run/towpath/tunnel-admin.sock; }
held "a guest starts" towpath guest start moved --memory 64MiB
before=$(property towpath-tunnel.service MainPID)
held "the cap is the configuration's" capped_at 5000000
towpath migrate moved region --detach
sed -i 's/^send_rate = .*/send_rate = "20Mbit"/' /etc/towpath/tunnel.toml
held "a reload is accepted" systemctl reload towpath-tunnel.service
held "what was changed holds at once" capped_at 2500000
held "the guest still moves" says '"phase": *"copying"' towpath migration show -o json
answered "while a guest moves"
held "the move arrives" sh -c "towpath migration watch -o json >/dev/null"
held "on its first attempt" says '"attempts": *1' towpath migration show -o json
held "by the same tunnel" is towpath-tunnel.service MainPID "$before"
held "every page is right" says '"verified": *true' \
    region -X POST http://localhost/v1/guests/moved/verify
answered "after the move"

echo "=== the key is exchanged under that connection"
key=/run/towpath/tunnel-key.pem
in_use() { says "\"serial\":\"$1\"" tunnel_of /run/towpath/tunnel-admin.sock; }
no_problem() { fails says '"problem":"' tunnel_of /run/towpath/tunnel-admin.sock; }
serial_of() { towpath certs show "$1" -o json | grep -o '"serial": *"[0-9a-f]*"' | head -n 1 | cut -d'"' -f4; }
first=$(serial_of box/cert.pem)
held "the first certificate is in use" in_use "$first"
towpath certs renew --authority authority --dir box --new-key >/dev/null
next=$(serial_of box/cert.pem)
install -m 0600 box/key.pem -t $identity
held "it is another one" [ "$first" != "$next" ]
held "another reload is accepted" systemctl reload towpath-tunnel.service
held "the key is handed over" cmp box/key.pem $key
held "to the tunnel's user alone" [ "$(stat -c '%U %a' $key)" = "towpath-tunnel 600" ]
held "its certificate is still to come, and nothing is wrong" no_problem
install -m 0644 box/cert.pem -t $identity
until_held "the new certificate is in use" in_use "$next"
held "and nothing is wrong" no_problem
held "in the same tunnel" is towpath-tunnel.service MainPID "$before"
answered "with a new key"

echo "=== hung daemons are killed"
held "another guest starts" towpath guest start kept --memory 32MiB
guest=$(pgrep -u towpath-migrator -f guest-process)
for daemon in tunnel migrator; do
    unit=towpath-$daemon.service
    before=$(property $unit MainPID)
    kill -STOP "$before"
    until_held "the watchdog ends a stopped $daemon" is_not $unit NRestarts 0
    until_held "another $daemon is ready" is $unit ActiveState active
    held "it is another process" is_not $unit MainPID "$before"
done
held "the new key is its credential" fails test -e $key
held "with its certificate" in_use "$next"
exec 9>&-
until_held "the link is up again" is towpath-tunnel.service StatusText "1 of 1 links up"
held "the guest's process has outlived it" kill -0 "$guest"
until_held "and is found again" says running towpath guest ls

echo "=== upgraded while the guest runs"
held "a channel listens in the folder for them" towpath channel open till --peer region --service bench \
    --listen unix:/run/towpath-channels/till.sock
until_held "on its Unix socket" test -S /run/towpath-channels/till.sock
before=$(property towpath-migrator.service MainPID)
held "the package is installed over itself" dpkg -i /root/check/towpath.deb
until_held "the migrator is another one" is_not towpath-migrator.service MainPID "$before"
until_held "the link is up once more" is towpath-tunnel.service StatusText "1 of 1 links up"
held "the guest's process is the same" kill -0 "$guest"
until_held "and runs" says running towpath guest ls
until_held "the channel is there again" test -S /run/towpath-channels/till.sock
held "units stay enabled" systemctl -q is-enabled towpath-tunnel.service towpath-migrator.service

echo "=== removed"
held "a package with guests stays" fails dpkg --purge towpath
held "the guest still runs" kill -0 "$guest"
held "the guest stops" towpath guest stop kept
held "the socket for metrics is wanted" systemctl -q enable towpath-migrator-metrics.socket
held "then it goes" dpkg --remove towpath
held "and comes again" dpkg -i /root/check/towpath.deb
until_held "the migrator is there" is towpath-migrator.service ActiveState active
held "its port is open" says towpath_guests_running curl -sS http://127.0.0.1:9101/metrics
held "it goes for good" dpkg --purge towpath
left() { find /etc /usr /var /run /lib -xdev -iname '*towpath*' 2>/dev/null; }
nothing_left() { [ -z "$(left)" ]; }
held "no file is left: $(left | tr '\n' ' ')" nothing_left
held "no user is left" fails getent passwd towpath-tunnel towpath-migrator
held "no group is left" fails getent group towpath-tunnel towpath-migrator
held "no process is left" fails pgrep -f '/etc/towpath'
held "no unit is left" sh -c '[ -z "$(systemctl list-units --all --plain --no-legend "towpath*")" ]'

if [ "$failed" -eq 0 ]; then
    echo "check: all held"
else
    echo "check: $failed did not hold"
fi
