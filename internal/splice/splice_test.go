package splice

import (
	"context"
	"io"
	"testing"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/tcptest"
)

// Each direction ends by itself, and the other goes on.
func TestHalfClose(t *testing.T) {
	client, a := tcptest.Pair(t)
	server, b := tcptest.Pair(t)
	joined := make(chan struct{})
	go func() { Join(t.Context(), a, b); close(joined) }()
	io.WriteString(client, "question")
	client.CloseWrite()
	if got, err := io.ReadAll(server); err != nil || string(got) != "question" {
		t.Fatalf("%q, %v", got, err)
	}
	io.WriteString(server, "answer")
	server.CloseWrite()
	if got, err := io.ReadAll(client); err != nil || string(got) != "answer" {
		t.Fatalf("%q, %v", got, err)
	}
	<-joined
}

// The end of the context is the end of both.
func TestEndOfContext(t *testing.T) {
	client, a := tcptest.Pair(t)
	_, b := tcptest.Pair(t)
	ctx, cancel := context.WithCancel(t.Context())
	joined := make(chan struct{})
	go func() { Join(ctx, a, b); close(joined) }()
	cancel()
	<-joined
	if _, err := client.Read(make([]byte, 1)); err == nil {
		t.Error("the connection is still there")
	}
}

// One that breaks takes the other with it.
func TestBreak(t *testing.T) {
	client, a := tcptest.Pair(t)
	server, b := tcptest.Pair(t)
	joined := make(chan struct{})
	go func() { Join(t.Context(), a, b); close(joined) }()
	server.SetLinger(0)
	server.Close()
	<-joined
	if n, err := client.Read(make([]byte, 1)); err == nil {
		t.Errorf("read %d bytes", n)
	}
}
