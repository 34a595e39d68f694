package sidecar

import (
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
	controllerv1 "github.com/flarekv/flare/proto/flare/controller/v1"
)

// report is what a controller was told.
type report struct {
	link   int // number of the link, from 1
	at     time.Time
	status *agentv1.AgentStatus
}

// fakeController serves AgentLinkService.
type fakeController struct {
	controllerv1.UnimplementedAgentLinkServiceServer
	addr string
	stop func()

	mu      sync.Mutex
	refuse  bool // answers not_leader
	mute    bool // takes reports and confirms none
	links   int
	reports []report
	ended   int                                           // links that the agent ended in good order
	grant   func(*agentv1.NodeStatus) *agentv1.LeaseGrant // may be nil
	order   *agentv1.Order                                // given after every report; may be nil
}

func startController(t *testing.T, addr string) *fakeController {
	t.Helper()
	var l net.Listener
	waitFor(t, "the port is free", func() (free bool) { // for a moment somebody else may have it
		var err error
		l, err = net.Listen("tcp", addr)
		return err == nil
	})
	c := &fakeController{addr: l.Addr().String()}
	server := grpc.NewServer()
	controllerv1.RegisterAgentLinkServiceServer(server, c)
	served := make(chan struct{})
	go func() { defer close(served); server.Serve(l) }()
	c.stop = sync.OnceFunc(func() { server.Stop(); <-served })
	t.Cleanup(c.stop)
	return c
}

func (c *fakeController) Attach(stream grpc.BidiStreamingServer[controllerv1.AttachRequest, controllerv1.AttachResponse]) error {
	c.mu.Lock()
	c.links++
	link, refused := c.links, c.refuse
	c.mu.Unlock()
	if refused {
		return refusal(codes.FailedPrecondition, "not_leader", "c-1 does not lead")
	}
	for n := uint64(1); ; n++ {
		req, err := stream.Recv()
		if err != nil {
			c.mu.Lock()
			c.ended++
			c.mu.Unlock()
			return nil
		}
		c.mu.Lock()
		c.reports = append(c.reports, report{link, time.Now(), req.GetStatus()})
		mute, grant, order := c.mute, c.grant, c.order
		c.mu.Unlock()
		if mute {
			continue
		}
		if err := stream.Send(&controllerv1.AttachResponse{MapVersion: n}); err != nil {
			return err
		}
		if order != nil {
			if err := stream.Send(&controllerv1.AttachResponse{MapVersion: n, Order: order}); err != nil {
				return err
			}
		}
		if grant == nil {
			continue
		}
		if l := grant(req.GetStatus().GetFlared()); l != nil {
			if err := stream.Send(&controllerv1.AttachResponse{MapVersion: n, Lease: l}); err != nil {
				return err
			}
		}
	}
}

func (c *fakeController) set(change func(*fakeController)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(c)
}

func (c *fakeController) told() []report {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]report(nil), c.reports...)
}

// last is the newest report.
func (c *fakeController) last() report {
	if all := c.told(); len(all) > 0 {
		return all[len(all)-1]
	}
	return report{}
}

func connected(s *agentv1.AgentStatus) bool { return s.GetControllerConnected() }

func TestControllerIsToldOfFlared(t *testing.T) {
	t.Parallel()
	c := startController(t, "127.0.0.1:0")
	r := startAgent(t, func(s *Settings) { s.Controller = c.addr })
	r.waitStatus("the link is up", connected)
	if first := c.told()[0].status; first.GetNode() != "flare-0.flare-nodes:12121" || first.GetZone() != "z1" || first.GetFlaredAlive() {
		t.Errorf("first report: %v", first)
	}
	f := startFlared(t, r.socket, "first")
	waitFor(t, "the controller knows flared", func() bool { return alive("first")(c.last().status) })
	f.set(func(s *agentv1.NodeStatus) { s.Lsn = &agentv1.Lsn{Epoch: 1, Index: 8} })
	waitFor(t, "the controller knows the position", func() bool { return c.last().status.GetFlared().GetLsn().GetIndex() == 8 })

	killed := time.Now()
	f.kill()
	waitFor(t, "the controller knows the end", func() bool { return dead(c.last().status) })
	for _, p := range c.told() {
		if p.at.After(killed) && dead(p.status) {
			if d := p.at.Sub(killed); d > patience/2 {
				t.Errorf("reported after %v", d)
			}
			if p.status.GetFlared().GetInstance() != "first" {
				t.Errorf("report of the end does not say whose: %v", p.status)
			}
			break
		}
	}
	// Reports go on though nothing happens.
	n := len(c.told())
	waitFor(t, "three more reports came", func() bool { return len(c.told()) >= n+3 })
	if all := c.told(); all[len(all)-1].link != 1 {
		t.Errorf("%d links for one controller", all[len(all)-1].link)
	}
}

func TestControllerThatDoesNotLeadIsTriedAgain(t *testing.T) {
	t.Parallel()
	c := startController(t, "127.0.0.1:0")
	c.set(func(c *fakeController) { c.refuse = true })
	r := startAgent(t, func(s *Settings) { s.Controller = c.addr })
	waitFor(t, "it was tried three times", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.links >= 3 })
	if r.status().GetControllerConnected() {
		t.Error("connected to a controller that does not lead")
	}
	c.set(func(c *fakeController) { c.refuse = false })
	r.waitStatus("the link is up", connected)
}

func TestControllerThatIsReplaced(t *testing.T) {
	t.Parallel()
	c := startController(t, "127.0.0.1:0")
	r := startAgent(t, func(s *Settings) { s.Controller = c.addr })
	r.waitStatus("the link is up", connected)
	c.stop()
	r.waitStatus("the link is down", func(s *agentv1.AgentStatus) bool { return !connected(s) })

	next := startController(t, c.addr)
	started := time.Now()
	r.waitStatus("the link is up again", connected)
	// It takes half a second at most; the bound is for a machine that has no time.
	if d := time.Since(started); d > patience/2 {
		t.Errorf("reconnected after %v", d)
	}
	if next.told()[0].status.GetControllerConnected() {
		t.Error("the first report of a link says that the link is up")
	}
}

func TestControllerThatDoesNotConfirmIsGivenUp(t *testing.T) {
	t.Parallel()
	c := startController(t, "127.0.0.1:0")
	r := startAgent(t, nil)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	a, err := New(Settings{Node: "n:1", Socket: r.socket, ConfigDir: t.TempDir(), Controller: c.addr, Logger: r.agent.log})
	if err != nil {
		t.Fatal(err)
	}
	a.confirm = 200 * time.Millisecond
	r.agent = a
	// Reports come at least once a second, so confirmations that are due sooner
	// than that are missing now and then. What matters is that it goes on.
	c.set(func(c *fakeController) { c.mute = true })
	r.serve()
	waitFor(t, "the silent controller was given up twice", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.links >= 3 })
	if r.status().GetControllerConnected() {
		t.Error("connected to a controller that confirms nothing")
	}
	c.set(func(c *fakeController) { c.mute = false })
	r.waitStatus("the link is up", connected)
}

func TestLinkIsEndedInGoodOrder(t *testing.T) {
	t.Parallel()
	c := startController(t, "127.0.0.1:0")
	r := startAgent(t, func(s *Settings) { s.Controller = c.addr })
	r.waitStatus("the link is up", connected)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the controller saw the end", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.ended == 1 })
}
