package procs

import (
	"fmt"
	"net"
	"os/exec"
	"regexp"
	"slices"
	"testing"

	"github.com/flarekv/flare/proto/topology"
)

// failing are the cases of memccapable that this server does not pass, and why. With
// a key, it fails only at nodes that are not the master of the key's partition.
var failing = []struct{ name, key, why string }{
	{"ascii verbosity", "", `"verbosity noreply" lacks its level: as from the original, a line that cannot be parsed is answered with ERROR, whatever it asks for`},
	{"ascii flush", "test_ascii_flush", "#29: flush_all is local to the node"},
	{"ascii flush noreply", "test_ascii_flush_noreply", "#29"},
}

// TestMemccapable lets the protocol checks of libmemcached talk to both nodes of a
// cluster: half of what they write has to be forwarded, whichever they talk to.
func TestMemccapable(t *testing.T) {
	t.Parallel()
	program, err := exec.LookPath("memccapable")
	if err != nil {
		t.Fatalf("%v: it is in the packages that e2e/deps.sh installs", err)
	}
	c := start(t, Options{Partitions: 2, Replicas: 1})
	resolver, err := topology.NewResolver(topology.DefaultMeta())
	if err != nil {
		t.Fatal(err)
	}
	result := regexp.MustCompile(`(ascii [a-z ]*[a-z]) {2,}(\[pass\])?`)
	for partition := range 2 {
		var want []string
		for _, f := range failing {
			if f.key == "" || resolver.Partition([]byte(f.key), 2) != partition {
				want = append(want, f.name)
			}
		}
		host, port, err := net.SplitHostPort(master(t, c, partition).Addr)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range c.Nodes {
			// What the last run left would be found by this one.
			eventually(t, patience, "a master to be emptied", func() error {
				if got := dialWire(t, n.Addr, nil).exchange(t, "flush_all\r\n", "OK\r\n", false); got != "OK\r\n" {
					return fmt.Errorf("got %q", got)
				}
				return nil
			})
		}
		// The exit status is that of a failure; what counts is which.
		out, _ := exec.CommandContext(t.Context(), program, "-a", "-v", "-t", "10", "-h", host, "-p", port).Output()
		var got []string
		cases := result.FindAllStringSubmatch(string(out), -1)
		for _, m := range cases {
			if m[2] == "" {
				got = append(got, m[1])
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if len(cases) != 27 || !slices.Equal(got, want) {
			t.Errorf("partition %d: %d cases, not passed: %q, want 27 cases, %q\n%s", partition, len(cases), got, want, out)
		}
	}
}
