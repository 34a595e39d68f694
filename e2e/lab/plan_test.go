package lab

import (
	"errors"
	"testing"
)

func TestPlanNodes(t *testing.T) {
	nodes, err := planNodes(maxNodes)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	for _, n := range nodes {
		for _, unique := range []string{n.Name, n.Addr.String(), n.Pods.String(), n.link, n.mac} {
			if owner, taken := seen[unique]; taken {
				t.Errorf("%s and %s both have %s", owner, n.Name, unique)
			}
			seen[unique] = n.Name
		}
		if !machineNet.Contains(n.Addr) || n.Addr == controlAddr {
			t.Errorf("%s: address %s", n.Name, n.Addr)
		}
		if !podNet.Contains(n.Pods.Addr()) || n.Pods != n.Pods.Masked() {
			t.Errorf("%s: pods %s", n.Name, n.Pods)
		}
		if len(n.link) > 15 {
			t.Errorf("%s: the kernel takes no link name as long as %q", n.Name, n.link)
		}
	}
	for i, zone := range []string{"zone-a", "zone-b", "zone-c", "zone-a"} {
		if nodes[i].Zone != zone {
			t.Errorf("%s is in %s, want %s", nodes[i].Name, nodes[i].Zone, zone)
		}
	}
	for _, count := range []int{-1, 0, maxNodes + 1} {
		if _, err := planNodes(count); !errors.Is(err, ErrBadArgument) {
			t.Errorf("%d nodes: %v, want ErrBadArgument", count, err)
		}
	}
}

func TestGateway(t *testing.T) {
	for _, c := range []struct {
		name    string
		present int
		usable  []int
		want    int
	}{
		{"first choice", 0, []int{2, 1, 3}, 1},
		{"stays while usable", 3, []int{1, 2, 3}, 3},
		{"moves when lost", 1, []int{3, 2}, 2},
		{"nobody left", 1, nil, 0},
	} {
		if got := gateway(c.present, c.usable); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}
