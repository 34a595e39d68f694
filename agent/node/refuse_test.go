package node

import (
	"fmt"
	"strings"
	"testing"

	"github.com/flarekv/flare/proto/text"
	"github.com/flarekv/flare/proto/topology"
)

func TestRefuseReplica(t *testing.T) {
	table := &table{nodes: topology.Map{Nodes: []topology.Node{{Name: "b", Port: 1}}}}
	held := tenure{held: true, partition: 2}
	good := text.Replicate{Self: "b:1", Partition: 2, Proto: replicationProto}
	for _, tt := range []struct {
		name string
		held tenure
		edit func(*text.Replicate)
		want string
	}{
		{"a replica", held, func(*text.Replicate) {}, ""},
		{"one that is empty", held, func(r *text.Replicate) { r.History = "" }, ""},
		{"one that has other data", held, func(r *text.Replicate) { r.History = "other" }, ""},
		{"of another version", held, func(r *text.Replicate) { r.Proto++ }, "unsupported_version"},
		{"not the master", tenure{}, func(*text.Replicate) {}, "not_master"},
		{"of another partition", held, func(r *text.Replicate) { r.Partition = 1 }, "wrong_partition"},
		{"of another cluster", held, func(r *text.Replicate) { r.Self = "c:1" }, "not_in_map"},
	} {
		req := good
		tt.edit(&req)
		if got, _ := refuseReplica(table, tt.held, req); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// TestStrangersGetNoLog: a node of another cluster, or one that asks for another
// partition, is told why and counted.
func TestStrangersGetNoLog(t *testing.T) {
	x := newTestIndex(t)
	a := startNode(t, x)
	x.master(a.key(), 0)
	a.settled(dutyMaster)
	for _, tt := range []struct{ line, reason string }{
		{"replicate other.cluster:12121 0 abc 7 100 1\r\n", "not_in_map"},
		{fmt.Sprintf("replicate %s 5 - 0 0 1\r\n", a.key()), "wrong_partition"},
		{fmt.Sprintf("replicate %s 0 - 0 0 99\r\n", a.key()), "unsupported_version"},
	} {
		if got := dial(t, a).line(tt.line); !strings.HasPrefix(got, "SERVER_ERROR "+tt.reason+":") {
			t.Errorf("%s: %s", tt.reason, got)
		}
		if n := a.refusals.Counted(tt.reason); n != 1 {
			t.Errorf("%s counted %d times", tt.reason, n)
		}
		if len(a.log.lines("reason="+tt.reason)) == 0 && tt.reason == "not_in_map" {
			t.Errorf("%s is not logged", tt.reason)
		}
	}
	c := dial(t, a)
	for line := c.line("stats\r\n"); line != "STAT rocksdb_stream_refused_not_in_map 1"; line = c.line("") {
		if line == "END" {
			t.Fatal("no counter in stats")
		}
	}
}
