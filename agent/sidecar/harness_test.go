package sidecar

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/flarekv/flare/agent/options"
	"github.com/flarekv/flare/agent/options/wire"
	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

// patience bounds every wait: long, because only a failing test waits for it.
const patience = 60 * time.Second

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting until %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// fakeFlared serves NodeService on a Unix socket as flared does: options are
// parsed and applied by the same table.
type fakeFlared struct {
	agentv1.UnimplementedNodeServiceServer
	socket string
	server *grpc.Server

	mu      sync.Mutex
	status  *agentv1.NodeStatus
	changed chan struct{}
	running options.Options
	applied string
	texts   []string // of ApplyOptions
	failing error    // answered to whatever is about options
	release chan struct{}
	leases  []*agentv1.LeaseGrant

	targets []string // of HandOverMaster
	orphans uint64   // that PurgeOrphans finds when it is told no rate; 0: it never ends
}

func startFlared(t *testing.T, socket, instance string, change ...func(*fakeFlared)) *fakeFlared {
	t.Helper()
	f := &fakeFlared{socket: socket, changed: make(chan struct{}), running: options.Default(), server: grpc.NewServer(),
		status: &agentv1.NodeStatus{Node: "flare-0.flare-nodes:12121", Instance: instance, Version: "9", Serving: true,
			Role: agentv1.Role_ROLE_MASTER, State: agentv1.State_STATE_ACTIVE, Partition: new(uint32(0)), Lsn: &agentv1.Lsn{Epoch: 1, Index: 7},
			ExpirySweep: &agentv1.ExpirySweep{Walks: 2, Removed: 9, RemovedBytes: 81},
			Replicas:    []*agentv1.ReplicaStatus{{Node: "flare-1.flare-nodes:12121", Connected: true, InSync: true, LagBatches: 3}}}}
	for _, c := range change {
		c(f)
	}
	agentv1.RegisterNodeServiceServer(f.server, f)
	os.Remove(socket)
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	// A process that is killed leaves its socket behind.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	served := make(chan struct{})
	go func() { defer close(served); f.server.Serve(l) }()
	t.Cleanup(func() { f.kill(); <-served })
	return f
}

// kill ends it as the kernel ends a process: every connection at once.
func (f *fakeFlared) kill() { f.server.Stop() }

func (f *fakeFlared) set(change func(*agentv1.NodeStatus)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f.status)
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fakeFlared) sent() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.texts...)
}

func (f *fakeFlared) WatchNode(_ *agentv1.WatchNodeRequest, stream grpc.ServerStreamingServer[agentv1.WatchNodeResponse]) error {
	for {
		f.mu.Lock()
		changed := f.changed
		var msg grpc.PreparedMsg
		err := msg.Encode(stream, &agentv1.WatchNodeResponse{Status: f.status})
		f.mu.Unlock()
		if err != nil {
			return err
		}
		if err := stream.SendMsg(&msg); err != nil {
			return err
		}
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-changed:
		case <-time.After(time.Second):
		}
	}
}

// ScanOrphans tells two steps and is then refused, as flared does it.
func (f *fakeFlared) ScanOrphans(_ *agentv1.ScanOrphansRequest, stream grpc.ServerStreamingServer[agentv1.ScanOrphansResponse]) error {
	for i := range uint64(2) {
		if err := stream.Send(&agentv1.ScanOrphansResponse{Progress: &agentv1.OrphanProgress{Keys: i}}); err != nil {
			return err
		}
	}
	return refusal(codes.FailedPrecondition, "map_changing", "map_changing: the node map changed")
}

// HandOverMaster hands over, but not to nobody.
func (f *fakeFlared) HandOverMaster(_ context.Context, req *agentv1.HandOverMasterRequest) (*agentv1.HandOverMasterResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.targets = append(f.targets, req.GetTarget())
	if req.GetTarget() == "nobody:1" {
		return nil, refusal(codes.FailedPrecondition, "target_not_in_sync", "target_not_in_sync: nobody is in sync")
	}
	return &agentv1.HandOverMasterResponse{}, nil
}

