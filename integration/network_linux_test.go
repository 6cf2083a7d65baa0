package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/netns"
)

// beyond makes the world beyond the lab, in a network namespace of its own.
func (r *rig) beyond() {
	r.Helper()
	ns, err := netns.New()
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { ns.Close() })
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink"}, PeerName: "world", PeerNamespace: netlink.NsFd(ns.Fd())}
	if err := netlink.LinkAdd(veth); err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() {
		if err := netlink.LinkDel(veth); err != nil {
			r.Error(err)
		}
	})
	if err := linkUp("uplink", labUplink+"/24"); err != nil {
		r.Fatal(err)
	}
	var listener net.Listener
	err = netns.Do(ns, func() (err error) {
		if err := errors.Join(linkUp("lo"), linkUp("world", friend+"/24", foe+"/24")); err != nil {
			return err
		}
		listener, err = net.Listen("tcp4", fmt.Sprintf(":%d", webPort))
		return err
	})
	if err != nil {
		r.Fatal(err)
	}
	server := &http.Server{Handler: teller}
	go server.Serve(listener)
	r.Cleanup(func() { server.Close() })
}

func linkUp(name string, addrs ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		if err == nil {
			err = netlink.AddrAdd(link, addr)
		}
		if err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}

// testNamespaceOfTheHost runs a container in a network namespace that has been
// filled before, as CRI's are: the guest is found at the interface's address.
func testNamespaceOfTheHost(r *rig) { r.inNamespaceOfTheHost(nil) }

// Addresses of a namespace that a client has filled, and of the host's end.
const (
	filledAddress = "10.9.0.2"
	filledHost    = "10.9.0.1"
)

// filledNamespace makes a network namespace with an interface that leads to the
// host, and a path of it.
func (r *rig) filledNamespace() (ns *os.File, path string) {
	r.Helper()
	ns, err := netns.New()
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { ns.Close() })
	r.fill(ns, filledAddress)
	return ns, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.Fd())
}

// fill gives a network namespace an interface with this address.
func (r *rig) fill(ns *os.File, addr string) {
	r.Helper()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "pod0", MTU: 1400}, PeerName: "net1", PeerMTU: 1400, PeerNamespace: netlink.NsFd(ns.Fd())}
	if err := errors.Join(netlink.LinkAdd(veth), linkUp("pod0", filledHost+"/24")); err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() {
		// It may have gone with the namespace that its peer was in.
		if err := netlink.LinkDel(veth); err != nil && !errors.Is(err, unix.ENODEV) {
			r.Error(err)
		}
	})
	if err := netns.Do(ns, func() error { return errors.Join(linkUp("lo"), linkUp("net1", addr+"/24")) }); err != nil {
		r.Fatal(err)
	}
}

// wantWeb waits for an answer at an address of a namespace that was filled.
func (r *rig) wantWeb(addr string) {
	r.Helper()
	r.eventually(commandTimeout, func() error {
		resp, err := (&http.Client{Timeout: commandTimeout}).Get("http://" + addr + ":8080/")
		if err == nil {
			resp.Body.Close()
		}
		return err
	})
}

func (r *rig) inNamespaceOfTheHost(flags []string) {
	r.Helper()
	ns, path := r.filledNamespace()
	id := r.start(append(flags, "--with-ns", "network:"+path), "/bin/probe", "web", "8080")
	r.wantWeb(filledAddress)
	// So it is by who enters the namespace and asks for its loopback, as CRI does
	// to forward a port.
	if got, err := overLoopback(r.ctx, ns, "GET / HTTP/1.0\r\n\r\n", 8080); err != nil || !strings.Contains(got, " 200 ") {
		r.Errorf("forwarded: %q, %v", got, err)
	}
	if got, err := overLoopback(r.ctx, ns, "x", 8081); err == nil {
		r.Errorf("a port where nobody listens answered %q", got)
	}
	mtu := r.mustOK(r.exec(id, nil, nil, nil, "cat", "/sys/class/net/net1/mtu"))
	r.expect(mtu, 0, "1400\n")
	r.removeContainer(id)
	r.eventually(commandTimeout, func() error {
		return netns.Do(ns, func() error {
			if _, err := netlink.LinkByName("bhyve0"); err == nil {
				return errors.New("the machine's tap is still in the namespace")
			}
			_, err := netlink.LinkByName("net1")
			return err
		})
	})
}

// overLoopback asks a port of a namespace's loopback, and returns all that it
// answers.
func overLoopback(ctx context.Context, ns *os.File, question string, port int) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	var conn net.Conn
	err := netns.Do(ns, func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, "tcp4", fmt.Sprintf("127.0.0.1:%d", port))
		return err
	})
	if err != nil {
		return "", err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := io.WriteString(conn, question); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(conn)
	return string(answer), err
}

// testNerdctlPublishes runs a container as `nerdctl run -p`, whose OCI hook has
// CNI plugins fill the network namespace of the machine's process.
func testNerdctlPublishes(r *rig) {
	nerdctl, err := lab.NewNerdctlClient(r.Lab)
	if err != nil {
		r.Fatal(err)
	}
	do := func(args ...string) lab.Result {
		r.Helper()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), commandTimeout)
		defer cancel()
		return r.wait(ctx, nerdctl.Command(ctx, args...))
	}
	id := r.newID()
	// The plugin for ports leaves the frame of its rules.
	r.Cleanup(func() {
		c, err := nftables.New()
		if err != nil {
			r.Error(err)
			return
		}
		c.DelTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "cni_hostport"})
		if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
			r.Error(err)
		}
	})
	r.Cleanup(func() { r.mustOK(do("rm", "--force", id)) })
	r.mustOK(do("run", "--detach", "--runtime", r.runtime, "--name", id, "--pull", "never", "--net", "lab", "--publish", "8088:8080",
		lab.Image, "/bin/probe", "web", "8080"))
	r.eventually(commandTimeout, func() error {
		resp, err := (&http.Client{Timeout: commandTimeout}).Get("http://127.0.0.1:8088/")
		if err == nil {
			resp.Body.Close()
		}
		return err
	})
}

// testPodNetwork runs a pod of CRI's, in the network namespace that CNI plugins
// have filled for it: it answers at the pod's address.
func testPodNetwork(r *rig) {
	crictl, err := lab.NewCrictlClient(r.ctx, r.Lab)
	if err != nil {
		r.Fatal(err)
	}
	id := r.newID()
	r.Cleanup(func() {
		if err := crictl.Remove(context.WithoutCancel(r.ctx), id); err != nil {
			r.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(r.ctx, commandTimeout)
	defer cancel()
	if err := crictl.Start(ctx, lab.Container{ID: id, Runtime: r.runtime, Command: []string{"/bin/probe", "web", "8080"}}); err != nil {
		r.Fatal(err)
	}
	pod := strings.TrimSpace(r.mustOK(r.wait(ctx, crictl.Command(ctx, "pods", "--quiet", "--name", id))).Stdout)
	var status struct {
		Status struct {
			Network struct{ IP string }
		}
	}
	if err := json.Unmarshal([]byte(r.mustOK(r.wait(ctx, crictl.Command(ctx, "inspectp", "--output", "json", pod))).Stdout), &status); err != nil {
		r.Fatal(err)
	}
	r.eventually(commandTimeout, func() error {
		resp, err := (&http.Client{Timeout: commandTimeout}).Get("http://" + status.Status.Network.IP + ":8080/")
		if err == nil {
			resp.Body.Close()
		}
		return err
	})
}
