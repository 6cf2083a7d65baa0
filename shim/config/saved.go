package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// savedOptions is a file in the bundle of a sandbox.
const savedOptions = "runtime-options.pb"

// SaveOptions keeps the runtime options that the shim was started with in the
// bundle in dir: requests of the Sandbox API do not bring them again.
func SaveOptions(dir string, options *anypb.Any) error {
	data, err := proto.Marshal(options)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, savedOptions), data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("save runtime options: %w", err)
	}
	return nil
}

// SavedOptions are those that SaveOptions has kept, nil for none.
func SavedOptions(dir string) (typeurl.Any, error) {
	data, err := os.ReadFile(filepath.Join(dir, savedOptions))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("saved runtime options: %w", err)
	}
	options := new(anypb.Any)
	if err := proto.Unmarshal(data, options); err != nil {
		return nil, fmt.Errorf("saved runtime options: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return options, nil
}
