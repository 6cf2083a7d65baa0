package linuxboot

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// FormatError is a kernel file that cannot be booted because of what one of
// its fields says. It is an errdefs.ErrInvalidArgument.
type FormatError struct {
	// Format is what the file was read as.
	Format Format
	// Field is the field's name in boot.rst or in the ELF specification.
	Field string
	// Problem says what is wrong with it, with its value.
	Problem string
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("%s kernel: field %s: %s", e.Format, e.Field, e.Problem)
}

// Is makes the error an errdefs.ErrInvalidArgument.
func (e *FormatError) Is(target error) bool { return target == errdefs.ErrInvalidArgument }

// PlacementError is something that does not fit into the guest's memory: it
// lies outside of it, or over something else. It is an errdefs.ErrOutOfRange.
type PlacementError struct {
	// Region is what was to be placed.
	Region Region
	// Problem says why it cannot be there.
	Problem string
}

func (e *PlacementError) Error() string {
	return fmt.Sprintf("cannot place %s in guest memory: %s", e.Region, e.Problem)
}

// Is makes the error an errdefs.ErrOutOfRange.
func (e *PlacementError) Is(target error) bool { return target == errdefs.ErrOutOfRange }