// PurgeOrphans removes as many as it is told to in a second. If that is none, it removes
// those there are, and hangs for ever if there are none.
func (f *fakeFlared) PurgeOrphans(req *agentv1.PurgeOrphansRequest, stream grpc.ServerStreamingServer[agentv1.PurgeOrphansResponse]) error {
	f.mu.Lock()
	found := max(uint64(req.GetRate()), f.orphans)
	f.mu.Unlock()
	err := stream.Send(&agentv1.PurgeOrphansResponse{Progress: &agentv1.OrphanProgress{Orphans: found, Done: found > 0}})
	if found == 0 {
		<-stream.Context().Done()
	}
	return err
}

func (f *fakeFlared) ApplyOptions(ctx context.Context, req *agentv1.ApplyOptionsRequest) (*agentv1.ApplyOptionsResponse, error) {
	f.mu.Lock()
	f.texts = append(f.texts, req.GetText())
	failing, release := f.failing, f.release
	f.mu.Unlock()
	if release != nil {
		select {
		case <-release:
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	}
	if failing != nil {
		return nil, failing
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	wanted, settings, err := options.Parse("applied", []byte(req.GetText()), options.Default())
	if err == nil {
		f.running, f.applied = f.running.WithLive(wanted), req.GetText()
	}
	resp := &agentv1.ApplyOptionsResponse{Accepted: err == nil}
	for _, r := range options.Report(f.running, wanted, settings, err, nil) {
		resp.Options = append(resp.Options, wire.Status(r, 0))
	}
	return resp, nil
}

// GetOptions and CheckOptions know a command line with data-dir beside what was applied.
func (f *fakeFlared) GetOptions(context.Context, *agentv1.GetOptionsRequest) (*agentv1.GetOptionsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failing != nil {
		return nil, f.failing
	}
	resp := &agentv1.GetOptionsResponse{AppliedText: f.applied}
	wanted, settings, err := options.Parse("applied", []byte(f.applied), f.running)
	for _, r := range options.Report(f.running, wanted, settings, err, nil) {
		from := options.FromDefault
		switch {
		case r.Key == "data-dir":
			r.Effective, r.State, from = "/data", options.Applied, options.FromCommandLine
		case r.Line > 0:
			from = options.FromAgent
		}
		resp.Options = append(resp.Options, wire.Status(r, from))
	}
	return resp, nil
}

func (f *fakeFlared) CheckOptions(_ context.Context, req *agentv1.CheckOptionsRequest) (*agentv1.CheckOptionsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failing != nil {
		return nil, f.failing
	}
	wanted, settings, err := options.Parse("checked", []byte(req.GetText()), options.Default())
	return &agentv1.CheckOptionsResponse{Accepted: err == nil, Options: wire.Verdicts(options.Preview(f.running, wanted, settings, err, nil))}, nil
}

// RenewLease takes a lease as flared does.
func (f *fakeFlared) RenewLease(_ context.Context, req *agentv1.RenewLeaseRequest) (*agentv1.RenewLeaseResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if req.GetLease().GetInstance() != f.status.GetInstance() {
		return &agentv1.RenewLeaseResponse{Reason: "other_instance"}, nil
	}
	f.leases = append(f.leases, req.GetLease())
	return &agentv1.RenewLeaseResponse{Accepted: true}, nil
}

// lease is the last one it took.
func (f *fakeFlared) lease() *agentv1.LeaseGrant {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.leases) == 0 {
		return nil
	}
	return f.leases[len(f.leases)-1]
}

// configMap is a directory as the kubelet keeps it for a mounted ConfigMap: the
// files are links into ..data, and ..data is a link that is renamed over.
type configMap struct {
	t   *testing.T
	dir string
	n   int
}

func newConfigMap(t *testing.T) *configMap { return &configMap{t: t, dir: t.TempDir()} }

func (c *configMap) write(files map[string]string) {
	c.t.Helper()
	c.n++
	check := func(err error) {
		c.t.Helper()
		if err != nil {
			c.t.Fatal(err)
		}
	}
	former, _ := os.Readlink(filepath.Join(c.dir, "..data"))
	version := fmt.Sprintf("..2026_01_02_%02d", c.n)
	check(os.Mkdir(filepath.Join(c.dir, version), 0o755))
	for name, text := range files {
		check(os.WriteFile(filepath.Join(c.dir, version, name), []byte(text), 0o644))
	}
	check(os.Symlink(version, filepath.Join(c.dir, "..data_tmp")))
	check(os.Rename(filepath.Join(c.dir, "..data_tmp"), filepath.Join(c.dir, "..data")))
	for _, name := range []string{ConfigFile, generationFile} {
		link := filepath.Join(c.dir, name)
		if _, has := files[name]; !has {
			os.Remove(link)
		} else if _, err := os.Lstat(link); err != nil {
			check(os.Symlink(filepath.Join("..data", name), link))
		}
	}
	if former != "" {
		check(os.RemoveAll(filepath.Join(c.dir, former)))
	}
}

func (c *configMap) config(generation int, text string) {
	c.t.Helper()
	c.write(map[string]string{ConfigFile: text, generationFile: fmt.Sprint(generation)})
}

// running is an agent under test and its clients.
type running struct {
	t      *testing.T
	agent  *Agent
	stop   func() error // ends Serve and returns its error; once
	api    agentv1.AgentServiceClient
	conn   *grpc.ClientConn
	http   string
	scrape string
	socket string
	log    *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// startAgent starts an agent; change adjusts what it is told.
func startAgent(t *testing.T, change func(*Settings)) *running {
	t.Helper()
	// t.TempDir may be longer than a socket's path may be.
	dir, err := os.MkdirTemp("", "agent")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &running{t: t, socket: filepath.Join(dir, "flared.sock"), log: &lockedBuffer{}}
	set := Settings{Node: "flare-0.flare-nodes:12121", Zone: "z1", Version: "test", Socket: r.socket, ConfigDir: filepath.Join(dir, "none"),
		PollInterval: time.Hour, Logger: slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	if change != nil {
		change(&set)
	}
	r.agent, err = New(set)
	if err != nil {
		t.Fatal(err)
	}
	r.serve()
	return r
}

func (r *running) serve() {
	t := r.t
	var l Listeners
	for _, to := range []*net.Listener{&l.GRPC, &l.HTTP, &l.Metrics} {
		var err error
		if *to, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	r.http, r.scrape = "http://"+l.HTTP.Addr().String(), "http://"+l.Metrics.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- r.agent.Serve(ctx, l) }()
	r.stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-served:
			return err
		case <-time.After(patience):
			return fmt.Errorf("the agent does not end")
		}
	})
	var err error
	r.conn, err = grpc.NewClient(l.GRPC.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	r.api = agentv1.NewAgentServiceClient(r.conn)
	t.Cleanup(func() {
		r.conn.Close()
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log("log of the agent:\n" + r.log.String())
		}
	})
}

