//go:build linux

package main

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/conformance"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
)

// Files of the checkout.
const (
	documentPath = "docs/conformance.md"
	reasonsPath  = "integration/conformance/reasons.toml"
)

func run(ctx context.Context, o options) (err error) {
	data, err := os.ReadFile(reasonsPath)
	if err != nil {
		return err
	}
	reasons, err := conformance.ParseReasons(data)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	if o.out, err = filepath.Abs(o.out); err != nil {
		return err
	}
	l, err := lab.Start(ctx)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, l.Close(ctx), l.CopyLog(filepath.Join(o.out, "containerd.log")))
	}()

	var runs []conformance.Run
	var errs []error
	for _, s := range suites {
		if o.suites != nil && !slices.Contains(o.suites, s.name) {
			// What it said when it was last run stands.
			if r, err := readRun(o.recordPath(s.name)); err == nil {
				runs = append(runs, r)
			}
			continue
		}
		r, err := s.start(ctx, l, o)
		if again := reasons.Unexplained(s.name, r.Results); err == nil && o.handler == lab.HandlerBhyve && len(again) > 0 {
			r.Results, err = s.again(ctx, l, o, r.Results, again)
		}
		if err == nil {
			err = writeRun(o.recordPath(s.name), r)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		runs = append(runs, r)
		if o.handler == lab.HandlerBhyve {
			errs = append(errs, reasons.Check(s.name, r.Results, o.focus == ""))
		}
	}
	if o.handler == lab.HandlerBhyve && o.focus == "" && len(runs) == len(suites) {
		errs = append(errs, writeDocument(runs, reasons, o.check))
	}
	return errors.Join(errs...)
}

// recordPath is where the results of a complete run of a suite are kept.
func (o options) recordPath(suite string) string {
	name := suite + "-" + o.handler
	if o.focus != "" {
		name += "-part"
	}
	return filepath.Join(o.out, name+".json")
}

func writeRun(path string, r conformance.Run) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}

func readRun(path string) (r conformance.Run, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(data, &r)
}

// start runs s with its output in a file, and says what came of it.
func (s suite) start(ctx context.Context, l *lab.Lab, o options) (conformance.Run, error) {
	r := conformance.Run{Suite: s.name, Title: s.title, About: s.about}
	ctx, cancel := context.WithTimeoutCause(ctx, suiteTimeout, errors.New("suite takes too long"))
	defer cancel()
	var err error
	if r.Version, err = moduleVersion(l.ToolPath(s.name)); err != nil {
		return r, err
	}
	f, err := os.Create(filepath.Join(o.out, s.name+".out"))
	if err != nil {
		return r, err
	}
	defer f.Close()
	fmt.Fprintf(os.Stderr, "==> %s %s, output in %s\n", s.name, r.Version, f.Name())
	began := time.Now()
	if r.Results, err = s.run(ctx, l, o, f); err != nil {
		return r, err
	}
	if len(r.Results) == 0 {
		return r, errors.New("no test was run")
	}
	for _, result := range r.Results {
		if result.Outcome != conformance.Passed {
			fmt.Fprintf(os.Stderr, "    %-7s %s  %s\n", result.Outcome, result.Name, firstLine(result.Message))
		}
	}
	fmt.Fprintf(os.Stderr, "    %s: %d passed, %d failed, %d skipped in %v\n", s.name,
		r.Count(conformance.Passed), r.Count(conformance.Failed), r.Count(conformance.Skipped), time.Since(began).Round(time.Second))
	return r, nil
}

// again runs the tests of these names once more, and returns results with what
// they say now.
func (s suite) again(ctx context.Context, l *lab.Lab, o options, results []conformance.Result, names []string) ([]conformance.Result, error) {
	fmt.Fprintf(os.Stderr, "    %s: once more, by themselves: %q\n", s.name, names)
	o.focus, o.parallel = s.only(names), 1
	o.out = filepath.Join(o.out, "again")
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return nil, err
	}
	second, err := s.start(ctx, l, o)
	if err != nil {
		return nil, err
	}
	return conformance.Merge(results, second.Results), nil
}

func firstLine(s string) string {
	line, _, _ := bytes.Cut([]byte(s), []byte("\n"))
	return string(line)
}

// moduleVersion is the version of the module that a program was built from.
func moduleVersion(program string) (string, error) {
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return "", err
	}
	return info.Main.Version, nil
}

// writeDocument writes the document, or only compares it with what is there.
func writeDocument(runs []conformance.Run, reasons *conformance.Reasons, check bool) error {
	var document bytes.Buffer
	if err := conformance.Write(&document, runs, reasons); err != nil {
		return err
	}
	if !check {
		return os.WriteFile(documentPath, document.Bytes(), 0o644)
	}
	written, err := os.ReadFile(documentPath)
	if err == nil && !bytes.Equal(written, document.Bytes()) {
		err = fmt.Errorf("%s is not what came of this run: make conformance writes it", documentPath)
	}
	return err
}
