package stdio

import (
	"os"
	"path/filepath"
	"testing"
)

// What the logger has yet to read holds the exit back for a while, where the
// writer of a pipe can know.
func TestALoggerReadsBeforeTheExitIsTold(t *testing.T) {
	b := newBed(t)
	gate := filepath.Join(t.TempDir(), "gate")
	b.logged(shell("binary-v2", isReady+"until test -e "+gate+"; do sleep 0.01; done; cat <&3 > /dev/null"))
	o := b.open()
	defer o.Close()
	_, err := b.end("stdout").Write([]byte("x"))
	must(t, err)
	b.end("stdout").Close()
	b.end("stderr").Close()
	drained := make(chan bool, 1)
	go func() { drained <- o.WaitDrained(t.Context(), patience) }()
	p := o.outputs[0].sink.(*pipe)
	eventually(t, "the byte is in the pipe", func() bool { return p.unread() == 1 })
	select {
	case <-drained:
		t.Error("drained before the logger has read")
	default:
	}
	must(t, os.WriteFile(gate, nil, 0o600))
	if !<-drained {
		t.Error("not drained")
	}
}
