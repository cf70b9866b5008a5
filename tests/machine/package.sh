#!/usr/bin/env bash
# Installs the Debian package in a Debian 12 of its own, with systemd as its first process, and runs
# the checks of inside.sh there. The machine is fully emulated (QEMU's TCG), so it needs no
# /dev/kvm, but still offers one to its guests.
#
#   tests/machine/package.sh [PACKAGE]     builds one with the dev profile unless it is given one
#
# Needs qemu-system-x86_64, mmdebstrap, mke2fs, cargo-deb and, the first time, a Debian mirror. If
# one of them is missing it prints `skipped:` and succeeds. Slow intermediate results are kept in
# target/machine.
set -euo pipefail
cd "$(dirname "$0")/../.."

# Under emulation, an install and two watchdog timeouts take five minutes on one idle core.
readonly RUN_SECONDS=1500
readonly MIRROR=${TOWPATH_MIRROR:-http://deb.debian.org/debian}
readonly made=target/machine

skip() {
    echo "skipped: package in a machine: $1"
    exit 0
}

[ "$(uname -m)" = x86_64 ] || skip "the machine is an x86-64 one"
[ "$(id -u)" -eq 0 ] || skip "only root can make the machine's disk"
for tool in qemu-system-x86_64 mmdebstrap mke2fs; do
    command -v "$tool" >/dev/null || skip "$tool is not here"
done

package=${1:-}
if [ -z "$package" ]; then
    command -v cargo-deb >/dev/null || skip "cargo-deb is not here (cargo install --locked cargo-deb)"
    package=$(packaging/build dev)
fi
mkdir -p "$made"

# The disk image: made once, and never written to by a run.
if [ ! -s "$made/disk.img" ]; then
    scratch=$(mktemp -d "$made/root.XXXXXX")
    trap 'rm -rf --one-file-system "$scratch"' EXIT
    # A mount namespace, so that mmdebstrap's mounts go with it: a /proc still busy at its end would
    # be packed, and removed.
    if ! unshare --mount mmdebstrap --quiet --variant=minbase --mode=root \
        --include=systemd-sysv,dbus,udev,kmod,linux-image-amd64,initramfs-tools,curl,procps \
        --dpkgopt='path-exclude=/usr/share/locale/*' bookworm "$scratch/root" "$MIRROR"; then
        skip "no Debian to be had from $MIRROR"
    fi
    cp "$scratch"/root/boot/vmlinuz-* "$made/vmlinuz"
    cp "$scratch"/root/boot/initrd.img-* "$made/initrd"
    units=$scratch/root/etc/systemd/system
    cp tests/machine/check.service "$units/"
    mkdir -p "$units/multi-user.target.wants"
    ln -s ../check.service "$units/multi-user.target.wants/check.service"
    mke2fs -q -t ext4 -d "$scratch/root" "$scratch/disk.img" 3G
    mv "$scratch/disk.img" "$made/disk.img"
fi

# The second disk is a raw archive, so that no file system is needed to read it.
payload=$made/payload
rm -rf "$payload" && mkdir "$payload"
cp "$package" "$payload/towpath.deb"
cp tests/machine/inside.sh "$payload/"
tar -C "$payload" -cf "$made/payload.tar" .

log=$made/console.log
# One thread for both processors: with one each, QEMU sometimes loses guests of the machine's KVM.
timeout "$RUN_SECONDS" qemu-system-x86_64 -accel tcg,thread=single -smp 2 -cpu max,+svm,+npt -m 3072 \
    -nographic -no-reboot -nodefaults -serial stdio -snapshot \
    -kernel "$made/vmlinuz" -initrd "$made/initrd" \
    -drive "file=$made/disk.img,format=raw,if=virtio" \
    -drive "file=$made/payload.tar,format=raw,if=virtio" \
    -append "console=ttyS0 root=/dev/vda rw quiet panic=-1 net.ifnames=0 systemd.show_status=no systemd.getty_auto=no" \
    </dev/null | tee "$log" || true
grep -q '^check: all held' "$log"
