package model

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/proto/topology"
)

// A Space is a set of states of the core that are made up, whether anything leads to
// them or not. From each that satisfies the invariants one step must keep them.
//
// It has one partition. Every combination is taken of, for each node, a duty and what
// is observed of it, and for the whole an epoch, who has a lease, what is saved, and why roles
// may not change. What is observed may be noted and not judged yet. Excluded is what the
// core is told by others about its own doings, and what two fields say of the same: a map
// is saved that is older than what was decided on only with an older epoch.
type Space struct {
	Name     string
	Nodes    int
	Observed int  // of observations, the first so many
	Wide     bool // with the breaker open, too, in the grace period, and with a save that failed
}

// Spaces lists them. The first is small enough for every run of the tests.
func Spaces() []Space {
	return []Space{
		{Name: "fast-1x2", Nodes: 2, Observed: 3},
		{Name: "1x2", Nodes: 2, Observed: 7, Wide: true},
		{Name: "1x3", Nodes: 3, Observed: 2},
	}
}

// Induction is what came of a space.
type Induction struct {
	Candidates, States, Steps uint64
	Took                      time.Duration
	Broken                    error // by a step from State with Input; nil for none
	State                     core.State
	Input                     core.Input
	Complete                  bool
}

const (
	inductNow    = int64(10_000_000)
	inductSilent = inductNow - 60_000
	inductToken  = uint64(5e12)
)

// duties are what the map says of a node.
var duties = []func(n *core.Node, epoch uint64){
	func(n *core.Node, _ uint64) { n.Role, n.State, n.Partition = topology.Master, topology.Active, 0 },
	func(n *core.Node, _ uint64) {
		n.Role, n.State, n.Partition, n.DownReason = topology.Master, topology.Down, 0, core.ReasonSilent
	},
	func(n *core.Node, _ uint64) {
		n.Role, n.State, n.Partition, n.DownReason, n.Gone = topology.Master, topology.Down, 0, core.ReasonProcessDead, true
	},
	func(n *core.Node, epoch uint64) {
		n.Role, n.State, n.Partition, n.Granted = topology.Slave, topology.Active, 0, core.Grant{Epoch: epoch, Session: 2}
	},
	func(n *core.Node, _ uint64) { n.Role, n.State, n.Partition = topology.Slave, topology.Prepare, 0 },
	func(n *core.Node, epoch uint64) {
		n.Role, n.State, n.Partition, n.Floor = topology.Slave, topology.Prepare, 0, core.Grant{Epoch: epoch, Session: 1}
	},
	func(n *core.Node, _ uint64) { n.Role, n.State, n.Partition = topology.Proxy, topology.Active, -1 },
	func(n *core.Node, _ uint64) {
		n.Role, n.State, n.Partition, n.DownReason, n.Gone = topology.Proxy, topology.Down, -1, core.ReasonProcessDead, true
	},
}

// observations are what is seen of a node.
var observations = []func(o *core.Seen){
	func(o *core.Seen) {
		o.Agent, o.AgentAt, o.PingOK, o.OKSince, o.PingAt = true, inductNow, true, inductSilent, inductNow
	},
	func(o *core.Seen) { o.AgentAt, o.PingFails, o.Refused = inductSilent, 3, 3 },
	func(o *core.Seen) { o.Agent, o.AgentAt, o.Report.Alive = true, inductNow, false },
	func(o *core.Seen) { o.AgentAt, o.PingFails = inductSilent, 1 },
	func(o *core.Seen) { o.Agent, o.AgentAt, o.PingOK, o.Report.Instance = true, inductNow, true, "next" },
	func(o *core.Seen) { o.AgentAt, o.PingOK, o.OKSince = inductSilent, true, inductSilent },
	func(o *core.Seen) { o.AddedAt, o.PingFails, o.Refused = 0, 3, 3 }, // never heard of
}

