package admin

import (
	"context"
	"fmt"
	"reflect"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/controller/runtime"
	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
	controllerv1 "github.com/flarekv/flare/proto/flare/controller/v1"
	"github.com/flarekv/flare/proto/topology"
)

// order is one call of an operator.
type order func(context.Context, controllerv1.ControllerServiceClient, bool) (*controllerv1.Outcome, error)

func setState(r *controllerv1.SetNodeStateRequest) order {
	return func(ctx context.Context, c controllerv1.ControllerServiceClient, dry bool) (*controllerv1.Outcome, error) {
		r.DryRun = dry
		resp, err := c.SetNodeState(ctx, r)
		return resp.GetOutcome(), err
	}
}

func setBalance(r *controllerv1.SetBalanceRequest) order {
	return func(ctx context.Context, c controllerv1.ControllerServiceClient, dry bool) (*controllerv1.Outcome, error) {
		r.DryRun = dry
		resp, err := c.SetBalance(ctx, r)
		return resp.GetOutcome(), err
	}
}

func handOver(r *controllerv1.HandoverRequest) order {
	return func(ctx context.Context, c controllerv1.ControllerServiceClient, dry bool) (*controllerv1.Outcome, error) {
		r.DryRun = dry
		resp, err := c.Handover(ctx, r)
		if epoch := resp.GetEpoch(); err == nil && (resp.GetTarget() != "b:12121" || resp.Partition == nil || (epoch == 0) != dry) {
			return nil, fmt.Errorf("handed over to %q, partition %v, epoch %d", resp.GetTarget(), resp.Partition, epoch)
		}
		return resp.GetOutcome(), err
	}
}

func forceMaster(r *controllerv1.ForceMasterRequest) order {
	return func(ctx context.Context, c controllerv1.ControllerServiceClient, dry bool) (*controllerv1.Outcome, error) {
		r.DryRun = dry
		resp, err := c.ForceMaster(ctx, r)
		return resp.GetOutcome(), err
	}
}

func pause(reason string) order {
	return func(ctx context.Context, c controllerv1.ControllerServiceClient, dry bool) (*controllerv1.Outcome, error) {
		resp, err := c.Pause(ctx, &controllerv1.PauseRequest{Reason: reason, DryRun: dry})
		return resp.GetOutcome(), err
	}
}

func resume(ctx context.Context, c controllerv1.ControllerServiceClient, dry bool) (*controllerv1.Outcome, error) {
	resp, err := c.Resume(ctx, &controllerv1.ResumeRequest{DryRun: dry})
	return resp.GetOutcome(), err
}

func overrideBreaker(seconds uint32) order {
	return func(ctx context.Context, c controllerv1.ControllerServiceClient, dry bool) (*controllerv1.Outcome, error) {
		resp, err := c.OverrideBreaker(ctx, &controllerv1.OverrideBreakerRequest{Seconds: seconds, DryRun: dry})
		return resp.GetOutcome(), err
	}
}

// TestOrders sees what each call makes of its request, and that a dry run is none.
func TestOrders(t *testing.T) {
	f := start(t, Config{})
	cluster := newFakeCluster(sample)
	cluster.outcome = func(c core.Command) core.Outcome {
		return core.Outcome{
			Decisions: []core.Decision{{Reason: "r", Node: "a:1", Old: "-", New: "x", Version: 8}},
			Events:    []core.Event{{Warning: true, Reason: "e", Message: "m"}},
			Orders:    []core.OrderNode{{Target: "b:12121"}},
		}
	}
	defer f.Lead(cluster)()
	client := controllerv1.NewControllerServiceClient(f.conn)
	none := topology.NoPartition
	for name, tt := range map[string]struct {
		do   order
		want core.Command
	}{
		"state": {setState(&controllerv1.SetNodeStateRequest{Node: "a:12121", State: agentv1.State_STATE_DOWN}),
			core.Command{Verb: core.VerbState, Name: "a", Port: 12121, State: topology.Down, Balance: -1, Partition: none}},
		"state with loss": {setState(&controllerv1.SetNodeStateRequest{Node: "a:12121", State: agentv1.State_STATE_ACTIVE, AllowDataLoss: true}),
			core.Command{Verb: core.VerbState, Name: "a", Port: 12121, State: topology.Active, Balance: -1, Partition: none, AllowDataLoss: true}},
		"balance": {setBalance(&controllerv1.SetBalanceRequest{Node: "a:12121", Balance: 5}),
			core.Command{Verb: core.VerbRole, Name: "a", Port: 12121, Role: topology.Master, Balance: 5}},
		"force": {forceMaster(&controllerv1.ForceMasterRequest{Node: "b:12121", Partition: new(uint32(0)), AllowDataLoss: true, Reason: "why"}),
			core.Command{Verb: core.VerbForce, Name: "b", Port: 12121, Balance: -1, AllowDataLoss: true, Note: "why"}},
		"force where it is": {forceMaster(&controllerv1.ForceMasterRequest{Node: "b:12121"}),
			core.Command{Verb: core.VerbForce, Name: "b", Port: 12121, Balance: -1, Partition: none}},
		"handover": {handOver(&controllerv1.HandoverRequest{Node: "a:12121"}),
			core.Command{Verb: core.VerbMove, Name: "a", Port: 12121, Balance: -1, Partition: none}},
		"handover to": {handOver(&controllerv1.HandoverRequest{Node: "a:12121", Target: "b:12121"}),
			core.Command{Verb: core.VerbMove, Name: "a", Port: 12121, Target: "b", TargetPort: 12121, Balance: -1, Partition: none}},
		"pause":    {pause("why"), core.Command{Verb: core.VerbPause, Note: "why"}},
		"resume":   {resume, core.Command{Verb: core.VerbResume}},
		"override": {overrideBreaker(60), core.Command{Verb: core.VerbOverride, Seconds: 60}},
	} {
		t.Run(name, func(t *testing.T) {
			cluster.applied = nil
			tried, err := tt.do(t.Context(), client, true)
			if err != nil {
				t.Fatal(err)
			}
			if len(cluster.applied) > 0 || !tried.GetDryRun() || len(tried.GetChanges()) != 1 || len(tried.GetNotices()) != 1 {
				t.Errorf("a dry run did %v and answered %v", cluster.applied, tried)
			}
			if c := tried.GetChanges()[0]; c.GetNode() != "a:1" || c.GetOldDuty() != "-" || c.GetNewDuty() != "x" || c.GetReason() != "r" || c.GetMapVersion() != 8 {
				t.Errorf("change %v", c)
			}
			done, err := tt.do(t.Context(), client, false)
			if err != nil {
				t.Fatal(err)
			}
			if done.GetDryRun() || !reflect.DeepEqual(cluster.applied, []core.Command{tt.want}) {
				t.Errorf("did %+v, want %+v", cluster.applied, tt.want)
			}
		})
	}
}

