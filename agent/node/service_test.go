package node

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/flarekv/flare/agent/options"
	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

func nodeService(t *testing.T, socket string) agentv1.NodeServiceClient {
	t.Helper()
	cc, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return agentv1.NewNodeServiceClient(cc)
}

func TestWatchNode(t *testing.T) {
	x := newTestIndex(t)
	// A socket left by a former process is in the way.
	dir, err := os.MkdirTemp("", "flare")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "flared.sock")
	x.mu.Lock()
	x.refuse = true
	x.mu.Unlock()
	n := &testNode{t: t, dir: t.TempDir(), index: x, opts: options.Default()}
	n.opts.ServerName, n.opts.IndexServers, n.opts.AgentSocket = "127.0.0.1", []string{x.addr()}, socket
	n.launch()
	t.Cleanup(n.kill)

	eventually(t, "socket", func() error {
		_, err := os.Stat(socket)
		return err
	})
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("socket has mode %v, %v", info.Mode(), err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stream, err := nodeService(t, socket).WatchNode(ctx, &agentv1.WatchNodeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	until := func(what string, ok func(*agentv1.NodeStatus) bool) {
		t.Helper()
		for {
			resp, err := stream.Recv()
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if ok(resp.GetStatus()) {
				return
			}
		}
	}
	until("refused registration", func(s *agentv1.NodeStatus) bool {
		return !s.GetServing() && s.GetNotServingReason() == "registration_refused" && s.Partition == nil && s.GetNode() == n.key()
	})
	x.mu.Lock()
	x.refuse = false
	x.mu.Unlock()
	until("serving proxy", func(s *agentv1.NodeStatus) bool {
		return s.GetServing() && s.GetRole() == agentv1.Role_ROLE_PROXY && s.GetInstance() == n.instance
	})
	x.master(n.key(), 0)
	until("master", func(s *agentv1.NodeStatus) bool {
		return s.GetRole() == agentv1.Role_ROLE_MASTER && s.GetState() == agentv1.State_STATE_ACTIVE &&
			s.GetLsn().GetEpoch() == 1 && agentv1.PartitionNumber(s.DataPartition) == 0 && s.GetHistory() != "" && s.GetMapVersion() > 0
	})
	slave := startNode(t, x)
	x.slave(slave.key(), 0, 1)
	until("replica", func(s *agentv1.NodeStatus) bool {
		return len(s.GetReplicas()) == 1 && s.GetReplicas()[0].GetInSync() && s.GetReplicas()[0].GetNode() == slave.key()
	})
	n.leave()
	for {
		if _, err := stream.Recv(); err != nil {
			break
		}
	}
	n.await()
	n.start() // over the socket that was left, if it was
}

func TestApplyOptions(t *testing.T) {
	x := newTestIndex(t)
	n := startNode(t, x)
	v := &service{s: n.Server}
	apply := func(text string) (*agentv1.ApplyOptionsResponse, map[string]*agentv1.OptionStatus) {
		t.Helper()
		resp, err := v.ApplyOptions(t.Context(), &agentv1.ApplyOptionsRequest{Text: text})
		if err != nil {
			t.Fatal(err)
		}
		byKey := map[string]*agentv1.OptionStatus{}
		for _, o := range resp.GetOptions() {
			byKey[o.GetKey()] = o
		}
		return resp, byKey
	}
	resp, got := apply("rocksdb-sync-writes = true\nmax-value-size = 5\nserver-port = 1\n")
	if !resp.GetAccepted() {
		t.Fatalf("refused: %v", resp)
	}
	if o := got["rocksdb-sync-writes"]; o.GetEffective() != "true" || o.GetState() != agentv1.OptionState_OPTION_STATE_APPLIED {
		t.Errorf("rocksdb-sync-writes: %v", o)
	}
	if o := got["server-port"]; o.GetState() != agentv1.OptionState_OPTION_STATE_PENDING_RESTART || o.GetConfigured() != "1" {
		t.Errorf("server-port: %v", o)
	}
	if o := got["rocksdb-wal-ttl-seconds"]; o.GetEffective() != "10800" || o.GetLine() != 0 {
		t.Errorf("rocksdb-wal-ttl-seconds: %v", o)
	}
	x.master(n.key(), 0)
	n.settled(dutyMaster)
	before, err := n.db.Stats()
	if err != nil {
		t.Fatal(err)
	}
	dial(t, n).ask("set a 0 0 6\r\n123456\r\nset a 0 0 1\r\nx\r\n", "SERVER_ERROR object too large for cache\r\nSTORED\r\n")
	if after, err := n.db.Stats(); err != nil || after.Fsyncs <= before.Fsyncs {
		t.Errorf("no commit was synced after rocksdb-sync-writes was switched on: %v", err)
	}

	resp, got = apply("max-value-size = 7\nno-such-option = 1\nrocksdb-sync-writes = maybe\n")
	if resp.GetAccepted() {
		t.Error("a text with wrong lines was accepted")
	}
	if o := got["no-such-option"]; o.GetReason() != options.ReasonUnknownOption || o.GetLine() != 2 {
		t.Errorf("no-such-option: %v", o)
	}
	if o := got["rocksdb-sync-writes"]; o.GetReason() != options.ReasonInvalidValue || o.GetEffective() != "true" {
		t.Errorf("rocksdb-sync-writes: %v", o)
	}
	if o := got["max-value-size"]; o.GetState() != agentv1.OptionState_OPTION_STATE_REJECTED || o.GetEffective() != "5" {
		t.Errorf("max-value-size: %v", o)
	}
	if text, err := os.ReadFile(filepath.Join(n.dir, appliedName)); err != nil || string(text[:19]) != "rocksdb-sync-writes" {
		t.Errorf("kept text %q, %v", text, err)
	}

	// The next configuration takes the place of the former one.
	resp, got = apply("")
	if o := got["rocksdb-sync-writes"]; !resp.GetAccepted() || o.GetEffective() != "false" || n.live.Load().MaxValueSize != n.opts.MaxValueSize {
		t.Errorf("after an empty text: %v", got)
	}
}

func TestLoadSettings(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "flared.conf")
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	logger := slog.New(slog.DiscardHandler)
	write(file, "data-dir = "+dir+"\nindex-servers = h:1\nmax-connection = 5\nnet-read-timeout = 7\n")
	write(filepath.Join(dir, appliedName), "max-connection = 6\ndata-dir = /elsewhere\n")
	_, opts, err := LoadSettings(file, nil, logger)
	if err != nil || opts.MaxConnection != 6 || opts.DataDir != dir || opts.Value("net-read-timeout") != "7" {
		t.Errorf("options %+v, %v", opts, err)
	}
	write(filepath.Join(dir, appliedName), "no-such-option = 6\n")
	if _, opts, err = LoadSettings(file, nil, logger); err != nil || opts.MaxConnection != 5 {
		t.Errorf("with a kept text that is wrong: %+v, %v", opts, err)
	}
	write(file, "data-dir\n")
	var refused *options.ParseError
	if _, _, err = LoadSettings(file, nil, logger); !errors.As(err, &refused) {
		t.Errorf("with a wrong file: %v", err)
	}
	write(file, "data-dir = x\n")
	if _, _, err = LoadSettings(file, nil, logger); !errors.As(err, &refused) {
		t.Errorf("without index servers: %v", err)
	}
}

func TestReload(t *testing.T) {
	x := newTestIndex(t)
	n := startNode(t, x)
	file := filepath.Join(t.TempDir(), "flared.conf")
	n.settings.file = file
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte("data-dir = "+n.dir+"\nindex-servers = "+x.addr()+"\n"+text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	write("max-connection = 77\nlog-level = warn\n")
	if err := n.Reload(); err != nil || n.live.Load().MaxConnection != 77 {
		t.Errorf("max-connection %d, %v", n.live.Load().MaxConnection, err)
	}
	write("max-connection = none\n")
	if err := n.Reload(); err == nil || n.live.Load().MaxConnection != 77 {
		t.Errorf("max-connection %d after a wrong file, %v", n.live.Load().MaxConnection, err)
	}
}
