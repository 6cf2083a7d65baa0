package shim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"testing"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/proto"
)

// starter records the Start that it is asked for.
type starter struct {
	ns     string
	params *bootapi.BootstrapParams
	err    error
}

func (*starter) Name() string { return "test" }

func (s *starter) Start(ctx context.Context, p *bootapi.BootstrapParams) (*bootapi.BootstrapResult, error) {
	s.ns, _ = namespaces.Namespace(ctx)
	s.params = p
	return &bootapi.BootstrapResult{Version: 3, Address: "unix:///run/s", Protocol: "ttrpc"}, s.err
}

func (*starter) Stop(context.Context, string) (shim.StopStatus, error) {
	return shim.StopStatus{}, errors.New("not a start")
}

func (*starter) Info(context.Context, io.Reader) (*types.RuntimeInfo, error) {
	return nil, errors.New("not a start")
}

// called runs RunLegacy as containerd would call the program.
func called(t *testing.T, s *starter, stdin []byte, args ...string) (handled bool, stdout []byte, err error) {
	t.Helper()
	oldIn, oldOut := os.Stdin, os.Stdout
	defer func() { os.Stdin, os.Stdout = oldIn, oldOut }()
	if err := replaceStdin(stdin); err != nil {
		t.Fatal(err)
	}
	defer func() { os.Stdin.Close() }()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	os.Stdout = w
	handled, err = RunLegacy(context.Background(), s, append([]string{"containerd-shim-bhyve-v2"}, args...))
	w.Close()
	out, rerr := io.ReadAll(r)
	r.Close()
	if rerr != nil {
		t.Fatal(rerr)
	}
	if handled {
		return handled, out, err
	}
	// What pkg/shim would read.
	left, rerr := io.ReadAll(os.Stdin)
	if rerr != nil {
		t.Fatal(rerr)
	}
	if !bytes.Equal(left, stdin) {
		t.Errorf("standard input was %d bytes, is now %d", len(stdin), len(left))
	}
	return handled, out, err
}

// legacyArgs are what containerd 1.7 to 2.2 call a shim with.
var legacyArgs = []string{"-namespace", "ns1", "-address", "/run/containerd/containerd.sock", "-publish-binary", "/usr/bin/containerd", "-id", "c1"}

func TestAnOlderContainerdIsServed(t *testing.T) {
	t.Setenv("TTRPC_ADDRESS", "/run/containerd/containerd.sock.ttrpc")
	options, err := typeurl.MarshalAnyToProto(&runtimeoptions.Options{ConfigPath: "/etc/x.toml"})
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := proto.Marshal(options)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		stdin []byte
		args  []string
		level bootapi.LogLevel
	}{
		"nothing on standard input":          {nil, append(legacyArgs, "start"), bootapi.LogLevel_LOG_LEVEL_INFO},
		"runtime options, which parse alike": {encoded, append(legacyArgs, "start"), bootapi.LogLevel_LOG_LEVEL_INFO},
		"not protobuf":                       {[]byte("\xff\xff"), append(legacyArgs, "start"), bootapi.LogLevel_LOG_LEVEL_INFO},
		"debug":                              {nil, append(legacyArgs, "-debug", "start"), bootapi.LogLevel_LOG_LEVEL_DEBUG},
	} {
		t.Run(name, func(t *testing.T) {
			var s starter
			handled, out, err := called(t, &s, tc.stdin, tc.args...)
			if err != nil || !handled {
				t.Fatalf("handled %v, %v", handled, err)
			}
			want := &bootapi.BootstrapParams{
				InstanceID: "c1", Namespace: "ns1", LogLevel: tc.level,
				ContainerdGrpcAddress:  "/run/containerd/containerd.sock",
				ContainerdTtrpcAddress: "/run/containerd/containerd.sock.ttrpc",
			}
			if !proto.Equal(s.params, want) || s.ns != "ns1" {
				t.Errorf("started with %v in namespace %q, want %v", s.params, s.ns, want)
			}
			var answer struct {
				Version           int
				Address, Protocol string
			}
			if err := json.Unmarshal(out, &answer); err != nil {
				t.Fatalf("answered %q: %v", out, err)
			}
			if answer.Version != 2 || answer.Address != "unix:///run/s" || answer.Protocol != "ttrpc" {
				t.Errorf("answered %q", out)
			}
		})
	}
	t.Run("a start that fails", func(t *testing.T) {
		s := starter{err: errors.New("no")}
		handled, out, err := called(t, &s, nil, append(legacyArgs, "start")...)
		if !handled || !errors.Is(err, s.err) || len(out) > 0 {
			t.Errorf("handled %v, %v, answered %q", handled, err, out)
		}
	})
}

func TestEverythingElseIsForPkgShim(t *testing.T) {
	params := func(id, ns string) []byte {
		data, err := proto.Marshal(&bootapi.BootstrapParams{InstanceID: id, Namespace: ns, LogLevel: bootapi.LogLevel_LOG_LEVEL_DEBUG, SocketDir: proto.String("/run/s")})
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	for name, tc := range map[string]struct {
		stdin []byte
		args  []string
	}{
		"bootstrap parameters": {params("c1", "ns1"), append(legacyArgs, "start")},
		"delete":               {nil, append(legacyArgs, "-bundle", "/run/b", "delete")},
		"the shim itself":      {nil, legacyArgs},
		"info":                 {[]byte("options"), []string{"-info"}},
		"version":              {nil, []string{"-v"}},
		"no arguments":         {nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var s starter
			handled, out, err := called(t, &s, tc.stdin, tc.args...)
			if handled || err != nil || len(out) > 0 || s.params != nil {
				t.Errorf("handled %v, %v, answered %q, started %v", handled, err, out, s.params)
			}
		})
	}
}
