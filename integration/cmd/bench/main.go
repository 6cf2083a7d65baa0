//go:build linux

// Command bench measures this runtime beside runc and writes the samples, a
// table and a page of them: what `make bench` starts.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/bench"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
)

func main() {
	o := bench.Options{Progress: func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, format+"\n", args...)
	}}
	flag.IntVar(&o.Samples, "samples", 10, "`number` of containers to start from each tier")
	flag.IntVar(&o.Execs, "execs", 30, "`number` of commands to run with each runtime")
	flag.IntVar(&o.MaxBoots, "max-boots", 10, "the most `machines` that are booted for containers that start at once")
	flag.IntVar(&o.Waiting, "waiting", 100, "`number` of restored machines to measure while they wait")
	flag.StringVar(&o.MinimalGuest, "minimal", "", "`directory` of a guest image with a minimal kernel")
	concurrency := flag.String("concurrency", "1,10,50", "how many containers start at once, a `list`")
	only := flag.String("tiers", "", "measure these alone, a `list`")
	out := flag.String("out", ".cache/bench", "`directory` for results.json, results.md and results.html")
	flag.Parse()
	for n := range strings.SplitSeq(*concurrency, ",") {
		v, err := strconv.Atoi(n)
		if err != nil || v < 1 {
			fmt.Fprintf(os.Stderr, "bench: concurrency %q is not a list of numbers\n", *concurrency)
			os.Exit(2)
		}
		o.Concurrency = append(o.Concurrency, v)
	}
	if *only != "" {
		o.Tiers = strings.Split(*only, ",")
	}
	// Fifty emulated machines on two processors that end at once take longer than
	// the three seconds that containerd gives a shim.
	if _, set := os.LookupEnv(lab.SlowEnv); !set {
		os.Setenv(lab.SlowEnv, "20")
	}
	lab.Enter(func() int {
		if err := run(context.Background(), o, *out); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			return 1
		}
		return 0
	})
}

func run(ctx context.Context, o bench.Options, out string) error {
	for _, dir := range []*string{&o.MinimalGuest, &out} {
		if *dir != "" {
			abs, err := filepath.Abs(*dir)
			if err != nil {
				return err
			}
			*dir = abs
		}
	}
	l, err := lab.Start(ctx)
	if err != nil {
		return err
	}
	defer l.Close(ctx)
	report, err := bench.Run(ctx, l, o)
	if err != nil {
		err = fmt.Errorf("%w\ncontainerd's log ends with:\n%s", err, l.LogTail(30))
	}
	if report == nil {
		return err
	}
	// What was measured before a failure is worth a look, and is no result.
	name := "results"
	if err != nil {
		name = "failed"
	}
	return errors.Join(err, write(report, filepath.Join(out, name)), l.Leaks(ctx))
}

func write(report *bench.Report, path string) error {
	data, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return err
	}
	page, err := report.HTML()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	table := report.Markdown()
	for suffix, content := range map[string][]byte{".json": append(data, '\n'), ".md": []byte(table), ".html": page} {
		if err := os.WriteFile(path+suffix, content, 0o644); err != nil {
			return err
		}
	}
	fmt.Print(table)
	return nil
}
