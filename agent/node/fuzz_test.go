package node

import (
	"bytes"
	"testing"

	"github.com/flarekv/flare/proto/text"
	"github.com/flarekv/flare/proto/topology"
)

// FuzzNodeSync installs whatever maps an index may push: every one is taken or
// refused, and with every one the node can tell what to do with a key.
func FuzzNodeSync(f *testing.F) {
	f.Add([]byte("node sync 1\r\nNODE h 1 0 0 0 1 16 1\r\nNODE h 2 1 0 0 1 17 1\r\nEND\r\n"))
	f.Add([]byte("node sync 2\r\nNODE h 1 0 0 0 1 16\r\nNODE h 2 0 1 1 1 17\r\nEND\r\nnode sync 1\r\nEND\r\n"))
	f.Add([]byte("node sync\r\nNODE 10.0.0.1 1 0 2 0 1 16\r\nNODE 10.0.0.2 1 2 0 -1 0 17\r\nEND\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, self := range []string{"h:1", "10.0.0.2:1"} {
			m := newNodeMap(self, newBroadcast(), discard)
			m.netmask = 8
			if err := m.register(nil, topology.DefaultMeta()); err != nil {
				t.Fatal(err)
			}
			r := text.NewReader(bytes.NewReader(in), text.Options{Commands: text.Commands(text.CmdNodeSync)})
			var req text.Request
			for r.ReadRequest(&req) == nil {
				before := m.mapVersion()
				if err := m.push(topology.NewMap(req.Version, req.Nodes)); err != nil {
					if req.Version >= before {
						t.Errorf("version %d after %d: %v", req.Version, before, err)
					}
					continue
				}
				table := m.table()
				d := dutyOf(table)
				if d.kind == dutyMaster && !table.parts[d.partition].leads {
					t.Errorf("master of a partition that another leads: %+v", d)
				}
				purgeable(table, m.clock())
				ownershipOf(table)
				for draw := range uint32(4) {
					key := []byte{byte(draw)}
					if r := table.routeRead(key, nil, nil, draw); r.action == actForward && (r.to == "" || r.to == self) {
						t.Errorf("a read is forwarded to %q", r.to)
					}
					if r := table.routeWrite(key, nil); r.action == actForward && (r.to == "" || r.to == self) {
						t.Errorf("a write is forwarded to %q", r.to)
					}
				}
			}
		}
	})
}
