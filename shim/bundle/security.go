package bundle

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// translateSecurity drops the labels of the host's security modules. The
// guest's kernel runs none: between the container and the host stands the
// machine. Capabilities, seccomp, masked paths and the rest hold in the guest.
func translateSecurity(t *translation) error {
	p, l := t.spec.Process, t.spec.Linux
	if p.ApparmorProfile != "" {
		t.ignore("process.apparmorProfile")
		p.ApparmorProfile = ""
	}
	if p.SelinuxLabel != "" || l.MountLabel != "" {
		t.ignore("process.selinuxLabel and linux.mountLabel")
		p.SelinuxLabel, l.MountLabel = "", ""
	}
	if l.IntelRdt != nil {
		t.ignore("linux.intelRdt")
		l.IntelRdt = nil
	}
	if l.Seccomp != nil && l.Seccomp.ListenerPath != "" {
		return fmt.Errorf("linux.seccomp.listenerPath: %w", errdefs.ErrNotImplemented)
	}
	return nil
}
