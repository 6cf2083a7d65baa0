package integration

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/jail"
)

func testNamespaceOfTheHost(r *rig) { r.inNamespaceOfTheHost(nil) }

func (r *rig) inNamespaceOfTheHost([]string) { r.Skip("FreeBSD has no network namespaces") }

func testNerdctlPublishes(r *rig) { r.Skip("nerdctl's networks are Linux's") }

func testPodNetwork(r *rig) {
	// Of containerd 2.4: pkg/netns makes none there, and port-forward is not implemented.
	r.Skip("containerd's CRI plugin has no network namespaces on FreeBSD, and so no pods but those of the host's network")
}

// worldEnv makes the tests' program the world's server, in the world's jail: a
// thread cannot enter one without its process.
const worldEnv = "BHYVE_LAB_WORLD"

func init() {
	if os.Getenv(worldEnv) == "" {
		return
	}
	listener, err := net.Listen("tcp4", fmt.Sprintf(":%d", webPort))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("listening")
	go http.Serve(listener, teller)
	// Until the test lets go.
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// beyond makes the world beyond the lab, in a jail with a network of its own.
func (r *rig) beyond() {
	r.Helper()
	ifconfig := func(args ...string) string {
		r.Helper()
		out, err := exec.CommandContext(context.WithoutCancel(r.ctx), "/sbin/ifconfig", args...).CombinedOutput()
		if err != nil {
			r.Fatalf("ifconfig %q: %v: %s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	id, err := jail.New(0)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() {
		if err := jail.Remove(id); err != nil {
			r.Error(err)
		}
	})
	uplink := ifconfig("epair", "create")
	r.Cleanup(func() { ifconfig(uplink, "destroy") })
	world, in := strings.TrimSuffix(uplink, "a")+"b", strconv.Itoa(id)
	ifconfig(uplink, "inet", labUplink+"/24", "up")
	ifconfig(world, "vnet", in)
	ifconfig("-j", in, world, "inet", friend+"/24", "up")
	ifconfig("-j", in, world, "inet", foe+"/32", "alias")

	self, err := os.Executable()
	if err != nil {
		r.Fatal(err)
	}
	server := exec.Command("/usr/sbin/jexec", in, self)
	server.Env = []string{worldEnv + "=1"}
	server.Stderr = os.Stderr
	hold, err := server.StdinPipe()
	if err != nil {
		r.Fatal(err)
	}
	says, err := server.StdoutPipe()
	if err != nil {
		r.Fatal(err)
	}
	if err := server.Start(); err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() {
		hold.Close()
		if err := server.Wait(); err != nil {
			r.Error(err)
		}
	})
	if line, err := bufio.NewReader(says).ReadString('\n'); err != nil {
		r.Fatalf("the world's server says %q: %v", line, err)
	}
}
