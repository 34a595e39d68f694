package lab

import (
	"fmt"
	"net/netip"
)

// The lab's addresses. They are the same for every lab, which is why a
// machine can have only one.
var (
	machineNet  = netip.MustParsePrefix("172.31.0.0/24") // bridge: control plane and nodes
	podNet      = netip.MustParsePrefix("10.244.0.0/16") // a /24 of it for each node
	serviceNet  = netip.MustParsePrefix("10.96.0.0/16")
	controlAddr = netip.MustParseAddr("172.31.0.1") // the root network namespace, on the bridge
	apiService  = netip.MustParseAddr("10.96.0.1")
	dnsService  = netip.MustParseAddr("10.96.0.10")
)

const (
	bridge   = "flarelab0"
	nftTable = "flare_lab"
	cgroup   = "flarelab"

	apiPort        = 6443
	etcdClientPort = 23790
	etcdPeerPort   = 23800

	zones    = 3
	maxNodes = 9
)

// Node is where one of the lab's nodes lives. It follows from the node's
// number alone, so that stopping and starting a node never moves it.
type Node struct {
	Number int
	Name   string       // also its host name
	Zone   string       // value of topology.kubernetes.io/zone
	Addr   netip.Addr   // on the lab's bridge
	Pods   netip.Prefix // its pods' addresses
	link   string       // host side of its network cable
	mac    string       // fixed, so that neighbours need not learn a new one after a restart
}

func planNode(number int) (Node, error) {
	if number < 1 || number > maxNodes {
		return Node{}, fmt.Errorf("%w: node %d: numbers go from 1 to %d", ErrBadArgument, number, maxNodes)
	}
	return Node{
		Number: number,
		Name:   fmt.Sprintf("n%d", number),
		Zone:   fmt.Sprintf("zone-%c", 'a'+(number-1)%zones),
		Addr:   netip.AddrFrom4([4]byte{172, 31, 0, byte(10 + number)}),
		Pods:   netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(number), 0}), 24),
		link:   fmt.Sprintf("flarelab-n%d", number),
		mac:    fmt.Sprintf("02:f1:ab:00:00:%02x", number),
	}, nil
}

func planNodes(count int) ([]Node, error) {
	if count < 1 || count > maxNodes {
		return nil, fmt.Errorf("%w: %d nodes: a lab has 1 to %d", ErrBadArgument, count, maxNodes)
	}
	nodes := make([]Node, count)
	for i := range nodes {
		nodes[i], _ = planNode(i + 1)
	}
	return nodes, nil
}

// gateway picks the node through which the machine reaches Services: the
// present one as long as it is usable, so that connections survive, else the
// first usable one, else 0.
func gateway(present int, usable []int) int {
	first := 0
	for _, n := range usable {
		if n == present {
			return present
		}
		if first == 0 || n < first {
			first = n
		}
	}
	return first
}