func inductKey(i int) (name string, port int, key string) {
	name = string(rune('a' + i))
	return name, 1, name + ":1"
}

// each calls f with every state of one of the parts that the space falls into, until it
// returns false.
func (sp Space) each(part, parts int, f func(core.State) bool) {
	of := len(duties) * sp.Observed
	total := 1
	for range sp.Nodes {
		total *= of
	}
	leases, saves, holds := sp.Nodes+1, 3, 2
	if sp.Wide {
		saves, holds = 4, 5
	}
	for i := part; i < total; i += parts {
		for epoch := uint64(1); epoch <= 2; epoch++ {
			for lease := range leases {
				for save := range saves {
					for hold := range holds {
						if save > 0 && epoch == 1 {
							continue // another map was saved than in this epoch
						}
						if !f(sp.state(i, epoch, lease, save, hold)) {
							return
						}
					}
				}
			}
		}
	}
}

func (sp Space) state(i int, epoch uint64, lease, save, hold int) core.State {
	d := core.Durable{Format: core.FormatVersion, Seq: 10, Version: 10, Generation: 1, Meta: topology.DefaultMeta(),
		NextThread: topology.FirstThreadType + sp.Nodes, Partitions: []core.Partition{{Epoch: epoch}}}
	s := core.State{Now: inductNow, Started: inductSilent, GraceOver: true,
		Spec: core.Spec{Known: true, Generation: 1, Partitions: 1, Replicas: sp.Nodes, Meta: topology.DefaultMeta(),
			Failover: core.FailoverPolicy{Grace: 120_000}}}
	for k := range sp.Nodes {
		name, port, key := inductKey(k)
		what := i % (len(duties) * sp.Observed)
		i /= len(duties) * sp.Observed
		n := core.Node{Name: name, Port: port, ThreadType: topology.FirstThreadType + k, Extended: true, Instance: "i" + name, Balance: 0, Home: 0, Held: 0,
			HeldLSN: topology.LSN{Epoch: 1, Index: 1}}
		duties[what%len(duties)](&n, epoch)
		d.Nodes = append(d.Nodes, n)
		o := core.Seen{Key: key, AddedAt: inductSilent, Report: core.AgentReport{Key: key, Now: inductNow, Alive: true, Instance: n.Instance,
			Serving: true, Role: n.Role, State: n.State, Partition: n.Partition, AgentStarted: 1, MapVersion: 9, LSN: topology.LSN{Epoch: 1, Index: 1}}}
		observations[what/len(duties)](&o)
		s.Seen = append(s.Seen, o)
	}
	d.Safety.Policy = s.Spec.Failover
	switch hold {
	case 2:
		d.Safety.Breaker = core.Breaker{State: core.BreakerOpen, Reason: core.ReasonBreakerOpen, Since: inductSilent, Settle: 10_000}
	case 3, 4: // the grace period, which the alphabet's times end
		s.Started, s.GraceOver = inductNow-1_000, false
	}
	if hold == 1 || hold == 4 {
		d.Safety.Pause = core.Pause{At: 1, Note: "x"}
	}
	if lease > 0 {
		// Who got it was the saved master of that epoch: of a former one the lease is of the
		// epoch before.
		n := d.Nodes[lease-1]
		e := epoch
		if n.Role != topology.Master {
			e = epoch - 1
		}
		s.Leases = []core.Lease{{Key: n.Key(), Instance: n.Instance, Partition: 0, Epoch: e, Token: inductToken, Until: inductNow + 3_000, Agent: 1}}
	}
	s.Durable, s.Saved = d, d
	s.SentVersion = d.Version
	s.Machine.Step = core.StepDone
	if save > 0 {
		// What is saved is older: the nodes were proxies, or replicas in sync of a master.
		s.Saved.Nodes = slices.Clone(d.Nodes)
		s.Saved.Seq, s.Saved.Version = 9, 9
		s.SentVersion = 9
		for k := range s.Saved.Nodes {
			n := &s.Saved.Nodes[k]
			n.Role, n.State, n.Partition, n.Gone, n.DownReason = topology.Slave, topology.Active, 0, false, ""
			if k == (save-1)%sp.Nodes {
				n.Role = topology.Master
			}
		}
		s.Saved.Partitions = []core.Partition{{Epoch: epoch - uint64(boolInt(epoch > 1))}}
		if save < 3 {
			s.Saving, s.Machine.Step = d, core.StepAssignRoles
		} else {
			s.PersistRetry, s.PersistError = inductNow+200, "full"
			s.Machine.Step = core.StepDone
		}
		s.Replies = []core.PendingReply{{After: 10, Reply: core.Reply{ID: 99}}}
	}
	return s
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// inputs is the alphabet: what can come in any state.
func (sp Space) inputs() []core.Input {
	paused := core.Spec{Known: true, Generation: 2, Partitions: 1, Replicas: sp.Nodes, Meta: topology.DefaultMeta(), Failover: core.FailoverPolicy{Paused: true}}
	list := []core.Input{
		core.Tick{Now: inductNow + 200}, core.Tick{Now: inductNow + 10_000}, core.Tick{Now: inductNow + 200_000},
		core.SpecChanged{Spec: paused},
		core.Persisted{Seq: 10}, core.Persisted{Seq: 10, Err: "full"}, core.Persisted{Seq: 9},
		core.Done{Request: core.RequestStatus, Seq: 1}, core.Done{Request: core.RequestLabels, Seq: 1},
		core.Command{ID: 1, Verb: core.VerbPause, Note: "y"}, core.Command{ID: 1, Verb: core.VerbResume}, core.Command{ID: 1, Verb: core.VerbOverride, Seconds: 60},
		core.Command{ID: 1, Verb: core.VerbAdd, Name: "z", Port: 1},
	}
	for k := range sp.Nodes {
		name, port, key := inductKey(k)
		instance := "i" + name
		report := core.AgentReport{Now: inductNow, Key: key, Alive: true, Instance: instance, Serving: true, AgentStarted: 1, MapVersion: 10, LeaseToken: inductToken + 2e9}
		master := report
		master.Role, master.State, master.LeaseEpoch = topology.Master, topology.Active, 2
		first := master
		first.LeaseEpoch = 1
		dead := report
		dead.Alive = false
		other, later := report, report
		other.Instance = "next"
		later.MapVersion = 20
		gone := core.Members{Known: true, Count: sp.Nodes}
		for m := range sp.Nodes {
			_, _, key := inductKey(m)
			gone.List = append(gone.List, core.Member{Key: key, Ordinal: m, Exists: true, Terminating: m == k})
		}
		command := func(c core.Command) core.Input {
			c.ID, c.Name, c.Port = 1, name, port
			return c
		}
		list = append(list, report, master, first, dead, other, later, core.AgentLost{Key: key}, core.MembersChanged{Members: gone},
			core.Pinged{Key: key, Outcome: core.PingOK}, core.Pinged{Key: key, Outcome: core.PingRefused}, core.Pinged{Key: key, Outcome: core.PingTimeout},
			core.Pushed{Key: key, Version: 9, Outcome: core.PingOK, NodeVersion: 20},
			command(core.Command{Verb: core.VerbAdd}),
			command(core.Command{Verb: core.VerbHello, Hello: core.Hello{Instance: instance, Partition: 0, LSN: topology.LSN{Epoch: 1, Index: 1}}}),
			command(core.Command{Verb: core.VerbHello, Hello: core.Hello{Instance: "next", Partition: -1}}),
			command(core.Command{Verb: core.VerbRemove}), command(core.Command{Verb: core.VerbShutdown}),
			command(core.Command{Verb: core.VerbMove}),
			command(core.Command{Verb: core.VerbState, State: topology.Down}), command(core.Command{Verb: core.VerbState, State: topology.Active}),
			command(core.Command{Verb: core.VerbState, State: topology.Active, AllowDataLoss: true}),
			command(core.Command{Verb: core.VerbForce}), command(core.Command{Verb: core.VerbForce, AllowDataLoss: true}),
			command(core.Command{Verb: core.VerbRole, Role: topology.Proxy, Balance: -1, Partition: -1}),
			command(core.Command{Verb: core.VerbRole, Role: topology.Slave, Balance: 1, Partition: 0}),
			command(core.Command{Verb: core.VerbRole, Role: topology.Master, Balance: 1, Partition: 0}))
		for epoch := uint64(1); epoch <= 2; epoch++ {
			for session := uint64(1); session <= 3; session++ {
				list = append(list, command(core.Command{Verb: core.VerbState, State: topology.Active, Epoch: epoch, Session: session, HasSession: true}),
					command(core.Command{Verb: core.VerbBehind, Epoch: epoch, Session: session}))
			}
			for m := range sp.Nodes {
				if to, port, _ := inductKey(m); m != k {
					list = append(list, command(core.Command{Verb: core.VerbHandover, Target: to, TargetPort: port, Epoch: epoch, Session: 2, Paused: inductToken + 1}))
				}
			}
		}
	}
	return list
}

// Induct takes from every state of a space that satisfies all invariants every step of
// the alphabet, and ends soon after the first that breaks one.
//
// every: of the candidates each so-manieth is looked at; 1 for all. workers is the number
// of goroutines, 0 for as many as there are processors.
func (sp Space) Induct(ctx context.Context, every uint64, workers int) Induction {
	began := time.Now()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	results := make([]Induction, cmp.Or(workers, runtime.GOMAXPROCS(0)))
	var running sync.WaitGroup
	for part := range results {
		running.Go(func() {
			if results[part] = sp.induct(ctx, every, part, len(results)); results[part].Broken != nil {
				stop()
			}
		})
	}
	running.Wait()
	all := Induction{Complete: true, Took: time.Since(began)}
	for _, r := range results {
		all.Candidates, all.States, all.Steps = all.Candidates+r.Candidates, all.States+r.States, all.Steps+r.Steps
		all.Complete = all.Complete && r.Complete
		if r.Broken != nil && all.Broken == nil {
			all.Broken, all.State, all.Input = r.Broken, r.State, r.Input
		}
	}
	return all
}

// induct does one of the parts that a space falls into.
func (sp Space) induct(ctx context.Context, every uint64, part, parts int) Induction {
	r := Induction{Complete: true}
	inputs := sp.inputs()
	sp.each(part, parts, func(s core.State) bool {
		r.Candidates++
		if ctx.Err() != nil {
			r.Complete = false
			return false
		}
		if r.Candidates%every != 0 {
			return true
		}
		if (core.Transition{Before: s, After: s}).Check() != nil {
			return true
		}
		r.States++
		for _, in := range inputs {
			r.Steps++
			if _, _, err := core.Check(s, in); err != nil {
				r.Broken, r.State, r.Input = err, s, in
				return false
			}
		}
		return true
	})
	return r
}

// InductAll goes through all spaces, tells what it found, and reports whether every step
// keeps the invariants.
func InductAll(ctx context.Context, out io.Writer, workers int) bool {
	good := true
	for _, sp := range Spaces() {
		r := sp.Induct(ctx, 1, workers)
		fmt.Fprintf(out, "inductive %-10s %v\n", sp.Name, r)
		if r.Broken != nil {
			fmt.Fprintf(out, "VIOLATED\n%v\n\nfrom %+v\n", r.Broken, r.State)
		}
		good = good && r.Broken == nil && r.Complete
	}
	return good
}

// String tells it in one line.
func (r Induction) String() string {
	return fmt.Sprintf("%d candidates, %d satisfy the invariants, %d steps, %.1fs", r.Candidates, r.States, r.Steps, r.Took.Seconds())
}
