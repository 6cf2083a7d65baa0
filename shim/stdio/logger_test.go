package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/proc"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
)

// shell is the URI of a logger that is a shell script.
func shell(scheme, script string) string {
	return (&url.URL{Scheme: scheme, Path: "/bin/sh", RawQuery: "-c=" + url.QueryEscape(script)}).String()
}

// isReady is how a script says that it is ready, in the second version.
const isReady = "printf x >&5; exec 5>&-; "

// short are bounds that a test can wait for.
var short = bounds{ready: time.Second, eof: 100 * time.Millisecond, term: 100 * time.Millisecond}

// logged makes the bed's outputs go to a logger.
func (b *bed) logged(uri string) {
	b.cfg.Stdout, b.cfg.Stderr = uri, uri
}

func (b *bed) file(name string) string {
	b.t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		b.t.Fatal(err)
	}
	return string(data)
}

// loggerGone checks that the logger has ended and that no receipt is left.
func (b *bed) loggerGone(o *IO) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	must(b.t, o.AwaitLogger(ctx))
	if b.book.Len() != 0 {
		b.t.Errorf("%d receipts are left", b.book.Len())
	}
}

func TestLoggerGetsBothStreams(t *testing.T) {
	b := newBed(t)
	dir := t.TempDir()
	b.logged(shell("binary-v2", "cd "+dir+"; env > env; "+isReady+"cat <&3 > out & cat <&4 > err; wait; touch done"))
	o := b.open()
	env := b.file(dir + "/env") // it was ready before Open returned
	for _, want := range []string{"CONTAINER_ID=c1\n", "CONTAINER_NAMESPACE=ns\n"} {
		if !strings.Contains(env, want) {
			t.Errorf("%q is not in the environment %q", want, env)
		}
	}
	if b.book.Len() != 1 {
		t.Errorf("%d receipts, want that of the logger", b.book.Len())
	}
	data := payload(1 << 20)
	for _, name := range []string{"stderr", "stdout"} {
		_, err := b.end(name).Write(data)
		must(t, err)
		b.end(name).Close()
	}
	if !o.WaitDrained(t.Context(), patience) {
		t.Fatal("not drained")
	}
	o.Close()
	b.loggerGone(o)
	if b.file(dir+"/out") != string(data) || b.file(dir+"/err") != string(data) {
		t.Error("the logger did not get what the process wrote")
	}
	if _, err := os.Stat(dir + "/done"); err != nil {
		t.Error("the logger was not left to end by itself")
	}
}

func TestLoggerOfATerminal(t *testing.T) {
	b := newBed(t)
	dir := t.TempDir()
	b.logged(shell("binary", "exec 5>&-; cat <&4 > "+dir+"/err; cat <&3 > "+dir+"/out"))
	b.cfg.Terminal = true
	o := b.open()
	if g := o.Guest(); g.Stderr != "" || g.Stdout == "" || !g.Terminal {
		t.Errorf("guest's stdio is %+v", g)
	}
	_, err := b.end("stdout").Write([]byte("x"))
	must(t, err)
	b.end("stdout").Close()
	o.WaitDrained(t.Context(), patience)
	o.Close()
	b.loggerGone(o)
	if got := b.file(dir + "/out"); got != "x" {
		t.Errorf("logged %q", got)
	}
}

func TestLoggersThatDoNotStart(t *testing.T) {
	for name, tc := range map[string]struct {
		uri  string
		kind func(error) bool
		word string
	}{
		"no program":      {"binary:///nonexistent/logger", errdefs.IsNotFound, "/nonexistent/logger"},
		"no rights":       {"binary:///etc/passwd", errdefs.IsPermissionDenied, "/etc/passwd"},
		"never ready":     {shell("binary", "sleep 1000"), errdefs.IsDeadlineExceeded, "not ready within 1s"},
		"crashed":         {shell("binary", "echo disk full >&2; exit 3"), errdefs.IsFailedPrecondition, "disk full"},
		"crashed, v2":     {shell("binary-v2", "echo disk full >&2; exit 3"), errdefs.IsFailedPrecondition, "exit status 3"},
		"not ready, v2":   {shell("binary-v2", "exec 5>&-; sleep 1000"), errdefs.IsFailedPrecondition, "not ready"},
		"malformed query": {"binary:///bin/sh?%zz", errdefs.IsInvalidArgument, "%zz"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			p, err := parsePlace(tc.uri)
			must(t, err)
			l, err := startLogger(t.Context(), p, b.streams(), short)
			if err == nil {
				closeAll([]*os.File{l.stdout, l.stderr})
				l.end()
				t.Fatal("started")
			}
			if !tc.kind(err) || !strings.Contains(err.Error(), tc.word) {
				t.Errorf("got %v", err)
			}
			if b.book.Len() != 0 {
				t.Errorf("%d receipts are left", b.book.Len())
			}
		})
	}
}

// The first version of the protocol knows no word for being ready.
func TestASilentLoggerIsReady(t *testing.T) {
	b := newBed(t)
	p, err := parsePlace(shell("binary", "exec 5>&-; cat <&3"))
	must(t, err)
	l, err := startLogger(t.Context(), p, b.streams(), short)
	must(t, err)
	closeAll([]*os.File{l.stdout, l.stderr})
	l.end()
	<-l.ended
	must(t, l.err)
}

