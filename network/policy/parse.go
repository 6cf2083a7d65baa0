package policy

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

// Parse reads a policy written in JSON, if it begins with a brace, or in TOML.
// Unknown keys are errdefs.ErrInvalidArgument, as is everything that Compile
// refuses.
func Parse(data []byte) (Policy, error) {
	var p Policy
	var err error
	if text := bytes.TrimSpace(data); bytes.HasPrefix(text, []byte("{")) {
		d := json.NewDecoder(bytes.NewReader(text))
		d.DisallowUnknownFields()
		err = d.Decode(&p)
	} else {
		err = toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(&p)
	}
	if err != nil {
		return Policy{}, fmt.Errorf("policy: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if _, err := p.Compile(nil); err != nil {
		return Policy{}, err
	}
	return p, nil
}
