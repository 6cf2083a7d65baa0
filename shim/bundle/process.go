package bundle

import (
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"
)

// TranslateProcess makes the guest's version of the process of an Exec
// request: the same, without labels of the host's security modules.
func TranslateProcess(spec typeurl.Any) (*anypb.Any, error) {
	if spec == nil {
		return nil, fmt.Errorf("exec without a process: %w", errdefs.ErrInvalidArgument)
	}
	var p specs.Process
	if err := json.Unmarshal(spec.GetValue(), &p); err != nil {
		return nil, fmt.Errorf("exec's process of type %q: %w: %w", spec.GetTypeUrl(), err, errdefs.ErrInvalidArgument)
	}
	if len(p.Args) == 0 {
		return nil, fmt.Errorf("exec's process has no args: %w", errdefs.ErrInvalidArgument)
	}
	p.ApparmorProfile, p.SelinuxLabel = "", ""
	value, err := json.Marshal(&p)
	if err != nil {
		return nil, fmt.Errorf("encode exec's process: %w", err)
	}
	return &anypb.Any{TypeUrl: spec.GetTypeUrl(), Value: value}, nil
}
