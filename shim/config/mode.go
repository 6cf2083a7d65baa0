package config

import (
	"fmt"
	"slices"
)

// setMode sets *m to what text says, if that is one of the modes.
func setMode[M ~string](m *M, what string, text []byte, modes ...M) error {
	if !slices.Contains(modes, M(text)) {
		return fmt.Errorf("%s mode %q: want one of %q", what, text, modes)
	}
	*m = M(text)
	return nil
}
