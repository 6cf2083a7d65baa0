package jail

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// New makes a jail, with room for so many jails in it, and returns its number. It has
// interfaces lo0, down, and no other, and stays until Remove.
func New(children int) (int, error) {
	out, err := exec.Command("/usr/sbin/jail", "-i", "-c", "vnet", "persist", "path=/",
		fmt.Sprintf("children.max=%d", children)).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("new jail: %w: %s", err, out)
	}
	return strconv.Atoi(strings.TrimSpace(string(out)))
}

// Remove ends a jail, and the processes in it. Its epairs and taps go back to where
// they are from.
func Remove(jail int) error {
	out, err := exec.Command("/usr/sbin/jail", "-r", strconv.Itoa(jail)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("remove jail %d: %w: %s", jail, err, out)
	}
	return nil
}

// Self runs this program again, with its arguments and more of an environment, in a
// jail of its own, which a thread cannot enter without its process.
func Self(children int, stdout, stderr io.Writer, env ...string) (err error) {
	id, err := New(children)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, Remove(id)) }()
	// Entering a jail changes the working directory, before the program is looked for.
	self, err := os.Executable()
	if err != nil {
		return err
	}
	wd, err := os.Getwd()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Dir = wd
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Jail: id}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("in the jail: %w", err)
	}
	return nil
}
