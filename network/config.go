package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// DefaultPath is where the configuration of the default network is. It need not
// exist.
const DefaultPath = "/etc/containerd-shim-bhyve/network.toml"

// Config describes one network of this host.
type Config struct {
	// Bridge is the bridge's interface; it is made if it is not there. Its name
	// is also that of the rules' tables and of the state directory.
	Bridge string `toml:"bridge"`
	// Subnet is the network that Gateway, First and Last are in.
	Subnet netip.Prefix `toml:"subnet"`
	// Gateway is the host's address on the bridge.
	Gateway netip.Addr `toml:"gateway"`
	// First and Last bound the addresses that guests get.
	First netip.Addr `toml:"first"`
	Last  netip.Addr `toml:"last"`
	// MTU is the guests', in bytes.
	MTU int `toml:"mtu"`
	// DNS are the resolvers that guests are told, and may ask. Without any they
	// are those of the host's resolv.conf that a guest could reach.
	DNS []netip.Addr `toml:"dns"`
	// Upstream are the servers that `bhyve-net serve` asks for guests whose DNS is
	// Gateway. Without any they are those of the host's resolv.conf.
	Upstream []netip.AddrPort `toml:"upstream"`
	// Policy is that of sandboxes which ask for no other.
	Policy policy.Policy `toml:"policy"`
	// Policies are others, by name, that a sandbox may have in place of Policy.
	Policies map[string]policy.Policy `toml:"policies"`
	// LogGroup is the group of nfnetlink_log that packets which were stopped are
	// told to, now and then, for `bhyve-net serve` or another program to read; 0 for
	// the kernel's log. Linux only.
	LogGroup uint16 `toml:"log_group"`
	// State is the directory for records.
	State string `toml:"state"`
}

// DefaultConfig is the configuration of an empty file.
func DefaultConfig() Config {
	return Config{
		Bridge:  "cubenet0",
		Subnet:  netip.MustParsePrefix("10.77.0.0/24"),
		Gateway: netip.MustParseAddr("10.77.0.1"),
		First:   netip.MustParseAddr("10.77.0.10"),
		Last:    netip.MustParseAddr("10.77.0.200"),
		MTU:     1500,
		State:   stateDir,
	}
}

// LoadConfig reads a TOML file; every key is optional. A missing file is
// errdefs.ErrNotFound, a malformed one errdefs.ErrInvalidArgument. An empty path
// means DefaultPath, which may be missing.
func LoadConfig(path string) (Config, error) {
	c := DefaultConfig()
	asked := path != ""
	if !asked {
		path = DefaultPath
	}
	f, err := os.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !asked:
		return c, nil
	case errors.Is(err, fs.ErrNotExist):
		return c, fmt.Errorf("network configuration %s: %w", path, errdefs.ErrNotFound)
	case err != nil:
		return c, fmt.Errorf("network configuration: %w", err)
	}
	defer f.Close()
	if err := toml.NewDecoder(f).DisallowUnknownFields().Decode(&c); err != nil {
		var strict *toml.StrictMissingError
		if errors.As(err, &strict) {
			err = fmt.Errorf("unknown key %v", strict.Errors[0].Key())
		}
		return c, fmt.Errorf("network configuration %s: %w: %w", path, err, errdefs.ErrInvalidArgument)
	}
	if err := c.Validate(); err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// maxBridgeName is IFNAMSIZ less a NUL.
const maxBridgeName = 15

var bridgeName = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_]*$`)

// minMTU is what every IPv4 host has to take, RFC 791.
const minMTU = 576

// Validate returns errdefs.ErrInvalidArgument for a configuration that cannot
// work, and names the key.
func (c Config) Validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("network configuration: "+format+": %w", append(args, errdefs.ErrInvalidArgument)...)
	}
	switch {
	case len(c.Bridge) > maxBridgeName || !bridgeName.MatchString(c.Bridge):
		return bad("bridge %q: want at most %d letters, digits and '_'", c.Bridge, maxBridgeName)
	case !c.Subnet.IsValid() || !c.Subnet.Addr().Is4() || c.Subnet.Bits() < 8 || c.Subnet.Bits() > 30:
		return bad("subnet %s: want an IPv4 network of 8 to 30 bits", c.Subnet)
	case !c.Subnet.Contains(c.Gateway):
		return bad("gateway %s is not in subnet %s", c.Gateway, c.Subnet)
	case !c.Subnet.Contains(c.First) || !c.Subnet.Contains(c.Last) || c.Last.Less(c.First):
		return bad("first %s and last %s are no range in subnet %s", c.First, c.Last, c.Subnet)
	case !c.Gateway.Less(c.First) && !c.Last.Less(c.Gateway):
		return bad("gateway %s is in the range of the guests' addresses", c.Gateway)
	case c.MTU < minMTU || c.MTU > 65535:
		return bad("mtu %d: want %d to 65535", c.MTU, minMTU)
	case !filepath.IsAbs(c.State):
		return bad("state %q is no absolute path", c.State)
	}
	for _, addr := range c.DNS {
		if !addr.Is4() {
			return bad("dns %s: guests have IPv4 only", addr)
		}
	}
	if _, err := c.Policy.Compile(nil); err != nil {
		return fmt.Errorf("network configuration: %w", err)
	}
	for name, p := range c.Policies {
		if _, err := p.Compile(nil); err != nil {
			return fmt.Errorf("network configuration: policies.%s: %w", name, err)
		}
	}
	return nil
}

// PolicyNamed is one of Policies, or Policy for an empty name.
// errdefs.ErrInvalidArgument if there is none.
func (c Config) PolicyNamed(name string) (policy.Policy, error) {
	if name == "" {
		return c.Policy, nil
	}
	p, ok := c.Policies[name]
	if !ok {
		return p, fmt.Errorf("network %s: there is no policy %q: %w", c.Bridge, name, errdefs.ErrInvalidArgument)
	}
	return p, nil
}

// resolvers are the DNS servers of a guest.
func (c Config) resolvers() []netip.Addr {
	if len(c.DNS) > 0 {
		return c.DNS
	}
	// One on the host's loopback would be the guest's own there.
	return slices.DeleteFunc(nameservers(), netip.Addr.IsLoopback)
}

// Capacity is how many sandboxes can have an address.
func (c Config) Capacity() int { return int(number(c.Last)-number(c.First)) + 1 }

// Servers are whom `bhyve-net serve` asks.
func (c Config) Servers() []netip.AddrPort {
	if len(c.Upstream) > 0 {
		return c.Upstream
	}
	var all []netip.AddrPort
	for _, addr := range nameservers() {
		all = append(all, netip.AddrPortFrom(addr, 53))
	}
	return all
}

// nameservers are those of the host's resolv.conf(5) that have IPv4 addresses.
func nameservers() []netip.Addr {
	data, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return nil
	}
	var found []netip.Addr
	for line := range strings.Lines(string(data)) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "nameserver" {
			continue
		}
		if addr, err := netip.ParseAddr(words[1]); err == nil && addr.Is4() && !addr.IsUnspecified() {
			found = append(found, addr)
		}
	}
	return found
}

// macOf is the hardware address that goes with an address: locally administered
// and unicast, and the same whenever the address is, so that nobody's table of
// neighbours is ever stale.
func macOf(addr netip.Addr) net.HardwareAddr {
	return append(net.HardwareAddr{0x02, 0xcb}, addr.AsSlice()...)
}
