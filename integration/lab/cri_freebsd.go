package lab

// disabledHere are the plugins of CRI: they are Linux's.
var disabledHere = []string{
	"io.containerd.cri.v1.images",
	"io.containerd.cri.v1.runtime",
	"io.containerd.grpc.v1.cri",
	"io.containerd.podsandbox.controller.v1.podsandbox",
}

// plugins need no configuration.
func (l *Lab) plugins() map[string]any { return nil }

// furnishCRI has nothing to prepare.
func (l *Lab) furnishCRI() error { return nil }

// imageServer is what Linux's labs have.
type imageServer struct{}