// TestOrdersRefused sees bad requests, and what the core or the shell refuse.
func TestOrdersRefused(t *testing.T) {
	f := start(t, Config{})
	cluster := newFakeCluster(sample)
	says := ""
	cluster.outcome = func(core.Command) core.Outcome { return core.Outcome{Reply: core.Reply{Err: "text", Reason: says}} }
	client := controllerv1.NewControllerServiceClient(f.conn)
	down := agentv1.State_STATE_DOWN

	for _, do := range []order{setState(&controllerv1.SetNodeStateRequest{Node: "a:1", State: down}), setBalance(&controllerv1.SetBalanceRequest{}),
		forceMaster(&controllerv1.ForceMasterRequest{}), handOver(&controllerv1.HandoverRequest{}), pause("x"), resume, overrideBreaker(1)} {
		_, err := do(t.Context(), client, false)
		wantRefusal(t, err, codes.FailedPrecondition, ReasonNotLeader)
	}
	defer f.Lead(cluster)()
	for name, tt := range map[string]struct {
		do     order
		says   string
		err    error
		code   codes.Code
		reason string
	}{
		"no node":               {do: setState(&controllerv1.SetNodeStateRequest{State: down}), code: codes.InvalidArgument, reason: ReasonNodeInvalid},
		"no port":               {do: forceMaster(&controllerv1.ForceMasterRequest{Node: "a"}), code: codes.InvalidArgument, reason: ReasonNodeInvalid},
		"no state":              {do: setState(&controllerv1.SetNodeStateRequest{Node: "a:1"}), code: codes.InvalidArgument, reason: core.RefuseState},
		"a state of the future": {do: setState(&controllerv1.SetNodeStateRequest{Node: "a:1", State: 77}), code: codes.InvalidArgument, reason: core.RefuseState},
		"balance too large":     {do: setBalance(&controllerv1.SetBalanceRequest{Node: "a:12121", Balance: 1 << 31}), code: codes.InvalidArgument, reason: core.RefuseBalance},
		"target without port":   {do: handOver(&controllerv1.HandoverRequest{Node: "a:12121", Target: "b"}), code: codes.InvalidArgument, reason: ReasonNodeInvalid},
		"handover of nobody":    {do: handOver(&controllerv1.HandoverRequest{Node: "x:1"}), code: codes.NotFound, reason: core.RefuseNoSuchNode},
		"handover by the core":  {do: handOver(&controllerv1.HandoverRequest{Node: "a:12121"}), says: core.RefuseNotInSync, code: codes.FailedPrecondition, reason: core.RefuseNotInSync},
		"balance of nobody":     {do: setBalance(&controllerv1.SetBalanceRequest{Node: "x:1"}), code: codes.NotFound, reason: core.RefuseNoSuchNode},
		"of the core":           {do: pause(""), says: core.RefuseNote, code: codes.InvalidArgument, reason: core.RefuseNote},
		"data loss":             {do: forceMaster(&controllerv1.ForceMasterRequest{Node: "b:12121"}), says: core.RefuseDataLoss, code: codes.FailedPrecondition, reason: core.RefuseDataLoss},
		"unknown to the core":   {do: forceMaster(&controllerv1.ForceMasterRequest{Node: "b:12121"}), says: core.RefuseNoSuchNode, code: codes.NotFound, reason: core.RefuseNoSuchNode},
		"not durable":           {do: resume, err: context.DeadlineExceeded, code: codes.DeadlineExceeded, reason: ReasonNotDurable},
		"the reign is over":     {do: resume, err: runtime.ErrStopped, code: codes.FailedPrecondition, reason: ReasonNotLeader},
	} {
		t.Run(name, func(t *testing.T) {
			says, cluster.err = tt.says, tt.err
			for _, dry := range []bool{true, false} {
				_, err := tt.do(t.Context(), client, dry)
				wantRefusal(t, err, tt.code, tt.reason)
			}
		})
	}
	says, cluster.err = "", nil
	if _, err := setBalance(&controllerv1.SetBalanceRequest{Node: "c:12121", Balance: 1})(t.Context(), client, true); err != nil {
		t.Errorf("what a dead node is told is the core's to say: %v", err)
	}
}
