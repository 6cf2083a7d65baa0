//go:build linux || freebsd

package integration

import (
	"bytes"
	"io"
	"sync"

	"github.com/containerd/containerd/v2/pkg/cio"
)

// output is a client's end of a task's standard streams.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
	in  *io.PipeWriter
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// streams makes a client's standard streams. Input can be written to in.
func (r *rig) streams(opts ...cio.Opt) (*output, cio.Creator) {
	in, w := io.Pipe()
	o := &output{in: w}
	r.Cleanup(func() { w.Close() })
	return o, cio.NewCreator(append([]cio.Opt{cio.WithStreams(in, o, io.Discard)}, opts...)...)
}
