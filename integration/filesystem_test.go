//go:build linux || freebsd

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/pattern"
)

func testFileSystem(r *rig) {
	id := r.start([]string{"--privileged", "--allow-new-privs"})
	commands := []string{"mkdir /tmp/fs && probe fs /tmp/fs"}
	if unpacksModes {
		commands = append(commands, "probe odd")
	}
	for _, command := range commands {
		if result := r.exec(id, nil, nil, nil, "/bin/sh", "-c", command); result.Code != 0 {
			r.Errorf("%s: exit code %d\n%s", command, result.Code, failures(result.Stdout+result.Stderr))
		}
	}
	// A set-uid program gets its owner's rights.
	if !unpacksModes {
		r.exec(id, nil, nil, nil, "/bin/chmod", "4755", "/odd/setuid")
	}
	r.expect(r.exec(id, nil, nil, []string{"--user", "1000:1000"}, "/odd/setuid", "euid"), 0, "0\n")
}

// failures are the lines of the probe's output that are not about success.
func failures(out string) string {
	var b strings.Builder
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(line, "ok ") {
			b.WriteString(line)
		}
	}
	return b.String()
}

func testReadOnlyRoot(r *rig) {
	result := r.run([]string{"--read-only"}, "/bin/sh", "-c", "touch /tmp/file; mount -o remount,rw /; touch /tmp/file")
	if result.Code == 0 || !strings.Contains(result.Stderr, "Read-only file system") {
		r.Errorf("want a read-only file system from\n%s", result)
	}
}

// publish changes a directory as Kubernetes does that of a ConfigMap: the file is
// a link by way of another, which is replaced.
func publish(r *rig, dir, content string) {
	r.Helper()
	version, data := filepath.Join(dir, ".."+content), filepath.Join(dir, "..data")
	old, _ := os.Readlink(data)
	steps := []func() error{
		func() error { return os.Mkdir(version, 0o755) },
		func() error { return os.WriteFile(filepath.Join(version, "config"), []byte(content+"\n"), 0o644) },
		func() error { return os.Symlink(filepath.Base(version), data+"_tmp") },
		func() error { return os.Rename(data+"_tmp", data) },
		func() error {
			if old == "" {
				return os.Symlink("..data/config", filepath.Join(dir, "config"))
			}
			return os.RemoveAll(filepath.Join(dir, old))
		},
	}
	for _, step := range steps {
		if err := step(); err != nil {
			r.Fatal(err)
		}
	}
}

func testMounts(r *rig) {
	rw, ro, large := r.hostDir(), r.hostDir(), r.hostDir()
	single := filepath.Join(r.hostDir(), "single")
	for _, name := range []string{filepath.Join(rw, "from-host"), filepath.Join(ro, "from-host"), single} {
		if err := os.WriteFile(name, []byte("host\n"), 0o644); err != nil {
			r.Fatal(err)
		}
	}
	secret := filepath.Join(r.hostDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o644); err != nil {
		r.Fatal(err)
	}
	// The host makes them: the guest would take a minute, in software.
	const many = 10_000
	for i := range many {
		if err := os.WriteFile(filepath.Join(large, pattern.EntryName(i)), nil, 0o644); err != nil {
			r.Fatal(err)
		}
	}
	// What a link in a mount points to is looked for in the container.
	if err := os.Symlink(secret, filepath.Join(rw, "escape")); err != nil {
		r.Fatal(err)
	}
	id := r.start([]string{
		"--privileged",
		"--mount", "type=bind,src=" + rw + ",dst=/mnt/rw,options=rbind:rw",
		"--mount", "type=bind,src=" + ro + ",dst=/mnt/ro,options=rbind:ro",
		"--mount", "type=bind,src=" + large + ",dst=/mnt/many,options=rbind:ro",
		"--mount", "type=bind,src=" + single + ",dst=/mnt/single,options=bind:ro",
		"--mount", "type=bind,src=" + single + ",dst=/etc/group,options=bind:ro",
		"--mount", "type=tmpfs,src=tmpfs,dst=/mnt/tmp,options=size=1m",
	})
	sh := func(script string) (string, int) {
		result := r.exec(id, nil, nil, nil, "/bin/sh", "-c", script)
		return result.Stdout + result.Stderr, result.Code
	}
	for _, script := range []string{
		"test $(cat /mnt/rw/from-host /mnt/ro/from-host /mnt/single | grep -c host) = 3",
		"echo guest > /mnt/rw/from-guest && chown 1000:1000 /mnt/rw/from-guest && chmod 4711 /mnt/rw/from-guest",
		"! touch /mnt/ro/new && ! rm /mnt/ro/from-host && ! sh -c 'echo x >> /mnt/ro/from-host' && ! chmod 777 /mnt/ro/from-host",
		"! sh -c 'echo x >> /mnt/single'",
		"grep -q host /etc/group && ! sh -c 'echo x >> /etc/group'",
		"! cat /mnt/rw/escape",
		fmt.Sprintf("probe entries /mnt/many %d", many),
		"mount | grep -q 'on /mnt/tmp type tmpfs' && touch /mnt/tmp/x",
		"mkdir /mnt/rw/fs && probe fs /mnt/rw/fs && rm -r /mnt/rw/fs",
	} {
		if out, code := sh(script); code != 0 {
			r.Errorf("%s: exit code %d\n%s", script, code, failures(out))
		}
	}

	// Both sides see what the other does.
	info, err := os.Stat(filepath.Join(rw, "from-guest"))
	if err != nil {
		r.Fatal(err)
	}
	if want := os.ModeSetuid | 0o711; info.Mode() != want {
		r.Errorf("the guest's file has mode %v, want %v", info.Mode(), want)
	}
	if err := os.WriteFile(filepath.Join(rw, "from-host"), []byte("changed\n"), 0o644); err != nil {
		r.Fatal(err)
	}
	if out, _ := sh("cat /mnt/rw/from-host"); out != "changed\n" {
		r.Errorf("the guest reads %q of a file that the host has changed", out)
	}

	// A process that holds on to the old one does not keep others from the new.
	publish(r, ro, "one")
	if out, _ := sh("(cd /mnt/ro && exec sleep 1000 < config) > /dev/null 2>&1 & cat /mnt/ro/config"); out != "one\n" {
		r.Errorf("the guest reads %q of a published file", out)
	}
	publish(r, ro, "two")
	if out, _ := sh("cat /mnt/ro/config"); out != "two\n" {
		r.Errorf("the guest reads %q of a file that was published anew", out)
	}

	// A tenant that is root in its machine can remount what it likes: the other
	// side has to refuse too. Under runc it has the host's kernel, and succeeds.
	if !r.reference() {
		sh("mount -o remount,rw,bind /mnt/ro; mount -o remount,rw /mnt/ro; echo x >> /mnt/ro/from-host; touch /mnt/ro/new; rm /mnt/ro/from-host")
		if data, err := os.ReadFile(filepath.Join(ro, "from-host")); err != nil || string(data) != "host\n" {
			r.Errorf("a file of a read-only mount now reads %q, %v", data, err)
		}
		if _, err := os.Stat(filepath.Join(ro, "new")); err == nil {
			r.Error("a file appeared in a read-only mount")
		}
	}
}
