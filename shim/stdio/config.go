package stdio

import (
	"fmt"
	"net/url"
	"path/filepath"

	"github.com/containerd/errdefs"
)

// Config is the stdio of a Create or Exec request, as containerd writes it:
// empty where a stream is not wanted, else the path of a FIFO or file, or a URI.
//
//	fifo:///path         a FIFO that a client has made
//	file:///path         a file, made if need be with its directories; appended to
//	binary:///path?k=v   a logger: the program at path, with k and v as arguments
//	binary-v2:///path    the same; it must write a byte when it is ready
//
// Standard input is a FIFO or nothing.
type Config struct {
	Stdin    string
	Stdout   string
	Stderr   string
	Terminal bool
}

// The schemes of stdio URIs (containerd's docs/runtime-v2.md, "I/O").
const (
	schemeFIFO     = "fifo"
	schemeFile     = "file"
	schemeBinary   = "binary"
	schemeBinaryV2 = "binary-v2"
)

// place is where a stream comes from or goes to.
type place struct {
	scheme string
	path   string
	// query are the arguments of a logger, undecoded.
	query string
}

func (p place) isLogger() bool { return p.scheme == schemeBinary || p.scheme == schemeBinaryV2 }

// parsePlace reads one field of a Config that is not empty.
func parsePlace(s string) (place, error) {
	u, err := url.Parse(s)
	if err != nil {
		return place{}, fmt.Errorf("%q: %w: %w", s, err, errdefs.ErrInvalidArgument)
	}
	switch u.Scheme {
	case "":
		// A path as it stands: it may hold what a URI would quote.
		return place{scheme: schemeFIFO, path: s}, nil
	case schemeFIFO, schemeFile, schemeBinary, schemeBinaryV2:
	default:
		return place{}, fmt.Errorf("%q: scheme %q: %w", s, u.Scheme, errdefs.ErrNotImplemented)
	}
	if u.Host != "" || !filepath.IsAbs(u.Path) {
		return place{}, fmt.Errorf("%q: want an absolute path after %s://: %w", s, u.Scheme, errdefs.ErrInvalidArgument)
	}
	return place{scheme: u.Scheme, path: u.Path, query: u.RawQuery}, nil
}

// places is a Config, understood. A stream that is not wanted is nil.
type places struct {
	stdin, stdout, stderr *place
}

func (c Config) parse() (places, error) {
	var p places
	for _, s := range []struct {
		name, value string
		place       **place
	}{{"stdin", c.Stdin, &p.stdin}, {"stdout", c.Stdout, &p.stdout}, {"stderr", c.Stderr, &p.stderr}} {
		if s.value == "" {
			continue
		}
		parsed, err := parsePlace(s.value)
		if err != nil {
			return places{}, fmt.Errorf("%s %w", s.name, err)
		}
		*s.place = &parsed
	}
	if c.Terminal {
		// A terminal has one output; the runtime leaves stderr unused.
		p.stderr = nil
	}
	switch {
	case p.stdin != nil && p.stdin.scheme != schemeFIFO:
		return places{}, fmt.Errorf("stdin %q: want a FIFO: %w", c.Stdin, errdefs.ErrInvalidArgument)
	case p.stdout != nil && p.stderr != nil && *p.stdout != *p.stderr && (p.stdout.isLogger() || p.stderr.isLogger()):
		// One logger takes both streams.
		return places{}, fmt.Errorf("stdout %q and stderr %q: a logger is for both: %w", c.Stdout, c.Stderr, errdefs.ErrInvalidArgument)
	}
	return p, nil
}

// logger is the place of the logger that the outputs go to, nil if there is
// none.
func (p places) logger() *place {
	for _, out := range []*place{p.stdout, p.stderr} {
		if out != nil && out.isLogger() {
			return out
		}
	}
	return nil
}

// Validate refuses what cannot be opened, before anything is: with
// errdefs.ErrInvalidArgument what makes no sense, with errdefs.ErrNotImplemented
// an unknown scheme.
func (c Config) Validate() error {
	_, err := c.parse()
	return err
}