func (r *running) status() *agentv1.AgentStatus {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	resp, err := r.api.GetStatus(ctx, &agentv1.GetStatusRequest{})
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.GetStatus()
}

// waitStatus waits for a status and returns it.
func (r *running) waitStatus(what string, cond func(*agentv1.AgentStatus) bool) *agentv1.AgentStatus {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	stream, err := r.api.WatchStatus(ctx, &agentv1.WatchStatusRequest{})
	if err != nil {
		r.t.Fatal(err)
	}
	var last *agentv1.AgentStatus
	for {
		resp, err := stream.Recv()
		if err != nil {
			if status.Code(err) == codes.DeadlineExceeded {
				r.t.Fatalf("timed out waiting until %s; last: %v", what, last)
			}
			r.t.Fatalf("waiting until %s: %v", what, err)
		}
		if last = resp.GetStatus(); cond(last) {
			return last
		}
	}
}

func (r *running) get(url string) (int, string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), "GET", url, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	// No connection is kept, so that none has to be waited for at the end.
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func (r *running) ready() (int, Readiness) {
	r.t.Helper()
	code, body := r.get(r.http + "/readyz")
	var v Readiness
	if err := json.Unmarshal([]byte(body), &v); err != nil {
		r.t.Fatalf("%q: %v", body, err)
	}
	return code, v
}
