//go:build linux || freebsd

package host

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/thaw"
)

// TestDisks has a guest find its disks in their order, read both, and write to the
// one that it may write to.
func TestDisks(t *testing.T) {
	testConfig(t)
	disks := []hypervisor.Disk{{Path: newDisk(t, 4096, 1), ReadOnly: true}, {Path: newDisk(t, 6144, 2)}}
	was := [][]byte{contents(t, disks[0]), contents(t, disks[1])}
	r := boot(t, func(c *hypervisor.Config) {
		c.VCPUs, c.Disks = 1, disks
		// The kernel says what it finds.
		c.Cmdline = []string{"loglevel=7"}
	})
	if err := r.Machine.(hypervisor.Checkpointer).Checkpoint(testContext(t)); !errdefs.IsNotImplemented(err) {
		t.Errorf("checkpoint: %v, want that it is not implemented", err)
	}
	if _, err := thaw.Do(testContext(t), r.thaw, thaw.Identity{}); err != nil {
		t.Fatal(err)
	}
	r.scribble("/dev/vda")
	r.scribble("/dev/vdb")
	if err := r.PowerOff(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if exit := r.waitDone(); exit.Reason != hypervisor.ExitPowerOff {
		t.Errorf("exit %+v", exit)
	}
	for _, want := range []string{
		"[vda] 4096 512-byte logical blocks", " vda: vda1\r\n",
		"[vdb] 6144 512-byte logical blocks", " vdb: vdb1 vdb2\r\n",
	} {
		if !bytes.Contains(r.ConsoleTail(), []byte(want)) {
			t.Errorf("%q is not on the console", want)
		}
	}
	if !bytes.Equal(contents(t, disks[0]), was[0]) {
		t.Error("the disk that is read-only was written to")
	}
	is := contents(t, disks[1])
	if len(is) != len(was[1]) || !bytes.Contains(is[:hypervisor.SectorSize], []byte(nobody)) {
		t.Errorf("the disk that is not begins with %q", is[:64])
	}
}

// newDisk is a disk of so many sectors with a partition table (MBR).
func newDisk(t *testing.T, sectors, partitions int) string {
	t.Helper()
	data := make([]byte, sectors*hypervisor.SectorSize)
	for i := range partitions {
		entry := data[446+16*i:]
		entry[4] = 0x83                      // Linux
		entry[8], entry[12] = byte(8+8*i), 8 // first sector, and how many
	}
	data[510], data[511] = 0x55, 0xaa
	path := filepath.Join(t.TempDir(), "disk, raw")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func contents(t *testing.T, d hypervisor.Disk) []byte {
	t.Helper()
	data, err := os.ReadFile(d.Path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// nobody is a container that there is not.
const nobody = "nobody"

// scribble has a process of the guest write to a device. The only program there
// that writes what it is told to is the container runtime, of which it is an error
// in its log. It runs in the guest's own root, where the devices are.
func (r *rig) scribble(device string) {
	r.Helper()
	id := filepath.Base(device)
	config, err := json.Marshal(specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: "/"},
		Process: &specs.Process{Args: []string{"/run/runtime/crun", "--log=" + device, "state", nobody}, Cwd: "/"},
		// One at least, says the runtime.
		Mounts: []specs.Mount{{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs"}},
		Linux: &specs.Linux{
			CgroupsPath: "/" + id,
			Resources:   &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}},
		},
	})
	if err != nil {
		r.Fatal(err)
	}
	ctx := namespaces.WithNamespace(testContext(r.T), "test")
	if _, err := agentv1.NewBundleClient(r.client).Create(ctx, &agentv1.CreateBundleRequest{Id: id, Config: config}); err != nil {
		r.Fatal(err)
	}
	tasks := task.NewTTRPCTaskClient(r.client)
	if _, err := tasks.Create(ctx, &task.CreateTaskRequest{ID: id, Bundle: agentproto.BundleDir(id)}); err != nil {
		r.Fatal(err)
	}
	if _, err := tasks.Start(ctx, &task.StartRequest{ID: id}); err != nil {
		r.Fatal(err)
	}
	exit, err := tasks.Wait(ctx, &task.WaitRequest{ID: id})
	if err != nil {
		r.Fatal(err)
	}
	r.Logf("exit status %d after writing to %s", exit.ExitStatus, device)
}
