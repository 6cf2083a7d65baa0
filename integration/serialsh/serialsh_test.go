package serialsh

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
)

// newShell starts an interactive shell on a terminal and returns the terminal's
// other end.
func newShell(t *testing.T) Link {
	t.Helper()
	cmd := exec.Command("sh", "-i")
	cmd.Env = append(os.Environ(), "PS1=# ", "ENV=")
	tty, err := pty.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	link, err := pollable(tty)
	t.Cleanup(func() {
		if link != nil {
			link.Close()
		}
		cmd.Process.Kill()
		cmd.Wait()
	})
	if err != nil {
		t.Fatal(err)
	}
	return link
}

// outcome is what became of a command.
type outcome struct {
	code           int
	err            error
	stdout, stderr bytes.Buffer
}

func do(ctx context.Context, link Link, line string, stdin io.Reader) *outcome {
	o := &outcome{}
	o.code, o.err = runCommand(ctx, link, Command{Line: line, Stdin: stdin, Stdout: &o.stdout, Stderr: &o.stderr}, 2*time.Second)
	return o
}

func TestRun(t *testing.T) {
	shell := newShell(t)
	for _, tc := range []struct {
		line, stdin, stdout, stderr string
		code                        int
	}{
		{line: "echo out; echo err >&2; exit 7", stdout: "out\n", stderr: "err\n", code: 7},
		{line: "true"},
		{line: "exit 255", code: 255},
		{line: `printf '%s\n' "a=b" 'it'\''s' \$x`, stdout: "a=b\nit's\n$x\n"},
		{line: "cat", stdin: "line\nno end", stdout: "line\nno end"},
		{line: "wc -c | tr -d ' '", stdin: "", stdout: "0\n"},
		{line: "exit 3", stdin: strings.Repeat("unread", 50_000), code: 3},
	} {
		o := do(t.Context(), shell, tc.line, strings.NewReader(tc.stdin))
		if o.err != nil || o.code != tc.code || o.stdout.String() != tc.stdout || o.stderr.String() != tc.stderr {
			t.Errorf("%s: %d, %v, %q, %q; want %d, %q, %q",
				tc.line, o.code, o.err, o.stdout.String(), o.stderr.String(), tc.code, tc.stdout, tc.stderr)
		}
	}
	// The shell is what it was, and shows what is typed.
	if _, err := shell.Write([]byte("printf '<%s>' typed\n")); err != nil {
		t.Fatal(err)
	}
	if err := shell.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var said []byte
	for buf := make([]byte, 256); !bytes.Contains(said, []byte("<typed>")); {
		n, err := shell.Read(buf)
		if err != nil {
			t.Fatalf("the shell says %q, %v", said, err)
		}
		said = append(said, buf[:n]...)
	}
	if !bytes.Contains(said, []byte("'<%s>'")) {
		t.Errorf("what is typed is not shown: %q", said)
	}
}

// Without input there is none: not that of the console.
func TestRunWithoutInput(t *testing.T) {
	if o := do(t.Context(), newShell(t), "cat; echo end", nil); o.err != nil || o.stdout.String() != "end\n" {
		t.Errorf("%v, %q", o.err, o.stdout.String())
	}
}

// Input and output that are no text, both at the same time.
func TestRunBinary(t *testing.T) {
	data := random(300_000)
	o := do(t.Context(), newShell(t), "cat", bytes.NewReader(data))
	if o.err != nil || !bytes.Equal(o.stdout.Bytes(), data) {
		t.Errorf("%v, %d bytes of %d", o.err, o.stdout.Len(), len(data))
	}
}

// noisy loses and changes characters in both directions, and says what a kernel
// would.
type noisy struct {
	Link
	in, out *rand.Rand
}

func (n *noisy) Read(p []byte) (int, error) {
	got, err := n.Link.Read(p[:max(1, len(p)-40)])
	if got > 0 && n.in.IntN(12) == 0 {
		at := n.in.IntN(got)
		const message = "\r\ntap0: link state changed to UP\r\n"
		copy(p[at+len(message):got+len(message)], p[at:got])
		got += copy(p[at:], message)
	}
	return got, err
}

func (n *noisy) Write(p []byte) (int, error) {
	changed := bytes.Clone(p)
	if n.out.IntN(10) == 0 {
		at := n.out.IntN(len(p))
		changed = append(changed[:at], changed[at+1:]...)
	}
	if _, err := n.Link.Write(changed); err != nil {
		return 0, err
	}
	return len(p), nil
}

func TestRunOverABadLine(t *testing.T) {
	line := &noisy{newShell(t), rand.New(rand.NewPCG(1, 2)), rand.New(rand.NewPCG(3, 4))}
	data := random(20_000)
	o := do(t.Context(), line, "cat; echo err >&2; exit 5", bytes.NewReader(data))
	if o.err != nil || o.code != 5 || !bytes.Equal(o.stdout.Bytes(), data) || o.stderr.String() != "err\n" {
		t.Errorf("%d, %v, %d bytes of %d, %q", o.code, o.err, o.stdout.Len(), len(data), o.stderr.String())
	}
}

func TestRunInterrupted(t *testing.T) {
	shell := newShell(t)
	pids := &firstLine{line: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-pids.line
		cancel()
	}()
	c := Command{
		Line:   `sleep 1000 & echo $!; wait`,
		Stdout: pids, Stderr: io.Discard,
	}
	if _, err := runCommand(ctx, shell, c, 2*time.Second); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v; want that it was cancelled", err)
	}
	// What the command had started is gone as well.
	if o := do(t.Context(), shell, "ps -o stat= -p "+strings.TrimSpace(pids.text.String())+" | grep -v Z", nil); o.err != nil || o.code == 0 {
		t.Errorf("its child is there: %d, %v", o.code, o.err)
	}
}

// firstLine is a writer that says when there is a line.
type firstLine struct {
	text bytes.Buffer
	line chan struct{}
}

func (w *firstLine) Write(p []byte) (int, error) {
	w.text.Write(p)
	if bytes.IndexByte(p, '\n') >= 0 {
		close(w.line)
	}
	return len(p), nil
}

// A session that broke off holds up nobody.
func TestRunAfterAnAbandonedSession(t *testing.T) {
	shell := newShell(t)
	in := receive(shell)
	s, err := start(t.Context(), shell, in, 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if f, err := s.ask(t.Context(), "put", 0); err != nil || f.word != "ready" {
		t.Fatalf("%v, %v", f, err)
	}
	if err := in.halt(); err != nil {
		t.Fatal(err)
	}
	if o := do(t.Context(), shell, "echo here", nil); o.err != nil || o.stdout.String() != "here\n" {
		t.Errorf("%v, %q", o.err, o.stdout.String())
	}
}

func TestOpenRefusesAFile(t *testing.T) {
	if l, err := Open(t.Context(), "serialsh_test.go"); err == nil {
		l.Close()
		t.Error("a file was opened as a line")
	}
	if _, err := Open(t.Context(), "absent"); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("what is not there: %v", err)
	}
}

func random(n int) []byte {
	data := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(data)
	return data
}
