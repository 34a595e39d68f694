package lab

import (
	"slices"
	"strings"
	"testing"
)

func TestDefaultInterfaces(t *testing.T) {
	const table = `Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
ens5	00000000	010200C0	0003	0	0	0	00000000	0	0	0
ens5	000200C0	00000000	0001	0	0	0	00FFFFFF	0	0	0
wlan0	00000000	010200C0	0003	0	0	600	00000000	0	0	0
ens5	00000000	010200C0	0003	0	0	100	00000000	0	0	0
down0	00000000	010200C0	0002	0	0	0	00000000	0	0	0
tun0	00000000	00000000	0001	0	0	0	00000080	0	0	0
`
	got, err := defaultInterfaces(strings.NewReader(table))
	if want := []string{"ens5", "wlan0"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
}

func TestGuardRules(t *testing.T) {
	rules := guardRules([]string{"ens5", "wlan0"})
	for _, i := range []string{"ens5", "wlan0"} {
		for _, way := range []string{"oifname", "iifname"} {
			for _, end := range []string{"saddr", "daddr"} {
				want := way + ` "` + i + `" ip ` + end + " { 172.31.0.0/24, 10.244.0.0/16, 10.96.0.0/16 } drop"
				if !strings.Contains(rules, want) {
					t.Errorf("no rule %q in\n%s", want, rules)
				}
			}
		}
	}
	if rules := guardRules(nil); strings.Contains(rules, "drop") {
		t.Errorf("a machine without a way out needs no rule:\n%s", rules)
	}
}

func TestCutRules(t *testing.T) {
	nodes, err := planNodes(3)
	if err != nil {
		t.Fatal(err)
	}
	rules := cutRules(nodes[1:])
	const set = "{ 172.31.0.12, 10.244.2.0/24, 172.31.0.13, 10.244.3.0/24 } drop"
	if strings.Count(rules, set) != 2 {
		t.Errorf("want both directions of %s in\n%s", set, rules)
	}
	if rules := cutRules(nil); strings.Contains(rules, "chain") {
		t.Errorf("nothing to cut, but there are rules:\n%s", rules)
	}
}

func TestParseMounts(t *testing.T) {
	const info = `27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
32 31 0:29 / /sys/fs/cgroup/cpu rw shared:5 master:3 - cgroup cgroup rw,cpu
42 27 7:0 / /a\040b\134c rw - tmpfs x rw
nonsense
`
	want := []mount{{"/", "ext4"}, {"/sys/fs/cgroup/cpu", "cgroup"}, {`/a b\c`, "tmpfs"}}
	if got := parseMounts(info); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
