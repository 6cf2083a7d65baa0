package proc

import (
	"os"
	"runtime"
	"testing"

	"github.com/containerd/errdefs"
)

func TestUsage(t *testing.T) {
	self, err := Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	before, err := self.Usage()
	if err != nil {
		t.Fatal(err)
	}
	const size = 32 << 20
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i)
	}
	after, err := self.Usage()
	if err != nil {
		t.Fatal(err)
	}
	runtime.KeepAlive(data)
	if after.RSS < before.RSS+size/2 || after.CPUNanoseconds < before.CPUNanoseconds {
		t.Errorf("%+v, and then with %d bytes more %+v", before, size, after)
	}
	if runtime.GOOS == "linux" && (after.PrivateDirty < size/2 || after.PSS < size/2 || after.PSS > after.RSS) {
		t.Errorf("%+v", after)
	}
	cmd, id := start(t, "sleep", "1000")
	cmd.Process.Kill()
	cmd.Wait()
	if _, err := id.Usage(); !errdefs.IsNotFound(err) {
		t.Errorf("of what is gone: %v", err)
	}
}
