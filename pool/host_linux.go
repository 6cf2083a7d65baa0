package pool

import (
	"crypto/sha256"
	"fmt"
	"os"
	"strings"
)

// cpuIdentity reads the first processor's "model name" and "flags" of
// /proc/cpuinfo, which have these names on x86 only; elsewhere it is empty.
func cpuIdentity() string {
	data, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	first, _, _ := strings.Cut(string(data), "\n\n")
	var model, flags string
	for line := range strings.Lines(first) {
		key, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(key) {
		case "model name":
			model = strings.TrimSpace(value)
		case "flags":
			flags = strings.TrimSpace(value)
		}
	}
	return fmt.Sprintf("%s, features %.6x", model, sha256.Sum256([]byte(flags)))
}