func TestLoggersThatDoNotEnd(t *testing.T) {
	for name, tc := range map[string]struct {
		script, want string
		term         time.Duration
	}{
		"asked":  {"trap 'exit 7' TERM; " + isReady + "while :; do sleep 0.01; done", "exit status 7", patience},
		"killed": {"trap '' TERM; " + isReady + "while :; do sleep 0.01; done", "signal: killed", short.term},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			p, err := parsePlace(shell("binary-v2", tc.script))
			must(t, err)
			l, err := startLogger(t.Context(), p, b.streams(), bounds{ready: patience, eof: short.eof, term: tc.term})
			must(t, err)
			closeAll([]*os.File{l.stdout, l.stderr})
			l.end()
			select {
			case <-l.ended:
			case <-time.After(2 * patience):
				t.Fatal("the logger lives on")
			}
			if l.err == nil || l.err.Error() != tc.want {
				t.Errorf("ended with %v, want %s", l.err, tc.want)
			}
			if b.book.Len() != 0 {
				t.Errorf("%d receipts are left", b.book.Len())
			}
		})
	}
}

// A process must not wait for a logger that is gone.
func TestALoggerThatDies(t *testing.T) {
	b := newBed(t)
	b.logged(shell("binary-v2", isReady+"head -c 1 <&3 > /dev/null"))
	o := b.open()
	guest := b.end("stdout")
	must(t, guest.SetWriteDeadline(time.Now().Add(patience)))
	if _, err := guest.Write(payload(16 << 20)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("write to a dead logger: %v, want a connection that was closed", err)
	}
	o.Close()
	b.loggerGone(o)
}

// Neither stream waits for the reader of the other.
func TestAStreamThatIsNotRead(t *testing.T) {
	for name, logger := range map[string]bool{"logger": true, "FIFOs": false} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, "stdout", "stderr")
			dir := t.TempDir()
			var got func() string
			if logger {
				b.logged(shell("binary-v2", isReady+"cat <&4 > "+dir+"/err; until test -e "+dir+"/gate; do sleep 0.01; done"))
				got = func() string { return b.file(dir + "/err") }
			} else {
				b.client(b.cfg.Stdout, os.O_RDONLY)
				reader := b.client(b.cfg.Stderr, os.O_RDONLY)
				got = func() string { return string((<-collect(reader)).data) }
			}
			o := b.open()
			stuffed := make(chan struct{})
			go func() {
				defer close(stuffed)
				b.end("stdout").Write(payload(64 << 20)) // until it is closed
			}()
			read := make(chan string, 1)
			go func() { read <- got() }()
			data := payload(8 << 20)
			_, err := b.end("stderr").Write(data)
			must(t, err)
			b.end("stderr").Close()
			// The exit of the process is not held back for long, either.
			if o.WaitDrained(t.Context(), 100*time.Millisecond) {
				t.Error("drained, with a reader that does not read")
			}
			must(t, os.WriteFile(dir+"/gate", nil, 0o600))
			o.Close()
			<-stuffed
			if logger {
				b.loggerGone(o)
				<-read
				read <- got()
			}
			if <-read != string(data) {
				t.Error("stderr did not get through")
			}
		})
	}
}

// As after a crash of the shim: another process reads the book.
func TestALoggersReceipt(t *testing.T) {
	for name, found := range map[string]bool{"by its mark": false, "by its pid": true} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			path := filepath.Join(t.TempDir(), "receipts")
			var err error
			b.book, err = receipt.Open(path)
			must(t, err)
			p, err := parsePlace(shell("binary-v2", isReady+"trap '' TERM; while :; do sleep 0.01; done"))
			must(t, err)
			l, err := startLogger(t.Context(), p, b.streams(), short)
			must(t, err)
			if !found {
				mark := l.cmd.Env[len(l.cmd.Env)-1]
				must(t, l.receipt.Amend(&Logger{proc.Receipt{Env: mark}}))
			}
			book, err := receipt.Open(path)
			must(t, err)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			must(t, book.UndoAll(ctx))
			select {
			case <-l.exited:
			case <-ctx.Done():
				t.Error("the logger lives on")
			}
			closeAll([]*os.File{l.stdout, l.stderr})
			l.end()
			<-l.ended
		})
	}
}

func TestOutputToFiles(t *testing.T) {
	dir := t.TempDir()
	b := newBed(t)
	both := filepath.Join(dir, "made", "for it", "log")
	uri := (&url.URL{Scheme: "file", Path: both}).String()
	b.logged(uri)
	for i := range 2 {
		o := b.open()
		for _, name := range []string{"stdout", "stderr"} {
			_, err := fmt.Fprintf(b.end(name), "%s %d\n", name, i)
			must(t, err)
			b.end(name).Close()
			// One after the other, so that their order is known.
			if name == "stdout" {
				eventually(t, "the line is in the file", func() bool {
					data, _ := os.ReadFile(both)
					return strings.HasSuffix(string(data), fmt.Sprintf("stdout %d\n", i))
				})
			}
		}
		if !o.WaitDrained(t.Context(), patience) {
			t.Fatal("not drained")
		}
		o.Close()
	}
	if got, want := b.file(both), "stdout 0\nstderr 0\nstdout 1\nstderr 1\n"; got != want {
		t.Errorf("logged %q, want %q", got, want)
	}

	// A path without a scheme that is no FIFO, as containerd's shim takes it.
	plain := filepath.Join(dir, "plain")
	must(t, os.WriteFile(plain, []byte("before "), 0o600))
	b.cfg = Config{Stdout: plain, Stderr: os.DevNull}
	o := b.open()
	_, err := io.WriteString(b.end("stdout"), "after")
	must(t, err)
	b.end("stdout").Close()
	b.end("stderr").Close()
	o.WaitDrained(t.Context(), patience)
	if got := b.file(plain); got != "before after" {
		t.Errorf("logged %q", got)
	}

	b.cfg = Config{Stdout: "file:///dev/null/x"}
	if _, err := Open(t.Context(), b.cfg, b.streams()); err == nil || !strings.Contains(err.Error(), "stdout") {
		t.Errorf("a file below a file: %v", err)
	}
}
