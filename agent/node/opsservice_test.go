package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
	"github.com/flarekv/flare/proto/topology"
)

// refusedBecause is the reason in a gRPC error, "" for none.
func refusedBecause(err error) string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == errorDomain {
			return info.GetReason()
		}
	}
	return ""
}

// allOf reads a stream to its end.
func allOf[T any](stream grpc.ServerStreamingClient[T], err error) (list []*T, _ error) {
	for err == nil {
		var m *T
		if m, err = stream.Recv(); err == nil {
			list = append(list, m)
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return list, err
}

// socketDir is a directory whose path is short enough for sockets.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "flare")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// pairWithSockets is a master with a replica in sync, both with agents' sockets.
func pairWithSockets(t *testing.T) (x *testIndex, master, slave *testNode, ofMaster, ofSlave agentv1.NodeServiceClient) {
	t.Helper()
	x = newTestIndex(t)
	dir := socketDir(t)
	socket := func(name string) tune {
		return func(n *testNode) { n.opts.AgentSocket = filepath.Join(dir, name) }
	}
	master, slave = startNode(t, x, socket("m")), startNode(t, x, socket("s"))
	x.master(master.key(), 0)
	master.settled(dutyMaster)
	dial(t, master).ask("set k 0 0 1\r\nx\r\n", "STORED\r\n")
	x.slave(slave.key(), 0, 1)
	inSync(t, x, slave)
	return x, master, slave, nodeService(t, filepath.Join(dir, "m")), nodeService(t, filepath.Join(dir, "s"))
}

func TestStartResync(t *testing.T) {
	x, master, slave, ofMaster, ofSlave := pairWithSockets(t)
	resync := func(c agentv1.NodeServiceClient, tier agentv1.Tier) ([]*agentv1.StartResyncResponse, error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		return allOf(c.StartResync(ctx, &agentv1.StartResyncRequest{Tier: tier}))
	}
	for _, tier := range []agentv1.Tier{agentv1.Tier_TIER_WAL, agentv1.Tier_TIER_CHECKPOINT, agentv1.Tier_TIER_UNSPECIFIED} {
		steps, err := resync(ofSlave, tier)
		if err != nil || len(steps) == 0 {
			t.Fatalf("%v: %d steps, %v", tier, len(steps), err)
		}
		last := steps[len(steps)-1].GetProgress()
		if !last.GetDone() || tier != agentv1.Tier_TIER_UNSPECIFIED && last.GetTier() != tier || last.GetLsn().GetIndex() != master.db.Position().LSN.Index {
			t.Errorf("%v: %v", tier, last)
		}
		if s := x.state(slave.key()); s != topology.Active {
			t.Errorf("%v: done in state %v", tier, s)
		}
	}
	if st := slave.nodeStatus(); st.GetCatchUpCounts().GetCheckpoint() != 1 || st.GetCatchUpCounts().GetFailed() != 0 || st.GetCatchUp().GetReason() == "" {
		t.Errorf("status %v", st)
	}
	for _, tt := range []struct {
		name   string
		client agentv1.NodeServiceClient
		tier   agentv1.Tier
		want   string
	}{
		{"a master", ofMaster, agentv1.Tier_TIER_CHECKPOINT, "not_replica"},
		{"dump from one that streams", ofSlave, agentv1.Tier_TIER_DUMP, "tier_not_possible"},
		{"a tier of the future", ofSlave, 99, "tier_not_possible"},
	} {
		if _, err := resync(tt.client, tt.tier); refusedBecause(err) != tt.want {
			t.Errorf("%s: %v, want %s", tt.name, err, tt.want)
		}
	}
	// Writes go on to be acknowledged by it.
	dial(t, master).ask("set k 0 0 1\r\ny\r\n", "STORED\r\n")
	eventually(t, "the replica follows", func() error {
		if r, _, err := slave.db.Get([]byte("k")); err != nil || string(r.Value) != "y" {
			return fmt.Errorf("%q, %v", r.Value, err)
		}
		return nil
	})
	x.down(master.key())
	eventually(t, "the replica is promoted", func() error {
		if held, _, _ := slave.roles.snapshot(); !held.held {
			return errors.New("no")
		}
		return nil
	})
	if _, err := resync(ofSlave, agentv1.Tier_TIER_WAL); refusedBecause(err) != "not_replica" {
		t.Errorf("after its promotion: %v", err)
	}
}

func TestBackups(t *testing.T) {
	_, master, slave, ofMaster, ofSlave := pairWithSockets(t)
	elsewhere := t.TempDir()
	for _, tt := range []struct {
		node   *testNode
		client agentv1.NodeServiceClient
		option string
		root   string
	}{
		{master, ofMaster, "", filepath.Join(master.dir, "backup")},
		{slave, ofSlave, "backup-dir = " + elsewhere, elsewhere},
	} {
		if r, err := tt.client.ApplyOptions(t.Context(), &agentv1.ApplyOptionsRequest{Text: tt.option}); err != nil || !r.GetAccepted() {
			t.Fatalf("%v, %v", r, err)
		}
		steps, err := allOf(tt.client.MakeBackup(t.Context(), &agentv1.MakeBackupRequest{Name: "first"}))
		if err != nil || len(steps) == 0 {
			t.Fatalf("%d steps, %v", len(steps), err)
		}
		p := steps[len(steps)-1].GetProgress()
		b := p.GetBackup()
		pos := tt.node.db.Position()
		if !b.GetComplete() || b.GetPath() != filepath.Join(tt.root, "first") || b.GetNode() != tt.node.key() || b.GetVersion() != "9.9.9" ||
			agentv1.PartitionNumber(b.Partition) != 0 || b.GetLsn().GetIndex() != pos.LSN.Index || b.GetHistory() != pos.History ||
			p.GetBytesDone() != b.GetBytes() || p.GetBytesTotal() != b.GetBytes() || p.GetFilesDone() != b.GetFiles() || b.GetFiles() == 0 {
			t.Errorf("last step %v", p)
		}
		steps, err = allOf(tt.client.MakeBackup(t.Context(), &agentv1.MakeBackupRequest{}))
		if err != nil || !strings.HasSuffix(steps[len(steps)-1].GetProgress().GetName(), "Z-p0") {
			t.Errorf("without a name: %v, %v", steps, err)
		}
		_, err = allOf(tt.client.MakeBackup(t.Context(), &agentv1.MakeBackupRequest{Name: "first"}))
		if refusedBecause(err) != "exists" {
			t.Errorf("again: %v", err)
		}
		_, err = allOf(tt.client.MakeBackup(t.Context(), &agentv1.MakeBackupRequest{Name: "../first"}))
		if refusedBecause(err) != "invalid_name" {
			t.Errorf("a path: %v", err)
		}
		list, err := tt.client.ListBackups(t.Context(), &agentv1.ListBackupsRequest{})
		if err != nil || list.GetDirectory() != tt.root || len(list.GetBackups()) != 2 || list.GetBackups()[1].GetName() != "first" {
			t.Errorf("list %v, %v", list, err)
		}
		if st := tt.node.nodeStatus().GetBackups(); st.GetComplete() != 2 || st.GetNewest() == "first" || st.GetNewestAt() == nil || st.GetBytes() < b.GetBytes() || st.GetRunning() {
			t.Errorf("status %v", st)
		}
		if _, err := tt.client.DropBackup(t.Context(), &agentv1.DropBackupRequest{Name: "first"}); err != nil {
			t.Error(err)
		}
		if st := tt.node.nodeStatus().GetBackups(); st.GetComplete() != 1 {
			t.Errorf("status after a deletion: %v", st)
		}
		if _, err := tt.client.DropBackup(t.Context(), &agentv1.DropBackupRequest{Name: "first"}); refusedBecause(err) != "not_found" {
			t.Errorf("deleted twice: %v", err)
		}
	}

	// One at a time, and one that its caller leaves is gone.
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := ofMaster.MakeBackup(ctx, &agentv1.MakeBackupRequest{Name: "slow", BytesPerSecond: 1})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := stream.Recv(); err != nil || m.GetProgress().GetName() != "slow" || m.GetProgress().GetBytesTotal() == 0 {
		t.Fatalf("%v, %v", m, err)
	}
	if _, err := allOf(ofMaster.MakeBackup(t.Context(), &agentv1.MakeBackupRequest{Name: "second"})); refusedBecause(err) != "already_running" {
		t.Errorf("a second one: %v", err)
	}
	if _, err := ofMaster.DropBackup(t.Context(), &agentv1.DropBackupRequest{Name: "slow"}); refusedBecause(err) != "already_running" {
		t.Errorf("deleting it meanwhile: %v", err)
	}
	list, err := ofMaster.ListBackups(t.Context(), &agentv1.ListBackupsRequest{})
	if err != nil || len(list.GetBackups()) != 2 || list.GetBackups()[1].GetComplete() {
		t.Errorf("list meanwhile %v, %v", list, err)
	}
	cancel()
	eventually(t, "the backup is given up", func() error {
		list, err := ofMaster.ListBackups(t.Context(), &agentv1.ListBackupsRequest{})
		if err != nil || len(list.GetBackups()) != 1 || master.backingUp.Load() {
			return fmt.Errorf("%v, %v", list, err)
		}
		return nil
	})
}

func TestLogStatusIsAtMostASecondOld(t *testing.T) {
	x := newTestIndex(t)
	n := startNode(t, x)
	x.master(n.key(), 0)
	n.settled(dutyMaster)
	first := n.nodeStatus().GetLog()
	if first.GetFiles() == 0 || first.GetBytes() == 0 || first.GetOldestIndex() == 0 {
		t.Errorf("log %v", first)
	}
	dial(t, n).ask("set k 0 0 1\r\nx\r\n", "STORED\r\n")
	eventually(t, "the log has grown", func() error {
		if l := n.nodeStatus().GetLog(); l.GetBytes() <= first.GetBytes() {
			return fmt.Errorf("%v", l)
		}
		return nil
	})
}
