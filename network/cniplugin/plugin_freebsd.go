// Package cniplugin is the CNI plugin cni-bhyve, on Linux.
package cniplugin

import (
	"fmt"
	"os"
)

// Main says that there is no such thing here, in CNI's words: 100 and above are a
// plugin's own error codes.
func Main() {
	fmt.Println(`{"cniVersion": "1.0.0", "code": 100, "msg": "cni-bhyve fills Linux's network namespaces: FreeBSD has none"}`)
	os.Exit(1)
}
