// Package scrape serves metrics to Prometheus.
package scrape

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const headerTimeout = 10 * time.Second

// Usage is what a flag for Serve's address says of itself.
const Usage = "serve Prometheus metrics on `ADDRESS`: unix:PATH, or a port of the loopback interface"

// Serve serves what c collects as /metrics on address until the result is closed.
// The address is "unix:PATH", or a host and port of the loopback interface: there
// is no authentication. Any other is errdefs.ErrInvalidArgument.
func Serve(c prometheus.Collector, address string) (*http.Server, error) {
	l, err := listen(address)
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(c)
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: headerTimeout}
	go func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.L.WithError(err).Error("metrics are not served any more")
		}
	}()
	return server, nil
}

func listen(address string) (net.Listener, error) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		return net.Listen("unix", path)
	}
	addr, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	if !addr.IP.IsLoopback() {
		return nil, fmt.Errorf("address %s is not of the loopback interface: %w", address, errdefs.ErrInvalidArgument)
	}
	return net.ListenTCP("tcp", addr)
}
