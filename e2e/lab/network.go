package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

// sysctls are those which the lab or its kubelets set for the whole machine.
var sysctls = []string{
	"kernel/keys/root_maxbytes",
	"kernel/keys/root_maxkeys",
	"kernel/panic",
	"kernel/panic_on_oops",
	"net/ipv4/ip_forward",
	"vm/overcommit_memory",
	"vm/panic_on_oom",
}

func readSysctls() (map[string]string, error) {
	values := map[string]string{}
	for _, name := range sysctls {
		v, err := os.ReadFile("/proc/sys/" + name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		values[name] = strings.TrimSpace(string(v))
	}
	return values, nil
}

func writeSysctls(values map[string]string) error {
	var errs []error
	for name, value := range values {
		errs = append(errs, os.WriteFile("/proc/sys/"+name, []byte(value), 0))
	}
	return errors.Join(errs...)
}

// networkUp makes the bridge that stands for the data centre's network, and
// the guard that keeps the lab's traffic off the machine's own.
func networkUp(ctx context.Context) error {
	if err := writeSysctls(map[string]string{"net/ipv4/ip_forward": "1"}); err != nil {
		return err
	}
	batch := fmt.Sprintf("link add %[1]s type bridge\naddr add %[2]s/%[3]d dev %[1]s\nlink set %[1]s up\n",
		bridge, controlAddr, machineNet.Bits())
	if _, err := runWith(ctx, batch, "ip", "-batch", "-"); err != nil {
		return fmt.Errorf("make bridge %s: %w", bridge, err)
	}
	routes, err := os.Open("/proc/net/route")
	if err != nil {
		return err
	}
	defer routes.Close()
	ways, err := defaultInterfaces(routes)
	if err != nil {
		return fmt.Errorf("read routes: %w", err)
	}
	if _, err := runWith(ctx, guardRules(ways), "nft", "-f", "-"); err != nil {
		return fmt.Errorf("make guard: %w", err)
	}
	return nil
}

func networkDown(ctx context.Context) error {
	var errs []error
	if _, err := os.Stat("/sys/class/net/" + bridge); err == nil {
		_, err := run(ctx, "ip", "link", "del", bridge)
		errs = append(errs, err)
	}
	if tables, err := run(ctx, "nft", "list", "tables"); err == nil &&
		slices.Contains(strings.Split(string(tables), "\n"), "table ip "+nftTable) {
		_, err := run(ctx, "nft", "delete", "table", "ip", nftTable)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// defaultInterfaces reads /proc/net/route for the interfaces that lead out
// of the machine.
func defaultInterfaces(routes io.Reader) ([]string, error) {
	const iface, destination, flags, mask = 0, 1, 3, 7
	const up = 1
	var found []string
	lines := bufio.NewScanner(routes)
	lines.Scan() // heading
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) <= mask || f[destination] != "00000000" || f[mask] != "00000000" {
			continue
		}
		if bits, err := strconv.ParseUint(f[flags], 16, 16); err != nil || bits&up == 0 {
			continue
		}
		if !slices.Contains(found, f[iface]) {
			found = append(found, f[iface])
		}
	}
	return found, lines.Err()
}

// guardRules drops whatever has an address of the lab and is about to leave,
// or comes in, by an interface that leads out.
func guardRules(interfaces []string) string {
	lab := fmt.Sprintf("{ %s, %s, %s }", machineNet, podNet, serviceNet)
	var b strings.Builder
	fmt.Fprintf(&b, "table ip %s {\n", nftTable)
	fmt.Fprintf(&b, "  chain out {\n    type filter hook postrouting priority 0; policy accept;\n")
	for _, i := range interfaces {
		fmt.Fprintf(&b, "    oifname %[1]q ip daddr %[2]s drop\n    oifname %[1]q ip saddr %[2]s drop\n", i, lab)
	}
	fmt.Fprintf(&b, "  }\n  chain in {\n    type filter hook prerouting priority 0; policy accept;\n")
	for _, i := range interfaces {
		fmt.Fprintf(&b, "    iifname %[1]q ip daddr %[2]s drop\n    iifname %[1]q ip saddr %[2]s drop\n", i, lab)
	}
	fmt.Fprintf(&b, "  }\n}\n")
	return b.String()
}

// routeServices leads the machine's own Service traffic through a node, whose
// kube-proxy knows what to do with it.
func (s *session) routeServices(ctx context.Context) error {
	var usable []int
	for _, n := range s.st.Nodes {
		if n.on() && !n.Cut {
			usable = append(usable, n.Number)
		}
	}
	way := gateway(s.st.Gateway, usable)
	if way == 0 {
		run(ctx, "ip", "route", "del", serviceNet.String()) // none may be there
	} else {
		n, err := planNode(way)
		if err != nil {
			return err
		}
		if _, err := run(ctx, "ip", "route", "replace", serviceNet.String(), "via", n.Addr.String(), "dev", bridge); err != nil {
			return err
		}
	}
	return s.change(func(st *state) { st.Gateway = way })
}

// cutRules is the table in a node's namespace that drops all traffic between
// it and other nodes, pods included.
func cutRules(others []Node) string {
	b := &strings.Builder{}
	fmt.Fprintf(b, "table ip %[1]s\ndelete table ip %[1]s\n", nftTable)
	if len(others) == 0 {
		return b.String()
	}
	var addrs []string
	for _, o := range others {
		addrs = append(addrs, o.Addr.String(), o.Pods.String())
	}
	set := "{ " + strings.Join(addrs, ", ") + " }"
	fmt.Fprintf(b, `table ip %s {
  chain in { type filter hook prerouting priority -300; ip saddr %[2]s drop; }
  chain out { type filter hook postrouting priority 300; ip daddr %[2]s drop; }
}
`, nftTable, set)
	return b.String()
}
