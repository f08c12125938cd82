#!/bin/busybox sh
# Process 1 of the lab: brings up KVM and the host's root, runs one command there, tells how it ended, powers off.
# Records go out on the second serial port, beginning with the token; between "ready" and "end" comes the output.

busybox() { /bin/busybox "$@"; }

token=$(busybox cat /lab/token)
busybox mount -t devtmpfs dev /dev
busybox stty -F /dev/ttyS1 raw -echo 115200
exec 3>/dev/ttyS1

# Closing the port waits until all of it is sent.
off() {
    exec 3>&-
    busybox poweroff -f
}

die() {
    busybox printf '\036%s error %s\n' "$token" "$*" >&3
    off
}

try() {
    busybox "$@" || die "$* failed"
}

try mount -t proc proc /proc
try mount -t sysfs sys /sys

while read -r module; do
    busybox insmod "/modules/$module" || die "the module $module does not load"
done </lab/modules

read -r npt 2>/dev/null </sys/module/kvm_amd/parameters/npt || die "kvm_amd is not there"
[ -c /dev/kvm ] || die "kvm_amd made no /dev/kvm"

# /lower keeps the shared root as it is, for the paths that the tmpfs mounts on /host would hide.
try mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=524288 hostroot /lower
try mount -o bind /lower /host
try mount -t proc proc /host/proc
try mount -t sysfs sys /host/sys
try mount -t devtmpfs dev /host/dev
try mkdir -p /dev/pts /dev/shm
try mount -t devpts -o mode=600,ptmxmode=666 devpts /host/dev/pts
try mount -t tmpfs -o mode=1777 shm /host/dev/shm
busybox ln -s /proc/self/fd /host/dev/fd
busybox ln -s /proc/self/fd/0 /host/dev/stdin
busybox ln -s /proc/self/fd/1 /host/dev/stdout
busybox ln -s /proc/self/fd/2 /host/dev/stderr
while read -r folder; do
    try mount -t tmpfs -o mode=1777 tmpfs "/host$folder"
done </lab/scratch
while read -r path; do
    try mkdir -p "/host$path"
    try mount -o bind "/lower$path" "/host$path"
done </lab/visible
busybox ifconfig lo 127.0.0.1 up
busybox hostname lab

read -r uptime _ </proc/uptime
busybox printf '\036%s ready %s %s %s\n' "$token" "$(busybox uname -r)" "$npt" "$uptime" >&3

# A pipe, not the port itself, so that the command's output is no terminal.
busybox mkfifo /lab/output
busybox cat /lab/output >&3 &
cat=$!
busybox setsid busybox chroot /host /bin/sh -c "$(busybox cat /lab/command)" </dev/null >/lab/output 2>&1 3>&-
status=$?

# What the command left running would keep the pipe open.
for folder in /proc/[0-9]*; do
    pid=${folder#/proc/}
    [ "$pid" = 1 ] || [ "$pid" = "$cat" ] || kill -KILL "$pid" 2>/dev/null
done
wait "$cat"
read -r uptime _ </proc/uptime
busybox printf '\036%s end %s %s\n' "$token" "$status" "$uptime" >&3
off
