package process

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/tail"
)

// Names of the FIFOs in a machine's directory.
const (
	consoleFIFO = "console"
	stderrFIFO  = "stderr"
)

// output is one of the outputs of a process: a FIFO that the process itself has
// open for reading as well. So it never sees its reader gone, and another reader
// can come later. What is written without a reader waits in the FIFO, and once
// that is full is refused, as the file does not block.
//
// See docs/decisions/0040-adoption.md.
type output struct {
	path string
	tail *tail.Buffer

	// reader is nil until open, done is closed when there is nothing more to
	// read.
	reader *os.File
	done   chan struct{}
	once   sync.Once
}

func newOutput(dir, name string, max int) *output {
	return &output{path: filepath.Join(dir, name), tail: &tail.Buffer{Max: max}, done: make(chan struct{})}
}

// create makes the FIFO and returns its end for the process to inherit.
func (o *output) create() (*os.File, error) {
	// Whoever had it before is gone: the directory belongs to this machine.
	if err := o.remove(); err != nil {
		return nil, err
	}
	if err := unix.Mkfifo(o.path, 0o600); err != nil {
		return nil, &os.PathError{Op: "mkfifo", Path: o.path, Err: err}
	}
	// Not by os.OpenFile, whose files go back to blocking when they are
	// inherited.
	fd, err := unix.Open(o.path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: o.path, Err: err}
	}
	return os.NewFile(uintptr(fd), o.path), nil
}

// open opens the reader's end. The process has its own, or is gone for good.
func (o *output) open() (err error) {
	o.reader, err = os.OpenFile(o.path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	return err
}

// consoleLogLimit is how much of a guest's console goes to the debug log: a
// boot and its complaints, not what a hostile guest can write in a day.
const consoleLogLimit = 256 << 10

// read reads until the process has ended or close is called. Lines go to logger
// for debugging, unless it is nil.
func (o *output) read(logger *log.Entry) {
	defer close(o.done)
	if o.reader == nil {
		return
	}
	defer o.reader.Close()
	if logger != nil && logger.Logger.IsLevelEnabled(log.DebugLevel) {
		// Longer lines end the logging early, like the limit.
		lines := bufio.NewScanner(io.LimitReader(io.TeeReader(o.reader, o.tail), consoleLogLimit))
		for lines.Scan() {
			logger.WithField("line", lines.Text()).Debug("guest console")
		}
	}
	// Most of the time nothing is said, by any of many machines: io.Copy, and the
	// file if it were asked, have larger buffers.
	io.CopyBuffer(o.tail, struct{ io.Reader }{o.reader}, make([]byte, 512))
}

// close ends the reading. What is in the FIFO stays there.
func (o *output) close() {
	o.once.Do(func() {
		if o.reader != nil {
			o.reader.Close()
		}
	})
}

// remove removes the FIFO. What has it open keeps it.
func (o *output) remove() error {
	if err := os.Remove(o.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// RemoveOutputs removes the outputs of a process that is gone from its
// directory.
func RemoveOutputs(dir string) error {
	return errors.Join(newOutput(dir, consoleFIFO, 0).remove(), newOutput(dir, stderrFIFO, 0).remove())
}
