//go:build linux

package agent

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
)

const testConfig = `{"ociVersion":"1.3.0","root":{"path":"rootfs"}}`

// fakeMounts records what bundles mount and unmount.
type fakeMounts struct {
	bundles *bundles
	mounted []string
	written []string
	refuse  string // target that cannot be mounted
	stuck   bool   // nothing can be unmounted
}

func newFakeMounts(t *testing.T) *fakeMounts {
	f := &fakeMounts{bundles: newBundles(newStreams(), newMountTable(nil), func([]byte) error { return nil })}
	root := t.TempDir()
	f.bundles.dir = func(id string) string { return filepath.Join(root, id) }
	f.bundles.mount = func(_ context.Context, conn stream, target string, s *agentv1.Share) (unmounter, error) {
		conn.Close()
		if s.Target == f.refuse {
			return nil, unix.EIO
		}
		f.mounted = append(f.mounted, s.Target)
		return fakeMount{f, s.Target}, nil
	}
	t.Cleanup(f.bundles.shares.close)
	return f
}

type fakeMount struct {
	f      *fakeMounts
	target string
}

func (m fakeMount) Unmount(context.Context) error {
	if m.f.stuck {
		return unix.EBUSY
	}
	i := slices.Index(m.f.mounted, m.target)
	if i < 0 {
		return errors.New("not mounted: " + m.target)
	}
	m.f.mounted = slices.Delete(m.f.mounted, i, i+1)
	return nil
}

func (m fakeMount) WriteBack() error {
	m.f.written = append(m.f.written, m.target)
	return nil
}

// request offers a stream for each target and asks for a bundle with them.
func (f *fakeMounts) request(t *testing.T, id string, targets ...string) *agentv1.CreateBundleRequest {
	r := &agentv1.CreateBundleRequest{Id: id, Config: []byte(testConfig)}
	for _, target := range targets {
		_, guest := net.Pipe()
		stream := id + target
		if err := f.bundles.shares.offer(stream, pipeStream{guest}); err != nil {
			t.Fatal(err)
		}
		r.Shares = append(r.Shares, &agentv1.Share{Stream: stream, Target: target})
	}
	return r
}

func TestBundleLife(t *testing.T) {
	f := newFakeMounts(t)
	b := f.bundles
	if _, err := b.Create(t.Context(), f.request(t, "c1", "rootfs")); err != nil {
		t.Fatal(err)
	}
	if want := []string{"rootfs"}; !slices.Equal(f.mounted, want) {
		t.Errorf("mounted %v, want %v", f.mounted, want)
	}
	if _, err := b.Create(t.Context(), f.request(t, "c1")); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second bundle of that name: %v; want AlreadyExists", err)
	}

	if err := b.use("c1"); err != nil {
		t.Fatal(err)
	}
	if err := b.use("c1"); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second task of the bundle: %v; want AlreadyExists", err)
	}
	if _, err := b.Delete(t.Context(), &agentv1.DeleteBundleRequest{Id: "c1"}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("delete while a task runs: %v; want FailedPrecondition", err)
	}
	if _, err := b.WriteBack(t.Context(), &agentv1.WriteBackRequest{Id: "c1"}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"rootfs"}; !slices.Equal(f.written, want) {
		t.Errorf("written back %v, want %v", f.written, want)
	}
	b.unuse("c1")

	for range 2 {
		if _, err := b.Delete(t.Context(), &agentv1.DeleteBundleRequest{Id: "c1"}); err != nil {
			t.Fatal(err)
		}
	}
	if len(f.mounted) > 0 {
		t.Errorf("still mounted: %v", f.mounted)
	}
	if _, err := os.Stat(b.dir("c1")); !os.IsNotExist(err) {
		t.Errorf("the directory is still there: %v", err)
	}
	if _, err := b.WriteBack(t.Context(), &agentv1.WriteBackRequest{Id: "c1"}); !errdefs.IsNotFound(err) {
		t.Errorf("write-back of a deleted bundle: %v; want NotFound", err)
	}
	if err := b.use("c1"); !errdefs.IsNotFound(err) {
		t.Errorf("use of a deleted bundle: %v; want NotFound", err)
	}
}

func TestBundleCreateIsAllOrNothing(t *testing.T) {
	f := newFakeMounts(t)
	f.refuse = "rootfs"
	_, err := f.bundles.Create(t.Context(), f.request(t, "c1", "rootfs"))
	if !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), "rootfs") {
		t.Errorf("got %v; want EIO, and what failed", err)
	}
	if len(f.mounted) > 0 {
		t.Errorf("still mounted: %v", f.mounted)
	}
	if _, err := os.Stat(f.bundles.dir("c1")); !os.IsNotExist(err) {
		t.Errorf("the directory is still there: %v", err)
	}
	f.refuse = ""
	if _, err := f.bundles.Create(t.Context(), f.request(t, "c1", "rootfs")); err != nil {
		t.Errorf("the name cannot be used again: %v", err)
	}
}

