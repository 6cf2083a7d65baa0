package lab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/image"
)

// imageServer is a registry on the world's loopback device, which holds images
// that were made here.
type imageServer struct {
	listener net.Listener
	server   *http.Server
}

// serveImages starts an empty registry. It ends with the process.
func serveImages() (*imageServer, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	quiet := log.New(io.Discard, "", 0)
	s := &imageServer{
		listener: listener,
		server:   &http.Server{Handler: registry.New(registry.Logger(quiet)), ReadHeaderTimeout: time.Minute},
	}
	// It ends when the listener is closed, and has nothing else to say.
	go func() { _ = s.server.Serve(listener) }()
	return s, nil
}

// Addr is the registry's host and port.
func (s *imageServer) Addr() string { return s.listener.Addr().String() }

// Push stores an image for pulls by its name, whatever registry that names
// (OCI distribution specification 1.1, "Pushing").
func (s *imageServer) Push(ctx context.Context, img *image.Image) error {
	repository, tag, err := img.Reference()
	if err != nil {
		return err
	}
	manifest, parts, err := img.Blobs()
	if err != nil {
		return err
	}
	base := "http://" + s.Addr() + "/v2/" + repository
	for _, p := range parts {
		to := base + "/blobs/uploads/?digest=" + url.QueryEscape(p.Digest.String())
		if err := send(ctx, http.MethodPost, to, p); err != nil {
			return fmt.Errorf("push %s: %w", img.Name, err)
		}
	}
	if err := send(ctx, http.MethodPut, base+"/manifests/"+tag, manifest); err != nil {
		return fmt.Errorf("push %s: %w", img.Name, err)
	}
	return nil
}

func send(ctx context.Context, method, to string, blob image.Blob) error {
	req, err := http.NewRequestWithContext(ctx, method, to, bytes.NewReader(blob.Data))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", blob.MediaType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return fmt.Errorf("%s %s: %s: %s", method, to, resp.Status, body)
	}
	return nil
}
