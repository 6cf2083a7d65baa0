package shim

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shim"
	"google.golang.org/protobuf/proto"
)

// RunLegacy carries out a `start` in the way of a containerd before 2.3, and
// reports whether the process was called in that way.
//
// Such a containerd gives its parameters in flags and the environment, sends at
// most runtime options on standard input, and reads the answer as JSON. The
// newer one, which pkg/shim serves, sends bootstrap parameters on standard
// input, which repeat id and namespace of the flags; that tells them apart.
// What was read from standard input is put back for pkg/shim.
func RunLegacy(ctx context.Context, m shim.Shim, args []string) (bool, error) {
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	var (
		ns      = flags.String("namespace", "", "")
		id      = flags.String("id", "", "")
		address = flags.String("address", "", "")
		debug   = flags.Bool("debug", false, "")
	)
	flags.String("publish-binary", "", "")
	flags.String("bundle", "", "")
	flags.String("socket", "", "")
	if flags.Parse(args[1:]) != nil || flags.Arg(0) != "start" {
		return false, nil
	}
	input, err := io.ReadAll(io.LimitReader(os.Stdin, 10<<20))
	if err != nil {
		return false, fmt.Errorf("read standard input: %w", err)
	}
	var sent bootapi.BootstrapParams
	if proto.Unmarshal(input, &sent) == nil && sent.InstanceID == *id && sent.Namespace == *ns {
		return false, replaceStdin(input)
	}

	level := bootapi.LogLevel_LOG_LEVEL_INFO
	if *debug {
		level = bootapi.LogLevel_LOG_LEVEL_DEBUG
	}
	result, err := m.Start(namespaces.WithNamespace(ctx, *ns), &bootapi.BootstrapParams{
		InstanceID:             *id,
		Namespace:              *ns,
		LogLevel:               level,
		ContainerdGrpcAddress:  *address,
		ContainerdTtrpcAddress: os.Getenv("TTRPC_ADDRESS"),
	})
	if err != nil {
		return true, err
	}
	// Version 2 is the newest Task API that every such containerd knows.
	return true, json.NewEncoder(os.Stdout).Encode(map[string]any{
		"version":  2,
		"address":  result.Address,
		"protocol": result.Protocol,
	})
}

// replaceStdin makes data what standard input yields.
func replaceStdin(data []byte) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	os.Stdin = r
	go func() {
		defer w.Close()
		io.Copy(w, bytes.NewReader(data))
	}()
	return nil
}
