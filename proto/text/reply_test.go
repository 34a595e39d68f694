package text

import (
	"testing"

	"github.com/flarekv/flare/proto/topology"
)

func TestAppendReplies(t *testing.T) {
	key, data := []byte("k"), []byte("abc")
	node := topology.Node{Name: "n", Port: 1, Role: topology.Proxy, State: topology.Down, Partition: -1, ThreadType: 17, Epoch: 5}
	for want, got := range map[string][]byte{
		"VALUE k 4294967295 3\r\nabc\r\n":                  AppendValue(nil, key, 1<<32-1, data, 7, false),
		"VALUE k 0 3 7\r\nabc\r\n":                         AppendValue(nil, key, 0, data, 7, true),
		"VALUE k 0 0 7 1700000000\r\n\r\n":                 AppendDumpValue(nil, key, 0, nil, 7, 1700000000),
		"KEY k\r\n":                                        AppendKey(nil, key),
		"18446744073709551615\r\n":                         AppendNumber(nil, 1<<64-1),
		"STAT pid 7\r\n":                                   AppendStat(nil, "pid", "7"),
		"STAT 2:op \r\n":                                   AppendStat(nil, "2:op", ""),
		"VERSION flare-1\r\n":                              AppendVersion(nil, "flare-1"),
		"SERVER_ERROR a  b\r\n":                            AppendServerError(nil, "a\r\nb"),
		"CLIENT_ERROR\r\n":                                 AppendClientError(nil, ""),
		"NODE n 1 2 2 -1 0 17\r\n":                         AppendNode(nil, node, false),
		"NODE n 1 2 2 -1 0 17 5\r\n":                       AppendNode(nil, node, true),
		"NODE n 1 2 2 -1 0 17\r\nEND\r\n":                  AppendNodes(nil, []topology.Node{node}, false),
		"node sync 9\r\nEND\r\n":                           AppendNodeSync(nil, topology.Map{Version: 9}, true),
		"node sync 0\r\nNODE n 1 2 2 -1 0 17 5\r\nEND\r\n": AppendNodeSync(nil, topology.Map{Nodes: []topology.Node{node}}, true),
		"META partition-size 1024\r\nMETA key-hash-algorithm simple\r\nMETA partition-type modular\r\n" +
			"META partition-modular-hint 1\r\nMETA partition-modular-virtual 4096\r\nEND\r\n": AppendMeta(nil, topology.DefaultMeta()),
	} {
		if string(got) != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
