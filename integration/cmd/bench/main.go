//go:build linux

// Command bench measures this runtime beside runc and writes the samples and a
// table of them: what `make bench` starts.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/bench"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
)

func main() {
	o := bench.Options{Progress: func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, format+"\n", args...)
	}}
	flag.IntVar(&o.Boots, "boots", 10, "`number` of containers to start with each runtime")
	flag.IntVar(&o.Execs, "execs", 30, "`number` of commands to run with each runtime")
	out := flag.String("out", ".cache/bench", "`directory` for results.json and results.md")
	flag.Parse()
	lab.Enter(func() int {
		if err := run(context.Background(), o, *out); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			return 1
		}
		return 0
	})
}

func run(ctx context.Context, o bench.Options, out string) error {
	l, err := lab.Start(ctx)
	if err != nil {
		return err
	}
	defer l.Close(ctx)
	report, err := bench.Run(ctx, l, o)
	if err != nil {
		return fmt.Errorf("%w\ncontainerd's log ends with:\n%s", err, l.LogTail(30))
	}
	data, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	table := report.Markdown()
	for name, content := range map[string][]byte{"results.json": append(data, '\n'), "results.md": []byte(table)} {
		if err := os.WriteFile(filepath.Join(out, name), content, 0o644); err != nil {
			return err
		}
	}
	fmt.Print(table)
	return l.Leaks(ctx)
}