func TestBundleCreateUnknownStream(t *testing.T) {
	f := newFakeMounts(t)
	r := &agentv1.CreateBundleRequest{Id: "c1", Config: []byte(testConfig), Shares: []*agentv1.Share{{Stream: "absent", Target: "rootfs"}}}
	if _, err := f.bundles.Create(t.Context(), r); !errdefs.IsNotFound(err) {
		t.Errorf("got %v; want NotFound", err)
	}
}

func TestBundleDeleteFailsAndIsRepeated(t *testing.T) {
	f := newFakeMounts(t)
	if _, err := f.bundles.Create(t.Context(), f.request(t, "c1", "rootfs")); err != nil {
		t.Fatal(err)
	}
	f.stuck = true
	if _, err := f.bundles.Delete(t.Context(), &agentv1.DeleteBundleRequest{Id: "c1"}); !errors.Is(err, unix.EBUSY) {
		t.Errorf("got %v; want EBUSY", err)
	}
	f.stuck = false
	if _, err := f.bundles.Delete(t.Context(), &agentv1.DeleteBundleRequest{Id: "c1"}); err != nil {
		t.Error(err)
	}
	if len(f.mounted) > 0 {
		t.Errorf("still mounted: %v", f.mounted)
	}
}

func TestBundleValidation(t *testing.T) {
	valid := func() *agentv1.CreateBundleRequest {
		return &agentv1.CreateBundleRequest{Id: "c1", Config: []byte(testConfig)}
	}
	share := func(targets ...string) *agentv1.CreateBundleRequest {
		r := valid()
		for _, target := range targets {
			r.Shares = append(r.Shares, &agentv1.Share{Stream: "s", Target: target})
		}
		return r
	}
	for name, r := range map[string]*agentv1.CreateBundleRequest{
		"no id":                  {Config: []byte(testConfig)},
		"id is a path":           {Id: "../c1", Config: []byte(testConfig)},
		"id is dots":             {Id: "..", Config: []byte(testConfig)},
		"no config":              {Id: "c1"},
		"config is no object":    {Id: "c1", Config: []byte(`[]`)},
		"config without version": {Id: "c1", Config: []byte(`{}`)},
		"config of version 2":    {Id: "c1", Config: []byte(`{"ociVersion":"2.0.0"}`)},
		"no target":              share(""),
		"bundle itself":          share("."),
		"absolute":               share("/etc"),
		"parent":                 share(".."),
		"way out":                share("rootfs/../../etc"),
		"volume":                 share("volumes/0"),
		"in rootfs":              share("rootfs/etc"),
		"config.json":            share("config.json"),
		"trailing":               share("rootfs/"),
		"twice":                  share("rootfs", "rootfs"),
		"cache":                  {Id: "c1", Config: []byte(testConfig), Shares: []*agentv1.Share{{Target: "rootfs", Cache: 7}}},
		"nil share":              {Id: "c1", Config: []byte(testConfig), Shares: []*agentv1.Share{nil}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeMounts(t)
			if _, err := f.bundles.Create(t.Context(), r); !errdefs.IsInvalidArgument(err) {
				t.Errorf("got %v; want InvalidArgument", err)
			}
		})
	}
}

func TestRuntimeConfig(t *testing.T) {
	out, err := runtimeConfig([]byte(`{"ociVersion":"1.3.0","process":{"args":["a"],"x":9007199254740993}}`))
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		OCIVersion string          `json:"ociVersion"`
		Process    json.RawMessage `json:"process"`
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if got.OCIVersion != runtimeOCIVersion {
		t.Errorf("version %q, want %q", got.OCIVersion, runtimeOCIVersion)
	}
	if want := `{"args":["a"],"x":9007199254740993}`; string(got.Process) != want {
		t.Errorf("process %s, want it untouched: %s", got.Process, want)
	}
}

func TestShareOptions(t *testing.T) {
	for _, tc := range []struct {
		share *agentv1.Share
		flags uintptr
		data  string
	}{
		{
			&agentv1.Share{Cache: agentv1.Cache_CACHE_EXCLUSIVE},
			0,
			"trans=fd,rfdno=7,wfdno=7,version=9p2000.L,access=client,msize=1048576,cache=loose",
		},
		{
			&agentv1.Share{Cache: agentv1.Cache_CACHE_SHARED, ReadOnly: true},
			unix.MS_RDONLY,
			"trans=fd,rfdno=7,wfdno=7,version=9p2000.L,access=client,msize=1048576,cache=mmap",
		},
	} {
		flags, data := shareOptions(7, tc.share)
		if flags != tc.flags || data != tc.data {
			t.Errorf("%v: got %#x %q, want %#x %q", tc.share, flags, data, tc.flags, tc.data)
		}
	}
}
