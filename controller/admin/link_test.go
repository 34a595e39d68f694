package admin

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/flarekv/flare/controller/core"
)

// TestWhoMaySpeakForANode goes through the ways in which an agent can come to speak
// for a node that it is not beside.
func TestWhoMaySpeakForANode(t *testing.T) {
	pods := core.Members{Known: true, Count: 2, List: []core.Member{
		{Key: "a:1", Exists: true, Address: "10.0.0.1"},
		{Key: "b:1", Ordinal: 1, Exists: true, Address: "10.0.0.2"},
		{Key: "c:1", Ordinal: 2},
	}}
	early, late := time.Unix(1, 0), time.Unix(2, 0)
	from := func(peer string, started time.Time) *link { return &link{node: "a:1", peer: peer, started: started} }
	for _, tt := range []struct {
		name, node, peer string
		started          time.Time
		present          *link
		members          core.Members
		code             codes.Code
		reason           string
	}{
		{"its own pod", "a:1", "10.0.0.1", early, nil, pods, codes.OK, ""},
		{"another pod", "a:1", "10.0.0.2", early, nil, pods, codes.PermissionDenied, ReasonAgentOfOtherPod},
		{"a pod that is not there yet, from an address that is no pod's", "c:1", "10.0.0.9", early, nil, pods, codes.OK, ""},
		{"a name that no pod has", "x:1", "10.0.0.9", early, nil, pods, codes.PermissionDenied, ReasonAgentOfNoPod},
		{"addresses are translated", "a:1", "172.16.0.1", early, nil, pods, codes.OK, ""},
		{"a stranger, while the pod's agent is linked", "a:1", "172.16.0.1", late, from("10.0.0.1", early), pods, codes.PermissionDenied, core.RefuseNameInUse},
		{"the pod's agent, while a stranger is linked", "a:1", "10.0.0.1", early, from("172.16.0.1", late), pods, codes.OK, ""},
		{"the next pod of the name, while the former one lives on", "a:1", "10.0.0.1", late, from("10.0.0.8", early), pods, codes.OK, ""},
		{"the former pod, while the next one is linked", "a:1", "10.0.0.8", early, from("10.0.0.1", late), pods, codes.PermissionDenied, core.RefuseNameInUse},
		{"the pod's agent again", "a:1", "10.0.0.1", late, from("10.0.0.1", early), pods, codes.OK, ""},
		{"the pod's former agent", "a:1", "10.0.0.1", early, from("10.0.0.1", late), pods, codes.Aborted, ReasonLinkReplaced},
		{"without Kubernetes", "a:1", "192.168.0.1", early, nil, core.Members{}, codes.OK, ""},
		{"without Kubernetes, another machine", "a:1", "192.168.0.2", late, from("192.168.0.1", early), core.Members{}, codes.PermissionDenied, core.RefuseNameInUse},
		{"without Kubernetes, the same machine", "a:1", "192.168.0.1", late, from("192.168.0.1", early), core.Members{}, codes.OK, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := refuseAgent(tt.node, tt.peer, tt.started, tt.present, tt.members)
			wantRefusal(t, err, tt.code, tt.reason)
		})
	}
}

// TestAgentOfAnotherPod refuses one over the wire, counts it, and goes on hearing the
// one that is where the node is.
func TestAgentOfAnotherPod(t *testing.T) {
	f := start(t, Config{})
	topo := sample
	topo.Members = core.Members{Known: true, Count: 2, List: []core.Member{
		{Key: "a:12121", Exists: true, Address: "10.0.0.1"}, {Key: "b:12121", Exists: true, Address: "127.0.0.1"},
	}}
	cluster := newFakeCluster(topo)
	defer f.Lead(cluster)()
	rightful := attach(t, f)
	speak := func() {
		t.Helper()
		if err := rightful.Send(report("b:12121")); err != nil {
			t.Fatal(err)
		}
		if _, err := rightful.Recv(); err != nil {
			t.Fatal(err)
		}
		if got, ok := cluster.next(t).(core.AgentReport); !ok || got.Key != "b:12121" || got.Peer != "127.0.0.1" {
			t.Errorf("observed %+v", got)
		}
	}
	speak()
	for node, reason := range map[string]string{"a:12121": ReasonAgentOfOtherPod, "x:12121": ReasonAgentOfNoPod} {
		link := attach(t, f)
		if err := link.Send(report(node)); err != nil {
			t.Fatal(err)
		}
		_, err := link.Recv()
		wantRefusal(t, err, codes.PermissionDenied, reason)
		if _, metrics := get(t, f.metrics); !strings.Contains(metrics, `flare_controller_agent_refusals_total{reason="`+reason+`"} 1`) {
			t.Errorf("%s is not counted", reason)
		}
	}
	speak()
}

// crowded is a cluster whose core takes the news of a lost agent only when it is told.
type crowded struct {
	*fakeCluster
	lost, taken chan struct{}
}

func (c *crowded) Observe(in core.Input) {
	if _, ok := in.(core.AgentLost); ok {
		close(c.lost)
		<-c.taken
	}
	c.fakeCluster.Observe(in)
}

// TestGrantsWhileAnAgentIsLost hands leases and orders over while the core, which does
// so, has not taken the news of a lost agent yet: with its queue full it waited for the
// links, and they for it, for ever.
func TestGrantsWhileAnAgentIsLost(t *testing.T) {
	f := start(t, Config{})
	cluster := &crowded{newFakeCluster(sample), make(chan struct{}), make(chan struct{})}
	defer f.Lead(cluster)()
	link := attach(t, f)
	if err := link.Send(report("b:12121")); err != nil {
		t.Fatal(err)
	}
	cluster.next(t)
	if err := link.CloseSend(); err != nil {
		t.Fatal(err)
	}
	<-cluster.lost
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.Grant(core.GrantLease{Key: "b:12121"})
		f.Order(core.OrderNode{Key: "b:12121"})
		_ = f.links.count()
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Error("the core waits for the links")
	}
	close(cluster.taken)
	<-done
}
